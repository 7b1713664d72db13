"""What every bottleneck has in common, and where its noise comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from stable_audio_tools.errors import UsageError

Generators: TypeAlias = torch.Generator | Sequence[torch.Generator] | None
"""Where noise comes from: one generator for the batch, one for each item, or torch's global one."""
Info: TypeAlias = dict[str, Tensor]
"""What a bottleneck reports by name; losses to be weighted by a config are scalars."""


class Bottleneck(nn.Module):
    """From what an encoder answers to latents, and from latents to what a decoder takes."""

    def encode(self, x: Tensor, generator: Generators = None) -> tuple[Tensor, Info]:
        """Latents ``(B, D, L)`` of encoder outputs ``(B, D', L)``, and what there is to report.

        Args:
            generator: of the noise, where there is any.
        """
        raise TypeError(f"{type(self).__name__} must define encode")

    def decode(self, latents: Tensor, generator: Generators = None) -> Tensor:
        """What the decoder takes for latents ``(B, D, L)``: by default the latents themselves."""
        return latents


class DiscreteBottleneck(Bottleneck):
    """A bottleneck with codes: whole numbers that the latents can be made of again.

    Args:
        num_quantizers: codes per latent frame, Q.
        codebook_size: how many values a code has.
    """

    def __init__(self, num_quantizers: int, codebook_size: int) -> None:
        super().__init__()
        self.num_quantizers = num_quantizers
        self.codebook_size = codebook_size

    def codes(self, info: Info) -> Tensor:
        """The codes ``(B, Q, L)``, int64, in what :meth:`encode` reported."""
        return info["codes"]

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Latents ``(B, D, L)`` of codes ``(B, Q, L)``, such as :meth:`encode` answers beside the codes."""
        raise TypeError(f"{type(self).__name__} must define decode_codes")


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


def augment_with_noise(latents: Tensor, channels: int, generator: Generators = None) -> Tensor:
    """``latents (B, D, L)`` with ``channels`` of noise behind them, ``(B, D + channels, L)``."""
    if not channels:
        return latents
    like = latents[:, :1].expand(-1, channels, -1)
    return torch.cat([latents, draw_noise(like, generator)], dim=1)
