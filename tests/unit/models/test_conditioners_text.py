"""Prompts through encoders of the T5 family, and texts through a lookup table."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_conditioners import WIDTH, conditioner, embed
from torch import Tensor

from stable_audio_tools.errors import CheckpointError, DataError
from stable_audio_tools.models.conditioners.t5 import T5Conditioner, encoder_width
from stable_audio_tools.schema.conditioning import T5Config

LENGTH = 12
PROMPTS = ("calm piano", "", "fast techno with a synth bass and drums")


@pytest.fixture(scope="session")
def tiny_t5gemma_folder(tiny_t5_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random T5Gemma, encoder and decoder, of width 32 with windowed attention; seeded."""
    from transformers import (
        AutoTokenizer,
        T5GemmaConfig,
        T5GemmaForConditionalGeneration,
        T5GemmaModuleConfig,
    )

    folder = tmp_path_factory.mktemp("tiny-t5gemma")
    tokenizer = AutoTokenizer.from_pretrained(tiny_t5_folder)
    tokenizer.save_pretrained(folder)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 4,
        "query_pre_attn_scalar": 8,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        T5GemmaForConditionalGeneration(
            T5GemmaConfig(encoder=T5GemmaModuleConfig(**sizes), decoder=T5GemmaModuleConfig(**sizes))
        ).save_pretrained(folder)
    return folder


@pytest.fixture(params=["t5", "t5gemma", "t5 that is a t5gemma"])
def text(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The JSON of a text conditioner of either kind."""
    gemma = "gemma" in request.param
    folder = request.getfixturevalue("tiny_t5gemma_folder" if gemma else "tiny_t5_folder")
    name = "model_name" if request.param == "t5gemma" else "t5_model_name"
    return {
        "id": "prompt",
        "type": request.param.split()[0],
        "config": {name: str(folder), "max_length": LENGTH},
    }


def changed(text: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**text, "config": {**text["config"], **changes}}


def folder_of(text: dict[str, Any]) -> str:
    return str(text["config"].get("model_name") or text["config"]["t5_model_name"])


def at_full_length(folder: str) -> tuple[Tensor, Tensor]:
    """What transformers itself makes of the prompts, padding included, and their mask."""
    from transformers import AutoConfig, AutoTokenizer, T5EncoderModel, T5GemmaEncoderModel

    tokens = AutoTokenizer.from_pretrained(folder)(
        list(PROMPTS), padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    )
    config = AutoConfig.from_pretrained(folder)
    if config.model_type == "t5gemma":
        config.is_encoder_decoder = False
        encoder: Any = T5GemmaEncoderModel.from_pretrained(folder, config=config)
    else:
        encoder = T5EncoderModel.from_pretrained(folder)
    with torch.no_grad():
        hidden = encoder.eval()(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    return hidden.last_hidden_state, tokens["attention_mask"].bool()


@pytest.mark.parametrize("mode", ["zero", "none", "learned"])
def test_agrees_with_the_encoder_run_at_full_length(text: dict[str, Any], mode: str) -> None:
    model = conditioner(changed(text, padding_mode=mode), width=32)
    embeddings, mask = model([{"prompt": prompt} for prompt in PROMPTS], "cpu")["prompt"]
    expected, expected_mask = at_full_length(folder_of(text))
    assert embeddings.shape == (3, LENGTH, 32)
    assert torch.equal(mask, expected_mask)
    torch.testing.assert_close(embeddings[mask], expected[mask], atol=1e-5, rtol=1e-4)
    if mode == "zero":
        assert not embeddings[~mask].any()
    elif mode == "none":
        torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=1e-4)
    else:
        learned = model.conditioners["prompt"].padding_embedding
        assert learned.abs().sum() > 0
        torch.testing.assert_close(embeddings[~mask], learned.expand(int((~mask).sum()), -1))


@pytest.mark.parametrize("mode", ["zero", "none", "learned"])
def test_a_prompt_does_not_depend_on_its_batch(text: dict[str, Any], mode: str) -> None:
    model = conditioner(changed(text, padding_mode=mode), width=32)
    together = embed(model, "prompt", *PROMPTS)
    alone = torch.cat([embed(model, "prompt", prompt) for prompt in PROMPTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_a_tokenizer_that_pads_on_the_left_is_followed(tiny_t5_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "left"
    shutil.copytree(tiny_t5_folder, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": "left"}))
    config = {"id": "prompt", "type": "t5", "config": {"t5_model_name": str(folder), "max_length": LENGTH}}
    embeddings, mask = conditioner(config, width=32)([{"prompt": p} for p in PROMPTS], "cpu")["prompt"]
    expected, expected_mask = at_full_length(str(folder))
    assert not expected_mask[0, 0]
    assert torch.equal(mask, expected_mask)
    torch.testing.assert_close(embeddings[mask], expected[mask], atol=1e-5, rtol=1e-4)


def test_long_prompts_are_cut(text: dict[str, Any]) -> None:
    assert embed(conditioner(text, width=32), "prompt", "calm " * 50).shape == (1, LENGTH, 32)


def test_a_frozen_encoder_is_read_on_first_use_and_not_saved(
    text: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from stable_audio_tools.models.conditioners import t5

    reads: list[str] = []
    load = t5.load_t5
    monkeypatch.setattr(t5, "load_t5", lambda name: (reads.append(name), load(name))[1])
    model = conditioner(text, width=32)
    assert not reads
    with torch.inference_mode():  # as in a validation step
        embed(model, "prompt", "calm")
    embeddings = embed(model, "prompt", "loud")
    assert len(reads) == 1
    assert not embeddings.requires_grad
    assert not model.state_dict()
    assert not list(model.parameters())


@pytest.mark.parametrize("mode", ["zero", "learned"])
def test_a_projection_is_made_where_widths_differ(text: dict[str, Any], mode: str) -> None:
    model = conditioner(changed(text, padding_mode=mode))
    embeddings, mask = model([{"prompt": "calm"}], "cpu")["prompt"]
    assert embeddings.shape == (1, LENGTH, WIDTH)
    padding = model.conditioners["prompt"].padding_embedding if mode == "learned" else torch.zeros(WIDTH)
    assert embeddings[~mask].eq(padding).all(), "the bias of the projection must not leak into padding"
    keys = ["padding_embedding"] if mode == "learned" else []
    assert list(model.state_dict()) == [
        f"conditioners.prompt.{key}" for key in [*keys, "proj_out.weight", "proj_out.bias"]
    ]


def test_project_out_makes_one_where_widths_agree(text: dict[str, Any]) -> None:
    model = conditioner(changed(text, project_out=True), width=32)
    assert model.state_dict()["conditioners.prompt.proj_out.weight"].shape == (32, 32)


def test_the_dtype_is_that_of_the_projection(text: dict[str, Any]) -> None:
    model = conditioner(text).to(torch.bfloat16)
    assert model([{"prompt": "calm"}], "cpu")["prompt"][0].dtype == torch.bfloat16


def test_a_trained_encoder_is_float32_saved_and_gets_gradients(text: dict[str, Any]) -> None:
    model = conditioner(changed(text, enable_grad=True), width=32).train().requires_grad_(True)
    embeddings, _ = model([{"prompt": "calm piano"}], "cpu")["prompt"]
    embeddings.square().sum().backward()
    unused = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unused
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(key.startswith("conditioners.prompt.model.") for key in model.state_dict())
    assert any(".model.encoder." in key for key in model.state_dict())


def test_a_trained_encoder_has_no_dropout(text: dict[str, Any]) -> None:
    model = conditioner(changed(text, enable_grad=True), width=32).train()
    torch.testing.assert_close(embed(model, "prompt", "calm"), embed(model, "prompt", "calm"), atol=0, rtol=0)


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_embed_alike(text: dict[str, Any], duplicate: Any, used: bool) -> None:
    model = conditioner(text)
    if used:
        embed(model, "prompt", "calm")
    torch.testing.assert_close(embed(duplicate(model), "prompt", "calm"), embed(model, "prompt", "calm"))


def test_a_trained_encoder_is_built_on_the_meta_device(text: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = conditioner(changed(text, enable_grad=True), width=32)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert set(model.state_dict()) == set(conditioner(changed(text, enable_grad=True), width=32).state_dict())


def test_a_prompt_must_be_text(text: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="conditioning 'prompt': item 1: expected a text prompt, found 3"):
        embed(conditioner(text, width=32), "prompt", "calm", 3)


def test_an_encoder_that_cannot_be_read_is_named(text: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "no-encoder"
    folder.mkdir()
    name = next(key for key in text["config"] if key.endswith("model_name"))
    with pytest.raises(CheckpointError, match=r"text encoder .*no-encoder.* in this folder"):
        conditioner(changed(text, **{name: str(folder)}), width=32)


def test_a_truncated_encoder_is_named(text: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "cut-encoder"
    shutil.copytree(folder_of(text), folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    name = next(key for key in text["config"] if key.endswith("model_name"))
    with pytest.raises(CheckpointError, match=r"text encoder .*cut-encoder"):
        embed(conditioner(changed(text, **{name: str(folder)}), width=32), "prompt", "calm")


def test_an_encoder_with_weights_missing_is_refused(text: dict[str, Any], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "half-encoder"
    shutil.copytree(folder_of(text), folder)
    state = load_file(folder / "model.safetensors")
    lost = next(key for key in state if "encoder" in key and key.endswith("norm.weight"))
    save_file(
        {key: value for key, value in state.items() if key != lost},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    name = next(key for key in text["config"] if key.endswith("model_name"))
    with pytest.raises(CheckpointError, match=r"half-encoder.*is not whole, 1 weights are missing"):
        embed(conditioner(changed(text, **{name: str(folder)}), width=32), "prompt", "calm")


def test_an_encoder_of_another_kind_is_refused(tiny_clap_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="is of type 'clap'; expected one of mt5, t5, t5gemma, umt5"):
        encoder_width(str(tiny_clap_folder))


def test_published_widths_need_no_download() -> None:
    assert T5Conditioner(T5Config(), 768).state_dict() == {}
    assert encoder_width("google/t5gemma-b-b-ul2") == 768


class TestLUT:
    def config(self, folder: Path, **changes: Any) -> dict[str, Any]:
        return {
            "id": "text",
            "type": "lut",
            "config": {"tokenizer_name": str(folder), "max_length": LENGTH, **changes},
        }

    def test_tokens_are_looked_up_and_padding_is_zero(self, tiny_t5_folder: Path) -> None:
        model = conditioner(self.config(tiny_t5_folder))
        lut = model.conditioners["text"]
        embeddings, mask = model([{"text": "calm piano"}], "cpu")["text"]
        ids = lut._read()("calm piano")["input_ids"]
        assert embeddings.shape == (1, LENGTH, WIDTH)
        assert mask[0].tolist() == [True] * len(ids) + [False] * (LENGTH - len(ids))
        torch.testing.assert_close(embeddings[mask], lut.token_embedder.weight[ids])
        assert not embeddings[~mask].any()

    def test_positions_are_added_to_padding_too(self, tiny_t5_folder: Path) -> None:
        without = conditioner(self.config(tiny_t5_folder))
        model = conditioner(self.config(tiny_t5_folder, use_abs_pos_emb=True))
        model.load_state_dict(without.state_dict(), strict=False)
        positions = model.state_dict()["conditioners.text.abs_pos_emb.emb.weight"] * WIDTH**-0.5
        torch.testing.assert_close(embed(model, "text", "calm"), embed(without, "text", "calm") + positions)

    def test_special_tokens_stay_one(self, tiny_t5_folder: Path) -> None:
        without = conditioner(self.config(tiny_t5_folder)).conditioners["text"]
        lut = conditioner(self.config(tiny_t5_folder, special_tokens=["[drop]", "[verse]"])).conditioners[
            "text"
        ]
        assert len(lut.token_embedder.weight) == len(without.token_embedder.weight) + 2
        assert lut._read()("calm [drop]")["input_ids"][1] == len(without.token_embedder.weight)

    def test_a_text_does_not_depend_on_its_batch(self, tiny_t5_folder: Path) -> None:
        model = conditioner(self.config(tiny_t5_folder, use_abs_pos_emb=True, project_out=True))
        alone = torch.cat([embed(model, "text", prompt) for prompt in PROMPTS])
        torch.testing.assert_close(embed(model, "text", *PROMPTS), alone)

    def test_state_dict_keys_are_the_public_ones(self, tiny_t5_folder: Path) -> None:
        model = conditioner(self.config(tiny_t5_folder, use_abs_pos_emb=True, project_out=True))
        assert set(model.state_dict()) == {
            f"conditioners.text.{key}"
            for key in ("proj_out.weight", "proj_out.bias", "token_embedder.weight", "abs_pos_emb.emb.weight")
        }

    def test_a_tokenizer_that_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"tokenizer .*: expected a tokenizer in this folder"):
            conditioner(self.config(tmp_path))

    def test_a_tokenizer_without_padding_is_refused(self, tiny_t5_folder: Path, tmp_path: Path) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tiny_t5_folder)
        tokenizer.pad_token = None
        tokenizer.save_pretrained(tmp_path)
        with pytest.raises(CheckpointError, match="has no padding token"):
            conditioner(self.config(tmp_path))

    def test_a_text_must_be_text(self, tiny_t5_folder: Path) -> None:
        with pytest.raises(DataError, match="conditioning 'text': item 0: expected a text prompt"):
            embed(conditioner(self.config(tiny_t5_folder)), "text", 4)


@pytest.mark.parametrize("kind", ["MT5", "UMT5"])
def test_the_class_of_an_encoder_is_told_by_its_config(
    kind: str, tiny_t5_folder: Path, tmp_path: Path
) -> None:
    import transformers

    sizes = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_t5_folder / name, tmp_path / name)
    encoder = getattr(transformers, f"{kind}EncoderModel")
    config = getattr(transformers, f"{kind}Config")(**sizes)
    encoder(config).save_pretrained(tmp_path)
    model = conditioner({"id": "prompt", "type": "t5", "config": {"t5_model_name": str(tmp_path)}})
    assert embed(model, "prompt", "calm").shape == (1, 128, WIDTH)
    assert isinstance(model.conditioners["prompt"]._frozen[0], encoder)


def test_encoders_are_found_beside_the_config(tmp_path: Path) -> None:
    """Every key that names a pretrained model may be relative to the folder of the config."""
    from stable_audio_tools.schema.reader import read_model_json

    keys = ("t5_model_name", "model_name", "clap_ckpt_path", "tokenizer_name", "pretransform_ckpt_path")
    value = {
        "configs": [{"config": {key: "../encoder"}} for key in keys] + [{"config": {keys[0]: "t5-base"}}]
    }
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "model_config.json"
    path.write_text(json.dumps(value))
    found = [next(iter(entry["config"].values())) for entry in read_model_json(path)["configs"]]
    assert found == [str((tmp_path / "encoder").resolve())] * len(keys) + ["t5-base"]
