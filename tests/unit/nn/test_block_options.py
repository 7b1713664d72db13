"""The transformer block by itself: options, caches, padding, and what outlives a copy."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from stable_audio_tools.nn.cache import BlockCache, KeyValues, TransformerCache
from stable_audio_tools.nn.embeddings import ExpoFourierFeatures, apply_rotary
from stable_audio_tools.nn.transformer import (
    BlockOptions,
    ContinuousTransformer,
    TransformerBlock,
    TransformerOptions,
)
from stable_audio_tools.schema.networks import AttentionConfig, FeedForwardConfig, NormConfig

DIM, CONTEXT = 64, 32
EVERY_OPTION: dict[str, dict[str, Any]] = {
    "plain": {},
    "differential": {"attention": AttentionConfig(differential=True, qk_norm="rms")},
    "feature scale": {"attention": AttentionConfig(feat_scale=True)},
    "conformer": {"conformer": True},
    "convolutions": {"feed_forward": FeedForwardConfig(use_conv=True, glu=False)},
    "rms": {"norm_type": "rms_norm"},
    "dynamic tanh": {"norm_type": "dyt"},
    "own rotary": {"rotary": True, "head_dim": 128},
    "sine": {"feed_forward": FeedForwardConfig(sinusoidal=True, mult=1.5)},
    "causal": {"causal": True},
}
CACHED: dict[str, dict[str, Any]] = {
    "rotary": {},
    "learned positions": {"rotary": False, "abs_positions": 300},
    "sines": {"rotary": False, "sinusoidal": True},
    "window": {"sliding_window": (5, 0)},
    "memory": {"num_memory_tokens": 3},
    "late layers without context": {"last_cross_attention": 0},
}


def randomised(module: torch.nn.Module) -> Any:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return module.double().eval()


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def block(**options: Any) -> TransformerBlock:
    found = randomised(TransformerBlock(BlockOptions(**{"dim": DIM, "head_dim": 32, **options})))
    assert isinstance(found, TransformerBlock)
    return found


def language_model(**options: Any) -> ContinuousTransformer:
    attention = AttentionConfig(qk_norm="ln", differential=True)
    inner = BlockOptions(
        dim=DIM, head_dim=32, context_dim=CONTEXT, causal=True, causal_context=False, attention=attention
    )
    found = randomised(ContinuousTransformer(TransformerOptions(inner, depth=2, **options), None, 7))
    assert isinstance(found, ContinuousTransformer)
    return found


@pytest.mark.parametrize("options", CACHED.values(), ids=CACHED)
@pytest.mark.parametrize("first", [1, 4])
@torch.no_grad()
def test_cached_is_the_same_as_uncached(options: dict[str, Any], first: int) -> None:
    model = language_model(**options)
    x, context, prepended = randn(2, 90, DIM), randn(2, 5, CONTEXT, seed=1), randn(2, 3, DIM, seed=2)
    whole = model(x, context=context, prepend_embeds=prepended)
    cache = TransformerCache(2)
    parts = [model(x[:, :first], context=context, prepend_embeds=prepended, cache=cache)]
    parts.append(model(x[:, first : first + 3], context=context, cache=cache))  # several at once
    for position in range(first + 3, x.shape[1]):
        parts.append(model(x[:, position : position + 1], context=context, cache=cache))
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-12, rtol=0)
    assert cache.length == 90 + 3 + options.get("num_memory_tokens", 0)


def test_a_block_keeps_its_own_positions_in_a_cache() -> None:
    layer = block(causal=True, rotary=True)
    x = randn(1, 6, DIM)
    cache = BlockCache()
    parts = [layer(x[:, i : i + 1], cache=cache) for i in range(6)]
    torch.testing.assert_close(torch.cat(parts, dim=1), layer(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"causal": False},
        {"conformer": True},
        {"attention": AttentionConfig(feat_scale=True)},
        {"feed_forward": FeedForwardConfig(use_conv=True)},
    ],
)
def test_a_cache_is_refused_where_later_tokens_matter(options: dict[str, Any]) -> None:
    inner = BlockOptions(**{"dim": DIM, "causal": True, **options})
    model = ContinuousTransformer(TransformerOptions(inner, depth=1), None, None)
    with pytest.raises(ValueError, match="a cache needs a causal transformer"):
        model(torch.zeros(1, 3, DIM), cache=TransformerCache(1))


def test_the_store_of_keys_grows_and_keeps_its_order() -> None:
    store, x = KeyValues(), randn(2, 3, 300, 4)
    for start in range(0, 300, 7):
        keys, values = store.append(x[:, :, start : start + 7], -x[:, :, start : start + 7])
    assert torch.equal(keys, x)
    assert torch.equal(values, -x)


@pytest.mark.parametrize("options", EVERY_OPTION.values(), ids=EVERY_OPTION)
@pytest.mark.parametrize("window", [None, (3, 2)])
def test_padding_changes_no_other_token(options: dict[str, Any], window: tuple[int, int] | None) -> None:
    layer = block(**options)
    x = randn(2, 12, DIM)
    real = torch.arange(12) < torch.tensor([12, 8])[:, None]
    moved = torch.where(real.unsqueeze(-1), x, randn(2, 12, DIM, seed=5) * 3)
    found = layer(x, window=window, padding_mask=real)
    torch.testing.assert_close(layer(moved, window=window, padding_mask=real)[real], found[real])
    torch.testing.assert_close(  # and it is as if the clip ended there
        layer(x[1:, :8], window=window, padding_mask=torch.ones(1, 8, dtype=torch.bool)), found[1:, :8]
    )
    assert torch.isfinite(found).all()


def test_a_clip_of_padding_is_finite() -> None:
    x, real = randn(2, 5, DIM), torch.zeros(2, 5, dtype=torch.bool)
    assert torch.isfinite(block()(x, padding_mask=real)).all()
    assert torch.isfinite(block()(x, window=(1, 1), padding_mask=real)).all()


@pytest.mark.parametrize("options", EVERY_OPTION.values(), ids=EVERY_OPTION)
def test_a_clip_does_not_depend_on_its_batch(options: dict[str, Any]) -> None:
    layer, x = block(**options), randn(3, 9, DIM)
    torch.testing.assert_close(layer(x)[1:2], layer(x[1:2]))


def test_conditioning_of_each_token_is_added_to_the_last_ones() -> None:
    layer = block(local_dim=5)
    x, local = randn(1, 6, DIM), randn(1, 4, 5, seed=3)
    changed = (layer(x, local_cond=local) - layer(x)).abs().amax(dim=-1)[0]
    assert changed[:2].max() == 0
    assert changed[2:].min() > 1e-6
    fresh = TransformerBlock(BlockOptions(dim=DIM, local_dim=5)).double()
    torch.testing.assert_close(fresh(x, local_cond=local), fresh(x))


def test_causal_context_is_the_public_reading_of_causal() -> None:
    x, context = randn(1, 4, DIM), randn(1, 6, CONTEXT, seed=1)
    moved = context.clone()
    moved[:, 5] += 1
    for whole in (False, True):
        layer = block(causal=True, context_dim=CONTEXT, causal_context=not whole)
        changed = not torch.allclose(layer(x, context=context), layer(x, context=moved))
        assert changed == whole


def test_the_keys_of_a_block_are_the_public_ones() -> None:
    layer = TransformerBlock(
        BlockOptions(
            dim=DIM,
            context_dim=CONTEXT,
            modulated=True,
            local_dim=5,
            rotary=True,
            conformer=True,
            layer_scale=True,
            attention=AttentionConfig(qk_norm="ln", feat_scale=True),
            norm=NormConfig(bias=True),
        )
    )
    norms = ["pre_norm", "cross_attend_norm", "ff_norm", "conformer.in_norm", "conformer.mid_norm"]
    scales = ["self_attn_scale", "cross_attn_scale", "ff_scale", "conformer_scale"]
    attention = ["to_out.weight", "q_norm.weight", "q_norm.bias", "k_norm.weight", "k_norm.bias"]
    attention += ["lambda_dc", "lambda_hf"]
    assert set(layer.state_dict()) == {
        *(f"{name}.{part}" for name in norms for part in ("gamma", "beta")),
        *(f"{name}.scale" for name in scales),
        *(f"self_attn.{name}" for name in [*attention, "to_qkv.weight"]),
        *(f"cross_attn.{name}" for name in [*attention, "to_q.weight", "to_kv.weight"]),
        *(f"ff.ff.{name}" for name in ("0.proj.weight", "0.proj.bias", "2.weight", "2.bias")),
        *(f"conformer.{name}" for name in ("pointwise_conv.weight", "glu.proj.weight", "glu.proj.bias")),
        *(f"conformer.{name}" for name in ("depthwise_conv.weight", "pointwise_conv_2.weight")),
        *(f"to_local_embed.{name}" for name in ("0.weight", "0.bias", "2.weight", "2.bias")),
        "to_scale_shift_gate",
        "rope.inv_freq",
    }


@pytest.mark.parametrize("options", EVERY_OPTION.values(), ids=EVERY_OPTION)
def test_blocks_can_be_copied_pickled_and_built_on_meta(options: dict[str, Any]) -> None:
    layer, x = block(**options), randn(1, 4, DIM)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
    with torch.device("meta"):
        TransformerBlock(BlockOptions(**{"dim": DIM, **options}))


def test_a_fresh_block_is_the_identity() -> None:
    x = randn(1, 4, DIM)
    assert torch.equal(TransformerBlock(BlockOptions(dim=DIM, context_dim=CONTEXT)).double()(x), x)
    scaled = TransformerBlock(BlockOptions(dim=DIM, layer_scale=True)).double()(x)
    assert 0 < float((scaled - x).detach().abs().max()) < 1e-3


def test_rotary_gradients_are_right() -> None:
    turns = torch.stack([randn(4, 3, seed=2).cos(), randn(4, 3, seed=2).sin()])
    x = randn(2, 4, 8).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: apply_rotary(a, turns), (x,))


def test_exponential_features_run_from_half_a_turn_to_ten_thousand() -> None:
    layer = ExpoFourierFeatures(8)
    assert not list(layer.state_dict())
    t = torch.tensor([[0.25]])
    frequencies = 0.5 * (20_000.0 ** (torch.arange(4) / 3))
    angle = 2 * torch.pi * 0.25 * frequencies
    torch.testing.assert_close(layer(t)[0], torch.cat([angle.cos(), angle.sin()]), atol=2e-3, rtol=0)
    assert layer(t.half()).dtype == torch.float16
