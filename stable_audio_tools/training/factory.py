"""From a model and its config to the module that trains it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel
from torch import nn

from stable_audio_tools.schema.model import (
    AutoencoderModelConfig,
    DiffusionAutoencoderModelConfig,
    DiffusionCondModelConfig,
    DiffusionUncondModelConfig,
    LanguageModelModelConfig,
    ModelConfig,
)
from stable_audio_tools.schema.reader import parse_model_config
from stable_audio_tools.training.autoencoder import AutoencoderTrainer
from stable_audio_tools.training.diffusion import DiffusionCondTrainer, DiffusionUncondTrainer
from stable_audio_tools.training.diffusion_autoencoder import DiffusionAutoencoderTrainer
from stable_audio_tools.training.inpainting import DiffusionCondInpaintTrainer
from stable_audio_tools.training.language_model import LanguageModelTrainer
from stable_audio_tools.training.module import ModelTrainer


def _conditional(model: Any, config: DiffusionCondModelConfig, **options: Any) -> ModelTrainer:
    inpaints = config.model_type == "diffusion_cond_inpaint" or config.training.inpainting is not None
    trainer = DiffusionCondInpaintTrainer if inpaints else DiffusionCondTrainer
    return trainer(model, config, **options)


TRAINERS: dict[type[BaseModel], Callable[..., ModelTrainer]] = {
    AutoencoderModelConfig: AutoencoderTrainer,
    DiffusionAutoencoderModelConfig: DiffusionAutoencoderTrainer,
    DiffusionCondModelConfig: _conditional,
    DiffusionUncondModelConfig: DiffusionUncondTrainer,
    LanguageModelModelConfig: LanguageModelTrainer,
}


def create_training_wrapper_from_config(
    model_config: dict[str, Any] | ModelConfig, model: nn.Module, **options: Any
) -> Any:
    """The Lightning module that trains ``model`` as its config says.

    Args:
        model_config: the JSON value of the model config, or the config object made of it.
        options: ``seed``, ``accum_batches``, ``gradient_clip_val``, ``lora``; see :class:`ModelTrainer`.

    Raises:
        ConfigError: the config has a mistake, or no training block.
    """
    config = model_config if isinstance(model_config, BaseModel) else parse_model_config(model_config)
    return TRAINERS[type(config)](model, config, **options)


def trains_by_turns(config: ModelConfig) -> bool:
    """Whether parts of what is trained sit steps out: an autoencoder and its adversary."""
    if not isinstance(config, AutoencoderModelConfig) or config.training is None:
        return False
    return config.training.loss_configs.discriminator is not None
