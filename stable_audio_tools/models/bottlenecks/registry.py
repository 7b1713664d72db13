"""Bottlenecks by the class of their config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stable_audio_tools.models.bottlenecks.base import Bottleneck
from stable_audio_tools.models.bottlenecks.vae import VAEBottleneck
from stable_audio_tools.schema import bottlenecks
from stable_audio_tools.schema.base import Config

BOTTLENECKS: dict[type[Config], Callable[[Any], Bottleneck]] = {
    bottlenecks.VAEBottleneck: VAEBottleneck,
}


def create_bottleneck(config: bottlenecks.BottleneckConfig) -> Bottleneck:
    """The bottleneck that ``config`` describes, with fresh weights."""
    return BOTTLENECKS[type(config)](config.config)
