"""The residual quantiser of the Descript Audio Codec, learned by gradient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stable_audio_tools.models.bottlenecks.base import (
    DiscreteBottleneck,
    Generators,
    Info,
    augment_with_noise,
    draw_uniform,
    full_precision,
)
from stable_audio_tools.nn.convs import WNConv1d
from stable_audio_tools.schema.bottlenecks import DACResidualVQConfig


class Quantised(NamedTuple):
    """What :class:`ResidualVectorQuantizer` answers; losses are sums over codebooks."""

    z: Tensor
    """Quantised latents ``(B, D, L)``."""
    codes: Tensor
    """``(B, Q, L)``, int64."""
    latents: Tensor
    """What was looked up, in the space of each codebook, one behind the other: ``(B, sum of widths, L)``."""
    commitment_loss: Tensor
    codebook_loss: Tensor


class CodebookQuantizer(nn.Module):
    """One codebook: a projection to few channels, the nearest code by angle, a projection back.

    The few channels and the angle are those of Yu et al. 2021 (ViT-VQGAN); gradients pass straight through.
    """

    def __init__(self, input_dim: int, codebook_size: int, codebook_dim: int) -> None:
        super().__init__()
        self.in_proj = WNConv1d(input_dim, codebook_dim, kernel_size=1)
        self.out_proj = WNConv1d(codebook_dim, input_dim, kernel_size=1)
        self.codebook = nn.Embedding(codebook_size, codebook_dim)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """``(B, D, L)`` quantised, its codes ``(B, L)``, the projection ``(B, d, L)``, two losses ``(B,)``.

        The losses pull the input to its code (commitment) and the code to its input (codebook).
        """
        projected = self.in_proj(z)
        codes = self.nearest(projected)
        found = self.lookup(codes)
        commitment = (projected - found.detach()).square().mean(dim=(1, 2))
        codebook = (found - projected.detach()).square().mean(dim=(1, 2))
        passed = projected + (found - projected).detach()
        return self.out_proj(passed), codes, projected, commitment, codebook

    def nearest(self, projected: Tensor) -> Tensor:
        """Codes ``(B, L)`` of the nearest directions to ``(B, d, L)``."""
        directions = F.normalize(projected.transpose(1, 2).flatten(0, 1))
        book = F.normalize(self.codebook.weight)
        # The public order of terms, so that rounding breaks near ties as it does there.
        distances = (
            directions.square().sum(1, keepdim=True) - 2 * directions @ book.t() + book.square().sum(1)[None]
        )
        return distances.argmin(dim=1).unflatten(0, (projected.shape[0], projected.shape[2]))

    def lookup(self, codes: Tensor) -> Tensor:
        """Codebook entries ``(B, d, L)`` of codes ``(B, L)``."""
        return self.codebook(codes).transpose(1, 2)


class ResidualVectorQuantizer(nn.Module):
    """Codebooks one after the other, each on what the ones before left over."""

    def __init__(self, config: DACResidualVQConfig) -> None:
        super().__init__()
        self.quantizers = nn.ModuleList(
            CodebookQuantizer(config.input_dim, config.codebook_size, dim) for dim in config.codebook_dims
        )
        self.dropout = config.quantizer_dropout

    def forward(self, z: Tensor, generator: Generators = None) -> Quantised:
        """``(B, D, L)`` quantised; in training the first items of a batch get by with fewer codebooks."""
        used = self._codebooks_used(z, generator)
        total, residual = torch.zeros_like(z), z
        commitment, codebook = z.new_zeros(()), z.new_zeros(())
        codes, projected = [], []
        for index, quantizer in enumerate(self.quantizers):
            part, part_codes, part_projected, to_code, to_input = quantizer(residual)
            within = (index < used).to(z.dtype)
            total = total + part * within[:, None, None]
            residual = residual - part
            commitment = commitment + (to_code * within).mean()
            codebook = codebook + (to_input * within).mean()
            codes.append(part_codes)
            projected.append(part_projected)
        return Quantised(total, torch.stack(codes, dim=1), torch.cat(projected, dim=1), commitment, codebook)

    def from_codes(self, codes: Tensor) -> Tensor:
        """Quantised latents ``(B, D, L)`` of the codes ``(B, q, L)`` of the first ``q`` codebooks."""
        quantizers: Iterable[Any] = self.quantizers
        parts = [
            quantizer.out_proj(quantizer.lookup(part))
            for quantizer, part in zip(quantizers, codes.unbind(1), strict=False)
        ]
        return torch.stack(parts).sum(0)

    def _codebooks_used(self, z: Tensor, generator: Generators) -> Tensor:
        """How many codebooks each item gets, ``(B,)``."""
        count = len(self.quantizers)
        dropped = int(len(z) * self.dropout) if self.training else 0
        used = torch.full((len(z),), count, device=z.device)
        if dropped:
            drawn = 1 + (draw_uniform(z.new_empty(len(z)), generator) * count).long()
            used[:dropped] = drawn[:dropped].clamp(max=count)
        return used


class DACRVQBottleneck(DiscreteBottleneck):
    """Factorised residual quantisation (Kumar et al. 2023, section 3.2), in full precision.

    With ``quantize_on_decode`` the latents are those before quantisation, for a diffusion model to learn, and
    the decoder gets them quantised; codes and losses are reported all the same.
    """

    def __init__(self, config: DACResidualVQConfig) -> None:
        super().__init__(config.n_codebooks, config.codebook_size)
        self.config = config
        self.quantizer = ResidualVectorQuantizer(config)

    def encode(self, x: Tensor, generator: Generators = None) -> tuple[Tensor, Info]:
        """``(B, D, L)`` to latents of the same shape, and under the public names what there is to report.

        ``codes`` ``(B, Q, L)``; ``z``, the quantised latents; ``pre_quantizer``, ``x`` itself; ``latents``,
        what was looked up; the scalars ``vq/commitment_loss`` and ``vq/codebook_loss``, means over codebooks.

        Args:
            generator: of the quantizer dropout.
        """
        found = self._quantise(x, generator)
        info = {
            "pre_quantizer": x,
            "z": found.z,
            "codes": found.codes,
            "latents": found.latents,
            "vq/commitment_loss": found.commitment_loss / self.num_quantizers,
            "vq/codebook_loss": found.codebook_loss / self.num_quantizers,
        }
        return (x if self.config.quantize_on_decode else found.z), info

    def decode(self, latents: Tensor, generator: Generators = None) -> Tensor:
        """What the decoder takes for latents ``(B, D, L)``."""
        if self.config.quantize_on_decode:
            latents = self._quantise(latents, generator).z.to(latents.dtype)
        return augment_with_noise(latents, self.config.noise_augment_dim, generator)

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Quantised latents ``(B, D, L)`` of codes ``(B, Q, L)``, or of those of the first codebooks."""
        self.check_codes(codes, fewer=True)
        return self.quantizer.from_codes(codes)

    def decode_tokens(self, codes: Tensor, generator: Generators = None) -> Tensor:
        """What the decoder takes for codes ``(B, Q, L)``: quantised already, so not once more."""
        return augment_with_noise(self.decode_codes(codes), self.config.noise_augment_dim, generator)

    def _quantise(self, x: Tensor, generator: Generators) -> Quantised:
        with torch.autocast(x.device.type, enabled=False):
            return self.quantizer(full_precision(x), generator)
