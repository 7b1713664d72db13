"""What tests look at in the folder of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def names(folder: Path) -> list[str]:
    """What lies in ``folder``, sorted."""
    return sorted(path.name for path in folder.iterdir())


def load(run: Path, step: int) -> dict[str, Any]:
    """The checkpoint of ``step``."""
    return torch.load(run / "checkpoints" / f"step={step:08d}.ckpt", weights_only=True)


def assert_same_weights(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Two checkpoints have the same weights, bit for bit."""
    assert first["state_dict"].keys() == second["state_dict"].keys()
    for key, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][key]), key
