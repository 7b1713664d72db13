"""The encoder and decoder of the Descript Audio Codec (Kumar et al. 2023).

Blocks of three dilated residual units and one strided convolution of kernel 2 x stride, as in
:mod:`~stable_audio_tools.models.autoencoders.oobleck`, with Snake activations and widths that double at each
stride. The attribute names are those of the public checkpoints: the codec's own networks sit one level down,
under ``encoder`` and ``decoder``.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from stable_audio_tools.nn.activations import Snake1d
from stable_audio_tools.nn.convs import Conv1d, WNConv1d, WNConvTranspose1d
from stable_audio_tools.schema.encoders import DACDecoderConfig, DACEncoderConfig

DILATIONS = (1, 3, 9)


class ResidualUnit(nn.Module):
    """``x + conv1(snake(conv7(snake(x))))`` with a dilated first convolution; keeps ``(B, C, T)``."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            Snake1d(channels),
            WNConv1d(channels, channels, kernel_size=7, padding=3 * dilation, dilation=dilation),
            Snake1d(channels),
            WNConv1d(channels, channels, kernel_size=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class EncoderBlock(nn.Module):
    """Three residual units, then down by ``stride``: ``(B, C, T) -> (B, 2 C, T / stride)``."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            *(ResidualUnit(channels, dilation) for dilation in DILATIONS),
            Snake1d(channels),
            WNConv1d(channels, 2 * channels, 2 * stride, stride=stride, padding=math.ceil(stride / 2)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class DecoderBlock(nn.Module):
    """Up by ``stride``, then three residual units: ``(B, C, L) -> (B, C', L stride)``."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            Snake1d(in_channels),
            WNConvTranspose1d(
                in_channels,
                out_channels,
                2 * stride,
                stride=stride,
                padding=math.ceil(stride / 2),
                output_padding=stride % 2,  # else an odd stride comes out one frame short
            ),
            *(ResidualUnit(out_channels, dilation) for dilation in DILATIONS),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class _EncoderNetwork(nn.Module):
    """``(B, in_channels, T) -> (B, width, T / ratio)``."""

    def __init__(self, config: DACEncoderConfig) -> None:
        super().__init__()
        widths = [config.d_model * 2**index for index in range(len(config.strides))]
        self.block = nn.Sequential(
            WNConv1d(config.in_channels, config.d_model, kernel_size=7, padding=3),
            *(EncoderBlock(width, stride) for width, stride in zip(widths, config.strides, strict=True)),
            Snake1d(config.width),
            WNConv1d(config.width, config.width, kernel_size=3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class _DecoderNetwork(nn.Module):
    """``(B, latent_dim, L) -> (B, out_channels, L ratio)``."""

    def __init__(self, config: DACDecoderConfig) -> None:
        super().__init__()
        widths = [config.channels // 2**index for index in range(len(config.rates) + 1)]
        blocks = [
            DecoderBlock(widths[index], widths[index + 1], rate) for index, rate in enumerate(config.rates)
        ]
        self.model = nn.Sequential(
            WNConv1d(config.latent_dim, config.channels, kernel_size=7, padding=3),
            *blocks,
            Snake1d(widths[-1]),
            WNConv1d(widths[-1], config.out_channels, kernel_size=7, padding=3),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class DACEncoder(nn.Module):
    """Audio to latents before the bottleneck: ``(B, in_channels, T) -> (B, latent_dim, T / ratio)``.

    ``proj_out`` takes the width of the codec's encoder to ``latent_dim``, where the config has one.
    """

    def __init__(self, config: DACEncoderConfig, channels: int | None = None) -> None:
        super().__init__()
        self.encoder = _EncoderNetwork(config)
        self.proj_out: nn.Module = nn.Identity()
        if config.latent_dim is not None:
            self.proj_out = Conv1d(config.width, config.latent_dim, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj_out(self.encoder(x))


class DACDecoder(nn.Module):
    """Latents to audio in (-1, 1): ``(B, latent_dim, L) -> (B, out_channels, L ratio)``."""

    def __init__(self, config: DACDecoderConfig, channels: int | None = None) -> None:
        super().__init__()
        self.decoder = _DecoderNetwork(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(x)
