"""The U-Net of Dance Diffusion and its resampling: layout, lengths, and independence of the batch."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from stable_audio_tools.errors import UsageError
from stable_audio_tools.models.unet1d import DAU1dWrapper, DiffusionAttnUnet1D
from stable_audio_tools.nn.activations import Snake1d
from stable_audio_tools.nn.resampling import (
    KERNELS,
    Downsample1d,
    Upsample1d,
    learned_downsample,
    learned_upsample,
)
from stable_audio_tools.schema.unets import DAU1dConfig

SMALL: dict[str, Any] = {"depth": 3, "n_attn_layers": 1, "channels": [8, 8, 16], "strides": [2, 2]}
VARIANTS: dict[str, dict[str, Any]] = {
    "filtered": {},
    "without attention": {"n_attn_layers": 0},
    "snake": {"use_snake": True, "conv_bias": False, "kernel_size": 3},
    "learned": {"learned_resample": True, "strides": [3, 4]},
    "stride 1": {"strides": [1, 2]},
    "mono": {"io_channels": 1},
    "conditioned": {"cond_dim": 3},
    "augmented": {"cond_dim": 3, "cond_noise_aug": True, "learned_resample": True, "strides": [4, 2]},
}


def config(name: str = "filtered", **more: Any) -> DAU1dConfig:
    return DAU1dConfig(**{**SMALL, **VARIANTS[name], **more})


def network(name: str = "filtered", seed: int = 0, **more: Any) -> DiffusionAttnUnet1D:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DiffusionAttnUnet1D(config(name, **more)).eval()


def draw(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def inputs(model: DiffusionAttnUnet1D, length: int, batch: int = 3) -> dict[str, Tensor]:
    made = {"x": draw(batch, model.io_channels, length), "t": torch.linspace(0.1, 0.9, batch)}
    if model.config.cond_dim:
        made["cond"] = draw(batch, model.config.cond_dim, 5, seed=2)
    return made


@torch.no_grad()
def answer(model: DiffusionAttnUnet1D, **given: Any) -> Tensor:
    return model(**given)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("length", [1, 2, 7, 48, 61])
def test_any_length_goes_in_and_comes_out(name: str, length: int) -> None:
    model = network(name)
    given = inputs(model, length)
    found = answer(model, **given)
    assert found.shape == given["x"].shape
    assert torch.isfinite(found).all()
    assert found.std() > 0


@pytest.mark.parametrize("name", VARIANTS)
def test_a_clip_does_not_depend_on_its_batch(name: str) -> None:
    model = network(name)
    given = inputs(model, 48)
    whole = answer(model, **given)
    for row in range(3):
        alone = answer(model, **{key: value[row : row + 1] for key, value in given.items()})
        torch.testing.assert_close(whole[row : row + 1], alone, atol=1e-5, rtol=1e-5)


def test_a_length_that_the_levels_divide_is_not_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    seen: list[int] = []
    model.net.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[-1]))
    for length in (48, 49, 12, 8, 1):
        answer(model, **inputs(model, length))
    assert seen == [48, 52, 12, 12, 12]
    assert (model.config.factor, model.config.min_frames) == (4, 12)


def test_padding_is_the_mirror_image() -> None:
    model = network()
    x = draw(1, 2, 10)
    mirrored = torch.cat([x, x[..., 7:9].flip(-1)], dim=-1)
    t = torch.tensor([0.4])
    torch.testing.assert_close(answer(model, x=x, t=t), answer(model, x=mirrored, t=t)[..., :10])


def test_time_and_every_frame_matter() -> None:
    model = network()
    given = inputs(model, 48)
    base = answer(model, **given)
    assert not torch.allclose(base, answer(model, **{**given, "t": given["t"] + 0.05}), atol=1e-4)
    far = given["x"].clone()
    far[..., -1] += 1
    # attention and the norms reach over the whole clip
    assert (answer(model, x=far, t=given["t"])[..., 0] - base[..., 0]).abs().max() > 1e-7


def test_attention_has_no_positions() -> None:
    model = network(n_attn_layers=1)
    attention = model.net[3].main[2]
    x = draw(2, 8, 11)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(attention(x)[..., order], attention(x[..., order]))


def test_attention_is_softmax_over_frames_head_by_head() -> None:
    attention = network(channels=[64, 64, 64]).net[3].main[2]
    assert attention.n_head == 2
    x = draw(1, 64, 5)
    with torch.no_grad():
        q, k, v = attention.qkv_proj(attention.norm(x))[0].chunk(3)
        heads = []
        for rows in (slice(0, 32), slice(32, 64)):
            weights = (q[rows].T @ k[rows] / 32**0.5).softmax(-1)
            heads.append(v[rows] @ weights.T)
        expected = x[0] + attention.out_proj(torch.cat(heads)[None])[0]
        torch.testing.assert_close(attention(x)[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("layers", "levels"), [(0, []), (1, [4, 5]), (2, [3, 4, 5]), (9, [2, 3, 4, 5])])
def test_attention_begins_at_the_level_of_the_public_code(layers: int, levels: list[int]) -> None:
    settings = DAU1dConfig(depth=5, n_attn_layers=layers, channels=[8] * 5, strides=[2] * 4)
    assert [level for level in range(2, 6) if settings.has_attention(level)] == levels


def test_keys_are_the_public_ones() -> None:
    state = {key: tuple(value.shape) for key, value in network().state_dict().items()}
    inner = "net.3.main.7"
    assert state["timestep_embed.weight"] == (8, 1)
    assert state["net.0.main.0.weight"] == (8, 2 + 16, 5)
    assert state["net.0.skip.weight"] == (8, 18, 1)
    assert state["net.3.main.0.kernel"] == state[f"{inner}.main.14.kernel"] == (8,)
    assert state[f"{inner}.main.1.skip.weight"] == (16, 8, 1)
    assert state[f"{inner}.main.2.qkv_proj.weight"] == (48, 16, 1)
    assert state["net.3.main.8.main.0.weight"] == (8, 16, 5)  # what lies inside comes with its skip
    assert state["net.3.main.13.out_proj.bias"] == (8,)
    assert "net.6.main.4.weight" not in state  # the last block ends without norm and activation
    assert f"{inner}.main.7.main.0.kernel" not in state


def test_options_change_the_layout_as_in_the_public_code() -> None:
    snake = network("snake").state_dict()
    assert snake["net.0.main.2.alpha"].shape == (1, 8, 1)
    assert "net.0.main.0.bias" not in snake
    learned = network("learned").state_dict()
    assert learned["net.3.main.0.weight"].shape == (8, 8, 7)
    assert learned["net.3.main.14.weight"].shape == (8, 8, 6)
    assert learned["net.3.main.7.main.14.weight"].shape == (8, 8, 8)
    assert network("augmented").state_dict()["net.0.main.0.weight"].shape[1] == 2 + 3 + 32
    assert network("stride 1").state_dict()["net.3.main.14.weight"].shape == (8, 8, 3)
    wrapped = DAU1dWrapper(config()).state_dict()
    assert list(wrapped) == [f"model.{key}" for key in network().state_dict()]


def test_fresh_weights_are_half_of_torchs_own() -> None:
    weight = network(channels=[64, 64, 64]).net[1].main[0].weight
    assert float(weight.detach().abs().max()) == pytest.approx(0.5 * (64 * 5) ** -0.5, rel=0.01)
    assert (network().net[0].main[1].weight == 0.5).all()


def test_conditioning_goes_in_beside_the_input() -> None:
    model = network("conditioned")
    given = inputs(model, 48)
    stretched = torch.nn.functional.interpolate(given["cond"], 48, mode="linear")
    torch.testing.assert_close(answer(model, **given), answer(model, **{**given, "cond": stretched}))
    assert not torch.allclose(answer(model, **given), answer(model, **{**given, "cond": given["cond"] * 2}))
    with pytest.raises(UsageError, match="found 0 channels, expected cond_dim, 3"):
        model(given["x"], given["t"])
    with pytest.raises(UsageError, match="found 3 channels, expected cond_dim, 0"):
        network()(**given)


def test_noise_on_conditioning_is_drawn_in_training_only_and_is_keyed() -> None:
    model = network("augmented")
    given = inputs(model, 48)
    quiet = answer(model, **given)
    assert torch.equal(quiet, answer(model, **given, cond_aug_scale=0.0))
    model.train()

    def noisy(seed: int) -> Tensor:
        return answer(model, **given, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(noisy(1), noisy(1))
    assert not torch.allclose(noisy(1), noisy(2))
    loud = answer(model, **given, cond_aug_scale=1.0, generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(loud, quiet)


def test_the_wrapper_takes_what_samplers_and_trainers_hand_to_a_network() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DAU1dWrapper(config("conditioned"), "rectified_flow").eval()
    given = inputs(model.model, 48)
    beside = {"input_concat_cond": given["cond"], "cross_attn_cond": None, "cfg_scale": 7.0}
    with torch.no_grad():
        plain = model(given["x"], given["t"], **beside)
        output, info = model(given["x"], given["t"], **beside, return_info=True)
    assert torch.equal(plain, output)
    assert info == {}
    assert torch.equal(plain, answer(model.model, **given))


def test_half_precision_and_gradients() -> None:
    model = network("snake").train()
    given = inputs(model, 24)
    model(**given).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.net.parameters())
    assert answer(model.bfloat16(), **given).dtype == torch.bfloat16


def test_it_can_be_copied_pickled_and_built_on_meta() -> None:
    model = network("snake")
    given = inputs(model, 24)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(answer(twin, **given), answer(model, **given))
    with torch.device("meta"):
        empty = DiffusionAttnUnet1D(config("snake"))
    assert {key: value.shape for key, value in empty.state_dict().items()} == {
        key: value.shape for key, value in model.state_dict().items()
    }


@pytest.mark.parametrize("kernel", KERNELS)
def test_filters_keep_a_constant_and_halve_or_double_the_length(kernel: str) -> None:
    ones = torch.ones(2, 3, 16)
    # the published lanczos taps sum to 1 within 1e-7
    torch.testing.assert_close(Downsample1d(kernel)(ones), torch.ones(2, 3, 8))
    up = Upsample1d(kernel)(ones)
    assert up.shape == (2, 3, 32)
    assert (up - 1).abs().max() < 0.03  # the two phases of the filter are not exactly alike
    torch.testing.assert_close(up[..., ::2] + up[..., 1::2], 2 * ones)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_filter_is_a_mirrored_convolution(kernel: str) -> None:
    layer = Downsample1d(kernel)
    taps = layer.kernel
    assert torch.equal(taps, taps.flip(0))
    x = draw(1, 1, 20)
    reach = len(taps) // 2 - 1
    padded = [x[0, 0, min(abs(i), 38 - abs(i))] for i in range(-reach, 20 + reach)]
    expected = [
        sum(tap * padded[2 * i + j] for j, tap in enumerate(taps))
        for i in range((len(padded) - len(taps)) // 2 + 1)
    ]
    torch.testing.assert_close(layer(x)[0, 0], torch.stack(expected))


def test_up_is_the_transpose_of_down_away_from_the_ends() -> None:
    down, up = Downsample1d("cubic"), Upsample1d("cubic")
    x, y = torch.zeros(1, 1, 64), torch.zeros(1, 1, 32)
    x[..., 16:48], y[..., 8:24] = draw(1, 1, 32, seed=3), draw(1, 1, 16, seed=4)
    torch.testing.assert_close((down(x) * y).sum() * 2, (x * up(y)).sum())


@pytest.mark.parametrize("layer", [Downsample1d("cubic"), Upsample1d("cubic"), Downsample1d("lanczos3")])
def test_gradients_of_the_filters(layer: torch.nn.Module) -> None:
    x = draw(2, 2, 8, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(layer.double(), (x,))


def test_gradients_of_snake_and_of_the_whole_network() -> None:
    snake = Snake1d(2).double()
    x = draw(1, 2, 6, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, a: torch.func.functional_call(snake, {"alpha": a}, (x,)),
        (
            x,
            (draw(1, 2, 1, dtype=torch.float64).abs() + 0.3).requires_grad_(),
        ),
    )
    model = network(channels=[4, 4, 4]).double()
    noisy = draw(1, 2, 12, dtype=torch.float64).requires_grad_()
    t = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (noisy, t), fast_mode=True)


@pytest.mark.parametrize("factor", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("frames", [1, 4, 7])
def test_learned_resampling_fits_at_every_factor(factor: int, frames: int) -> None:
    x = draw(2, 3, frames * factor)
    short = learned_downsample(3, factor)(x)
    assert short.shape == (2, 3, frames)
    assert learned_upsample(3, factor)(short).shape == x.shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 1}, "greater than or equal to 2"),
        ({"depth": 4}, "depth 4 takes 4 channels and 3 strides, found 3 and 2"),
        ({"strides": [2, 4]}, "strides above 2 take learned_resample"),
        ({"strides": [2, 0]}, "greater than or equal to 1"),
        ({"kernel_size": 4}, "kernel_size must be odd"),
        ({"channels": [32, 100, 32]}, "100 channels do not divide into 3 attention heads"),
    ],
)
def test_a_config_that_cannot_work_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DAU1dConfig(**{**SMALL, **change})


def test_lists_may_be_longer_than_the_depth() -> None:
    long = config(channels=[8, 8, 16, 100], strides=[2, 2, 9])
    assert long.factor == 4
