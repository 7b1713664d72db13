"""Latents held near zero mean and unit variance by a learned scale and a loss."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn

from stable_audio_tools.models.bottlenecks.base import (
    Bottleneck,
    Generators,
    Info,
    augment_with_noise,
    draw_noise,
    full_precision,
)
from stable_audio_tools.schema.bottlenecks import SoftNormConfig

_SLOWNESS = 0.999  # of the running estimate
_LEAST_STD = 1e-4
_LEAST_VARIANCE = 1e-4
_ACROSS_CHANNELS = 0.4  # share of the loss over channels beside that over time
_NOISE = {True: 5e-2, False: 1e-3}  # of the decoder's input, by whether it is trained


class SoftNormBottleneck(Bottleneck):
    """Scale and bias for each channel, as in the autoencoders of Stable Audio 3.

    The keys are the public ones: ``scaling_factor`` and ``bias`` ``(1, D, 1)``, ``noise_scaling_factor``
    ``(1, noise_augment_dim, 1)``, and with ``auto_scale`` the running ``running_std`` ``(1,)``, which is a
    parameter without gradient.
    """

    running_std: nn.Parameter | None

    def __init__(self, config: SoftNormConfig) -> None:
        super().__init__()
        self.config = config
        learned = not config.freeze
        self.scaling_factor = nn.Parameter(torch.ones(1, config.dim, 1), requires_grad=learned)
        self.bias = nn.Parameter(torch.zeros(1, config.dim, 1), requires_grad=learned)
        noise_scale = torch.ones(1, config.noise_augment_dim, 1)
        self.noise_scaling_factor = nn.Parameter(noise_scale, requires_grad=learned)
        running = nn.Parameter(torch.ones(1), requires_grad=False) if config.auto_scale else None
        self.register_parameter("running_std", running)

    def encode(self, x: Tensor, generator: Generators = None) -> tuple[Tensor, Info]:
        """``(B, D, L)`` to the same shape, and in training ``softnorm_loss``, a scalar."""
        latents = full_precision(x) * self.scaling_factor + self.bias
        if self.running_std is not None:
            if self.training and not (self.config.freeze or self.frozen):
                self._follow(latents)
            latents = latents / self.running_std
        return latents, {"softnorm_loss": softnorm_loss(latents)} if self.training else {}

    def decode(self, latents: Tensor, generator: Generators = None) -> Tensor:
        """What the decoder takes: rescaled, disturbed if asked for, with its channels of noise behind.

        The scale and bias of the channels stay in: the decoder has learned from them.
        """
        if self.running_std is not None:
            latents = latents * self.running_std.to(latents.dtype)
        if self.config.noise_regularize:
            spread = self._spread(latents) * _NOISE[self.training]
            latents = latents + draw_noise(latents, generator) * spread
        channels = latents.shape[1]
        latents = augment_with_noise(latents, self.config.noise_augment_dim, generator)
        noise = latents[:, channels:] * self.noise_scaling_factor.to(latents.dtype)
        return torch.cat([latents[:, :channels], noise], dim=1)

    @torch.no_grad()
    def _follow(self, latents: Tensor) -> None:
        assert self.running_std is not None
        running = self.running_std * _SLOWNESS + _std_over_ranks(latents) * (1 - _SLOWNESS)
        self.running_std.copy_(running.clamp(min=_LEAST_STD))

    def _spread(self, latents: Tensor) -> Tensor:
        """What noise is measured against: the running estimate, else each channel's own over time."""
        if self.running_std is not None:
            return self.running_std.to(latents.dtype)
        if latents.shape[-1] == 1:  # one frame has no spread
            return torch.zeros_like(latents)
        return latents.std(dim=-1, keepdim=True)


def _std_over_ranks(latents: Tensor) -> Tensor:
    """The standard deviation over the batches of all ranks, which are parts of one."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return latents.std()
    values = latents.double()
    moments = torch.stack([values.new_tensor(values.numel()), values.sum(), values.square().sum()])
    distributed.all_reduce(moments)
    count, total, squares = moments
    return ((squares - total.square() / count) / (count - 1)).sqrt().to(latents.dtype)


def softnorm_loss(latents: Tensor) -> Tensor:
    """How far ``(B, D, L)`` is from zero mean and unit variance over time, and over channels by 0.4 of it.

    Each is ``mean^2 + var - log var - 1``, twice the divergence of a Gaussian from the standard normal.
    """
    return _divergence(latents, dim=-1) + _ACROSS_CHANNELS * _divergence(latents, dim=-2)


def _divergence(x: Tensor, dim: int) -> Tensor:
    variance = x.var(dim=dim).clip(min=_LEAST_VARIANCE)
    return (x.mean(dim=dim).square() + variance - variance.log() - 1).mean()
