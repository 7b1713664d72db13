"""The Oobleck encoder and decoder: the convolutional part of the Stable Audio VAE (Evans et al. 2024).

A stack of blocks, each three dilated residual units and one strided convolution of kernel 2 x stride. With
even strides a signal of ``T`` samples gives ``T / ratio`` frames and back; with an odd stride each transposed
convolution comes out one frame short, as in the public code, so the decoder returns slightly less.
"""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn

from stable_audio_tools.nn.activations import SnakeBeta
from stable_audio_tools.nn.convs import WNConv1d, WNConvTranspose1d
from stable_audio_tools.schema.encoders import OobleckConfig

DILATIONS = (1, 3, 9)


def _activation(channels: int, use_snake: bool) -> nn.Module:
    return SnakeBeta(channels) if use_snake else nn.ELU()


class ResidualUnit(nn.Module):
    """``x + conv1(act(conv7(act(x))))`` with a dilated first convolution; keeps the shape ``(B, C, T)``."""

    def __init__(self, channels: int, dilation: int, use_snake: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _activation(channels, use_snake),
            WNConv1d(channels, channels, kernel_size=7, padding=3 * dilation, dilation=dilation),
            _activation(channels, use_snake),
            WNConv1d(channels, channels, kernel_size=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class EncoderBlock(nn.Module):
    """Three residual units, then down by ``stride``: ``(B, C, T) -> (B, C', T / stride)``."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, use_snake: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(ResidualUnit(in_channels, dilation, use_snake) for dilation in DILATIONS),
            _activation(in_channels, use_snake),
            WNConv1d(in_channels, out_channels, 2 * stride, stride=stride, padding=math.ceil(stride / 2)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class DecoderBlock(nn.Module):
    """Up by ``stride``, then three residual units: ``(B, C, L) -> (B, C', L stride)``."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, use_snake: bool, use_nearest_upsample: bool
    ) -> None:
        super().__init__()
        upsample: nn.Module
        if use_nearest_upsample:
            upsample = nn.Sequential(
                nn.Upsample(scale_factor=stride, mode="nearest"),
                WNConv1d(in_channels, out_channels, 2 * stride, padding="same", bias=False),
            )
        else:
            padding = math.ceil(stride / 2)
            upsample = WNConvTranspose1d(
                in_channels, out_channels, 2 * stride, stride=stride, padding=padding
            )
        self.layers = nn.Sequential(
            _activation(in_channels, use_snake),
            upsample,
            *(ResidualUnit(out_channels, dilation, use_snake) for dilation in DILATIONS),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class OobleckEncoder(nn.Module):
    """Audio to latents before the bottleneck: ``(B, in_channels, T) -> (B, latent_dim, T / ratio)``."""

    def __init__(self, config: OobleckConfig, in_channels: int = 2) -> None:
        super().__init__()
        widths = [config.channels * mult for mult in (1, *config.c_mults)]
        blocks = [
            EncoderBlock(width, wider, stride, config.use_snake)
            for (width, wider), stride in zip(pairwise(widths), config.strides, strict=True)
        ]
        self.layers = nn.Sequential(
            WNConv1d(config.in_channels or in_channels, widths[0], kernel_size=7, padding=3),
            *blocks,
            _activation(widths[-1], config.use_snake),
            WNConv1d(widths[-1], config.latent_dim, kernel_size=3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class OobleckDecoder(nn.Module):
    """Latents to audio: ``(B, latent_dim, L) -> (B, out_channels, L ratio)``."""

    def __init__(self, config: OobleckConfig, out_channels: int = 2) -> None:
        super().__init__()
        widths = [config.channels * mult for mult in (*reversed(config.c_mults), 1)]
        blocks = [
            DecoderBlock(width, narrower, stride, config.use_snake, config.use_nearest_upsample)
            for (width, narrower), stride in zip(pairwise(widths), reversed(config.strides), strict=True)
        ]
        self.layers = nn.Sequential(
            WNConv1d(config.latent_dim, widths[0], kernel_size=7, padding=3),
            *blocks,
            _activation(widths[-1], config.use_snake),
            WNConv1d(widths[-1], config.out_channels or out_channels, kernel_size=7, padding=3, bias=False),
            nn.Tanh() if config.final_tanh else nn.Identity(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
