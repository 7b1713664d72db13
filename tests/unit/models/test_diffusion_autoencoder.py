"""The diffusion autoencoder: what goes into its network, what sampling makes of it, and its layout."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stable_audio_tools.errors import ConfigError, UsageError
from stable_audio_tools.models.autoencoders.diffusion import DiffusionAutoencoder
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.pretransforms.base import Pretransform

OOBLECK = {"channels": 4, "c_mults": [1, 2], "strides": [2, 4]}
U_NET = {"depth": 3, "n_attn_layers": 1, "channels": [8, 8, 16], "strides": [2, 2], "io_channels": 2}
ENCODER = {"type": "oobleck", "config": {"latent_dim": 6, **OOBLECK}}
DECODER = {"type": "oobleck", "config": {"latent_dim": 6, "out_channels": 5, **OOBLECK}}
DIT = {"io_channels": 2, "embed_dim": 16, "depth": 1, "num_heads": 2, "input_concat_dim": 6}
PATCHED = {"type": "patched", "config": {"channels": 2, "patch_size": 4}}


def whole(**model: Any) -> dict[str, Any]:
    parts = {
        "encoder": ENCODER,
        "bottleneck": {"type": "tanh"},
        "diffusion": {"type": "DAU1d", "config": {**U_NET, "cond_dim": 6}},
        "latent_dim": 6,
        "downsampling_ratio": 8,
        "io_channels": 2,
        **model,
    }
    return {
        "model_type": "diffusion_autoencoder",
        "sample_size": 512,
        "sample_rate": 16000,
        "model": copy.deepcopy({key: value for key, value in parts.items() if value is not None}),
    }


ON_PATCHES = {
    "pretransform": PATCHED,
    "io_channels": 8,
    "diffusion": {"type": "DAU1d", "config": {**U_NET, "io_channels": 8, "cond_dim": 6}},
    "downsampling_ratio": 32,
}
CONFIGS = {
    "U-Net": whole(),
    "decoder": whole(decoder=DECODER, diffusion={"type": "DAU1d", "config": {**U_NET, "cond_dim": 5}}),
    "variational": whole(
        encoder={"type": "oobleck", "config": {**OOBLECK, "latent_dim": 12}}, bottleneck={"type": "vae"}
    ),
    "transformer": whole(diffusion={"type": "dit", "config": DIT}),
    "patches": whole(**ON_PATCHES),
    "patches, no encoder": whole(
        **{**ON_PATCHES, "downsampling_ratio": 4, "latent_dim": 8, "encoder": None, "bottleneck": None}
        | {"diffusion": {"type": "DAU1d", "config": {**U_NET, "io_channels": 8, "cond_dim": 8}}}
    ),
}


def build(name: str) -> DiffusionAutoencoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model_from_config(CONFIGS[name])
        for parameter in model.diffusion.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.3


@torch.no_grad()
def reference_decode(model: DiffusionAutoencoder, latents: Tensor, steps: int, seed: int) -> Tensor:
    """The public way, step by step: stretch, draw noise, DDIM without fresh noise."""
    frames = latents.shape[-1] * model.frames_per_latent
    beside = latents if model.bottleneck is None else model.bottleneck.decode(latents)
    if model.decoder is not None:
        beside = model.decoder(beside)
    beside = F.interpolate(beside, size=frames, mode="nearest")
    torch.manual_seed(seed)
    x = torch.randn(len(latents), model.io_channels, frames)
    clean = x
    for i in range(steps):
        angle, after = ((1 - k / steps) * math.pi / 2 for k in (i, i + 1))
        t = torch.full((len(x),), 1 - i / steps)
        v = model.diffusion(x, t, input_concat_cond=beside)
        clean = math.cos(angle) * x - math.sin(angle) * v
        noise = math.sin(angle) * x + math.cos(angle) * v
        x = math.cos(after) * clean + math.sin(after) * noise
    return clean if model.pretransform is None else model.pretransform.decode(clean)


@pytest.mark.parametrize("name", CONFIGS)
def test_decoding_is_ddim_beside_the_stretched_latents(name: str) -> None:
    model = build(name)
    latents = draw(1, model.latent_dim, 6)
    expected = reference_decode(model, latents, steps=5, seed=9)
    torch.manual_seed(9)
    torch.testing.assert_close(model.decode(latents, steps=5), expected, atol=1e-4, rtol=1e-4)
    # one clip by its own seed is that clip too
    torch.testing.assert_close(model.decode(latents, steps=5, seed=9), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("length", [512, 511, 97, 1])
def test_audio_of_any_length_comes_back_as_long(name: str, length: int) -> None:
    model = build(name)
    audio = draw(2, 2, length)
    latents = model.encode(audio)
    assert latents.shape == (2, model.latent_dim, math.ceil(length / model.downsampling_ratio))
    assert model.decode(latents, steps=1).shape == (2, 2, latents.shape[-1] * model.downsampling_ratio)
    found = model.reconstruct(audio, steps=2, seed=0)
    assert found.shape == audio.shape
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("name", ["decoder", "variational", "transformer", "patches"])
@pytest.mark.parametrize("sampler", ["v-ddim", "dpmpp-3m-sde"])
def test_a_clip_with_its_seed_does_not_depend_on_its_batch(name: str, sampler: str) -> None:
    model = build(name)
    latents = draw(3, model.latent_dim, 6)
    together = model.decode(latents, steps=3, seed=4, sampler=sampler)
    alone = model.decode(latents[2:], steps=3, seed=6, sampler=sampler)
    torch.testing.assert_close(together[2:], alone, atol=1e-3, rtol=1e-3)
    audio = draw(3, 2, 96)
    torch.testing.assert_close(
        model.reconstruct(audio, steps=2, seed=4)[2:],
        model.reconstruct(audio[2:], steps=2, seed=6),
        atol=1e-3,
        rtol=1e-3,
    )


def test_another_seed_draws_other_details() -> None:
    model, audio = build("variational"), draw(1, 2, 128)
    first = model.reconstruct(audio, steps=2, seed=0)
    assert torch.equal(first, model.reconstruct(audio, steps=2, seed=0))
    assert not torch.allclose(first, model.reconstruct(audio, steps=2, seed=1))
    assert not torch.allclose(first, model.reconstruct(-audio, steps=2, seed=0))
    torch.manual_seed(3)
    loose = model(audio, steps=2)
    torch.manual_seed(3)
    assert torch.equal(loose, model(audio, steps=2))


def test_latents_reach_the_network_frame_by_frame() -> None:
    model = build("U-Net")
    latents = draw(1, 6, 4)
    beside = model.conditioning(latents, 32)
    assert torch.equal(beside, latents.repeat_interleave(8, dim=-1))
    with_decoder = build("decoder")
    assert with_decoder.conditioning(latents, 32).shape == (1, 5, 32)


def test_training_can_skip_the_pretransform() -> None:
    model = build("patches")
    audio = draw(2, 2, 128)
    assert isinstance(model.pretransform, Pretransform)
    frames = model.pretransform.encode(audio)
    latents, info = model.encode(frames, return_info=True, skip_pretransform=True)
    torch.testing.assert_close(latents, model.encode(audio))
    assert isinstance(info, dict)
    beside = model.conditioning(latents, frames.shape[-1])
    assert beside.shape == (2, 6, 32)
    model.train().diffusion(frames, torch.rand(2), input_concat_cond=beside).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.encoder.parameters())


def test_the_bottleneck_reports_its_losses() -> None:
    model = build("variational")
    latents, info = model.encode(draw(2, 2, 64), return_info=True)
    assert latents.shape == (2, 6, 8)
    assert info["kl"].ndim == 0


def test_keys_nest_as_in_the_public_package() -> None:
    states = {name: set(build(name).state_dict()) for name in ("decoder", "transformer")}
    assert {key.split(".")[0] for key in states["decoder"]} == {"encoder", "decoder", "diffusion"}
    assert "diffusion.model.net.0.main.0.weight" in states["decoder"]
    assert "diffusion.model.timestep_embed.weight" in states["decoder"]
    assert "encoder.layers.0.weight_g" in states["decoder"]
    assert "diffusion.model.preprocess_conv.weight" in states["transformer"]


def test_a_fresh_encoder_is_halved() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model_from_config(CONFIGS["U-Net"])
    first = model.encoder.layers[0]
    torch.testing.assert_close(first.weight_v.flatten(1).norm(dim=1), first.weight_g.flatten())
    assert float(first.weight_v.detach().abs().max()) <= 0.5 * (2 * 7) ** -0.5


def test_what_the_config_freezes_is_frozen() -> None:
    frozen = create_model_from_config(whole(encoder={**ENCODER, "requires_grad": False}))
    assert not any(parameter.requires_grad for parameter in frozen.encoder.parameters())
    assert all(parameter.requires_grad for parameter in frozen.diffusion.parameters())


def test_lengths_that_need_no_padding() -> None:
    assert build("U-Net").min_length == 8
    assert build("patches").min_length == 32
    deep = whole(
        diffusion={
            "type": "DAU1d",
            "config": {**U_NET, "cond_dim": 6, "strides": [3, 4], "learned_resample": True},
        }
    )
    assert create_model_from_config(deep).min_length == 24


def test_it_is_copied_and_built_on_meta() -> None:
    model = build("decoder")
    latents = draw(1, 6, 4)
    assert torch.equal(copy.deepcopy(model).decode(latents, 2, seed=1), model.decode(latents, 2, seed=1))
    with torch.device("meta"):
        empty = create_model_from_config(CONFIGS["decoder"])
    assert list(empty.state_dict()) == list(model.state_dict())


def test_behind_a_pretransform_the_ratio_may_be_told_either_way() -> None:
    for told in (8, 32):
        model = create_model_from_config(whole(**{**ON_PATCHES, "downsampling_ratio": told}))
        assert (model.downsampling_ratio, model.frames_per_latent) == (32, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"io_channels": 3}, "diffusion.config.io_channels must be 3"),
        ({"downsampling_ratio": 16}, "encoder strides multiply to 8, but downsampling_ratio is 16"),
        (
            {"diffusion": {"type": "DAU1d", "config": U_NET}},
            r"diffusion.config.cond_dim must be 6 .*, found 0",
        ),
        (
            {"diffusion": {"type": "dit", "config": {**DIT, "input_concat_dim": 2}}},
            "input_concat_dim must be 6",
        ),
        ({"latent_dim": 5}, "encoder latent_dim must be 5"),
        ({"bottleneck": {"type": "vae"}}, "encoder latent_dim must be 12"),
        ({**ON_PATCHES, "downsampling_ratio": 16}, "downsampling_ratio is 16"),
        ({"pretransform": PATCHED}, "the pretransform makes 8 channels"),
    ],
)
def test_parts_that_do_not_meet_are_refused_when_read(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_model_from_config(whole(**change))


def test_audio_of_another_shape_is_named() -> None:
    with pytest.raises(UsageError, match=r"shape \(batch, 2, length\), found \(1, 3, 64\)"):
        build("U-Net").encode(draw(1, 3, 64))
