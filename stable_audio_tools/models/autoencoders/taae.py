"""The transformer-augmented encoder and decoder.

Parker et al. 2024, Scaling Transformers for Low-Bitrate High-Quality Speech Coding.

Each block resamples with one strided convolution of kernel 2 x stride, and runs a stack of transformer layers
on its latent side, with rotary positions and attention within a sliding window. With even strides a signal of
``T`` samples gives ``T / ratio`` frames and back; an odd stride loses a frame in the decoder, as in
:mod:`~stable_audio_tools.models.autoencoders.oobleck`.

The window is kept wherever the model runs. The public code leaves it out, and attends to everything, where
FlashAttention is not installed.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stable_audio_tools.models.autoencoders.oobleck import DILATIONS, ResidualUnit
from stable_audio_tools.nn.activations import SnakeBeta
from stable_audio_tools.nn.convs import WNConv1d, WNConvTranspose1d
from stable_audio_tools.nn.feedforward import Transpose
from stable_audio_tools.nn.transformer import BlockOptions, TransformerBlock
from stable_audio_tools.schema.encoders import TAAE_HEAD_WIDTH, TAAEConfig
from stable_audio_tools.schema.networks import AttentionConfig, NormConfig

NORM_EPS = 1e-2


class TAAEBlock(nn.Module):
    """One step between two rates.

    An encoder block goes down by ``stride`` and then through its transformers; a decoder block goes through
    the transformers and then up. A stride of 1 has no convolution. The transformers compute in the precision
    of their parameters, under autocast where that is float32 and the input is half precision.
    """

    def __init__(self, config: TAAEConfig, index: int, decoding: bool) -> None:
        super().__init__()
        stride = config.strides[index]
        outer, inner = (
            config.widths[index],
            config.widths[index + 1],
        )  # widths on the audio and the latent side
        self.window = config.sliding_window
        self.gradient_checkpointing = config.checkpointing
        units: list[nn.Module] = []
        if config.use_dilated_conv:
            units = [ResidualUnit(outer, dilation, config.use_snake) for dilation in DILATIONS]
        resample: nn.Module = nn.Identity()
        padding = math.ceil(stride / 2)
        layers: list[nn.Module]
        if decoding:
            if stride > 1:
                resample = WNConvTranspose1d(inner, outer, 2 * stride, stride, padding)
            layers = [_transformers(config, index), _activation(config, inner), resample, *units]
        else:
            if stride > 1:
                resample = WNConv1d(outer, inner, 2 * stride, stride, padding)
            layers = [*units, _activation(config, outer), resample, _transformers(config, index)]
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self._transform(layer, x) if isinstance(layer, nn.ModuleList) else self._run(layer, x)
        return x

    def _transform(self, layers: nn.ModuleList, x: Tensor) -> Tensor:
        own = next((parameter.dtype for parameter in layers.parameters()), x.dtype)
        half = own != x.dtype and x.dtype in (torch.float16, torch.bfloat16)
        with torch.autocast(x.device.type, dtype=x.dtype) if half else nullcontext():
            out = x.to(own)
            for layer in layers:
                windowed = {"window": self.window} if isinstance(layer, TransformerBlock) else {}
                out = self._run(layer, out, **windowed)
        return out.to(x.dtype)

    def _run(self, layer: nn.Module, x: Tensor, **options: Any) -> Tensor:
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(layer, x, use_reentrant=False, **options))
        return cast(Tensor, layer(x, **options))


class TAAEEncoder(nn.Module):
    """Audio to latents before the bottleneck: ``(B, in_channels, T) -> (B, latent_dim, T / ratio)``."""

    def __init__(self, config: TAAEConfig, channels: int | None = None) -> None:
        super().__init__()
        widths = config.widths
        self.layers = nn.Sequential(
            WNConv1d(config.in_channels, widths[0], kernel_size=7, padding=3),
            *(TAAEBlock(config, index, decoding=False) for index in range(len(config.strides))),
            _activation(config, widths[-1]),
            WNConv1d(widths[-1], config.latent_dim, kernel_size=3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class TAAEDecoder(nn.Module):
    """Latents to audio: ``(B, latent_dim, L) -> (B, out_channels, L ratio)``."""

    def __init__(self, config: TAAEConfig, channels: int | None = None) -> None:
        super().__init__()
        widths = config.widths
        self.layers = nn.Sequential(
            WNConv1d(config.latent_dim, widths[-1], kernel_size=3, padding=1),
            *(TAAEBlock(config, index, decoding=True) for index in reversed(range(len(config.strides)))),
            _activation(config, widths[0]),
            WNConv1d(widths[0], config.out_channels, kernel_size=7, padding=3, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def _activation(config: TAAEConfig, channels: int) -> nn.Module:
    return SnakeBeta(channels) if config.use_snake else nn.Identity()


def _transformers(config: TAAEConfig, index: int) -> nn.ModuleList:
    """Transformer layers between the turns from ``(B, C, L)`` to ``(B, L, C)`` and back."""
    options = BlockOptions(
        dim=config.widths[index + 1],
        head_dim=TAAE_HEAD_WIDTH,
        rotary=True,
        zero_init=not config.layer_scale,
        conformer=config.conformer,
        layer_scale=config.layer_scale,
        attention=AttentionConfig(qk_norm="ln"),
        norm=NormConfig(eps=NORM_EPS),
    )
    blocks = [TransformerBlock(options) for _ in range(config.transformer_depths[index])]
    return nn.ModuleList([Transpose(), *blocks, Transpose()])
