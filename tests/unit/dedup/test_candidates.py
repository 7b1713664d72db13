"""Block-wise cosine search against the plain product."""

from __future__ import annotations

import numpy as np
import pytest

from stable_audio_tools.dedup.candidates import similar_pairs


def unit_rows(count: int, width: int = 6, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).random((count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("block", [1, 3, 7, 100])
def test_blocks_find_what_the_full_product_finds(block: int) -> None:
    rows = unit_rows(23)
    found = similar_pairs(rows, 0.9, block=block)
    cosine = rows @ rows.T
    expected = [(i, j) for i in range(23) for j in range(i + 1, 23) if cosine[i, j] >= 0.9]
    assert expected
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == expected
    np.testing.assert_allclose(found.cosine, [cosine[i, j] for i, j in expected], atol=1e-6)


def test_equal_rows_are_found_at_threshold_one() -> None:
    row = unit_rows(1, width=999)
    found = similar_pairs(np.concatenate([row, unit_rows(1, width=999, seed=1), row]), 1.0)
    assert (found.first.tolist(), found.second.tolist()) == ([0], [2])


def test_rows_of_zeros_resemble_nothing() -> None:
    assert len(similar_pairs(np.zeros((3, 4), np.float32), 0.01).first) == 0


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_rows_have_no_pairs(count: int) -> None:
    assert len(similar_pairs(unit_rows(count), 0.5).first) == 0


@pytest.mark.parametrize("block", [1, 4, 100])
def test_the_nearest_of_every_row_are_kept_whatever_the_blocks(block: int) -> None:
    rows = unit_rows(30)
    found = similar_pairs(rows, 0.5, max_per_track=3, block=block)
    cosine = rows @ rows.T - 2 * np.eye(30)
    expected = {
        (min(i, int(j)), max(i, int(j)))
        for i in range(30)
        for j in np.argsort(-cosine[i])[:3]
        if cosine[i, j] >= 0.5
    }
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == sorted(expected)
    np.testing.assert_allclose(found.cosine, [cosine[i, j] for i, j in sorted(expected)], atol=1e-6)


def test_few_partners_lose_no_pair_that_is_best_for_one_side() -> None:
    crowd = np.repeat(unit_rows(1), 5, axis=0) + 0.01 * unit_rows(5, seed=1)
    outsider = unit_rows(1) + 0.2 * unit_rows(1, seed=2)
    rows = np.concatenate([crowd, outsider])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = similar_pairs(rows, 0.5, max_per_track=1)
    assert 5 in found.second.tolist()
