"""Two processes under DDP, on the CPU through gloo: one run folder, different draws, exact resume."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupting import interrupt
from metrics_table import learned_rows
from torch.utils._pytree import tree_flatten

from stable_audio_tools.models.unwrap import unwrap_checkpoint

# A file and not -c: Lightning starts the second process by running the same command line again. torchrun
# starts both, and they train one run after the other.
SCRIPT = """
import json, sys
from stable_audio_tools.training import diffusion, run
from stable_audio_tools.training.hardware import Hardware
from stable_audio_tools.training.settings import TrainSettings

def spread(settings, lora=False):
    return Hardware("cpu", 2, 1, settings.precision, settings.strategy or "ddp")

def watch(self, latents, key, draw=diffusion.DiffusionCondTrainer._timesteps):
    timesteps = draw(self, latents, key)
    with open(f"rank-{key[3]}.jsonl", "a") as stream:
        stream.write(json.dumps([key[1], timesteps.tolist()]) + chr(10))
    return timesteps

if __name__ == "__main__":
    if sys.argv[2] == "2":
        run.choose_hardware = spread
    diffusion.DiffusionCondTrainer._timesteps = watch
    for values in json.loads(sys.argv[1]):
        run.train(TrainSettings(**values))
"""

DEEPSPEED_ON_CPUS = """
import os
os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import StrategyRegistry, deepspeed as lightning

class OnCPUs(lightning.DeepSpeedStrategy):
    def setup_distributed(self):
        self._process_group_backend = "gloo"
        super().setup_distributed()

def initialize(args, initialize=deepspeed.initialize, **what):
    args.device_rank = -1
    return initialize(args=args, **what)

lightning.CUDAAccelerator = CPUAccelerator
lightning._validate_device_index_selection = lambda devices: None
deepspeed.initialize = initialize
StrategyRegistry["deepspeed"]["strategy"] = OnCPUs
"""
"""DeepSpeed runs on CPUs too, but Lightning does not know."""


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


def begin(
    folder: Path, runs: list[dict[str, Any]], processes: int, by_lightning: bool = False
) -> subprocess.Popen[str]:
    """Train the ``runs``, one after the other; each rank leaves its timesteps in ``rank-<n>.jsonl``."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "TORCHELASTIC"))}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.Popen(
        [
            sys.executable,
            *([] if by_lightning or processes == 1 else torchrun),
            "script.py",
            json.dumps(runs),
            str(processes),
        ],
        cwd=folder,
        env={**clean, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def start(folder: Path, runs: list[dict[str, Any]], processes: int, by_lightning: bool = False) -> None:
    """:func:`begin`, and wait for the end."""
    process = begin(folder, runs, processes, by_lightning)
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 0, errors


def losses(folder: Path, runs: list[dict[str, Any]], processes: int) -> list[list[float]]:
    """The loss of every step of each run, and of its validation."""
    start(folder, runs, processes)
    found = []
    for settings in runs:
        (table,) = (folder / "runs" / settings["name"]).glob("*/metrics.csv")
        with table.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        found.append(
            [float(row[name]) for name in ("train/loss", "val/loss") for row in rows if row.get(name)]
        )
    return found


def test_the_loss_is_that_of_the_global_batch_however_it_is_split(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    """8 on one; twice 4 on one; 4 on each of two; twice 2 on each of two; 4 on each of two, sharded."""
    settings |= {"max_steps": 6, "log_every": 1, "val_every": 3, "checkpoint_every": 3}
    one = [{"batch_size": 8}, {"batch_size": 4, "accum_batches": 2}, {"batch_size": 8, "seed": 7}]
    two = [
        {"batch_size": 4},
        {"batch_size": 2, "accum_batches": 2},
        {"batch_size": 4, "strategy": "fsdp", "gradient_clip_val": 1e9},
    ]
    whole, twice, other = losses(tmp_path, named(settings, one, "one"), 1)
    assert len(set(whole)) == len(whole) == 8
    assert max(abs(a - b) for a, b in zip(whole, other, strict=True)) > 1e-3, "it tells runs apart"
    split = losses(tmp_path, named(settings, two, "two"), 2)
    for found in (twice, *split):
        assert found[:6] == pytest.approx(whole[:6], abs=1e-5)
    for found in (split[0], split[2]):  # the others have smaller batches to validate on
        assert found[6:] == pytest.approx(whole[6:], abs=1e-5)
    files = [
        next(tmp_path.glob(f"runs/{name}/*/checkpoints/step=00000006.ckpt")) for name in ("one-0", "two-2")
    ]
    first, second = (torch.load(file, weights_only=True) for file in files)
    for kind in ("state_dict", "optimizer_states"):
        (one_leaves, one_tree), (two_leaves, two_tree) = (
            tree_flatten({**each, "state_dict": dict(each["state_dict"])}[kind]) for each in (first, second)
        )
        assert one_tree == two_tree, "a sharded run writes what any other writes"
        for mine, theirs in zip(one_leaves, two_leaves, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


def test_codebooks_follow_the_latents_of_both_ranks(tmp_path: Path, settings: dict[str, Any]) -> None:
    oobleck = {"channels": 4, "c_mults": [1, 2], "strides": [2, 4]}
    rvq = {"dim": 4, "num_quantizers": 2, "codebook_size": 8}
    without_draws = {"kmeans_init": False, "threshold_ema_dead_code": 0}
    model = {
        "encoder": {"type": "oobleck", "config": {"in_channels": 2, "latent_dim": 4, **oobleck}},
        "decoder": {"type": "oobleck", "config": {"out_channels": 2, "latent_dim": 4, **oobleck}},
        "bottleneck": {"type": "rvq", "config": rvq | without_draws},
        "latent_dim": 4,
        "downsampling_ratio": 8,
        "io_channels": 2,
    }
    config = json.loads((tmp_path / "model.json").read_text()) | {"model_type": "autoencoder", "model": model}
    weights = {"time": {"weights": {"l1": 1.0}}, "bottleneck": {"weights": {"quantizer": 1.0}}}
    config["training"] = {"learning_rate": 2e-3, "loss_configs": weights}
    (tmp_path / "model.json").write_text(json.dumps(config))
    settings |= {"log_every": 1, "val_every": 100}
    alone, both = {**settings, "name": "alone", "batch_size": 4}, {**settings, "name": "both"}
    (one,), (two,) = losses(tmp_path, [alone], 1), losses(tmp_path, [both], 2)
    assert two == pytest.approx(one, abs=1e-5)
    states = [
        torch.load(file, weights_only=True)["state_dict"]
        for file in sorted(tmp_path.glob("runs/*/*/checkpoints/step=00000004.ckpt"))
    ]
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-5, atol=1e-5)


def test_a_sharded_run_goes_on_with_any_strategy(tmp_path: Path, settings: dict[str, Any]) -> None:
    settings |= {"batch_size": 4, "checkpoint_every": 2, "log_every": 1, "val_every": 100}
    runs = named(settings, [{"strategy": "fsdp"}, {"strategy": "fsdp", "max_steps": 2}], "run")
    runs += [{**runs[1], "max_steps": 4, "recover": True}]
    whole = losses(tmp_path, runs, 2)[0]
    tables = [next(tmp_path.glob(f"runs/run-{number}/*/metrics.csv")) for number in (0, 1)]
    assert learned_rows(tables[0]) == learned_rows(tables[1])
    assert len(whole) == 4
    ckpt = next(tmp_path.glob("runs/run-1/*/checkpoints/step=00000002.ckpt"))
    (alone,) = losses(tmp_path, [{**settings, "name": "alone", "batch_size": 8, "ckpt_path": str(ckpt)}], 1)
    assert alone == pytest.approx(whole[2:], abs=1e-5)


def named(settings: dict[str, Any], changes: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [{**settings, **each, "name": f"{name}-{number}"} for number, each in enumerate(changes)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "step=00000004.ckpt", weights_only=True)["state_dict"]


def test_two_ranks_share_a_run_and_resume_exactly(tmp_path: Path, settings: dict[str, Any]) -> None:
    start(tmp_path, [{**settings, "name": "whole"}], 2, by_lightning=True)
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

    halves = {**settings, "name": "halves"}
    start(tmp_path, [{**halves, "max_steps": 2}, {**halves, "recover": True}], 2)
    (again,) = (tmp_path / "runs" / "halves").iterdir()
    unbroken, resumed = weights(whole), weights(again)
    assert all(torch.equal(unbroken[key], resumed[key]) for key in unbroken)


@pytest.fixture
def with_deepspeed(tmp_path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    pytest.importorskip("deepspeed")
    script = tmp_path / "script.py"
    script.write_text(DEEPSPEED_ON_CPUS + script.read_text())
    return {**settings, "log_every": 1, "gradient_clip_val": 0.1}


@pytest.mark.parametrize("strategy", ["ddp", "deepspeed"])
def test_killed_and_stopped_runs_go_on(
    tmp_path: Path, settings: dict[str, Any], strategy: str, request: pytest.FixtureRequest
) -> None:
    if strategy == "deepspeed":
        settings = request.getfixturevalue("with_deepspeed")
    settings |= {"strategy": strategy, "max_steps": 30, "log_every": 1, "val_every": 4}
    broken = {**settings, "name": "broken", "recover": True}
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = begin(tmp_path, [broken], 2, by_lightning=True)
        interrupt(process, number, tmp_path / "runs" / "broken")
    start(tmp_path, [broken, {**settings, "name": "whole"}], 2)
    tables = [next(tmp_path.glob(f"runs/{name}/*/metrics.csv")) for name in ("broken", "whole")]
    assert len(learned_rows(tables[0])) == 30
    assert learned_rows(tables[0]) == learned_rows(tables[1])


STOPS_IN_ITS_DEMO = """
import os, signal
from stable_audio_tools.training import demos

def generate(*args, generate=demos.generate_diffusion_cond, **options):
    os.kill(os.getpid(), signal.SIGTERM)
    return generate(*args, **options)

demos.generate_diffusion_cond = generate
"""


def test_a_demo_that_is_cut_short_is_made_when_the_run_goes_on(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    """One rank hears the signal and gives its demo up; the others hear of it with the next batch."""
    config = json.loads((tmp_path / "model.json").read_text())
    cond = [{"prompt": "rock", "seconds_start": 0, "seconds_total": 1}]
    config["training"]["demo"] = {"demo_every": 3, "demo_steps": 2, "num_demos": 1, "demo_cond": cond}
    (tmp_path / "model.json").write_text(json.dumps(config))
    settings |= {"max_steps": 12, "log_every": 1, "val_every": 100, "checkpoint_every": 100}
    broken, script = {**settings, "name": "broken", "recover": True}, tmp_path / "script.py"
    plain = script.read_text()
    script.write_text(STOPS_IN_ITS_DEMO + plain)
    process = begin(tmp_path, [broken], 2, by_lightning=True)
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "step 3: the demo is left to the run that goes on" in errors
    (run,) = (tmp_path / "runs" / "broken").iterdir()
    assert not list(run.rglob("demos/*/*.wav"))
    script.write_text(plain)
    start(tmp_path, [broken, {**settings, "name": "whole"}], 2)
    (whole,) = (tmp_path / "runs" / "whole").iterdir()
    assert learned_rows(run / "metrics.csv") == learned_rows(whole / "metrics.csv")
    steps = [int(path.name.removeprefix("step=")) for path in sorted((run / "demos").glob("step=*"))]
    assert steps[0] in (4, 5)
    assert steps[1:] == [6, 9, 12]


@pytest.mark.parametrize(
    ("precision", "near"), [("32", 1e-5), ("bf16-mixed", 5e-3), ("16-mixed", 5e-3)], ids=str
)
def test_deepspeed_trains_what_ddp_does(
    tmp_path: Path, with_deepspeed: dict[str, Any], precision: str, near: float
) -> None:
    settings = {**with_deepspeed, "precision": precision}
    if precision == "16-mixed":
        del settings["gradient_clip_val"]  # refused, see test_hardware.py
    runs = named(settings, [{"precision": "32"}, {"strategy": "deepspeed"}], "run")
    ddp, zero = losses(tmp_path, runs, 2)
    assert zero == pytest.approx(ddp, abs=near)
    states = [
        torch.load(
            unwrap_checkpoint(
                next(tmp_path.glob(f"runs/{run['name']}/*/checkpoints/step=00000004.ckpt")),
                None,
                tmp_path / run["name"],
            ),
            weights_only=True,
        )["state_dict"]
        for run in runs
    ]
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        assert states[1][key].dtype == value.dtype
        if "pretransform" in key:
            assert torch.equal(states[1][key], value), "a frozen VAE stays what it is"
        torch.testing.assert_close(states[1][key], value, rtol=0, atol=near)


def test_a_run_with_deepspeed_goes_on(tmp_path: Path, with_deepspeed: dict[str, Any]) -> None:
    settings = {**with_deepspeed, "strategy": "deepspeed", "precision": "bf16-mixed", "val_every": 100}
    runs = named(settings, [{}, {"max_steps": 2}], "run")
    runs += [{**runs[1], "max_steps": 4, "recover": True}]
    losses(tmp_path, runs, 2)
    tables = [next(tmp_path.glob(f"runs/run-{number}/*/metrics.csv")) for number in (0, 1)]
    assert learned_rows(tables[0]) == learned_rows(tables[1])
