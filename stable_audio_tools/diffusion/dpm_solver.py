"""DPM-Solver with single steps of order 1 to 3, fixed or adaptive (Lu et al. 2022a).

Everything is in ``lam = -log sigma``, which rises as noise falls; the signature is that of
``sigma_samplers``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stable_audio_tools.diffusion.noise import NoiseSource
from stable_audio_tools.diffusion.sigma_samplers import Callback, Denoise

RTOL = ATOL = 0.01
FIRST_STEP = 0.05
SMALLEST_STEP = 1e-5
ACCEPT_ABOVE = 0.81


class _Solver:
    """Steps of one trajectory. The network's answer at the start of a step is shared between orders."""

    def __init__(self, denoise: Denoise) -> None:
        self.denoise = denoise

    def eps(self, x: Tensor, lam: Tensor) -> Tensor:
        """The predicted noise."""
        sigma = lam.neg().exp()
        return (x - self.denoise(x, sigma.to(x) * x.new_ones(len(x)))) / sigma

    def first(self, x: Tensor, lam: Tensor, lam_next: Tensor, eps: Tensor) -> Tensor:
        """Order 1 (DDIM)."""
        return x - lam_next.neg().exp() * torch.expm1(lam_next - lam) * eps

    def second(
        self,
        x: Tensor,
        lam: Tensor,
        lam_next: Tensor,
        eps: Tensor,
        r: float = 0.5,
        eps_mid: Tensor | None = None,
    ) -> Tensor:
        """Order 2: DPM-Solver-2, with its middle point at ``r``."""
        h = lam_next - lam
        if eps_mid is None:
            eps_mid = self.midpoint(x, lam, h, eps, r)
        scale = lam_next.neg().exp() * torch.expm1(h)
        return x - scale * (eps + (eps_mid - eps) / (2 * r))

    def third(
        self, x: Tensor, lam: Tensor, lam_next: Tensor, eps: Tensor, eps_mid: Tensor | None = None
    ) -> Tensor:
        """Order 3: DPM-Solver-3, with middle points at 1/3 and 2/3."""
        r_1, r_2 = 1 / 3, 2 / 3
        h = lam_next - lam
        if eps_mid is None:
            eps_mid = self.midpoint(x, lam, h, eps, r_1)
        lam_2 = lam + r_2 * h
        growth = torch.expm1(r_2 * h)
        x_2 = x - lam_2.neg().exp() * (growth * eps + r_2 / r_1 * (growth / (r_2 * h) - 1) * (eps_mid - eps))
        eps_2 = self.eps(x_2, lam_2)
        growth = torch.expm1(h)
        return x - lam_next.neg().exp() * (growth * eps + (growth / h - 1) / r_2 * (eps_2 - eps))

    def midpoint(self, x: Tensor, lam: Tensor, h: Tensor, eps: Tensor, r: float) -> Tensor:
        """The predicted noise after a first-order step of ``r h``."""
        lam_mid = lam + r * h
        return self.eps(self.first(x, lam, lam_mid, eps), lam_mid)


def dpm_fast_orders(evaluations: int) -> list[int]:
    """Orders of the steps that spend ``evaluations`` calls of the network."""
    threes, rest = divmod(evaluations, 3)
    if rest:
        return [3] * threes + [rest]
    return [3] * (threes - 1) + [2, 1]


def dpm_fast(
    denoise: Denoise, x: Tensor, levels: Tensor, noise: NoiseSource, callback: Callback | None, *, steps: int
) -> Tensor:
    """DPM-Solver-fast: ``steps`` calls of the network in all, third-order steps evenly spaced in log sigma.

    ``levels`` are ``len(dpm_fast_orders(steps)) + 1`` sigmas. The last is sigma_min and not 0.
    """
    solver = _Solver(denoise)
    lams = -levels.log()
    for i, order in enumerate(dpm_fast_orders(steps)):
        lam, lam_next = lams[i], lams[i + 1]
        eps = solver.eps(x, lam)
        _report(callback, x, i, levels[i], eps)
        if order == 1:
            x = solver.first(x, lam, lam_next, eps)
        elif order == 2:
            x = solver.second(x, lam, lam_next, eps)
        else:
            x = solver.third(x, lam, lam_next, eps)
    return x


def dpm_adaptive(
    denoise: Denoise, x: Tensor, levels: Tensor, noise: NoiseSource, callback: Callback | None
) -> Tensor:
    """DPM-Solver-23: third-order steps whose length follows the difference to second order.

    From ``levels[0]`` to ``levels[-1]`` with tolerances of 0.01. The error is taken over the whole batch,
    so clips of one batch share their steps.
    """
    solver = _Solver(denoise)
    lam, lam_end = -levels[0].log(), -levels[-1].log()
    h = FIRST_STEP
    x_low_last = x
    step = 0
    while lam < lam_end - SMALLEST_STEP:
        lam_next = torch.minimum(lam_end, lam + h)
        eps = solver.eps(x, lam)
        eps_mid = solver.midpoint(x, lam, lam_next - lam, eps, 1 / 3)
        x_low = solver.second(x, lam, lam_next, eps, r=1 / 3, eps_mid=eps_mid)
        x_high = solver.third(x, lam, lam_next, eps, eps_mid=eps_mid)
        tolerance = torch.maximum(x_low.abs(), x_low_last.abs()).mul(RTOL).clamp_min(ATOL)
        error = float(torch.linalg.vector_norm((x_low - x_high) / tolerance)) / x.numel() ** 0.5
        if not math.isfinite(error):  # a broken model; no step would ever be accepted
            return x_high
        # An integrating controller with a smooth limit on how fast the step may grow (Soderlind 2003).
        factor = 1 + math.atan((1 / (error + 1e-8)) ** (1 / 3) - 1)
        _report(callback, x, step, lam.neg().exp(), eps)
        if factor >= ACCEPT_ABOVE:
            x, x_low_last, lam = x_high, x_low, lam_next
        h *= factor
        step += 1
    return x


def _report(callback: Callback | None, x: Tensor, step: int, sigma: Tensor, eps: Tensor) -> None:
    if callback is not None:
        callback({"x": x, "i": step, "sigma": sigma, "sigma_hat": sigma, "denoised": x - sigma * eps})
