"""Landmarks stay where they are when a track is cut, and their hashes when it is played higher or faster."""

from __future__ import annotations

import numpy as np
import pytest
from dedup_music import RATE, compose, print_of

from stable_audio_tools.dedup.landmarks import (
    HASH_BITS,
    SAMPLED_SHARE,
    Constellations,
    Peaks,
    constellations,
    find_peaks,
    sampled,
)
from stable_audio_tools.dedup.spectra import FRAMES_PER_SECOND, HOP, PITCHES


def random_peaks(seed: int, count: int = 200, seconds: float = 40.0) -> Peaks:
    random = np.random.default_rng(seed)
    frames = np.sort(random.integers(0, round(seconds * FRAMES_PER_SECOND), count)).astype(np.float32)
    return Peaks(frames, random.uniform(0, 54, count).astype(np.float32))


def shared(one: Constellations, other: Constellations) -> float:
    return float(np.isin(one.hashes, other.hashes).mean())


def test_about_five_peaks_a_second_in_order() -> None:
    peaks = print_of(compose(1, seconds=20.0)).peaks
    assert 2.5 < len(peaks) / 20 < 7
    assert (np.diff(peaks.frames) >= 0).all()
    assert 0 <= peaks.semitones.min() <= peaks.semitones.max() <= PITCHES / 2


def test_a_peak_is_found_where_it_is() -> None:
    levels = np.zeros((400, PITCHES), np.float32)
    levels[200, 41], levels[200, 40] = 2.0, 1.5
    found = find_peaks(levels)
    assert found.frames.tolist() == [200.0]
    assert 20.2 < found.semitones[0] < 20.5, "between the quarter tones, nearer to the louder one"


def test_gain_moves_no_peak() -> None:
    levels = np.random.default_rng(0).normal(size=(600, PITCHES)).astype(np.float32)
    one, other = find_peaks(levels), find_peaks(levels + 3.0)
    np.testing.assert_array_equal(one.frames, other.frames)
    np.testing.assert_allclose(one.semitones, other.semitones, atol=1e-3)


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = np.random.default_rng(0).normal(size=(1500, PITCHES)).astype(np.float32)
    whole = find_peaks(levels)
    monkeypatch.setattr("stable_audio_tools.dedup.landmarks._BLOCK_FRAMES", 333)
    blocks = find_peaks(levels)
    np.testing.assert_array_equal(whole.frames, blocks.frames)
    np.testing.assert_allclose(whole.semitones, blocks.semitones, atol=1e-4)


def test_a_cut_leaves_the_peaks_after_it_alone() -> None:
    music = compose(1, seconds=20.0)
    cut = 5 * FRAMES_PER_SECOND
    whole, later = print_of(music).peaks, print_of(music[cut * HOP * RATE // 12_000 :]).peaks
    far = cut + 4 * FRAMES_PER_SECOND  # the background of the first seconds is another one
    expected = {(f - cut, round(s)) for f, s in zip(whole.frames, whole.semitones, strict=True) if f >= far}
    found = {(f, round(s)) for f, s in zip(later.frames, later.semitones, strict=True) if f >= far - cut}
    assert len(expected & found) / len(expected | found) > 0.9


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_peaks_make_no_constellation(count: int) -> None:
    assert len(constellations(random_peaks(0, count)).hashes) == 0


def test_hashes_fit_their_bits_and_ascend() -> None:
    found = constellations(random_peaks(1))
    assert found.hashes.max() < 2**HASH_BITS
    assert (np.diff(found.hashes.astype(np.int64)) >= 0).all()
    assert found.spans.min() >= 0.2 * FRAMES_PER_SECOND


def test_moments_do_not_matter_to_hashes() -> None:
    peaks = random_peaks(2)
    later = Peaks(peaks.frames + 1234, peaks.semitones)
    np.testing.assert_array_equal(constellations(peaks).hashes, constellations(later).hashes)


def test_a_transposed_or_stretched_track_keeps_a_good_part_of_its_hashes() -> None:
    peaks = random_peaks(3)
    original = constellations(peaks)
    unrelated = shared(original, constellations(random_peaks(4)))
    for speed, shift in ((1.0, 1.0), (1.0, -1.0), (1.03, 0.0), (0.97, 0.0), (1.03, 0.51)):
        altered = Peaks(
            np.round(peaks.frames / speed).astype(np.float32), peaks.semitones + np.float32(shift)
        )
        assert shared(original, constellations(altered)) > 0.3
    assert unrelated < 0.02


def test_a_sample_is_the_same_in_every_track_and_smaller_ones_are_part_of_it() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**HASH_BITS, 100_000).astype(np.uint32)
    quarter, eighth = sampled(hashes, SAMPLED_SHARE), sampled(hashes, SAMPLED_SHARE / 2)
    assert quarter.mean() == pytest.approx(0.25, abs=0.01)
    assert eighth.mean() == pytest.approx(0.125, abs=0.01)
    assert (quarter | ~eighth).all()
    assert sampled(hashes, 1.0).all()
