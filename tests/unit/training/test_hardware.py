"""What cannot be computed together is refused before anything is read."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from stable_audio_tools.errors import UsageError
from stable_audio_tools.training import hardware
from stable_audio_tools.training.settings import TrainSettings

CONFIGS = {"model_config": "m.json", "dataset_config": "d.json"}


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(hardware, "resolve_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"strategy": "fsdp", "precision": "16-mixed"}, "expected bf16-mixed, bf16-true or 32"),
        ({"strategy": "fsdp", "precision": "32", "ema_on_cpu": True}, "only its piece of the average"),
        ({"strategy": "deepspeed", "precision": "bf16-true"}, "expected bf16-mixed, 16-mixed or 32"),
        (
            {"strategy": "deepspeed_stage_1", "precision": "16-mixed", "gradient_clip_val": 1.0},
            "cannot clip float16 gradients; use --precision bf16-mixed",
        ),
        ({"strategy": "deepspeed_stage_3", "precision": "32"}, "to cut weights too, use fsdp"),
    ],
)
def test_what_does_not_go_together_is_refused(flags, words):
    with pytest.raises(UsageError, match=words):
        hardware.choose_hardware(TrainSettings(**CONFIGS, num_gpus=2, **flags))


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("precision", ["32", "16-mixed", "bf16-mixed"])
def test_the_rest_is_computed_as_asked(precision):
    settings = TrainSettings(**CONFIGS, num_gpus=2, strategy="deepspeed", precision=precision)
    chosen = hardware.choose_hardware(settings)
    assert (chosen.devices, chosen.strategy, chosen.precision) == (2, "deepspeed", settings.precision)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed"])
def test_adapters_are_not_cut(strategy):
    settings = TrainSettings(**CONFIGS, num_gpus=2, strategy=strategy, precision="bf16-mixed")
    with pytest.raises(UsageError, match="can cut neither adapters nor an adversary; use ddp"):
        hardware.choose_hardware(settings, idle_parameters=True)
