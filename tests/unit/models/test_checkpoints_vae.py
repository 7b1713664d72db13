"""The autoencoder of a whole model becomes a file of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stable_audio_tools.cli.main import main
from stable_audio_tools.errors import CheckpointError, ConfigError
from stable_audio_tools.models.checkpoints import (
    Kind,
    load_checkpoint,
    load_pretransform,
    read_checkpoint,
    save_checkpoint,
)
from stable_audio_tools.models.extraction import extract_vae
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.utils import remove_weight_norm_from_model


def build(config: dict[str, Any], seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create_model_from_config(config).eval().requires_grad_(False)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def sat(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    return int(exit_.value.code or 0)


@pytest.fixture
def model_folder(tiny_diffusion_config: dict[str, Any], tmp_path: Path) -> Path:
    """A published model: config and weights, the config in its own file only."""
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "model_config.json").write_text(json.dumps(tiny_diffusion_config))
    save_checkpoint(folder / "model.safetensors", build(tiny_diffusion_config, 1).state_dict())
    return folder


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_it_is_a_model_of_its_own_and_a_pretransform(
    tiny_diffusion_config: dict[str, Any], tmp_path: Path, wrapped: bool, suffix: str
) -> None:
    trained = build(tiny_diffusion_config, 1)
    state = trained.state_dict()
    if wrapped:
        state = {f"diffusion.{key}": value for key, value in state.items()}
        state |= {f"diffusion_ema.ema_model.{k}": v for k, v in trained.model.state_dict().items()}
    full = save_checkpoint(tmp_path / "full.ckpt", state, tiny_diffusion_config)
    path = extract_vae(full, None, tmp_path / f"deep/vae{suffix}")

    extracted = read_checkpoint(path)
    assert extracted.kind is Kind.AUTOENCODER
    assert same(extracted.state, trained.pretransform.model.state_dict())
    assert extracted.model_config is not None
    alone = build(extracted.model_config, 2)
    load_checkpoint(alone, path)
    audio = torch.randn(1, 2, 1024, generator=torch.Generator().manual_seed(0))
    mean = alone.encode(audio, generator=torch.Generator().manual_seed(1))
    assert torch.equal(mean, trained.pretransform.encode(audio, generator=torch.Generator().manual_seed(1)))
    other = build(tiny_diffusion_config, 3)
    load_pretransform(other, path)
    assert same(other.pretransform.state_dict(), trained.pretransform.state_dict())


def test_a_fused_vae_gets_the_published_names_back(
    tiny_diffusion_config: dict[str, Any], tmp_path: Path
) -> None:
    trained = build(tiny_diffusion_config, 1)
    keys = trained.pretransform.model.state_dict().keys()
    remove_weight_norm_from_model(trained.pretransform)
    full = save_checkpoint(tmp_path / "full.ckpt", trained.state_dict(), tiny_diffusion_config)
    assert read_checkpoint(extract_vae(full, None, tmp_path / "vae.ckpt")).state.keys() == keys


def test_the_command_takes_a_checkpoint_or_a_published_model(
    tiny_diffusion_config: dict[str, Any], model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config, weights = model_folder / "model_config.json", model_folder / "model.safetensors"
    assert sat("extract-vae", "--ckpt-path", weights, "--model-config", config) == 0
    assert sat("extract-vae", "--pretrained-name", model_folder, "--output", "other.safetensors") == 0
    documented = read_checkpoint("dataset/pretrained_model/vae_model.ckpt")
    other = read_checkpoint("other.safetensors")
    assert same(documented.state, other.state)
    assert documented.model_config == other.model_config
    assert documented.model_config is not None
    assert documented.model_config["sample_rate"] == tiny_diffusion_config["sample_rate"]


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--ckpt-path", "a.ckpt", "--pretrained-name", "b"],
        ["--model-config", "c.json", "--pretrained-name", "b"],
    ],
)
def test_the_command_says_what_to_give(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert sat("extract-vae", *flags) == 2
    assert "--pretrained-name alone" in capsys.readouterr().err


def test_what_has_no_vae_is_named(tiny_diffusion_config: dict[str, Any], tmp_path: Path) -> None:
    state = build(tiny_diffusion_config, 1).state_dict()
    without = {key: value for key, value in state.items() if not key.startswith("pretransform.")}
    path = save_checkpoint(tmp_path / "half.ckpt", without, tiny_diffusion_config)
    with pytest.raises(CheckpointError, match="found a diffusion model without an autoencoder"):
        extract_vae(path, None, tmp_path / "vae.ckpt")
    with pytest.raises(CheckpointError, match="--model-config"):
        extract_vae(save_checkpoint(tmp_path / "bare.ckpt", state), None, tmp_path / "vae.ckpt")
    del tiny_diffusion_config["model"]["pretransform"]
    with pytest.raises(ConfigError, match="expected one of type 'autoencoder', found none"):
        extract_vae(tmp_path / "bare.ckpt", tiny_diffusion_config, tmp_path / "vae.ckpt")
    assert not (tmp_path / "vae.ckpt").exists()


def test_a_vae_of_another_shape_is_named(tiny_diffusion_config: dict[str, Any], tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "full.ckpt", build(tiny_diffusion_config, 1).state_dict())
    for part in ("encoder", "decoder"):
        tiny_diffusion_config["model"]["pretransform"]["config"][part]["config"]["channels"] = 4
    with pytest.raises(CheckpointError, match="its autoencoder does not fit"):
        extract_vae(path, tiny_diffusion_config, tmp_path / "vae.ckpt")
