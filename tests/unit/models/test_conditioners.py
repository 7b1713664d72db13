"""Numbers, choices and ready embeddings, and how the conditioners of a model work together."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from tiny_conditioners import WIDTH, conditioner, embed
from torch import nn

from stable_audio_tools.errors import ConfigError, DataError
from stable_audio_tools.models.conditioners import create_multi_conditioner_from_conditioning_config
from stable_audio_tools.models.conditioners.multi import MultiConditioner
from stable_audio_tools.models.conditioners.registry import CONDITIONERS
from stable_audio_tools.schema.conditioning import ConditionerConfig, ConditioningConfig


def number(key: str = "seconds", low: float = 0, high: float = 10, **more: Any) -> dict[str, Any]:
    return {"id": key, "type": "number", "config": {"min_val": low, "max_val": high, **more}}


def whole(low: int, high: int) -> dict[str, Any]:
    return {"id": "n", "type": "int", "config": {"min_val": low, "max_val": high}}


MOOD = {"id": "mood", "type": "list", "config": {"options": ["calm", "loud", "calm"]}}


def test_every_conditioner_of_the_schema_is_built() -> None:
    assert set(CONDITIONERS) == set(get_args(get_args(ConditionerConfig)[0]))


def test_numbers_are_clamped_and_told_apart() -> None:
    model = conditioner(number())
    low, inside, high, above = embed(model, "seconds", -5, 5.0, 10, torch.tensor(99))
    assert low.shape == (1, WIDTH)
    torch.testing.assert_close(high, above)
    assert not torch.allclose(inside, high)
    torch.testing.assert_close(low, embed(model, "seconds", 0)[0])


@pytest.mark.parametrize("value", ["ten", None, float("nan"), [1, 2], torch.ones(2)])
def test_what_is_no_number_is_named(value: Any) -> None:
    with pytest.raises(
        DataError, match=r"conditioning 'seconds': item 1: expected a (finite )?number, found"
    ):
        embed(conditioner(number()), "seconds", 3, value)


@pytest.mark.parametrize(("low", "high"), [(0, 4), (60, 64), (-2, 2)])
def test_each_integer_has_its_own_row(low: int, high: int) -> None:
    model = conditioner(whole(low, high))
    rows = embed(model, "n", *range(low, high + 1))[:, 0]
    assert len({tuple(row.tolist()) for row in rows}) == high - low + 1
    torch.testing.assert_close(embed(model, "n", low - 7, high + 7)[:, 0], rows[[0, -1]])


def test_an_integer_within_the_table_takes_the_public_row() -> None:
    model = conditioner(whole(3, 12))
    table = model.conditioners["n"].int_embedder.weight
    torch.testing.assert_close(embed(model, "n", 3, 9)[:, 0], table[[3, 9]])


def test_words_off_the_list_share_row_zero() -> None:
    model = conditioner(MOOD)
    table = model.conditioners["mood"].embedder.weight
    assert len(table) == 4
    torch.testing.assert_close(embed(model, "mood", "loud", "sad", "calm")[:, 0], table[[2, 0, 1]])


def test_a_list_of_one_stands_for_its_element() -> None:
    model = conditioner(number())
    torch.testing.assert_close(embed(model, "seconds", [3], (3,)), embed(model, "seconds", 3, 3))


def test_a_missing_key_names_the_item_and_what_is_there() -> None:
    with pytest.raises(DataError, match=r"item 1 has no 'seconds'; it has: path, prompt"):
        conditioner(number())([{"seconds": 1}, {"prompt": "x", "path": "y"}], "cpu")


def test_default_keys_stay_with_the_item_that_needs_them() -> None:
    model = conditioner(number(), default_keys={"seconds": "length"})
    found = model([{"length": 2, "other": 0}, {"seconds": 3, "length": 9}], "cpu")["seconds"][0]
    torch.testing.assert_close(found, embed(model, "seconds", 2, 3))
    with pytest.raises(DataError, match="'seconds' or its default 'length'"):
        model([{"other": 0}], "cpu")


def test_fixed_frequencies_are_those_of_stable_audio_3() -> None:
    model = conditioner(number(fourier_features_type="expo"))
    layer = model.conditioners["seconds"].embedder.embedding[1]
    frequencies = 0.5 * (10_000 / 0.5) ** (torch.arange(128, dtype=torch.float64) / 127)
    angles = 2 * math.pi * 0.3 * frequencies
    features = torch.cat([angles.cos(), angles.sin()]).float()
    torch.testing.assert_close(embed(model, "seconds", 3)[0, 0], layer(features), atol=5e-3, rtol=0)
    torch.testing.assert_close(embed(model, "seconds", 99), embed(model, "seconds", 10))


@pytest.mark.parametrize("kind", ["learned", "expo"])
def test_a_number_does_not_depend_on_its_batch(kind: str) -> None:
    model = conditioner(number(fourier_features_type=kind))
    values = (0, 1.5, 7, 10)
    alone = torch.cat([embed(model, "seconds", value) for value in values])
    torch.testing.assert_close(embed(model, "seconds", *values), alone)


def test_state_dict_keys_are_the_public_ones() -> None:
    model = conditioner(number(), number("tempo", fourier_features_type="expo"), whole(0, 3), MOOD)
    assert list(model.state_dict()) == [
        "conditioners.seconds.embedder.embedding.0.weights",
        "conditioners.seconds.embedder.embedding.1.weight",
        "conditioners.seconds.embedder.embedding.1.bias",
        "conditioners.tempo.embedder.embedding.1.weight",
        "conditioners.tempo.embedder.embedding.1.bias",
        "conditioners.n.int_embedder.weight",
        "conditioners.mood.embedder.weight",
    ]


def test_embeddings_follow_the_dtype_of_the_weights() -> None:
    model = conditioner(number(), whole(0, 3), MOOD).half()
    conditions = model([{"seconds": 4, "n": 2, "mood": "calm"}], "cpu")
    assert {embeddings.dtype for embeddings, _ in conditions.values()} == {torch.float16}


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_embed_alike(duplicate: Any) -> None:
    model = conditioner(number(), whole(0, 3), MOOD)
    item = {"seconds": 4, "n": 2, "mood": "calm"}
    for key, (embeddings, _) in duplicate(model)([item], "cpu").items():
        torch.testing.assert_close(embeddings, model([item], "cpu")[key][0], atol=0, rtol=0)


def test_a_width_of_its_own_is_kept() -> None:
    assert embed(conditioner(number(output_dim=24)), "seconds", 1).shape == (1, 1, 24)


class TestPreEncoded:
    def model(self) -> MultiConditioner:
        return conditioner(number("prompt"), pre_encoded_keys=["prompt"])

    def test_embeddings_pass_through(self) -> None:
        tokens = torch.arange(24.0).view(2, 3, 4)
        found = embed(self.model(), "prompt", tokens[0], tokens[1].double().numpy())
        torch.testing.assert_close(found, tokens)

    def test_a_vector_is_one_token(self) -> None:
        assert embed(self.model(), "prompt", torch.ones(4), torch.zeros(1, 1, 4)).shape == (2, 1, 4)

    def test_shorter_ones_are_padded_and_masked(self) -> None:
        given = torch.tensor([True, False, True])
        items = [{"prompt": torch.ones(2, 4)}, {"prompt": (2 * torch.ones(3, 4), given)}]
        embeddings, mask = self.model()(items, "cpu")["prompt"]
        assert torch.equal(mask, torch.tensor([[True, True, False], [True, False, True]]))
        assert embeddings[0, 2].eq(0).all()
        assert embeddings[1].eq(2).all()

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            ("words", "item 1: expected embeddings as a tensor"),
            (torch.ones(3, 5), "expected embeddings that differ in their first dimension only"),
            ((torch.ones(3, 4), torch.ones(2)), r"item 1: .*a mask \(S,\)"),
            (torch.ones(2, 3, 4), r"item 1: .*found \(2, 3, 4\)"),
        ],
    )
    def test_what_does_not_fit_is_named(self, bad: Any, message: str) -> None:
        with pytest.raises(DataError, match=f"conditioning 'prompt': {message}"):
            embed(self.model(), "prompt", torch.ones(3, 4), bad)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"configs": [number(), number()]}, "'seconds' is given to 2 conditioners"),
        ({"configs": [number("a.b")]}, "'a.b' has a dot"),
        ({"configs": [number("")]}, "at least 1 character"),
        ({"configs": [whole(4, 3)]}, "max_val must not be below min_val, found 4 and 3"),
        ({"configs": [number(low=1, high=1)]}, "max_val must be above min_val"),
        ({"configs": [number()], "default_keys": {"second": "x"}}, "default_keys names 'second'"),
        ({"configs": [number()], "pre_encoded_keys": ["prompt"]}, "pre_encoded_keys names 'prompt'"),
    ],
)
def test_what_cannot_work_is_refused_when_read(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ConditioningConfig.model_validate({"cond_dim": WIDTH, **changes})


def test_an_id_that_torch_has_taken_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.conditioning\.configs\[1\]\.id: 'forward'"):
        conditioner(number(), number("forward"))


def test_the_public_function_takes_the_json_value() -> None:
    model = create_multi_conditioner_from_conditioning_config({"cond_dim": WIDTH, "configs": [MOOD]})
    assert embed(model, "mood", "calm").shape == (1, 1, WIDTH)
    with pytest.raises(ConfigError, match=r"conditioning config: configs\[0\]\.type: unknown type 'nuber'"):
        create_multi_conditioner_from_conditioning_config(
            {"cond_dim": WIDTH, "configs": [{"id": "x", "type": "nuber", "config": {}}]}
        )


def test_conditioners_are_built_without_weights_on_the_meta_device() -> None:
    """Encoders of known widths are not fetched for it."""
    config = {
        "cond_dim": WIDTH,
        "configs": [
            number(),
            whole(0, 3),
            MOOD,
            {"id": "t5", "type": "t5", "config": {"padding_mode": "learned"}},
            {"id": "gemma", "type": "t5gemma"},
            {"id": "text", "type": "clap_text", "config": {"clap_ckpt_path": "laion/clap-htsat-fused"}},
            {
                "id": "features",
                "type": "clap_text",
                "config": {"clap_ckpt_path": "music.pt", "use_text_features": True},
            },
            {
                "id": "lut",
                "type": "lut",
                "config": {"tokenizer_name": "t5-base", "special_tokens": ["[verse]"]},
            },
            {"id": "audio", "type": "clap_audio", "config": {"clap_ckpt_path": "laion/larger_clap_music"}},
        ],
    }
    with torch.device("meta"):
        model = create_multi_conditioner_from_conditioning_config(config)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert {key: shape for key, shape in shapes.items() if key.endswith("proj_out.weight")} == {
        "conditioners.t5.proj_out.weight": (WIDTH, 768),
        "conditioners.gemma.proj_out.weight": (WIDTH, 768),
        "conditioners.text.proj_out.weight": (WIDTH, 512),
        "conditioners.features.proj_out.weight": (WIDTH, 768),
        "conditioners.audio.proj_out.weight": (WIDTH, 512),
    }
    assert shapes["conditioners.lut.token_embedder.weight"] == (32_101, WIDTH)
    assert shapes["conditioners.t5.padding_embedding"] == (WIDTH,)
    assert all(isinstance(p, nn.Parameter) and p.is_meta for p in model.parameters())
