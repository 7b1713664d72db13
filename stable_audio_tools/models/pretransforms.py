"""What turns audio into the latents that a diffusion model sees."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stable_audio_tools.models.autoencoder import AudioAutoencoder
from stable_audio_tools.models.bottlenecks import Generators
from stable_audio_tools.schema.autoencoder import AutoencoderPretransformConfig


class AutoencoderPretransform(nn.Module):
    """An autoencoder in front of a diffusion model.

    Latents are divided by ``scale`` on the way in and multiplied by it on the way out. Unless ``enable_grad``
    is set it is frozen and stays in evaluation mode whatever its parent does.

    ``model_half`` computes in float16 on a GPU; the weights stay float32, so that a checkpoint saved from it
    loses nothing, and on a CPU, where half-precision convolutions are slow, it has no effect. Results are
    float32.

    Attributes:
        encoded_channels: latent channels.
        downsampling_ratio: audio samples per latent.
        io_channels: audio channels.
        sample_rate: of the audio, in Hz.
    """

    def __init__(
        self,
        config: AutoencoderPretransformConfig,
        sample_rate: int = 44100,
        where: str = "model.pretransform",
    ) -> None:
        super().__init__()
        self.config = config
        self.scale = config.scale
        self.enable_grad = config.enable_grad
        self.model = AudioAutoencoder(config.config, sample_rate, f"{where}.config")
        self.encoded_channels = self.model.latent_dim
        self.downsampling_ratio = self.model.downsampling_ratio
        self.io_channels = self.model.io_channels
        self.sample_rate = sample_rate
        if not self.enable_grad:
            self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> AutoencoderPretransform:
        """Follow the parent only where the autoencoder is trained with it."""
        super().train(mode and self.enable_grad)
        return self

    def encode(self, audio: Tensor, generator: Generators = None, chunked: bool | None = None) -> Tensor:
        """Latents ``(B, D, ceil(T / ratio))`` of audio ``(B, C, T)``; ``chunked`` overrides the config.

        Args:
            generator: of the bottleneck's noise: one for the batch, one per item, or None for torch's global
                one.
        """
        latents = self.model.encode(
            self._compute_dtype(audio),
            chunked=self.config.chunked if chunked is None else chunked,
            iterate_batch=self.config.iterate_batch,
            generator=generator,
        )
        return latents.float() / self.scale

    def decode(self, latents: Tensor, chunked: bool | None = None) -> Tensor:
        """Audio ``(B, C, L ratio)`` of latents ``(B, D, L)``; ``chunked`` overrides the config."""
        audio = self.model.decode(
            self._compute_dtype(latents * self.scale),
            chunked=self.config.chunked if chunked is None else chunked,
            iterate_batch=self.config.iterate_batch,
        )
        return audio.float()

    def forward(self, audio: Tensor) -> Tensor:
        """:meth:`encode`."""
        return self.encode(audio)

    def _compute_dtype(self, x: Tensor) -> Tensor:
        half = self.config.model_half and x.device.type != "cpu"
        return x.to(torch.float16 if half else torch.float32)
