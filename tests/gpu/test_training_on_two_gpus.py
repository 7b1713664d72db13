"""Two GPUs train what one does, whatever the strategy; a killed run goes on; the result unwraps and plays.

python -m pytest -q tests/gpu/test_training_on_two_gpus.py
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import DEEPSPEED, ROOT, STEPS, broken_and_whole, losses, train

from stable_audio_tools.models.unwrap import unwrap_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="this machine has fewer than two CUDA GPUs"),
]
STRATEGIES = ["ddp", "fsdp", DEEPSPEED]


def model_of(run: Path, target: Path) -> dict[str, torch.Tensor]:
    path = unwrap_checkpoint(run / "checkpoints" / f"step={STEPS:08d}.ckpt", None, target)
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def assert_same_models(one: Path, two: Path, tmp_path: Path) -> None:
    first, second = model_of(one, tmp_path / "one"), model_of(two, tmp_path / "two")
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(value, second[key], rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_train_what_one_does(
    flags: dict[str, Any], tmp_path: Path, strategy: str, compiled: bool
) -> None:
    (tmp_path / "defaults.ini").write_text(f"[DEFAULTS]\ncompile = {compiled}\n")
    one = train({**flags, "name": "one", "batch-size": 8, "num-gpus": 1})
    two = train({**flags, "name": "two", "batch-size": 4, "num-gpus": 2, "strategy": strategy})
    assert losses(two) == pytest.approx(losses(one), rel=2e-3)
    assert len(losses(one)) == STEPS + 2
    assert_same_models(one, two, tmp_path)
    assert list((two / "demos").rglob("*.wav"))


@pytest.mark.parametrize("strategy", [each for each in STRATEGIES if each != "fsdp"])
def test_two_keep_the_average_of_one_in_main_memory(
    flags: dict[str, Any], tmp_path: Path, strategy: str
) -> None:
    one = train({**flags, "name": "one", "batch-size": 8, "num-gpus": 1}, "--ema-on-cpu")
    two_flags = {**flags, "name": "two", "batch-size": 4, "num-gpus": 2, "strategy": strategy}
    two = train(two_flags, "--ema-on-cpu")
    assert losses(two) == pytest.approx(losses(one), rel=2e-3)
    assert_same_models(one, two, tmp_path)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_killed_and_stopped_runs_go_on(flags: dict[str, Any], strategy: str) -> None:
    broken, whole = broken_and_whole({**flags, "batch-size": 4, "num-gpus": 2, "strategy": strategy})
    assert len(whole) == 62
    assert broken == pytest.approx(whole, rel=2e-2)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_two_trained_plays(flags: dict[str, Any], tmp_path: Path, strategy: str) -> None:
    flags |= {"batch-size": 4, "num-gpus": 2, "strategy": strategy, "precision": "bf16-mixed"}
    run = train({**flags, "name": "two"})
    model_of(run, tmp_path / "model")
    command = [
        "generate",
        "--model-config",
        str(flags["model-config"]),
        "--ckpt-path",
        str(tmp_path / "model.ckpt"),
    ]
    subprocess.run(
        [sys.executable, "-m", "stable_audio_tools.cli.main", *command, "--prompt", "rock", "--steps", "4",
         "--output-dir", str(tmp_path / "clips")],
        cwd=ROOT, check=True,
    )  # fmt: skip
    assert list((tmp_path / "clips").glob("*.wav"))


def test_a_sharded_run_goes_on_with_ddp_on_one_gpu(flags: dict[str, Any]) -> None:
    two = train(
        {**flags, "name": "two", "batch-size": 4, "num-gpus": 2, "strategy": "fsdp", "max-steps": 4},
    )
    whole = train({**flags, "name": "whole", "batch-size": 8, "num-gpus": 1})
    ckpt = two / "checkpoints" / "step=00000004.ckpt"
    one = train({**flags, "name": "one", "batch-size": 8, "num-gpus": 1, "ckpt-path": ckpt})
    assert losses(one) == pytest.approx(losses(whole)[-len(losses(one)) :], rel=2e-3)
