"""What every bottleneck keeps to, and the maths of the continuous ones."""

from __future__ import annotations

import pickle
from copy import deepcopy
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from stable_audio_tools.errors import UsageError
from stable_audio_tools.models.bottlenecks.base import (
    Bottleneck,
    DiscreteBottleneck,
    draw_noise,
    draw_uniform,
)
from stable_audio_tools.models.bottlenecks.losses import LOSSES, weighted_losses
from stable_audio_tools.models.bottlenecks.registry import BOTTLENECKS, create_bottleneck
from stable_audio_tools.models.bottlenecks.softnorm import softnorm_loss
from stable_audio_tools.models.bottlenecks.vae import VAEBottleneck
from stable_audio_tools.models.bottlenecks.wasserstein import mmd_to_normal
from stable_audio_tools.schema.bottlenecks import BottleneckConfig, VAEConfig
from stable_audio_tools.schema.losses import BottleneckWeights

ENCODED, LENGTH = 6, 9
_ADAPTER: TypeAdapter[Any] = TypeAdapter(BottleneckConfig)

CASES: dict[str, dict[str, Any]] = {
    "vae": {"type": "vae"},
    "tanh": {"type": "tanh", "config": {"scale": 2.0}},
    "l2_norm": {"type": "l2_norm"},
    "wasserstein": {"type": "wasserstein", "config": {"noise_augment_dim": 2, "use_tanh": True}},
    "softnorm": {
        "type": "softnorm",
        "config": {"dim": 6, "auto_scale": True, "noise_augment_dim": 2, "noise_regularize": True},
    },
    "rvq": {"type": "rvq", "config": {"dim": 6, "num_quantizers": 2, "codebook_size": 8, "codebook_dim": 4}},
    "dac_rvq": {
        "type": "dac_rvq",
        "config": {"input_dim": 6, "n_codebooks": 3, "codebook_size": 8, "codebook_dim": [2, 3, 4]},
    },
    "fsq": {
        "type": "fsq",
        "config": {"levels": [5, 4], "num_codebooks": 2, "dim": 6, "noise_augment_dim": 1},
    },
    "dithered_fsq": {"type": "dithered_fsq", "config": {"dim": 3, "levels": [5, 4, 3], "num_codebooks": 2}},
}

_VQ = ("_codebook.initted", "_codebook.cluster_size", "_codebook.embed_avg", "_codebook.embed")
_PROJECTIONS = ("project_in.weight", "project_in.bias", "project_out.weight", "project_out.bias")
_DAC = (
    "in_proj.weight_g", "in_proj.weight_v", "in_proj.bias", "out_proj.weight_g", "out_proj.weight_v",
    "out_proj.bias", "codebook.weight",
)  # fmt: skip
PUBLIC_KEYS = {
    "softnorm": {"scaling_factor", "bias", "noise_scaling_factor", "running_std"},
    "rvq": {f"quantizer.layers.{index}.{key}" for index in range(2) for key in _VQ}
    | {f"quantizer.{key}" for key in _PROJECTIONS},
    "dac_rvq": {f"quantizer.quantizers.{index}.{key}" for index in range(3) for key in _DAC},
    "fsq": {f"quantizer.{key}" for key in _PROJECTIONS},
}


def build(kind: str, **changes: Any) -> Bottleneck:
    """One in evaluation mode whose weights, where it has any, are not those it starts with."""
    value = {**CASES[kind], **changes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        bottleneck = create_bottleneck(_ADAPTER.validate_python(value))
        if kind == "softnorm":
            for name, parameter in bottleneck.named_parameters():
                parameter.data.uniform_(0.5, 1.5) if name != "bias" else parameter.data.normal_()
        if kind == "rvq":  # codebooks are empty before the first batch
            bottleneck.train().encode(torch.randn(4, ENCODED, 40))
    return bottleneck.eval()


def encoded(batch: int = 3, length: int = LENGTH, seed: int = 1) -> Tensor:
    return torch.randn(batch, ENCODED, length, generator=torch.Generator().manual_seed(seed))


def keys(batch: int, seed: int = 7) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + index) for index in range(batch)]


def test_every_config_has_a_bottleneck() -> None:
    kinds = {kind: type(_ADAPTER.validate_python(value)) for kind, value in CASES.items()}
    assert set(kinds.values()) == set(BOTTLENECKS)


@pytest.mark.parametrize("kind", CASES)
def test_keys_are_the_public_ones(kind: str) -> None:
    assert set(build(kind).state_dict()) == PUBLIC_KEYS.get(kind, set())


@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize("kind", CASES)
def test_channels_are_those_the_config_tells(kind: str, length: int) -> None:
    shape = _ADAPTER.validate_python(CASES[kind]).shape
    bottleneck = build(kind)
    latents, info = bottleneck.encode(encoded(2, length))
    assert latents.shape == (2, ENCODED // shape.encoder_factor, length)
    assert shape.latent_channels in (None, latents.shape[1])
    assert bottleneck.decode(latents).shape == (2, latents.shape[1] + shape.noise_channels, length)
    assert torch.isfinite(bottleneck.decode(latents)).all()
    if isinstance(bottleneck, DiscreteBottleneck):
        assert (bottleneck.num_quantizers, bottleneck.codebook_size) == shape[3:]
        assert bottleneck.codes(info).shape == (2, shape.num_quantizers, length)
    else:
        assert shape[3:] == (0, 0)
        assert "codes" not in info


@pytest.mark.parametrize("kind", CASES)
def test_an_item_does_not_depend_on_its_batch(kind: str) -> None:
    bottleneck = build(kind)
    x = encoded()
    latents, _ = bottleneck.encode(x, keys(3))
    decoded = bottleneck.decode(latents, keys(3))
    for index in range(3):
        alone, _ = bottleneck.encode(x[index : index + 1], [keys(3)[index]])
        torch.testing.assert_close(alone[0], latents[index])
        again = bottleneck.decode(latents[index : index + 1], [keys(3)[index]])
        torch.testing.assert_close(again[0], decoded[index])


@pytest.mark.parametrize("kind", CASES)
def test_copies_and_pickles(kind: str) -> None:
    bottleneck = build(kind)
    expected, _ = bottleneck.encode(encoded(), keys(3))
    for copy in (deepcopy(bottleneck), pickle.loads(pickle.dumps(bottleneck))):
        torch.testing.assert_close(copy.encode(encoded(), keys(3))[0], expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", CASES)
def test_a_state_dict_of_meta_tensors_has_the_shapes_of_a_real_one(kind: str) -> None:
    with torch.device("meta"):
        bare = create_bottleneck(_ADAPTER.validate_python(CASES[kind]))
    shapes = {key: value.shape for key, value in build(kind).state_dict().items()}
    assert {key: value.shape for key, value in bare.state_dict().items()} == shapes


@pytest.mark.parametrize("kind", CASES)
def test_half_precision_goes_in_and_comes_out_of_decoding(kind: str) -> None:
    bottleneck = build(kind)
    latents, _ = bottleneck.encode(encoded().half())
    expected, _ = bottleneck.encode(encoded().half().float())
    if kind != "vae":  # its noise is drawn anew
        torch.testing.assert_close(latents.float(), expected.float(), rtol=2e-3, atol=2e-3)
    assert bottleneck.decode(latents.half()).dtype == torch.float16


@pytest.mark.parametrize("kind", CASES)
def test_losses_are_listed_where_training_looks_for_them(kind: str) -> None:
    _, info = build(kind).train().encode(encoded(4, 40))
    scalars = {name for name, value in info.items() if value.ndim == 0}
    expected = {
        "vae": {"kl"}, "wasserstein": {"mmd"}, "softnorm": {"softnorm_loss"}, "rvq": {"quantizer_loss"},
        "dac_rvq": {"vq/codebook_loss", "vq/commitment_loss"},
    }.get(kind, set())  # fmt: skip
    assert scalars == expected
    weighted = weighted_losses(
        info, BottleneckWeights(kl=2, mmd=2, softnorm=2, quantizer=2, codebook=2, commitment=2)
    )
    assert weighted == {name: 2 * info[name] for name in expected}


def test_each_loss_has_its_weight_in_the_config() -> None:
    assert sorted(LOSSES.values()) == sorted(BottleneckWeights.model_fields)


@pytest.mark.parametrize("kind", ["softnorm", "dac_rvq", "rvq", "fsq"])
def test_without_requires_grad_nothing_is_trained(kind: str) -> None:
    bottleneck = build(kind, requires_grad=False).train()
    before = deepcopy(bottleneck.state_dict())
    x = encoded(4, 40).requires_grad_()
    latents, info = bottleneck.encode(x)
    (latents.sum() + sum(weighted_losses(info, BottleneckWeights()).values())).backward()
    assert x.grad is not None
    assert all(parameter.grad is None for parameter in bottleneck.parameters())
    for name, value in bottleneck.state_dict().items():
        if "initted" not in name:
            torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("draw", [draw_noise, draw_uniform])
def test_noise_is_keyed_by_generator(draw: Any) -> None:
    like = torch.zeros(2, 3, 4)
    together = draw(like, torch.Generator().manual_seed(3))
    assert torch.equal(together, draw(like, torch.Generator().manual_seed(3)))
    each = draw(like, keys(2))
    assert torch.equal(each[1], draw(like[1], keys(2)[1]))
    with pytest.raises(UsageError, match="3 generators were given for a batch of 2"):
        draw(like, keys(3))


def test_tanh_bounds_the_latents_by_its_scale() -> None:
    x = 3 * encoded()
    latents, _ = build("tanh").encode(x)
    torch.testing.assert_close(latents, 2 * torch.tanh(x / 2))


def test_l2_norm_is_one_on_the_way_in_and_out() -> None:
    bottleneck = build("l2_norm")
    latents, _ = bottleneck.encode(encoded())
    torch.testing.assert_close(latents.norm(dim=1), torch.ones(3, LENGTH))
    torch.testing.assert_close(bottleneck.decode(3 * latents), latents)


def test_vae_divergence_is_its_definition_and_has_the_right_gradient() -> None:
    bottleneck = VAEBottleneck(VAEConfig())
    x = encoded(1, 2).double()
    mean, raw = x.chunk(2, dim=1)
    stdev = torch.nn.functional.softplus(raw) + 1e-4
    normal = torch.distributions.Normal(mean, stdev)
    expected = (
        2 * torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    )
    torch.testing.assert_close(bottleneck.encode(x)[1]["kl"], expected)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda y: bottleneck.encode(y)[1]["kl"], x)
    assert torch.autograd.gradcheck(lambda y: bottleneck.encode(y, keys(1))[0], x)


def slow_mmd(latents: Tensor, noise: Tensor) -> float:
    """The definition, frame by frame."""

    def kernel(a: Tensor, b: Tensor) -> float:
        values = [torch.exp(-(p - q).square().mean() / len(p)) for p in a for q in b]
        return float(torch.stack(values).mean())

    frames = [frame for item in latents for frame in item.T]
    drawn = [frame for item in noise for frame in item]
    a, b = torch.stack(frames), torch.stack(drawn)
    return kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)


def test_mmd_is_its_definition_and_has_the_right_gradient() -> None:
    x = encoded(2, 3).double()
    noise = draw_noise(x.transpose(1, 2).contiguous(), keys(2))
    assert float(mmd_to_normal(x, keys(2))) == pytest.approx(slow_mmd(x, noise), abs=1e-12)
    assert torch.autograd.gradcheck(lambda latents: mmd_to_normal(latents, keys(2)), x.requires_grad_())


def test_mmd_is_least_for_a_gaussian_and_is_not_computed_outside_training() -> None:
    bottleneck = build("wasserstein").train()
    x = encoded(4, 200)
    losses = [float(bottleneck.encode(y, keys(4))[1]["mmd"]) for y in (x, x + 3, 4 * x, x * 0)]
    assert losses[0] == min(losses)
    assert losses[0] > 0
    assert "mmd" not in bottleneck.eval().encode(x)[1]
    bypassed = build("wasserstein", config={"bypass_mmd": True}).train()
    assert float(bypassed.encode(x)[1]["mmd"]) == 0


def test_mmd_compares_with_latents_before_they_are_bounded() -> None:
    free = build("wasserstein", config={}).train()
    bounded = build("wasserstein", config={"use_tanh": True, "tanh_scale": 0.5}).train()
    x = encoded()
    (_, expected), (latents, found) = free.encode(x, keys(3)), bounded.encode(x, keys(3))
    assert torch.equal(expected["mmd"], found["mmd"])
    torch.testing.assert_close(latents, 0.5 * torch.tanh(x / 0.5))


def test_softnorm_loss_is_its_definition_and_has_the_right_gradient() -> None:
    x = encoded(2, 5).double()
    parts = []
    for dim in (-1, -2):
        var, mean = x.var(dim=dim), x.mean(dim=dim)
        parts.append((mean**2 + var - torch.log(var) - 1).mean())
    torch.testing.assert_close(softnorm_loss(x), parts[0] + 0.4 * parts[1])
    assert torch.autograd.gradcheck(softnorm_loss, x.requires_grad_())


def test_softnorm_scales_each_channel_and_keeps_that_for_the_decoder() -> None:
    bottleneck: Any = build("softnorm", config={"dim": 6, "auto_scale": True})
    x = encoded()
    latents, info = bottleneck.encode(x)
    expected = x * bottleneck.scaling_factor + bottleneck.bias
    torch.testing.assert_close(latents, expected / bottleneck.running_std)
    torch.testing.assert_close(bottleneck.decode(latents), expected)
    assert info == {}


def test_softnorm_follows_the_spread_in_training_unless_frozen() -> None:
    bottleneck: Any = build("softnorm").train()
    before = bottleneck.running_std.detach().clone()
    latents = encoded() * bottleneck.scaling_factor + bottleneck.bias
    bottleneck.encode(encoded())
    torch.testing.assert_close(
        bottleneck.running_std.detach(), 0.999 * before + 0.001 * latents.std().detach()
    )
    assert not bottleneck.running_std.requires_grad
    frozen: Any = build("softnorm", config={"dim": 6, "auto_scale": True, "freeze": True}).train()
    before = frozen.running_std.detach().clone()
    frozen.encode(encoded())
    assert torch.equal(frozen.running_std, before)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_softnorm_follows_the_spread_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    bottleneck: Any = build("softnorm").train()
    before = bottleneck.running_std.detach().clone()
    here, there = (x * bottleneck.scaling_factor + bottleneck.bias for x in (encoded(), 5 * encoded() + 2))

    def all_reduce(moments: Tensor) -> None:
        values = there.detach().double()
        moments += torch.stack([torch.tensor(values.numel()).double(), values.sum(), values.square().sum()])

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    bottleneck.encode(encoded())
    both = torch.cat([here, there]).detach()
    torch.testing.assert_close(bottleneck.running_std.detach(), 0.999 * before + 0.001 * both.std())


@pytest.mark.parametrize("auto_scale", [False, True])
def test_softnorm_disturbs_the_decoder_more_in_training(auto_scale: bool) -> None:
    bottleneck: Any = build("softnorm", config={"dim": 6, "auto_scale": auto_scale, "noise_regularize": True})
    latents = encoded(2, 4000)
    scale = bottleneck.running_std if auto_scale else 1.0
    spread = float(scale) if auto_scale else latents.std(dim=-1).mean().item()
    for training, share in ((True, 5e-2), (False, 1e-3)):
        noise = bottleneck.train(training).decode(latents, keys(2)) - latents * scale
        assert noise.std().item() == pytest.approx(share * spread, rel=0.05)
    single = latents[..., :1]
    assert torch.isfinite(bottleneck.decode(single)).all()


def test_softnorm_learns_how_loud_its_channels_of_noise_are() -> None:
    bottleneck: Any = build("softnorm", config={"dim": 6, "noise_augment_dim": 2})
    latents = encoded(1, 4000)
    decoded = bottleneck.decode(latents, keys(1))
    torch.testing.assert_close(decoded[:, :6], latents)
    expected = bottleneck.noise_scaling_factor[:, :, 0]
    torch.testing.assert_close(decoded[:, 6:].std(dim=-1), expected, rtol=0.05, atol=0)
    decoded[:, 6:].sum().backward()
    assert bottleneck.noise_scaling_factor.grad.abs().min() > 0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"type": "tanh", "config": {"scale": 0}}, "greater than 0"),
        ({"type": "rvq", "config": {"learnable_codebook": True}}, "set ema_update to false"),
        (
            {
                "type": "rvq",
                "config": {"learnable_codebook": True, "ema_update": False, "use_cosine_sim": True},
            },
            "exclude each other",
        ),
        ({"type": "rvq", "config": {"quantize_dropout_cutoff_index": 8}}, "below num_quantizers"),
        (
            {"type": "dac_rvq", "config": {"n_codebooks": 3, "codebook_dim": [8, 8]}},
            "each of the 3 codebooks",
        ),
        ({"type": "fsq", "config": {"levels": [2, 5]}}, "need preserve_symmetry"),
        ({"type": "fsq", "config": {"levels": [5], "noise_dropout": 0.5}}, "needs preserve_symmetry"),
        ({"type": "fsq", "config": {"levels": [1]}}, "at least 2"),
        ({"type": "fsq", "config": {"levels": [64] * 6}}, "fewer levels and more num_codebooks"),
        (
            {"type": "fsq", "config": {"levels": [5], "num_codebooks": 2, "keep_num_codebooks_dim": False}},
            "leave it out",
        ),
        ({"type": "dithered_fsq", "config": {"dim": 2, "levels": [5, 5, 5]}}, "one for each of dim = 2"),
        ({"type": "dithered_fsq", "config": {"dim": 2, "levels": 1}}, "at least 2"),
    ],
)
def test_what_cannot_work_is_refused_when_read(value: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        _ADAPTER.validate_python(value)
