"""Cosines of clips and prompts."""

from __future__ import annotations

import numpy as np
import pytest

from stable_audio_tools.errors import DataError
from stable_audio_tools.evaluation.alignment import text_audio_alignment


def test_a_clip_that_equals_its_prompt_scores_one() -> None:
    found = text_audio_alignment(np.eye(3), 2 * np.eye(3))
    assert found.mean == 1.0
    assert found.mismatched_mean == 0.0
    assert found.cosines.tolist() == [1.0, 1.0, 1.0]


def test_against_loops() -> None:
    audio, text = np.random.default_rng(0).standard_normal((2, 6, 4))

    def cosine(i: int, j: int) -> float:
        return float(audio[i] @ text[j] / np.linalg.norm(audio[i]) / np.linalg.norm(text[j]))

    found = text_audio_alignment(audio, text)
    np.testing.assert_allclose(found.cosines, [cosine(i, i) for i in range(6)])
    others = np.mean([cosine(i, j) for i in range(6) for j in range(6) if i != j])
    assert found.mismatched_mean == pytest.approx(others)


def test_one_clip_has_no_other_prompt() -> None:
    assert text_audio_alignment(np.ones((1, 2)), np.ones((1, 2))).mismatched_mean is None


@pytest.mark.parametrize(
    ("audio", "text"),
    [
        (np.ones((2, 3)), np.ones((3, 3))),
        (np.ones((0, 3)), np.ones((0, 3))),
        (np.ones(3), np.ones(3)),
        (np.zeros((2, 3)), np.ones((2, 3))),
        (np.full((2, 3), np.nan), np.ones((2, 3))),
    ],
)
def test_what_cannot_be_compared_is_refused(audio: np.ndarray, text: np.ndarray) -> None:
    with pytest.raises(DataError, match="embeddings"):
        text_audio_alignment(audio, text)
