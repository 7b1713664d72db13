"""A GPU trains what the CPU does, from the same seed.

python -m pytest -q tests/gpu/test_training_on_gpu.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import STEPS, losses, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU"),
]


@pytest.mark.parametrize("compiled", [False, True])
def test_one_gpu_trains_what_the_cpu_does(flags: dict[str, Any], tmp_path: Path, compiled: bool) -> None:
    """Not to the bit: products are added up in another order, and attention is another one."""
    (tmp_path / "defaults.ini").write_text(f"[DEFAULTS]\ncompile = {compiled}\n")
    on_gpu = train({**flags, "name": "gpu", "batch-size": 8, "num-gpus": 1})
    on_cpu = train({**flags, "name": "cpu", "batch-size": 8, "num-gpus": 0}, "--no-compile")
    assert len(losses(on_cpu)) == STEPS + 2
    assert losses(on_gpu) == pytest.approx(losses(on_cpu), rel=2e-3)


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "bf16-true"])
def test_every_precision_trains_with_clipped_gradients(flags: dict[str, Any], precision: str) -> None:
    flags |= {"batch-size": 8, "num-gpus": 1, "gradient-clip-val": 0.05}
    whole = losses(train({**flags, "name": "whole"}))
    assert losses(train({**flags, "name": "half", "precision": precision})) == pytest.approx(whole, rel=3e-2)
