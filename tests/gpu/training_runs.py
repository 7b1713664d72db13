"""Runs of ``train.py`` in processes of their own."""

from __future__ import annotations

import csv
import importlib.util
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from interrupting import interrupt

ROOT = Path(__file__).parents[2]
STEPS = 8
DEEPSPEED = pytest.param(
    "deepspeed",
    marks=pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="no deepspeed here"),
)


def begin(flags: dict[str, Any], *switches: str) -> subprocess.Popen[str]:
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return subprocess.Popen(
        [sys.executable, "train.py", *words, *switches],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def train(flags: dict[str, Any], *switches: str) -> Path:
    """Train to the end; the run folder."""
    process = begin(flags, *switches)
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 0, errors
    assert "failed and training goes on" not in errors
    (run,) = (flags["save-dir"] / flags["name"]).iterdir()
    return run


def losses(run: Path) -> list[float]:
    with (run / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [float(row[name]) for row in rows for name in ("train/loss", "val/loss") if row[name]]


def broken_and_whole(flags: dict[str, Any]) -> tuple[list[float], list[float]]:
    """The losses of a run that is killed, taken up, stopped and taken up again, and of one left alone."""
    flags = {**flags, "max-steps": 60, "checkpoint-every": 10}
    config = json.loads(flags["model-config"].read_text())
    config["training"]["demo"]["demo_every"] = flags["val-every"] = 30  # they would be most of the time
    flags["model-config"].write_text(json.dumps(config))
    name = {**flags, "name": "broken"}
    for number in (signal.SIGKILL, signal.SIGTERM):
        interrupt(begin(name, "--recover"), number, flags["save-dir"] / "broken")
    return losses(train(name, "--recover")), losses(train({**flags, "name": "whole"}))
