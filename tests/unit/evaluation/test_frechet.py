"""Properties of the Fréchet distance, and its closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from stable_audio_tools.errors import DataError
from stable_audio_tools.evaluation.frechet import frechet_distance

SIZES = [(5, 32), (200, 8)]  # fewer rows than columns, and more


def sample(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.standard_normal((rows, columns)) @ random.standard_normal((columns, columns)) + seed


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_a_set_is_at_no_distance_from_itself(rows: int, columns: int) -> None:
    x = sample(rows, columns)
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-10 * np.square(x).sum())


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_symmetric_and_blind_to_order(rows: int, columns: int) -> None:
    x, y = sample(rows, columns), sample(rows + 3, columns, seed=1)
    shuffled = np.random.default_rng(2).permutation(x)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-10)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(shuffled, y), rel=1e-10)


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_rotation_and_a_common_shift_change_nothing(rows: int, columns: int) -> None:
    x, y = sample(rows, columns), sample(rows, columns, seed=1)
    rotation = np.linalg.qr(np.random.default_rng(3).standard_normal((columns, columns)))[0]
    expected = frechet_distance(x, y)
    assert frechet_distance(x @ rotation + 5.0, y @ rotation + 5.0) == pytest.approx(expected, rel=1e-9)


def test_a_shift_costs_its_square() -> None:
    x = sample(50, 6)
    shift = np.arange(6.0)
    assert frechet_distance(x, x + shift) == pytest.approx(np.square(shift).sum(), rel=1e-9)


def test_one_dimension_has_a_closed_form() -> None:
    x, y = sample(40, 1), 3 * sample(60, 1, seed=1)
    expected = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_the_formula_with_a_matrix_root() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    x, y = sample(300, 7), sample(200, 7, seed=1)
    s, r = np.cov(x.T), np.cov(y.T)
    root = linalg.sqrtm(s @ r)
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(s + r - 2 * root.real)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-8)


def test_float32_input_is_computed_in_float64() -> None:
    x = (1000.0 + sample(50, 4)).astype(np.float32)
    assert frechet_distance(x, x) < 1e-9


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((1, 4)), np.zeros((5, 4)), "first set .* at least two"),
        (np.zeros((5, 4)), np.zeros(4), "second set"),
        (np.zeros((5, 4)), np.zeros((5, 3)), "width 4 and 3"),
        (np.full((5, 4), np.nan), np.zeros((5, 4)), "not finite"),
    ],
)
def test_what_is_no_set_of_embeddings_is_refused(x: np.ndarray, y: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        frechet_distance(x, y)
