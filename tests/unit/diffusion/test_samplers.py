"""Samplers against a Gaussian whose trajectories are known in closed form."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stable_audio_tools.diffusion.dpm_solver import dpm_fast_orders
from stable_audio_tools.diffusion.noise import PerClipNoise
from stable_audio_tools.diffusion.objectives import get_objective
from stable_audio_tools.diffusion.samplers import SAMPLERS, get_sampler, sample
from stable_audio_tools.diffusion.schedules import log_snr_grid
from stable_audio_tools.diffusion.sigma_samplers import multistep_weights
from stable_audio_tools.diffusion.timesteps import DistributionShift
from stable_audio_tools.errors import UsageError
from stable_audio_tools.schema.shifts import LogSNRShiftConfig

MEAN, STD = 0.7, 0.4  # of the data
SIGMA_MIN, SIGMA_MAX = 0.05, 50.0
V_ODE = ["dpmpp-2m", "k-heun", "k-lms", "k-dpm-2", "k-dpm-fast"]
V_SDE = ["dpmpp-2m-sde", "dpmpp-3m-sde", "k-dpmpp-2s-ancestral"]
FLOW_ODE = ["euler", "euler-cfgpp", "rk4", "dpmpp"]
FAMILIES = [("v", name) for name in SAMPLERS["v"]] + [
    ("rectified_flow", name) for name in SAMPLERS["rectified_flow"]
]


def gaussian_clean(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The mean of clean data given ``x = alpha clean + sigma noise``."""
    return MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)


def gaussian_noise(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The mean of the noise given the same."""
    return sigma / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)


def v_model(x: Tensor, t: Tensor, return_info: bool = False) -> Any:
    alpha, sigma = torch.cos(t * math.pi / 2).view(-1, 1, 1), torch.sin(t * math.pi / 2).view(-1, 1, 1)
    v = alpha * gaussian_noise(x, alpha, sigma) - sigma * gaussian_clean(x, alpha, sigma)
    return (v, {}) if return_info else v


def flow_model(x: Tensor, t: Tensor, return_info: bool = False) -> Any:
    t = t.view(-1, 1, 1)
    velocity = gaussian_noise(x, 1 - t, t) - gaussian_clean(x, 1 - t, t)
    return (velocity, {}) if return_info else velocity


MODELS: dict[str, Callable[..., Tensor]] = {"v": v_model, "rectified_flow": flow_model}


def noise(batch: int = 3, length: int = 5) -> Tensor:
    return torch.randn(batch, 2, length, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def exact(start: Tensor, sigma_from: float, sigma_to: float) -> Tensor:
    """Where the probability-flow ODE takes ``start`` in the variance-exploding picture."""
    spread = math.sqrt((STD**2 + sigma_to**2) / (STD**2 + sigma_from**2))
    return MEAN + (start - MEAN) * spread


def v_error(name: str, steps: int) -> float:
    ended = sample(v_model, noise(), sampler=name, steps=steps, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX)
    reached = exact(noise() * SIGMA_MAX, SIGMA_MAX, SIGMA_MIN)
    if name == "k-lms":  # extrapolates to 0 in its last step
        reached = exact(noise() * SIGMA_MAX, SIGMA_MAX, 0.0)
    elif name != "k-dpm-fast":  # which ends at sigma_min; the others denoise once more
        reached = gaussian_clean(reached, torch.tensor(1.0), torch.tensor(SIGMA_MIN))
    return float((ended - reached).abs().max())


@pytest.mark.parametrize("name", V_ODE)
def test_v_ode_samplers_converge_at_second_order_or_better(name: str) -> None:
    coarse, fine = v_error(name, 60), v_error(name, 120)
    assert fine < 2e-3
    assert coarse / fine > 3.2  # 4 is second order


def test_adaptive_dpm_solver_meets_its_tolerance() -> None:
    options = {"sampler": "k-dpm-adaptive", "sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX}
    ended = sample(v_model, noise(), **options)
    torch.testing.assert_close(ended, exact(noise() * SIGMA_MAX, SIGMA_MAX, SIGMA_MIN), atol=0.05, rtol=0)


@pytest.mark.parametrize("name", ["v-ddim", "v-ddim-cfgpp"])
def test_ddim_converges(name: str) -> None:
    # From t = 1, where there is no signal, the exact map takes noise z to mean + std z.
    errors = [
        float((sample(v_model, noise(), sampler=name, steps=steps) - (MEAN + STD * noise())).abs().max())
        for steps in (50, 200)
    ]
    assert errors[1] < 0.02
    assert errors[0] / errors[1] > 3  # first order


@pytest.mark.parametrize("name", FLOW_ODE)
def test_flow_samplers_converge(name: str) -> None:
    def error(steps: int) -> float:
        found = sample(flow_model, noise(), objective="rectified_flow", sampler=name, steps=steps)
        if name == "rk4":
            return float((found - (MEAN + STD * noise())).abs().max())
        # The log-SNR grid jumps from t of 0.1 or so to 0, where the answer is the mean of the data.
        t = log_snr_grid(steps, 1.0)[-2].double()
        spread = ((1 - t) ** 2 * STD**2 + t**2).sqrt()
        reached = (1 - t) * MEAN + spread * noise()
        return float((found - gaussian_clean(reached, 1 - t, t)).abs().max())

    order, steps = {"euler": (1, 50), "euler-cfgpp": (1, 50), "dpmpp": (2, 20), "rk4": (4, 8)}[name]
    assert error(100) < 0.02
    assert error(steps) / error(2 * steps) > 0.8 * 2**order


@pytest.mark.parametrize("name", V_SDE)
def test_stochastic_samplers_keep_the_distribution(name: str) -> None:
    torch.manual_seed(0)
    start = torch.randn(1, 1, 10_000, dtype=torch.float64)
    found = sample(v_model, start, sampler=name, steps=40, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX)
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(found.std()) == pytest.approx(STD, abs=0.02)


def test_pingpong_keeps_the_mean_of_the_data() -> None:
    torch.manual_seed(0)
    start = torch.randn(1, 1, 10_000, dtype=torch.float64)
    found = sample(flow_model, start, objective="rectified_flow", sampler="pingpong", steps=8)
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.02)


@pytest.mark.parametrize(("objective", "name"), FAMILIES)
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_any_number_of_steps_gives_finite_latents(objective: str, name: str, steps: int) -> None:
    found = sample(MODELS[objective], noise(), objective=objective, sampler=name, steps=steps)
    assert found.shape == noise().shape
    assert torch.isfinite(found).all()


@pytest.mark.parametrize(("objective", "name"), FAMILIES)
def test_a_clip_is_the_same_alone_and_in_a_batch(objective: str, name: str) -> None:
    if not SAMPLERS[objective][name].batch_independent:
        pytest.skip("the step size of this sampler is shared by the batch")
    seeds = [11, 12, 13]

    def run(chosen: list[int]) -> Tensor:
        source = PerClipNoise(chosen)
        start = source.initial((2, 16))
        return sample(
            MODELS[objective], start, objective=objective, sampler=name, steps=6, noise_source=source
        )

    together = run(seeds)
    for row, seed in enumerate(seeds):
        torch.testing.assert_close(run([seed])[0], together[row], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["dpmpp-2m-sde", "dpmpp-3m-sde", "k-dpmpp-2s-ancestral"])
def test_per_clip_noise_is_what_the_global_generator_gives(name: str) -> None:
    source = PerClipNoise([2**40 + 3])
    keyed = sample(v_model, source.initial((2, 16)), sampler=name, steps=5, noise_source=source)
    torch.manual_seed(2**40 + 3)
    torch.testing.assert_close(sample(v_model, torch.randn(1, 2, 16), sampler=name, steps=5), keyed)


@pytest.mark.parametrize(("objective", "name"), FAMILIES)
def test_callback_sees_every_step_and_the_denoised_latents(objective: str, name: str) -> None:
    seen: list[int] = []

    def callback(info: dict[str, Any]) -> None:
        seen.append(info["i"])
        assert isinstance(info["denoised"], Tensor)
        assert torch.isfinite(info["denoised"]).all()
        assert float(info["sigma"]) > 0

    sample(MODELS[objective], noise(), objective=objective, sampler=name, steps=6, callback=callback)
    assert seen == list(range(len(seen)))
    expected = {"k-dpm-fast": 3, "k-dpm-adaptive": len(seen)}.get(name, 6)
    assert len(seen) == expected


CALLS = {
    "k-heun": 11,  # two a step, one in the last, which is Euler's
    "k-dpm-2": 11,
    "k-dpmpp-2s-ancestral": 11,
    "rk4": 24,
}


@pytest.mark.parametrize(("objective", "name"), [pair for pair in FAMILIES if pair[1] != "k-dpm-adaptive"])
def test_six_steps_call_the_network_as_often_as_the_algorithm_says(objective: str, name: str) -> None:
    times: list[float] = []

    def counting(x: Tensor, t: Tensor, **options: Any) -> Any:
        times.append(float(t[0]))
        return MODELS[objective](x, t, **options)

    sample(counting, noise(), objective=objective, sampler=name, steps=6)
    assert len(times) == CALLS.get(name, 6)
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize(("objective", "name"), [("v", "v-ddim-cfgpp"), ("rectified_flow", "euler-cfgpp")])
def test_cfgpp_puts_the_unguided_noise_on_the_guided_latents(objective: str, name: str) -> None:
    """One step from a level, written out from algorithm 1 of the paper."""
    law = get_objective(objective)
    seen: list[dict[str, Any]] = []

    def network(x: Tensor, t: Tensor, return_info: bool = False) -> Any:
        free = MODELS[objective](x, t)
        guided = free + 0.3 * torch.tanh(x)
        return (guided, {"uncond_output": free}) if return_info else guided

    sample(network, noise(), objective=objective, sampler=name, steps=5, callback=seen.append)
    for now, after in itertools.pairwise(seen):
        t, t_next = (info["t"].double().expand(3) for info in (now, after))
        guided, info = network(now["x"], t, return_info=True)
        clean = law.predicted_clean(now["x"], guided, t)
        free = law.predicted_clean(now["x"], info["uncond_output"], t)
        alpha, sigma = (value.view(-1, 1, 1) for value in law.alpha_sigma(t))
        expected = law.add_noise(clean, (now["x"] - alpha * free) / sigma, t_next)
        torch.testing.assert_close(after["x"], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("evaluations", range(1, 20))
def test_dpm_fast_spends_exactly_its_evaluations(evaluations: int) -> None:
    calls = 0

    def counting(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return v_model(x, t)

    sample(counting, noise(), sampler="k-dpm-fast", steps=evaluations)
    assert calls == evaluations == sum(dpm_fast_orders(evaluations))


@pytest.mark.parametrize(("objective", "level"), [("v", 1e-4), ("rectified_flow", 1e-4)])
def test_a_whisper_of_noise_leaves_init_data_nearly_alone(objective: str, level: float) -> None:
    init = MEAN + STD * noise()
    name = {"v": "v-ddim", "rectified_flow": "euler"}[objective]
    found = sample(
        MODELS[objective],
        noise(),
        objective=objective,
        sampler=name,
        steps=5,
        sigma_max=level,
        init_data=init,
    )
    torch.testing.assert_close(found, init, atol=1e-3, rtol=0)


def test_a_shifted_schedule_starts_where_it_is_told_and_only_rises_in_noise() -> None:
    seen: list[float] = []
    shift = DistributionShift()
    options = {"objective": "rectified_flow", "steps": 10, "init_data": noise(), "dist_shift": shift}

    def levels(sigma_max: float, **more: Any) -> list[float]:
        seen.clear()
        sample(
            flow_model,
            noise(),
            sigma_max=sigma_max,
            callback=lambda i: seen.append(float(i["sigma"])),
            **{**options, **more},
        )
        return list(seen)

    for sigma_max in (1.0, 0.6, 0.1):
        shifted, public = levels(sigma_max), levels(sigma_max, dist_shift=None)
        assert shifted[0] == pytest.approx(sigma_max)
        assert public[0] == pytest.approx(sigma_max)
        assert shifted == sorted(shifted, reverse=True)
        assert public == sorted(public, reverse=True)
        assert all(a >= b - 1e-6 for a, b in zip(shifted, public, strict=True))
        assert shifted[5] > public[5]


@pytest.mark.parametrize("sigma_max", [1.0, 0.5])
def test_a_shift_of_levels_takes_the_place_of_the_samplers_own(sigma_max: float) -> None:
    shift = DistributionShift(LogSNRShiftConfig(type="logsnr", rate=0), of_levels=True)
    seen: list[float] = []
    options = {"objective": "rectified_flow", "steps": 6, "dist_shift": shift, "sigma_max": sigma_max}
    sample(flow_model, noise(), **options, callback=lambda info: seen.append(float(info["t"])))
    expected = shift.shift(torch.linspace(sigma_max, 0, 7), noise().shape[-1])[:-1].tolist()
    assert seen == pytest.approx([sigma_max, *expected[1:]])


def test_half_precision_models_are_sampled_in_float32() -> None:
    def half(x: Tensor, t: Tensor) -> Tensor:
        return v_model(x, t).half()

    found = sample(
        half, noise().half(), sampler="dpmpp-2m", steps=4, init_data=noise().float(), sigma_max=5.0
    )
    assert found.dtype == torch.float32


def test_a_broken_network_ends_the_adaptive_solver() -> None:
    found = sample(lambda x, t: x * math.nan, noise(), sampler="k-dpm-adaptive")
    assert not torch.isfinite(found).any()


def test_the_multistep_weights_integrate_cubics_exactly() -> None:
    nodes = np.array([3.0, 3.6, 4.5, 7.0])
    cubic = np.polynomial.Polynomial([1.0, -2.0, 0.5, 0.3])
    weights = multistep_weights(nodes, 3.0, 2.2)
    primitive = cubic.integ()
    assert float(weights @ cubic(nodes)) == pytest.approx(float(primitive(2.2) - primitive(3.0)))


def test_unknown_and_misplaced_samplers_are_named_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown sampler 'eular'.*euler, euler-cfgpp, rk4, dpmpp"):
        get_sampler("eular", "rectified_flow")
    with pytest.raises(
        UsageError, match=r"'dpmpp-3m-sde' does not fit a model of objective 'rectified_flow'"
    ):
        get_sampler("dpmpp-3m-sde", "rectified_flow")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"sigma_min": 0.3, "sigma_max": 0.2}, "0 < sigma_min < sigma_max"),
        ({"sampler": "v-ddim", "sigma_max": 0.0}, "above 0"),
    ],
)
def test_levels_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sample(v_model, noise(), **options)
