"""One description of a model's files serves generation, evaluation and attribution."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stable_audio_tools.errors import CheckpointError, UsageError
from stable_audio_tools.models.adapters.lora import adapted_layers, apply_lora
from stable_audio_tools.models.adapters.peft_folder import save_adapter
from stable_audio_tools.models.checkpoints import model_sha256, read_checkpoint, save_checkpoint
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.files import ModelFiles
from stable_audio_tools.models.pretrained import find_pretrained, get_pretrained_model
from stable_audio_tools.models.unwrap import merge_adapter
from stable_audio_tools.schema.training import LoraConfig


@pytest.fixture
def files(tiny_diffusion_config: dict[str, Any], tmp_path: Path) -> ModelFiles:
    config_path = tmp_path / "model_config.json"
    config_path.write_text(json.dumps(tiny_diffusion_config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = create_model_from_config(tiny_diffusion_config)
    checkpoint = save_checkpoint(tmp_path / "model.ckpt", model.state_dict(), tiny_diffusion_config)
    return ModelFiles(config_path, checkpoint)


@pytest.fixture
def adapter(files: ModelFiles, tmp_path: Path) -> Path:
    model = files.load("cpu")
    apply_lora(model, LoraConfig(component_whitelist=["self_attn", "ff"], rank=2, alpha=4))
    generator = torch.Generator().manual_seed(4)
    for layer in adapted_layers(model).values():
        for weights in layer.lora_B.parameters():
            torch.nn.init.normal_(weights, std=0.1, generator=generator)
    return save_adapter(model, tmp_path / "tuned.adapter", model_sha256(files.ckpt_path))


@torch.no_grad()
def answer(model: Any) -> torch.Tensor:
    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(1))

    times = torch.tensor([0.3, 0.8])
    return model.model(
        draw(2, 4, 16), times, cross_attn_cond=draw(2, 5, 32), global_cond=draw(2, 64), cfg_scale=2.0
    )


def test_every_file_changes_the_hash_and_the_name_says_so(files: ModelFiles, adapter: Path) -> None:
    tuned = replace(files, lora_ckpt_path=adapter)
    other_vae = replace(files, pretransform_ckpt_path=files.ckpt_path)
    assert files.sha256() == model_sha256(files.ckpt_path)
    assert len({files.sha256(), tuned.sha256(), other_vae.sha256()}) == 3
    assert files.name == str(files.ckpt_path)
    assert tuned.name == f"{files.ckpt_path} + {adapter}"


def test_how_a_model_was_trained_is_no_part_of_its_stamp(files: ModelFiles) -> None:
    stamp = files.stamp()
    config = json.loads(files.model_config.read_text())
    del config["training"]
    files.model_config.write_text(json.dumps(config))
    assert files.stamp() == stamp
    config["sample_size"] *= 2
    files.model_config.write_text(json.dumps(config))
    assert files.stamp() != stamp


def test_a_changed_checkpoint_has_another_hash_within_one_process(files: ModelFiles) -> None:
    before = files.sha256()
    state = read_checkpoint(files.ckpt_path).state
    save_checkpoint(files.ckpt_path, {key: value + 1 for key, value in state.items()})
    assert files.sha256() != before


def test_a_merged_adapter_is_the_model_with_its_adapter(
    files: ModelFiles, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = answer(replace(files, lora_ckpt_path=adapter).load("cpu"))
    assert "warning" not in capsys.readouterr().err  # the adapter was trained on this very base
    assert not torch.allclose(tuned, answer(files.load("cpu")), atol=1e-2)
    merged = merge_adapter(files.ckpt_path, adapter, None, tmp_path / "merged.v1", use_safetensors=True)
    assert merged.name == "merged.v1.safetensors"
    assert set(read_checkpoint(merged).state) == set(read_checkpoint(files.ckpt_path).state)
    torch.testing.assert_close(
        answer(replace(files, ckpt_path=merged).load("cpu")), tuned, atol=1e-5, rtol=1e-5
    )


def test_an_adapter_merges_into_a_wrapped_checkpoint_too(
    files: ModelFiles, adapter: Path, tmp_path: Path
) -> None:
    plain = read_checkpoint(files.ckpt_path)
    wrapped = {f"diffusion.{key}": value for key, value in plain.state.items()}
    average = {
        key.replace("model.", "diffusion_ema.ema_model.", 1): value
        for key, value in plain.state.items()
        if key.startswith("model.")
    }
    online = {key: torch.zeros_like(value) if ".model." in key else value for key, value in wrapped.items()}
    path = save_checkpoint(tmp_path / "step=1.ckpt", {**online, **average}, plain.model_config)
    merged = merge_adapter(path, adapter, None, tmp_path / "from_wrapped")
    expected = merge_adapter(files.ckpt_path, adapter, None, tmp_path / "from_plain")
    found, wanted = read_checkpoint(merged).state, read_checkpoint(expected).state
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        if key.startswith("model."):
            assert torch.equal(found[key], value), key


def test_a_model_that_takes_no_prompts_is_refused(files: ModelFiles, tmp_path: Path) -> None:
    config = json.loads(files.model_config.read_text())
    autoencoder = {
        **{key: config[key] for key in ("sample_size", "sample_rate", "audio_channels")},
        "model_type": "autoencoder",
        "model": config["model"]["pretransform"]["config"],
    }
    (tmp_path / "ae.json").write_text(json.dumps(autoencoder))
    with pytest.raises(UsageError, match=r"ae\.json: .*generates audio, of type diffusion_cond or"):
        replace(files, model_config=tmp_path / "ae.json").load("cpu")
    unconditional = {
        **{key: config[key] for key in ("sample_size", "sample_rate")},
        "model_type": "diffusion_uncond",
        "model": {
            "type": "DAU1d",
            "config": {"depth": 2, "n_attn_layers": 0, "channels": [4, 4], "strides": [2]},
        },
    }
    (tmp_path / "noise.json").write_text(json.dumps(unconditional))
    model = create_model_from_config(unconditional)
    noise = ModelFiles(
        tmp_path / "noise.json", save_checkpoint(tmp_path / "noise.ckpt", model.state_dict(), unconditional)
    )
    assert noise.load("cpu").state_dict().keys() == model.state_dict().keys()
    with pytest.raises(UsageError, match=r"noise\.json: .*turns prompts into audio"):
        noise.load_conditional("cpu")
    with pytest.raises(CheckpointError, match="no such adapter"):
        replace(files, lora_ckpt_path=tmp_path / "absent").stamp()


def test_a_text_encoder_beside_the_model_moves_with_it(
    files: ModelFiles, tiny_t5_folder: Path, tmp_path: Path
) -> None:
    home, moved = tmp_path / "home", tmp_path / "moved"
    shutil.copytree(tiny_t5_folder, home / "t5")
    (home / "base").mkdir()
    shutil.copy(files.ckpt_path, home / "base" / "model.ckpt")
    config = json.loads(files.model_config.read_text())
    config["model"]["conditioning"]["configs"][0]["config"]["t5_model_name"] = "../t5"
    (home / "base" / "model_config.json").write_text(json.dumps(config))
    home.rename(moved)
    model, loaded = get_pretrained_model(moved / "base")
    name = loaded["model"]["conditioning"]["configs"][0]["config"]["t5_model_name"]
    assert name == str((moved / "t5").resolve())
    found = find_pretrained(moved / "base")
    clip = {"prompt": "calm piano", "seconds_start": 0, "seconds_total": 1}
    for each in (model, found.load("cpu")):
        assert each.conditioner([clip], "cpu")["prompt"][0].shape == (1, 16, 32)
    assert found.sha256() == files.sha256()


def test_the_norm_of_the_autoencoder_is_fused_and_the_audio_is_the_same_to_the_bit(files: ModelFiles) -> None:
    loaded = files.load("cpu")
    published, _ = get_pretrained_model(files.ckpt_path.parent)
    assert not [key for key in loaded.state_dict() if key.endswith(("weight_g", "weight_v"))]
    assert [key for key in published.state_dict() if key.endswith("weight_g")]
    latents = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded.pretransform.decode(latents), published.pretransform.decode(latents))
