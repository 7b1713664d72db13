"""Audio as time goes by: how loud each part of the spectrum is, 40 times a second, in bounded memory.

Everything the order-aware fingerprint needs is made from two maps of one short-time Fourier transform: 16
broad bands, in which onsets are compared, and quarter tones, in which landmarks are looked for. Both are of
the mono mix at :data:`ANALYSIS_RATE`, so that a copy at another sample rate or with its treble removed by a
codec gives the same maps.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

ANALYSIS_RATE = 12_000
"""Hz. Holds what is compared, up to 4.8 kHz; low bit rates and low sample rates keep that much."""

FRAMES_PER_SECOND = 40
HOP = ANALYSIS_RATE // FRAMES_PER_SECOND
WINDOW = 8 * HOP
"""200 ms: half a hop of misalignment, 12 ms, changes little in it, and bins are 5 Hz apart."""

BANDS = 16
STEPS_PER_SEMITONE = 2
LOWEST_PITCH_HZ, HIGHEST_PITCH_HZ = 200.0, 4800.0
_LOWEST_BAND_HZ, _HIGHEST_BAND_HZ = 100.0, 4800.0  # below lies rumble
SEMITONES_PER_BAND = 12 * float(np.log2(_HIGHEST_BAND_HZ / _LOWEST_BAND_HZ)) / BANDS
PITCHES = int(12 * STEPS_PER_SEMITONE * np.log2(HIGHEST_PITCH_HZ / LOWEST_PITCH_HZ))
_SILENT = 1e-20


class SpectrumStream:
    """Takes mono audio in pieces of any length and gives back its maps whole.

    How the audio was cut into pieces does not change the result.
    """

    def __init__(self) -> None:
        self._waiting = torch.zeros(0)
        self._bands: list[NDArray[np.float32]] = []
        self._pitches: list[NDArray[np.float32]] = []

    def feed(self, audio: torch.Tensor) -> None:
        """Take the next mono samples ``(T,)`` at :data:`ANALYSIS_RATE`."""
        self._waiting = torch.cat([self._waiting, audio])
        frames = (len(self._waiting) - WINDOW) // HOP + 1
        if frames < 1:
            return
        heard = self._waiting[: (frames - 1) * HOP + WINDOW]
        spectrum = torch.stft(
            heard, WINDOW, HOP, window=torch.hann_window(WINDOW), center=False, return_complex=True
        )
        power = spectrum.abs().square().T
        to_bands, to_pitches = _filters()
        self._bands.append(torch.log10(power @ to_bands + _SILENT).numpy())
        self._pitches.append(torch.log10(power @ to_pitches + _SILENT).numpy())
        self._waiting = self._waiting[frames * HOP :]

    def finish(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The logarithm (base 10) of power in bands ``(frames, BANDS)`` and steps ``(frames, PITCHES)``.

        Levels more than 60 dB under the loudest are lifted to that: coder noise in pauses is not music.
        """
        maps = []
        for parts, width in ((self._bands, BANDS), (self._pitches, PITCHES)):
            levels = np.concatenate(parts) if parts else np.zeros((0, width), np.float32)
            maps.append(np.maximum(levels, levels.max() - 6.0) if len(levels) else levels)
        return maps[0], maps[1]


@lru_cache(maxsize=1)
def _filters() -> tuple[torch.Tensor, torch.Tensor]:
    """Matrices from power in FFT bins to power in bands and in quarter tones."""
    bins = WINDOW // 2 + 1
    frequency = np.arange(bins) * ANALYSIS_RATE / WINDOW
    edges = np.geomspace(_LOWEST_BAND_HZ, _HIGHEST_BAND_HZ, BANDS + 1)
    bands = np.stack([(frequency >= low) & (frequency < high) for low, high in pairwise(edges)], axis=1)
    centres = LOWEST_PITCH_HZ * 2 ** (np.arange(PITCHES) / (12 * STEPS_PER_SEMITONE))
    distance = np.log2(np.maximum(frequency, 1.0)[:, None] / centres) * 12 * STEPS_PER_SEMITONE
    pitches = np.maximum(0.0, 1.0 - np.abs(distance))
    below = np.floor(centres * WINDOW / ANALYSIS_RATE).astype(int)
    share = centres * WINDOW / ANALYSIS_RATE - below
    for column in np.flatnonzero(pitches.sum(0) < 0.5):  # narrower than a bin: between its two neighbours
        pitches[:, column] = 0.0
        pitches[below[column], column] = 1.0 - share[column]
        pitches[below[column] + 1, column] = share[column]
    return torch.from_numpy(bands.astype(np.float32)), torch.from_numpy(pitches.astype(np.float32))
