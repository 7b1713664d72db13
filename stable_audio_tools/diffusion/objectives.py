"""What a diffusion model is trained to predict.

A clean latent x and a noise n are mixed at time t in [0, 1] to ``x_t = alpha x + sigma n``. The objective
fixes alpha, sigma and the target. Training, validation, sampling and attribution all read it from here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stable_audio_tools.errors import UsageError


@dataclass(frozen=True)
class Objective:
    """A path from data (t = 0) to noise (t = 1) and the target on it.

    All methods take x, noise and outputs of shape ``(B, C, L)`` and t of shape ``(B,)`` in [0, 1].
    """

    name: str
    family: str
    """``v`` or ``rectified_flow``: which samplers fit."""
    coefficients: Callable[[Tensor], tuple[Tensor, Tensor]]

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Weight of the data and weight of the noise at t, each of t's shape."""
        return self.coefficients(t)

    def add_noise(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """``x_t = alpha x + sigma n``."""
        alpha, sigma = self._expand(t, x)
        return alpha * x + sigma * noise

    def target(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should answer for ``(x_t, t)``."""
        if self.family == "rectified_flow":
            return noise - x
        alpha, sigma = self._expand(t, x)
        return alpha * noise - sigma * x

    def predicted_clean(self, x_t: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """The clean latent that an answer of the network implies."""
        alpha, sigma = self._expand(t, x_t)
        if self.family == "rectified_flow":
            return x_t - sigma * output
        return alpha * x_t - sigma * output

    def _expand(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.alpha_sigma(t)
        shape = (-1, *[1] * (like.ndim - 1))
        return alpha.view(shape), sigma.view(shape)


def _cosine(t: Tensor) -> tuple[Tensor, Tensor]:
    angle = t * (math.pi / 2)
    return torch.cos(angle), torch.sin(angle)


def _straight(t: Tensor) -> tuple[Tensor, Tensor]:
    return 1 - t, t


OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        # Salimans and Ho 2022, appendix D: v = alpha n - sigma x on a quarter circle.
        Objective("v", "v", _cosine),
        # Liu et al. 2023; Lipman et al. 2023: the straight line and its velocity n - x.
        Objective("rectified_flow", "rectified_flow", _straight),
        # The same, for models whose timesteps are drawn by log-SNR.
        Objective("rf_denoiser", "rectified_flow", _straight),
    )
}


def get_objective(name: str) -> Objective:
    """The objective called ``name``.

    Raises:
        UsageError: there is none; the message lists those there are.
    """
    try:
        return OBJECTIVES[name]
    except KeyError as error:
        raise UsageError(
            f"unknown diffusion objective {name!r}: expected one of {', '.join(OBJECTIVES)}"
        ) from error
