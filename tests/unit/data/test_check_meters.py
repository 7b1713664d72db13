"""What the meters of a check count, whole or in pieces."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from stable_audio_tools.data.check.meters import FULL_SCALE, Clipping, Levels, Silence

Audio = NDArray[np.float32]
RATE = 44100


def tone(hertz: float, peak: float = 0.5, seconds: float = 1.0) -> Audio:
    wave = peak * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)
    return wave[None].astype(np.float32)


def as_16_bits(audio: Audio) -> Audio:
    return (np.clip(np.round(audio * 32768), -32768, 32767) / 32768).astype(np.float32)


def clipping(audio: Audio, cuts: list[int] | None = None) -> Clipping:
    meter = Clipping()
    for piece in np.split(audio, cuts or [], axis=1):
        meter.feed(piece)
    meter.finish()
    return meter


def test_a_wave_that_was_cut_off_has_a_run_at_every_peak() -> None:
    meter = clipping(as_16_bits(tone(100.0, peak=1.5)))
    assert meter.runs == 200
    # it is at full scale where 1.5 sin > 1
    assert meter.samples == pytest.approx(RATE * (1 - 2 * np.arcsin(1 / 1.5) / np.pi), rel=0.02)
    assert meter.first_frame == pytest.approx(RATE / 100 * np.arcsin(1 / 1.5) / (2 * np.pi), abs=1)


@pytest.mark.parametrize("hertz", [15.0, 20.0, 40.0, 100.0, 997.0, 11025.0])
def test_a_normalised_wave_is_not_clipped_however_deep(hertz: float) -> None:
    assert clipping(as_16_bits(tone(hertz, peak=1.0))).runs == 0


def test_what_a_lossy_decoder_makes_beyond_full_scale_is_not_clipped() -> None:
    assert clipping(tone(100.0, peak=1.2)).runs == 0


def test_two_samples_are_no_run_and_three_are() -> None:
    audio = np.zeros((1, 100), np.float32)
    audio[0, 10:12] = 1.0
    assert clipping(audio).runs == 0
    audio[0, 50:53] = -1.0
    meter = clipping(audio)
    assert (meter.runs, meter.samples, meter.first_frame) == (1, 3, 50)


@pytest.mark.parametrize("cuts", [[1], [441], [100, 101, 102, 5000], list(range(50, 44100, 997))])
def test_clipping_is_the_same_in_pieces(cuts: list[int]) -> None:
    audio = np.concatenate([as_16_bits(tone(100.0, 1.5)), as_16_bits(tone(73.0, 1.1))])
    whole, pieces = clipping(audio), clipping(audio, cuts)
    assert (pieces.runs, pieces.samples, pieces.first_frame) == (whole.runs, whole.samples, whole.first_frame)


def test_a_square_wave_and_a_file_that_stands_at_full_scale() -> None:
    square = np.sign(np.sin(np.arange(1, 4411) * 2 * np.pi / 441))[None].astype(np.float32) * np.float32(
        FULL_SCALE
    )
    assert clipping(square, [100, 441, 2000]).runs == clipping(square).runs >= 20
    still = np.ones((2, 300_000), np.float32)
    assert clipping(still).runs == 2
    assert clipping(still, [150_000, 200_000]).runs == 2


def levels(audio: Audio, pieces: int = 3) -> Levels:
    meter = Levels(len(audio))
    for piece in np.array_split(audio, pieces, axis=1):
        meter.feed(piece)
    return meter


def test_levels_of_a_tone_with_an_offset() -> None:
    meter = levels(tone(100.0, 0.5) + np.float32(0.1))
    assert meter.peak == pytest.approx(0.6, abs=1e-4)
    assert meter.offsets == pytest.approx([0.1], abs=1e-5)
    assert meter.rms == pytest.approx([0.5 / np.sqrt(2)], abs=1e-4)
    assert meter.correlation is None
    assert meter.mono_mix_rms == pytest.approx(meter.rms[0])


@pytest.mark.parametrize(
    ("right", "correlation", "mix"), [(1.0, 1.0, 1.0), (-1.0, -1.0, 0.0), (-0.5, -1.0, 0.25)]
)
def test_correlation_and_mono_mix(right: float, correlation: float, mix: float) -> None:
    left = tone(100.0, 0.5)
    meter = levels(np.concatenate([left, left * np.float32(right) + np.float32(0.05)]))
    assert meter.correlation == pytest.approx(correlation, abs=1e-4)
    assert meter.mono_mix_rms == pytest.approx(mix * 0.5 / np.sqrt(2), abs=1e-3)
    assert meter.front_pair_is_one_channel is False
    assert levels(np.concatenate([left, left])).front_pair_is_one_channel is True


def test_a_silent_channel_has_no_correlation() -> None:
    assert levels(np.concatenate([tone(100.0), np.zeros((1, RATE), np.float32)])).correlation is None


def test_silence_at_the_start_in_the_middle_and_at_the_end() -> None:
    hop = RATE // 10
    sound, gap = tone(1000.0, seconds=1.0), np.zeros((1, RATE), np.float32)
    audio = np.concatenate([gap[:, : 3 * hop], sound, gap, gap, sound, gap[:, : hop + 100]], axis=1)
    meter = Silence(hop)
    for start in range(0, audio.shape[1], 7 * hop):
        meter.feed(audio[:, start : start + 7 * hop])
    total, leading, trailing, longest, where = meter.spans()
    assert (leading, longest, where, trailing) == (3 * hop, 20 * hop, 13 * hop, hop + 100)
    assert total == leading + longest + trailing


def test_an_offset_is_silence_and_one_channel_that_sounds_is_not() -> None:
    hop = RATE // 10
    meter = Silence(hop)
    meter.feed(np.full((1, RATE), 0.3, np.float32))
    assert meter.spans() == (RATE, RATE, RATE, RATE, 0)
    meter = Silence(hop)
    meter.feed(np.concatenate([np.zeros((1, RATE), np.float32), tone(1000.0)]))
    assert meter.spans()[0] == 0
    assert Silence(hop).spans() == (0, 0, 0, 0, 0)
