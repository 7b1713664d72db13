"""A GPU trains what the CPU does, from the same seed.

python -m pytest -q tests/gpu/test_training_on_gpu.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import DEEPSPEED, STEPS, broken_and_whole, losses, train

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


@pytest.mark.parametrize("precision", ["32", "16-mixed", "bf16-mixed"])
@pytest.mark.parametrize("strategy", ["ddp", DEEPSPEED])
def test_a_strategy_of_one_process_trains_what_none_does(
    flags: dict[str, Any], strategy: str, precision: str
) -> None:
    """With the average in main memory, although the strategy moves the module that holds it."""
    flags |= {"batch-size": 8, "num-gpus": 1, "precision": precision, "gradient-clip-val": 0.0}
    none = train({**flags, "name": "none"}, "--ema-on-cpu")
    one = train({**flags, "name": "one", "strategy": strategy}, "--ema-on-cpu")
    assert losses(one) == pytest.approx(losses(none), rel=5e-3)


@pytest.mark.parametrize("strategy", ["auto", DEEPSPEED])
def test_killed_and_stopped_runs_go_on(flags: dict[str, Any], strategy: str) -> None:
    broken, whole = broken_and_whole({**flags, "batch-size": 8, "num-gpus": 1, "strategy": strategy})
    assert len(whole) == 62
    assert broken == pytest.approx(whole, rel=2e-3)
