"""Audio as the latents of a pretransform."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny_conditioners import WIDTH, conditioner
from torch import Tensor

from stable_audio_tools.errors import CheckpointError, ConfigError, DataError
from stable_audio_tools.models.conditioners.multi import MultiConditioner
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.pretransforms.registry import create_pretransform
from stable_audio_tools.schema.autoencoder import AutoencoderPretransformConfig
from stable_audio_tools.schema.conditioning import PretransformConditionerConfig

RATE = 16000
RATIO = 16
LATENTS = 4


def vae(**changes: Any) -> dict[str, Any]:
    """The JSON of a tiny stereo VAE: 4 latents, one per 16 samples."""
    sizes = {"channels": 4, "c_mults": [1, 2], "strides": [4, 4]}
    return {
        "type": "autoencoder",
        "config": {
            "encoder": {"type": "oobleck", "config": {"in_channels": 2, "latent_dim": 2 * LATENTS, **sizes}},
            "decoder": {"type": "oobleck", "config": {"out_channels": 2, "latent_dim": LATENTS, **sizes}},
            "bottleneck": {"type": "vae"},
            "latent_dim": LATENTS,
            "downsampling_ratio": RATIO,
            "io_channels": 2,
        },
        **changes,
    }


def config(**changes: Any) -> dict[str, Any]:
    own = {} if changes.get("use_model_pretransform") else {"pretransform_config": vae()}
    return {"id": "audio", "type": "pretransform", "config": {"sample_rate": RATE, **own, **changes}}


def clip(length: int, channels: int = 2, seed: int = 0) -> Tensor:
    return 0.2 * torch.randn(channels, length, generator=torch.Generator().manual_seed(seed))


def encode(model: MultiConditioner, *values: Any) -> tuple[Tensor, Tensor]:
    embeddings, mask = model([{"audio": value} for value in values], "cpu")["audio"]
    assert mask.dtype == torch.bool
    assert mask.shape == (len(values), embeddings.shape[-1])
    assert embeddings.dtype == torch.float32
    return embeddings, mask


def test_latents_keep_their_layout() -> None:
    model = conditioner(config(), width=LATENTS)
    embeddings, mask = encode(model, clip(320), clip(320, seed=1))
    assert embeddings.shape == (2, LATENTS, 320 // RATIO)
    assert mask.all()
    pretransform = model.conditioners["audio"].pretransform
    expected, info = pretransform.model.encode(clip(320)[None], return_info=True)
    noise = (embeddings[:1] - info["mean"]) / info["stdev"]
    assert 0.5 < noise.std() < 2
    assert expected.shape == (1, LATENTS, 20)


def test_patches_are_those_of_the_public_layout() -> None:
    patched = {"type": "patched", "config": {"channels": 2, "patch_size": 4}}
    model = conditioner(config(pretransform_config=patched), width=8)
    pretransform = create_pretransform(
        PretransformConditionerConfig(sample_rate=RATE, pretransform_config=patched).pretransform_config, RATE
    )
    embeddings, _ = encode(model, clip(32))
    torch.testing.assert_close(embeddings, pretransform.encode(clip(32)[None]), atol=0, rtol=0)


def test_the_projection_is_over_channels() -> None:
    model = conditioner(config())
    plain = conditioner(config(output_dim=LATENTS))
    plain.conditioners["audio"].pretransform.load_state_dict(
        model.conditioners["audio"].pretransform.state_dict()
    )
    layer = model.conditioners["audio"].proj_out
    expected = torch.einsum("bcl,oc->bol", encode(plain, clip(80))[0], layer.weight) + layer.bias[:, None]
    embeddings, _ = encode(model, clip(80))
    assert embeddings.shape == (1, WIDTH, 5)
    torch.testing.assert_close(embeddings, expected)


def test_a_condition_is_a_function_of_the_audio_alone() -> None:
    model = conditioner(config())
    state = torch.get_rng_state()
    first = encode(model, clip(320))[0]
    torch.manual_seed(7)
    together = encode(model, clip(160, seed=2), clip(320))[0]
    torch.testing.assert_close(together[1:], first, atol=1e-6, rtol=1e-5)
    torch.set_rng_state(state)
    encode(model, clip(320))
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"


def test_shorter_audio_is_padded_and_masked() -> None:
    model = conditioner(config())
    embeddings, mask = encode(model, clip(100), clip(320))
    frames = -(-100 // RATIO)
    assert mask.sum(dim=1).tolist() == [frames, 20]
    torch.testing.assert_close(embeddings[:1, :, :frames], encode(model, clip(100))[0])
    assert not embeddings[0, :, frames:].any()


def test_channels_and_shapes_are_brought_to_those_of_the_pretransform() -> None:
    model = conditioner(config())
    mono = clip(160, channels=1)
    shapes = (mono, mono[0], mono[None], mono.numpy(), mono.expand(2, -1), [mono])
    rows, _ = encode(model, *shapes)
    torch.testing.assert_close(rows, rows[:1].expand_as(rows))


@pytest.mark.parametrize("bad", ["kick.wav", torch.zeros(2, 0), torch.full((1, 9), float("inf"))])
def test_what_is_no_audio_is_named(bad: Any) -> None:
    with pytest.raises(DataError, match="conditioning 'audio': item 1: expected audio"):
        encode(conditioner(config()), clip(32), bad)


def test_weights_are_saved_only_where_asked_for() -> None:
    projection = {"conditioners.audio.proj_out.weight", "conditioners.audio.proj_out.bias"}
    assert set(conditioner(config()).state_dict()) == projection
    saved = conditioner(config(save_pretransform=True))
    keys = saved.conditioners["audio"].pretransform.state_dict()
    assert set(saved.state_dict()) == projection | {f"conditioners.audio.pretransform.{key}" for key in keys}
    assert any(key.startswith("model.encoder.layers.0.") for key in keys)


def test_it_stays_frozen_unless_it_is_trained() -> None:
    frozen = conditioner(config(save_pretransform=True)).requires_grad_(True).train()
    frozen.conditioners["audio"].pretransform.requires_grad_(False)
    assert not frozen.conditioners["audio"].pretransform.training
    trained = conditioner(config(pretransform_config=vae(enable_grad=True), save_pretransform=True))
    trained.requires_grad_(True)
    encode(trained, clip(64))[0].square().sum().backward()
    encoder = trained.conditioners["audio"].pretransform.model.encoder
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in encoder.parameters())


@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_embed_alike(duplicate: Any, save: bool) -> None:
    model = conditioner(config(save_pretransform=save))
    torch.testing.assert_close(encode(duplicate(model), clip(64))[0], encode(model, clip(64))[0])


class TestTheModelsOwn:
    def model(self, tiny_diffusion_config: dict[str, Any], **changes: Any) -> Any:
        shared = {"sample_rate": RATE, "use_model_pretransform": True, "output_dim": 4, **changes}
        conditioning = tiny_diffusion_config["model"]["conditioning"]
        conditioning["configs"].append({"id": "audio", "type": "pretransform", "config": shared})
        return create_model_from_config(tiny_diffusion_config).eval()

    def test_is_shared_and_saved_once(self, tiny_diffusion_config: dict[str, Any]) -> None:
        model = self.model(tiny_diffusion_config)
        own = model.conditioner.conditioners["audio"]
        assert own.pretransform is model.pretransform
        assert not any("audio" in key for key in model.state_dict())
        twin = copy.deepcopy(model)
        assert twin.conditioner.conditioners["audio"].pretransform is twin.pretransform
        item = {"prompt": "calm", "seconds_start": 0, "seconds_total": 1, "audio": clip(1280)}
        embeddings, mask = model.conditioner([item], "cpu")["audio"]
        assert embeddings.shape == (1, 4, 10)
        assert mask.shape == (1, 10)

    def test_is_saved_again_where_asked_for(self, tiny_diffusion_config: dict[str, Any]) -> None:
        state = self.model(tiny_diffusion_config, save_pretransform=True).state_dict()
        prefix = "conditioner.conditioners.audio.pretransform."
        again = {key.removeprefix(prefix) for key in state if key.startswith(prefix)}
        assert again == {
            key.removeprefix("pretransform.") for key in state if key.startswith("pretransform.")
        }

    @pytest.mark.parametrize("ids", ["cross_attention_cond_ids", "global_cond_ids", "prepend_cond_ids"])
    def test_latents_are_no_tokens(self, tiny_diffusion_config: dict[str, Any], ids: str) -> None:
        diffusion = tiny_diffusion_config["model"]["diffusion"]
        diffusion[ids] = ["audio"]
        diffusion["config"]["prepend_cond_dim"] = 4 if ids.startswith("prepend") else 0
        message = r"configs\[3\]: 'audio' makes latents .* takes it by input_concat_ids"
        with pytest.raises(ConfigError, match=message):
            self.model(tiny_diffusion_config)

    def test_a_config_without_one_is_refused_when_read(self, tiny_diffusion_config: dict[str, Any]) -> None:
        del tiny_diffusion_config["model"]["pretransform"]
        with pytest.raises(
            ConfigError, match=r"configs\[3\].config.use_model_pretransform is set, but the model"
        ):
            self.model(tiny_diffusion_config)

    def test_a_conditioner_without_one_is_refused(self) -> None:
        message = r"model\.conditioning\.configs\[0\]\.config: use_model_pretransform is set, but the model"
        with pytest.raises(ConfigError, match=message):
            conditioner(config(use_model_pretransform=True))


class TestCheckpoint:
    def test_is_loaded_into_its_own(self, tmp_path: Path) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            trained = create_pretransform(AutoencoderPretransformConfig.model_validate(vae()), RATE)
        path = tmp_path / "vae.ckpt"
        torch.save({"state_dict": trained.model.state_dict()}, path)
        model = conditioner(config(pretransform_ckpt_path=str(path)))
        loaded = model.conditioners["audio"].pretransform.state_dict()
        for key, value in trained.state_dict().items():
            torch.testing.assert_close(loaded[key], value, atol=0, rtol=0)

    def test_a_missing_one_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"nowhere\.ckpt: no such checkpoint file"):
            conditioner(config(pretransform_ckpt_path=str(tmp_path / "nowhere.ckpt")))

    def test_one_for_what_has_no_weights_is_refused(self, tmp_path: Path) -> None:
        patched = {"type": "patched", "config": {"channels": 2, "patch_size": 4}}
        with pytest.raises(ConfigError, match="PatchedPretransform has no weights to load"):
            conditioner(config(pretransform_config=patched, pretransform_ckpt_path="vae.ckpt"))


@pytest.mark.parametrize(
    ("changes", "found"),
    [({}, "neither"), ({"use_model_pretransform": True, "pretransform_config": vae()}, "both")],
)
def test_one_pretransform_is_needed(changes: dict[str, Any], found: str) -> None:
    with pytest.raises(ValidationError, match=f"pretransform_config is needed, found {found}"):
        PretransformConditionerConfig.model_validate({"sample_rate": RATE, **changes})


def test_it_is_built_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = conditioner(config(pretransform_ckpt_path="later.ckpt", save_pretransform=True))
    assert list(model.parameters())
    assert all(parameter.is_meta for parameter in model.parameters())
