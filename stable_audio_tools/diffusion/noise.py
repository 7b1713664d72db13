"""Noise: keyed draws that are the same on every device, and the noise that samplers add on their way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torchsde
from torch import Tensor

from stable_audio_tools.runtime.seeds import derive_seed, generator

BrownianNoise = Callable[[Tensor, Tensor], Tensor]
"""Standard normal noise of the step from one sigma to the next."""


def keyed_noise(
    shape: Sequence[int],
    *seed_parts: int | float | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal noise that depends on ``seed_parts`` alone: drawn on the CPU in float32, then moved."""
    return torch.randn(tuple(shape), generator=generator(*seed_parts)).to(device=device, dtype=dtype)


class NoiseSource(Protocol):
    """Where a sampler gets its fresh noise from."""

    def normal_like(self, x: Tensor) -> Tensor:
        """Standard normal noise of x's shape ``(B, C, L)``."""

    def brownian(self, x: Tensor, sigma_min: Tensor, sigma_max: Tensor) -> BrownianNoise:
        """A Brownian path over ``[sigma_min, sigma_max]``, whose increments do not depend on the number of steps."""


class GlobalNoise:
    """Noise from torch's global generator, in the order of the public code: the same seed gives the same clip."""

    def normal_like(self, x: Tensor) -> Tensor:
        return torch.randn_like(x)

    def brownian(self, x: Tensor, sigma_min: Tensor, sigma_max: Tensor) -> BrownianNoise:
        # One tree over the whole batch, seeded by one draw when the sampler starts.
        seed = int(torch.randint(0, 2**63 - 1, ()))
        tree = _tree(x, sigma_min, sigma_max, seed)
        return lambda sigma, sigma_next: _increment(tree, sigma, sigma_next)


class KeyedNoise:
    """Noise of each clip from its own seed: a clip is the same alone and in a batch, on CPU and GPU.

    Args:
        seeds: one per clip of the batch.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._seeds = list(seeds)
        self._generators = [generator("sampler", seed) for seed in self._seeds]

    def normal_like(self, x: Tensor) -> Tensor:
        rows = [torch.randn(x.shape[1:], generator=own) for own in self._generators]
        return torch.stack(rows).to(device=x.device, dtype=x.dtype)

    def brownian(self, x: Tensor, sigma_min: Tensor, sigma_max: Tensor) -> BrownianNoise:
        row = torch.empty(x.shape[1:])
        trees = [_tree(row, sigma_min, sigma_max, derive_seed("brownian", seed)) for seed in self._seeds]

        def noise(sigma: Tensor, sigma_next: Tensor) -> Tensor:
            rows = [_increment(tree, sigma.cpu(), sigma_next.cpu()) for tree in trees]
            return torch.stack(rows).to(device=x.device, dtype=x.dtype)

        return noise


def _tree(x: Tensor, sigma_min: Tensor, sigma_max: Tensor, seed: int) -> torchsde.BrownianTree:
    """Brownian motion shaped like ``x`` over the sigmas (Li et al. 2020)."""
    low, high = sigma_min.to(x.device), sigma_max.to(x.device)
    return torchsde.BrownianTree(low, torch.zeros_like(x), high, entropy=seed)


def _increment(tree: torchsde.BrownianTree, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """The increment from ``sigma`` down to ``sigma_next``, scaled to unit variance."""
    low, high = torch.minimum(sigma, sigma_next), torch.maximum(sigma, sigma_next)
    sign = 1 if sigma < sigma_next else -1
    return tree(low, high) * sign / (high - low).sqrt()
