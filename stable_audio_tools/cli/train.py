"""``sat train`` and ``sat train-lora``."""

from __future__ import annotations

from typing import Any

import typer

from stable_audio_tools.cli.options import flags_of
from stable_audio_tools.schema.reader import read_dataset_config, read_model_config
from stable_audio_tools.training.settings import DEFAULTS_FILE, TrainSettings

_ESTIMATE = typer.Option(False, "--estimate", help="Say what the run takes of a card's memory, and stop.")
_CONFIG_FILE = typer.Option(DEFAULTS_FILE, help="Defaults of these flags; a flag wins.")


@flags_of(TrainSettings, leave_out=["lora_ckpt_path"])
def train(flags: dict[str, Any], *, config_file: str = _CONFIG_FILE, estimate: bool = _ESTIMATE) -> None:
    """Fine-tune or train a model; writes <save-dir>/<name>/<run_id>/checkpoints.

    Where no flag is given, the value comes from defaults.ini, then from the default shown here.
    """
    _run(flags, config_file, estimate, lora=False)


@flags_of(TrainSettings)
def train_lora(flags: dict[str, Any], *, config_file: str = _CONFIG_FILE, estimate: bool = _ESTIMATE) -> None:
    """Train low-rank adapters on a frozen base model; an adapter folder lies beside each checkpoint.

    The model config has a lora block. Where no flag is given, the value comes from defaults.ini,
    then from the default shown here.
    """
    _run(flags, config_file, estimate, lora=True)


def _run(flags: dict[str, Any], config_file: str, estimate: bool, lora: bool) -> None:
    settings = TrainSettings.from_flags(flags, config_file)
    model_config = read_model_config(settings.model_config)  # a typo should not have to wait for torch
    read_dataset_config(settings.dataset_config)
    if estimate:
        from stable_audio_tools.training.estimate import report

        report(model_config, settings, lora)
        return
    from stable_audio_tools.training import run

    run.train(settings, lora=lora)
