"""Laying tracks over each other finds altered copies at their true place, and nothing else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from dedup_music import RATE, compose, print_of

from stable_audio_tools.dedup.settings import DedupSettings
from stable_audio_tools.dedup.verify import Alignment, Evidence, align, is_one_recording

SETTINGS = DedupSettings()
SECONDS = 20.0


def evidence(audio: np.ndarray) -> Evidence:
    return print_of(audio).evidence()


def music(seed: int = 1, **options: tuple[float, ...]) -> np.ndarray:
    return compose(seed, seconds=SECONDS, **options)


@pytest.fixture(scope="module")
def original() -> Evidence:
    return evidence(music())


def faster(audio: np.ndarray, speed: float) -> np.ndarray:
    """As a tape that runs faster: higher too."""
    import soxr

    return np.asarray(soxr.resample(audio, RATE * speed, RATE), dtype=np.float32)


def test_a_track_lies_on_itself(original: Evidence) -> None:
    found = align(original, original)
    assert (found.speed, found.semitones) == (pytest.approx(1.0), pytest.approx(0.0))
    assert found.offset_seconds == pytest.approx(0.0, abs=1e-6)
    assert (found.agreement, found.correlation, found.coverage) == (1.0, pytest.approx(1.0), 1.0)


@pytest.mark.parametrize("gain", [0.01, 0.5, 3.0])
def test_gain_does_not_matter(original: Evidence, gain: float) -> None:
    found = align(original, evidence(gain * music()))
    assert found.correlation > 0.99
    assert found.agreement > 0.95


@pytest.mark.parametrize("trim_seconds", [0.5, 0.5125, 3.333, 9.0])
def test_a_trimmed_start_is_found_at_its_offset(original: Evidence, trim_seconds: float) -> None:
    found = align(original, evidence(music()[round(trim_seconds * RATE) :]))
    assert found.offset_seconds == pytest.approx(trim_seconds, abs=0.025)
    assert found.overlap_seconds == pytest.approx(SECONDS - trim_seconds, abs=0.4)
    assert is_one_recording(found, SETTINGS)


def test_silence_in_front_is_an_offset(original: Evidence) -> None:
    found = align(original, evidence(np.concatenate([np.zeros(11 * RATE, np.float32), music()])))
    assert found.offset_seconds == pytest.approx(-11.0, abs=0.025)
    assert is_one_recording(found, SETTINGS)


@pytest.mark.parametrize("speed", [0.95, 0.97, 1.03, 1.06])
def test_another_speed_is_measured(original: Evidence, speed: float) -> None:
    found = align(original, evidence(faster(music(), speed)))
    assert found.speed == pytest.approx(speed, abs=0.002)
    assert found.semitones == pytest.approx(12 * np.log2(speed), abs=0.1)
    assert found.retimed
    assert found.transposed
    assert is_one_recording(found, SETTINGS)


def test_swapping_the_tracks_mirrors_what_is_found(original: Evidence) -> None:
    other = evidence(faster(music()[2 * RATE :], 1.03))
    forth, back = align(original, other), align(other, original)
    assert back.speed == pytest.approx(1 / forth.speed, abs=0.002)
    assert back.semitones == pytest.approx(-forth.semitones, abs=0.1)
    assert back.offset_seconds == pytest.approx(-forth.offset_seconds / forth.speed, abs=0.05)
    assert back.correlation == pytest.approx(forth.correlation, abs=0.05)


def test_the_same_notes_in_another_order_are_another_track() -> None:
    notes = (220.0, 261.6, 329.6, 392.0)
    found = align(evidence(music(3, notes=notes)), evidence(music(4, notes=notes)))
    assert not is_one_recording(found, SETTINGS)
    assert found.agreement < 0.4


def test_other_notes_at_the_same_moments_are_another_track(original: Evidence) -> None:
    low = compose(1, seconds=SECONDS, notes=(220.0, 261.6, 329.6, 392.0))
    high = compose(1, seconds=SECONDS, notes=(587.3, 698.5, 987.8, 1174.7))
    assert not is_one_recording(align(evidence(low), evidence(high)), SETTINGS)


def test_the_same_moments_backwards_are_another_track(original: Evidence) -> None:
    assert not is_one_recording(align(original, evidence(music()[::-1])), SETTINGS)


@pytest.mark.parametrize("samples", [0, 100, 4 * RATE])
def test_nothing_to_compare_is_no_evidence(original: Evidence, samples: int) -> None:
    for found in (
        align(original, evidence(np.zeros(samples, np.float32))),
        align(evidence(music()[:9]), original),
    ):
        assert found == Alignment()


def test_less_than_the_overlap_asked_for_is_not_one_recording() -> None:
    first, second = evidence(music()[: 15 * RATE]), evidence(music()[9 * RATE :])  # 6 s in common, of 11
    found = align(first, second)
    assert found.offset_seconds == pytest.approx(9.0, abs=0.05)
    assert found.coverage == pytest.approx(6 / 11, abs=0.05)
    assert is_one_recording(found, SETTINGS)
    assert not is_one_recording(found, dataclasses.replace(SETTINGS, min_overlap=0.7))


@pytest.mark.parametrize("name", ["matches", "coverage", "agreement", "correlation"])
def test_every_kind_of_evidence_is_needed(name: str) -> None:
    enough = Alignment(matches=500, coverage=1.0, agreement=0.9, correlation=0.95)
    assert is_one_recording(enough, SETTINGS)
    assert not is_one_recording(dataclasses.replace(enough, **{name: 0.1}), SETTINGS)


def test_a_change_of_speed_or_pitch_is_allowed_to_blur_what_it_blurs() -> None:
    moved = Alignment(matches=500, coverage=1.0, agreement=0.5, correlation=0.96)
    assert not is_one_recording(moved, SETTINGS)
    assert is_one_recording(dataclasses.replace(moved, speed=1.03), SETTINGS)
    assert not is_one_recording(dataclasses.replace(moved, speed=1.03, correlation=0.9), SETTINGS)
    higher = dataclasses.replace(moved, semitones=-1.0, agreement=0.6, correlation=0.7)
    assert is_one_recording(higher, SETTINGS)
    assert not is_one_recording(dataclasses.replace(higher, agreement=0.5), SETTINGS)
    assert not is_one_recording(dataclasses.replace(higher, semitones=0.0), SETTINGS)
