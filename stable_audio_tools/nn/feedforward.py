"""The feed-forward and conformer branches of a transformer block.

``nn.Sequential`` positions are those of the public checkpoints: ``ff.0`` in, ``ff.2`` out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.nn.linear import linear_parts
from stable_audio_tools.nn.norms import LayerNorm
from stable_audio_tools.schema.networks import FeedForwardConfig, NormConfig

CONFORMER_KERNEL_SIZE = 17


class Transpose(nn.Module):
    """``(B, N, D)`` to ``(B, D, N)`` and back."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Sine(nn.Module):
    """``sin(pi x)``, in place of a SiLU (after Sitzmann et al. 2020)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(math.pi * x)


class GatedLinear(nn.Module):
    """SwiGLU (Shazeer 2020): the first half of one projection times the SiLU of the second half."""

    def __init__(self, dim: int, inner_dim: int, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.act = nn.SiLU() if activation is None else activation
        self.proj = nn.Linear(dim, inner_dim * 2)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = linear_parts(self.proj, x, 2)
        return value * self.act(gate)


class FeedForward(nn.Module):
    """Two projections with a gate (or a plain activation) between them.

    With ``use_conv`` the projections are convolutions over time, save the gated one, which stays linear.
    ``no_bias`` leaves the gated projection its bias. Both are as in the public code.
    """

    def __init__(self, dim: int, config: FeedForwardConfig, *, zero_init_output: bool = True) -> None:
        super().__init__()
        inner_dim = int(dim * config.mult)
        bias = not config.no_bias
        kernel = config.conv_kernel_size

        def project(width_in: int, width_out: int) -> nn.Module:
            if config.use_conv:
                return nn.Conv1d(width_in, width_out, kernel, padding=kernel // 2, bias=bias)
            return nn.Linear(width_in, width_out, bias=bias)

        def turn() -> nn.Module:
            return Transpose() if config.use_conv else nn.Identity()

        activation = Sine() if config.sinusoidal else nn.SiLU()
        first: nn.Module
        if config.glu:
            first = GatedLinear(dim, inner_dim, activation)
        else:
            first = nn.Sequential(turn(), project(dim, inner_dim), turn(), activation)
        last = project(inner_dim, dim)
        if zero_init_output and config.zero_init_output:
            for parameter in last.parameters():
                nn.init.zeros_(parameter)
        self.reaches = config.use_conv
        self.ff = nn.Sequential(first, turn(), last, turn())

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """``(B, N, D)`` to ``(B, N, D)``; convolutions see zeros where ``padding_mask (B, N)`` is False."""
        if padding_mask is None or not self.reaches:
            return self.ff(x)
        # The second convolution reaches into padding too, where the first leaves its bias.
        real = padding_mask.unsqueeze(-1).to(x.dtype)
        first, turn, last, back = self.ff
        return back(last(turn(first(x * real) * real)))


class ConformerModule(nn.Module):
    """The convolution branch of a Conformer block (Gulati et al. 2020), with layer norm for batch norm."""

    def __init__(self, dim: int, norm: NormConfig) -> None:
        super().__init__()
        self.in_norm = LayerNorm(dim, norm)
        self.pointwise_conv = nn.Conv1d(dim, dim, 1, bias=False)
        self.glu = GatedLinear(dim, dim)
        self.depthwise_conv = nn.Conv1d(
            dim, dim, CONFORMER_KERNEL_SIZE, groups=dim, padding=CONFORMER_KERNEL_SIZE // 2, bias=False
        )
        self.mid_norm = LayerNorm(dim, norm)
        self.pointwise_conv_2 = nn.Conv1d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """``(B, N, D)`` to ``(B, N, D)``; the convolution sees zeros where ``padding_mask (B, N)`` is not."""
        x = self.glu(self.pointwise_conv(self.in_norm(x).transpose(1, 2)).transpose(1, 2))
        if padding_mask is not None:
            x = x * padding_mask.unsqueeze(-1).to(x.dtype)
        x = self.depthwise_conv(x.transpose(1, 2))
        x = F.silu(self.mid_norm(x.transpose(1, 2)))
        return self.pointwise_conv_2(x.transpose(1, 2)).transpose(1, 2)
