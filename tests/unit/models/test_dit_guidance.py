"""Guidance with its limits and projections, padding, and what Stable Audio 3 has in its transformer."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from stable_audio_tools.diffusion.guidance import combine, limit_norm, project_out
from stable_audio_tools.diffusion.timesteps import normalized_log_snr
from stable_audio_tools.models.dit import DiffusionTransformer
from stable_audio_tools.schema.networks import DiTConfig

BASE: dict[str, Any] = {
    "io_channels": 4,
    "embed_dim": 64,
    "depth": 2,
    "num_heads": 2,
    "cond_token_dim": 32,
    "global_cond_dim": 24,
    "project_cond_tokens": False,
}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(objective: str = "v", **options: Any) -> DiffusionTransformer:
    model = DiffusionTransformer(DiTConfig(**{**BASE, **options}), objective)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model.eval().requires_grad_(False)


def inputs(batch: int = 2, length: int = 16) -> dict[str, Tensor]:
    return {
        "x": randn(batch, 4, length),
        "t": torch.linspace(0.2, 0.9, batch),
        "cross_attn_cond": randn(batch, 5, 32, seed=1),
        "global_embed": randn(batch, 24, seed=2),
    }


@pytest.mark.parametrize("objective", ["v", "rectified_flow"])
@pytest.mark.parametrize("apg", [0.3, 1.0])
def test_projected_guidance_adds_nothing_along_the_clean_latents(objective: str, apg: float) -> None:
    model, whole = make(objective), inputs()
    conditional = model(**whole)
    unconditional = model(**{**whole, "cross_attn_cond": torch.zeros(2, 5, 32)})
    found = model(**whole, cfg_scale=6.0, apg_scale=apg)
    law = model.objective
    clean, other, guided = (
        law.predicted_clean(whole["x"], answer, whole["t"]) for answer in (conditional, unconditional, found)
    )
    direction = clean / torch.linalg.vector_norm(clean, dim=(1, 2), keepdim=True)

    def along(x: Tensor) -> Tensor:
        return (x * direction).sum(dim=(1, 2))

    expected = 5 * (1 - apg) * along(clean - other)
    torch.testing.assert_close(along(guided - clean), expected, atol=1e-4, rtol=1e-3)
    across = (clean - other) - along(clean - other).view(-1, 1, 1) * direction
    moved = (guided - clean) - along(guided - clean).view(-1, 1, 1) * direction
    torch.testing.assert_close(moved, 5 * across, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("objective", ["v", "rectified_flow"])
def test_the_norm_of_guidance_is_limited_clip_by_clip(objective: str) -> None:
    model, whole = make(objective), inputs()
    conditional, far = model(**whole), model(**whole, cfg_scale=6.0)
    free = model(**whole, cfg_scale=6.0, cfg_norm_threshold=1e6)
    torch.testing.assert_close(free, far, atol=1e-5, rtol=1e-4)
    found = model(**whole, cfg_scale=6.0, cfg_norm_threshold=0.01)
    law = model.objective
    step = law.predicted_clean(whole["x"], found, whole["t"]) - law.predicted_clean(
        whole["x"], conditional, whole["t"]
    )
    norms = torch.linalg.vector_norm(step, dim=(1, 2))
    torch.testing.assert_close(norms, torch.full((2,), 5 * 0.01), atol=1e-4, rtol=1e-2)


def test_gradients_of_guidance_are_right() -> None:
    a, b, c = (randn(2, 3, 4, seed=seed).double().requires_grad_() for seed in range(3))
    assert torch.autograd.gradcheck(lambda a, b: combine(a, b, 4.0, 0.6), (a, b))
    assert torch.autograd.gradcheck(lambda a, c: project_out(a, c, 0.7), (a, c))
    assert torch.autograd.gradcheck(lambda a: limit_norm(a, 0.5), (a,))


def test_frames_of_padding_do_not_count_in_guidance() -> None:
    real = torch.arange(6) < torch.tensor([6, 4])[:, None]
    difference, clean = randn(2, 3, 6), randn(2, 3, 6, seed=1)
    short = project_out(difference[1:, :, :4], clean[1:, :, :4])
    padded = project_out(difference, clean, padding_mask=real)
    torch.testing.assert_close(padded[1:, :, :4], short)
    assert not padded[1, :, 4:].any()
    limited = limit_norm(difference, 0.5, real)
    torch.testing.assert_close(limited[1:, :, :4], limit_norm(difference[1:, :, :4], 0.5))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"global_cond_type": "adaLN", "num_memory_tokens": 3},
        {"conformer": True},
        {"sliding_window": (3, 3)},
        {"patch_size": 2},
        {"attn_kwargs": {"feat_scale": True}},
    ],
)
def test_padded_frames_change_no_other(options: dict[str, Any]) -> None:
    model, whole = make(**options), inputs()
    real = torch.arange(16) < torch.tensor([16, 10])[:, None]
    noised = {**whole, "x": torch.where(real.unsqueeze(1), whole["x"], 5 * randn(2, 4, 16, seed=7))}
    guided = {"cfg_scale": 3.0, "apg_scale": 1.0, "padding_mask": real}
    shown = real.unsqueeze(1).expand(2, 4, 16)
    found = model(**whole, **guided)
    torch.testing.assert_close(model(**noised, **guided)[shown], found[shown], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        model(**whole, padding_mask=torch.ones(2, 16, dtype=torch.bool)), model(**whole), atol=1e-5, rtol=1e-4
    )


def test_log_snr_features_run_from_0_to_1_and_stay_finite() -> None:
    t = torch.tensor([0.0, 1e-9, 0.01, 0.5, 0.99, 1.0])
    found = normalized_log_snr(t)
    assert found[0] == 0
    assert found[-1] == 1
    assert (found.diff() >= 0).all()
    assert float(found[3]) == pytest.approx(5 / 17)
    assert torch.equal(normalized_log_snr(t.half())[[0, -1]], torch.tensor([0.0, 1.0]))


def test_stable_audio_3_sizes_build_on_meta() -> None:
    shared: dict[str, Any] = {
        "io_channels": 256,
        "cond_token_dim": 768,
        "global_cond_dim": 768,
        "norm_type": "rms_norm",
        "num_memory_tokens": 64,
        "global_cond_type": "adaLN",
        "timestep_features_type": "expo",
        "local_add_cond_dim": 257,
    }
    small = DiTConfig(**shared, embed_dim=1024, depth=20, num_heads=16, attn_kwargs={"qk_norm": "rms"})
    medium = DiTConfig(
        **shared,
        embed_dim=1536,
        depth=24,
        num_heads=24,
        attn_kwargs={"qk_norm": "rms", "differential": True},
    )
    counts = []
    for config in (small, medium):
        with torch.device("meta"):
            model = DiffusionTransformer(config, "rectified_flow")
        counts.append(sum(parameter.numel() for parameter in model.parameters()) / 1e6)
    assert 400 < counts[0] < 500
    assert 1300 < counts[1] < 1700


def test_a_transformer_can_be_copied_and_pickled() -> None:
    model, whole = make(), inputs()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(**whole), model(**whole))
