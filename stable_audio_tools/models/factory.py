"""From a config to a model with fresh weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from stable_audio_tools.models.autoencoders.autoencoder import AudioAutoencoder
from stable_audio_tools.models.autoencoders.diffusion import DiffusionAutoencoder
from stable_audio_tools.models.conditioned import ConditionedDiffusionModelWrapper
from stable_audio_tools.models.language_model.wrapper import AudioLanguageModelWrapper
from stable_audio_tools.models.unconditional import DiffusionModelWrapper
from stable_audio_tools.schema.base import Config
from stable_audio_tools.schema.model import (
    AutoencoderModelConfig,
    DiffusionAutoencoderModelConfig,
    DiffusionCondModelConfig,
    DiffusionUncondModelConfig,
    LanguageModelModelConfig,
    ModelConfig,
)
from stable_audio_tools.schema.reader import parse_model_config, read_model_config


def _autoencoder(config: AutoencoderModelConfig) -> AudioAutoencoder:
    return AudioAutoencoder(config.model, config.sample_rate)


MODELS: dict[type[Config], Callable[[Any], nn.Module]] = {
    AutoencoderModelConfig: _autoencoder,
    DiffusionCondModelConfig: ConditionedDiffusionModelWrapper,
    DiffusionUncondModelConfig: DiffusionModelWrapper,
    DiffusionAutoencoderModelConfig: DiffusionAutoencoder,
    LanguageModelModelConfig: AudioLanguageModelWrapper,
}


def create_model_from_config(config: dict[str, Any] | ModelConfig) -> Any:
    """The model that ``config`` describes, with fresh weights.

    By ``model_type`` it is of one of the classes in :data:`MODELS`.

    Args:
        config: the JSON value of a model config, or the config object made of it.

    Raises:
        ConfigError: the config has a mistake; the message starts with its path.
    """
    parsed = config if isinstance(config, Config) else parse_model_config(config)
    return MODELS[type(parsed)](parsed)


def create_model_from_config_path(path: str | Path) -> Any:
    """:func:`create_model_from_config` on the JSON file at ``path``."""
    return create_model_from_config(read_model_config(path))
