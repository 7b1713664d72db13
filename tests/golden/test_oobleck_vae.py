"""The autoencoder against numbers of the public package (see the README of the golden cases)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from stable_audio_tools.models.autoencoders.autoencoder import AudioAutoencoder
from stable_audio_tools.models.factory import create_model_from_config

CASE = Path(__file__).parents[2] / "../shared/parity/oobleck_vae"
pytestmark = pytest.mark.skipif(not CASE.is_dir(), reason="the golden cases are not beside this checkout")


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return load_file(CASE / "tensors.safetensors")


@pytest.fixture(scope="module")
def model(tensors: dict[str, Tensor]) -> AudioAutoencoder:
    model = create_model_from_config(json.loads((CASE / "case.json").read_text())["config"])
    assert isinstance(model, AudioAutoencoder)
    model.load_state_dict(
        {key[2:]: value for key, value in tensors.items() if key.startswith("w/")}, strict=True
    )
    return model.eval().requires_grad_(False)


def agrees(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_encoder(model: AudioAutoencoder, tensors: dict[str, Tensor]) -> None:
    agrees(model.encoder(tensors["in/audio"]), tensors["out/encoder_pre_bottleneck"])


def test_encode_samples_the_same_latents_after_the_same_seed(
    model: AudioAutoencoder, tensors: dict[str, Tensor]
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(123)
        agrees(model.encode(tensors["in/audio"]), tensors["out/encode_seed123"])


def test_encode_with_a_seeded_generator(model: AudioAutoencoder, tensors: dict[str, Tensor]) -> None:
    generator = torch.Generator().manual_seed(123)
    agrees(model.encode(tensors["in/audio"], generator=generator), tensors["out/encode_seed123"])


def test_decode(model: AudioAutoencoder, tensors: dict[str, Tensor]) -> None:
    agrees(model.decode(tensors["in/latents"]), tensors["out/decode"])


def test_decode_in_chunks(model: AudioAutoencoder, tensors: dict[str, Tensor]) -> None:
    found = model.decode_audio(tensors["in/latents"], chunked=True, chunk_size=128, overlap=32)
    agrees(found, tensors["out/decode_chunked"])
    assert not torch.allclose(found, tensors["out/decode"], atol=1e-6), (
        "the chunk edges should show in this tiny model"
    )


def test_fused_weights_decode_the_same(model: AudioAutoencoder, tensors: dict[str, Tensor]) -> None:
    from copy import deepcopy

    from stable_audio_tools.nn.convs import fuse_weight_norm_

    fused = deepcopy(model)
    assert fuse_weight_norm_(fused) > 0
    agrees(fused.decode(tensors["in/latents"]), tensors["out/decode"])
