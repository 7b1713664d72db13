"""Measurements, timesteps and projections."""

from __future__ import annotations

import pytest
import torch

from stable_audio_tools.attribution.gradients.measurements import MEASUREMENTS
from stable_audio_tools.attribution.gradients.projection import BlockProjection, rademacher, side_projection
from stable_audio_tools.attribution.gradients.schedule import timesteps
from stable_audio_tools.errors import UsageError


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    output, target = (torch.randn(3, 4, 10, generator=generator) for _ in range(2))
    mask = torch.ones(3, 1, 10)
    mask[1, :, 6:] = 0
    mask[2] = 0
    return output, target, mask


def test_measurements_are_what_they_are_called(case):
    output, target, mask = case
    found = {name: measure(output, target, mask) for name, measure in MEASUREMENTS.items()}
    for row, length in ((0, 10), (1, 6)):
        x, y = output[row, :, :length], target[row, :, :length]
        expected = {
            "loss": torch.nn.functional.mse_loss(x, y),
            "mean-squared-l2-norm": x.norm() ** 2 / x.numel(),
            "mean": x.mean(),
            "l1-norm": x.abs().sum(),
            "l2-norm": x.norm(),
            "linf-norm": x.abs().max(),
        }
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name][row], value)


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_padding_and_neighbours_change_nothing(case, name):
    output, target, mask = case
    output = output.requires_grad_()
    values = MEASUREMENTS[name](output, target, mask)
    assert values.shape == (3,)
    values[1].backward()
    gradient = output.grad
    assert torch.isfinite(gradient).all()
    assert (gradient[[0, 2]] == 0).all()
    assert (gradient[1, :, 6:] == 0).all()
    assert (gradient[1, :, :6] != 0).any()


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_silence_and_full_padding_have_finite_gradients(case, name):
    _, target, mask = case
    output = torch.zeros_like(target, requires_grad=True)
    MEASUREMENTS[name](output, target, mask).sum().backward()
    assert torch.isfinite(output.grad).all()


def test_timesteps():
    assert timesteps("uniform", 10) == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert timesteps("cumulative", 3) == [0.0, 0.001, 0.002]
    assert timesteps("uniform", 3, 100) == [0.0, 0.33, 0.66]
    with pytest.raises(UsageError, match="known: uniform, cumulative"):
        timesteps("random", 3)


def test_projections_are_keyed_and_of_unit_expectation():
    first, again, other = (
        rademacher(50, 400, "a", 1),
        rademacher(50, 400, "a", 1),
        rademacher(50, 400, "a", 2),
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.testing.assert_close((first @ first.T).diagonal(), torch.ones(50))
    off_diagonal = first @ first.T - torch.eye(50)
    assert off_diagonal.abs().max() < 5 / 400**0.5


@pytest.mark.parametrize(("rank", "expected"), [(0, 5), (5, 5), (9, 5), (3, 3)])
def test_a_side_that_is_small_enough_is_kept_whole(rank, expected):
    matrix = side_projection(5, rank, "x")
    assert matrix.shape == (5, expected)
    assert torch.equal(matrix, torch.eye(5)) == (expected == 5)


def test_blocks_are_one_matrix():
    projection = BlockProjection(100, 7, "x", block=32)
    rows = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    matrix = projection(torch.eye(100))
    torch.testing.assert_close(projection(rows), rows @ matrix)
    torch.testing.assert_close(matrix.abs(), torch.full((100, 7), 7**-0.5))
