"""Attention, embeddings and the transformer against slow references and the properties they claim."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from stable_audio_tools.models.dit import transformer_options
from stable_audio_tools.nn.attention import CHUNK, Attention, local_attention
from stable_audio_tools.nn.embeddings import (
    AbsolutePositionalEmbedding,
    FourierFeatures,
    NumberEmbedder,
    RotaryEmbedding,
    ScaledSinusoidalEmbedding,
    apply_rotary,
    rotary_width,
)
from stable_audio_tools.nn.feedforward import ConformerModule, FeedForward
from stable_audio_tools.nn.norms import LayerNorm, RMSNorm, make_qk_norm
from stable_audio_tools.nn.transformer import ContinuousTransformer
from stable_audio_tools.schema.networks import AttentionConfig, DiTConfig, FeedForwardConfig, NormConfig

HEAD = 8


def make(module: nn.Module) -> nn.Module:
    """``module`` in float64 with every weight random, so that nothing hides behind a zero."""
    generator = torch.Generator().manual_seed(0)
    module = module.double().eval()
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3
    return module


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
    """One head after the other, one query after the other; ``(B, H, N, E)``."""
    out = torch.zeros_like(q)
    group = q.shape[1] // k.shape[1]
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                scores = k[b, h // group] @ q[b, h, i] / math.sqrt(q.shape[-1])
                if allowed is not None:
                    scores = scores.masked_fill(~allowed[i], -math.inf)
                out[b, h, i] = scores.softmax(0) @ v[b, h // group]
    return out


def heads(x: Tensor) -> Tensor:
    return x.reshape(*x.shape[:2], -1, HEAD).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("differential", [False, True])
def test_self_attention(causal: bool, differential: bool) -> None:
    layer = make(Attention(16, HEAD, AttentionConfig(differential=differential), causal=causal))
    x = randn(2, 5, 16)
    parts = [heads(part) for part in layer.to_qkv(x).chunk(5 if differential else 3, dim=-1)]
    allowed = torch.ones(5, 5).tril().bool() if causal else None
    expected = slow_attention(parts[0], parts[1], parts[2], allowed)
    if differential:
        expected = expected - slow_attention(parts[3], parts[4], parts[2], allowed)
    torch.testing.assert_close(layer(x), layer.to_out(merged(expected)))


@pytest.mark.parametrize("differential", [False, True])
def test_cross_attention_shares_key_heads_among_query_heads(differential: bool) -> None:
    layer = make(Attention(32, HEAD, AttentionConfig(differential=differential), dim_context=16))
    x, context = randn(2, 5, 32), randn(2, 3, 16, seed=1)
    queries = [heads(q) for q in layer.to_q(x).chunk(2 if differential else 1, dim=-1)]
    *keys, v = (heads(part) for part in layer.to_kv(context).chunk(3 if differential else 2, dim=-1))
    expected = slow_attention(queries[0], keys[0], v)
    if differential:
        expected = expected - slow_attention(queries[1], keys[1], v)
    torch.testing.assert_close(layer(x, context=context), layer.to_out(merged(expected)))


@pytest.mark.parametrize("name", ["l2", "ln", "rms", "dyt"])
def test_queries_and_keys_are_normalised_before_they_are_rotated(name: str) -> None:
    layer = make(Attention(16, HEAD, AttentionConfig(qk_norm=name)))
    x, turns = randn(2, 5, 16), RotaryEmbedding(rotary_width(HEAD)).double()(5).double()
    q, k, v = (heads(part) for part in layer.to_qkv(x).chunk(3, dim=-1))
    q, k = (apply_rotary(norm(part), turns) for norm, part in ((layer.q_norm, q), (layer.k_norm, k)))
    torch.testing.assert_close(layer(x, rotary_turns=turns), layer.to_out(merged(slow_attention(q, k, v))))


def test_qk_norms_do_what_their_names_say() -> None:
    x = randn(3, HEAD) * 5
    l2, ln, rms, dyt = (
        make_qk_norm(AttentionConfig(qk_norm=name), HEAD).double() for name in ("l2", "ln", "rms", "dyt")
    )
    torch.testing.assert_close(l2(x).norm(dim=-1), torch.ones(3).double())
    torch.testing.assert_close(
        ln(x), (x - x.mean(-1, True)) / x.std(-1, unbiased=False, keepdim=True), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(rms(x).square().mean(-1), torch.ones(3).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(dyt(x), torch.tanh(4 * x))
    assert make_qk_norm(AttentionConfig(qk_norm="none"), HEAD) is None
    assert make_qk_norm(AttentionConfig(), HEAD) is None


def test_feature_scale_weighs_the_mean_and_the_rest() -> None:
    layer = make(Attention(16, HEAD, AttentionConfig(feat_scale=True)))
    x = randn(2, 5, 16)
    found = layer(x)
    low, high = layer.lambda_dc.clone(), layer.lambda_hf.clone()
    layer.lambda_dc.data.zero_()
    layer.lambda_hf.data.zero_()
    plain = layer(x)
    mean = plain.mean(1, keepdim=True)
    torch.testing.assert_close(found, plain + low * mean + high * (plain - mean))


@pytest.mark.parametrize("window", [(2, 1), (-1, 1), (3, -1), (0, 0), (-1, -1)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("keys", [6, 9])
def test_windowed_attention(window: tuple[int, int], causal: bool, keys: int) -> None:
    q, k, v = randn(2, 2, 6, 4), randn(2, 2, keys, 4, seed=1), randn(2, 2, keys, 4, seed=2)
    distance = torch.arange(keys) - torch.arange(keys - 6, keys)[:, None]
    before, after = window
    allowed = torch.ones(6, keys, dtype=torch.bool)
    allowed &= distance >= -before if before >= 0 else allowed
    allowed &= distance <= after if after >= 0 else allowed
    allowed &= distance <= 0 if causal else allowed
    torch.testing.assert_close(local_attention(q, k, v, window, causal), slow_attention(q, k, v, allowed))


@pytest.mark.parametrize("padded", [False, True])
def test_windowed_attention_in_chunks_is_the_whole(padded: bool) -> None:
    length = 2 * CHUNK + 37
    q, k, v = (randn(2, 1, length, 4, seed=seed) for seed in range(3))
    real = torch.arange(length) < torch.tensor([length, length - 300])[:, None]
    found = local_attention(q, k, v, (40, 9), padding_mask=real if padded else None)
    distance = torch.arange(length) - torch.arange(length)[:, None]
    mask = ((distance >= -40) & (distance <= 9)).expand(2, 1, -1, -1)
    if padded:
        mask = (mask & real[:, None, None]) | (distance == 0)
    torch.testing.assert_close(
        found, nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize(("head", "rotated"), [(128, 64), (64, 32), (32, 32), (16, 16)])
def test_rotary_turns_the_first_part_and_keeps_lengths(head: int, rotated: int) -> None:
    turns = RotaryEmbedding(rotary_width(head))(7)
    assert turns.shape == (2, 7, rotated // 2)
    x = randn(2, 3, 7, head)
    turned = apply_rotary(x, turns)
    torch.testing.assert_close(turned[..., rotated:], x[..., rotated:])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(turned[:, :, 0], x[:, :, 0], atol=1e-6, rtol=0)


def test_rotary_scores_depend_on_distance_alone() -> None:
    turns = RotaryEmbedding(32)(12)
    q, k = (apply_rotary(randn(32, seed=seed).expand(12, 32), turns) for seed in (0, 1))
    scores = q @ k.T
    torch.testing.assert_close(scores[1:, 1:], scores[:-1, :-1], atol=1e-4, rtol=0)


def test_rotary_is_computed_in_float32() -> None:
    x = randn(1, 4, 32)
    turns = RotaryEmbedding(32)(4)
    assert apply_rotary(x.bfloat16(), turns).dtype == torch.bfloat16
    exact = apply_rotary(x.bfloat16().double(), turns)
    torch.testing.assert_close(apply_rotary(x.bfloat16(), turns), exact.bfloat16())


def test_fourier_features_are_cosines_then_sines() -> None:
    layer = FourierFeatures(1, 6)
    x = torch.tensor([[0.3]])
    angle = 2 * math.pi * 0.3 * layer.weight[:, 0]
    torch.testing.assert_close(layer(x)[0], torch.cat([angle.cos(), angle.sin()]))


def test_number_embedder_keeps_the_shape_and_starts_from_the_number() -> None:
    layer = NumberEmbedder(4)
    numbers = torch.tensor([[0.1, 0.2, 0.9]])
    found = layer(numbers)
    assert found.shape == (1, 3, 4)
    w = layer.embedding[0].weights
    angle = 2 * math.pi * 0.2 * w
    features = torch.cat([torch.tensor([0.2]), angle.sin(), angle.cos()])
    torch.testing.assert_close(found[0, 1], layer.embedding[1](features))


def test_position_embeddings() -> None:
    sinusoidal = ScaledSinusoidalEmbedding(8)
    found = sinusoidal(5).detach() / 8**-0.5
    assert found[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert float(found[3, 0]) == pytest.approx(math.sin(3))
    assert float(found[3, 5]) == pytest.approx(math.cos(3 * 10_000**-0.25))
    absolute = AbsolutePositionalEmbedding(8, 5)
    torch.testing.assert_close(absolute(3), absolute.emb.weight[:3] / math.sqrt(8))
    with pytest.raises(ValueError, match="a sequence of 6 tokens, but abs_pos_emb_max_length allows 5"):
        absolute(6)


@pytest.mark.parametrize("force", [False, True])
def test_layer_norm_keeps_its_shift_as_a_buffer(force: bool) -> None:
    plain = LayerNorm(8, NormConfig(force_fp32=force))
    assert [name for name, _ in plain.named_parameters()] == ["gamma"]
    assert set(plain.state_dict()) == {"gamma", "beta"}
    fixed = LayerNorm(8, NormConfig(bias=True, fix_scale=True))
    assert [name for name, _ in fixed.named_parameters()] == ["beta"]
    x = randn(2, 8).float()
    torch.testing.assert_close(plain(x), nn.functional.layer_norm(x, (8,)))
    assert plain(x).dtype == torch.float32
    assert RMSNorm(8)(x).shape == x.shape


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        (
            {},
            {"ff.0.proj.weight": (64, 8), "ff.0.proj.bias": (64,), "ff.2.weight": (8, 32), "ff.2.bias": (8,)},
        ),
        ({"no_bias": True}, {"ff.0.proj.weight": (64, 8), "ff.0.proj.bias": (64,), "ff.2.weight": (8, 32)}),
        ({"glu": False, "no_bias": True, "mult": 2}, {"ff.0.1.weight": (16, 8), "ff.2.weight": (8, 16)}),
        (
            {"use_conv": True, "no_bias": True},
            {"ff.0.proj.weight": (64, 8), "ff.0.proj.bias": (64,), "ff.2.weight": (8, 32, 3)},
        ),
        (
            {"use_conv": True, "glu": False, "conv_kernel_size": 5, "no_bias": True},
            {"ff.0.1.weight": (32, 8, 5), "ff.2.weight": (8, 32, 5)},
        ),
    ],
)
def test_feed_forward_keys_and_shapes(options: dict[str, object], keys: dict[str, tuple[int, ...]]) -> None:
    layer = FeedForward(8, FeedForwardConfig(**options))
    assert {key: tuple(value.shape) for key, value in layer.state_dict().items()} == keys
    x = randn(2, 5, 8).float()
    assert layer(x).shape == x.shape
    assert not layer(x).any()  # the last projection starts at zero


def test_gated_feed_forward_gates_the_first_half_with_the_second() -> None:
    layer = make(FeedForward(8, FeedForwardConfig(mult=2)))
    x = randn(2, 5, 8)
    value, gate = layer.ff[0].proj(x).chunk(2, dim=-1)
    torch.testing.assert_close(layer(x), layer.ff[2](value * gate * torch.sigmoid(gate)))


def test_conformer_reaches_eight_tokens_each_way() -> None:
    layer = make(ConformerModule(8, NormConfig()))
    x = randn(1, 40, 8)
    moved = x.clone()
    moved[:, 20] *= -1
    changed = (layer(moved) - layer(x)).abs().amax(dim=(0, 2)) > 1e-12
    assert changed.nonzero().flatten().tolist() == list(range(12, 29))


def transformer(**options: object) -> ContinuousTransformer:
    config = DiTConfig(embed_dim=16, depth=2, num_heads=2, **options)
    model = make(ContinuousTransformer(transformer_options(config), 3, 3))
    assert isinstance(model, ContinuousTransformer)
    return model


def reach(model: ContinuousTransformer, length: int, position: int) -> list[int]:
    """Outputs that change when the input at ``position`` does."""
    x = randn(1, length, 3)
    moved = x.clone()
    moved[:, position] += 1
    return ((model(moved) - model(x)).abs().amax(dim=(0, 2)) > 1e-12).nonzero().flatten().tolist()


@pytest.mark.parametrize("window", [None, (3, 3)])
def test_a_causal_transformer_never_looks_ahead(window: tuple[int, int] | None) -> None:
    reached = reach(transformer(causal=True, sliding_window=window), 20, 7)
    assert reached == list(range(7, 20 if window is None else 14))  # two layers of three tokens


def test_without_causality_every_token_is_reached() -> None:
    assert reach(transformer(), 20, 7) == list(range(20))


def test_a_sliding_window_limits_the_reach_of_each_layer() -> None:
    assert reach(transformer(sliding_window=(2, 1)), 20, 10) == list(range(8, 15))


@pytest.mark.parametrize("norm", [{}, {"global_cond_type": "adaLN"}])
def test_memory_and_prepended_tokens_are_seen_and_dropped(norm: dict[str, str]) -> None:
    model = transformer(num_memory_tokens=4, **norm)
    x, prepended = randn(2, 5, 3), randn(2, 2, 16, seed=3)
    extra = {"global_cond": randn(2, 16, seed=5)} if norm else {}
    found = model(x, prepend_embeds=prepended, **extra)
    assert found.shape == (2, 5, 3)
    assert not torch.allclose(found, model(x, prepend_embeds=-prepended, **extra))
    model.memory_tokens.data *= -1
    assert not torch.allclose(found, model(x, prepend_embeds=prepended, **extra))


def test_gradient_checkpointing_changes_memory_and_not_gradients() -> None:
    model = transformer(global_cond_type="adaLN", cond_token_dim=8, project_cond_tokens=False).train()
    inputs = {"context": randn(2, 3, 8), "global_cond": randn(2, 16)}

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(randn(2, 5, 3), **inputs).square().sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain = gradients()
    model.gradient_checkpointing = True
    for a, b in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_of_every_option_are_right() -> None:
    options = {"qk_norm": "dyt", "differential": True, "feat_scale": True}
    model = transformer(attn_kwargs=options, layer_scale=True, conformer=True, global_cond_type="adaLN")
    x, global_cond = randn(1, 3, 3).requires_grad_(), randn(1, 16).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: model(a, global_cond=b), (x, global_cond))
