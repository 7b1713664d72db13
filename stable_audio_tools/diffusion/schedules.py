"""Noise levels that a sampler visits, from the noisiest to the last."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stable_audio_tools.errors import UsageError

LOG_SNR_START = -6.0
LOG_SNR_END = 2.0


def polyexponential(steps: int, sigma_min: float, sigma_max: float, rho: float = 1.0) -> Tensor:
    """``(steps + 1,)`` sigmas: a polynomial of degree ``rho`` in log sigma from max to min, and then 0.

    With ``rho`` 1, as everywhere in practice, log sigma falls evenly.
    """
    _check_sigmas(sigma_min, sigma_max)
    ramp = torch.linspace(1, 0, steps) ** rho
    sigmas = torch.exp(ramp * (math.log(sigma_max) - math.log(sigma_min)) + math.log(sigma_min))
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def log_linear(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """``(steps + 1,)`` sigmas evenly spaced in log sigma from max to min, both included."""
    _check_sigmas(sigma_min, sigma_max)
    return torch.linspace(math.log(sigma_max), math.log(sigma_min), steps + 1).exp()


def linear(steps: int, t_max: float) -> Tensor:
    """``(steps + 1,)`` times evenly spaced from ``t_max`` to 0."""
    return torch.linspace(t_max, 0, steps + 1)


def log_snr_grid(steps: int, t_max: float) -> Tensor:
    """``(steps + 1,)`` times of a straight path, evenly spaced in log-SNR, ends pinned to ``t_max`` and 0.

    On that path ``logsnr = log((1 - t) / t)``. The grid goes to 2, from -6 or from the log-SNR of ``t_max``.
    """
    start = LOG_SNR_START if t_max >= 1 else math.log((1 - t_max) / t_max + 1e-6)
    if start >= LOG_SNR_END:  # so little noise that the grid would run backwards
        return linear(steps, t_max)
    times = torch.sigmoid(-torch.linspace(start, LOG_SNR_END, steps + 1))
    times[0], times[-1] = t_max, 0.0
    return times


def _check_sigmas(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max < math.inf:
        raise UsageError(
            f"sigma_min {sigma_min} and sigma_max {sigma_max}: expected 0 < sigma_min < sigma_max;"
            " with init audio, sigma_max is the init noise level"
        )
