"""SEANet (Tagliasacchi et al. 2020) as in EnCodec (Defossez et al. 2022): convolutions around an LSTM.

A convolution here pads by itself: ``kernel - stride`` values in all, on the left where it is causal and on
both sides where not (an odd one goes left), and on the right as many as make its last window full. So ``T``
samples make ``ceil(T / ratio)`` frames at any length. A causal network whose padding is a reflection sees, at
its very beginning, the few values that are reflected there.

With an LSTM every latent depends on all audio before it: encoding in chunks then only comes close to encoding
at once.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from stable_audio_tools.nn.convs import Conv1d, ConvTranspose1d, WNConv1d, WNConvTranspose1d
from stable_audio_tools.schema.encoders import SEANetDecoderConfig, SEANetEncoderConfig

SEANetConfig = SEANetEncoderConfig | SEANetDecoderConfig


def pad(x: Tensor, left: int, right: int, mode: str) -> Tensor:
    """``x (B, C, T)`` with ``left`` and ``right`` values around it.

    A reflection reaches no further than the signal, so a shorter one gets zeros behind it first; what lies
    past the padding is cut off again.
    """
    extra = max(0, max(left, right) + 1 - x.shape[-1]) if mode == "reflect" else 0
    if extra:
        x = F.pad(x, (0, extra))
    padded = F.pad(x, (left, right), mode) if left or right else x
    return padded[..., : padded.shape[-1] - extra]


class _GroupNorm(nn.GroupNorm):
    """torch's, computed in the precision of its parameters, answered in that of its input."""

    def forward(self, x: Tensor) -> Tensor:
        own = x if self.weight is None else x.to(self.weight.dtype)
        return super().forward(own).to(x.dtype)


def _norm(config: SEANetConfig, channels: int) -> nn.Module:
    if config.norm != "time_group_norm":
        return nn.Identity()
    return _GroupNorm(1, channels, eps=config.norm_params.eps, affine=config.norm_params.affine)


class _NormConv(nn.Module):
    """A convolution and its norm: the level of public keys between a padded convolution and its weight."""

    def __init__(self, config: SEANetConfig, in_channels: int, out_channels: int, *sizes: int) -> None:
        super().__init__()
        kernel, stride, dilation = sizes
        self.conv: nn.Module
        if config.norm == "weight_norm":
            self.conv = WNConv1d(in_channels, out_channels, kernel, stride=stride, dilation=dilation)
        else:
            self.conv = Conv1d(in_channels, out_channels, kernel, stride=stride, dilation=dilation)
        self.norm = _norm(config, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class _NormConvTranspose(nn.Module):
    """A transposed convolution and its norm."""

    def __init__(
        self, config: SEANetConfig, in_channels: int, out_channels: int, kernel: int, stride: int
    ) -> None:
        super().__init__()
        kind = WNConvTranspose1d if config.norm == "weight_norm" else ConvTranspose1d
        self.convtr: nn.Module = kind(in_channels, out_channels, kernel, stride=stride)
        self.norm = _norm(config, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.convtr(x))


class PaddedConv(nn.Module):
    """A convolution that keeps the time axis whole: ``(B, C, T) -> (B, C', ceil(T / stride))``."""

    def __init__(
        self,
        config: SEANetConfig,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.conv = _NormConv(config, in_channels, out_channels, kernel, stride, dilation)
        self.causal, self.pad_mode, self.stride = config.causal, config.pad_mode, stride
        self.padding = (kernel - 1) * dilation + 1 - stride

    def forward(self, x: Tensor) -> Tensor:
        right = 0 if self.causal else self.padding // 2
        full = -x.shape[-1] % self.stride  # as many more as make the last window full
        return self.conv(pad(x, self.padding - right, right + full, self.pad_mode))


class TrimmedConvTranspose(nn.Module):
    """A transposed convolution less its surplus of one stride: ``(B, C, L) -> (B, C', L stride)``."""

    def __init__(self, config: SEANetDecoderConfig, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.convtr = _NormConvTranspose(config, in_channels, out_channels, 2 * stride, stride)
        self.right = math.ceil(stride * config.trim_right_ratio) if config.causal else stride // 2
        self.left = stride - self.right

    def forward(self, x: Tensor) -> Tensor:
        out = self.convtr(x)
        return out[..., self.left : out.shape[-1] - self.right]


class LSTM(nn.Module):
    """An LSTM (Hochreiter and Schmidhuber 1997) over time with a skip around it; keeps ``(B, C, L)``.

    It computes in the precision of its parameters.
    """

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, layers)

    def forward(self, x: Tensor) -> Tensor:
        steps = x.permute(2, 0, 1)
        out, _ = self.lstm(steps.to(next(self.lstm.parameters()).dtype))
        return (out.to(x.dtype) + steps).permute(1, 2, 0)


class ResidualBlock(nn.Module):
    """A dilated convolution to ``1 / compress`` of the width and one back, beside a skip.

    The skip is a convolution of kernel 1, or nothing at all with ``true_skip``.
    """

    def __init__(self, config: SEANetConfig, channels: int, dilation: int) -> None:
        super().__init__()
        hidden = channels // config.compress
        self.block = nn.Sequential(
            _activation(config),
            PaddedConv(config, channels, hidden, config.residual_kernel_size, dilation=dilation),
            _activation(config),
            PaddedConv(config, hidden, channels, 1),
        )
        self.shortcut: nn.Module = nn.Identity()
        if not config.true_skip:
            self.shortcut = PaddedConv(config, channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.block(x)


class SEANetEncoder(nn.Module):
    """Audio to latents before the bottleneck: ``(B, channels, T) -> (B, dimension, ceil(T / ratio))``."""

    def __init__(self, config: SEANetEncoderConfig, channels: int | None = None) -> None:
        super().__init__()
        width = config.n_filters
        layers: list[nn.Module] = [PaddedConv(config, config.channels, width, config.kernel_size)]
        for ratio in config.ratios:
            layers += _residual_blocks(config, width)
            layers += [_activation(config), PaddedConv(config, width, 2 * width, 2 * ratio, stride=ratio)]
            width *= 2
        if config.lstm:
            layers.append(LSTM(width, config.lstm))
        layers += [_activation(config), PaddedConv(config, width, config.dimension, config.last_kernel_size)]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class SEANetDecoder(nn.Module):
    """Latents to audio: ``(B, dimension, L) -> (B, channels, L ratio)``."""

    def __init__(self, config: SEANetDecoderConfig, channels: int | None = None) -> None:
        super().__init__()
        width = config.n_filters * 2 ** len(config.ratios)
        layers: list[nn.Module] = [PaddedConv(config, config.dimension, width, config.kernel_size)]
        if config.lstm:
            layers.append(LSTM(width, config.lstm))
        for ratio in config.ratios:
            layers += [_activation(config), TrimmedConvTranspose(config, width, width // 2, ratio)]
            width //= 2
            layers += _residual_blocks(config, width)
        layers += [_activation(config), PaddedConv(config, width, config.channels, config.last_kernel_size)]
        if config.final_activation is not None:
            layers.append(_named(config.final_activation, config.final_activation_params))
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def _residual_blocks(config: SEANetConfig, width: int) -> list[nn.Module]:
    return [
        ResidualBlock(config, width, config.dilation_base**index) for index in range(config.n_residual_layers)
    ]


def _activation(config: SEANetConfig) -> nn.Module:
    return _named(config.activation, config.activation_params)


def _named(name: str, params: dict[str, float] | None) -> nn.Module:
    """torch's activation of that name; the schema lists the names and what each can be set to."""
    module: nn.Module = getattr(nn, name)(**(params or {}))
    return module
