"""The diffusion autoencoder (Preechakul et al. 2021; for audio: Schneider et al. 2023, Mousai).

An encoder makes latents, and a diffusion network, told of them frame by frame, makes the audio again: what
the latents do not hold is drawn anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stable_audio_tools.diffusion.noise import PerClipNoise
from stable_audio_tools.diffusion.samplers import sample
from stable_audio_tools.errors import ConfigError, UsageError
from stable_audio_tools.models.autoencoders.registry import create_decoder, create_encoder
from stable_audio_tools.models.bottlenecks.base import Generators
from stable_audio_tools.models.bottlenecks.registry import create_bottleneck
from stable_audio_tools.models.conditioned import DiTWrapper
from stable_audio_tools.models.pretransforms.base import Pretransform
from stable_audio_tools.models.pretransforms.registry import create_pretransform
from stable_audio_tools.models.unet1d import DAU1dWrapper
from stable_audio_tools.schema.base import Config
from stable_audio_tools.schema.model import DecodingDAU1d, DecodingDiT, DiffusionAutoencoderModelConfig
from stable_audio_tools.schema.unets import DAU1dConfig

DECODING_STEPS = 100
DECODING_SAMPLER = "v-ddim"
INITIAL_GAIN = 0.5
"""A fresh encoder is halved, as in the public code, so that its latents do not begin saturated."""

NETWORKS: dict[type[Config], Callable[[Any], nn.Module]] = {
    DecodingDAU1d: DAU1dWrapper,
    DecodingDiT: DiTWrapper,
}
"""By the class of the ``diffusion`` block: what makes a network of its ``config``."""


class DiffusionAutoencoder(nn.Module):
    """Audio ``(B, C, T)`` to latents ``(B, D, L)``, and back by sampling.

    Attributes:
        config: the whole config it was built from.
        diffusion: the network, which takes :meth:`conditioning` as its ``input_concat_cond``.
        diffusion_objective: what it predicts, always ``v``.
        pretransform: audio to the frames that the network makes, or None where those are the audio.
        sample_rate: of the audio, in Hz.
        in_channels: audio channels.
        io_channels: channels of a frame.
        latent_dim: channels of a latent.
        frames_per_latent: frames that the network makes for one latent.
        downsampling_ratio: audio samples per latent.
        min_length: audio samples that neither latents nor the levels of the network divide with a rest; other
            lengths work too, with padding.
    """

    def __init__(self, config: DiffusionAutoencoderModelConfig) -> None:
        super().__init__()
        parts = config.model
        self.config = config
        self.sample_rate = config.sample_rate
        self.io_channels = self.in_channels = parts.io_channels
        self.latent_dim = parts.latent_dim
        self.frames_per_latent = parts.frames_per_latent
        self.diffusion_objective = "v"
        self.diffusion = NETWORKS[type(parts.diffusion)](parts.diffusion.config)
        self.bottleneck = None if parts.bottleneck is None else create_bottleneck(parts.bottleneck)
        self.encoder: nn.Module | None = None
        self.decoder: nn.Module | None = None
        self.pretransform: Pretransform | None = None
        if parts.encoder is not None:
            self.encoder = _halved(create_encoder(parts.encoder, parts.io_channels))
        if parts.decoder is not None:
            self.decoder = create_decoder(parts.decoder, parts.conditioning_channels)
        frame = 1
        if parts.pretransform is not None:
            self.pretransform = create_pretransform(parts.pretransform, config.sample_rate)
            self.in_channels = self.pretransform.io_channels
            frame = self.pretransform.downsampling_ratio
        self.downsampling_ratio = self.frames_per_latent * frame
        if parts.downsampling_ratio not in (self.downsampling_ratio, self.frames_per_latent):
            raise ConfigError(
                f"model.downsampling_ratio: found {parts.downsampling_ratio}, but encoder and pretransform"
                f" make a latent of {self.downsampling_ratio} samples"
            )
        network = parts.diffusion.config
        unit = network.factor if isinstance(network, DAU1dConfig) else network.patch_size
        self.min_length = math.lcm(self.frames_per_latent, unit) * frame

    def encode(
        self,
        audio: Tensor,
        return_info: bool = False,
        generator: Generators = None,
        skip_pretransform: bool = False,
    ) -> Any:
        """Latents ``(B, D, ceil(T / ratio))`` of audio ``(B, C, T)``, padded with silence to a whole latent.

        Args:
            return_info: return ``(latents, info)``, with what the bottleneck reports.
            generator: of the bottleneck's noise: one for the batch, one per item, or None for torch's global
                one.
            skip_pretransform: ``audio`` is what the pretransform makes, ``(B, io_channels, frames)``.

        Raises:
            UsageError: the audio has another shape or channel count.
        """
        channels = self.io_channels if skip_pretransform else self.in_channels
        if audio.ndim != 3 or audio.shape[1] != channels or audio.shape[2] == 0:
            raise UsageError(
                f"audio must have the shape (batch, {channels}, length), found {tuple(audio.shape)}"
            )
        step = self.frames_per_latent if skip_pretransform else self.downsampling_ratio
        latents = F.pad(audio, (0, -audio.shape[-1] % step))
        if self.pretransform is not None and not skip_pretransform:
            latents = self.pretransform.encode(latents, generator)
        if self.encoder is not None:
            latents = self.encoder(latents)
        info: dict[str, Tensor] = {}
        if self.bottleneck is not None:
            latents, info = self.bottleneck.encode(latents, generator)
        return (latents, info) if return_info else latents

    def conditioning(self, latents: Tensor, frames: int, generator: Generators = None) -> Tensor:
        """What the network gets beside the noise, ``(B, C', frames)``, for latents ``(B, D, L)``.

        They go through the bottleneck and the decoder, where there is one, and are stretched by nearest
        neighbour where that does not give ``frames``.
        """
        if self.bottleneck is not None:
            latents = self.bottleneck.decode(latents, generator)
        if self.decoder is not None:
            latents = self.decoder(latents)
        return latents if latents.shape[-1] == frames else F.interpolate(latents, frames, mode="nearest")

    @torch.no_grad()
    def decode(
        self,
        latents: Tensor,
        steps: int = DECODING_STEPS,
        seed: int | None = None,
        sampler: str = DECODING_SAMPLER,
    ) -> Tensor:
        """Audio ``(B, C, L ratio)`` of latents ``(B, D, L)``, drawn in ``steps`` steps.

        Args:
            seed: item i has ``seed + i``, so that it does not depend on its batch. None draws from torch's
                global generator, as the public code does.
            sampler: one of the v samplers; the public one is DDIM.
        """
        frames = latents.shape[-1] * self.frames_per_latent
        shape = (self.io_channels, frames)
        source, generator = None, None
        if seed is not None:
            source = PerClipNoise([seed + i for i in range(len(latents))])
            noise = source.initial(shape).to(latents.device)
            generator = [torch.Generator().manual_seed(seed + i) for i in range(len(latents))]
        beside = self.conditioning(latents, frames, generator)
        if source is None:
            noise = torch.randn(len(latents), *shape, device=latents.device)
        decoded = sample(
            self.diffusion,
            noise,
            objective=self.diffusion_objective,
            sampler=sampler,
            steps=steps,
            noise_source=source,
            input_concat_cond=beside,
        )
        return decoded if self.pretransform is None else self.pretransform.decode(decoded)

    def reconstruct(self, audio: Tensor, steps: int = DECODING_STEPS, seed: int | None = None) -> Tensor:
        """The audio ``(B, C, T)`` through latents and back, cut to its length.

        ``seed`` as in :meth:`decode`.
        """
        generator = None
        if seed is not None:
            generator = [torch.Generator().manual_seed(seed + i) for i in range(len(audio))]
        return self.decode(self.encode(audio, generator=generator), steps, seed)[..., : audio.shape[-1]]

    def forward(self, audio: Tensor, **options: Any) -> Tensor:
        """:meth:`reconstruct`."""
        return self.reconstruct(audio, **options)


def _halved(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(INITIAL_GAIN)
    return network
