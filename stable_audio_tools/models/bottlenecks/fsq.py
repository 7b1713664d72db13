"""Finite scalar quantisation: every channel rounded to one of a few levels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.models.bottlenecks.base import (
    DiscreteBottleneck,
    Generators,
    Info,
    augment_with_noise,
    draw_uniform,
    full_precision,
)
from stable_audio_tools.schema.bottlenecks import DitheredFSQConfig, FSQConfig


class FSQBottleneck(DiscreteBottleneck):
    """Finite scalar quantisation (Mentzer et al. 2023) of ``vector-quantize-pytorch``, in full precision."""

    def __init__(self, config: FSQConfig) -> None:
        super().__init__(config.num_codebooks, math.prod(config.levels))
        from vector_quantize_pytorch import FSQ

        self.noise_augment_dim = config.noise_augment_dim
        target = torch.get_default_device()
        # It counts its codes while it is built, so tables are made on the CPU even where nothing else is.
        with torch.device("cpu"):
            self.quantizer: Any = FSQ(**config.model_dump(exclude={"noise_augment_dim"}))
        if target.type != "meta":
            self.quantizer.to(target)

    def encode(self, x: Tensor, generator: Generators = None) -> tuple[Tensor, Info]:
        """``(B, D, L)`` to quantised latents of the same shape and dtype, and their ``codes``.

        ``quantizer_indices`` are the codes under their public name. With ``noise_dropout`` the library draws
        from torch's global generator, in training only.
        """
        quantised, indices = self.quantizer(full_precision(x).transpose(1, 2))
        codes = indices.reshape(*indices.shape[:2], self.num_quantizers).transpose(1, 2).long()
        return quantised.transpose(1, 2).to(x.dtype), {"codes": codes, "quantizer_indices": codes}

    def decode(self, latents: Tensor, generator: Generators = None) -> Tensor:
        """Latents ``(B, D, L)`` with the channels of noise that the decoder expects behind them."""
        return augment_with_noise(latents, self.noise_augment_dim, generator)

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Latents ``(B, D, L)`` of codes ``(B, Q, L)``."""
        self.check_codes(codes)
        indices = codes.transpose(1, 2)
        if not self.quantizer.keep_num_codebooks_dim:
            indices = indices.squeeze(-1)
        return self.quantizer.indices_to_codes(indices).transpose(1, 2)


class DitheredFSQBottleneck(DiscreteBottleneck):
    """Finite scalar quantisation learned through noise (Parker et al. 2024, section 3.2).

    ``tanh`` of each channel is rounded to one of its levels, spread evenly over [-1, 1] with both ends among
    them. In training most items get uniform noise as wide as one step in place of rounding, so that gradients
    are true ones; the others are rounded with gradients passed straight through, or left as they are. A code
    counts the levels of its channels, the first channel fastest. It has no weights.
    """

    levels: Tensor
    place: Tensor

    def __init__(self, config: DitheredFSQConfig) -> None:
        levels = config.level_list
        super().__init__(config.num_codebooks, math.prod(levels))
        self.noise_dropout = config.noise_dropout
        places = [math.prod(levels[:index]) for index in range(len(levels))]
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("place", torch.tensor(places), persistent=False)

    def encode(self, x: Tensor, generator: Generators = None) -> tuple[Tensor, Info]:
        """``(B, D, L)`` to quantised latents of the same shape and dtype, and their ``codes``.

        ``quantizer_indices`` are the codes in the public layout ``(B, L, Q)``.

        Args:
            generator: of the dither and of who gets it.
        """
        # (B, L, Q, d)
        bounded = torch.tanh(full_precision(x)).transpose(1, 2).unflatten(2, (self.num_quantizers, -1))
        spread = self._dithered(bounded, generator) if self.training else self._rounded(bounded)
        index = torch.minimum(self._level(spread).round().clamp(min=0).long(), self.levels - 1)
        indices = (index * self.place).sum(-1)
        latents = spread.flatten(2).transpose(1, 2).to(x.dtype)
        return latents, {"codes": indices.transpose(1, 2), "quantizer_indices": indices}

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Latents ``(B, D, L)`` of codes ``(B, Q, L)``."""
        self.check_codes(codes)
        level = codes.transpose(1, 2)[..., None] // self.place % self.levels
        return self._value(level).flatten(2).transpose(1, 2)

    def _dithered(self, bounded: Tensor, generator: Generators) -> Tensor:
        """``bounded`` plus noise of one step; for a few items of the batch rounded, or as it is."""
        bare, plain = draw_uniform(bounded.new_empty(len(bounded), 2), generator).unbind(1)
        noise = draw_uniform(bounded, generator) - 0.5
        undithered = torch.where(_items(bare < self.noise_dropout), bounded, self._rounded(bounded))
        return torch.where(_items(plain < self.noise_dropout), undithered, bounded + noise * self._step())

    def _rounded(self, bounded: Tensor) -> Tensor:
        """The nearest level, with the gradient of ``bounded``."""
        level = self._level(bounded)
        return self._value(level + (level.round() - level).detach())

    def _step(self) -> Tensor:
        return 2 / (self.levels - 1)

    def _level(self, value: Tensor) -> Tensor:
        return (value + 1) / self._step()

    def _value(self, level: Tensor) -> Tensor:
        return level * self._step() - 1


def _items(flags: Tensor) -> Tensor:
    """``(B,)`` against ``(B, L, Q, d)``."""
    return flags[:, None, None, None]
