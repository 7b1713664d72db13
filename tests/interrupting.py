"""Training runs that end before their time: in a process of their own, or in this one."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from stable_audio_tools.training import diffusion
from stable_audio_tools.training.module import ModelTrainer
from stable_audio_tools.training.run import train
from stable_audio_tools.training.settings import TrainSettings


def interrupt(
    process: subprocess.Popen[str], number: int, run_folders: Path, new_checkpoints: int = 2
) -> None:
    """End ``process``, a session of its own, by a signal once it has written so many checkpoints more.

    SIGKILL goes to all of its processes, and nobody is asked. What SIGTERM ends must say that it has saved.
    """
    before, deadline = _count(run_folders), time.monotonic() + 200
    while _count(run_folders) < before + new_checkpoints:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    if number == signal.SIGKILL:
        os.killpg(process.pid, number)
        process.communicate()
        return
    process.send_signal(number)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number, errors
    assert "stopped by SIGTERM after step" in errors


def _count(run_folders: Path) -> int:
    return len(list(run_folders.glob("*/checkpoints/step=*")))


def interrupted(
    settings: TrainSettings,
    monkeypatch: pytest.MonkeyPatch,
    hook: str,
    number: int,
    step: int,
    batch: int = 0,
) -> Any:
    """How the run ends that gets the signal ``number`` while ``batch`` of ``step`` is trained on."""

    def send(module: ModelTrainer, *_: Any) -> None:
        if (module.steps_done, module.micro_batch) == (step, batch):
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(diffusion.DiffusionCondTrainer, hook, send)
        try:
            train(settings)
        except KeyboardInterrupt:
            return KeyboardInterrupt
        except SystemExit as end:
            return end.code
    return None
