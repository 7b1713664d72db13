"""A run that was killed at any moment and resumed has the weights of the unbroken run, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

STEPS = 30
RUNNER = """
import json, sys
from stable_audio_tools.training.run import train
from stable_audio_tools.training.settings import TrainSettings
for values in json.loads(sys.argv[1]):
    print(train(TrainSettings(**values)), flush=True)
"""


@pytest.fixture
def settings(
    tmp_path: Path, tiny_diffusion_config: dict[str, Any], tiny_audio_folder: Path
) -> dict[str, Any]:
    """Plain values of a run with everything on that draws random numbers."""
    tiny_diffusion_config["training"]["cfg_dropout_prob"] = 0.3
    module = tmp_path / "metadata.py"
    module.write_text(
        "def get_custom_metadata(info, audio):\n    return {'prompt': info['relpath']}\n", encoding="utf-8"
    )
    dataset = {
        "dataset_type": "audio_dir",
        "datasets": [
            {"id": "a", "path": str(tiny_audio_folder / "audio"), "custom_metadata_module": str(module)}
        ],
    }
    (tmp_path / "model.json").write_text(json.dumps(tiny_diffusion_config), encoding="utf-8")
    (tmp_path / "data.json").write_text(json.dumps(dataset), encoding="utf-8")
    return {
        "model_config": str(tmp_path / "model.json"),
        "dataset_config": str(tmp_path / "data.json"),
        "save_dir": str(tmp_path / "runs"),
        "batch_size": 3,
        "precision": "32",
        "max_steps": STEPS,
        "checkpoint_every": 4,
        "log_every": 10,
        "device": "cpu",
    }


def start(*runs: dict[str, Any]) -> subprocess.Popen[str]:
    """Start ``runs``, one after the other, in a process of their own on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUNNER, json.dumps(runs)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes)


def kill_after_checkpoint(process: subprocess.Popen[str], runs: Path, step: int) -> None:
    """SIGKILL the process and its workers soon after the checkpoint of ``step`` is there."""
    deadline = time.monotonic() + 120
    while not list(runs.glob(f"*/checkpoints/step={step:08d}.ckpt")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(0.1)  # some way into the steps that no checkpoint holds
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize(("num_workers", "accum_batches"), [(0, 1), (2, 2)])
def test_killed_and_resumed_equals_unbroken(
    tmp_path: Path, settings: dict[str, Any], num_workers: int, accum_batches: int
) -> None:
    settings |= {"num_workers": num_workers, "accum_batches": accum_batches}
    kill_after_checkpoint(start({**settings, "name": "killed"}), tmp_path / "runs" / "killed", step=8)
    survivors = sorted((tmp_path / "runs" / "killed").glob("*/checkpoints/*"))
    last = f"step={STEPS:08d}.ckpt"
    assert survivors
    assert last not in {path.name for path in survivors}, "the run ended before it could be killed"

    process = start({**settings, "name": "killed", "recover": True}, {**settings, "name": "unbroken"})
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert "continuing from step" in errors
    resumed, unbroken = (
        torch.load(Path(folder) / "checkpoints" / last, weights_only=True) for folder in output.split()
    )
    assert Path(output.split()[0]) == survivors[0].parents[1], "--recover goes on in the same folder"
    for key, value in unbroken["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][key]), key
    first, second = unbroken["optimizer_states"][0]["state"], resumed["optimizer_states"][0]["state"]
    assert all(torch.equal(first[i][name], second[i][name]) for i in first for name in first[i])
    assert unbroken["lr_schedulers"] == resumed["lr_schedulers"]
    assert unbroken["position"] == resumed["position"] == {"steps": STEPS, "batches": STEPS * accum_batches}
