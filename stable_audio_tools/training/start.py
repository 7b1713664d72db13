"""The model at the start of a run: built, loaded, and given its adapters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from stable_audio_tools.errors import ConfigError, UsageError
from stable_audio_tools.models.adapters.attach import load_adapter
from stable_audio_tools.models.adapters.frozen import hold_base
from stable_audio_tools.models.adapters.lora import apply_lora
from stable_audio_tools.models.checkpoints import LoadReport, load_checkpoint, load_pretransform, model_sha256
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.utils import remove_weight_norm_from_model
from stable_audio_tools.runtime import seeds
from stable_audio_tools.runtime.files import write_json
from stable_audio_tools.runtime.progress import say, warn
from stable_audio_tools.schema.dataset import DatasetConfig, PreEncodedDataset
from stable_audio_tools.schema.model import (
    DiffusionAutoencoderModelConfig,
    DiffusionCondModelConfig,
    ModelConfig,
)
from stable_audio_tools.schema.training import LoraConfig
from stable_audio_tools.training.hardware import Hardware
from stable_audio_tools.training.settings import TrainSettings


def prepare_model(
    config: ModelConfig,
    settings: TrainSettings,
    lora: bool,
    resuming: bool = False,
    reports: list[LoadReport] | None = None,
) -> Any:
    """The model of ``config`` with the weights that ``settings`` name; fresh ones are drawn from the seed.

    Args:
        resuming: a training checkpoint will be loaded over it, so missing weights need no warning.
        reports: gets what was loaded from each checkpoint and what was not; see :func:`write_load_reports`.

    Raises:
        UsageError: flags exclude each other, or LoRA is asked for without a base.
        CheckpointError: a checkpoint is missing or does not fit; keys are named.
    """
    if lora and settings.pretrained_ckpt_path is None:
        raise UsageError("--pretrained-ckpt-path: not given; adapters need the trained model that they adapt")
    if lora and settings.load_partial:
        raise UsageError("--load-partial: adapters need the whole model that they adapt; leave it out")
    if settings.lora_ckpt_path and not lora:
        raise UsageError("--lora-ckpt-path: only train_lora.py takes it")
    with torch.random.fork_rng(devices=[]):  # it is made on the CPU; other GPUs are not this process's
        torch.default_generator.manual_seed(seeds.derive_seed("init", settings.seed))
        model = create_model_from_config(config)
    loaded = _load_weights(model, config, settings, resuming)
    if reports is not None:
        reports += loaded
    if lora:
        assert isinstance(config, DiffusionCondModelConfig)  # the run refuses others
        if settings.pretrained_ckpt_path is not None and config.training.use_ema:
            say("adapters are trained without EMA; use_ema has no effect here")
        apply_lora(model, config.lora or LoraConfig(), settings.seed)
        if settings.lora_ckpt_path:
            load_adapter(
                model, settings.lora_ckpt_path, model_sha256(str(settings.pretrained_ckpt_path)), config.lora
            )
    return model


def hold_frozen_base(model: Any, config: ModelConfig, hardware: Hardware) -> None:
    """Hold the frozen network of a LoRA run in the run's half precision, where the ``lora`` block lets it.

    Without ``lora.base_precision`` that is done on a GPU.

    Raises:
        UsageError: ``lora.base_precision`` is a half precision that the run does not compute in.
    """
    assert isinstance(config, DiffusionCondModelConfig)  # the run refuses others
    wanted: str | None = (config.lora or LoraConfig()).base_precision
    computed = {"bf16-mixed": "bf16", "16-mixed": "fp16"}.get(hardware.precision, "fp32")
    if wanted is None:
        wanted = computed if hardware.accelerator == "gpu" else "fp32"
    if wanted == "fp32":
        return
    if wanted != computed:
        raise UsageError(
            f"lora.base_precision: is {wanted!r}, but the run computes in {hardware.precision};"
            f" expected {computed!r}, or --precision {'bf16-mixed' if wanted == 'bf16' else '16-mixed'}"
        )
    saved = hold_base(model.model, {"bf16": torch.bfloat16, "fp16": torch.float16}[wanted])
    say(f"the frozen network is held in {wanted}: {saved / 1e9:.2f} GB less")


def require_same_form(model_config: ModelConfig, dataset_config: DatasetConfig, source: str) -> None:
    """Refuse latents where the model takes recordings, and the other way round.

    Raises:
        ConfigError: the dataset config ``source`` and ``training.pre_encoded`` do not fit.
    """
    wanted = getattr(model_config.training, "pre_encoded", None)
    found = isinstance(dataset_config, PreEncodedDataset) or getattr(dataset_config, "pre_encoded", False)
    if found == bool(wanted):
        return
    if wanted:
        what, advice = "recordings", "name stored latents, or set it to false"
    elif wanted is None or isinstance(model_config, DiffusionAutoencoderModelConfig):
        kind = model_config.model_type
        raise ConfigError(
            f"{source}: holds stored latents, but a model of type {kind!r} trains on recordings"
        )
    else:
        what, advice = "stored latents", "set it to true, or name recordings"
    raise ConfigError(
        f"{source}: holds {what}, but training.pre_encoded of the model is {str(wanted).lower()}; {advice}"
    )


def write_load_reports(folder: Path, reports: Sequence[LoadReport]) -> None:
    """Write ``load_report.json`` into the folder of a run that began with parts of a checkpoint."""
    if any(report.problems() for report in reports):
        write_json(folder / "load_report.json", [report.as_dict() for report in reports])


def _load_weights(
    model: Any, config: ModelConfig, settings: TrainSettings, resuming: bool
) -> list[LoadReport]:
    """Base, VAE and weight norm, in the order that lets each checkpoint meet the layers it was saved from."""
    reports = []
    vae = settings.pretransform_ckpt_path
    pretransform = getattr(model, "pretransform", None)
    fuse = settings.remove_pretransform_weight_norm
    if fuse == "pre_load" and pretransform is not None:
        remove_weight_norm_from_model(pretransform)
    if settings.pretrained_ckpt_path:
        report = load_checkpoint(
            model,
            settings.pretrained_ckpt_path,
            strict=not settings.load_partial,
            allow_missing=("pretransform.",) if vae else (),
        )
        reports.append(report)
        say(f"{report.loaded} weights from {Path(settings.pretrained_ckpt_path).name}")
    if vae:
        report = load_pretransform(model, vae)
        reports.append(report)
        say(f"{report.loaded} VAE weights from {Path(vae).name}")
    if fuse == "post_load" and pretransform is not None:
        remove_weight_norm_from_model(pretransform)
    learned = pretransform is not None and any(True for _ in pretransform.parameters())
    stored = getattr(config.training, "pre_encoded", False)
    if learned and not (vae or settings.pretrained_ckpt_path or resuming or stored):
        warn("the VAE has random weights; give --pretransform-ckpt-path or --pretrained-ckpt-path")
    return reports
