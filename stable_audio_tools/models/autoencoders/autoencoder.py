"""The audio autoencoder: audio ``(B, C, T)`` to latents ``(B, D, L)`` and back, whole or in chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stable_audio_tools.errors import ConfigError, UsageError
from stable_audio_tools.models.autoencoders.chunking import apply_in_chunks
from stable_audio_tools.models.autoencoders.preprocessing import prepare_batch
from stable_audio_tools.models.autoencoders.registry import create_decoder, create_encoder
from stable_audio_tools.models.bottlenecks.base import DiscreteBottleneck, Generators
from stable_audio_tools.models.bottlenecks.registry import create_bottleneck
from stable_audio_tools.schema.autoencoder import AutoencoderConfig

CHUNK_SIZE = 128
"""Latents per chunk, as in the public code."""
OVERLAP = 32
"""Latents that neighbouring chunks share."""


class AudioAutoencoder(nn.Module):
    """Encoder, bottleneck and decoder, behind a pretransform if there is one.

    Audio goes through the pretransform, the encoder and the bottleneck, and back the other way round. A
    pretransform that is not trained holds no gradient of its own, but lets the decoder's pass.

    Attributes:
        config: the config it was built from.
        sample_rate: of the audio, in Hz.
        io_channels: audio channels.
        in_channels: channels of the audio that is encoded.
        out_channels: channels of the audio that is decoded.
        latent_dim: latent channels, D.
        downsampling_ratio: audio samples per latent, the pretransform's share included.
        min_length: the shortest audio that makes a latent, in samples; shorter audio is padded to it.
        is_discrete: whether latents can be told in codes.
    """

    def __init__(self, config: AutoencoderConfig, sample_rate: int = 44100) -> None:
        # A pretransform may be an autoencoder again, so their modules need each other.
        from stable_audio_tools.models.pretransforms.registry import create_pretransform

        super().__init__()
        self.config = config
        self.sample_rate = sample_rate
        self.io_channels = config.io_channels
        self.in_channels, self.out_channels = config.audio_in, config.audio_out
        self.latent_dim = config.latent_dim
        self.downsampling_ratio = config.downsampling_ratio
        self.min_length = config.downsampling_ratio
        self.bottleneck = None if config.bottleneck is None else create_bottleneck(config.bottleneck)
        self.is_discrete = isinstance(self.bottleneck, DiscreteBottleneck)
        outside = config.pretransform
        self.pretransform = None if outside is None else create_pretransform(outside, sample_rate)
        inner_in, inner_out = self.in_channels, self.out_channels
        if self.pretransform is not None:
            inner_in = inner_out = self.pretransform.encoded_channels
            _check_share(self.pretransform.downsampling_ratio, config)
        self.encoder = create_encoder(config.encoder, inner_in)
        self.decoder = create_decoder(config.decoder, inner_out)

    def encode(
        self,
        audio: Tensor,
        chunked: bool = False,
        return_info: bool = False,
        generator: Generators = None,
        iterate_batch: bool = False,
        overlap: int = OVERLAP,
        chunk_size: int = CHUNK_SIZE,
        skip_bottleneck: bool = False,
    ) -> Any:
        """Latents ``(B, D, ceil(T / ratio))`` of audio ``(B, C, T)``, padded with silence to a whole latent.

        The noise of the bottleneck is drawn once, over the whole length, so that with the same generator
        ``chunked`` and ``iterate_batch`` change the memory and not the sample.

        Args:
            chunked: encode ``chunk_size`` latents at a time, ``overlap`` of them shared with the neighbour.
            return_info: return ``(latents, info)`` with what the bottleneck reports, such as ``mean``,
                ``stdev`` and ``kl``, or ``codes``, and what it was given: ``pre_bottleneck_latents``.
            generator: one for the batch, one per item, or None for torch's global one.
            iterate_batch: encode one item at a time.
            skip_bottleneck: return what the encoder makes.

        Raises:
            UsageError: the audio has another shape or channel count, or the overlap does not fit the chunk.
        """
        _check(audio, self.in_channels, "audio")
        x = F.pad(audio, (0, -audio.shape[-1] % self.downsampling_ratio))
        if self.pretransform is not None:
            x = self.pretransform.encode(x, generator, chunked or None).to(audio.dtype)
        encoder: Callable[[Tensor], Tensor] = self.encoder
        if chunked:
            step = self.config.encoder.config.ratio
            encoder = _chunked(encoder, chunk_size=chunk_size, overlap=overlap, in_step=step, out_step=1)
        latents = _run(encoder, x, iterate_batch)
        info: dict[str, Tensor] = {"pre_bottleneck_latents": latents}
        if self.bottleneck is not None and not skip_bottleneck:
            latents, reported = self.bottleneck.encode(latents, generator)
            info.update(reported)
        return (latents, info) if return_info else latents

    def decode(
        self,
        latents: Tensor,
        chunked: bool = False,
        iterate_batch: bool = False,
        overlap: int = OVERLAP,
        chunk_size: int = CHUNK_SIZE,
        generator: Generators = None,
        skip_bottleneck: bool = False,
    ) -> Tensor:
        """Audio ``(B, C, L ratio)`` of latents ``(B, D, L)``; arguments and errors as for :meth:`encode`."""
        if self.bottleneck is not None and not skip_bottleneck:
            _check(latents, self.latent_dim, "latents")
            latents = self.bottleneck.decode(latents, generator)
        _check(latents, self.config.decoder.config.latent_dim, "latents")
        decoder: Callable[[Tensor], Tensor] = self.decoder
        if chunked:
            step = self.config.decoder.config.ratio
            decoder = _chunked(decoder, chunk_size=chunk_size, overlap=overlap, in_step=1, out_step=step)
        audio = _run(decoder, latents, iterate_batch)
        if self.pretransform is not None:
            audio = self.pretransform.decode(audio, chunked or None).to(audio.dtype)
        return torch.tanh(audio) if self.config.soft_clip or self.config.decoder.soft_clip else audio

    def tokenize(self, audio: Tensor, **options: Any) -> Tensor:
        """Codes ``(B, Q, ceil(T / ratio))``, int64, of audio ``(B, C, T)``; options as for :meth:`encode`.

        Raises:
            UsageError: the bottleneck has no codes.
        """
        bottleneck = self._discrete()
        _, info = self.encode(audio, return_info=True, **options)
        return bottleneck.codes(info)

    def decode_tokens(self, tokens: Tensor, generator: Generators = None, **options: Any) -> Tensor:
        """Audio ``(B, C, L ratio)`` of codes ``(B, Q, L)``; options as for :meth:`decode`.

        Raises:
            UsageError: the bottleneck has no codes.
        """
        quantised = self._discrete().decode_tokens(tokens, generator)
        return self.decode(quantised, skip_bottleneck=True, **options)

    def preprocess_audio_for_encoder(self, audio: Tensor, in_sr: int) -> Tensor:
        """One clip ``(C, T)`` at ``in_sr`` Hz as ``(1, in_channels, T')``, ready for :meth:`encode_audio`."""
        return self.preprocess_audio_list_for_encoder([audio], [in_sr])

    def preprocess_audio_list_for_encoder(
        self, audio_list: Sequence[Tensor], in_sr_list: int | Sequence[int]
    ) -> Tensor:
        """Clips ``(C, T)`` of any rate, width and length as one batch ``(B, in_channels, T')``.

        They are resampled, brought to ``in_channels`` and padded with silence to the longest, and that to a
        whole latent.

        Args:
            in_sr_list: the rate of each clip in Hz, or one for all.

        Raises:
            UsageError: a clip has another shape, or there is not one rate for each.
        """
        rates = [in_sr_list] * len(audio_list) if isinstance(in_sr_list, int) else in_sr_list
        return prepare_batch(
            audio_list,
            rates,
            sample_rate=self.sample_rate,
            channels=self.in_channels,
            multiple=self.min_length,
        )

    def encode_audio(
        self,
        audio: Tensor,
        chunked: bool = False,
        overlap: int = OVERLAP,
        chunk_size: int = CHUNK_SIZE,
        **options: Any,
    ) -> Any:
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
        """Audio ``(B, C, T)`` to latents and back, cut to its length; options as for :meth:`encode`."""
        return self.decode(self.encode(audio, **options))[..., : audio.shape[-1]]

    def _discrete(self) -> DiscreteBottleneck:
        if isinstance(self.bottleneck, DiscreteBottleneck):
            return self.bottleneck
        found = "none" if self.config.bottleneck is None else repr(self.config.bottleneck.type)
        raise UsageError(f"codes need a bottleneck that quantises; this autoencoder has {found}")


def _check_share(share: int, config: AutoencoderConfig) -> None:
    """Refuse a published codec whose ratio, known only now, does not fit."""
    whole = share * config.encoder.config.ratio
    if whole != config.downsampling_ratio:
        raise ConfigError(
            f"model.downsampling_ratio: the pretransform makes a frame of {share} samples and the encoder a"
            f" latent of {config.encoder.config.ratio} frames, {whole} samples in all, found"
            f" {config.downsampling_ratio}"
        )


def _chunked(network: Callable[[Tensor], Tensor], **windows: int) -> Callable[[Tensor], Tensor]:
    return lambda x: apply_in_chunks(network, x, **windows)


def _run(network: Callable[[Tensor], Tensor], x: Tensor, iterate_batch: bool) -> Tensor:
    if not iterate_batch:
        return network(x)
    return torch.cat([network(item) for item in x.split(1)])


def _check(x: Tensor, channels: int, what: str) -> None:
    if x.ndim != 3 or x.shape[1] != channels or x.shape[2] == 0:
        raise UsageError(f"{what} must have the shape (batch, {channels}, length), found {tuple(x.shape)}")
