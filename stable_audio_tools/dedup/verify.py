"""Evidence in time order that two tracks are one recording.

A histogram of codes cannot see order, and two tracks of one producer may share loops, tempo and key. So the
tracks are laid over each other, and two things must agree there:

- **landmarks**: the share of the peaks of one track, in what both cover, that the other has at the same
  moment and pitch. Other notes over the same drums fail here.
- **onsets**: the correlation of the rises and falls of loudness in 16 bands. The idea is that of J. Haitsma
  and T. Kalker, "A highly robust audio fingerprinting system" (ISMIR 2002), with real values in place of
  their signs, so that steady passages, whose signs are noise, weigh nothing.

Where they lie, how much faster one runs and how many semitones higher it is comes from the hashes they have
in common (:mod:`stable_audio_tools.dedup.landmarks`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.dedup.landmarks import Constellations, Peaks
from stable_audio_tools.dedup.settings import DedupSettings
from stable_audio_tools.dedup.spectra import FRAMES_PER_SECOND, HOP, SEMITONES_PER_BAND, WINDOW

_STEP_FRAMES = 4  # onsets are changes over 100 ms
ONSET_REACH_FRAMES = _STEP_FRAMES + WINDOW // HOP
"""How far ahead a row of onsets looks: a step and a window."""

_STEPS_PER_DECADE = 50  # int8 then holds +-25 dB in steps of 0.2 dB
_SPEEDS = np.arange(0.92, 1.0801, 0.0025)
_ONE_SPEED = np.ones(1)
_LINE_FRAMES = 4.0  # a hash lies on the line of a copy when it is within 0.1 s of it
_REFINEMENTS = 8
_LEAST_MATCHES = 3
_AS_GOOD = 0.9
_NEAR_FRAMES = 3.0
_NEAR_SEMITONES = (
    0.25  # drums do not move with the key: at an interval of half a semitone they must not agree
)
_SLACK_FRAMES = 3
_EDGE_FRAMES, _EDGE_SHARE = 2.0 * FRAMES_PER_SECOND, 0.2
_UNCHANGED_SPEED, _UNCHANGED_SEMITONES = 0.006, 0.25
_MOST_MATCHES = 200_000


_Line = tuple[float, float, NDArray[np.bool_]]
"""Slope, start in frames, and which matches lie on it."""


@dataclass(frozen=True)
class Alignment:
    """How the second track lies over the first.

    ``offset_seconds`` is the time in the first track where the second one starts (negative: it starts
    before), ``overlap_seconds`` the time both cover there, in the first one's time, and ``coverage`` its
    share of the shorter track. The second track is played ``speed`` times as fast as the first and
    ``semitones`` higher. ``matches`` counts the hashes in common on that line, ``agreement`` (0 to 1) is the
    share of landmarks in common and ``correlation`` (at most 1) that of the onsets.
    """

    offset_seconds: float = 0.0
    overlap_seconds: float = 0.0
    coverage: float = 0.0
    speed: float = 1.0
    semitones: float = 0.0
    matches: int = 0
    agreement: float = 0.0
    correlation: float = 0.0

    @property
    def retimed(self) -> bool:
        """Whether one is played faster."""
        return abs(self.speed - 1) > _UNCHANGED_SPEED

    @property
    def transposed(self) -> bool:
        """Whether one is played higher."""
        return abs(self.semitones) > _UNCHANGED_SEMITONES


@dataclass(frozen=True)
class Evidence:
    """What a track brings to a comparison; ``onsets`` is ``(frames, bands)`` int8."""

    onsets: NDArray[np.int8]
    peaks: Peaks
    constellations: Constellations


def onsets_of(band_levels: NDArray[np.float32]) -> NDArray[np.int8]:
    """Change of the logarithmic level of each band over 100 ms, ``(frames, bands)``; 38 kB a minute."""
    if len(band_levels) <= _STEP_FRAMES:
        return np.zeros((0, band_levels.shape[1]), np.int8)
    change = (band_levels[_STEP_FRAMES:] - band_levels[:-_STEP_FRAMES]) * _STEPS_PER_DECADE
    return np.clip(np.round(change), -127, 127).astype(np.int8)


def align(first: Evidence, second: Evidence) -> Alignment:
    """Lay ``second`` over ``first`` where most of their hashes agree, and weigh the evidence there.

    Where fewer than three hashes agree on one line there is nothing to weigh, and all evidence is 0.
    """
    a, b = _common(first.constellations, second.constellations)
    frames_a, frames_b = first.constellations.frames[a], second.constellations.frames[b]
    higher = second.constellations.semitones[b] - first.constellations.semitones[a]
    best: Alignment | None = None
    for slope, start, on_line in _best_lines(frames_a, frames_b):
        shift = float(np.median(higher[on_line]))
        found = _weigh(first, second, slope, start, shift, int(on_line.sum()))
        if best is None or found.correlation > best.correlation:
            best = found
    return best or Alignment()


def _weigh(
    first: Evidence, second: Evidence, slope: float, start: float, shift: float, matches: int
) -> Alignment:
    """The evidence on one line."""
    length = slope * len(second.onsets)
    covered = max(start, 0.0), min(start + length, float(len(first.onsets)))
    overlap = max(0.0, covered[1] - covered[0])
    agreement = _agreement(first.peaks, second.peaks, slope, start, shift, covered)
    correlation = _correlation(first.onsets, second.onsets, slope, start, shift)
    return Alignment(
        offset_seconds=start / FRAMES_PER_SECOND,
        overlap_seconds=overlap / FRAMES_PER_SECOND,
        coverage=overlap / max(1.0, min(length, len(first.onsets))),
        speed=slope,
        semitones=shift,
        matches=matches,
        agreement=agreement,
        correlation=correlation,
    )


def is_one_recording(found: Alignment, settings: DedupSettings) -> bool:
    """Whether the evidence is enough."""
    correlation, agreement = settings.min_correlation, settings.min_agreement
    if found.transposed:
        correlation, agreement = settings.transposed_correlation, settings.transposed_agreement
    elif found.retimed:
        agreement = settings.retimed_agreement
    return (
        found.matches >= settings.min_matches
        and found.coverage >= settings.min_overlap
        and found.correlation >= correlation
        and found.agreement >= agreement
    )


def _common(first: Constellations, second: Constellations) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions in both of every two equal hashes; those that a track repeats most are left out first."""
    left = np.searchsorted(second.hashes, first.hashes, "left")
    counts = np.searchsorted(second.hashes, first.hashes, "right") - left
    if counts.sum() > _MOST_MATCHES:
        often = np.sort(counts)
        within = np.cumsum(often) <= _MOST_MATCHES
        counts = np.where(counts <= often[within][-1], counts, 0)
    a = np.repeat(np.arange(len(counts)), counts)
    before = np.concatenate([[0], np.cumsum(counts)[:-1]]) if len(counts) else counts
    b = np.repeat(left - before, counts) + np.arange(len(a))
    return a, b


def _best_lines(frames_a: NDArray[np.float32], frames_b: NDArray[np.float32]) -> list[_Line]:
    """The line ``frames_a = slope * frames_b + start`` with most matches; beside it, slope 1 if as good."""
    if len(frames_a) < _LEAST_MATCHES:
        return []
    x, y = frames_b.astype(np.float64), frames_a.astype(np.float64)
    # Music in loops lies on many lines. The grid is coarse, so which of the two is best shows when refined.
    unaltered, altered = max(_most_at(x, y, _ONE_SPEED)), max(_most_at(x, y, _SPEEDS))
    lines = [_refined(x, y, slope, start) for _, slope, start in (unaltered, altered)]
    best = max(lines, key=lambda line: int(line[2].sum()))
    if best[2].sum() < _LEAST_MATCHES:
        return []
    # Over a few seconds a slope is known to a percent only: the onsets then tell the same speed from another.
    same = float(np.median((y - x)[best[2]]))
    on_same = np.abs(y - x - same) <= _LINE_FRAMES
    return [(1.0, same, on_same), best] if on_same.sum() >= _AS_GOOD * best[2].sum() else [best]


def _refined(x: NDArray[np.float64], y: NDArray[np.float64], slope: float, start: float) -> _Line:
    """The line by least squares through the matches on it, again and again as more of them join."""
    on_line = np.abs(y - slope * x - start) <= _LINE_FRAMES
    for _ in range(_REFINEMENTS):
        if on_line.sum() < _LEAST_MATCHES:
            break
        if np.ptp(x[on_line]) > 2 * FRAMES_PER_SECOND:
            slope, start = (float(value) for value in np.polyfit(x[on_line], y[on_line], 1))
        else:
            start = float(np.median(y[on_line] - slope * x[on_line]))
        before, on_line = on_line, np.abs(y - slope * x - start) <= _LINE_FRAMES
        if np.array_equal(before, on_line):
            break
    return slope, start, on_line


def _most_at(
    x: NDArray[np.float64], y: NDArray[np.float64], slopes: NDArray[np.float64]
) -> list[tuple[int, float, float]]:
    """For each slope how many matches share a start, the slope, and that start.

    Few matches are tried at many slopes at once: at one by one, numpy's calls would take most of the time.
    """
    found = []
    together = max(1, _MOST_MATCHES // len(x))
    for first in range(0, len(slopes), together):
        tried = slopes[first : first + together]
        starts = np.round((y - tried[:, None] * x) / _LINE_FRAMES).astype(np.int64)
        lowest = starts.min(axis=1, keepdims=True)
        starts -= lowest
        width = max(2, int(starts.max()) + 1)
        rows = np.arange(len(tried))
        starts += rows[:, None] * width
        counts = np.bincount(starts.ravel(), minlength=len(tried) * width).reshape(len(tried), width)
        pairs = counts[:, :-1] + counts[:, 1:]
        best = pairs.argmax(axis=1)
        begins = (lowest[:, 0] + best + 0.5) * _LINE_FRAMES
        found += list(zip(pairs[rows, best].tolist(), tried.tolist(), begins.tolist(), strict=True))
    return found


def _agreement(
    first: Peaks, second: Peaks, slope: float, start: float, shift: float, covered: tuple[float, float]
) -> float:
    """The share of landmarks in what both cover that are in the other, the smaller of the two ways.

    Which points stand out near the start and the end of a file depends on what was cut off there: up to 2 s
    of either end do not count.
    """
    frames = slope * second.frames + start
    semitones = second.semitones - shift
    margin = min(_EDGE_FRAMES, _EDGE_SHARE * (covered[1] - covered[0]))
    low, high = covered[0] + margin, covered[1] - margin
    ours = (first.frames >= low) & (first.frames <= high)
    theirs = (frames >= low) & (frames <= high)
    if not ours.any() or not theirs.any():
        return 0.0
    near = _near(first.frames[ours], first.semitones[ours], frames, semitones)
    back = _near(frames[theirs], semitones[theirs], first.frames, first.semitones)
    return float(min(near.mean(), back.mean()))


def _near(
    frames: NDArray[np.float32],
    semitones: NDArray[np.float32],
    other_frames: NDArray[np.float32],
    other_semitones: NDArray[np.float32],
) -> NDArray[np.bool_]:
    """Which peaks have a peak of the other track within 75 ms and a quarter of a semitone."""
    left = np.searchsorted(other_frames, frames - _NEAR_FRAMES, "left")
    right = np.searchsorted(other_frames, frames + _NEAR_FRAMES, "right")
    found = np.zeros(len(frames), np.bool_)
    for step in range(int((right - left).max(initial=0))):
        at = left + step
        inside = at < right
        close = np.abs(other_semitones[np.where(inside, at, 0)] - semitones) <= _NEAR_SEMITONES
        found |= inside & close
    return found


def _correlation(
    first: NDArray[np.int8], second: NDArray[np.int8], slope: float, start: float, shift: float
) -> float:
    """The correlation of onsets with ``second`` laid over ``first``, best within 75 ms of where it should."""
    if len(first) == 0 or len(second) < 2:
        return 0.0
    begin, end = max(0, int(np.ceil(start))), min(len(first), int(start + slope * (len(second) - 1)))
    if end <= begin:
        return 0.0
    laid = _in_other_bands(second.astype(np.float32), shift)
    # All of the slack needs one laying over: a frame later is the next row of it.
    frames = np.arange(begin - _SLACK_FRAMES, end + _SLACK_FRAMES)
    at = np.clip((frames - start) / slope, 0, len(second) - 1.001)
    below = at.astype(np.int64)
    share = (at - below).astype(np.float32)[:, None]
    over = laid[below] * (1 - share) + laid[below + 1] * share
    ours = first[begin:end].astype(np.float32)
    our_energy, best = float(np.vdot(ours, ours)), 0.0
    for shifted in range(2 * _SLACK_FRAMES + 1):
        theirs = over[shifted : shifted + len(ours)]
        energy = our_energy * float(np.vdot(theirs, theirs))
        # one step of one band in one frame is the least that can be called an onset
        if energy >= 1.0:
            best = max(best, float(np.vdot(ours, theirs)) / energy**0.5)
    return best


def _in_other_bands(onsets: NDArray[np.float32], shift: float) -> NDArray[np.float32]:
    """Onsets as they would be ``shift`` semitones lower."""
    if abs(shift) <= _UNCHANGED_SEMITONES:
        return onsets
    at = np.clip(np.arange(onsets.shape[1]) + shift / SEMITONES_PER_BAND, 0, onsets.shape[1] - 1.001)
    below = at.astype(np.int64)
    share = (at - below).astype(np.float32)
    return onsets[:, below] * (1 - share) + onsets[:, below + 1] * share
