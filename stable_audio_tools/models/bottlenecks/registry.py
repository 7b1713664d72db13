"""Bottlenecks by the class of their config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stable_audio_tools.models.bottlenecks.base import Bottleneck
from stable_audio_tools.models.bottlenecks.bounded import L2NormBottleneck, TanhBottleneck
from stable_audio_tools.models.bottlenecks.dac import DACRVQBottleneck
from stable_audio_tools.models.bottlenecks.fsq import DitheredFSQBottleneck, FSQBottleneck
from stable_audio_tools.models.bottlenecks.rvq import RVQBottleneck
from stable_audio_tools.models.bottlenecks.softnorm import SoftNormBottleneck
from stable_audio_tools.models.bottlenecks.vae import VAEBottleneck
from stable_audio_tools.models.bottlenecks.wasserstein import WassersteinBottleneck
from stable_audio_tools.schema import bottlenecks
from stable_audio_tools.schema.base import Config

BOTTLENECKS: dict[type[Config], Callable[[Any], Bottleneck]] = {
    bottlenecks.VAEBottleneck: VAEBottleneck,
    bottlenecks.TanhBottleneck: TanhBottleneck,
    bottlenecks.L2NormBottleneck: L2NormBottleneck,
    bottlenecks.WassersteinBottleneck: WassersteinBottleneck,
    bottlenecks.SoftNormBottleneck: SoftNormBottleneck,
    bottlenecks.RVQBottleneck: RVQBottleneck,
    bottlenecks.DACRVQBottleneck: DACRVQBottleneck,
    bottlenecks.FSQBottleneck: FSQBottleneck,
    bottlenecks.DitheredFSQBottleneck: DitheredFSQBottleneck,
}


def create_bottleneck(config: bottlenecks.BottleneckConfig) -> Bottleneck:
    """The bottleneck that ``config`` describes, with fresh weights; frozen without ``requires_grad``."""
    bottleneck = BOTTLENECKS[type(config)](config.config)
    if not config.requires_grad:
        bottleneck.frozen = True
        bottleneck.requires_grad_(False)
    return bottleneck
