"""Periodic activations of the convolutional networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SnakeBeta(nn.Module):
    """``x + sin^2(alpha x) / beta`` with learned ``alpha`` and ``beta`` per channel, kept as logarithms.

    Snake (Ziyin et al. 2020) with a separate magnitude (Lee et al. 2022, BigVGAN). The constants are computed
    in the precision of the parameters and then take the dtype of the input, as in
    :mod:`stable_audio_tools.nn.convs`.

    Args:
        channels: size of axis 1 of the input ``(B, C, T)``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        frequency = self.alpha.exp()[:, None].to(x.dtype)
        magnitude = (1.0 / (self.beta.exp() + 1e-9))[:, None].to(x.dtype)
        return x + magnitude * torch.sin(x * frequency).square()


class Snake1d(nn.Module):
    """``x + sin^2(alpha x) / alpha`` with a learned ``alpha`` per channel, ``(1, C, 1)`` (Ziyin et al. 2020).

    The activation of the Descript Audio Codec, where ``alpha`` is kept as it is.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        frequency = self.alpha.to(x.dtype)
        magnitude = (self.alpha + 1e-9).reciprocal().to(x.dtype)
        return x + magnitude * torch.sin(frequency * x).square()
