"""Checkpoints of every model type: told apart, unwrapped as their training run stored them, and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from shrinking import read_shipped, shrink
from torch import Tensor, nn

from stable_audio_tools.errors import CheckpointError
from stable_audio_tools.models.checkpoints import (
    Kind,
    checkpoint_kind,
    load_checkpoint,
    load_pretransform,
    read_checkpoint,
    save_checkpoint,
    unwrap_state_dict,
)
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.unwrap import unwrap_checkpoint

State = dict[str, Tensor]
# By shipped config: the kind, the name that a training run has for the model, what of it is averaged,
# and what else the run stores.
KINDS: dict[str, tuple[Kind, str, str, tuple[str, ...]]] = {
    "txt2audio/stable_audio_open_1_0": (Kind.DIFFUSION, "diffusion", "model", ("losses.losses.0.weight",)),
    "dance_diffusion/dance_diffusion_base": (Kind.DIFFUSION, "diffusion", "model", ()),
    "unconditional/latent_dit": (Kind.DIFFUSION, "diffusion", "model", ()),
    "autoencoders/stable_audio_2_0_vae": (
        Kind.AUTOENCODER,
        "autoencoder",
        "",
        ("discriminator.discriminators.0.convs.0.conv.weight_g", "sdstft.window", "teacher_model.encoder.x"),
    ),
    "diffusion_autoencoders/seanet_32_32_diffae": (Kind.DIFFUSION_AUTOENCODER, "diffae", "", ("sdstft.w",)),
    "language_models/dac_rvq_lm": (Kind.LANGUAGE_MODEL, "model", "", ()),
}


def tiny(name: str, text_encoder: Path) -> dict[str, Any]:
    return shrink(read_shipped(name), text_encoder)


def build(config: dict[str, Any], seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = create_model_from_config(config).eval()
        for parameter in model.parameters():  # what begins at zero or one tells no models apart
            nn.init.normal_(parameter.requires_grad_(False), std=0.02)
    return model


def wrapped(name: str, model: nn.Module, average: nn.Module | None = None) -> State:
    """What a training run of the public package stores."""
    _, prefix, averaged, beside = KINDS[name]
    state = {f"{prefix}.{key}": value.clone() for key, value in model.state_dict().items()}
    if average is not None:
        part = average.get_submodule(averaged)
        state |= {f"{prefix}_ema.ema_model.{key}": value for key, value in part.state_dict().items()}
        online = model.get_submodule(averaged).state_dict()
        state |= {f"{prefix}_ema.online_model.{key}": value for key, value in online.items()}
        state |= {f"{prefix}_ema.initted": torch.tensor(True), f"{prefix}_ema.step": torch.tensor(7)}
    return state | {key: torch.ones(2) for key in beside}


def same(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("name", KINDS)
def test_the_kind_is_told_wrapped_or_not(name: str, tiny_t5_folder: Path) -> None:
    model = build(tiny(name, tiny_t5_folder), 1)
    kind = KINDS[name][0]
    assert checkpoint_kind(model.state_dict()) is kind
    assert checkpoint_kind(wrapped(name, model)) is Kind[f"WRAPPED_{kind.name}"]
    assert checkpoint_kind(wrapped(name, model, model)) is Kind[f"WRAPPED_{kind.name}"]


@pytest.mark.parametrize("name", KINDS)
def test_unwrapping_takes_what_is_averaged_and_leaves_out_what_is_no_model(
    name: str, tiny_t5_folder: Path
) -> None:
    config = tiny(name, tiny_t5_folder)
    online, average = build(config, 1), build(config, 2)
    averaged = KINDS[name][2]
    state, weights = unwrap_state_dict(wrapped(name, online, average))
    assert weights == "EMA"
    assert state.keys() == online.state_dict().keys()
    for key, value in state.items():
        source = average if key.startswith(averaged) else online
        assert torch.equal(value, source.state_dict()[key]), key
    state, weights = unwrap_state_dict(wrapped(name, online))
    assert weights == "online"
    assert same(state, online.state_dict())


@pytest.mark.parametrize("name", KINDS)
def test_a_training_checkpoint_loads_and_unwraps_to_the_same_model(
    name: str, tiny_t5_folder: Path, tmp_path: Path
) -> None:
    config = tiny(name, tiny_t5_folder)
    online, average, fresh = (build(config, seed) for seed in (1, 2, 3))
    source = tmp_path / "step=7.ckpt"
    torch.save({"state_dict": wrapped(name, online, average), "model_config": config}, source)
    report = load_checkpoint(fresh, source)
    assert (report.kind, report.weights) == (Kind[f"WRAPPED_{KINDS[name][0].name}"], "EMA")
    plain = read_checkpoint(unwrap_checkpoint(source, None, tmp_path / "model", use_safetensors=True))
    assert plain.kind is KINDS[name][0]
    assert plain.model_config == config
    assert same(plain.state, dict(fresh.state_dict()))


@pytest.mark.parametrize("given", KINDS)
def test_every_other_kind_is_refused_by_name(given: str, tiny_t5_folder: Path, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "given.ckpt", build(tiny(given, tiny_t5_folder), 1).state_dict())
    for wanted in ("txt2audio/stable_audio_open_1_0", "autoencoders/stable_audio_2_0_vae"):
        found, expected = KINDS[given][0], KINDS[wanted][0]
        if found is expected:
            continue
        with pytest.raises(CheckpointError, match=f"found {found.value}, expected {expected.value}"):
            load_checkpoint(build(tiny(wanted, tiny_t5_folder), 2), path)


def test_a_diffusion_autoencoder_of_a_network_alone_is_no_training_checkpoint(tmp_path: Path) -> None:
    """Its keys begin with ``diffusion.``, as those of every training run of a diffusion model do."""
    config = {
        "model_type": "diffusion_autoencoder",
        "sample_size": 4096,
        "sample_rate": 16000,
        "audio_channels": 1,
        "model": {
            "pretransform": {"type": "patched", "config": {"channels": 1, "patch_size": 4}},
            "diffusion": {
                "type": "dit",
                "config": {
                    "io_channels": 4,
                    "embed_dim": 64,
                    "depth": 1,
                    "num_heads": 2,
                    "input_concat_dim": 4,
                },
            },
            "latent_dim": 4,
            "downsampling_ratio": 4,
            "io_channels": 4,
        },
    }
    trained, fresh = build(config, 1), build(config, 2)
    assert {key.split(".")[0] for key in trained.state_dict()} == {"diffusion"}
    report = load_checkpoint(fresh, save_checkpoint(tmp_path / "model.ckpt", trained.state_dict()))
    assert report.weights == "stored"
    assert same(fresh.state_dict(), trained.state_dict())
    source = tmp_path / "last.ckpt"
    torch.save(
        {"state_dict": {f"diffae.{key}": value for key, value in trained.state_dict().items()}}, source
    )
    assert load_checkpoint(build(config, 3), source).weights == "online"


@pytest.mark.parametrize("averaged", [True, False])
def test_the_first_dance_diffusion_checkpoints_are_read(
    averaged: bool, tiny_t5_folder: Path, tmp_path: Path
) -> None:
    """Harmonai's training code stored the bare network, and a bare copy of it as the average."""
    config = tiny("dance_diffusion/dance_diffusion_base", tiny_t5_folder)
    online, average, fresh = (build(config, seed) for seed in (1, 2, 3))
    state = {f"diffusion.{key}": value for key, value in online.model.state_dict().items()}
    if averaged:
        state |= {f"diffusion_ema.{key}": value for key, value in average.model.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "glitch.ckpt")
    report = load_checkpoint(fresh, tmp_path / "glitch.ckpt")
    assert report.weights == ("EMA" if averaged else "online")
    assert same(fresh.state_dict(), (average if averaged else online).state_dict())


@pytest.mark.parametrize("name", ["unconditional/latent_dit", "language_models/dac_rvq_lm"])
@pytest.mark.parametrize("form", ["whole", "wrapped", "autoencoder", "pretransform"])
def test_the_codec_of_any_model_is_found_in_any_file(
    name: str, form: str, tiny_t5_folder: Path, tmp_path: Path
) -> None:
    config = tiny(name, tiny_t5_folder)
    trained, fresh = build(config, 1), build(config, 2)
    state = {
        "whole": trained.state_dict(),
        "wrapped": wrapped(name, trained),
        "autoencoder": trained.pretransform.model.state_dict(),
        "pretransform": trained.pretransform.state_dict(),
    }[form]
    load_pretransform(fresh, save_checkpoint(tmp_path / "codec.safetensors", state))
    assert same(fresh.pretransform.state_dict(), trained.pretransform.state_dict())


def test_half_precision_weights_keep_their_numbers(tiny_t5_folder: Path, tmp_path: Path) -> None:
    config = tiny("txt2audio/stable_audio_open_1_0", tiny_t5_folder)
    trained, fresh = build(config, 1), build(config, 2)
    half = {key: value.half() for key, value in trained.state_dict().items()}
    load_checkpoint(fresh, save_checkpoint(tmp_path / "half.safetensors", half))
    for key, value in fresh.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, half[key].float())
