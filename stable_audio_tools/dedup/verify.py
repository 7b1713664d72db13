"""Evidence in time order that two tracks are one recording.

A histogram of codes cannot see order, so two long tracks of one artist can look alike to it. Here the rises
and falls of loudness in a few frequency bands are laid over each other at every shift. Copies match nearly
everywhere at one shift; other recordings do not, because the exact moments of a performance do not repeat.
The idea is that of J. Haitsma and T. Kalker, "A highly robust audio fingerprinting system" (ISMIR 2002):
differences of band energies along time; real values are kept here instead of their signs, so that steady
passages, whose signs are noise, weigh nothing.

Measured on six real tracks (MTG-Jamendo, 45 to 120 s): MP3 at low and high bit rate, gain,
resampling, trims at any sample and excerpts of 10 s agree to 0.98 and more, with noise 20 dB below to 0.88;
different tracks to 0.11 at most; the two halves of one track made of loops to 0.73. A change of tempo is not
found.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

FRAMES_PER_SECOND = 40
_BANDS = 16
_LOWEST_HZ, _HIGHEST_HZ = 100.0, 8000.0  # below lies rumble, above what low bit rates remove
_WINDOW_FRAMES = 8  # a 200 ms window: half a hop of misalignment, 12 ms, changes little in it
_STEP_FRAMES = 4
_FLOOR = 1e-6  # of the loudest band and frame: -60 dB, so that coder noise in pauses is not compared
_STEPS_PER_DECADE = 50  # int8 then holds +-25 dB in steps of 0.2 dB


@dataclass(frozen=True)
class Alignment:
    """How two tracks lie over each other best.

    ``offset_seconds`` is the time in the first track where the second one starts (negative: it starts
    before), ``overlap_seconds`` the time both cover there, ``correlation`` the agreement of their onsets in
    it, at most 1.
    """

    offset_seconds: float
    overlap_seconds: float
    correlation: float


def onset_features(audio: torch.Tensor, sample_rate: int) -> NDArray[np.int8]:
    """Change of log band energy over 100 ms, shape ``(frames, bands)``, at 40 frames a second.

    Independent of gain. ``audio`` is mono, shape ``(T,)``. A minute takes 38 kB.
    """
    hop = round(sample_rate / FRAMES_PER_SECOND)
    window = _WINDOW_FRAMES * hop
    if audio.shape[-1] < window + _STEP_FRAMES * hop:
        return np.zeros((0, _BANDS), dtype=np.int8)
    hann = torch.hann_window(window, dtype=audio.dtype)
    spectrum = torch.stft(audio, window, hop, window=hann, center=False, return_complex=True)
    edges_hz = np.geomspace(_LOWEST_HZ, min(_HIGHEST_HZ, 0.45 * sample_rate), _BANDS + 1)
    edges = np.round(edges_hz * window / sample_rate).astype(int)
    power = spectrum.abs().square()
    energy = torch.stack([power[low : max(high, low + 1)].sum(0) for low, high in pairwise(edges)], dim=1)
    loudness = torch.log10(energy + _FLOOR * energy.max() + 1e-20)
    change = (loudness[_STEP_FRAMES:] - loudness[:-_STEP_FRAMES]) * _STEPS_PER_DECADE
    return change.round().clamp(-127, 127).to(torch.int8).numpy()


def align(first: NDArray[np.int8], second: NDArray[np.int8], *, min_overlap: float = 0.5) -> Alignment:
    """The shift of ``second`` against ``first`` at which their onsets agree most.

    Args:
        first, second: what :func:`onset_features` returned, ``(frames, bands)``.
        min_overlap: only shifts are looked at where this share of the shorter track is covered, in (0, 1].

    Returns:
        The best alignment; correlation 0 where there is nothing to compare (too short, or no onsets at all).
    """
    long, short = len(first), len(second)
    needed = max(1, int(np.ceil(min_overlap * min(long, short))))
    if min(long, short) == 0:
        return Alignment(0.0, 0.0, 0.0)
    a, b = first.astype(np.float64), second.astype(np.float64)
    size = 1 << (long + short - 1).bit_length()
    spectrum = np.fft.rfft(a, size, axis=0) * np.fft.rfft(b, size, axis=0).conj()
    product = np.fft.irfft(spectrum.sum(1), size)
    # shifts[k] is the frame of `first` that frame 0 of `second` lies on
    shifts = np.arange(needed - short, long - needed + 1)
    start, stop = np.maximum(shifts, 0), np.minimum(shifts + short, long)
    energy_a = np.concatenate([[0.0], np.cumsum(np.square(a).sum(1))])
    energy_b = np.concatenate([[0.0], np.cumsum(np.square(b).sum(1))])
    energy = (energy_a[stop] - energy_a[start]) * (energy_b[stop - shifts] - energy_b[start - shifts])
    # One step of one band in one frame is the least that can be called an onset; less is rounding of the FFT.
    correlation = np.where(energy >= 1.0, product[shifts] / np.sqrt(np.maximum(energy, 1.0)), 0.0)
    best = int(np.argmax(correlation))
    return Alignment(
        offset_seconds=float(shifts[best] / FRAMES_PER_SECOND),
        overlap_seconds=float((stop[best] - start[best]) / FRAMES_PER_SECOND),
        correlation=float(correlation[best]),
    )
