"""SEANet, against the EnCodec of transformers and by its properties."""

from __future__ import annotations

import pickle
import re
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stable_audio_tools.errors import ConfigError
from stable_audio_tools.models.autoencoders.autoencoder import AudioAutoencoder
from stable_audio_tools.models.autoencoders.seanet import SEANetDecoder, SEANetEncoder, pad
from stable_audio_tools.nn.convs import fuse_weight_norm_
from stable_audio_tools.schema.autoencoder import AutoencoderConfig
from stable_audio_tools.schema.encoders import SEANetDecoderConfig, SEANetEncoderConfig
from stable_audio_tools.schema.reader import parse_model_config

LENGTHS = (1, 2, 3, 7, 29, 30, 31, 100)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scrambled(module: nn.Module) -> nn.Module:
    """With weights as after training; norms and biases off their first values."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            if name.endswith(("weight_g", "original0")):
                parameter.copy_(0.5 + draw.abs() / 2)
            else:
                parameter.copy_(draw / parameter[0].numel() ** 0.5)
    return module.eval().requires_grad_(False)


def options(**changes: Any) -> dict[str, Any]:
    return {"channels": 2, "dimension": 6, "n_filters": 4, "lstm": 0, **changes}


def encoder(**changes: Any) -> nn.Module:
    config = SEANetEncoderConfig.model_validate(options(ratios=[2, 3, 5], **changes))
    return scrambled(SEANetEncoder(config).double())


def decoder(**changes: Any) -> nn.Module:
    config = SEANetDecoderConfig.model_validate(options(ratios=[5, 3, 2], **changes))
    return scrambled(SEANetDecoder(config).double())


# Ours, theirs.
VARIANTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"causal": True}, {"use_causal_conv": True}),
    (
        {"causal": True, "trim_right_ratio": 0.4, "pad_mode": "replicate"},
        {"use_causal_conv": True, "trim_right_ratio": 0.4, "pad_mode": "replicate"},
    ),
    ({"norm": "time_group_norm"}, {"norm_type": "time_group_norm"}),
    ({"true_skip": True, "compress": 4}, {"use_conv_shortcut": False, "compress": 4}),
    ({"n_residual_layers": 3, "dilation_base": 3}, {"num_residual_layers": 3, "dilation_growth_rate": 3}),
    (
        {"kernel_size": 4, "last_kernel_size": 5, "residual_kernel_size": 6, "pad_mode": "constant"},
        {"kernel_size": 4, "last_kernel_size": 5, "residual_kernel_size": 6, "pad_mode": "constant"},
    ),
]


def theirs(kind: str, **changes: Any) -> nn.Module:
    from transformers import EncodecConfig
    from transformers.models.encodec import modeling_encodec

    config = EncodecConfig(
        **{
            "audio_channels": 2,
            "hidden_size": 6,
            "num_filters": 4,
            "upsampling_ratios": [5, 3, 2],
            "use_causal_conv": False,
            "num_lstm_layers": 2,
            "codebook_dim": 6,
            **changes,
        }
    )
    return scrambled(getattr(modeling_encodec, kind)(config).double())


def to_public(state: dict[str, Tensor], ours: nn.Module) -> dict[str, Tensor]:
    """Keys of transformers in the layout of the encodec package: one level more around each convolution."""
    own = {key.rsplit(".", 1)[0] for key in ours.state_dict()}
    renamed = {}
    for key, value in state.items():
        path, kind, leaf = re.fullmatch(r"layers\.(.*?)\.?(conv|norm|lstm)\.(.*)", key).groups()
        if kind == "lstm":
            renamed[f"model.{path}.lstm.{leaf}"] = value
            continue
        outer = "convtr" if any(name.startswith(f"model.{path}.convtr") for name in own) else "conv"
        renamed[f"model.{path}.{outer}.{outer if kind == 'conv' else 'norm'}.{leaf}"] = value
    return renamed


@pytest.mark.parametrize(("own", "their"), VARIANTS)
def test_the_encoder_is_that_of_transformers(own: dict[str, Any], their: dict[str, Any]) -> None:
    own = {key: value for key, value in own.items() if key != "trim_right_ratio"}
    reference, ours = theirs("EncodecEncoder", **their), encoder(lstm=2, **own)
    ours.load_state_dict(to_public(reference.state_dict(), ours), strict=True)
    for length in LENGTHS:
        audio = noise(2, 2, length).double()
        torch.testing.assert_close(ours(audio), reference(audio), atol=1e-10, rtol=0)


@pytest.mark.parametrize(("own", "their"), VARIANTS)
def test_the_decoder_is_that_of_transformers(own: dict[str, Any], their: dict[str, Any]) -> None:
    reference, ours = theirs("EncodecDecoder", **their), decoder(lstm=2, **own)
    ours.load_state_dict(to_public(reference.state_dict(), ours), strict=True)
    for length in LENGTHS:
        latents = noise(2, 6, length).double()
        torch.testing.assert_close(ours(latents), reference(latents), atol=1e-10, rtol=0)


def test_keys_are_the_public_ones() -> None:
    keys = set(encoder(lstm=1).state_dict())
    assert {
        "model.0.conv.conv.weight_g",
        "model.1.block.1.conv.conv.weight_v",
        "model.1.block.3.conv.conv.bias",
        "model.1.shortcut.conv.conv.weight_g",
        "model.3.conv.conv.weight_v",
        "model.9.conv.conv.bias",
        "model.10.lstm.weight_ih_l0",
        "model.10.lstm.bias_hh_l0",
        "model.12.conv.conv.weight_g",
    } <= keys
    keys = set(decoder(lstm=1, true_skip=True).state_dict())
    assert {
        "model.0.conv.conv.weight_g",
        "model.1.lstm.weight_hh_l0",
        "model.3.convtr.convtr.weight_g",
        "model.4.block.1.conv.conv.bias",
        "model.9.convtr.convtr.bias",
        "model.12.conv.conv.weight_v",
    } <= keys
    assert not any("shortcut" in key for key in keys)
    grouped = set(encoder(norm="time_group_norm").state_dict())
    assert {"model.0.conv.conv.weight", "model.0.conv.norm.weight", "model.0.conv.norm.bias"} <= grouped
    assert "model.0.conv.conv.weight" in encoder(norm="none").state_dict()
    assert not any("norm" in key for key in encoder(norm="none").state_dict())


@pytest.mark.parametrize("mode", ["reflect", "constant", "replicate"])
@pytest.mark.parametrize("left_right", [(0, 0), (3, 0), (2, 5), (9, 1)])
def test_padding_goes_around_any_signal(mode: str, left_right: tuple[int, int]) -> None:
    left, right = left_right
    for length in range(1, 12):
        x = noise(1, 2, length)
        found = pad(x, left, right, mode)
        assert found.shape[-1] == left + length + right
        torch.testing.assert_close(found[..., left : left + length], x)
        if length > max(left, right):
            torch.testing.assert_close(found, F.pad(x, (left, right), mode))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_any_length_makes_whole_frames_and_comes_back(causal: bool, length: int) -> None:
    latents = encoder(causal=causal, lstm=1)(noise(1, 2, length).double())
    assert latents.shape == (1, 6, -(-length // 30))
    assert decoder(causal=causal, lstm=1)(latents).shape == (1, 2, latents.shape[-1] * 30)


@pytest.mark.parametrize("mode", ["reflect", "constant", "replicate"])
def test_causal_latents_do_not_know_what_comes(mode: str) -> None:
    """The first k frames need the first 30 k samples, once the padding of the beginning is past.

    That padding is a reflection of what comes right after the beginning: 6 latents for the decoder.
    """
    network, back = (make(causal=True, lstm=2, pad_mode=mode) for make in (encoder, decoder))
    audio = noise(1, 2, 300).double()
    other = audio.clone()
    other[..., 210:] = noise(1, 2, 90, seed=1).double()
    torch.testing.assert_close(network(audio)[..., :7], network(other)[..., :7], atol=1e-12, rtol=0)
    assert not torch.allclose(network(audio)[..., 7:], network(other)[..., 7:])
    latents, changed = noise(1, 6, 10).double(), noise(1, 6, 10).double()
    changed[..., 8:] = 0
    torch.testing.assert_close(back(latents)[..., :240], back(changed)[..., :240], atol=1e-12, rtol=0)
    assert not torch.allclose(back(latents)[..., 240:], back(changed)[..., 240:])


def test_an_encoder_that_is_not_causal_looks_ahead() -> None:
    audio = noise(1, 2, 300).double()
    other = audio.clone()
    other[..., 210:] = 0
    network = encoder()
    assert not torch.allclose(network(audio)[..., 6], network(other)[..., 6])


@pytest.mark.parametrize("norm", ["weight_norm", "time_group_norm", "none"])
def test_an_item_does_not_depend_on_its_batch(norm: str) -> None:
    network, back = encoder(norm=norm, lstm=1), decoder(norm=norm, lstm=1)
    audio = noise(3, 2, 100).double()
    together = network(audio)
    for index in range(3):
        alone = network(audio[index : index + 1])
        torch.testing.assert_close(alone[0], together[index])
        torch.testing.assert_close(back(alone)[0], back(together)[index])


def autoencoder(**changes: Any) -> dict[str, Any]:
    return {
        "encoder": {"type": "seanet", "config": options(ratios=[2, 3, 5], **changes)},
        "decoder": {"type": "seanet", "config": options(ratios=[5, 3, 2], **changes)},
        "latent_dim": 6,
        "downsampling_ratio": 30,
        "io_channels": 2,
    }


def build(**changes: Any) -> AudioAutoencoder:
    model = AudioAutoencoder(AutoencoderConfig.model_validate(autoencoder(**changes)), 16000)
    scrambled(model)
    return model


@pytest.mark.parametrize("causal", [False, True])
def test_without_an_lstm_chunks_agree_with_the_whole(causal: bool) -> None:
    model = build(causal=causal)
    audio, latents = noise(1, 2, 9000), noise(1, 6, 300)
    torch.testing.assert_close(model.encode(audio, chunked=True), model.encode(audio), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        model.decode(latents, chunked=True), model.decode(latents), atol=1e-5, rtol=1e-4
    )


def test_half_precision_runs_through_float32_weights() -> None:
    for norm in ("weight_norm", "time_group_norm", "none"):
        model = build(norm=norm, lstm=1)
        audio = noise(1, 2, 90)
        found = model.encode(audio.to(torch.bfloat16))
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), model.encode(audio), atol=0.2, rtol=0.1)
        assert model.decode(found).dtype == torch.bfloat16


def test_copies_pickles_and_fuses() -> None:
    model = build(lstm=1)
    latents = noise(1, 6, 8)
    expected = model.decode(latents)
    torch.testing.assert_close(pickle.loads(pickle.dumps(model)).decode(latents), expected)
    fused = deepcopy(model)
    # 4 convolutions for each of 2 x 3 ratios, and 2 at the ends of each network.
    assert fuse_weight_norm_(fused) == 6 * 4 + 4
    torch.testing.assert_close(fused.decode(latents), expected, atol=1e-5, rtol=1e-5)


def test_gradients_reach_every_weight() -> None:
    model = build(lstm=1).requires_grad_(True).train()
    model(noise(1, 2, 90)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_final_activation_bounds_the_audio() -> None:
    latents = 100 * noise(1, 6, 8).double()
    assert decoder(final_activation="Tanh")(latents).abs().max() <= 1 < decoder()(latents).abs().max()


def test_activations_take_their_parameters() -> None:
    network = encoder(activation="LeakyReLU", activation_params={"negative_slope": 0.3})
    slopes = {module.negative_slope for module in network.modules() if isinstance(module, nn.LeakyReLU)}
    assert slopes == {0.3}


def test_builds_on_the_meta_device_at_the_size_of_encodec() -> None:
    """The 24 kHz EnCodec has 14.9 M parameters, of which its quantisers hold none: they are buffers."""
    config = {"activation_params": {"alpha": 1.0}, "causal": True}
    with torch.device("meta"):
        networks = (
            SEANetEncoder(SEANetEncoderConfig.model_validate({"ratios": [2, 4, 5, 8], **config})),
            SEANetDecoder(SEANetDecoderConfig.model_validate({"ratios": [8, 5, 4, 2], **config})),
        )
    total = sum(parameter.numel() for network in networks for parameter in network.parameters())
    assert total == pytest.approx(14.85e6, rel=0.01)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("encoder", {"norm": "spectral_norm"}, "norm.*weight_norm"),
        ("encoder", {"norm": "time_group_norm", "causal": True}, "cannot be causal"),
        ("encoder", {"activation": "Mush"}, "activation"),
        ("encoder", {"activation": "SiLU", "activation_params": {"alpha": 1.0}}, "SiLU has alpha"),
        ("encoder", {"pad_mode": "zero"}, "pad_mode"),
        ("encoder", {"channels": 1}, "encoder input channels must be 2"),
        ("encoder", {"dimension": 5}, "encoder latent_dim must be 6"),
        ("encoder", {"ratios": [2, 3]}, "encoder strides multiply to 6"),
        ("encoder", {"compress": 8}, "n_filters must be at least compress"),
        ("decoder", {"channels": 1}, "decoder output channels must be 2"),
        ("decoder", {"dimension": 5}, "decoder latent_dim must be 6"),
        ("decoder", {"trim_right_ratio": 0.5}, "unless causal"),
        ("decoder", {"final_activation_params": {"alpha": 1.0}}, "no final_activation"),
    ],
)
def test_what_cannot_work_is_refused_when_read(part: str, change: dict[str, Any], message: str) -> None:
    model = autoencoder()
    model[part]["config"] |= change
    value = {"model_type": "autoencoder", "sample_size": 64, "sample_rate": 8000, "model": model}
    with pytest.raises(ConfigError, match=message):
        parse_model_config(value)
