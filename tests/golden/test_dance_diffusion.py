"""The U-Net of Dance Diffusion: forward, and a clip by DDIM from a seed."""

from __future__ import annotations

import torch
from golden_case import GoldenCase, assert_agrees

from stable_audio_tools.inference.unconditional import generate_diffusion_uncond

CASE = GoldenCase("dance_diffusion")


def test_forward() -> None:
    with torch.no_grad():
        assert_agrees(CASE.model(CASE["in/x"], CASE["in/t"]), CASE["out/forward"])


def test_a_seed_gives_the_clip_of_the_public_package() -> None:
    found = generate_diffusion_uncond(
        CASE.model, steps=6, batch_size=2, sample_size=1024, seed=42, device="cpu", sampler_type="v-ddim"
    )
    assert_agrees(found, CASE["out/generate_v-ddim_seed42"], 1e-3)
