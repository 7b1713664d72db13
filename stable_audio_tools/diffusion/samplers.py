"""The way from noise to latents: one call, every sampler by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.diffusion import dpm_solver, schedules, sigma_samplers, time_samplers
from stable_audio_tools.diffusion.inpainting import KeptRegions
from stable_audio_tools.diffusion.noise import GlobalNoise, NoiseSource
from stable_audio_tools.diffusion.objectives import Objective, get_objective
from stable_audio_tools.diffusion.timesteps import DistributionShift
from stable_audio_tools.errors import UsageError

Callback = Callable[[dict[str, Any]], None]
"""Called at every step with ``x``, ``i``, ``sigma`` and ``denoised``."""

DEFAULT_SAMPLERS = {"v": "dpmpp-2m-sde", "rectified_flow": "euler"}
DEFAULT_SIGMA_MIN = 0.01
DEFAULT_SIGMA_MAX = 100.0


@dataclass(frozen=True)
class Sampler:
    """An algorithm and the levels it visits.

    ``run(model, x, levels, noise, callback)`` gets a denoiser where the sampler walks in sigma, else the
    network. ``levels(steps, sigma_min, sigma_max, rho)`` gives the sigmas; ``levels(steps, t_max)`` the
    times.
    """

    run: Callable[..., Tensor]
    levels: Callable[..., Tensor]
    walks_in: str
    """``sigma``: noise level with data of unit weight, up to hundreds; ``t``: the network's time, 0 to 1."""
    batch_independent: bool = True
    """A clip does not depend on the clips beside it."""

    def first_level(self, sigma_max: float | None = None) -> float:
        """Where sampling begins: ``sigma_max`` or, for None, the default; at most 1 where it walks in t."""
        if self.walks_in == "sigma":
            return DEFAULT_SIGMA_MAX if sigma_max is None else float(sigma_max)
        return 1.0 if sigma_max is None else min(float(sigma_max), 1.0)


def _fast_levels(steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    return schedules.log_linear(len(dpm_solver.dpm_fast_orders(steps)), sigma_min, sigma_max)


def _end_levels(steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    return schedules.log_linear(1, sigma_min, sigma_max)


def _in_sigma(run: Callable[..., Tensor]) -> Sampler:
    return Sampler(run, schedules.polyexponential, "sigma")


SAMPLERS: dict[str, dict[str, Sampler]] = {
    "v": {
        "dpmpp-2m": _in_sigma(sigma_samplers.dpmpp_2m),
        "dpmpp-2m-sde": _in_sigma(sigma_samplers.dpmpp_2m_sde),
        "dpmpp-3m-sde": _in_sigma(sigma_samplers.dpmpp_3m_sde),
        "k-heun": _in_sigma(sigma_samplers.heun),
        "k-lms": _in_sigma(sigma_samplers.lms),
        "k-dpm-2": _in_sigma(sigma_samplers.dpm_2),
        "k-dpmpp-2s-ancestral": _in_sigma(sigma_samplers.dpmpp_2s_ancestral),
        "k-dpm-fast": Sampler(dpm_solver.dpm_fast, _fast_levels, "sigma"),
        "k-dpm-adaptive": Sampler(dpm_solver.dpm_adaptive, _end_levels, "sigma", batch_independent=False),
        "v-ddim": Sampler(time_samplers.ddim, schedules.linear, "t"),
        "v-ddim-cfgpp": Sampler(time_samplers.ddim_cfgpp, schedules.linear, "t"),
    },
    "rectified_flow": {
        "euler": Sampler(time_samplers.euler, schedules.log_snr_grid, "t"),
        "euler-cfgpp": Sampler(time_samplers.euler_cfgpp, schedules.log_snr_grid, "t"),
        "rk4": Sampler(time_samplers.rk4, schedules.linear, "t"),
        "dpmpp": Sampler(time_samplers.dpmpp, schedules.log_snr_grid, "t"),
        "pingpong": Sampler(time_samplers.pingpong, schedules.log_snr_grid, "t"),
    },
}


def get_sampler(name: str | None, objective: Objective | str) -> tuple[str, Sampler]:
    """Name and sampler, the default one of the objective's family for None.

    Raises:
        UsageError: this family has no such sampler; the message lists those it has.
    """
    objective = get_objective(objective) if isinstance(objective, str) else objective
    known = SAMPLERS[objective.family]
    name = name or DEFAULT_SAMPLERS[objective.family]
    if name not in known:
        elsewhere = any(name in samplers for samplers in SAMPLERS.values())
        problem = f"sampler {name!r} does not fit" if elsewhere else f"unknown sampler {name!r} for"
        raise UsageError(
            f"{problem} a model of objective {objective.name!r}: expected one of {', '.join(known)}"
        )
    return name, known[name]


@torch.no_grad()
def sample(
    model: Callable[..., Any],
    noise: Tensor,
    *,
    objective: str = "v",
    sampler: str | None = None,
    steps: int = 100,
    sigma_min: float = DEFAULT_SIGMA_MIN,
    sigma_max: float | None = None,
    rho: float = 1.0,
    init_data: Tensor | None = None,
    known: Tensor | None = None,
    known_mask: Tensor | None = None,
    dist_shift: DistributionShift | None = None,
    noise_source: NoiseSource | None = None,
    callback: Callback | None = None,
    **extra_args: Any,
) -> Tensor:
    """Draw latents from a model, starting at ``noise``.

    Args:
        model: ``model(x (B, C, L), t (B,), **extra_args)``, the network.
        noise: standard normal, ``(B, C, L)``.
        objective: what the network was trained for.
        sampler: a name of ``SAMPLERS``, or None for the family's default.
        steps: levels to visit; k-dpm-fast: calls of the network; k-dpm-adaptive chooses its own.
        sigma_min: the last level before 0, of samplers that walk in sigma.
        sigma_max: the first level. For samplers that walk in t, 1 is the most and larger values mean 1.
            None: 100 in sigma, 1 in t.
        rho: see :func:`schedules.polyexponential`.
        init_data: clean latents to vary, ``(B, C, L)``; they are noised to the first level.
        known: clean latents to keep parts of, ``(B, C, L)``, with ``known_mask``.
        known_mask: ``(B, 1, L)``: 1 keeps, 0 regenerates, and what is in between is kept at first; see
            :mod:`~stable_audio_tools.diffusion.inpainting`.
        dist_shift: the shift of the levels, or the one that the model was trained with, of samplers that walk
            in t. The first level stays what ``sigma_max`` says. None is the public schedule for euler, dpmpp,
            pingpong and v-ddim.
        noise_source: fresh noise of stochastic samplers; None is torch's global generator.
        callback: see ``Callback``.

    Returns:
        Clean latents ``(B, C, L)`` in float32 (float64 if the noise is), whatever the network computes in.

    Raises:
        UsageError: the sampler is unknown or the levels make no sense.
    """
    if steps < 1:
        raise UsageError(f"steps must be at least 1, found {steps}")
    law = get_objective(objective)
    name, chosen = get_sampler(sampler, law)
    noise = noise.to(torch.promote_types(noise.dtype, torch.float32))
    init_data = None if init_data is None else init_data.to(noise)
    source = GlobalNoise() if noise_source is None else noise_source
    network = _in_dtype(model, noise.dtype, extra_args)
    run = partial(chosen.run, steps=steps) if name == "k-dpm-fast" else chosen.run

    first = chosen.first_level(sigma_max)
    if chosen.walks_in == "sigma":
        levels = chosen.levels(steps, sigma_min, first, rho)
        x = noise * levels[0] + (0 if init_data is None else init_data)
        kept = _kept(known, known_mask, law, math.atan(float(levels[0])) * 2 / math.pi, x)
        if kept is not None:
            x, network = kept.start(x, kept.known + noise * levels[0]), kept.around(network)
        x = run(sigma_samplers.VDenoiser(network), x, levels, source, callback)
        return x if kept is None else kept.finish(x)

    if first <= 0:
        raise UsageError(
            f"sigma_max {sigma_max}: expected a number above 0; with init audio, it is the init noise level"
        )
    levels = _time_levels(chosen, steps, first, noise.shape[-1], dist_shift)
    x, start = noise, levels[:1].to(noise).expand(len(noise))
    if init_data is not None:
        x = law.add_noise(init_data, noise, start)
    kept = _kept(known, known_mask, law, float(levels[0]), x)
    if kept is not None:
        x, network = kept.start(x, law.add_noise(kept.known, noise, start)), kept.around(network)
    x = run(network, x, levels, source, callback)
    return x if kept is None else kept.finish(x)


def _kept(
    known: Tensor | None, mask: Tensor | None, law: Objective, first: float, x: Tensor
) -> KeptRegions | None:
    if known is None or mask is None:
        return None
    return KeptRegions(known.to(x), mask.to(x), law, first)


def _time_levels(
    chosen: Sampler, steps: int, t_max: float, length: int, dist_shift: DistributionShift | None
) -> Tensor:
    if dist_shift is None:
        return chosen.levels(steps, t_max)
    if dist_shift.of_levels:
        levels = dist_shift.shift(schedules.linear(steps, t_max), length)
        levels[0], levels[-1] = t_max, 0.0
        return levels
    start = float(dist_shift.unshift(torch.tensor(t_max, dtype=torch.float64), length))
    levels = dist_shift.shift(chosen.levels(steps, start), length)
    levels[0], levels[-1] = t_max, 0.0
    return levels


def _in_dtype(
    model: Callable[..., Any], dtype: torch.dtype, extra_args: dict[str, Any]
) -> Callable[..., Any]:
    """The network with its conditioning bound and its answers in the sampler's dtype."""

    def call(x: Tensor, t: Tensor, **more: Any) -> Any:
        answer = model(x, t, **extra_args, **more)
        if isinstance(answer, tuple):
            output, info = answer
            return output.to(dtype), {key: value.to(dtype) for key, value in info.items()}
        return answer.to(dtype)

    return call
