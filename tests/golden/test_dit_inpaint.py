"""The inpainting model: mask and masked latents beside the input."""

from __future__ import annotations

from golden_case import METADATA, GoldenCase, assert_agrees

from stable_audio_tools.inference.generation import generate_diffusion_cond_inpaint

CASE = GoldenCase("dit_inpaint")


def test_latents() -> None:
    found = generate_diffusion_cond_inpaint(
        CASE.model,
        steps=6,
        cfg_scale=4,
        conditioning_tensors=CASE.conditioning(metadata=METADATA[:1] * 2),
        batch_size=2,
        sample_size=2048,
        seed=42,
        device="cpu",
        inpaint_audio=(44100, CASE["in/inpaint_audio"]),
        inpaint_mask=CASE["in/inpaint_mask"],
        return_latents=True,
        sampler_type="euler",
    )
    assert_agrees(found, CASE["out/latents"], 1e-3)
