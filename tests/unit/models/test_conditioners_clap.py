"""Text and audio through a CLAP, in the format of Hugging Face and of LAION."""

from __future__ import annotations

import copy
import io
import math
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_conditioners import WIDTH, conditioner, embed
from torch import Tensor

from stable_audio_tools.errors import CheckpointError, ConfigError, DataError
from stable_audio_tools.models.clap import load_clap
from stable_audio_tools.models.clap_laion import convert, load_laion

RATE = 16000
TEXTS = ("a calm song", "fast rock with drums and guitar", "")


@pytest.fixture(params=["fusion", "no fusion"])
def clap_folder(request: pytest.FixtureRequest) -> str:
    name = "tiny_clap_folder" if request.param == "fusion" else "tiny_clap_without_fusion"
    return str(request.getfixturevalue(name))


def config(kind: str, place: str | Path, **changes: Any) -> dict[str, Any]:
    return {"id": "clap", "type": f"clap_{kind}", "config": {"clap_ckpt_path": str(place), **changes}}


def tone(length: int, pitch: float = 440.0, channels: int = 1, rate: int = RATE) -> Tensor:
    wave = 0.3 * torch.sin(2 * math.pi * pitch * torch.arange(length) / rate)
    return wave.expand(channels, -1)


class TestText:
    def test_an_embedding_is_that_of_the_model_itself(self, clap_folder: str) -> None:
        from transformers import AutoTokenizer, ClapModel

        tokens = AutoTokenizer.from_pretrained(clap_folder)(list(TEXTS), padding=True, return_tensors="pt")
        with torch.no_grad():
            found = (
                ClapModel.from_pretrained(clap_folder)
                .eval()
                .get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
            )
        expected = found if isinstance(found, Tensor) else found.pooler_output
        embeddings = embed(conditioner(config("text", clap_folder)), "clap", *TEXTS)
        assert embeddings.shape == (3, 1, 16)
        torch.testing.assert_close(embeddings[:, 0], expected, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("layer", [0, -1, -2])
    def test_features_are_a_hidden_state_with_its_mask(self, clap_folder: str, layer: int) -> None:
        from transformers import AutoTokenizer, ClapModel

        tokens = AutoTokenizer.from_pretrained(clap_folder)(
            list(TEXTS), padding="max_length", max_length=30, return_tensors="pt"
        )
        with torch.no_grad():
            states = (
                ClapModel.from_pretrained(clap_folder)
                .eval()
                .text_model(
                    input_ids=tokens["input_ids"],
                    attention_mask=tokens["attention_mask"],
                    output_hidden_states=True,
                )
                .hidden_states
            )
        model = conditioner(
            config("text", clap_folder, use_text_features=True, feature_layer_ix=layer), width=32
        )
        embeddings, mask = model([{"clap": text} for text in TEXTS], "cpu")["clap"]
        assert torch.equal(mask, tokens["attention_mask"].bool())
        torch.testing.assert_close(embeddings, states[layer], atol=1e-5, rtol=0)

    @pytest.mark.parametrize("changes", [{}, {"use_text_features": True}])
    def test_a_text_does_not_depend_on_its_batch(self, clap_folder: str, changes: dict[str, Any]) -> None:
        model = conditioner(config("text", clap_folder, **changes))
        alone = torch.cat([embed(model, "clap", text) for text in TEXTS])
        torch.testing.assert_close(embed(model, "clap", *TEXTS), alone, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("mode", ["zero", "learned"])
    def test_features_of_padding_can_be_replaced(self, tiny_clap_folder: Path, mode: str) -> None:
        model = conditioner(config("text", tiny_clap_folder, use_text_features=True, padding_mode=mode))
        embeddings, mask = model([{"clap": "a calm song"}], "cpu")["clap"]
        padding = model.conditioners["clap"].padding_embedding if mode == "learned" else torch.zeros(WIDTH)
        assert embeddings[~mask].eq(padding).all()
        assert embeddings[mask].ne(padding).any(dim=1).all()

    def test_a_layer_that_is_not_there_is_named(self, tiny_clap_folder: Path) -> None:
        model = conditioner(config("text", tiny_clap_folder, use_text_features=True, feature_layer_ix=2))
        with pytest.raises(
            ConfigError, match="feature_layer_ix: 2 is none of the 2 hidden states; expected -2 to 1"
        ):
            embed(model, "clap", "a calm song")

    def test_a_text_must_be_text(self, tiny_clap_folder: Path) -> None:
        with pytest.raises(DataError, match="conditioning 'clap': item 1: expected a text prompt"):
            embed(conditioner(config("text", tiny_clap_folder)), "clap", "a calm song", 4)


class TestAudio:
    def test_it_is_built_and_makes_one_token(self, clap_folder: str) -> None:
        """The public class reads ``self.finetune`` without ever setting it, so it cannot be built."""
        model = conditioner(config("audio", clap_folder), sample_rate=RATE)
        embeddings = embed(model, "clap", tone(RATE), tone(RATE, 1200.0))
        assert embeddings.shape == (2, 1, WIDTH)
        torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(2, 1))
        assert (embeddings[0] - embeddings[1]).abs().max() > 1e-3

    def test_a_clip_does_not_depend_on_its_batch(self, clap_folder: str) -> None:
        model = conditioner(config("audio", clap_folder), sample_rate=RATE)
        clips = [tone(length) for length in (RATE // 3, RATE, 3 * RATE + 777)]
        alone = torch.cat([embed(model, "clap", clip) for clip in clips])
        torch.testing.assert_close(embed(model, "clap", *clips), alone, atol=1e-5, rtol=0)

    def test_audio_of_any_shape_and_channels_is_mixed(self, tiny_clap_folder: Path) -> None:
        model = conditioner(config("audio", tiny_clap_folder), sample_rate=RATE)
        mono = tone(RATE)
        shapes = (mono, mono[0], mono[None], torch.cat([1.5 * mono, 0.5 * mono]), mono[0].numpy(), [mono])
        rows = embed(model, "clap", *shapes)
        torch.testing.assert_close(rows, rows[:1].expand_as(rows), atol=1e-4, rtol=0)

    def test_it_is_resampled_from_the_rate_of_the_model(self, tiny_clap_folder: Path) -> None:
        low = embed(conditioner(config("audio", tiny_clap_folder), sample_rate=RATE), "clap", tone(RATE))
        model = conditioner(config("audio", tiny_clap_folder), sample_rate=44100)
        high = embed(model, "clap", tone(44100, rate=44100))
        assert torch.cosine_similarity(low, high, dim=-1).item() > 0.99

    def test_text_and_audio_meet_in_one_space(self, tiny_clap_folder: Path) -> None:
        from stable_audio_tools.evaluation.clap import ClapEmbedder

        judge = ClapEmbedder(tiny_clap_folder, device="cpu")
        audio = embed(conditioner(config("audio", tiny_clap_folder), sample_rate=RATE), "clap", tone(RATE))
        torch.testing.assert_close(audio[0], judge.embed_audio([tone(RATE)], RATE), atol=1e-6, rtol=0)
        text = embed(conditioner(config("text", tiny_clap_folder)), "clap", "a calm song")
        torch.testing.assert_close(text[0], judge.embed_text(["a calm song"]), atol=1e-6, rtol=0)

    @pytest.mark.parametrize("bad", ["kick.wav", torch.zeros(1, 0), torch.full((1, 9), float("nan"))])
    def test_what_is_no_audio_is_named(self, tiny_clap_folder: Path, bad: Any) -> None:
        model = conditioner(config("audio", tiny_clap_folder), sample_rate=RATE)
        with pytest.raises(DataError, match="conditioning 'clap': item 1: expected audio"):
            embed(model, "clap", tone(RATE), bad)


@pytest.mark.parametrize("kind", ["text", "audio"])
class TestWeights:
    def value(self, kind: str) -> Any:
        return "a calm song" if kind == "text" else tone(RATE)

    def test_a_frozen_one_is_not_saved(self, kind: str, clap_folder: str) -> None:
        model = conditioner(config(kind, clap_folder, output_dim=24)).train()
        with torch.inference_mode():
            embed(model, "clap", self.value(kind))
        embeddings = embed(model, "clap", self.value(kind))
        assert not embeddings.requires_grad
        assert set(model.state_dict()) == {f"conditioners.clap.proj_out.{key}" for key in ("weight", "bias")}

    def test_a_finetuned_branch_is_saved_and_gets_gradients(self, kind: str, clap_folder: str) -> None:
        model = conditioner(config(kind, clap_folder, finetune=True)).train().requires_grad_(True)
        long = tone(3 * RATE) if kind == "audio" else self.value(kind)
        embeddings = model([{"clap": long}], "cpu")["clap"][0]
        (embeddings * torch.arange(WIDTH)).sum().backward()
        unused = {key for key, p in model.named_parameters() if p.grad is None}
        assert not unused
        branches = {key.split(".")[3] for key in model.state_dict()}
        assert branches == {f"{kind}_model", f"{kind}_projection"}

    def test_a_finetuned_branch_has_no_dropout(self, kind: str, tiny_clap_folder: Path) -> None:
        model = conditioner(config(kind, tiny_clap_folder, finetune=True)).train()
        first, second = (embed(model, "clap", self.value(kind)) for _ in range(2))
        torch.testing.assert_close(first, second, atol=0, rtol=0)

    def test_finetuned_weights_load_again(self, kind: str, tiny_clap_folder: Path) -> None:
        model = conditioner(config(kind, tiny_clap_folder, finetune=True))
        for parameter in model.parameters():
            parameter.mul_(1.1)
        other = conditioner(config(kind, tiny_clap_folder, finetune=True))
        other.load_state_dict(model.state_dict(), strict=True)
        torch.testing.assert_close(
            embed(other, "clap", self.value(kind)), embed(model, "clap", self.value(kind)), atol=0, rtol=0
        )

    @pytest.mark.parametrize("finetune", [False, True])
    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
    def test_copies_embed_alike_and_share_nothing(
        self, kind: str, tiny_clap_folder: Path, duplicate: Any, finetune: bool
    ) -> None:
        read = conditioner(config(kind, tiny_clap_folder, finetune=finetune))
        embed(read, "clap", self.value(kind))
        # weights mapped from a file may lie askew in memory, where they are added up by another kernel
        model = copy.deepcopy(read)
        expected = embed(model, "clap", self.value(kind))
        other = duplicate(model)
        for parameter in model.parameters():
            parameter.zero_()
        torch.testing.assert_close(embed(other, "clap", self.value(kind)), expected, atol=0, rtol=0)

    def test_a_finetuned_one_is_built_on_the_meta_device(self, kind: str, tiny_clap_folder: Path) -> None:
        with torch.device("meta"):
            model = conditioner(config(kind, tiny_clap_folder, finetune=True))
        assert list(model.parameters())
        assert all(parameter.is_meta for parameter in model.parameters())

    def test_what_is_no_clap_is_named(self, kind: str, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"CLAP .*: expected a CLAP in this folder"):
            conditioner(config(kind, tmp_path))

    def test_a_model_of_another_kind_is_refused(self, kind: str, tiny_t5_folder: Path) -> None:
        with pytest.raises(CheckpointError, match="is of type 't5'; expected 'clap'"):
            conditioner(config(kind, tiny_t5_folder))


def laion_state(model: Any) -> dict[str, Tensor]:
    """The state dict of a ``ClapModel`` as LAION would have saved it."""
    names = [
        (".attention.output.dense.", ".attn.proj."),
        (".attention.self.relative", ".attn.relative"),
        (".intermediate.dense.", ".mlp.fc1."),
        (".output.dense.", ".mlp.fc2."),
        (".layernorm_before.", ".norm1."),
        (".layernorm_after.", ".norm2."),
        ("batch_norm.", "bn0."),
    ]
    result: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        if key.startswith("audio_model.audio_encoder."):
            name = key.removeprefix("audio_model.audio_encoder.")
            for new, old in names:
                name = name.replace(new, old)
            if ".attention.self.query." in name:
                parts = [model.state_dict()[key.replace("query", part)] for part in ("query", "key", "value")]
                result["audio_branch." + name.replace("attention.self.query", "attn.qkv")] = torch.cat(parts)
            elif ".attention.self." not in name:
                result["audio_branch." + name] = value
        elif key.startswith("text_model."):
            result["text_branch." + key.removeprefix("text_model.")] = value
        else:
            result[key.replace(".linear1.", ".0.").replace(".linear2.", ".2.")] = value
    result["audio_branch.logmel_extractor.melW"] = torch.zeros(3, 3)
    result["audio_branch.layers.0.blocks.1.attn_mask"] = torch.zeros(3)
    result["text_branch.embeddings.position_ids"] = torch.arange(40)[None]
    result["text_transform.sequential.0.weight"] = torch.zeros(2, 2)
    return {f"module.{key}": value for key, value in result.items()}


@pytest.fixture(scope="session", params=["fusion", "no fusion"])
def laion(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A ``.pt`` file as LAION published them, beside its tokenizer, and the model it was made of."""
    from transformers import ClapConfig, ClapModel

    fusion = request.param == "fusion"
    tokenizer = Path(request.getfixturevalue("tiny_clap_folder"))
    folder = tmp_path_factory.mktemp("laion")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder / name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ClapModel(
            ClapConfig(
                projection_dim=12,
                text_config={
                    "vocab_size": 20,
                    "hidden_size": 128,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "intermediate_size": 48,
                    "max_position_embeddings": 40,
                    "layer_norm_eps": 1e-5,
                },
                audio_config={
                    "patch_embeds_hidden_size": 8,
                    "depths": [2, 1],
                    "num_hidden_layers": 2,
                    "num_attention_heads": [1, 2],
                    "hidden_size": 16,
                    "enable_fusion": fusion,
                    "fusion_type": "aff_2d" if fusion else None,
                    "aff_block_r": 4,
                },
            )
        ).eval()
        for key, value in model.state_dict().items():
            if value.is_floating_point() and "running_var" not in key:
                value.normal_(std=0.2)
    path = folder / "music.pt"
    torch.save({"epoch": 3, "name": "tiny", "top": np.float64(0.5), "state_dict": laion_state(model)}, path)
    return path, model


class TestLaion:
    def test_weights_are_those_of_the_twin(self, laion: tuple[Path, Any]) -> None:
        path, twin = laion
        model, extractor, _ = load_laion(path)
        assert extractor.sampling_rate == 48000
        assert extractor.truncation == ("fusion" if twin.config.audio_config.enable_fusion else "rand_trunc")
        expected = twin.state_dict()
        assert set(model.state_dict()) == set(expected)
        for key, value in model.state_dict().items():
            torch.testing.assert_close(value, expected[key], atol=0, rtol=0)

    def test_it_embeds_as_the_twin_does(self, laion: tuple[Path, Any]) -> None:
        path, twin = laion
        clap = load_clap(str(path))
        own = clap.model
        clips = [tone(48000, 300.0, rate=48000), tone(11 * 48000, 500.0, rate=48000)]
        with torch.no_grad():
            audio, text = clap.embed_audio(clips, 48000), clap.embed_text(list(TEXTS))
            clap.model = twin
            torch.testing.assert_close(clap.embed_audio(clips, 48000), audio, atol=1e-6, rtol=0)
            torch.testing.assert_close(clap.embed_text(list(TEXTS)), text, atol=1e-6, rtol=0)
        assert own is not twin
        assert torch.pdist(audio).min() > 1e-4

    def test_the_text_branch_is_roberta(self) -> None:
        """LAION's text branch is the RobertaModel of transformers: its keys and its answers."""
        from transformers import ClapTextConfig, ClapTextModel, RobertaConfig, RobertaModel

        sizes: dict[str, Any] = {
            "vocab_size": 20,
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "max_position_embeddings": 40,
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-5,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            roberta = RobertaModel(RobertaConfig(**sizes)).eval()
        text = ClapTextModel(ClapTextConfig(**sizes)).eval()
        state = convert({f"text_branch.{key}": value for key, value in roberta.state_dict().items()})
        text.load_state_dict(
            {key.removeprefix("text_model."): value for key, value in state.items()}, strict=False
        )
        assert {f"text_model.{key}" for key, _ in text.named_parameters()} == set(state)
        ids = torch.tensor([[0, 7, 9, 2, 1, 1]])
        mask = (ids != 1).long()
        with torch.no_grad():
            expected, found = (model(input_ids=ids, attention_mask=mask) for model in (roberta, text))
        torch.testing.assert_close(found.pooler_output, expected.pooler_output, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=0)

    def test_conditioners_take_the_file(self, laion: tuple[Path, Any]) -> None:
        """The widths of a ``.pt`` file are LAION's, before it is read; this tiny one has others."""
        path, _ = laion
        model = conditioner(config("text", path, output_dim=512))
        assert model([{"clap": "a calm song"}], "cpu")["clap"][0].shape == (1, 1, 12)

    def test_numbers_of_numpy_beside_the_weights_are_read(
        self, laion: tuple[Path, Any], tmp_path: Path
    ) -> None:
        """Files pickled under NumPy 1 name its module otherwise than those under NumPy 2."""
        path, _ = laion
        old = tmp_path / "old.pt"
        seen = False
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(old, "w") as target:
            for entry in source.infolist():
                content = source.read(entry)
                if entry.filename.endswith("data.pkl"):
                    seen = b"numpy" in content
                    content = content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
                target.writestr(entry.filename, content)
        assert seen
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(path.parent / name, tmp_path / name)
        load_laion(old)

    def test_code_in_the_file_is_not_run(self, tmp_path: Path) -> None:
        path = tmp_path / "evil.pt"
        torch.save({"state_dict": {"a": torch.zeros(1)}, "more": io.StringIO()}, path)
        with pytest.raises(CheckpointError, match=r"evil\.pt: not loaded"):
            load_laion(path)

    @pytest.mark.parametrize(
        "lost", ["bn0.running_mean", "audio_projection.2.bias", "layers.0.blocks.0.norm1.bias"]
    )
    def test_a_file_that_is_not_whole_is_refused(
        self, laion: tuple[Path, Any], tmp_path: Path, lost: str
    ) -> None:
        path = tmp_path / "cut.pt"
        state = {key: value for key, value in laion_state(laion[1]).items() if not key.endswith(lost)}
        torch.save({"state_dict": state}, path)
        with pytest.raises(
            CheckpointError, match=r"cut\.pt: is no whole CLAP of LAION: 1 weights are missing"
        ):
            load_laion(path)

    def test_another_state_dict_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "vae.pt"
        torch.save({"state_dict": {"encoder.layers.0.weight": torch.zeros(1)}}, path)
        with pytest.raises(CheckpointError, match="is no CLAP of LAION, audio_branch"):
            load_laion(path)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"nowhere\.pt: no such checkpoint file"):
            embed(conditioner(config("text", tmp_path / "nowhere.pt")), "clap", "calm")
