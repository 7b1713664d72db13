"""Encoders and decoders by the class of their config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from stable_audio_tools.models.autoencoders.dac import DACDecoder, DACEncoder
from stable_audio_tools.models.autoencoders.oobleck import OobleckDecoder, OobleckEncoder
from stable_audio_tools.models.autoencoders.seanet import SEANetDecoder, SEANetEncoder
from stable_audio_tools.models.autoencoders.taae import TAAEDecoder, TAAEEncoder
from stable_audio_tools.schema import encoders
from stable_audio_tools.schema.base import Config

ENCODERS: dict[type[Config], Callable[[Any, int], nn.Module]] = {
    encoders.OobleckEncoder: OobleckEncoder,
    encoders.DACEncoder: DACEncoder,
    encoders.SEANetEncoder: SEANetEncoder,
    encoders.TAAEEncoder: TAAEEncoder,
}
DECODERS: dict[type[Config], Callable[[Any, int], nn.Module]] = {
    encoders.OobleckDecoder: OobleckDecoder,
    encoders.DACDecoder: DACDecoder,
    encoders.SEANetDecoder: SEANetDecoder,
    encoders.TAAEDecoder: TAAEDecoder,
}


def create_encoder(config: encoders.EncoderConfig, channels: int) -> nn.Module:
    """The encoder that ``config`` describes; ``channels`` is what it takes where the config does not say."""
    encoder = ENCODERS[type(config)](config.config, channels)
    return encoder.requires_grad_(config.requires_grad)


def create_decoder(config: encoders.DecoderConfig, channels: int) -> nn.Module:
    """The decoder that ``config`` describes; ``channels`` is what it makes where the config does not say."""
    decoder = DECODERS[type(config)](config.config, channels)
    return decoder.requires_grad_(config.requires_grad)
