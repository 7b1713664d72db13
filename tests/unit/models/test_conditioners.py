"""Conditioners and how their outputs reach the network."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stable_audio_tools.errors import CheckpointError, DataError
from stable_audio_tools.models.conditioners.multi import CONDITIONERS, MultiConditioner
from stable_audio_tools.models.conditioners.t5 import T5Conditioner
from stable_audio_tools.schema.conditioning import ConditionerConfig, ConditioningConfig, T5Config

WIDTH = 16


def conditioner(*configs: dict[str, Any], width: int = WIDTH, **changes: Any) -> MultiConditioner:
    config = ConditioningConfig.model_validate({"configs": list(configs), "cond_dim": width, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MultiConditioner(config).requires_grad_(False)


def number(key: str = "seconds", low: float = 0, high: float = 10) -> dict[str, Any]:
    return {"id": key, "type": "number", "config": {"min_val": low, "max_val": high}}


def embed(model: MultiConditioner, key: str, *values: Any) -> Tensor:
    embeddings, mask = model([{key: value} for value in values], "cpu")[key]
    assert mask.shape == embeddings.shape[:2]
    assert mask.dtype == torch.bool
    return embeddings


def test_the_conditioners_that_are_built_come_first_in_the_schema() -> None:
    from typing import get_args

    union = get_args(get_args(ConditionerConfig)[0])
    assert list(CONDITIONERS) == list(union[:4])


def test_numbers_are_clamped_and_told_apart() -> None:
    model = conditioner(number())
    low, inside, high, above = embed(model, "seconds", -5, 5.0, 10, torch.tensor(99))
    assert low.shape == (1, WIDTH)
    torch.testing.assert_close(high, above)
    assert not torch.allclose(inside, high)
    torch.testing.assert_close(low, embed(model, "seconds", 0)[0])


@pytest.mark.parametrize("value", ["ten", None, float("nan"), [1, 2]])
def test_what_is_no_number_is_named(value: Any) -> None:
    with pytest.raises(DataError, match=r"conditioning 'seconds': expected a (finite )?number, found"):
        embed(conditioner(number()), "seconds", value)


@pytest.mark.parametrize(("low", "high"), [(0, 4), (60, 64), (-2, 2)])
def test_each_integer_has_its_own_row(low: int, high: int) -> None:
    model = conditioner({"id": "n", "type": "int", "config": {"min_val": low, "max_val": high}})
    rows = embed(model, "n", *range(low, high + 1))[:, 0]
    assert len({tuple(row.tolist()) for row in rows}) == high - low + 1
    torch.testing.assert_close(embed(model, "n", low - 7, high + 7)[:, 0], rows[[0, -1]])


def test_an_integer_within_the_table_takes_the_public_row() -> None:
    model = conditioner({"id": "n", "type": "int", "config": {"min_val": 3, "max_val": 12}})
    table = model.conditioners["n"].int_embedder.weight
    torch.testing.assert_close(embed(model, "n", 3, 9)[:, 0], table[[3, 9]])


def test_words_off_the_list_share_row_zero() -> None:
    model = conditioner({"id": "mood", "type": "list", "config": {"options": ["calm", "loud", "calm"]}})
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


def test_pre_encoded_keys_pass_through() -> None:
    model = conditioner(number("prompt"), pre_encoded_keys=["prompt"])
    tokens = torch.arange(24.0).view(2, 3, 4)
    embeddings, mask = model([{"prompt": tokens[0]}, {"prompt": tokens[1].numpy()}], "cpu")["prompt"]
    torch.testing.assert_close(embeddings, tokens)
    assert mask.shape == (2, 3)
    assert mask.all()


class TestT5:
    def config(self, folder: Path, **changes: Any) -> dict[str, Any]:
        return {
            "id": "prompt",
            "type": "t5",
            "config": {"t5_model_name": str(folder), "max_length": 12, **changes},
        }

    def test_agrees_with_the_encoder_run_at_full_length(self, tiny_t5_folder: Path) -> None:
        from transformers import AutoTokenizer, T5EncoderModel

        prompts = ["calm piano", "", "fast techno with a synth bass and drums"]
        tokens = AutoTokenizer.from_pretrained(tiny_t5_folder)(
            prompts, padding="max_length", max_length=12, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            hidden = T5EncoderModel.from_pretrained(tiny_t5_folder)(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).last_hidden_state
        expected = hidden * tokens["attention_mask"].unsqueeze(-1)

        model = conditioner(self.config(tiny_t5_folder), width=32)
        embeddings, mask = model([{"prompt": prompt} for prompt in prompts], "cpu")["prompt"]
        assert embeddings.shape == (3, 12, 32)
        torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=1e-4)
        assert torch.equal(mask, tokens["attention_mask"].bool())
        assert not embeddings[~mask].any()

    def test_a_prompt_does_not_depend_on_its_batch(self, tiny_t5_folder: Path) -> None:
        model = conditioner(self.config(tiny_t5_folder), width=32)
        both = embed(model, "prompt", "sad", "slow sad folk song with guitar and voice")
        torch.testing.assert_close(embed(model, "prompt", "sad")[0], both[0], atol=1e-5, rtol=1e-4)

    def test_long_prompts_are_cut(self, tiny_t5_folder: Path) -> None:
        model = conditioner(self.config(tiny_t5_folder), width=32)
        assert embed(model, "prompt", "calm " * 50).shape == (1, 12, 32)

    def test_a_frozen_encoder_is_read_on_first_use_and_not_saved(
        self, tiny_t5_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from stable_audio_tools.models.conditioners import t5

        reads: list[str] = []
        load = t5.load_t5
        monkeypatch.setattr(t5, "load_t5", lambda name: (reads.append(name), load(name))[1])
        model = conditioner(self.config(tiny_t5_folder), width=32)
        assert not reads
        with torch.inference_mode():  # as in a validation step
            embed(model, "prompt", "calm")
        embeddings = embed(model, "prompt", "loud")
        assert len(reads) == 1
        assert not embeddings.requires_grad
        assert not model.state_dict()
        assert not list(model.parameters())

    def test_a_projection_is_made_where_widths_differ(self, tiny_t5_folder: Path) -> None:
        model = conditioner(self.config(tiny_t5_folder))
        embeddings, mask = model([{"prompt": "calm"}], "cpu")["prompt"]
        assert embeddings.shape == (1, 12, WIDTH)
        assert not embeddings[~mask].any(), "the bias of the projection must not leak into padding"
        assert set(model.state_dict()) == {
            "conditioners.prompt.proj_out.weight",
            "conditioners.prompt.proj_out.bias",
        }

    def test_a_trained_encoder_is_float32_saved_and_gets_gradients(self, tiny_t5_folder: Path) -> None:
        model = T5Conditioner(
            T5Config(t5_model_name=str(tiny_t5_folder), max_length=12, enable_grad=True), 32
        )
        embeddings, _ = model(["calm piano"], "cpu")
        embeddings.sum().backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert any(key.startswith("model.encoder.") for key in model.state_dict())

    def test_a_prompt_must_be_text(self, tiny_t5_folder: Path) -> None:
        with pytest.raises(DataError, match="conditioning 'prompt': expected a text prompt, found 3"):
            embed(conditioner(self.config(tiny_t5_folder), width=32), "prompt", 3)

    def test_an_encoder_that_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        folder = tmp_path / "no-encoder"
        folder.mkdir()
        with pytest.raises(CheckpointError, match=r"text encoder .*no-encoder"):
            conditioner(self.config(folder), width=32)

    def test_a_truncated_encoder_is_named(self, tiny_t5_folder: Path, tmp_path: Path) -> None:
        folder = tmp_path / "cut-encoder"
        shutil.copytree(tiny_t5_folder, folder)
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(CheckpointError, match=r"text encoder .*cut-encoder"):
            embed(conditioner(self.config(folder), width=32), "prompt", "calm")
