"""Weight-normalised convolutions."""

from __future__ import annotations

import pickle
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from stable_audio_tools.nn.activations import Snake1d, SnakeBeta
from stable_audio_tools.nn.convs import (
    Conv1d,
    ConvTranspose1d,
    WNConv1d,
    WNConvTranspose1d,
    fuse_weight_norm_,
    respell_weight_norm,
)

PAIRS = [
    (WNConv1d(3, 5, 4, stride=2, padding=1), nn.Conv1d(3, 5, 4, stride=2, padding=1)),
    (WNConv1d(3, 5, 7, padding=9, dilation=3), nn.Conv1d(3, 5, 7, padding=9, dilation=3)),
    (WNConv1d(3, 5, 4, padding="same", bias=False), nn.Conv1d(3, 5, 4, padding="same", bias=False)),
    (WNConvTranspose1d(3, 5, 6, stride=3, padding=2), nn.ConvTranspose1d(3, 5, 6, stride=3, padding=2)),
    (
        WNConvTranspose1d(3, 5, 6, stride=3, padding=2, output_padding=1),
        nn.ConvTranspose1d(3, 5, 6, stride=3, padding=2, output_padding=1),
    ),
]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(0))


def scrambled(layer: nn.Module) -> nn.Module:
    """A copy whose norms differ from its directions', as after training."""
    layer = deepcopy(layer)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("ours", "plain"), PAIRS)
def test_agrees_with_the_weight_norm_of_torch(ours: nn.Module, plain: nn.Module, x: Tensor) -> None:
    ours = scrambled(ours)
    theirs = nn.utils.parametrizations.weight_norm(deepcopy(plain), dim=0)
    theirs.parametrizations.weight.original0.data.copy_(ours.weight_g)  # type: ignore[union-attr, index]
    theirs.parametrizations.weight.original1.data.copy_(ours.weight_v)  # type: ignore[union-attr, index]
    if ours.bias is not None:
        theirs.bias.data.copy_(ours.bias)  # type: ignore[union-attr]
    torch.testing.assert_close(ours(x), theirs(x))

    fresh = scrambled(ours)
    fresh.load_state_dict(theirs.state_dict())  # the parametrised spelling
    torch.testing.assert_close(fresh(x), ours(x))


@pytest.mark.parametrize("layer", [pair[0] for pair in PAIRS])
def test_starts_with_norms_that_change_nothing(layer: WNConv1d, x: Tensor) -> None:
    torch.testing.assert_close(layer.weight_like(x), layer.weight_v)


@pytest.mark.parametrize("layer", [pair[0] for pair in PAIRS])
def test_copies_and_pickles(layer: nn.Module, x: Tensor) -> None:
    layer = scrambled(layer)
    copy = deepcopy(layer)
    torch.testing.assert_close(copy(x), layer(x), rtol=0, atol=0)
    torch.testing.assert_close(pickle.loads(pickle.dumps(layer))(x), layer(x), rtol=0, atol=0)
    with torch.no_grad():
        copy.weight_g.mul_(2)
    assert not torch.allclose(copy(x), layer(x))


@pytest.mark.parametrize("layer", [pair[0] for pair in PAIRS])
def test_fusing_changes_keys_and_nothing_else(layer: nn.Module, x: Tensor) -> None:
    layer = scrambled(layer)
    fused = deepcopy(layer)
    assert fuse_weight_norm_(fused) == 1
    assert fuse_weight_norm_(fused) == 0
    torch.testing.assert_close(fused(x), layer(x))
    assert "weight" in fused.state_dict()
    assert "weight_g" not in fused.state_dict()


@pytest.mark.parametrize("layer", [pair[0] for pair in PAIRS])
def test_reads_either_spelling_into_either_form(layer: nn.Module, x: Tensor) -> None:
    trained = scrambled(layer)
    fused = deepcopy(trained)
    fuse_weight_norm_(fused)

    normalised = scrambled(trained)
    normalised.load_state_dict(fused.state_dict())
    torch.testing.assert_close(normalised(x), trained(x))

    plain = deepcopy(layer)
    fuse_weight_norm_(plain)
    plain.load_state_dict(trained.state_dict())
    torch.testing.assert_close(plain(x), trained(x))


def test_loading_leaves_the_given_state_dict_as_it_was() -> None:
    layer = nn.Sequential(WNConv1d(3, 5, 3))
    fused = deepcopy(layer)
    fuse_weight_norm_(fused)
    state = fused.state_dict()
    layer.load_state_dict(state)
    respell_weight_norm(state, layer)
    assert set(state) == {"0.weight", "0.bias"}


def test_a_missing_weight_is_still_an_error() -> None:
    layer = WNConv1d(3, 5, 3)
    with pytest.raises(RuntimeError, match="weight_v"):
        layer.load_state_dict({"weight_g": layer.weight_g, "bias": layer.bias})


@pytest.mark.parametrize(
    "module",
    [
        PAIRS[0][0],
        PAIRS[3][0],
        SnakeBeta(3),
        Snake1d(3),
        Conv1d(3, 5, 4, stride=2, padding=1),
        ConvTranspose1d(3, 5, 6, stride=3, padding=2, output_padding=1, bias=False),
    ],
)
def test_computes_in_the_dtype_of_its_input(module: nn.Module, x: Tensor) -> None:
    result = module(x.to(torch.bfloat16))
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), module(x), atol=0.05, rtol=0.05)
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())


def test_plain_convolutions_are_those_of_torch(x: Tensor) -> None:
    for ours, theirs in (
        (Conv1d(3, 5, 4, stride=2, padding=1), nn.Conv1d(3, 5, 4, stride=2, padding=1)),
        (ConvTranspose1d(3, 5, 6, stride=3, padding=2), nn.ConvTranspose1d(3, 5, 6, stride=3, padding=2)),
    ):
        ours.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)


def test_a_plain_float64_weight_is_read_in_float64() -> None:
    plain, layer = nn.Conv1d(3, 5, 3).double(), WNConv1d(3, 5, 3).double()
    layer.load_state_dict(plain.state_dict())
    torch.testing.assert_close(layer.weight_like(plain.weight), plain.weight, atol=1e-15, rtol=0)


def test_snake_follows_its_formula(x: Tensor) -> None:
    snake = SnakeBeta(3)
    torch.testing.assert_close(snake(x), x + torch.sin(x) ** 2)
    with torch.no_grad():
        snake.alpha.copy_(torch.tensor([2.0, 0.5, 1.0]).log())
        snake.beta.copy_(torch.tensor([1.0, 4.0, 0.5]).log())
    for channel, (alpha, beta) in enumerate([(2.0, 1.0), (0.5, 4.0), (1.0, 0.5)]):
        expected = x[:, channel] + torch.sin(alpha * x[:, channel]) ** 2 / beta
        torch.testing.assert_close(snake(x)[:, channel], expected)
