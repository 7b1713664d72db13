"""One golden case: its model with its weights, its inputs and its outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from stable_audio_tools.models.factory import create_model_from_config

PARITY = Path(__file__).parents[2] / "../shared/parity"
METADATA = [{"seconds_start": 0.0, "seconds_total": 47.0}, {"seconds_start": 12.5, "seconds_total": 190.0}]


class GoldenCase:
    """The case called ``name``; the test is skipped where the golden cases are not beside this checkout."""

    def __init__(self, name: str) -> None:
        folder = PARITY / name
        if not folder.is_dir():
            pytest.skip("the golden cases are not beside this checkout", allow_module_level=True)
        self.tensors = load_file(folder / "tensors.safetensors")
        self.model = create_model_from_config(json.loads((folder / "case.json").read_text())["config"])
        self.model.load_state_dict(
            {k[2:]: v for k, v in self.tensors.items() if k.startswith("w/")}, strict=True
        )
        self.model.eval()

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def names(self, prefix: str) -> list[str]:
        """Last parts of the tensor names that start with ``prefix``."""
        return sorted(key.removeprefix(prefix) for key in self.tensors if key.startswith(prefix))

    def conditioning(
        self, prompt: str = "prompt", metadata: list[dict[str, float]] = METADATA
    ) -> dict[str, Any]:
        """Conditioning by id, with the stored tokens of ``in/<prompt>``."""
        tokens = (self[f"in/{prompt}"], self.tensors.get(f"in/{prompt}_mask"))
        return {**self.model.conditioner(metadata, "cpu"), "prompt": tokens}


def assert_agrees(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Within the tolerance of the README: 1e-4, for whole sampling runs 1e-3."""
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
