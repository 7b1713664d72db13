"""Generation token by token: the draws, the cache, guidance, continuation, and a clip's own seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
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

from stable_audio_tools.errors import DataError, UsageError
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.language_model.generation import generate_codes
from stable_audio_tools.models.language_model.network import AudioLanguageModel
from stable_audio_tools.models.language_model.sampling import (
    TokenSampling,
    keep_top_k,
    keep_top_p,
    sample_tokens,
)

PATTERNS = ["delay", "parallel", "unroll", "valle", "musiclm"]
GREEDY = TokenSampling(temp=0)
IDS = {
    "cross_attention_cond_ids": ["melody"],
    "prepend_cond_ids": ["style"],
    "global_cond_ids": ["tempo"],
    "config": {"embed_dim": DIM, "depth": 2, "dim_heads": 4, **CONDITIONS},
}


def keyed(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + clip) for clip in range(count)]


def tensors(batch: int = 2) -> dict[str, tuple[Tensor, None]]:
    drawn = conditioning(CONDITIONS, batch)
    names = {"melody": "cross_attn_cond", "style": "prepend_cond", "tempo": "global_cond"}
    return {name: (drawn[key], None) for name, key in names.items()}


def nothing(batch: int) -> Tensor:
    return torch.zeros(batch, BOOKS, 0, dtype=torch.long)


def generated(model: AudioLanguageModel, frames: int, **more: Any) -> Tensor:
    given: dict[str, Any] = {
        "prompt": nothing(2),
        "inputs": {},
        "sampling": TokenSampling(),
        "generators": keyed(2),
    }
    return generate_codes(model, frames=frames, **{**given, **more})


# --- drawing one token --------------------------------------------------------------------------------------


def frequencies(logits: Tensor, sampling: TokenSampling, draws: int = 20_000) -> Tensor:
    tokens = sample_tokens(logits.expand(1, draws, -1), sampling, keyed(1))
    return torch.bincount(tokens.flatten(), minlength=logits.shape[-1]) / draws


def test_tokens_come_with_their_probability() -> None:
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0, -30.0])
    for temp in (1.0, 0.5, 2.0):
        found = frequencies(logits, TokenSampling(temp=temp, top_k=0))
        torch.testing.assert_close(found, (logits / temp).softmax(dim=-1), atol=0.012, rtol=0)


def test_top_k_draws_from_the_k_likeliest_as_they_are() -> None:
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0])
    expected = torch.tensor([2.0, float("-inf"), float("-inf"), 1.0]).softmax(dim=-1)
    torch.testing.assert_close(frequencies(logits, TokenSampling(top_k=2)), expected, atol=0.012, rtol=0)
    torch.testing.assert_close(keep_top_k(logits, 99), logits)
    tied = torch.tensor([0.0, 3.0, 3.0, 1.0])
    assert keep_top_k(tied, 1).isfinite().tolist() == [False, True, True, False]


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    """Holtzman et al. 2020, section 3.1, with probabilities 0.5, 0.3, 0.15, 0.05."""
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log()
    kept = {p: keep_top_p(logits, p).isfinite().tolist() for p in (0.1, 0.45, 0.55, 0.9, 1.0)}
    assert kept[0.1] == kept[0.45] == [False, True, False, False]
    assert kept[0.55] == [False, True, False, True]
    assert kept[0.9] == [True, True, False, True]
    assert kept[1.0] == [True] * 4
    found = frequencies(logits, TokenSampling(top_p=0.6, top_k=1))  # it takes the place of top_k
    torch.testing.assert_close(found, torch.tensor([0.0, 0.625, 0.0, 0.375]), atol=0.012, rtol=0)


def test_no_temperature_takes_the_likeliest() -> None:
    logits = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sample_tokens(logits, GREEDY, keyed(2)), logits.argmax(dim=-1))


@pytest.mark.parametrize("wrong", [{"temp": -1.0}, {"top_k": -1}, {"top_p": 1.5}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        TokenSampling(**wrong)


# --- the loop -----------------------------------------------------------------------------------------------


def slow_greedy(model: AudioLanguageModel, frames: int, prompt: Tensor, cond: dict[str, Tensor]) -> Tensor:
    """The likeliest codes one after the other in the order of their steps, each from the whole past."""
    pattern = model.patterns.get_pattern(frames)
    sequence = torch.full((len(prompt), BOOKS, pattern.length), CARD)
    places = {(book, int(pattern.steps[book, t])): t for book in range(BOOKS) for t in range(frames)}
    for step in range(pattern.length):
        for book in range(BOOKS):
            frame = places.get((book, step))
            if frame is None:
                continue
            if frame < prompt.shape[2]:
                sequence[:, book, step] = prompt[:, book, frame]
            else:
                likeliest = model(sequence[:, :, :step], **cond)[:, book, -1].argmax(dim=-1)
                sequence[:, book, step] = likeliest
    return torch.stack([sequence[:, book, pattern.steps[book]] for book in range(BOOKS)], dim=1)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_generation_follows_the_pattern(pattern: str) -> None:
    model, cond = tiny_lm(CONDITIONS, codebook_pattern=pattern), conditioning(CONDITIONS)
    for prompt in (nothing(2), random_codes(2, 3)):
        expected = slow_greedy(model, 6, prompt, cond)
        found = generated(model, 6, prompt=prompt, inputs=cond, sampling=GREEDY)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_cache_changes_no_logits(name: str) -> None:
    model, options = tiny_lm(OPTIONS[name]), OPTIONS[name]
    cond, sequence = conditioning(options), random_codes(2, 9, high=CARD + 1)
    whole = model(sequence, **cond)
    cache = model.backbone.new_cache()
    parts = [model(part, cache=cache, **cond) for part in sequence.split([3, 1, 1, 2, 1, 1], dim=2)]
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", ["conditioned", "differential", "memory", "window", "absolute"])
def test_cached_generation_is_uncached_generation(name: str, pattern: str) -> None:
    options = OPTIONS[name]
    model, cond = tiny_lm(options, codebook_pattern=pattern), conditioning(options)
    null = {key: torch.zeros_like(value) for key, value in cond.items()}
    both = [
        generated(
            model,
            6,
            prompt=random_codes(2, 2),
            inputs=cond,
            null_inputs=null,
            cfg_scale=2.0,
            generators=keyed(2),
            use_cache=use_cache,
        )
        for use_cache in (True, False)
    ]
    torch.testing.assert_close(both[0], both[1])


def test_a_continuation_of_its_own_codes_is_what_it_would_have_made() -> None:
    model = tiny_lm()
    whole = generated(model, 8, sampling=GREEDY)
    for kept in (1, 4, 7):
        continued = generated(model, 8, prompt=whole[:, :, :kept], sampling=GREEDY)
        torch.testing.assert_close(continued, whole)


def test_guidance_goes_from_nothing_towards_the_conditioning() -> None:
    model, cond = tiny_lm(CONDITIONS), conditioning(CONDITIONS)
    null = {key: torch.zeros_like(value) for key, value in cond.items()}
    start = torch.full((2, BOOKS, 1), CARD)
    with_it, without = model(start, **cond)[:, 0, -1], model(start, **null)[:, 0, -1]
    for scale in (0.0, 1.0, 3.0):
        found = generated(model, 2, inputs=cond, null_inputs=null, cfg_scale=scale, sampling=GREEDY)
        expected = (without + (with_it - without) * scale).argmax(dim=-1)
        torch.testing.assert_close(found[:, 0, 0], expected)


# --- the whole model ----------------------------------------------------------------------------------------


def test_a_tiny_codec_and_model_run_end_to_end() -> None:
    """That of the public package cannot run: its transformer does not take the masks that it is given."""
    model = create_model_from_config(model_config())
    audio = model.generate_audio(max_gen_len=5, batch_size=2, seed=1)
    assert audio.shape == (2, 2, 5 * model.min_input_length)
    assert audio.isfinite().all()
    codes = model.generate(max_gen_len=5, batch_size=2, seed=1)
    torch.testing.assert_close(model.pretransform.decode_tokens(codes), audio)
    assert codes.dtype == torch.long
    assert 0 <= codes.min() <= codes.max() < CARD


def test_a_clip_depends_on_its_own_seed_alone() -> None:
    model = tiny_model(IDS)
    options: dict[str, Any] = {"max_gen_len": 6, "cfg_scale": 2.0}
    together = model.generate(batch_size=3, seed=40, conditioning_tensors=tensors(3), **options)
    again = model.generate(seed=40, conditioning_tensors=tensors(3), **options)
    torch.testing.assert_close(together, again)
    assert not torch.equal(together[0], together[1])
    one = {key: (value[2:3], None) for key, (value, _) in tensors(3).items()}
    torch.testing.assert_close(model.generate(seed=42, conditioning_tensors=one, **options)[0], together[2])
    named = model.generate(seed=[42, 40], conditioning_tensors=one, batch_size=2, **options)
    torch.testing.assert_close(named[0], together[2])


def test_global_draws_are_left_alone() -> None:
    model = tiny_model()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model.generate(max_gen_len=3, seed=1)
    torch.testing.assert_close(torch.rand(3), expected)


def test_guidance_of_each_kind_can_be_left_out() -> None:
    model = tiny_model(IDS)
    switches = {"cross_attn_use_cfg": False, "prepend_use_cfg": False, "global_use_cfg": False}
    options: dict[str, Any] = {"max_gen_len": 8, "seed": 3, "conditioning_tensors": tensors()}
    unguided = model.generate(**options)
    torch.testing.assert_close(model.generate(cfg_scale=5.0, **switches, **options), unguided)
    results = [model.generate(cfg_scale=5.0, **{**switches, switch: True}, **options) for switch in switches]
    assert all(not torch.equal(result, unguided) for result in results)
    assert not torch.equal(results[0], results[1])


def test_guidance_without_conditioning_is_none() -> None:
    model = tiny_model()
    torch.testing.assert_close(
        model.generate(max_gen_len=5, seed=1, cfg_scale=4.0), model.generate(max_gen_len=5, seed=1)
    )


def test_metadata_is_one_for_all_or_one_each() -> None:
    lm = {
        "config": {"embed_dim": DIM, "depth": 1, "dim_heads": 4, "cross_attn_cond_dim": 8},
        "cross_attention_cond_ids": ["key"],
    }
    keys = [{"id": "key", "type": "list", "config": {"options": ["major", "minor"]}}]
    model = tiny_model(lm, conditioning={"cond_dim": 8, "configs": keys})
    major, minor = {"key": "major"}, {"key": "minor"}
    each = model.generate(max_gen_len=8, seed=[4, 4], conditioning=[major, minor])
    assert not torch.equal(each[0], each[1])
    both = model.generate(max_gen_len=8, seed=[4, 4], batch_size=2, conditioning=minor)
    torch.testing.assert_close(both, each[1:].expand(2, -1, -1))
    with pytest.raises(DataError, match="conditioning 'key' is missing"):
        model.generate(max_gen_len=4)
    with pytest.raises(UsageError, match="conditioning: found 2 items, expected 1 or batch_size, 3"):
        model.generate(max_gen_len=4, batch_size=3, conditioning=[major, minor])


def test_a_beginning_is_kept_and_may_serve_all_clips() -> None:
    model, beginning = tiny_model(), random_codes(1, 3)
    codes = model.generate(max_gen_len=6, batch_size=2, init_data=beginning, seed=0)
    torch.testing.assert_close(codes[:, :, :3], beginning.expand(2, -1, -1))
    assert not torch.equal(codes[0], codes[1])


def test_the_callback_hears_of_every_step() -> None:
    heard: list[tuple[int, int]] = []
    tiny_model().generate(max_gen_len=4, callback=lambda done, total: heard.append((done, total)))
    assert heard == [(step, 6) for step in range(1, 7)]  # 4 frames, and 2 steps for the delay


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_gen_len": 0}, "max_gen_len: found 0"),
        ({"batch_size": 0}, "batch_size: found 0"),
        ({"init_data": random_codes(1, 4), "max_gen_len": 4}, "nothing is left to generate"),
        ({"init_data": random_codes(1, 2) + CARD}, "expected 0 to 10"),
        (
            {"init_data": torch.zeros(1, 2, 2, dtype=torch.long)},
            r"expected whole numbers \(batch, 3, length\)",
        ),
        ({"init_data": torch.zeros(1, BOOKS, 2)}, "of torch.float32"),
        ({"init_data": random_codes(2, 2), "batch_size": 3}, "found 2 clips, expected 1 or batch_size, 3"),
        ({"seed": -2}, "seed: found"),
        ({"seed": [1, 2, 3], "batch_size": 2}, "expected 2 numbers"),
        ({"temp": -0.5}, "temp: found -0.5"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tiny_model().generate(**{"max_gen_len": 5, "seed": 0, **arguments})
