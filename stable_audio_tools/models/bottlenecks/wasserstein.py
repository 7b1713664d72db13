"""Latents drawn to a Gaussian by comparing samples."""

from __future__ import annotations

import torch
from torch import Tensor

from stable_audio_tools.models.bottlenecks.base import (
    Bottleneck,
    Generators,
    Info,
    augment_with_noise,
    draw_noise,
    full_precision,
)
from stable_audio_tools.schema.bottlenecks import WassersteinConfig


class WassersteinBottleneck(Bottleneck):
    """Latents of a Wasserstein autoencoder (Tolstikhin et al. 2017), held to a Gaussian by a loss alone."""

    def __init__(self, config: WassersteinConfig) -> None:
        super().__init__()
        self.config = config

    def encode(self, x: Tensor, generator: Generators = None) -> tuple[Tensor, Info]:
        """``(B, D, L)`` to the same shape, and in training ``mmd``, a scalar.

        It is left out of evaluation because it compares every frame of the batch with every other.

        Args:
            generator: of the Gaussian sample that the latents are compared with.
        """
        info: Info = {}
        if self.training:
            info["mmd"] = x.new_zeros(()) if self.config.bypass_mmd else mmd_to_normal(x, generator)
        if self.config.use_tanh:
            x = torch.tanh(x / self.config.tanh_scale) * self.config.tanh_scale
        return x, info

    def decode(self, latents: Tensor, generator: Generators = None) -> Tensor:
        """Latents ``(B, D, L)`` with the channels of noise that the decoder expects behind them."""
        return augment_with_noise(latents, self.config.noise_augment_dim, generator)


def mmd_to_normal(latents: Tensor, generator: Generators = None) -> Tensor:
    """Squared maximum mean discrepancy of ``(B, D, L)`` to as many standard normal frames, a scalar.

    Gretton et al. 2012, eq. 5 (biased), with the kernel ``exp(-|a - b|^2 / D^2)`` of the public code.
    """
    frames = full_precision(latents).transpose(1, 2).contiguous()
    noise = draw_noise(frames, generator).flatten(0, 1)
    frames = frames.flatten(0, 1)
    return _kernel_mean(frames, frames) + _kernel_mean(noise, noise) - 2 * _kernel_mean(frames, noise)


def _kernel_mean(a: Tensor, b: Tensor) -> Tensor:
    # By differences: as |a|^2 + |b|^2 - 2 a b, matrix units would round away what the means differ in.
    distances = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.exp(-distances.square() / a.shape[-1] ** 2).mean()
