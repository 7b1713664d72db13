"""Alignment finds altered copies at their true offset and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dedup_music import RATE, compose

from stable_audio_tools.dedup.verify import align, onset_features


def features(audio: np.ndarray) -> np.ndarray:
    return onset_features(torch.from_numpy(np.ascontiguousarray(audio)), RATE)


def test_a_track_aligns_with_itself_at_zero() -> None:
    found = align(features(compose(1)), features(compose(1)))
    assert found.correlation == pytest.approx(1.0)
    assert found.offset_seconds == 0.0


@pytest.mark.parametrize("gain", [0.01, 0.5, 3.0])
def test_gain_does_not_matter(gain: float) -> None:
    music = compose(1)
    assert align(features(music), features(gain * music)).correlation > 0.99


@pytest.mark.parametrize("trim_seconds", [0.5, 0.5125, 3.333])
def test_a_trimmed_start_is_found_at_its_offset(trim_seconds: float) -> None:
    music = compose(1)
    trimmed = music[round(trim_seconds * RATE) :]
    found = align(features(music), features(trimmed))
    assert found.correlation > 0.9
    assert found.offset_seconds == pytest.approx(trim_seconds, abs=0.025)
    assert found.overlap_seconds == pytest.approx(len(trimmed) / RATE, abs=0.4)


def test_swapping_the_tracks_mirrors_the_offset() -> None:
    music = compose(1)
    forth = align(features(music), features(music[RATE:]))
    back = align(features(music[RATE:]), features(music))
    assert back.offset_seconds == -forth.offset_seconds
    assert back.correlation == pytest.approx(forth.correlation)


def test_the_same_notes_in_another_order_are_another_track() -> None:
    notes = (220.0, 261.6, 329.6, 392.0)
    assert align(features(compose(3, notes=notes)), features(compose(4, notes=notes))).correlation < 0.5


def test_the_same_moments_backwards_are_another_track() -> None:
    music = compose(1)
    assert align(features(music), features(music[::-1])).correlation < 0.5


@pytest.mark.parametrize("samples", [0, 100, 4 * RATE])
def test_nothing_to_compare_is_no_evidence(samples: int) -> None:
    assert align(features(np.zeros(samples, np.float32)), features(compose(1))).correlation == 0.0


def test_the_overlap_asked_for_is_kept() -> None:
    music = compose(1)
    first, second = features(music[: 7 * RATE]), features(music[5 * RATE :])  # 2 s in common
    assert align(first, second, min_overlap=0.9).correlation < 0.5
    assert align(first, second, min_overlap=0.25).correlation > 0.9
