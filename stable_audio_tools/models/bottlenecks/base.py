"""What every bottleneck has in common, and where its noise comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from stable_audio_tools.errors import UsageError
from stable_audio_tools.runtime.device import send

Generators: TypeAlias = torch.Generator | Sequence[torch.Generator] | None
"""Where noise comes from: one generator for the batch, one for each item, or torch's global one."""
Info: TypeAlias = dict[str, Tensor]
"""What a bottleneck reports by name; losses to be weighted by a config are scalars."""


class Bottleneck(nn.Module):
    """From what an encoder answers to latents, and from latents to what a decoder takes.

    Attributes:
        frozen: whether running estimates stand still in training too; gradients are stopped apart from it.
    """

    frozen: bool = False

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
        """Latents ``(B, D, L)`` of codes ``(B, Q, L)``, such as :meth:`encode` answers beside the codes.

        Raises:
            UsageError: the codes have another shape.
        """
        raise TypeError(f"{type(self).__name__} must define decode_codes")

    def decode_tokens(self, codes: Tensor, generator: Generators = None) -> Tensor:
        """What the decoder takes for codes ``(B, Q, L)``; errors as for :meth:`decode_codes`."""
        return self.decode(self.decode_codes(codes), generator)

    def check_codes(self, codes: Tensor, fewer: bool = False) -> None:
        """Refuse codes of another shape than ``(B, Q, L)``; ``fewer`` allows the first few of the Q.

        Raises:
            UsageError: the shape does not fit.
        """
        fits = codes.ndim == 3 and (
            codes.shape[1] == self.num_quantizers or (fewer and 0 < codes.shape[1] < self.num_quantizers)
        )
        if not fits:
            raise UsageError(
                f"codes must have the shape (batch, {self.num_quantizers}, length),"
                f" found {tuple(codes.shape)}"
            )


def full_precision(x: Tensor) -> Tensor:
    """``x`` in float32, or in float64 where it is: codes and losses are not worked out in half precision."""
    return x if x.dtype == torch.float64 else x.float()


def draw_noise(like: Tensor, generator: Generators = None) -> Tensor:
    """Standard normal noise with the shape, device and dtype of ``like`` ``(B, ...)``.

    With one generator per item, an item's noise does not depend on its neighbours in the batch. Draws are
    made on the device of the generator, so that a CPU generator gives the same noise on every machine.
    """
    return _draw(torch.randn, like, generator)


def draw_uniform(like: Tensor, generator: Generators = None) -> Tensor:
    """Noise that is uniform in [0, 1), otherwise like :func:`draw_noise`."""
    return _draw(torch.rand, like, generator)


def _draw(sample: Callable[..., Tensor], like: Tensor, generator: Generators) -> Tensor:
    if generator is None:
        return sample(like.shape, device=like.device, dtype=like.dtype)
    if isinstance(generator, torch.Generator):
        noise = sample(like.shape, generator=generator, device=generator.device, dtype=torch.float32)
        return send(noise, like.device).to(like.dtype)
    if len(generator) != len(like):
        raise UsageError(
            f"{len(generator)} generators were given for a batch of {len(like)}; give one per item"
        )
    where = generator[0].device if len(generator) else "cpu"
    drawn = torch.empty(like.shape, device=where)  # one tensor, so that a GPU gets it in one piece
    for item, each in zip(drawn, generator, strict=True):
        sample(item.shape, generator=each, out=item)
    return send(drawn, like.device).to(like.dtype)


def augment_with_noise(latents: Tensor, channels: int, generator: Generators = None) -> Tensor:
    """``latents (B, D, L)`` with ``channels`` of noise behind them, ``(B, D + channels, L)``."""
    if not channels:
        return latents
    like = latents.new_empty(latents.shape[0], channels, latents.shape[2])
    return torch.cat([latents, draw_noise(like, generator)], dim=1)
