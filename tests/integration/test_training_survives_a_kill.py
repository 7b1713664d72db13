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
from metrics_table import learned_rows

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


KILLS = 20
LAST = 100
KILLER = """
import io, json, os, random, signal, sys, time
import torch
from stable_audio_tools.training import diffusion
from stable_audio_tools.training.run import train
from stable_audio_tools.training.settings import TrainSettings

settings = json.loads(sys.argv[1])
kills = int(sys.argv[2])
draws = random.Random(2026)
save = torch.save

def child(words, slow_write):
    os.setsid()
    written = 0

    def half_way(value, path, *rest):
        # the same bytes in two pieces, with a word to the parent in between
        nonlocal written
        written += 1
        buffer = io.BytesIO()
        save(value, buffer)
        with open(path, "wb") as stream:
            stream.write(buffer.getvalue()[: buffer.tell() // 2])
            stream.flush()
            os.write(words, b"w")
            if written == slow_write:
                time.sleep(60)
            stream.write(buffer.getvalue()[buffer.tell() // 2 :])

    torch.save = half_way
    diffusion.DiffusionCondTrainer.on_train_batch_end = lambda *_: os.write(words, b"s") and None
    train(TrainSettings(**settings))

def wait_for(stream, word, count):
    while count:
        found = stream.read(1)
        assert found, "the run ended before it could be killed"
        count -= found == word

def attempt(kind):
    # Start the run, kill it at a moment of the kind, and say how it ended.
    first, last = os.pipe()
    slow_write = draws.randint(1, 2) if kind == "writing" else 0
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(first)
        try:
            child(last, slow_write)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(last)
    with os.fdopen(first, "rb", buffering=0) as stream:
        if kind == "writing":
            wait_for(stream, b"w", slow_write)
        elif kind == "starting":
            time.sleep(draws.uniform(0, attempt.start))
        elif kind == "training":
            wait_for(stream, b"s", 1)
            attempt.start = time.monotonic() - started
            wait_for(stream, b"s", draws.randint(0, 5))
            time.sleep(draws.uniform(0, 0.05))
        else:
            while stream.read(4096):
                pass
        if kind != "whole":
            os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

kinds = ["training"] + draws.choices(["training", "writing", "starting"], [9, 7, 3], k=kills - 1)
for kind in [*kinds, "whole"]:
    print(kind, attempt(kind), flush=True)
settings["name"], settings["recover"] = "unbroken", False
print("whole", attempt("whole"), flush=True)
"""


def test_killed_at_twenty_moments_it_goes_on_each_time(tmp_path: Path, settings: dict[str, Any]) -> None:
    """While it starts, trains or writes a checkpoint. One process imports once and forks each attempt."""
    settings |= {"num_workers": 0, "checkpoint_every": 2, "save_top_k": 3, "max_steps": LAST, "log_every": 1}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            KILLER,
            json.dumps({**settings, "name": "killed", "recover": True}),
            str(KILLS),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    ends = [line.split() for line in done.stdout.splitlines()]
    assert [end for _, end in ends] == ["-9"] * KILLS + ["0", "0"], done.stderr
    assert {kind for kind, _ in ends} == {"starting", "training", "writing", "whole"}
    (killed,), (unbroken,) = (list((tmp_path / "runs" / name).iterdir()) for name in ("killed", "unbroken"))
    assert "damaged" not in done.stderr
    assert done.stderr.count("continuing from step") >= KILLS // 2
    kept = [f"step={step:08d}.ckpt" for step in (LAST - 4, LAST - 2, LAST)]
    assert sorted(os.listdir(killed / "checkpoints")) == kept, "what a killed writer left is cleared away"
    first, second = (
        torch.load(run / "checkpoints" / kept[-1], weights_only=True) for run in (killed, unbroken)
    )
    assert_same(first, second, "optimizer_states", "state_dict", "lr_schedulers", "position")
    assert learned_rows(killed / "metrics.csv") == learned_rows(unbroken / "metrics.csv")


def assert_same(first: dict[str, Any], second: dict[str, Any], *names: str) -> None:
    """Bit for bit."""
    leaves = [
        torch.utils._pytree.tree_leaves({name: each[name] for name in names}) for each in (first, second)
    ]
    assert len(leaves[0]) == len(leaves[1]) > 100
    for one, other in zip(*leaves, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
