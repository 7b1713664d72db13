"""The loudness meter against the figures of its standard and of EBU Tech 3341."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import sosfilt

from stable_audio_tools.audio.loudness import LoudnessMeter, k_weighting

Audio = NDArray[np.float32]


def sine(
    level_dbfs: float, seconds: float, rate: int = 48000, channels: int = 2, hertz: float = 1000.0
) -> Audio:
    time = np.arange(round(seconds * rate)) / rate
    tone = 10 ** (level_dbfs / 20) * np.sin(2 * np.pi * hertz * time)
    return np.tile(tone.astype(np.float32), (channels, 1))


def loudness(audio: Audio, rate: int = 48000, pieces: int = 1) -> float | None:
    meter = LoudnessMeter(rate, len(audio))
    for piece in np.array_split(audio, pieces, axis=1):
        meter.feed(piece)
    return meter.integrated()


def test_the_filters_are_those_of_the_standard_at_48_khz() -> None:
    shelf, high_pass = k_weighting(48000)
    published = [
        1.53512485958697,
        -2.69169618940638,
        1.19839281085285,
        1.0,
        -1.69065929318241,
        0.73248077421585,
    ]
    assert np.allclose(shelf, published, atol=1e-7)
    assert np.allclose(high_pass, [1.0, -2.0, 1.0, 1.0, -1.99004745483398, 0.99007225036621], atol=1e-7)


def test_full_scale_in_one_channel_is_minus_3() -> None:
    audio = sine(0.0, 5, hertz=997.0)
    audio[1] = 0.0
    assert loudness(audio) == pytest.approx(-3.01, abs=0.02)


@pytest.mark.parametrize("rate", [22050, 44100, 48000, 96000, 192000])
def test_minus_23_is_minus_23_at_any_rate(rate: int) -> None:
    assert loudness(sine(-23.0, 5, rate), rate) == pytest.approx(-23.0, abs=0.1)


EBU_3341 = {
    "steady": ([(-23.0, 20)], -23.0),
    "soft": ([(-33.0, 20)], -33.0),
    "relative gate": ([(-36.0, 10), (-23.0, 60), (-36.0, 10)], -23.0),
    "absolute gate": ([(-72.0, 10), (-36.0, 10), (-23.0, 60), (-36.0, 10), (-72.0, 10)], -23.0),
    "levels": ([(-26.0, 20), (-20.0, 20.1), (-26.0, 20)], -23.0),
}


@pytest.mark.parametrize("case", EBU_3341)
def test_the_cases_of_ebu_tech_3341(case: str) -> None:
    parts, expected = EBU_3341[case]
    audio = np.concatenate([sine(level, seconds) for level, seconds in parts], axis=1)
    assert loudness(audio) == pytest.approx(expected, abs=0.1)


def test_surrounds_count_more_and_the_subwoofer_does_not() -> None:
    levels = [-28.0, -28.0, -24.0, 0.0, -30.0, -30.0]  # case 6 of EBU Tech 3341, with a subwoofer added
    audio = np.concatenate([sine(level, 20, channels=1) for level in levels])
    assert loudness(audio) == pytest.approx(-23.0, abs=0.1)


def test_pieces_change_nothing_and_the_recursion_gives_the_same() -> None:
    audio = np.random.default_rng(0).normal(0, 0.1, (2, 200_000)).astype(np.float32)
    whole = loudness(audio, 44100)
    assert whole is not None
    assert loudness(audio, 44100, pieces=17) == pytest.approx(whole, abs=1e-4)
    filtered = sosfilt(k_weighting(44100), audio.astype(np.float64))
    hops = np.square(filtered[:, : 45 * 4410].reshape(2, 45, 4410)).mean(2).sum(0)
    blocks = np.convolve(hops, np.full(4, 0.25), mode="valid")
    assert whole == pytest.approx(-0.691 + 10 * np.log10(blocks.mean()), abs=1e-3)


def test_silence_and_less_than_a_block_have_no_loudness() -> None:
    assert loudness(np.zeros((2, 48000), np.float32)) is None
    assert loudness(sine(-10.0, 0.39)) is None
    assert loudness(sine(-10.0, 0.41)) is not None
    assert LoudnessMeter(48000, 2).integrated() is None
