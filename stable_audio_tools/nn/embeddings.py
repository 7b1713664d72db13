"""Embeddings of time, of numbers and of positions.

Shapes: B batch, N tokens, D width, R rotated part of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

ROTARY_BASE = 10_000.0
MIN_ROTARY_DIM = 32


class FourierFeatures(nn.Module):
    """Random Fourier features of a vector: ``[cos(2 pi W x), sin(2 pi W x)]`` (Tancik et al. 2020).

    ``W`` is drawn once, ``(features / 2, in_features)``; it is a parameter, as in the public checkpoints.
    """

    def __init__(self, in_features: int, features: int, std: float = 1.0) -> None:
        super().__init__()
        if features % 2:
            raise ValueError(f"features must be even, found {features}")
        self.weight = nn.Parameter(torch.randn(features // 2, in_features) * std)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., features)``."""
        angles = 2 * math.pi * x @ self.weight.T
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ExpoFourierFeatures(nn.Module):
    """Fixed Fourier features of a number: frequencies spaced evenly in log between 0.5 and 10,000.

    Nothing is learned and nothing is stored. It is computed in float32, since 10,000 turns of a
    half-precision number would be noise.
    """

    def __init__(self, features: int, lowest: float = 0.5, highest: float = 10_000.0) -> None:
        super().__init__()
        if features % 2:
            raise ValueError(f"features must be even, found {features}")
        self.features = features
        self.log_range = math.log(lowest), math.log(highest)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., 1)`` to ``(..., features)``: cosines, then sines."""
        ramp = torch.linspace(0, 1, self.features // 2, device=x.device, dtype=torch.float32)
        low, high = self.log_range
        angles = x.float() * torch.exp(ramp * (high - low) + low) * 2 * math.pi
        return torch.cat([angles.cos(), angles.sin()], dim=-1).to(x.dtype)


class LearnedFourierFeatures(nn.Module):
    """Learned Fourier features of a number, with the number itself: ``[x, sin(2 pi w x), cos(2 pi w x)]``."""

    def __init__(self, features: int) -> None:
        super().__init__()
        if features % 2:
            raise ValueError(f"features must be even, found {features}")
        self.weights = nn.Parameter(torch.randn(features // 2))

    def forward(self, x: Tensor) -> Tensor:
        """``(N,)`` to ``(N, features + 1)``."""
        column = x[:, None]
        angles = 2 * math.pi * column * self.weights
        return torch.cat([column, angles.sin(), angles.cos()], dim=-1)


class NumberEmbedder(nn.Module):
    """One vector per number: learned Fourier features and a linear layer."""

    def __init__(self, features: int, fourier_features: int = 256) -> None:
        super().__init__()
        self.features = features
        self.embedding = nn.Sequential(
            LearnedFourierFeatures(fourier_features), nn.Linear(fourier_features + 1, features)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Numbers of any shape ``(...)`` to vectors ``(..., features)``."""
        return self.embedding(x.reshape(-1)).reshape(*x.shape, self.features)


class RotaryEmbedding(nn.Module):
    """Turns of rotary position embeddings (Su et al. 2021), on the first channels of each head only.

    Args:
        rotated: channels that are rotated, R.
    """

    def __init__(self, rotated: int) -> None:
        super().__init__()
        exponents = torch.arange(0, rotated, 2).float() / rotated
        self.register_buffer("inv_freq", 1.0 / ROTARY_BASE**exponents)
        self.inv_freq: Tensor

    def forward(self, length: int, start: int = 0) -> Tensor:
        """Turns ``(2, length, R / 2)`` of the positions from ``start`` on, in float32: cosines, then sines.

        They are taken once for all blocks: taken in each, they are a third of the time of a rotation.
        """
        # A product and no matmul, so that autocast leaves it in float32.
        positions = torch.arange(start, start + length, device=self.inv_freq.device, dtype=torch.float32)
        angles = positions[:, None] * self.inv_freq.float()
        return torch.stack([angles.cos(), angles.sin()])


def rotary_width(head_dim: int) -> int:
    """Rotated channels of a head: half of it, but at least 32 (or the whole head, where it is narrower)."""
    return min(max(head_dim // 2, MIN_ROTARY_DIM), head_dim)


def apply_rotary(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate the first R channels of ``x (..., N, head_dim)`` by ``turns (2, N, R / 2)``.

    It is done in float32 or better. Channel i is paired with channel i + R / 2.
    """
    cos, sin = turns
    half = cos.shape[-1]
    # the gradient of split is one concatenation, that of slices a sum of padded tensors
    first, second, kept = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    wide = torch.promote_types(x.dtype, torch.float32)
    first, second = first.to(wide), second.to(wide)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return torch.cat([*(part.to(x.dtype) for part in turned), kept], dim=-1)


class ScaledSinusoidalEmbedding(nn.Module):
    """Sines and cosines of the position (Vaswani et al. 2017), times one learned scale."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"width must be even, found {dim}")
        self.scale = nn.Parameter(torch.full((1,), dim**-0.5))
        exponents = torch.arange(dim // 2).float() / (dim // 2)
        self.register_buffer("inv_freq", ROTARY_BASE**-exponents, persistent=False)
        self.inv_freq: Tensor

    def forward(self, length: int, start: int = 0) -> Tensor:
        """The ``length`` positions from ``start`` on as ``(length, D)``."""
        positions = torch.arange(
            start, start + length, device=self.inv_freq.device, dtype=self.inv_freq.dtype
        )
        angles = positions[:, None] * self.inv_freq
        return torch.cat([angles.sin(), angles.cos()], dim=-1) * self.scale


class AbsolutePositionalEmbedding(nn.Module):
    """One learned vector per position, scaled by ``D^-1/2``."""

    def __init__(self, dim: int, max_length: int) -> None:
        super().__init__()
        self.max_length = max_length
        self.scale = dim**-0.5
        self.emb = nn.Embedding(max_length, dim)

    def forward(self, length: int, start: int = 0) -> Tensor:
        """The ``length`` positions from ``start`` on as ``(length, D)``.

        Raises:
            ValueError: more positions than were learned.
        """
        end = start + length
        if end > self.max_length:
            raise ValueError(
                f"a sequence of {end} tokens, but abs_pos_emb_max_length allows {self.max_length};"
                " generate fewer seconds"
            )
        return self.emb.weight[start:end] * self.scale
