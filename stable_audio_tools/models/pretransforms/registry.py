"""Pretransforms by the class of their config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stable_audio_tools.models.pretransforms.autoencoder import AutoencoderPretransform
from stable_audio_tools.models.pretransforms.base import Pretransform
from stable_audio_tools.models.pretransforms.patched import PatchedPretransform
from stable_audio_tools.models.pretransforms.published import EncodecPretransform, PretrainedDACPretransform
from stable_audio_tools.models.pretransforms.wavelet import WaveletPretransform
from stable_audio_tools.schema import autoencoder
from stable_audio_tools.schema.base import Config

PRETRANSFORMS: dict[type[Config], Callable[[Any, int], Pretransform]] = {
    autoencoder.AutoencoderPretransformConfig: AutoencoderPretransform,
    autoencoder.WaveletPretransformConfig: WaveletPretransform,
    autoencoder.PatchedPretransformConfig: PatchedPretransform,
    autoencoder.PretrainedDACPretransformConfig: PretrainedDACPretransform,
    autoencoder.AudiocraftPretransformConfig: EncodecPretransform,
}


def create_pretransform(config: autoencoder.PretransformConfig, sample_rate: int) -> Pretransform:
    """The pretransform that ``config`` describes; ``sample_rate`` is that of the audio, in Hz."""
    return PRETRANSFORMS[type(config)](config, sample_rate)
