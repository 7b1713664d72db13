"""Audio in patches: a run of samples becomes the channels of one frame."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from stable_audio_tools.models.bottlenecks.base import Generators
from stable_audio_tools.models.pretransforms.base import Pretransform
from stable_audio_tools.schema.autoencoder import PatchedPretransformConfig


class PatchedPretransform(Pretransform):
    """``patch_size`` samples of each channel as ``patch_size`` channels, the audio channel slowest.

    It has no weights and loses nothing.
    """

    def __init__(self, config: PatchedPretransformConfig, sample_rate: int = 44100) -> None:
        channels, patch_size = config.config.channels, config.config.patch_size
        super().__init__(
            sample_rate=sample_rate,
            io_channels=channels,
            encoded_channels=channels * patch_size,
            downsampling_ratio=patch_size,
            enable_grad=config.enable_grad,
        )
        self.freeze_unless_trained()

    def encode(self, audio: Tensor, generator: Generators = None, chunked: bool | None = None) -> Tensor:
        """``(B, C patch, ceil(T / patch))`` of audio ``(B, C, T)``, padded with silence to a whole patch."""
        self.check_audio(audio)
        patch = self.downsampling_ratio
        patches = F.pad(audio, (0, -audio.shape[-1] % patch)).unflatten(2, (-1, patch))  # (B, C, L, patch)
        return patches.transpose(2, 3).flatten(1, 2)

    def decode(self, latents: Tensor, chunked: bool | None = None) -> Tensor:
        """Audio ``(B, C, L patch)`` of ``(B, C patch, L)``."""
        self.check_latents(latents)
        return latents.unflatten(1, (self.io_channels, -1)).transpose(2, 3).flatten(2)
