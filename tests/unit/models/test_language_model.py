"""The language model: the public layout, a slow reference, and what must hold of any of its options."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from reference_lm import Reference
from tiny_lm import (
    BOOKS,
    CARD,
    CONDITIONS,
    DIM,
    OPTIONS,
    conditioning,
    model_config,
    random_codes,
    tiny_lm,
    tiny_model,
)
from torch import Tensor

from stable_audio_tools.errors import ConfigError, DataError, UsageError
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.language_model.loss import cross_entropy
from stable_audio_tools.schema.reader import parse_model_config

PATTERNS = ["delay", "parallel", "unroll", "valle", "musiclm"]
TEXT_AND_TIME = {
    "cond_dim": 8,
    "configs": [
        {"id": "seconds", "type": "number", "config": {"min_val": 0, "max_val": 100}},
        {"id": "key", "type": "list", "config": {"options": ["major", "minor"]}},
    ],
}
CONDITIONED = {
    "config": {"embed_dim": DIM, "depth": 2, "dim_heads": 4, "cross_attn_cond_dim": 8, "prepend_cond_dim": 8}
    | {"global_cond_dim": 8},
    "cross_attention_cond_ids": ["key", "seconds"],
    "prepend_cond_ids": ["key"],
    "global_cond_ids": ["seconds"],
}
METADATA = [{"key": "major", "seconds": 3.0}, {"key": "minor", "seconds": 70.0}]

# --- the public layout --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIONS)
def test_logits_are_those_of_the_reference(name: str) -> None:
    model, options = tiny_lm(OPTIONS[name]), OPTIONS[name]
    sequence = random_codes(2, 7, high=CARD + 1)
    cond = conditioning(options)
    expected = Reference(model.state_dict(), options)(sequence, **cond)
    assert expected.std() > 0.1
    torch.testing.assert_close(model(sequence, **cond), expected, atol=1e-5, rtol=1e-5)


def layer_keys(index: int, *parts: str) -> set[str]:
    return {f"lm.backbone.model.layers.{index}.{part}" for part in parts}


def test_keys_are_the_public_ones() -> None:
    lm = copy.deepcopy(CONDITIONED)
    lm["config"] |= {"project_cross_attn_cond": True, "num_memory_tokens": 2, "use_abs_pos_emb": True}
    state = tiny_model(lm, conditioning=TEXT_AND_TIME).state_dict()
    expected = {f"lm.embeds.{q}.weight" for q in range(BOOKS)}
    expected |= {f"lm.quantizer_heads.{q}.{name}" for q in range(BOOKS) for name in ("weight", "bias")}
    expected |= {
        f"lm.backbone.{name}.{layer}.weight"
        for name in ("to_prepend_embed", "to_cross_attn_embed")
        for layer in (0, 2)
    }
    expected |= {
        f"lm.backbone.model.global_cond_embedder.{layer}.{name}"
        for layer in (0, 2)
        for name in ("weight", "bias")
    }
    expected |= {
        f"lm.backbone.model.{name}"
        for name in ("project_in.weight", "project_out.weight", "rotary_pos_emb.inv_freq", "memory_tokens")
    }
    expected.add("lm.backbone.model.pos_emb.emb.weight")
    for index in range(2):
        expected |= layer_keys(
            index, "to_scale_shift_gate", "self_attn.to_qkv.weight", "self_attn.to_out.weight"
        )
        expected |= layer_keys(index, "cross_attn.to_q.weight", "cross_attn.to_kv.weight")
        expected |= layer_keys(index, "cross_attn.to_out.weight")
        for norm in ("pre_norm", "cross_attend_norm", "ff_norm"):
            expected |= layer_keys(index, f"{norm}.gamma", f"{norm}.beta")
        for part in ("ff.ff.0.proj", "ff.ff.2"):
            expected |= layer_keys(index, f"{part}.weight", f"{part}.bias")
    assert {key for key in state if key.startswith("lm.")} == expected
    rooms = {key.split(".")[0] for key in state}
    assert rooms == {"lm", "pretransform", "conditioner"}
    assert state["lm.embeds.0.weight"].shape == (CARD + 1, DIM)
    assert state["lm.quantizer_heads.0.weight"].shape == (CARD, DIM)


def test_a_model_can_be_built_on_the_meta_device_copied_and_pickled() -> None:
    with torch.device("meta"):
        model = create_model_from_config(model_config(CONDITIONED, conditioning=TEXT_AND_TIME))
    assert next(model.lm.parameters()).is_meta
    whole = tiny_model()
    codes = random_codes(1, 5)
    expected = whole.compute_logits(codes).logits
    for twin in (copy.deepcopy(whole), pickle.loads(pickle.dumps(whole))):
        torch.testing.assert_close(twin.compute_logits(codes).logits, expected, equal_nan=True)


# --- what holds of any options ------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_code_is_predicted_from_what_stands_before_it(pattern: str) -> None:
    model = tiny_lm(codebook_pattern=pattern)
    frames = 5
    steps = model.patterns.get_pattern(frames).steps
    codes = random_codes(1, frames)
    before = model.compute_logits(codes)
    for book, frame in [(0, 0), (1, 2), (2, 1), (0, 4)]:
        changed = codes.clone()
        changed[0, book, frame] = (codes[0, book, frame] + 1) % CARD
        after = model.compute_logits(changed)
        differs = (after.logits - before.logits).nan_to_num().abs().amax(dim=-1)[0] > 1e-9
        later = (steps > steps[book, frame]) & before.mask[0]
        torch.testing.assert_close(differs, later)


@pytest.mark.parametrize("name", ["conditioned", "differential", "window"])
def test_a_clip_does_not_depend_on_its_batch(name: str) -> None:
    model = tiny_lm(OPTIONS[name])
    codes, cond = random_codes(3, 6), conditioning(OPTIONS[name], batch=3)
    together = model.compute_logits(codes, **cond).logits
    alone = model.compute_logits(codes[1:2], **{key: value[1:2] for key, value in cond.items()}).logits
    torch.testing.assert_close(alone[0], together[1], equal_nan=True)


@pytest.mark.parametrize("kind", ["cross_attn_cond", "prepend_cond", "global_cond"])
def test_every_code_knows_all_of_its_conditioning(kind: str) -> None:
    """The first one too: the context of a causal transformer is not causal."""
    model = tiny_lm(CONDITIONS)
    codes, cond = random_codes(1, 4), conditioning(CONDITIONS, batch=1)
    before = model.compute_logits(codes, **cond)
    cond[kind] = cond[kind].clone()
    cond[kind][:, -1] += 1.0  # the last token of it, or the last channel
    after = model.compute_logits(codes, **cond)
    assert ((after.logits - before.logits)[before.mask].abs().amax(dim=-1) > 1e-6).all()


def test_codes_of_another_shape_are_refused() -> None:
    model = tiny_lm()
    with pytest.raises(UsageError, match=r"found shape \(1, 2, 4\), expected \(batch, 3, length\)"):
        model(torch.zeros(1, 2, 4, dtype=torch.long))
    with pytest.raises(UsageError, match="1 or more"):
        model.compute_logits(torch.zeros(1, BOOKS, 0, dtype=torch.long))


# --- the loss -----------------------------------------------------------------------------------------------


def test_cross_entropy_is_the_mean_over_codebooks_of_their_means() -> None:
    model = tiny_lm()
    codes = random_codes(2, 6)
    logits, mask = model.compute_logits(codes)
    assert mask.sum(dim=(0, 2)).tolist() == [12, 10, 8]
    loss, per_codebook = cross_entropy(logits, codes, mask)
    expected = []
    for book in range(BOOKS):
        rows = [
            -logits[clip, book, frame].log_softmax(dim=-1)[codes[clip, book, frame]]
            for clip in range(2)
            for frame in range(6)
            if mask[clip, book, frame]
        ]
        expected.append(torch.stack(rows).mean())
    torch.testing.assert_close(per_codebook, torch.stack(expected).float())
    torch.testing.assert_close(loss, torch.stack(expected).mean().float())


def test_a_codebook_without_codes_does_not_count() -> None:
    """Clips shorter than the delay leave codebooks empty; the public code makes NaN of it."""
    model = tiny_lm().requires_grad_(True)
    codes = random_codes(2, 1)
    logits, mask = model.compute_logits(codes)
    assert mask[0, :, 0].tolist() == [True, False, False]
    loss, per_codebook = cross_entropy(logits, codes, mask)
    assert loss == per_codebook[0]
    assert per_codebook[1:].tolist() == [0, 0]
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_model_learns_a_melody_and_plays_it_back() -> None:
    """End to end: the loss falls to nothing, and the likeliest codes are those that were learned."""
    torch.manual_seed(0)
    model = create_model_from_config(model_config())
    codes = random_codes(1, 8, seed=3)
    optimizer = torch.optim.AdamW(model.lm.parameters(), lr=1e-2)
    for _ in range(60):
        loss, _ = cross_entropy(*_with(codes, model.compute_logits(codes)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    played = model.generate(max_gen_len=8, temp=0)
    mask = model.compute_logits(codes).mask
    assert (played == codes)[mask].all()


def _with(codes: Tensor, output: Any) -> tuple[Tensor, Tensor, Tensor]:
    return output.logits, codes, output.mask


# --- the whole model ----------------------------------------------------------------------------------------


def test_metadata_and_audio_in_logits_out() -> None:
    model = tiny_model(CONDITIONED, conditioning=TEXT_AND_TIME)
    assert model.conditioner is not None
    model.conditioner.double()
    tensors = model.conditioner(METADATA, "cpu")
    inputs = model.get_conditioning_inputs(tensors)
    assert {key: value.shape for key, value in inputs.items() if value is not None} == {
        "cross_attn_cond": (2, 2, 8),
        "prepend_cond": (2, 1, 8),
        "global_cond": (2, 8),
    }
    torch.testing.assert_close(inputs["cross_attn_cond"][:, :1], tensors["key"][0])
    codes = model.pretransform.tokenize(torch.randn(2, 2, 61, generator=torch.Generator().manual_seed(0)))
    assert codes.shape == (2, BOOKS, 8)
    output = model.compute_logits(codes, tensors)
    assert output.logits.shape == (2, BOOKS, 8, CARD)
    assert output.mask.shape == (2, BOOKS, 8)
    other = model.compute_logits(codes, model.conditioner(METADATA[::-1], "cpu"))
    assert not torch.allclose(other.logits[output.mask], output.logits[output.mask], atol=1e-3)


def test_guidance_dropout_is_keyed_and_leaves_zeros() -> None:
    lm = {**CONDITIONED, "global_cond_ids": ["seconds"]}
    model = tiny_model(lm, conditioning=TEXT_AND_TIME)
    assert model.conditioner is not None
    model.conditioner.double()
    tensors = model.conditioner(METADATA, "cpu")
    nothing = {key: (torch.zeros_like(value), mask) for key, (value, mask) in tensors.items()}
    codes = random_codes(2, 5)
    dropped = model.compute_logits(codes, tensors, cfg_dropout_prob=1.0)
    torch.testing.assert_close(dropped.logits, model.compute_logits(codes, nothing).logits, equal_nan=True)

    def half(seed: int) -> Tensor:
        keyed = torch.Generator().manual_seed(seed)
        return model.compute_logits(codes, tensors, 0.5, keyed).logits.nan_to_num()

    torch.testing.assert_close(half(1), half(1))
    assert any(not torch.equal(half(1), half(seed)) for seed in range(2, 8))


def test_an_id_without_a_conditioner_arrives_as_a_tensor() -> None:
    lm = copy.deepcopy(CONDITIONED) | {"cross_attention_cond_ids": ["key", "melody"]}
    model = tiny_model(lm, conditioning=TEXT_AND_TIME)
    assert model.conditioner is not None
    tensors = {**model.conditioner.double()(METADATA, "cpu")}
    with pytest.raises(DataError, match=r"conditioning 'melody' is missing.*given key, seconds"):
        model.get_conditioning_inputs(tensors)
    tensors["melody"] = (torch.zeros(2, 3, 8, dtype=torch.float64), torch.ones(2, 3, dtype=torch.bool))
    inputs = model.get_conditioning_inputs(tensors)
    assert inputs["cross_attn_cond"] is not None
    assert inputs["cross_attn_cond"].shape == (2, 4, 8)


def test_the_codec_is_never_trained() -> None:
    config = model_config()
    config["model"]["pretransform"]["enable_grad"] = True
    model = create_model_from_config(config).train()
    assert not any(parameter.requires_grad for parameter in model.pretransform.parameters())
    assert not model.pretransform.training
    assert model.lm.training


# --- configs that cannot work -------------------------------------------------------------------------------


def refused(lm: dict[str, Any] | None = None, **model: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_model_config(model_config(lm, **model))
    return str(caught.value)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ({"embed_dim": 18}, "embed_dim 18 is not a multiple of dim_heads 4"),
        ({"embed_dim": 3, "dim_heads": 64}, "even width, found 3"),
        ({"cross_attn_cond_dim": 6}, "cross-attention width 6 is not a multiple of dim_heads 4"),
        ({"cross_attn_cond_dim": 12}, "4 heads cannot share 3 cross-attention heads"),
        ({"conformer": True}, "conformer looks at later tokens"),
        ({"attn_kwargs": {"feat_scale": True}}, "attn_kwargs.feat_scale looks at later tokens"),
        ({"ff_kwargs": {"use_conv": True}}, "ff_kwargs.use_conv looks at later tokens"),
        ({"num_heads": 4}, "unknown key 'num_heads'"),
    ],
)
def test_a_backbone_that_cannot_work_is_refused(backbone: dict[str, Any], message: str) -> None:
    found = refused({"config": {"embed_dim": DIM, "depth": 1, "dim_heads": 4, **backbone}})
    assert message in found
    assert "model.lm.config" in found


@pytest.mark.parametrize("ids", ["cross_attention_cond_ids", "prepend_cond_ids", "global_cond_ids"])
def test_ids_without_a_place_are_refused(ids: str) -> None:
    assert f"{ids} has ['key'], but config." in refused({ids: ["key"]})


def test_conditioners_of_another_width_are_refused() -> None:
    lm = copy.deepcopy(CONDITIONED)
    lm["config"]["cross_attn_cond_dim"] = 16
    found = refused(lm, conditioning=TEXT_AND_TIME)
    assert "conditioner 'key' makes 8 channels, but lm.config.cross_attn_cond_dim is 16" in found
    lm = copy.deepcopy(CONDITIONED) | {"global_cond_ids": ["key", "seconds"]}
    assert "global_cond_ids make 16 channels" in refused(lm, conditioning=TEXT_AND_TIME)


def test_a_pretransform_without_codes_is_refused() -> None:
    config = model_config()
    codec = config["model"]["pretransform"]
    codec["config"]["bottleneck"] = {"type": "tanh"}
    assert "the pretransform 'autoencoder' has none" in refused(pretransform=codec)
    patched = {"type": "patched", "config": {"channels": 2, "patch_size": 4}}
    assert "the pretransform 'patched' has none" in refused(pretransform=patched)


def test_a_pattern_that_does_not_fit_is_refused() -> None:
    found = refused({"codebook_pattern_config": {"delays": [0, 1]}})
    assert "model: lm.codebook_pattern_config.delays: found 2, expected 3 for 3 codebooks" in found
    assert "codebook_pattern is 'delay'" in refused({"codebook_pattern_config": {"group_by": 3}})
