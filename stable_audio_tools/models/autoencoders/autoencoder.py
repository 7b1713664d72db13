"""The audio autoencoder: audio ``(B, C, T)`` to latents ``(B, D, L)`` and back, whole or in chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stable_audio_tools.errors import UsageError
from stable_audio_tools.models.autoencoders.chunking import apply_in_chunks
from stable_audio_tools.models.autoencoders.oobleck import OobleckDecoder, OobleckEncoder
from stable_audio_tools.models.bottlenecks.base import Generators
from stable_audio_tools.models.bottlenecks.registry import create_bottleneck
from stable_audio_tools.schema import encoders
from stable_audio_tools.schema.autoencoder import AutoencoderConfig
from stable_audio_tools.schema.base import Config

CHUNK_SIZE = 128
"""Latents per chunk, as in the public code."""
OVERLAP = 32
"""Latents that neighbouring chunks share."""

ENCODERS: dict[type[Config], Callable[[Any, int], nn.Module]] = {encoders.OobleckEncoder: OobleckEncoder}
DECODERS: dict[type[Config], Callable[[Any, int], nn.Module]] = {encoders.OobleckDecoder: OobleckDecoder}


class AudioAutoencoder(nn.Module):
    """Encoder, bottleneck and decoder.

    Attributes:
        config: the config it was built from.
        sample_rate: of the audio, in Hz.
        io_channels: audio channels.
        latent_dim: latent channels.
        downsampling_ratio: audio samples per latent.
        min_length: the shortest audio that makes a latent, in samples; shorter audio is padded to it.
    """

    def __init__(self, config: AutoencoderConfig, sample_rate: int = 44100) -> None:
        super().__init__()
        self.config = config
        self.sample_rate = sample_rate
        self.io_channels = config.io_channels
        self.in_channels = config.in_channels or config.io_channels
        self.out_channels = config.out_channels or config.io_channels
        self.latent_dim = config.latent_dim
        self.downsampling_ratio = config.downsampling_ratio
        self.min_length = config.downsampling_ratio
        self.bottleneck = None if config.bottleneck is None else create_bottleneck(config.bottleneck)
        self.encoder = ENCODERS[type(config.encoder)](config.encoder.config, self.in_channels)
        self.decoder = DECODERS[type(config.decoder)](config.decoder.config, self.out_channels)
        self.encoder.requires_grad_(config.encoder.requires_grad)
        self.decoder.requires_grad_(config.decoder.requires_grad)

    def encode(
        self,
        audio: Tensor,
        chunked: bool = False,
        return_info: bool = False,
        generator: Generators = None,
        iterate_batch: bool = False,
        overlap: int = OVERLAP,
        chunk_size: int = CHUNK_SIZE,
    ) -> Any:
        """Latents ``(B, D, ceil(T / ratio))`` of audio ``(B, C, T)``, padded with silence to a whole latent.

        The noise of the bottleneck is drawn once, over the whole length, so that with the same generator
        ``chunked`` and ``iterate_batch`` change the memory and not the sample.

        Args:
            chunked: encode ``chunk_size`` latents at a time, ``overlap`` of them shared with the neighbour.
            return_info: return ``(latents, info)``, with the bottleneck's ``mean``, ``stdev`` and ``kl``.
            generator: one for the batch, one per item, or None for torch's global one.
            iterate_batch: encode one item at a time.

        Raises:
            UsageError: the audio has another shape or channel count, or the overlap does not fit the chunk.
        """
        _check(audio, self.in_channels, "audio")
        ratio = self.downsampling_ratio
        encoder: Callable[[Tensor], Tensor] = self.encoder
        if chunked:
            encoder = _chunked(encoder, chunk_size=chunk_size, overlap=overlap, in_step=ratio, out_step=1)
        latents = _run(encoder, F.pad(audio, (0, -audio.shape[-1] % ratio)), iterate_batch)
        info: dict[str, Tensor] = {}
        if self.bottleneck is not None:
            latents, info = self.bottleneck.encode(latents, generator)
        return (latents, info) if return_info else latents

    def decode(
        self,
        latents: Tensor,
        chunked: bool = False,
        iterate_batch: bool = False,
        overlap: int = OVERLAP,
        chunk_size: int = CHUNK_SIZE,
    ) -> Tensor:
        """Audio ``(B, C, L ratio)`` of latents ``(B, D, L)``; arguments and errors as for :meth:`encode`."""
        _check(latents, self.latent_dim, "latents")
        decoder: Callable[[Tensor], Tensor] = self.decoder
        if chunked:
            ratio = self.downsampling_ratio
            decoder = _chunked(decoder, chunk_size=chunk_size, overlap=overlap, in_step=1, out_step=ratio)
        if self.bottleneck is not None:
            latents = self.bottleneck.decode(latents)
        audio = _run(decoder, latents, iterate_batch)
        return torch.tanh(audio) if self.config.soft_clip or self.config.decoder.soft_clip else audio

    def encode_audio(
        self,
        audio: Tensor,
        chunked: bool = False,
        overlap: int = OVERLAP,
        chunk_size: int = CHUNK_SIZE,
        **options: Any,
    ) -> Tensor:
        """:meth:`encode` with the public argument order."""
        return self.encode(audio, chunked, overlap=overlap, chunk_size=chunk_size, **options)

    def decode_audio(
        self,
        latents: Tensor,
        chunked: bool = False,
        overlap: int = OVERLAP,
        chunk_size: int = CHUNK_SIZE,
        **options: Any,
    ) -> Tensor:
        """:meth:`decode` with the public argument order."""
        return self.decode(latents, chunked, overlap=overlap, chunk_size=chunk_size, **options)

    def forward(self, audio: Tensor, **options: Any) -> Tensor:
        """The audio ``(B, C, T)`` through latents and back, cut to its length."""
        return self.decode(self.encode(audio, **options))[..., : audio.shape[-1]]


def _chunked(network: Callable[[Tensor], Tensor], **windows: int) -> Callable[[Tensor], Tensor]:
    return lambda x: apply_in_chunks(network, x, **windows)


def _run(network: Callable[[Tensor], Tensor], x: Tensor, iterate_batch: bool) -> Tensor:
    if not iterate_batch:
        return network(x)
    return torch.cat([network(item) for item in x.split(1)])


def _check(x: Tensor, channels: int, what: str) -> None:
    if x.ndim != 3 or x.shape[1] != channels or x.shape[2] == 0:
        raise UsageError(f"{what} must have the shape (batch, {channels}, length), found {tuple(x.shape)}")
