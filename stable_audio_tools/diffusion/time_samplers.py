"""Samplers that walk in the network's own time t, from ``levels[0]`` down to 0.

Each takes ``(model, x, levels, noise, callback)``: ``model(x, t (B,))`` is the network, ``levels`` are the
times from first to last as a CPU tensor, and ``noise`` is where fresh noise comes from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.diffusion.noise import NoiseSource

Model = Callable[..., Any]
Callback = Callable[[dict[str, Any]], None]


def euler(model: Model, x: Tensor, levels: Tensor, noise: NoiseSource, callback: Callback | None) -> Tensor:
    """Euler's method on ``dx/dt = velocity`` (Liu et al. 2023)."""
    for i, t, t_next in _steps(levels):
        velocity = model(x, _expand(t, x))
        _report(callback, x, i, t, velocity)
        x = x + (t_next - t) * velocity
    return x


def euler_cfgpp(
    model: Model, x: Tensor, levels: Tensor, noise: NoiseSource, callback: Callback | None
) -> Tensor:
    """Euler's method with CFG++ (Chung et al. 2024): guided clean latents, and the unguided noise on them."""
    for i, t, t_next in _steps(levels):
        guided, info = model(x, _expand(t, x), return_info=True)
        _report(callback, x, i, t, guided)
        unguided = info.get("uncond_output", guided)
        x = (1 - t_next) * (x - t * guided) + t_next * (x + (1 - t) * unguided)
    return x


def rk4(model: Model, x: Tensor, levels: Tensor, noise: NoiseSource, callback: Callback | None) -> Tensor:
    """The classical Runge-Kutta method of order 4: four calls a step."""
    for i, t, t_next in _steps(levels):
        dt = t_next - t
        middle = _expand(t + dt / 2, x)
        k_1 = model(x, _expand(t, x))
        _report(callback, x, i, t, k_1)
        k_2 = model(x + dt / 2 * k_1, middle)
        k_3 = model(x + dt / 2 * k_2, middle)
        k_4 = model(x + dt * k_3, _expand(t_next, x))
        x = x + dt / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4)
    return x


def dpmpp(model: Model, x: Tensor, levels: Tensor, noise: NoiseSource, callback: Callback | None) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2) on the straight path, extrapolating in log-SNR."""
    log_snr = torch.logit(1 - levels.double()).to(levels.dtype)
    previous = None
    for i, t, t_next in _steps(levels):
        denoised = _clean(model, x, t, i, callback)
        if t_next == 0:
            return denoised
        h = log_snr[i + 1] - log_snr[i]
        straight = denoised
        h_last = log_snr[i] - log_snr[i - 1]
        if previous is not None and torch.isfinite(
            h_last
        ):  # at t = 1 there is no log-SNR to extrapolate from
            straight = denoised + (denoised - previous) * h / (2 * h_last)
        x = t_next / t * x - (1 - t_next) * torch.expm1(-h) * straight
        previous = denoised
    return x


def pingpong(
    model: Model, x: Tensor, levels: Tensor, noise: NoiseSource, callback: Callback | None
) -> Tensor:
    """Denoise fully, add fresh noise of the next level, repeat: for distilled models (Novack et al. 2025)."""
    for i, t, t_next in _steps(levels):
        denoised = _clean(model, x, t, i, callback)
        if t_next == 0:
            return denoised
        x = (1 - t_next) * denoised + t_next * noise.normal_like(x)
    return x


def ddim(model: Model, x: Tensor, levels: Tensor, noise: NoiseSource, callback: Callback | None) -> Tensor:
    """DDIM without fresh noise (Song et al. 2021), for the v objective on the cosine path."""
    return _ddim(lambda x, t: (model(x, t),) * 2, x, levels, callback)


def ddim_cfgpp(
    model: Model, x: Tensor, levels: Tensor, noise: NoiseSource, callback: Callback | None
) -> Tensor:
    """DDIM with CFG++ (Chung et al. 2024): guided clean latents, re-noised with the unguided noise."""

    def both(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        guided, info = model(x, t, return_info=True)
        return guided, info.get("uncond_output", guided)

    return _ddim(both, x, levels, callback)


def _ddim(
    model: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    x: Tensor,
    levels: Tensor,
    callback: Callback | None,
) -> Tensor:
    """DDIM where the answer for the clean latents and the answer for the noise may differ."""
    for i, t, t_next in _steps(levels):
        v_clean, v_noise = model(x, _expand(t, x))
        alpha, sigma = torch.cos(t * (math.pi / 2)), torch.sin(t * (math.pi / 2))
        denoised = alpha * x - sigma * v_clean
        if callback is not None:
            callback({"x": x, "i": i, "t": t, "sigma": sigma, "denoised": denoised})
        if t_next == 0:
            return denoised
        angle = t_next * (math.pi / 2)
        x = torch.cos(angle) * denoised + torch.sin(angle) * (sigma * x + alpha * v_noise)
    return x


def _clean(model: Model, x: Tensor, t: Tensor, step: int, callback: Callback | None) -> Tensor:
    velocity = model(x, _expand(t, x))
    _report(callback, x, step, t, velocity)
    return x - t * velocity


def _report(callback: Callback | None, x: Tensor, step: int, t: Tensor, velocity: Tensor) -> None:
    if callback is not None:
        callback({"x": x, "i": step, "t": t, "sigma": t, "denoised": x - t * velocity})


def _steps(levels: Tensor) -> list[tuple[int, Tensor, Tensor]]:
    return [(i, levels[i], levels[i + 1]) for i in range(len(levels) - 1)]


def _expand(t: Tensor, x: Tensor) -> Tensor:
    return t.to(x) * x.new_ones(len(x))
