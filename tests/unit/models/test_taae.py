"""The transformer-augmented autoencoder: layout, windows, precision."""

from __future__ import annotations

import math
import pickle
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stable_audio_tools.errors import ConfigError
from stable_audio_tools.models.autoencoders.autoencoder import AudioAutoencoder
from stable_audio_tools.models.autoencoders.taae import TAAEBlock, TAAEDecoder, TAAEEncoder
from stable_audio_tools.nn.activations import SnakeBeta
from stable_audio_tools.nn.convs import fuse_weight_norm_
from stable_audio_tools.nn.transformer import TransformerBlock
from stable_audio_tools.schema.autoencoder import AutoencoderConfig
from stable_audio_tools.schema.encoders import TAAEConfig
from stable_audio_tools.schema.reader import parse_model_config


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scrambled(module: nn.Module) -> nn.Module:
    """With weights as after training: layer scales and norms off their first values."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1 or name.endswith("weight_g"):
                parameter.copy_(0.5 + draw.abs() / 4)
            else:
                parameter.copy_(draw / parameter[0].numel() ** 0.5)
    return module.eval().requires_grad_(False)


def options(**changes: Any) -> dict[str, Any]:
    base = {"channels": 8, "latent_dim": 6, "c_mults": [1, 2], "strides": [2, 4]}
    return {**base, "transformer_depths": [1, 2], "sliding_window": [3, 4], **changes}


def config(**changes: Any) -> TAAEConfig:
    return TAAEConfig.model_validate(options(**changes))


def autoencoder(**changes: Any) -> dict[str, Any]:
    return {
        "encoder": {"type": "taae", "config": options(**changes)},
        "decoder": {"type": "taae", "config": options(**changes)},
        "latent_dim": 6,
        "downsampling_ratio": 8,
        "io_channels": 2,
    }


def build(**changes: Any) -> AudioAutoencoder:
    model = AudioAutoencoder(AutoencoderConfig.model_validate(autoencoder(**changes)), 16000)
    scrambled(model)
    return model


VARIANTS: list[dict[str, Any]] = [
    {},
    {"use_snake": True, "use_dilated_conv": True},
    {"conformer": True, "layer_scale": False},
    {"sliding_window": None},
    {"sliding_window": [-1, 0]},
    {"transformer_depths": [0, 1], "strides": [1, 8], "c_mults": [1, 2]},
]


@pytest.mark.parametrize("change", VARIANTS)
@pytest.mark.parametrize("length", [1, 7, 8, 9, 200])
def test_any_length_makes_whole_latents_and_comes_back(change: dict[str, Any], length: int) -> None:
    model = build(**change)
    latents = model.encode(noise(2, 2, length))
    assert latents.shape == (2, 6, -(-length // 8))
    assert model.decode(latents).shape == (2, 2, latents.shape[-1] * 8)


BLOCK = {
    "pre_norm.gamma",
    "pre_norm.beta",
    "self_attn.to_qkv.weight",
    "self_attn.to_out.weight",
    "self_attn.q_norm.weight",
    "self_attn.q_norm.bias",
    "self_attn.k_norm.weight",
    "self_attn.k_norm.bias",
    "ff_norm.gamma",
    "ff_norm.beta",
    "ff.ff.0.proj.weight",
    "ff.ff.0.proj.bias",
    "ff.ff.2.weight",
    "ff.ff.2.bias",
    "rope.inv_freq",
}
SCALES = {"self_attn_scale.scale", "ff_scale.scale"}
CONFORMER = {
    "conformer.in_norm.gamma",
    "conformer.in_norm.beta",
    "conformer.pointwise_conv.weight",
    "conformer.glu.proj.weight",
    "conformer.glu.proj.bias",
    "conformer.depthwise_conv.weight",
    "conformer.mid_norm.gamma",
    "conformer.mid_norm.beta",
    "conformer.pointwise_conv_2.weight",
}
CONV = {"weight_g", "weight_v", "bias"}


def under(prefix: str, names: set[str]) -> set[str]:
    return {f"{prefix}.{name}" for name in names}


def test_keys_are_the_public_ones() -> None:
    expected = under("layers.0", CONV) | under("layers.4", CONV)
    expected |= under("layers.1.layers.1", CONV) | under("layers.2.layers.1", CONV)
    for place in ("1.layers.2.1", "2.layers.2.1", "2.layers.2.2"):
        expected |= under(f"layers.{place}", BLOCK | SCALES)
    assert set(TAAEEncoder(config()).state_dict()) == expected

    expected = under("layers.0", CONV) | under("layers.4", CONV - {"bias"})
    expected |= under("layers.1.layers.2", CONV) | under("layers.2.layers.2", CONV)
    for place in ("1.layers.0.1", "1.layers.0.2", "2.layers.0.1"):
        expected |= under(f"layers.{place}", BLOCK | CONFORMER)
    found = TAAEDecoder(config(conformer=True, layer_scale=False)).state_dict()
    assert set(found) == expected


def test_keys_with_dilated_convolutions_and_snakes() -> None:
    """Three residual units come before the encoder's activation, and after the decoder's convolution."""
    encoder = set(TAAEEncoder(config(use_dilated_conv=True, use_snake=True)).state_dict())
    unit = {"layers.0.alpha", "layers.1.weight_g", "layers.2.beta", "layers.3.weight_v"}
    for index in range(3):
        assert under(f"layers.1.layers.{index}", unit) <= encoder
    assert under("layers.1.layers.3", {"alpha", "beta"}) | under("layers.1.layers.4", CONV) <= encoder
    assert "layers.1.layers.5.1.pre_norm.gamma" in encoder
    decoder = set(TAAEDecoder(config(use_dilated_conv=True, use_snake=True)).state_dict())
    assert under("layers.1.layers.1", {"alpha", "beta"}) | under("layers.1.layers.2", CONV) <= decoder
    for index in (3, 4, 5):
        assert under(f"layers.1.layers.{index}", unit) <= decoder


def test_a_snake_of_the_decoder_is_as_wide_as_what_it_is_given() -> None:
    block = TAAEBlock(config(use_snake=True), 1, decoding=True)
    snakes = [layer for layer in block.layers if isinstance(layer, SnakeBeta)]
    assert [len(snake.alpha) for snake in snakes] == [16]
    assert block(noise(1, 16, 5)).shape == (1, 8, 20)


def explicit_block(block: TransformerBlock, x: Tensor, window: tuple[int, int]) -> Tensor:
    """One layer written out: norms of 1e-2, normed queries and keys, rotation of half a head, a window."""
    state = block.state_dict()
    width = x.shape[-1]
    heads = max(1, width // 128)

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (width,), state[f"{name}.gamma"], state[f"{name}.beta"], 1e-2)

    def head_norm(x: Tensor, name: str) -> Tensor:
        weight, bias = state[f"self_attn.{name}.weight"], state[f"self_attn.{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, 1e-6)

    def rotate(x: Tensor) -> Tensor:
        half = x.shape[-1] // 4  # pairs (i, i + half) within the first half of the head
        angles = torch.arange(x.shape[-2])[:, None] * 10_000.0 ** (-torch.arange(half) / half)
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        turned = [a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin(), rest]
        return torch.cat(turned, dim=-1)

    q, k, v = (norm(x, "pre_norm") @ state["self_attn.to_qkv.weight"].T).chunk(3, dim=-1)
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    q, k = rotate(head_norm(q, "q_norm")), rotate(head_norm(k, "k_norm"))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    distance = torch.arange(x.shape[1])[None, :] - torch.arange(x.shape[1])[:, None]
    scores = scores.masked_fill((distance < -window[0]) | (distance > window[1]), -torch.inf)
    out = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2) @ state["self_attn.to_out.weight"].T
    x = x + out * state["self_attn_scale.scale"]
    value, gate = F.linear(
        norm(x, "ff_norm"), state["ff.ff.0.proj.weight"], state["ff.ff.0.proj.bias"]
    ).chunk(2, dim=-1)
    out = F.linear(value * F.silu(gate), state["ff.ff.2.weight"], state["ff.ff.2.bias"])
    return x + out * state["ff_scale.scale"]


@pytest.mark.parametrize("width", [8, 16, 256])
def test_a_layer_follows_its_definition(width: int) -> None:
    block = scrambled(TAAEBlock(config(channels=width, strides=[1, 4], c_mults=[1, 1]), 0, decoding=False))
    layer = block.layers[2][1]
    assert isinstance(layer, TransformerBlock)
    x = noise(2, width, 40)
    expected = explicit_block(layer, x.transpose(1, 2), (3, 4)).transpose(1, 2)
    torch.testing.assert_close(block(x), expected, atol=2e-5, rtol=1e-4)


def test_a_window_is_kept() -> None:
    """With one layer of window (3, 4), token 20 does not know of what lies further off."""
    block = scrambled(TAAEBlock(config(strides=[1, 4], c_mults=[1, 1]), 0, decoding=False))
    x = noise(1, 8, 60)
    for changed, sees in ((16, False), (17, True), (24, True), (25, False)):
        other = x.clone()
        other[..., changed] += 1
        same = torch.equal(block(other)[..., 20], block(x)[..., 20])
        assert same is not sees


def test_long_windows_do_not_need_the_square_of_the_length() -> None:
    """200,000 tokens: a mask of all pairs would take 40 GB."""
    block = TAAEBlock(config(strides=[1, 4], c_mults=[1, 1], channels=2), 0, decoding=False)
    with torch.no_grad():
        assert block(noise(1, 2, 200_000)).shape == (1, 2, 200_000)


def test_chunks_agree_with_the_whole_away_from_their_edges() -> None:
    """Rotary positions are relative, so a chunk may begin anywhere."""
    model = build()
    latents, audio = noise(1, 6, 400), noise(1, 2, 400 * 8)
    torch.testing.assert_close(
        model.decode(latents, chunked=True), model.decode(latents), atol=2e-4, rtol=1e-3
    )
    torch.testing.assert_close(model.encode(audio, chunked=True), model.encode(audio), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("change", VARIANTS)
def test_an_item_does_not_depend_on_its_batch(change: dict[str, Any]) -> None:
    model = build(**change)
    audio = noise(3, 2, 96)
    together = model.encode(audio)
    for index in range(3):
        alone = model.encode(audio[index : index + 1])
        torch.testing.assert_close(alone[0], together[index], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            model.decode(together[index : index + 1])[0], model.decode(together)[index], atol=1e-4, rtol=1e-4
        )


def test_checkpointing_changes_the_memory_and_not_the_gradients() -> None:
    plain, lean = (
        build(checkpointing=checkpointing, use_dilated_conv=True).requires_grad_(True).train()
        for checkpointing in (False, True)
    )
    saved: dict[bool, int] = {}
    for model, name in ((plain, False), (lean, True)):
        count = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(noise(1, 2, 64)).square().sum()
        saved[name] = count
        loss.backward()
    assert saved[True] < saved[False] / 2
    for (name, first), second in zip(plain.named_parameters(), lean.parameters(), strict=True):
        assert first.grad is not None, name
        torch.testing.assert_close(first.grad, second.grad, atol=1e-4, rtol=1e-3)


def test_branches_start_small() -> None:
    """With a layer scale of 1e-5, or a zero output without one, a fresh stack is the identity."""
    for layer_scale, tolerance in ((True, 1e-3), (False, 0.0)):
        fresh = config(strides=[1, 4], c_mults=[1, 1], layer_scale=layer_scale)
        block = TAAEBlock(fresh, 0, decoding=False)
        x = noise(1, 8, 12)
        torch.testing.assert_close(block(x), x, atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_any_float_runs_through_float32_weights(dtype: torch.dtype) -> None:
    model = build(conformer=True)
    audio = noise(1, 2, 96)
    found = model.encode(audio.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), model.encode(audio), atol=0.2, rtol=0.1)
    assert model.decode(found).dtype == dtype


def test_a_half_precision_model_takes_float32_audio() -> None:
    model = build()
    audio = noise(1, 2, 96)
    expected = model.encode(audio)
    found = model.to(torch.bfloat16).encode(audio)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.2, rtol=0.1)


def test_copies_pickles_and_fuses() -> None:
    model = build(use_snake=True)
    latents = noise(1, 6, 9)
    expected = model.decode(latents)
    torch.testing.assert_close(pickle.loads(pickle.dumps(model)).decode(latents), expected)
    fused = deepcopy(model)
    assert fuse_weight_norm_(fused) == 2 * (2 + 2)
    torch.testing.assert_close(fused.decode(latents), expected, atol=1e-5, rtol=1e-4)


def test_builds_on_the_meta_device_at_its_default_size() -> None:
    with torch.device("meta"):
        networks = (TAAEEncoder(TAAEConfig()), TAAEDecoder(TAAEConfig()))
    depth = sum(1 for module in networks[0].modules() if isinstance(module, TransformerBlock))
    assert depth == 12
    assert all(parameter.is_meta for network in networks for parameter in network.parameters())


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("encoder", {"channels": 100}, r"channels x c_mults\[1\] is 200"),
        ("encoder", {"strides": [8, 1]}, r"strides\[1\] is 1"),
        ("encoder", {"transformer_depths": [1]}, "equally long"),
        ("encoder", {"sliding_window": [-2, 3]}, "greater than or equal to -1"),
        ("encoder", {"in_channels": 1}, "encoder input channels must be 2"),
        ("encoder", {"latent_dim": 12}, "encoder latent_dim must be 6"),
        ("decoder", {"out_channels": 1}, "decoder output channels must be 2"),
        ("decoder", {"strides": [2, 2]}, "decoder strides multiply to 4"),
    ],
)
def test_what_cannot_work_is_refused_when_read(part: str, change: dict[str, Any], message: str) -> None:
    model = autoencoder()
    model[part]["config"] |= change
    value = {"model_type": "autoencoder", "sample_size": 64, "sample_rate": 8000, "model": model}
    with pytest.raises(ConfigError, match=message):
        parse_model_config(value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_half_precision_on_the_gpu_is_close_to_float32_on_the_cpu() -> None:
    model = build()
    audio = noise(1, 2, 96)
    expected = model.encode(audio)
    found = model.cuda().encode(audio.cuda().half())
    torch.testing.assert_close(found.float().cpu(), expected, atol=0.05, rtol=0.05)
