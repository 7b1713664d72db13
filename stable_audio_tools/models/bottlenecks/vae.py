"""Gaussian latents."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from stable_audio_tools.models.bottlenecks.base import (
    Bottleneck,
    Generators,
    Info,
    draw_noise,
    full_precision,
)
from stable_audio_tools.schema.bottlenecks import VAEConfig


class VAEBottleneck(Bottleneck):
    """Gaussian latents (Kingma and Welling 2013): half of the channels are means, half raw scales."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()

    def encode(self, x: Tensor, generator: Generators = None) -> tuple[Tensor, Info]:
        """``(B, 2 C, L)`` to a sample ``(B, C, L)``, and its ``mean``, ``stdev`` and ``kl``.

        ``kl``, a scalar, is twice the divergence from the standard normal, summed over channels and averaged
        over batch and time, as in the public code, so that loss weights in configs keep their meaning.
        """
        mean, raw_scale = full_precision(x).chunk(2, dim=1)
        stdev = F.softplus(raw_scale) + 1e-4
        variance = stdev.square()
        kl = (mean.square() + variance - variance.log() - 1).sum(dim=1).mean()
        latents = mean + stdev * draw_noise(mean, generator)
        return latents, {"mean": mean, "stdev": stdev, "kl": kl}
