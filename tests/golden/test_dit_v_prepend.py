"""The v model with a prepended global token: forward, guidance, nine samplers, init audio, decoded audio."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_case import GoldenCase, assert_agrees

from stable_audio_tools.inference.generation import generate_diffusion_cond

CASE = GoldenCase("dit_v_prepend")
GENERATE = {"steps": 8, "cfg_scale": 7, "batch_size": 2, "sample_size": 2048, "seed": 42, "device": "cpu"}
SAMPLERS = CASE.names("out/latents/")


def sigmas(sampler: str) -> dict[str, float]:
    return {} if sampler == "v-ddim" else {"sigma_min": 0.3, "sigma_max": 500}


def generate(**options: Any) -> torch.Tensor:
    return generate_diffusion_cond(
        CASE.model, **GENERATE, conditioning_tensors=CASE.conditioning(), **options
    )


def test_there_are_nine_samplers() -> None:
    assert len(SAMPLERS) == 9


@pytest.mark.parametrize(
    ("output", "guidance", "negative"),
    [
        ("forward", {}, False),
        ("forward_cfg7", {"cfg_scale": 7.0}, False),
        ("forward_cfg7_rescale", {"cfg_scale": 7.0, "scale_phi": 0.6}, False),
        ("forward_cfg5_negative", {"cfg_scale": 5.0}, True),
    ],
)
def test_forward(output: str, guidance: dict[str, float], negative: bool) -> None:
    inputs = CASE.model.get_conditioning_inputs(CASE.conditioning())
    if negative:
        inputs |= CASE.model.get_conditioning_inputs(CASE.conditioning("negative_prompt"), negative=True)
    with torch.no_grad():
        found = CASE.model.model(CASE["in/x"], CASE["in/t"], **inputs, **guidance)
    assert_agrees(found, CASE[f"out/{output}"])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_latents(sampler: str) -> None:
    found = generate(sampler_type=sampler, return_latents=True, **sigmas(sampler))
    assert_agrees(found, CASE[f"out/latents/{sampler}"], 1e-3)


def test_audio() -> None:
    assert_agrees(generate(sampler_type="dpmpp-3m-sde", **sigmas("")), CASE["out/audio"], 1e-3)


def test_variation_of_init_audio() -> None:
    # The case does not say how it was sampled; these settings are the ones that give its numbers.
    found = generate(
        sampler_type="dpmpp-2m",
        sigma_min=0.3,
        init_audio=(44100, CASE["in/init_audio"]),
        init_noise_level=5.0,
        return_latents=True,
    )
    assert_agrees(found, CASE["out/latents_init_audio"], 1e-3)
