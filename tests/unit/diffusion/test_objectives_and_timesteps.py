"""Objectives, timestep laws, the shift, guidance and keyed noise: the identities they must satisfy."""

from __future__ import annotations

import pytest
import torch

from stable_audio_tools.diffusion.guidance import combine, drop_conditioning, negative_or_null
from stable_audio_tools.diffusion.noise import keyed_noise
from stable_audio_tools.diffusion.objectives import OBJECTIVES, get_objective
from stable_audio_tools.diffusion.timesteps import TIMESTEP_LAWS, DistributionShift, sample_timesteps
from stable_audio_tools.errors import UsageError
from stable_audio_tools.runtime.seeds import generator
from stable_audio_tools.schema.shifts import (
    DistributionShiftConfig,
    FluxShiftConfig,
    LogSNRShiftConfig,
    NoShiftConfig,
    ShiftConfig,
)


def latents(*parts: str) -> torch.Tensor:
    return keyed_noise((4, 3, 8), *parts, dtype=torch.float64)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_target_implies_the_clean_latents(name: str) -> None:
    objective = get_objective(name)
    x, noise, t = latents("x"), latents("noise"), torch.tensor([0.0, 0.3, 0.8, 1.0], dtype=torch.float64)
    x_t = objective.add_noise(x, noise, t)
    torch.testing.assert_close(objective.predicted_clean(x_t, objective.target(x, noise, t), t), x)


@pytest.mark.parametrize(
    ("name", "speed"), [("v", torch.pi / 2), ("rectified_flow", 1.0), ("rf_denoiser", 1.0)]
)
def test_the_target_is_the_velocity_of_the_path(name: str, speed: float) -> None:
    objective = get_objective(name)
    x, noise, t = latents("x"), latents("noise"), torch.full((4,), 0.37, dtype=torch.float64)
    h = 1e-5
    velocity = (objective.add_noise(x, noise, t + h) - objective.add_noise(x, noise, t - h)) / (2 * h)
    torch.testing.assert_close(objective.target(x, noise, t) * speed, velocity)


def test_an_unknown_objective_lists_the_known() -> None:
    with pytest.raises(UsageError, match="'eps': expected one of v, rectified_flow, rf_denoiser"):
        get_objective("eps")


@pytest.mark.parametrize("law", TIMESTEP_LAWS)
def test_timesteps_are_keyed_and_in_range(law: str) -> None:
    def draw(seed: int) -> torch.Tensor:
        return sample_timesteps(law, 256, generator=generator("timesteps", seed))

    first = draw(1)
    assert first.shape == (256,)
    assert first.dtype == torch.float32
    assert 0 <= float(first.min()) < float(first.max()) <= 1
    assert torch.equal(first, draw(1))
    assert not torch.equal(first, draw(2))


@pytest.mark.parametrize(
    ("law", "options", "median"),
    [
        ("uniform", {}, 0.5),
        ("logit_normal", {}, 0.5),
        ("logit_normal", {"mean": 1.0}, 0.7311),
        ("log_snr", {}, 0.7685),  # sigmoid(1.2)
        ("log_snr", {"mean_logsnr": 0.5, "std_logsnr": 0.1}, 0.3775),
        # level 1/2 between the normal cdf at logit(0.075) and 1, back through both, stretched and flipped
        ("trunc_logit_normal", {}, 0.5374),
    ],
)
def test_the_median_of_each_law(law: str, options: dict[str, float], median: float) -> None:
    drawn = sample_timesteps(law, 20_000, generator=generator("median"), options=options)
    assert float(drawn.median()) == pytest.approx(median, abs=0.01)


def test_uniform_timesteps_spread_over_a_small_batch() -> None:
    drawn = sample_timesteps("uniform", 8, generator=generator("spread"))
    assert sorted((drawn * 8).long().tolist()) == list(range(8))


def test_an_unknown_law_or_option_is_named() -> None:
    with pytest.raises(UsageError, match="unknown timestep sampler 'cosine': expected one of uniform"):
        sample_timesteps("cosine", 2, generator=generator("x"))
    with pytest.raises(UsageError, match="has no option mean; its options: mean_logsnr, std_logsnr"):
        sample_timesteps("log_snr", 2, generator=generator("x"), options={"mean": 1.0})


@pytest.mark.parametrize("sine", [False, True])
@pytest.mark.parametrize("length", [64, 256, 1024, 10_000])
def test_the_shift_is_invertible_rising_and_keeps_the_ends(sine: bool, length: int) -> None:
    shift = DistributionShift(DistributionShiftConfig(use_sine=sine))
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    shifted = shift.shift(t, length)
    assert float(shifted[0]) == 0
    assert float(shifted[-1]) == pytest.approx(1)
    assert bool((shifted.diff() > 0).all())
    torch.testing.assert_close(shift.unshift(shifted, length), t, atol=1e-6, rtol=0)


def test_longer_sequences_get_more_noise() -> None:
    t = torch.tensor(0.5)
    shift = DistributionShift()
    values = [float(shift.shift(t, length)) for length in (256, 1024, 4096)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(1 / (1 + torch.e**-0.5))


def test_guidance_of_one_is_the_conditional_answer_and_of_zero_the_other() -> None:
    conditional, unconditional = latents("a"), latents("b")
    torch.testing.assert_close(combine(conditional, unconditional, 1.0), conditional)
    torch.testing.assert_close(combine(conditional, unconditional, 0.0), unconditional)


def test_full_rescaling_gives_the_spread_of_the_conditional_answer() -> None:
    conditional, unconditional = latents("a"), latents("b")
    rescaled = combine(conditional, unconditional, 7.0, scale_phi=1.0)
    torch.testing.assert_close(rescaled.std(dim=1), conditional.std(dim=1))


def test_masked_tokens_of_a_negative_prompt_are_null() -> None:
    cond, negative = latents("c"), latents("n")
    mask = torch.tensor([[1, 0, 1]] * 4)
    found = negative_or_null(cond, negative, mask)
    assert torch.equal(found[:, 1], torch.zeros(4, 8, dtype=torch.float64))
    assert torch.equal(found[:, 0], negative[:, 0])
    assert not negative_or_null(cond).any()


def test_conditioning_is_dropped_whole_at_the_given_rate() -> None:
    cond = torch.ones(4000, 2, 3)
    dropped = drop_conditioning(cond, 0.1, generator("dropout"))
    per_clip = dropped.flatten(1).sum(dim=1)
    assert set(per_clip.tolist()) == {0.0, 6.0}
    assert float((per_clip == 0).float().mean()) == pytest.approx(0.1, abs=0.02)
    assert torch.equal(dropped, drop_conditioning(cond, 0.1, generator("dropout")))


def test_keyed_noise_depends_on_its_key_alone() -> None:
    torch.manual_seed(0)
    first = keyed_noise((2, 3), "noise", 7, 1)
    torch.manual_seed(1)
    assert torch.equal(first, keyed_noise((2, 3), "noise", 7, 1))
    assert not torch.equal(first, keyed_noise((2, 3), "noise", 7, 2))
    torch.testing.assert_close(keyed_noise((2, 3), "noise", 7, 1, dtype=torch.float16), first.half())


SHIFTS: list[ShiftConfig] = [
    DistributionShiftConfig(),
    DistributionShiftConfig(use_sine=True),
    FluxShiftConfig(type="flux", alpha_min=1.5, alpha_max=6.93),
    LogSNRShiftConfig(type="logsnr"),
    NoShiftConfig(type="none"),
]


@pytest.mark.parametrize("config", SHIFTS, ids=lambda config: config.type)
@pytest.mark.parametrize("length", [64, 1024, 8000])
def test_every_shift_rises_keeps_its_ends_and_can_be_undone(config: ShiftConfig, length: int) -> None:
    shift = DistributionShift(config)
    t = torch.linspace(0, 1, 33, dtype=torch.float64)
    shifted = shift.shift(t, length)
    assert shifted[0] == 0
    assert float(shifted[-1]) == pytest.approx(1)
    assert (shifted.diff() > 0).all()
    torch.testing.assert_close(shift.unshift(shifted[1:-1], length), t[1:-1], atol=1e-9, rtol=0)


def test_a_flux_shift_is_a_power_of_the_length_between_its_ends() -> None:
    shift = DistributionShift(FluxShiftConfig(type="flux", alpha_min=2.0, alpha_max=8.0))
    half = torch.tensor(0.5, dtype=torch.float64)
    shifted = [shift.shift(half, length) for length in (9, 256, 1024, 4096)]
    odds = [float(t / (1 - t)) for t in shifted]
    assert odds == pytest.approx([2.0, 2.0, 4.0, 8.0])


def test_a_log_snr_shift_spaces_times_evenly_in_log_snr_and_starts_lower_for_longer_clips() -> None:
    shift = DistributionShift(LogSNRShiftConfig(type="logsnr"))
    t = torch.linspace(0, 1, 9, dtype=torch.float64)[1:-1]
    log_snr = torch.logit(1 - shift.shift(t, 4000))
    torch.testing.assert_close(log_snr.diff(), torch.full((6,), -(2.0 + 7.2) / 8, dtype=torch.float64))
