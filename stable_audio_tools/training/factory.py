"""From a model and its config to the module that trains it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from pydantic import BaseModel
from torch import nn

from stable_audio_tools.errors import ConfigError
from stable_audio_tools.schema.model import DiffusionCondModelConfig, ModelConfig
from stable_audio_tools.schema.reader import parse_model_config
from stable_audio_tools.training.diffusion import DiffusionCondTrainer

TRAINERS: dict[type[BaseModel], Callable[..., pl.LightningModule]] = {
    DiffusionCondModelConfig: DiffusionCondTrainer,
}


def create_training_wrapper_from_config(
    model_config: dict[str, Any] | ModelConfig, model: nn.Module, **options: Any
) -> Any:
    """The Lightning module that trains ``model`` as its config says.

    Args:
        model_config: the JSON value of the model config, or the config object made of it.
        options: ``seed``, ``accum_batches``, ``lora``; see :class:`DiffusionCondTrainer`.

    Raises:
        ConfigError: the config has a mistake, or describes a kind of model that cannot be trained.
    """
    config = model_config if isinstance(model_config, BaseModel) else parse_model_config(model_config)
    maker = TRAINERS.get(type(config))
    if maker is None or getattr(config, "model_type", None) != "diffusion_cond":
        found = getattr(config, "model_type", type(config).__name__)
        raise ConfigError(f"model_type: training of {found!r} is not available; expected 'diffusion_cond'")
    return maker(model, config, **options)
