"""Two processes under DDP, on the CPU through gloo: one run folder, different draws, exact resume."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

# A file and not -c: Lightning starts the second process by running the same command line again.
SCRIPT = """
import json, sys
from stable_audio_tools.training import diffusion, run
from stable_audio_tools.training.hardware import Hardware
from stable_audio_tools.training.settings import TrainSettings

def spread(settings, lora=False):
    return Hardware("cpu", 2, 1, "32-true", settings.strategy or "ddp")

def watch(self, latents, key, draw=diffusion.DiffusionCondTrainer._timesteps):
    timesteps = draw(self, latents, key)
    with open(f"rank-{key[3]}.jsonl", "a") as stream:
        stream.write(json.dumps([key[1], timesteps.tolist()]) + chr(10))
    return timesteps

if __name__ == "__main__":
    if sys.argv[2] == "2":
        run.choose_hardware = spread
    diffusion.DiffusionCondTrainer._timesteps = watch
    run.train(TrainSettings(**json.loads(sys.argv[1])))
"""


@pytest.fixture
def settings(
    tmp_path: Path, tiny_diffusion_config: dict[str, Any], tiny_audio_folder: Path
) -> dict[str, Any]:
    module = tmp_path / "metadata.py"
    module.write_text("def get_custom_metadata(info, audio):\n    return {'prompt': info['relpath']}\n")
    entry = {"id": "a", "path": str(tiny_audio_folder / "audio"), "custom_metadata_module": str(module)}
    (tmp_path / "data.json").write_text(json.dumps({"dataset_type": "audio_dir", "datasets": [entry]}))
    (tmp_path / "model.json").write_text(json.dumps(tiny_diffusion_config))
    (tmp_path / "script.py").write_text(SCRIPT)
    return {
        "model_config": str(tmp_path / "model.json"),
        "dataset_config": str(tmp_path / "data.json"),
        "val_dataset_config": str(tmp_path / "data.json"),
        "val_every": 4,
        "save_dir": str(tmp_path / "runs"),
        "batch_size": 2,
        "num_workers": 0,
        "precision": "32",
        "max_steps": 4,
        "checkpoint_every": 2,
        "log_every": 2,
    }


def start(folder: Path, settings: dict[str, Any], processes: int = 2, code: int = 0) -> str:
    """Run the script to its end; each rank leaves its timesteps in ``rank-<n>.jsonl``. Returns its words."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "TORCHELASTIC"))}
    done = subprocess.run(
        [sys.executable, "script.py", json.dumps(settings), str(processes)],
        cwd=folder,
        env={**clean, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stderr
    return done.stderr


def losses(folder: Path, settings: dict[str, Any], processes: int) -> list[float]:
    """The loss of every step of a run, and of its validation."""
    start(folder, settings, processes)
    (table,) = (folder / "runs" / settings["name"]).glob("*/metrics.csv")
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [float(row[name]) for row in rows for name in ("train/loss", "val/loss") if row[name]]


def test_the_loss_is_that_of_the_global_batch_however_it_is_split(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    """8 on one process; 4 on each of two; twice 4 on one; twice 2 on each of two."""
    settings |= {"max_steps": 6, "log_every": 1, "val_every": 3, "checkpoint_every": 100}
    whole = losses(tmp_path, {**settings, "name": "whole", "batch_size": 8}, 1)
    assert len(whole) == 8
    assert len(set(whole)) == 8
    for name, split in {
        "ranks": ({"batch_size": 4}, 2),
        "twice": ({"batch_size": 4, "accum_batches": 2}, 1),
        "both": ({"batch_size": 2, "accum_batches": 2}, 2),
        "sharded": ({"batch_size": 4, "strategy": "fsdp"}, 2),
    }.items():
        found = losses(tmp_path, {**settings, **split[0], "name": name}, split[1])
        assert found == pytest.approx(whole, abs=1e-5), name


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "step=00000004.ckpt", weights_only=True)["state_dict"]


def test_two_ranks_share_a_run_and_resume_exactly(tmp_path: Path, settings: dict[str, Any]) -> None:
    start(tmp_path, {**settings, "name": "whole"})
    (whole,) = (tmp_path / "runs" / "whole").iterdir()
    lines = [(tmp_path / f"rank-{rank}.jsonl").read_text().splitlines() for rank in (0, 1)]
    first, second = ([json.loads(line) for line in rank] for rank in lines)
    assert [step for step, _ in first] == [step for step, _ in second] == [0, 1, 2, 3]
    assert all(mine != theirs for mine, theirs in zip(first, second, strict=True)), (
        "ranks draw for themselves"
    )
    with (whole / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["step"] for row in rows] == ["2", "4"]
    assert float(rows[-1]["val/loss"]) > 0

    start(tmp_path, {**settings, "name": "halves", "max_steps": 2})
    start(tmp_path, {**settings, "name": "halves", "recover": True})
    (halves,) = (tmp_path / "runs" / "halves").iterdir()
    unbroken, resumed = weights(whole), weights(halves)
    assert all(torch.equal(unbroken[key], resumed[key]) for key in unbroken)
