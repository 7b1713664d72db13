"""State-dict keys and shapes of the published checkpoints, where they are certain.

Stable Audio Open 1.0 has its list in the golden cases. Autoencoders on the Descript Audio Codec are written
out here from the definition of that codec (Kumar et al. 2023), apart from our own code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from shrinking import read_shipped

from stable_audio_tools.models.factory import create_model_from_config

PARITY = Path(__file__).parents[2] / "../shared/parity"
needs_parity = pytest.mark.skipif(not PARITY.is_dir(), reason="the golden cases are not beside this checkout")
Shapes = dict[str, list[int]]


def shapes_of(config: dict[str, Any]) -> Shapes:
    with torch.device("meta"):
        model = create_model_from_config(config)
    return {key: list(value.shape) for key, value in model.state_dict().items()}


def open_config() -> dict[str, Any]:
    value: dict[str, Any] = json.loads((PARITY / "stable_audio_open_1_0.model.json").read_text())
    return value


def open_shapes() -> Shapes:
    shapes: Shapes = json.loads((PARITY / "stable_audio_open_1_0.keys.json").read_text())["keys"]
    return shapes


@needs_parity
def test_stable_audio_open_has_the_published_keys_and_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedModel

    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail("building the model must not read the text encoder")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)
    found = shapes_of(open_config())
    assert found == open_shapes()
    assert len(found) == 745


@needs_parity
def test_stable_audio_open_has_the_published_size() -> None:
    with torch.device("meta"):
        model = create_model_from_config(open_config())
    assert round(sum(p.numel() for p in model.model.parameters()) / 1e6, 1) == 1056.8
    assert round(sum(p.numel() for p in model.pretransform.parameters()) / 1e6, 1) == 156.1


@needs_parity
def test_the_vae_of_stable_audio_2_is_the_one_of_stable_audio_open() -> None:
    prefix = "pretransform.model."
    expected = {key: shape for key, shape in open_shapes().items() if key.startswith(prefix)}
    found = shapes_of(read_shipped("autoencoders/stable_audio_2_0_vae"))
    assert {prefix + key: shape for key, shape in found.items()} == expected
    assert len(found) == 365


@needs_parity
def test_stable_audio_2_is_stable_audio_open_with_another_text_encoder() -> None:
    assert shapes_of(read_shipped("txt2audio/stable_audio_2_0")) == open_shapes()


@pytest.mark.parametrize("name", ["stable_audio_1_0_vae", "dac_2048_32_vae"])
def test_the_dac_autoencoders_have_the_layout_of_that_codec(name: str) -> None:
    config = read_shipped(f"autoencoders/{name}")
    model, channels = config["model"], config["audio_channels"]
    encoder, decoder = model["encoder"]["config"], model["decoder"]["config"]
    expected = {
        **dac_encoder(channels, encoder["d_model"], encoder["strides"], encoder["latent_dim"]),
        **dac_decoder(channels, decoder["channels"], decoder["rates"], decoder["latent_dim"]),
    }
    assert shapes_of(config) == expected
    assert len(expected) == 240


def test_dance_diffusion_has_its_keys_straight_under_the_model() -> None:
    found = shapes_of(read_shipped("dance_diffusion/dance_diffusion_base"))
    assert found["model.timestep_embed.weight"] == [8, 1]
    assert found["model.net.0.main.0.weight"] == [128, 2 + 16, 5]
    assert {key.split(".")[1] for key in found} == {"timestep_embed", "net"}
    assert sum(key.endswith("qkv_proj.weight") for key in found) == 36  # six levels of six


def dac_encoder(audio: int, width: int, strides: list[int], latents: int) -> Shapes:
    """A convolution, blocks that double the width, Snake and a convolution; then a plain projection."""
    root = "encoder.encoder.block"
    shapes = conv(f"{root}.0", width, audio, 7)
    for level, stride in enumerate(strides, 1):
        block = f"{root}.{level}.block"
        for unit in range(3):
            shapes |= residual_unit(f"{block}.{unit}.block", width)
        shapes |= snake(f"{block}.3", width) | conv(f"{block}.4", 2 * width, width, 2 * stride)
        width *= 2
    end = len(strides) + 1
    shapes |= snake(f"{root}.{end}", width) | conv(f"{root}.{end + 1}", width, width, 3)
    return shapes | {"encoder.proj_out.weight": [latents, width, 1], "encoder.proj_out.bias": [latents]}


def dac_decoder(audio: int, width: int, rates: list[int], latents: int) -> Shapes:
    """A convolution, blocks that halve the width, Snake and a convolution."""
    root = "decoder.decoder.model"
    shapes = conv(f"{root}.0", width, latents, 7)
    for level, rate in enumerate(rates, 1):
        block = f"{root}.{level}.block"
        shapes |= snake(f"{block}.0", width)
        # A transposed weight has its input first, and its norm goes by that axis.
        transposed = conv(f"{block}.1", width, width // 2, 2 * rate)
        shapes |= transposed | {f"{block}.1.bias": [width // 2]}
        width //= 2
        for unit in range(3):
            shapes |= residual_unit(f"{block}.{unit + 2}.block", width)
    end = len(rates) + 1
    return shapes | snake(f"{root}.{end}", width) | conv(f"{root}.{end + 1}", audio, width, 7)


def conv(path: str, first: int, second: int, kernel: int) -> Shapes:
    weights = {f"{path}.weight_g": [first, 1, 1], f"{path}.weight_v": [first, second, kernel]}
    return {f"{path}.bias": [first], **weights}


def snake(path: str, width: int) -> Shapes:
    return {f"{path}.alpha": [1, width, 1]}


def residual_unit(path: str, width: int) -> Shapes:
    convs = conv(f"{path}.1", width, width, 7) | conv(f"{path}.3", width, width, 1)
    return snake(f"{path}.0", width) | snake(f"{path}.2", width) | convs
