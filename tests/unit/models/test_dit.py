"""The diffusion transformer: every option builds, has the public keys, and keeps clips apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

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
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "adaLN": {"global_cond_type": "adaLN"},
    "patches": {"patch_size": 4},
    "memory": {"num_memory_tokens": 3},
    "l2": {"attn_kwargs": {"qk_norm": "l2"}},
    "dyt": {"attn_kwargs": {"qk_norm": "dyt"}},
    "differential": {"attn_kwargs": {"differential": True, "qk_norm": "ln"}},
    "conformer": {"conformer": True, "layer_scale": True, "global_cond_type": "adaLN"},
    "sinusoidal": {"use_sinusoidal_emb": True, "rotary_pos_emb": False},
    "absolute": {"use_abs_pos_emb": True, "abs_pos_emb_max_length": 50, "num_memory_tokens": 2},
    "input_concat": {"input_concat_dim": 5},
    "prepend": {"prepend_cond_dim": 8, "global_cond_type": "adaLN"},
    "time beside": {"timestep_cond_type": "input_concat", "timestep_embed_dim": 6, "global_cond_dim": 0},
    "projected": {"project_cond_tokens": True},
    "window": {"sliding_window": (4, 4)},
    "causal": {"causal": True},
    "bare": {"remove_norms": True, "zero_init_branch_outputs": False},
    "stable audio 3": {
        "norm_type": "rms_norm",
        "attn_kwargs": {"qk_norm": "rms", "differential": True},
        "num_memory_tokens": 4,
        "global_cond_type": "adaLN",
        "timestep_features_type": "expo",
        "timestep_features_dim": 32,
        "timestep_features_logsnr": True,
        "local_add_cond_dim": 5,
    },
    "early context": {"final_cross_attn_ix": 0},
    "conv": {
        "ff_kwargs": {"use_conv": True, "glu": False},
        "norm_kwargs": {"bias": True, "force_fp32": True},
    },
}


def make(objective: str = "v", **options: Any) -> DiffusionTransformer:
    """A model whose every weight is random: fresh ones answer 0."""
    model = DiffusionTransformer(DiTConfig(**{**BASE, **options}), objective)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model.eval().requires_grad_(False)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(model: DiffusionTransformer, batch: int = 3, length: int = 16) -> dict[str, Tensor]:
    config = model.config
    found = {
        "x": randn(batch, 4, length),
        "t": torch.linspace(0.1, 0.9, batch),
        "cross_attn_cond": randn(batch, 5, 32, seed=1),
    }
    if config.global_cond_dim:
        found["global_embed"] = randn(batch, config.global_cond_dim, seed=2)
    if config.prepend_cond_dim:
        found["prepend_cond"] = randn(batch, 2, config.prepend_cond_dim, seed=3)
    if config.local_add_cond_dim:
        found["local_add_cond"] = randn(batch, config.local_add_cond_dim, length, seed=5)
    if config.input_concat_dim:
        found["input_concat_cond"] = randn(batch, config.input_concat_dim, length, seed=4)
    return found


@pytest.mark.parametrize("name", OPTIONS)
def test_a_clip_is_the_same_alone_and_in_a_batch(name: str) -> None:
    model = make(**OPTIONS[name])
    whole = inputs(model)
    together = model(**whole, cfg_scale=3.0, scale_phi=0.4, cfg_interval=(0.3, 0.9))
    assert together.shape == (3, 4, 16)
    for row in range(3):
        alone = {key: value[row : row + 1] for key, value in whole.items()}
        found = model(**alone, cfg_scale=3.0, scale_phi=0.4, cfg_interval=(0.3, 0.9))
        torch.testing.assert_close(found[0], together[row], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_input_matters(name: str) -> None:
    model = make(**OPTIONS[name])
    whole = inputs(model)
    before = model(**whole)
    for key in whole:
        changed = {**whole, key: whole[key] * 0.5}
        assert not torch.allclose(model(**changed), before, atol=1e-6), key


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({"num_memory_tokens": 3}, {"transformer.memory_tokens": (3, 64)}),
        (
            {"global_cond_type": "adaLN"},
            {
                "transformer.global_cond_embedder.0.weight": (64, 64),
                "transformer.global_cond_embedder.2.bias": (384,),
                "transformer.layers.1.to_scale_shift_gate": (384,),
            },
        ),
        (
            {"attn_kwargs": {"differential": True}},
            {
                "transformer.layers.0.self_attn.to_qkv.weight": (320, 64),
                "transformer.layers.0.cross_attn.to_q.weight": (128, 64),
                "transformer.layers.0.cross_attn.to_kv.weight": (96, 32),
            },
        ),
        (
            {"attn_kwargs": {"qk_norm": "dyt", "feat_scale": True}},
            {
                "transformer.layers.0.self_attn.q_norm.alpha": (1,),
                "transformer.layers.0.cross_attn.k_norm.gamma": (32,),
                "transformer.layers.0.self_attn.lambda_dc": (64,),
            },
        ),
        (
            {"conformer": True, "layer_scale": True},
            {
                "transformer.layers.0.conformer.in_norm.gamma": (64,),
                "transformer.layers.0.conformer.glu.proj.weight": (128, 64),
                "transformer.layers.0.conformer.depthwise_conv.weight": (64, 1, 17),
                "transformer.layers.0.conformer.pointwise_conv_2.weight": (64, 64, 1),
                "transformer.layers.0.conformer_scale.scale": (64,),
                "transformer.layers.0.self_attn_scale.scale": (64,),
                "transformer.layers.0.cross_attn_scale.scale": (64,),
                "transformer.layers.0.ff_scale.scale": (64,),
            },
        ),
        ({"use_sinusoidal_emb": True}, {"transformer.pos_emb.scale": (1,)}),
        ({"use_abs_pos_emb": True}, {"transformer.pos_emb.emb.weight": (10_000, 64)}),
        (
            {"input_concat_dim": 5, "patch_size": 2},
            {
                "preprocess_conv.weight": (9, 9, 1),
                "postprocess_conv.weight": (4, 4, 1),
                "transformer.project_in.weight": (64, 18),
                "transformer.project_out.weight": (8, 64),
            },
        ),
        ({"remove_norms": True}, {"transformer.layers.0.pre_norm.alpha": (1,)}),
        ({"norm_type": "dyt"}, {"transformer.layers.0.ff_norm.beta": (64,)}),
        (
            {"local_add_cond_dim": 5},
            {
                "transformer.layers.1.to_local_embed.0.weight": (64, 5),
                "transformer.layers.1.to_local_embed.2.bias": (64,),
            },
        ),
        (
            {"prepend_cond_dim": 8},
            {"to_prepend_embed.0.weight": (64, 8), "to_prepend_embed.2.weight": (64, 64)},
        ),
        (
            {"timestep_cond_type": "input_concat", "timestep_embed_dim": 6},
            {"to_timestep_embed.2.weight": (6, 6), "preprocess_conv.weight": (10, 10, 1)},
        ),
        (
            {"project_cond_tokens": True},
            {"to_cond_embed.0.weight": (64, 32), "to_cond_embed.2.weight": (64, 64)},
        ),
    ],
)
def test_options_have_the_public_keys(options: dict[str, Any], keys: dict[str, tuple[int, ...]]) -> None:
    state = DiffusionTransformer(DiTConfig(**{**BASE, **options})).state_dict()
    assert {key: tuple(state[key].shape) for key in keys if key in state} == keys


def test_fresh_weights_pass_the_input_through_no_branch() -> None:
    model = DiffusionTransformer(DiTConfig(**BASE))
    for layer in model.transformer.layers:
        assert not layer.self_attn.to_out.weight.any()
        assert not layer.cross_attn.to_out.weight.any()
        assert not layer.ff.ff[2].weight.any()
    assert not model.preprocess_conv.weight.any()
    assert not model.postprocess_conv.weight.any()


def test_patches_group_neighbouring_frames() -> None:
    model = make(patch_size=2)
    x = torch.arange(8.0).reshape(1, 2, 4)
    tokens = model._patch(x)
    assert tokens.tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7]]]
    torch.testing.assert_close(model._unpatch(tokens), x)


def test_a_length_that_patches_do_not_divide_is_kept() -> None:
    model = make(patch_size=4)
    assert model(**inputs(model, length=13)).shape == (3, 4, 13)


def test_guidance_is_two_passes_and_their_combination() -> None:
    model = make()
    whole = inputs(model)
    conditional = model(**whole)
    unconditional = model(**{**whole, "cross_attn_cond": torch.zeros(3, 5, 32)})
    found, info = model(**whole, cfg_scale=5.0, return_info=True)
    torch.testing.assert_close(info["uncond_output"], unconditional, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found, unconditional + 5 * (conditional - unconditional), atol=1e-4, rtol=1e-4)


def test_a_negative_prompt_equal_to_the_prompt_undoes_guidance() -> None:
    model = make()
    whole = inputs(model)
    found = model(**whole, cfg_scale=5.0, negative_cross_attn_cond=whole["cross_attn_cond"])
    torch.testing.assert_close(found, model(**whole), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("objective", "guided"), [("v", [False, True, False]), ("rectified_flow", [False, True, False])]
)
def test_guidance_acts_inside_its_interval_clip_by_clip(objective: str, guided: list[bool]) -> None:
    model = make(objective)
    whole = inputs(model)  # t = 0.1, 0.5, 0.9: sigma = 0.16, 0.71, 0.99 for v
    plain, full = model(**whole), model(**whole, cfg_scale=4.0)
    found = model(**whole, cfg_scale=4.0, cfg_interval=(0.2, 0.8))
    for row, inside in enumerate(guided):
        torch.testing.assert_close(found[row], (full if inside else plain)[row], atol=1e-5, rtol=1e-4)
    outside = model(**whole, cfg_scale=4.0, cfg_interval=(0.995, 0.999))
    torch.testing.assert_close(outside, plain)


def test_dropout_of_one_is_the_unconditional_answer_and_draws_are_keyed() -> None:
    model = make()
    whole = inputs(model, batch=8)
    unconditional = model(**{**whole, "cross_attn_cond": torch.zeros(8, 5, 32)})
    torch.testing.assert_close(model(**whole, cfg_dropout_prob=1.0), unconditional)

    def dropped(seed: int) -> Tensor:
        return model(**whole, cfg_dropout_prob=0.5, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(dropped(0), dropped(0))
    assert not torch.equal(dropped(0), dropped(1))


def test_tokens_and_prepended_tokens_are_dropped_separately() -> None:
    model = make(prepend_cond_dim=8)
    whole = inputs(model, batch=64)
    found = model(**whole, cfg_dropout_prob=0.5, generator=torch.Generator().manual_seed(0))
    choices = []
    for tokens in (0, 1):
        for prepended in (0, 1):
            kept = {
                **whole,
                "cross_attn_cond": whole["cross_attn_cond"] * tokens,
                "prepend_cond": whole["prepend_cond"] * prepended,
            }
            choices.append((model(**kept) - found).abs().amax(dim=(1, 2)) < 1e-5)
    assert all(bool(choice.any()) for choice in choices)
    assert bool(torch.stack(choices).any(dim=0).all())


def test_concatenated_conditioning_is_stretched_by_nearest_neighbour() -> None:
    for option, key in (("input_concat_dim", "input_concat_cond"), ("local_add_cond_dim", "local_add_cond")):
        model = make(**{option: 5})
        whole = inputs(model)
        short = whole[key][..., ::2]
        stretched = {**whole, key: short.repeat_interleave(2, dim=-1)}
        torch.testing.assert_close(model(**{**whole, key: short}), model(**stretched))


def test_masks_of_conditioning_change_nothing_as_in_the_public_code() -> None:
    model = make()
    whole = inputs(model)
    mask = torch.tensor([[1, 1, 0, 0, 0]] * 3)
    torch.testing.assert_close(model(**whole, cross_attn_cond_mask=mask), model(**whole))


def test_half_precision_weights_take_float32_inputs() -> None:
    model = make().bfloat16()
    whole = inputs(model)
    found = model(**whole, cfg_scale=3.0)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), make()(**whole, cfg_scale=3.0), atol=0.15, rtol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dim": 65}, "embed_dim 65 is not a multiple of num_heads 2"),
        ({"num_heads": 64, "cond_token_dim": 0}, "heads of an even width, found 1"),
        ({"timestep_cond_type": "input_concat"}, "takes a timestep_embed_dim; found none"),
        ({"project_global_cond": False}, "global_cond_dim is 24, but without .* it must be embed_dim, 64"),
        ({"cond_token_dim": 48}, "cross-attention width 48 is not a multiple of the head width 32"),
        ({"embed_dim": 160, "num_heads": 5, "cond_token_dim": 64}, "5 query heads cannot share 2 heads"),
        ({"local_add_cond_dim": 5, "patch_size": 2}, "takes patch_size 1, .* found 2"),
        ({"final_cross_attn_ix": 2}, "there are 2 blocks"),
        ({"sliding_window": (-2, 4)}, "greater than or equal to -1"),
        ({"norm_type": "rms_norm", "norm_kwargs": {"bias": True}}, "bias is an option of 'layer_norm'"),
        ({"remove_norms": True, "norm_type": "rms_norm"}, "remove_norms is norm_type 'dyt'"),
        ({"ff_kwargs": {"use_conv": True, "conv_kernel_size": 4}}, "must be odd"),
        ({"timestep_features_dim": 7}, "multiple of 2"),
    ],
)
def test_configs_that_cannot_work_are_refused_when_read(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DiTConfig(**{**BASE, **options})
