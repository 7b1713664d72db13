"""Noise: keyed draws that are the same on every device, and the noise that samplers add on their way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torchsde
from torch import Tensor

from stable_audio_tools.runtime.device import send
from stable_audio_tools.runtime.seeds import generator

TREE_DIGITS = 6

BrownianNoise = Callable[[Tensor, Tensor], Tensor]
"""Standard normal noise of the step from one sigma to the next."""


def keyed_noise(
    shape: Sequence[int],
    *seed_parts: int | float | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal noise that depends on ``seed_parts`` alone: drawn on the CPU in float32, then moved."""
    return send(torch.randn(tuple(shape), generator=generator(*seed_parts)), device).to(dtype)


class NoiseSource(Protocol):
    """Where a sampler gets its fresh noise from."""

    def normal_like(self, x: Tensor) -> Tensor:
        """Standard normal noise of x's shape ``(B, C, L)``."""

    def brownian(self, x: Tensor, sigma_min: Tensor, sigma_max: Tensor) -> BrownianNoise:
        """A Brownian path over ``[sigma_min, sigma_max]``, the same path whatever the number of steps."""


class GlobalNoise:
    """Noise from torch's global generator, in the order of the public code: same seed, same clip."""

    def normal_like(self, x: Tensor) -> Tensor:
        return torch.randn_like(x)

    def brownian(self, x: Tensor, sigma_min: Tensor, sigma_max: Tensor) -> BrownianNoise:
        # One tree over the whole batch, seeded by one draw when the sampler starts.
        return _BrownianPath(x, sigma_min, sigma_max, int(torch.randint(0, 2**63 - 1, ())))


class PerClipNoise:
    """Noise of each clip from its own seed: a clip is the same alone and in a batch, on CPU and GPU.

    A batch of one draws what :class:`GlobalNoise` draws on the CPU after ``torch.manual_seed(seed)``.

    Args:
        seeds: one per clip of the batch.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def initial(self, shape: Sequence[int]) -> Tensor:
        """Where to start: standard normal noise ``(B, *shape)`` on the CPU. Draw it first, once."""
        return torch.stack([torch.randn(tuple(shape), generator=own) for own in self._generators])

    def normal_like(self, x: Tensor) -> Tensor:
        return self.initial(x.shape[1:]).to(x)

    def brownian(self, x: Tensor, sigma_min: Tensor, sigma_max: Tensor) -> BrownianNoise:
        row = torch.empty(x.shape[1:])
        seeds = [int(torch.randint(0, 2**63 - 1, (), generator=own)) for own in self._generators]
        paths = [_BrownianPath(row, sigma_min, sigma_max, seed) for seed in seeds]
        return lambda sigma, sigma_next: torch.stack([path(sigma, sigma_next) for path in paths]).to(x)


class _BrownianPath:
    """Brownian motion shaped like ``x`` with the sigma as its time (Li et al. 2020), from torchsde."""

    def __init__(self, x: Tensor, sigma_min: Tensor, sigma_max: Tensor, seed: int) -> None:
        # The tree rounds its times; asking beyond its ends would make it warn.
        self._low, self._high = round(float(sigma_min), TREE_DIGITS), round(float(sigma_max), TREE_DIGITS)
        self._tree = torchsde.BrownianTree(self._low, torch.zeros_like(x), self._high, entropy=seed)

    def __call__(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """The increment from ``sigma`` down to ``sigma_next``, scaled to unit variance."""
        width = float((sigma - sigma_next).abs().sqrt())
        start, end = (min(max(float(level), self._low), self._high) for level in (sigma_next, sigma))
        return -self._tree(start, end) / width
