"""Unconditional diffusion models: both networks, behind a pretransform and not, and what cannot be built."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from stable_audio_tools.errors import ConfigError
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.unconditional import DiffusionModelWrapper

DAU1D = {"depth": 3, "n_attn_layers": 1, "channels": [8, 8, 16], "strides": [2, 2]}
DIT = {"io_channels": 2, "embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 2}
OOBLECK = {"channels": 4, "c_mults": [1, 2], "strides": [2, 4]}
PRETRANSFORM = {
    "type": "autoencoder",
    "config": {
        "encoder": {"type": "oobleck", "config": {"in_channels": 2, "latent_dim": 12, **OOBLECK}},
        "decoder": {"type": "oobleck", "config": {"out_channels": 2, "latent_dim": 6, **OOBLECK}},
        "bottleneck": {"type": "vae"},
        "latent_dim": 6,
        "downsampling_ratio": 8,
        "io_channels": 2,
    },
}


def uncond(kind: str, config: dict[str, Any], **more: Any) -> dict[str, Any]:
    model = {"type": kind, "config": config, **more}
    return {
        "model_type": "diffusion_uncond",
        "sample_size": 512,
        "sample_rate": 16000,
        "model": copy.deepcopy(model),
    }


CONFIGS = {
    "DAU1d": uncond("DAU1d", DAU1D),
    "latent DAU1d": uncond("DAU1d", {**DAU1D, "io_channels": 6}, pretransform=PRETRANSFORM),
    "dit": uncond("dit", DIT),
    "latent dit": uncond("dit", {**DIT, "io_channels": 6}, pretransform=PRETRANSFORM),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_answers_for_what_it_says_it_takes(name: str) -> None:
    model = create_model_from_config(CONFIGS[name])
    assert isinstance(model, DiffusionModelWrapper)
    x, t = torch.randn(2, model.io_channels, 48), torch.rand(2)
    with torch.no_grad():
        assert model.eval()(x, t).shape == x.shape
        torch.testing.assert_close(model(x, t)[1:], model(x[1:], t[1:]), atol=1e-5, rtol=1e-5)
    assert (model.diffusion_objective, model.dist_shift, model.sample_rate) == ("v", None, 16000)


@pytest.mark.parametrize(
    ("name", "unit", "least"),
    [("DAU1d", 4, 12), ("latent DAU1d", 32, 96), ("dit", 2, 2), ("latent dit", 16, 16)],
)
def test_lengths_are_what_network_and_pretransform_need_together(name: str, unit: int, least: int) -> None:
    model = create_model_from_config(CONFIGS[name])
    assert (model.min_input_length, model.min_length) == (unit, least)


def test_keys_nest_as_in_the_public_package() -> None:
    names = {name: set(create_model_from_config(config).state_dict()) for name, config in CONFIGS.items()}
    assert "model.timestep_embed.weight" in names["DAU1d"]
    assert "model.net.0.main.0.weight" in names["DAU1d"]
    assert "model.model.timestep_features.weight" in names["dit"]
    assert "model.model.preprocess_conv.weight" in names["latent dit"]
    assert "pretransform.model.encoder.layers.0.weight_g" in names["latent DAU1d"]
    prefixes = {key.split(".")[0] for keys in names.values() for key in keys}
    assert prefixes == {"model", "pretransform"}


def test_the_pretransform_is_frozen_and_the_network_is_not() -> None:
    model = create_model_from_config(CONFIGS["latent DAU1d"]).train()
    assert not model.pretransform.training
    assert not any(parameter.requires_grad for parameter in model.pretransform.parameters())
    assert all(parameter.requires_grad for parameter in model.model.parameters())


def test_the_published_size_builds_on_meta_with_its_parameters() -> None:
    # Dance Diffusion by Harmonai: 65,536 and 131,072 samples are whole numbers of its inner frames.
    with torch.device("meta"):
        model = create_model_from_config(uncond("DAU1d", {"n_attn_layers": 5}))
    assert sum(parameter.numel() for parameter in model.parameters()) == 221_389_322
    assert (model.min_input_length, model.min_length) == (2**13, 3 * 2**13)
    attended = [name for name in model.state_dict() if name.endswith("qkv_proj.weight")]
    assert len(attended) == 6 * 6  # six in each of the levels 9 to 14


def test_the_transformer_may_be_told_its_channels_by_the_public_name() -> None:
    config = {("in_channels" if key == "io_channels" else key): value for key, value in DIT.items()}
    model = create_model_from_config(uncond("dit", config))
    assert model.io_channels == 2
    with pytest.raises(ConfigError, match="unknown key 'in_channels'"):
        create_model_from_config(uncond("dit", {**DIT, "in_channels": 2}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            uncond("DAU1d", {**DAU1D, "cond_dim": 3}) | {"training": {}},
            "config.cond_dim is 3, but training has nothing to put beside the input",
        ),
        (uncond("dit", {**DIT, "input_concat_dim": 3}) | {"training": {}}, "config.input_concat_dim is 3"),
        (uncond("DAU1d", DAU1D, pretransform=PRETRANSFORM), "the pretransform makes 6 channels"),
        (uncond("unet", DAU1D), "unknown type 'unet'; known: dit, DAU1d"),
    ],
)
def test_a_config_that_cannot_work_is_refused_when_read(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_model_from_config(config)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (uncond("DAU1d", {**DAU1D, "cond_dim": 3}), "cond"),
        (uncond("dit", {**DIT, "input_concat_dim": 3}), "input_concat_cond"),
    ],
)
def test_called_by_hand_it_takes_channels_beside_its_input(config: dict[str, Any], name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model_from_config(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    x, t, beside = torch.ones(1, 2, 48), torch.tensor([0.5]), torch.ones(1, 3, 12)
    with torch.no_grad():
        answer = model(x, t, **{name: beside})
        assert answer.shape == x.shape
        assert not torch.allclose(answer, model(x, t, **{name: -beside}))


def conditional(**diffusion: Any) -> dict[str, Any]:
    block = {"type": "DAU1d", "config": {**DAU1D, "io_channels": 2, "cond_dim": 3}, **diffusion}
    conditioning = {"configs": [], "cond_dim": 8}
    return {
        **CONFIGS["DAU1d"],
        "model_type": "diffusion_cond",
        "model": {"conditioning": conditioning, "diffusion": block, "io_channels": 2},
    }


def test_dance_diffusion_takes_conditioning_beside_its_input() -> None:
    model = create_model_from_config(conditional(input_concat_ids=["melody"])).eval()
    assert "model.model.net.0.main.0.weight" in model.state_dict()
    assert model.min_input_length == 4
    x, t = torch.randn(2, 2, 48), torch.rand(2)
    with torch.no_grad():
        first = model(x, t, {"melody": (torch.randn(2, 3, 12), None)}, cfg_scale=7.0)
        second = model(x, t, {"melody": (torch.randn(2, 3, 12), None)})
    assert first.shape == x.shape
    assert not torch.allclose(first, second)


@pytest.mark.parametrize(
    ("diffusion", "message"),
    [
        ({}, "input_concat_ids are \\[\\], but config.cond_dim"),
        ({"cross_attention_cond_ids": ["prompt"]}, "takes conditioning by input_concat_ids alone"),
    ],
)
def test_ids_that_dance_diffusion_cannot_take_are_refused(diffusion: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_model_from_config(conditional(**diffusion))
