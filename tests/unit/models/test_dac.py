"""The encoder and decoder of the Descript Audio Codec, against those of transformers and by themselves."""

from __future__ import annotations

import pickle
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stable_audio_tools.errors import ConfigError
from stable_audio_tools.models.autoencoders.autoencoder import AudioAutoencoder
from stable_audio_tools.models.autoencoders.dac import DACDecoder, DACEncoder
from stable_audio_tools.nn.activations import Snake1d
from stable_audio_tools.nn.convs import fuse_weight_norm_
from stable_audio_tools.schema.autoencoder import AutoencoderConfig
from stable_audio_tools.schema.encoders import DACDecoderConfig, DACEncoderConfig
from stable_audio_tools.schema.reader import parse_model_config


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scrambled(module: nn.Module) -> nn.Module:
    """With weights as after training: norms, biases and frequencies off their first values."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            if name.endswith(("alpha", "weight_g")):
                parameter.copy_(0.5 + draw.abs() / 2)
            else:
                parameter.copy_(draw / parameter[0].numel() ** 0.5)
    return module.eval().requires_grad_(False)


def codec(strides: list[int], **changes: Any) -> dict[str, Any]:
    rates = strides[::-1]
    ratio = 1
    for stride in strides:
        ratio *= stride
    config: dict[str, Any] = {
        "encoder": {
            "type": "dac",
            "config": {"in_channels": 2, "latent_dim": 6, "d_model": 4, "strides": strides},
        },
        "decoder": {
            "type": "dac",
            "config": {"out_channels": 2, "latent_dim": 3, "channels": 16, "rates": rates},
        },
        "bottleneck": {"type": "vae"},
        "latent_dim": 3,
        "downsampling_ratio": ratio,
        "io_channels": 2,
    }
    return {**config, **changes}


def build(strides: list[int]) -> AudioAutoencoder:
    model = AudioAutoencoder(AutoencoderConfig.model_validate(codec(strides)), 16000)
    scrambled(model)
    return model


UNIT = {"snake1": "0", "conv1": "1", "snake2": "2", "conv2": "3"}


def to_unit(name: str) -> str:
    part, leaf = name.split(".", 1)
    return f"block.{UNIT[part]}.{leaf}"


def from_encoder(state: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Keys of the transformers encoder in the public layout."""
    renamed = {}
    for key, value in state.items():
        head, rest = key.split(".", 1)
        if head == "block":
            index, part, leaf = rest.split(".", 2)
            place = f"encoder.block.{int(index) + 1}.block."
            if part.startswith("res_unit"):
                renamed[f"{place}{int(part[-1]) - 1}.{to_unit(leaf)}"] = value
            else:
                renamed[f"{place}{'3' if part == 'snake1' else '4'}.{leaf}"] = value
        else:
            position = {"conv1": 0, "snake1": count + 1, "conv2": count + 2}[head]
            renamed[f"encoder.block.{position}.{rest}"] = value
    return renamed


def from_decoder(state: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Keys of the transformers decoder in the public layout."""
    renamed = {}
    for key, value in state.items():
        head, rest = key.split(".", 1)
        if head == "block":
            index, part, leaf = rest.split(".", 2)
            place = f"decoder.model.{int(index) + 1}.block."
            if part.startswith("res_unit"):
                renamed[f"{place}{int(part[-1]) + 1}.{to_unit(leaf)}"] = value
            else:
                renamed[f"{place}{'0' if part == 'snake1' else '1'}.{leaf}"] = value
        else:
            position = {"conv1": 0, "snake1": count + 1, "conv2": count + 2}[head]
            renamed[f"decoder.model.{position}.{rest}"] = value
    return renamed


def transformers_config(strides: list[int]) -> Any:
    from transformers import DacConfig

    return DacConfig(
        encoder_hidden_size=4,
        downsampling_ratios=strides,
        upsampling_ratios=strides[::-1],
        decoder_hidden_size=24,
    )


@pytest.mark.parametrize("strides", [[2], [2, 4], [4, 2, 6], [3, 5]])
def test_the_encoder_is_that_of_transformers(strides: list[int]) -> None:
    from transformers.models.dac.modeling_dac import DacEncoder

    theirs = scrambled(DacEncoder(transformers_config(strides)).double())
    ours = DACEncoder(DACEncoderConfig(d_model=4, strides=strides)).double().eval()
    ours.load_state_dict(from_encoder(theirs.state_dict(), len(strides)), strict=True)
    for length in (60, 480, 600):
        audio = noise(2, 1, length).double()
        torch.testing.assert_close(ours(audio), theirs(audio), atol=1e-9, rtol=0)


@pytest.mark.parametrize("strides", [[2], [2, 4], [4, 2, 6], [3, 5]])
def test_the_decoder_is_that_of_transformers(strides: list[int]) -> None:
    """Theirs has no output padding: with odd strides the end is missing, and what reaches it differs."""
    from transformers.models.dac.modeling_dac import DacDecoder

    config = transformers_config(strides)
    theirs = scrambled(DacDecoder(config).double())
    ours_config = DACDecoderConfig(latent_dim=config.hidden_size, channels=24, rates=strides[::-1])
    ours = DACDecoder(ours_config).double().eval()
    ours.load_state_dict(from_decoder(theirs.state_dict(), len(strides)), strict=True)
    latents = noise(2, config.hidden_size, 50).double()
    found, expected = ours(latents), theirs(latents)
    if all(stride % 2 == 0 for stride in strides):
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    else:
        away = found.shape[-1] - 300
        torch.testing.assert_close(found[..., :away], expected[..., :away], atol=1e-9, rtol=0)


def test_keys_are_the_public_ones() -> None:
    keys = set(build([2, 4]).state_dict())
    assert {
        "encoder.encoder.block.0.weight_g",
        "encoder.encoder.block.1.block.0.block.0.alpha",
        "encoder.encoder.block.1.block.2.block.3.weight_v",
        "encoder.encoder.block.2.block.3.alpha",
        "encoder.encoder.block.2.block.4.bias",
        "encoder.encoder.block.3.alpha",
        "encoder.encoder.block.4.weight_v",
        "encoder.proj_out.weight",
        "encoder.proj_out.bias",
        "decoder.decoder.model.0.weight_g",
        "decoder.decoder.model.1.block.0.alpha",
        "decoder.decoder.model.1.block.1.weight_v",
        "decoder.decoder.model.2.block.4.block.3.bias",
        "decoder.decoder.model.3.alpha",
        "decoder.decoder.model.4.bias",
    } <= keys
    # 3 units of 8 keys, a snake and a convolution in each of 2 x 2 blocks; 7 at the ends; the projection.
    assert len(keys) == 4 * (3 * 8 + 4) + 2 * 7 + 2
    assert build([2, 4]).state_dict()["encoder.encoder.block.3.alpha"].shape == (1, 16, 1)


def test_without_a_latent_width_there_is_no_projection() -> None:
    encoder = DACEncoder(DACEncoderConfig(d_model=4, strides=[2, 2]))
    assert not any(key.startswith("proj_out") for key in encoder.state_dict())
    assert encoder(noise(1, 1, 16)).shape == (1, 16, 4)


@pytest.mark.parametrize("strides", [[2, 4], [3, 5], [2, 7], [5]])
@pytest.mark.parametrize("length", [1, 14, 15, 16, 1000])
def test_any_stride_and_length_comes_back_whole(strides: list[int], length: int) -> None:
    model = build(strides)
    latents = model.encode(noise(1, 2, length))
    assert latents.shape == (1, 3, -(-length // model.downsampling_ratio))
    assert model.decode(latents).shape == (1, 2, latents.shape[-1] * model.downsampling_ratio)
    assert model(noise(1, 2, length)).shape == (1, 2, length)


@pytest.mark.parametrize("strides", [[2, 4], [3, 5]])
def test_chunks_agree_with_the_whole(strides: list[int]) -> None:
    """A chunk's own context ends 39 frames of the finest block away, a few latents: half the overlap."""
    model = build(strides)
    latents = noise(1, 3, 300)
    whole = model.decode(latents)
    torch.testing.assert_close(model.decode(latents, chunked=True, overlap=64), whole, atol=1e-4, rtol=1e-4)
    audio = noise(1, 2, 300 * model.downsampling_ratio)
    found, expected = (
        model.encode(audio, chunked=chunked, overlap=64, generator=torch.Generator().manual_seed(1))
        for chunked in (True, False)
    )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_an_item_does_not_depend_on_its_batch() -> None:
    model = build([2, 4]).double()
    audio = noise(3, 2, 160).double()
    together = model.encoder(audio)
    for index in range(3):
        torch.testing.assert_close(model.encoder(audio[index : index + 1])[0], together[index])
        torch.testing.assert_close(
            model.decode(together[index : index + 1, :3])[0], model.decode(together[:, :3])[index]
        )


def test_copies_pickles_and_fuses() -> None:
    model = build([2, 4])
    latents = noise(1, 3, 8)
    expected = model.decode(latents)
    torch.testing.assert_close(pickle.loads(pickle.dumps(model)).decode(latents), expected)
    fused = deepcopy(model)
    # 7 convolutions in each of 4 blocks and 2 at the ends of each network; the projection never had a norm.
    assert fuse_weight_norm_(fused) == 4 * 7 + 4
    torch.testing.assert_close(fused.decode(latents), expected, atol=1e-5, rtol=1e-5)


def test_half_precision_runs_through_float32_weights() -> None:
    model = build([2, 4])
    audio = noise(1, 2, 160)
    found = model.encoder(audio.to(torch.bfloat16))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), model.encoder(audio), atol=1, rtol=0.1)


def test_snake_follows_its_formula_and_its_gradient() -> None:
    snake = Snake1d(3).double()
    with torch.no_grad():
        snake.alpha.copy_(torch.tensor([0.5, 1.0, 3.0]).view(1, 3, 1))
    x = noise(2, 3, 5).double().requires_grad_()
    expected = torch.stack(
        [
            x[:, i] + torch.sin(alpha * x[:, i]) ** 2 / (alpha + 1e-9)
            for i, alpha in enumerate([0.5, 1.0, 3.0])
        ],
        1,
    )
    torch.testing.assert_close(snake(x), expected)
    assert torch.autograd.gradcheck(
        lambda x, alpha: torch.func.functional_call(snake, {"alpha": alpha}, x), (x, snake.alpha)
    )


def test_builds_on_the_meta_device_at_the_published_size() -> None:
    """Kumar et al. 2023 give 76 M for the 44 kHz codec; its quantiser has 0.2 M of them."""
    with torch.device("meta"):
        encoder = DACEncoder(DACEncoderConfig())
        decoder = DACDecoder(DACDecoderConfig(latent_dim=1024))
    plain = sum(
        parameter.numel()
        for network in (encoder, decoder)
        for name, parameter in network.named_parameters()
        if not name.endswith("weight_g")
    )
    assert plain == pytest.approx(76.4e6, rel=0.001)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("encoder", {"in_channels": 1}, "encoder input channels must be 2"),
        ("encoder", {"latent_dim": 5}, "encoder latent_dim must be 6"),
        ("encoder", {"latent_dim": None}, "encoder latent_dim must be 6 .* found 16"),
        ("encoder", {"strides": [2, 2]}, "encoder strides multiply to 4"),
        ("decoder", {"out_channels": 1}, "decoder output channels must be 2"),
        ("decoder", {"latent_dim": 4}, "decoder latent_dim must be 3"),
        ("decoder", {"channels": 3}, "channels must be at least 4"),
        ("decoder", {"rates": []}, "at least 1 item"),
        ("decoder", {"rates": [1, 8]}, "greater than or equal to 2"),
    ],
)
def test_what_cannot_work_is_refused_when_read(part: str, change: dict[str, Any], message: str) -> None:
    model = codec([2, 4])
    model[part]["config"] |= change
    value = {"model_type": "autoencoder", "sample_size": 64, "sample_rate": 8000, "model": model}
    with pytest.raises(ConfigError, match=message):
        parse_model_config(value)
