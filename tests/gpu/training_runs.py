"""Runs of ``train.py`` in processes of their own."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
STEPS = 8


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
