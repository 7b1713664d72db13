"""Conditioners by the class of their config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stable_audio_tools.models.conditioners.base import Conditioner, Surroundings
from stable_audio_tools.models.conditioners.clap import CLAPAudioConditioner, CLAPTextConditioner
from stable_audio_tools.models.conditioners.integer import IntConditioner
from stable_audio_tools.models.conditioners.listed import ListConditioner
from stable_audio_tools.models.conditioners.lut import LUTConditioner
from stable_audio_tools.models.conditioners.number import NumberConditioner
from stable_audio_tools.models.conditioners.pretransform import PretransformConditioner
from stable_audio_tools.models.conditioners.t5 import T5Conditioner
from stable_audio_tools.schema import conditioning
from stable_audio_tools.schema.base import Config

Maker = Callable[[Any, int, Surroundings], Conditioner]
"""Makes a conditioner of its ``config``, the width of its embeddings and the model around it."""


def _alone(make: Callable[[Any, int], Conditioner]) -> Maker:
    """For conditioners to which the model around them does not matter."""
    return lambda config, output_dim, surroundings: make(config, output_dim)


CONDITIONERS: dict[type[Config], Maker] = {
    conditioning.T5Conditioner: _alone(T5Conditioner),
    conditioning.NumberConditioner: _alone(NumberConditioner),
    conditioning.IntConditioner: _alone(IntConditioner),
    conditioning.ListConditioner: _alone(ListConditioner),
    conditioning.T5GemmaConditioner: _alone(T5Conditioner),
    conditioning.CLAPTextConditioner: _alone(CLAPTextConditioner),
    conditioning.CLAPAudioConditioner: CLAPAudioConditioner,
    conditioning.LUTConditioner: _alone(LUTConditioner),
    conditioning.PretransformConditioner: PretransformConditioner,
}


def create_conditioner(
    config: conditioning.ConditionerConfig, cond_dim: int, surroundings: Surroundings | None = None
) -> Conditioner:
    """The conditioner that ``config`` describes, with fresh weights.

    Args:
        cond_dim: width of its embeddings, unless its config has one of its own.
    """
    make = CONDITIONERS[type(config)]
    return make(config.config, config.config.output_dim or cond_dim, surroundings or Surroundings())
