"""Bottlenecks with codes: round trips, gradients, and an independent quantiser beside ours."""

from __future__ import annotations

import itertools
from copy import deepcopy
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from stable_audio_tools.errors import UsageError
from stable_audio_tools.models.autoencoders.autoencoder import AudioAutoencoder
from stable_audio_tools.models.bottlenecks.base import DiscreteBottleneck
from stable_audio_tools.models.bottlenecks.dac import DACRVQBottleneck
from stable_audio_tools.models.bottlenecks.registry import create_bottleneck
from stable_audio_tools.schema.autoencoder import AutoencoderConfig
from stable_audio_tools.schema.bottlenecks import BottleneckConfig, DACResidualVQConfig

DIM, LENGTH = 6, 11
_ADAPTER: TypeAdapter[Any] = TypeAdapter(BottleneckConfig)
_RVQ = {"dim": DIM, "num_quantizers": 3, "codebook_size": 16}
_DAC = {"input_dim": DIM, "n_codebooks": 3, "codebook_size": 16, "codebook_dim": 4}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "rvq": ("rvq", _RVQ),
    "rvq, projected": ("rvq", {**_RVQ, "codebook_dim": 3}),
    "rvq, shared codebook": ("rvq", {**_RVQ, "shared_codebook": True}),
    "rvq, cosine": ("rvq", {**_RVQ, "use_cosine_sim": True}),
    "rvq, rotation": ("rvq", {**_RVQ, "rotation_trick": True}),
    "rvq, gradient": ("rvq", {**_RVQ, "learnable_codebook": True, "ema_update": False}),
    "rvq, orthogonal": ("rvq", {**_RVQ, "orthogonal_reg_weight": 0.1, "kmeans_init": False}),
    "dac_rvq": ("dac_rvq", _DAC),
    "dac_rvq, widths": ("dac_rvq", {**_DAC, "codebook_dim": [2, 3, 4], "quantizer_dropout": 0.5}),
    "fsq": ("fsq", {"levels": [8, 5, 5], "num_codebooks": 2}),
    "fsq, one codebook": ("fsq", {"levels": [8, 5, 5], "dim": DIM}),
    "fsq, kept": ("fsq", {"levels": [8, 5, 5], "dim": DIM, "keep_num_codebooks_dim": True}),
    "fsq, symmetric": (
        "fsq",
        {"levels": [3, 2, 5], "num_codebooks": 2, "preserve_symmetry": True, "noise_dropout": 0.5},
    ),
    "dithered_fsq": ("dithered_fsq", {"dim": 3, "levels": 17, "num_codebooks": 2}),
    "dithered_fsq, list": ("dithered_fsq", {"dim": 2, "levels": [5, 4], "num_codebooks": 3}),
}


def build(kind: str, config: dict[str, Any]) -> DiscreteBottleneck:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        bottleneck = create_bottleneck(_ADAPTER.validate_python({"type": kind, "config": config}))
        if kind == "rvq":  # codebooks are empty before the first batch
            bottleneck.train().encode(torch.randn(8, DIM, 40))
    assert isinstance(bottleneck, DiscreteBottleneck)
    return bottleneck.eval()


def encoded(batch: int = 3, length: int = LENGTH, seed: int = 1) -> Tensor:
    return torch.randn(batch, DIM, length, generator=torch.Generator().manual_seed(seed))


def key(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("case", CASES)
def test_codes_tell_the_latents(case: str) -> None:
    bottleneck = build(*CASES[case])
    latents, info = bottleneck.encode(encoded())
    codes = bottleneck.codes(info)
    assert codes.dtype == torch.int64
    assert codes.shape == (3, bottleneck.num_quantizers, LENGTH)
    assert codes.min() >= 0
    assert codes.max() < bottleneck.codebook_size
    assert len(codes.unique()) > 2
    torch.testing.assert_close(bottleneck.decode_codes(codes), latents)
    torch.testing.assert_close(bottleneck.decode_tokens(codes), bottleneck.decode(latents))


@pytest.mark.parametrize("case", CASES)
def test_codes_are_the_same_each_time_outside_training(case: str) -> None:
    bottleneck = build(*CASES[case])
    before = deepcopy(bottleneck.state_dict())
    (first, info), (second, again) = (bottleneck.encode(encoded()) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(info["codes"], again["codes"])
    assert all(torch.equal(value, before[name]) for name, value in bottleneck.state_dict().items())


@pytest.mark.parametrize("case", CASES)
def test_codes_of_another_shape_are_refused(case: str) -> None:
    bottleneck = build(*CASES[case])
    for shape in [(2, bottleneck.num_quantizers + 1, 4), (bottleneck.num_quantizers, 4)]:
        with pytest.raises(UsageError, match=rf"\(batch, {bottleneck.num_quantizers}, length\)"):
            bottleneck.decode_codes(torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("case", ["fsq, symmetric", "dithered_fsq", "dithered_fsq, list"])
def test_every_code_is_a_point_that_maps_to_itself(case: str) -> None:
    bottleneck = build(*CASES[case])
    codes = torch.randint(bottleneck.codebook_size, (2, bottleneck.num_quantizers, 500), generator=key())
    values = bottleneck.decode_codes(codes)
    assert values.min() == -1
    assert values.max() == 1
    assert torch.equal(bottleneck.encode(torch.atanh(0.999 * values))[1]["codes"], codes)


def test_straight_through_gradients_ignore_the_rounding() -> None:
    weights = encoded(seed=5)
    x = encoded().requires_grad_()
    (build("rvq", _RVQ).train().encode(x)[0] * weights).sum().backward()
    torch.testing.assert_close(x.grad, 3 * weights)  # each of three codebooks passes it on whole

    x = encoded().double().requires_grad_()
    (
        build("dithered_fsq", {"dim": 3, "levels": 5, "num_codebooks": 2}).encode(x)[0] * weights
    ).sum().backward()
    torch.testing.assert_close(x.grad, weights * (1 - torch.tanh(x.detach()).square()))

    x = encoded().requires_grad_()
    bottleneck: Any = build("dac_rvq", {**_DAC, "n_codebooks": 1})
    (bottleneck.encode(x)[0] * weights).sum().backward()
    book = bottleneck.quantizer.quantizers[0]
    linear = torch.autograd.functional.vjp(lambda y: book.out_proj(book.in_proj(y)), x.detach(), weights)[1]
    torch.testing.assert_close(x.grad, linear)


def test_dac_quantiser_is_that_of_transformers() -> None:
    from transformers import DacConfig, DacModel

    hub = DacConfig(
        encoder_hidden_size=3, downsampling_ratios=[2], decoder_hidden_size=4, n_codebooks=3,
        codebook_size=16, codebook_dim=4,
    )  # fmt: skip
    assert hub.hidden_size == DIM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        theirs = DacModel(hub).quantizer.eval()
        for parameter in theirs.parameters():
            torch.nn.init.normal_(parameter)
    ours = DACRVQBottleneck(DACResidualVQConfig(**_DAC)).eval()
    ours.quantizer.load_state_dict(theirs.state_dict())  # plain weights are split into g and v
    x = encoded(4, 30)
    z, codes, latents, commitment, codebook = theirs(x)
    found, info = ours.encode(x)
    assert torch.equal(info["codes"], codes)
    torch.testing.assert_close(found, z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(info["latents"], latents, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(info["vq/commitment_loss"], commitment.mean() / 3, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(info["vq/codebook_loss"], codebook.mean() / 3, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.decode_codes(codes), theirs.from_codes(codes)[0], rtol=1e-4, atol=1e-4)


def test_dac_losses_pull_the_input_and_the_codebook_apart() -> None:
    bottleneck: Any = build("dac_rvq", {**_DAC, "n_codebooks": 1}).train()
    book = bottleneck.quantizer.quantizers[0]
    x = encoded().requires_grad_()
    _, info = bottleneck.encode(x)
    projection, table = book.in_proj.weight_v, book.codebook.weight
    by_commitment = torch.autograd.grad(
        info["vq/commitment_loss"], [x, projection, table], retain_graph=True, allow_unused=True
    )
    by_codebook = torch.autograd.grad(info["vq/codebook_loss"], [x, projection, table], allow_unused=True)
    assert by_commitment[0].abs().sum() > 0
    assert by_commitment[1].abs().sum() > 0
    assert by_commitment[2] is None
    assert by_codebook[0] is None
    assert by_codebook[1] is None
    assert by_codebook[2].abs().sum() > 0


def test_dac_dropout_leaves_out_the_last_codebooks_of_some_items() -> None:
    bottleneck: Any = build("dac_rvq", {**_DAC, "n_codebooks": 4, "quantizer_dropout": 0.5})
    x = encoded(64)
    whole, _ = bottleneck.encode(x, key())
    found, info = bottleneck.train().encode(x, key())
    assert torch.equal(found, bottleneck.encode(x, key())[0])
    choices = [bottleneck.decode_codes(info["codes"][:, :count]) for count in range(1, 5)]
    distances = torch.stack([(found - choice).abs().amax(dim=(1, 2)) for choice in choices])
    counts = 1 + distances.argmin(dim=0)
    assert distances.min(dim=0).values.max() < 1e-5
    assert set(counts[:32].tolist()) == {1, 2, 3, 4}
    torch.testing.assert_close(found[32:], whole[32:])


def test_dac_quantises_where_the_config_says() -> None:
    early, late = (build("dac_rvq", {**_DAC, "quantize_on_decode": flag}) for flag in (False, True))
    x = encoded()
    latents, info = early.encode(x)
    raw, reported = late.encode(x)
    assert torch.equal(raw, x)
    assert torch.equal(reported["codes"], info["codes"])
    assert torch.equal(reported["pre_quantizer"], x)
    assert reported.keys() == info.keys()
    torch.testing.assert_close(late.decode(raw), early.decode(latents))
    torch.testing.assert_close(late.decode_tokens(info["codes"]), latents)  # and not quantised once more


def test_dac_decodes_the_codes_of_its_first_codebooks() -> None:
    bottleneck = build("dac_rvq", _DAC)
    x = encoded()
    codes = bottleneck.encode(x)[1]["codes"]
    errors = [float((bottleneck.decode_codes(codes[:, :count]) - x).detach().norm()) for count in (1, 2, 3)]
    assert len({round(error, 4) for error in errors}) == 3
    one = build("dac_rvq", {**_DAC, "n_codebooks": 1})
    one.load_state_dict({k: v for k, v in bottleneck.state_dict().items() if "quantizers.0" in k})
    torch.testing.assert_close(one.encode(x)[0], bottleneck.decode_codes(codes[:, :1]))


def test_dac_works_in_full_precision_under_autocast() -> None:
    bottleneck = build("dac_rvq", _DAC)
    expected, info = bottleneck.encode(encoded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, again = bottleneck.encode(encoded())
    assert torch.equal(found, expected)
    assert torch.equal(info["codes"], again["codes"])


def test_rvq_codebooks_follow_the_latents_in_training_alone() -> None:
    bottleneck: Any = build("rvq", _RVQ).train()
    book = bottleneck.quantizer.layers[0]._codebook
    shifted = encoded(8, 40) + 5
    errors = []
    for _ in range(60):
        latents, _ = bottleneck.encode(shifted)
        errors.append(float((latents - shifted).square().mean()))
    assert errors[-1] < 0.5 * errors[0]
    before = book.embed.clone()
    bottleneck.eval().encode(shifted - 5)
    assert torch.equal(book.embed, before)


def test_rvq_dropout_marks_the_codes_it_left_out() -> None:
    bottleneck = build("rvq", {**_RVQ, "quantize_dropout": True}).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        draws = [bottleneck.encode(encoded()) for _ in range(12)]
    assert any((info["codes"] == -1).any() for _, info in draws)
    assert all((info["codes"][:, 0] >= 0).all() for _, info in draws)
    latents, info = bottleneck.eval().encode(encoded())
    part = info["codes"].clone()
    part[:, 1:] = -1
    assert not torch.allclose(bottleneck.decode_codes(part), latents)


def test_dithered_codes_count_the_first_channel_fastest() -> None:
    bottleneck = build("dithered_fsq", {"dim": 2, "levels": [3, 2], "num_codebooks": 1})
    values = bottleneck.decode_codes(torch.arange(6).view(1, 1, 6))[0].T
    expected = [(first, second) for second, first in itertools.product((-1.0, 1.0), (-1.0, 0.0, 1.0))]
    assert values.tolist() == [list(pair) for pair in expected]


def test_dither_is_one_step_wide_and_has_no_bias() -> None:
    bottleneck = build(
        "dithered_fsq", {"dim": 3, "levels": [5, 3, 9], "num_codebooks": 2, "noise_dropout": 0.0}
    )
    x = encoded(1, 1).expand(1, DIM, 20000)
    latents, info = bottleneck.train().encode(x, key())
    assert torch.equal(latents, bottleneck.encode(x, key())[0])
    noise = latents - torch.tanh(x)
    half = torch.tensor([0.25, 0.5, 0.125] * 2)
    torch.testing.assert_close(noise.abs().amax(dim=(0, 2)), half, rtol=1e-2, atol=0)
    assert (noise.mean(dim=(0, 2)) / half).abs().max() < 0.03
    nearest = bottleneck.eval().encode(latents.clamp(-0.9999, 0.9999).atanh())[1]["codes"]
    assert (nearest == info["codes"]).float().mean() > 0.99


def test_dither_has_a_true_gradient() -> None:
    bottleneck = build(
        "dithered_fsq", {"dim": 3, "levels": 5, "num_codebooks": 2, "noise_dropout": 0.0}
    ).train()
    x = encoded(2, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda y: bottleneck.encode(y, key())[0], x)


def test_some_items_go_without_dither() -> None:
    share = 0.3
    bottleneck = build("dithered_fsq", {"dim": 3, "levels": 5, "num_codebooks": 2, "noise_dropout": share})
    x = encoded(3000, 4)
    rounded, _ = bottleneck.encode(x)
    latents, _ = bottleneck.train().encode(x, key())
    plain = (latents - torch.tanh(x)).abs().amax(dim=(1, 2)) < 1e-6
    coded = (latents - rounded).abs().amax(dim=(1, 2)) < 1e-6
    assert plain.float().mean().item() == pytest.approx(share**2, abs=0.02)
    assert coded.float().mean().item() == pytest.approx(share * (1 - share), abs=0.03)


def test_a_retired_switch_warns_only_where_it_asks_for_something() -> None:
    config = {"dim": 2, "levels": 5}
    build("dithered_fsq", {**config, "dither_inference": False})
    with pytest.warns(UserWarning, match="dither is drawn in training only"):
        build("dithered_fsq", {**config, "dither_inference": True})


@pytest.mark.parametrize("late", [False, True])
def test_an_autoencoder_tells_audio_in_codes(late: bool) -> None:
    oobleck = {"channels": 4, "c_mults": [1, 2], "strides": [2, 4], "latent_dim": DIM}
    model = AudioAutoencoder(
        AutoencoderConfig.model_validate(
            {
                "encoder": {"type": "oobleck", "config": {"in_channels": 1, **oobleck}},
                "decoder": {"type": "oobleck", "config": {"out_channels": 1, **oobleck}},
                "bottleneck": {"type": "dac_rvq", "config": {**_DAC, "quantize_on_decode": late}},
                "latent_dim": DIM,
                "downsampling_ratio": 8,
                "io_channels": 1,
            }
        )
    ).eval()
    audio = torch.randn(2, 1, 83, generator=key())
    codes = model.tokenize(audio)
    assert codes.shape == (2, 3, 11)
    torch.testing.assert_close(model.decode_tokens(codes), model.decode(model.encode(audio)))
