"""What sits between encoder and decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stable_audio_tools.errors import UsageError
from stable_audio_tools.schema.base import Config
from stable_audio_tools.schema.bottlenecks import VAEBottleneck as VAEBottleneckConfig

Generators: TypeAlias = torch.Generator | Sequence[torch.Generator] | None
"""Where noise comes from: one generator for the batch, one for each item, or torch's global one."""


def draw_noise(like: Tensor, generator: Generators = None) -> Tensor:
    """Standard normal noise with the shape, device and dtype of ``like`` ``(B, ...)``.

    With one generator per item, an item's noise does not depend on its neighbours in the batch. Draws are
    made on the device of the generator, so that a CPU generator gives the same noise on every machine.
    """
    if generator is None:
        return torch.randn_like(like)
    if isinstance(generator, torch.Generator):
        noise = torch.randn(like.shape, generator=generator, device=generator.device, dtype=torch.float32)
        return noise.to(like)
    if len(generator) != len(like):
        raise UsageError(
            f"{len(generator)} generators were given for a batch of {len(like)}; give one per item"
        )
    return torch.stack([draw_noise(item, each) for item, each in zip(like, generator, strict=True)])


class VAEBottleneck(nn.Module):
    """Gaussian latents (Kingma and Welling 2013): half of the channels are means, half raw scales."""

    def encode(self, x: Tensor, generator: Generators = None) -> tuple[Tensor, dict[str, Tensor]]:
        """``(B, 2 C, L)`` to a sample ``(B, C, L)``, and its ``mean``, ``stdev`` and ``kl``.

        ``kl``, a scalar, is twice the divergence from the standard normal, summed over channels and averaged
        over batch and time, as in the public code, so that loss weights in configs keep their meaning.
        """
        mean, raw_scale = x.float().chunk(2, dim=1)
        stdev = F.softplus(raw_scale) + 1e-4
        variance = stdev.square()
        kl = (mean.square() + variance - variance.log() - 1).sum(dim=1).mean()
        latents = mean + stdev * draw_noise(mean, generator)
        return latents, {"mean": mean, "stdev": stdev, "kl": kl}

    def decode(self, latents: Tensor) -> Tensor:
        """The latents themselves: a decoder sees what was sampled."""
        return latents


BOTTLENECKS: dict[type[Config], type[VAEBottleneck]] = {VAEBottleneckConfig: VAEBottleneck}
