"""Samplers for the v objective, in the variance-exploding picture: ``x = clean + sigma noise``.

Each takes ``(denoise, x, levels, noise, callback)``: ``denoise(x, sigma (B,))`` answers the clean latents,
``levels`` are the sigmas from first to last as a CPU tensor, and ``noise`` is where fresh noise comes from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stable_audio_tools.diffusion.noise import NoiseSource

Denoise = Callable[[Tensor, Tensor], Tensor]
Callback = Callable[[dict[str, Any]], None]


class VDenoiser:
    """A v network as a denoiser of variance-exploding latents with data of unit variance.

    With ``t = 2/pi atan(sigma)`` the cosine path has ``sigma_t / alpha_t = sigma``, so latents only need to
    be scaled by ``alpha_t = (1 + sigma^2)^-1/2`` on the way in (Karras et al. 2022, table 1, in terms of v).
    """

    def __init__(self, model: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.model = model

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Clean latents ``(B, C, L)`` from ``x`` at ``sigma (B,)``."""
        alpha = (1 + sigma**2).rsqrt().view(-1, *[1] * (x.ndim - 1))
        v = self.model(x * alpha, torch.atan(sigma) * (2 / math.pi))
        return x * alpha**2 - v * alpha * sigma.view_as(alpha)


def heun(
    denoise: Denoise, x: Tensor, levels: Tensor, noise: NoiseSource, callback: Callback | None
) -> Tensor:
    """Heun's second-order method (Karras et al. 2022, algorithm 1); the last step is Euler's."""
    for i, sigma, sigma_next in _steps(levels):
        slope = _slope(denoise, x, sigma, i, callback)
        moved = x + slope * (sigma_next - sigma)
        if sigma_next > 0:
            slope = (slope + _slope(denoise, moved, sigma_next)) / 2
            moved = x + slope * (sigma_next - sigma)
        x = moved
    return x


def dpm_2(
    denoise: Denoise, x: Tensor, levels: Tensor, noise: NoiseSource, callback: Callback | None
) -> Tensor:
    """The midpoint method with the midpoint in log sigma, after DPM-Solver-2 (Lu et al. 2022a)."""
    for i, sigma, sigma_next in _steps(levels):
        slope = _slope(denoise, x, sigma, i, callback)
        if sigma_next > 0:
            middle = (sigma * sigma_next).sqrt()
            slope = _slope(denoise, x + slope * (middle - sigma), middle)
        x = x + slope * (sigma_next - sigma)
    return x


def lms(denoise: Denoise, x: Tensor, levels: Tensor, noise: NoiseSource, callback: Callback | None) -> Tensor:
    """Linear multistep of order 4 (Adams-Bashforth with uneven steps; Hairer et al. 1993, section III.5)."""
    sigmas = levels.double().numpy()
    slopes: list[Tensor] = []  # newest first
    for i, sigma, _ in _steps(levels):
        slopes = [_slope(denoise, x, sigma, i, callback), *slopes[:3]]
        weights = multistep_weights(sigmas[i - len(slopes) + 1 : i + 1][::-1], sigmas[i], sigmas[i + 1])
        x = x + sum(float(weight) * slope for weight, slope in zip(weights, slopes, strict=True))
    return x


def multistep_weights(nodes: np.ndarray, start: float, end: float) -> np.ndarray:
    """Integrals from ``start`` to ``end`` of the Lagrange polynomials on ``nodes (K,)``; ``(K,)``.

    Gauss-Legendre quadrature with K points is exact for them.
    """
    points, quadrature = np.polynomial.legendre.leggauss(len(nodes))
    points = (end - start) / 2 * points + (end + start) / 2
    weights = []
    for j, node in enumerate(nodes):
        others = np.delete(nodes, j)
        basis = np.prod((points[:, None] - others) / (node - others), axis=1)
        weights.append((end - start) / 2 * float(basis @ quadrature))
    return np.array(weights)


def dpmpp_2s_ancestral(
    denoise: Denoise, x: Tensor, levels: Tensor, noise: NoiseSource, callback: Callback | None
) -> Tensor:
    """DPM-Solver++(2S) (Lu et al. 2022b, algorithm 1) down past each level, then noise back up to it."""
    for i, sigma, sigma_next in _steps(levels):
        denoised = _denoise(denoise, x, sigma, i, callback)
        ratio = sigma_next / sigma
        down, up = sigma_next * ratio, sigma_next * (1 - ratio**2).sqrt()
        if sigma_next == 0:
            return denoised
        middle = (sigma * down).sqrt()
        halfway = middle / sigma * x + (1 - middle / sigma) * denoised
        denoised = _denoise(denoise, halfway, middle)
        x = down / sigma * x + (1 - down / sigma) * denoised + noise.normal_like(x) * up
    return x


def dpmpp_2m(
    denoise: Denoise, x: Tensor, levels: Tensor, noise: NoiseSource, callback: Callback | None
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2): the last two answers, extrapolated in log sigma."""
    previous, h_last = None, None
    for i, sigma, sigma_next in _steps(levels):
        denoised = _denoise(denoise, x, sigma, i, callback)
        if sigma_next == 0:
            return denoised
        h = sigma.log() - sigma_next.log()
        straight = denoised
        if previous is not None and h_last is not None:
            straight = denoised + (denoised - previous) * h / (2 * h_last)
        x = sigma_next / sigma * x - torch.expm1(-h) * straight
        previous, h_last = denoised, h
    return x


def dpmpp_2m_sde(
    denoise: Denoise, x: Tensor, levels: Tensor, noise: NoiseSource, callback: Callback | None
) -> Tensor:
    """DPM-Solver++(2M) for the diffusion SDE (Lu et al. 2022b), midpoint form, on a Brownian path."""
    path = noise.brownian(x, levels[levels > 0].min(), levels.max())
    previous, h_last = None, None
    for i, sigma, sigma_next in _steps(levels):
        denoised = _denoise(denoise, x, sigma, i, callback)
        if sigma_next == 0:
            return denoised
        h = sigma.log() - sigma_next.log()
        pull = -torch.expm1(-2 * h)  # the SDE forgets twice as fast as the ODE
        x = sigma_next / sigma * torch.exp(-h) * x + pull * denoised
        if previous is not None and h_last is not None:
            x = x + 0.5 * pull * (denoised - previous) * h / h_last
        x = x + path(sigma, sigma_next) * sigma_next * pull.sqrt()
        previous, h_last = denoised, h
    return x


def dpmpp_3m_sde(
    denoise: Denoise, x: Tensor, levels: Tensor, noise: NoiseSource, callback: Callback | None
) -> Tensor:
    """The third-order multistep SDE solver of k-diffusion, in the manner of DPM-Solver++ (Lu et al. 2022b).

    The answers so far are interpolated in log sigma (divided differences), and the exponential integrals of
    the linear and quadratic terms (the phi functions of Hochbruck and Ostermann 2010) weigh them.
    """
    path = noise.brownian(x, levels[levels > 0].min(), levels.max())
    answers: list[Tensor] = []  # newest first
    widths: list[Tensor] = []
    for i, sigma, sigma_next in _steps(levels):
        answers = [_denoise(denoise, x, sigma, i, callback), *answers[:2]]
        if sigma_next == 0:
            return answers[0]
        h = sigma.log() - sigma_next.log()
        z = 2 * h
        x = torch.exp(-z) * x - torch.expm1(-z) * answers[0]
        phi_2 = torch.expm1(-z) / z + 1
        if len(answers) == 2:
            x = x + phi_2 * (answers[0] - answers[1]) * (h / widths[0])
        elif len(answers) == 3:
            near, far = widths[0] / h, widths[1] / h
            first = (answers[0] - answers[1]) / near
            second = (answers[1] - answers[2]) / far
            curvature = (first - second) / (near + far)
            x = x + phi_2 * (first + curvature * near) - (phi_2 / z - 0.5) * curvature
        x = x + path(sigma, sigma_next) * sigma_next * (-torch.expm1(-z)).sqrt()
        widths = [h, *widths[:1]]
    return x


def _steps(levels: Tensor) -> list[tuple[int, Tensor, Tensor]]:
    return [(i, levels[i], levels[i + 1]) for i in range(len(levels) - 1)]


def _denoise(
    denoise: Denoise, x: Tensor, sigma: Tensor, step: int | None = None, callback: Callback | None = None
) -> Tensor:
    denoised = denoise(x, sigma.to(x) * x.new_ones(len(x)))
    if callback is not None and step is not None:
        callback({"x": x, "i": step, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
    return denoised


def _slope(
    denoise: Denoise, x: Tensor, sigma: Tensor, step: int | None = None, callback: Callback | None = None
) -> Tensor:
    """dx / dsigma of the probability-flow ODE (Karras et al. 2022, equations 1 and 3)."""
    return (x - _denoise(denoise, x, sigma, step, callback)) / sigma
