"""Changes of length by a whole factor: with a fixed filter, or with a learned convolution.

Shapes: B batch, C channels, T length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNELS: dict[str, tuple[float, ...]] = {  # each symmetric: the first half
    "linear": (1 / 8, 3 / 8),
    "cubic": (-3 / 256, -9 / 256, 29 / 256, 111 / 256),
    "lanczos3": (
        0.003689131001010537,
        0.015056144446134567,
        -0.03399861603975296,
        -0.066637322306633,
        0.13550527393817902,
        0.44638532400131226,
    ),
}
"""Taps of half-band filters between two samples, summing to 1: the kernels of ``k-diffusion`` (Crowson)."""


class _Filter(nn.Module):
    """One filter for every channel, kept as the buffer ``kernel`` of the public checkpoints."""

    def __init__(self, kernel: str, gain: float) -> None:
        super().__init__()
        half = torch.tensor(KERNELS[kernel])
        self.register_buffer("kernel", torch.cat([half, half.flip(0)]) * gain)
        self.kernel: Tensor
        self.reach = len(half) - 1

    def _folded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Channels moved into the batch, ``(B C, 1, T)``, and the filter ``(1, 1, K)``."""
        return x.flatten(0, 1).unsqueeze(1), self.kernel.to(x.dtype)[None, None]


class Downsample1d(_Filter):
    """Half the length, filtered and mirrored at the ends: ``(B, C, T) -> (B, C, T // 2)``.

    Args:
        kernel: a name of ``KERNELS``.
    """

    def __init__(self, kernel: str = "linear") -> None:
        super().__init__(kernel, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        rows, weight = self._folded(F.pad(x, (self.reach, self.reach), mode="reflect"))
        return F.conv1d(rows, weight, stride=2).squeeze(1).unflatten(0, x.shape[:2])


class Upsample1d(_Filter):
    """Twice the length: ``(B, C, T) -> (B, C, 2 T)``, the counterpart of :class:`Downsample1d`."""

    def __init__(self, kernel: str = "linear") -> None:
        super().__init__(kernel, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        margin = (self.reach + 1) // 2
        rows, weight = self._folded(F.pad(x, (margin, margin), mode="reflect"))
        out = F.conv_transpose1d(rows, weight, stride=2, padding=2 * self.reach + 1)
        return out.squeeze(1).unflatten(0, x.shape[:2])


def learned_downsample(channels: int, factor: int) -> nn.Conv1d:
    """A convolution from ``(B, C, T)`` to ``(B, C, ceil(T / factor))``."""
    return nn.Conv1d(channels, channels, 2 * factor + 1, stride=factor, padding=factor)


def learned_upsample(channels: int, factor: int) -> nn.Conv1d | nn.ConvTranspose1d:
    """A convolution from ``(B, C, T)`` to ``(B, C, T factor)``, transposed where the factor is above 1."""
    if factor == 1:
        return nn.Conv1d(channels, channels, 3, padding=1)
    odd = factor % 2
    return nn.ConvTranspose1d(
        channels, channels, 2 * factor, stride=factor, padding=factor // 2 + odd, output_padding=odd
    )
