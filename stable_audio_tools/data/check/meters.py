"""Measurements of a recording that arrives in pieces: three hours need no more memory than three minutes.

Every meter takes pieces ``(C, T)`` of float32, finite, in order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

FULL_SCALE = 1.0 - 2.0**-15
"""The largest sample of 16 bits; the smallest is -1."""

_STEP = 2.0**-15
_MIN_RUN = 3
# The neighbours of a rounded peak that touches full scale with three samples lie up to 4 steps of 16 bits
# below it; a wave that was cut off falls away more steeply.
_MIN_EDGE = 6 * _STEP
# How much of a run that a piece ends in is looked at again with the next piece.
_LONGEST_CARRY = 1 << 16


@dataclass
class Levels:
    """Sums over all samples, from which peak, root mean square, offset and correlation follow."""

    channels: int
    frames: int = 0
    peak: float = 0.0
    _sums: NDArray[np.float64] = field(init=False)
    _products: NDArray[np.float64] = field(init=False)
    _pair_product: float = 0.0
    _same: bool = True

    def __post_init__(self) -> None:
        self._sums = np.zeros(self.channels)
        self._products = np.zeros(self.channels)

    def feed(self, audio: NDArray[np.float32]) -> None:
        """Take the next samples."""
        self.frames += audio.shape[1]
        self.peak = max(self.peak, float(audio.max(initial=0.0)), -float(audio.min(initial=0.0)))
        self._sums += audio.sum(1, dtype=np.float64)
        self._products += np.einsum("ct,ct->c", audio, audio, dtype=np.float64)
        if self.channels >= 2:
            self._pair_product += float(np.einsum("t,t->", audio[0], audio[1], dtype=np.float64))
            self._same = self._same and bool(np.array_equal(audio[0], audio[1]))

    @property
    def offsets(self) -> NDArray[np.float64]:
        """The mean of each channel."""
        return self._sums / max(self.frames, 1)

    @property
    def rms(self) -> NDArray[np.float64]:
        """Root mean square of each channel without its offset."""
        return np.sqrt(np.maximum(self._products / max(self.frames, 1) - self.offsets**2, 0.0))

    @property
    def correlation(self) -> float | None:
        """Of the front pair: 1 is mono, -1 cancels in the mono mix; None without a pair that sounds."""
        if self.channels < 2 or self.frames == 0:
            return None
        spread = float(self.rms[0] * self.rms[1])
        if spread < 1e-10:
            return None
        covariance = self._pair_product / self.frames - float(self.offsets[0] * self.offsets[1])
        return float(np.clip(covariance / spread, -1.0, 1.0))

    @property
    def mono_mix_rms(self) -> float:
        """Root mean square of the mean of the front pair, without its offset; of the one channel of mono."""
        if self.channels < 2:
            return float(self.rms[0])
        left, right = (float(value) ** 2 for value in self.rms[:2])
        covariance = self._pair_product / max(self.frames, 1) - float(self.offsets[0] * self.offsets[1])
        return float(np.sqrt(max(left + right + 2 * covariance, 0.0)) / 2)

    @property
    def front_pair_is_one_channel(self) -> bool:
        """Whether left and right are the same, sample by sample."""
        return self.channels >= 2 and self._same


class Silence:
    """Where nothing is heard: spans of 100 ms whose level, without their offset, is below a threshold.

    Pieces must be whole numbers of ``hop`` samples, all but the last one.
    """

    def __init__(self, hop: int, threshold_db: float = -60.0) -> None:
        self._hop = hop
        self._threshold = 10 ** (threshold_db / 10)
        self._silent: list[NDArray[np.bool_]] = []
        self._last = hop

    def feed(self, audio: NDArray[np.float32]) -> None:
        """Take the next samples."""
        whole = audio.shape[1] // self._hop * self._hop
        if whole:
            hops = audio[:, :whole].reshape(len(audio), -1, self._hop)
            self._silent.append(self._is_silent(hops))
        if whole < audio.shape[1]:
            self._last = audio.shape[1] - whole
            self._silent.append(self._is_silent(audio[:, None, whole:]))

    def _is_silent(self, hops: NDArray[np.float32]) -> NDArray[np.bool_]:
        square = np.einsum("cht,cht->ch", hops, hops, dtype=np.float64) / hops.shape[2]
        mean = hops.mean(2, dtype=np.float64)
        return (square - mean**2 < self._threshold).all(0)

    def spans(self) -> tuple[int, int, int, int, int]:
        """Samples of silence in all, at the start, at the end, in the longest span, and where that begins."""
        if not self._silent:
            return 0, 0, 0, 0, 0
        silent = np.concatenate(self._silent)
        sounding = np.flatnonzero(~silent)
        lengths = np.full(len(silent), self._hop)
        lengths[-1] = self._last
        total = int(lengths[silent].sum())
        if len(sounding) == 0:
            return total, total, total, total, 0
        starts = np.concatenate([[0], sounding + 1])
        ends = np.concatenate([sounding, [len(silent)]])
        before = np.concatenate([[0], np.cumsum(lengths)])
        durations = before[ends] - before[starts]
        longest = int(np.argmax(durations))
        return (
            total,
            int(durations[0]),
            int(durations[-1]),
            int(durations[longest]),
            int(before[starts[longest]]),
        )


class Clipping:
    """Runs of three and more samples of one channel that stand still at full scale with steep edges.

    A normalised recording touches full scale at its highest peak, for several samples if that is a bass
    note; there the samples beside the run lie hardly below it, and it is not counted. Samples beyond full
    scale, which a lossy decoder makes, are not equal to each other and are not counted either.
    """

    def __init__(self) -> None:
        self.runs = 0
        self.samples = 0
        self.first_frame: int | None = None
        self._frame = 0
        self._carried: NDArray[np.float32] | None = None
        self._has_edge = False

    def feed(self, audio: NDArray[np.float32]) -> None:
        """Take the next samples."""
        if self._carried is not None:
            audio = np.concatenate([self._carried, audio], axis=1)
            self._frame -= self._carried.shape[1]
        # What may still be part of a run waits for the next piece, with one sample before it as its edge.
        waiting = self._open_run(audio)
        done = audio.shape[1] - (waiting if waiting <= _LONGEST_CARRY else 0)
        self._count(audio, done)
        self._carried = audio[:, max(done - 1, 0) :]
        self._has_edge = self._has_edge or done > 0
        self._frame += audio.shape[1]

    def finish(self) -> None:
        """Count a run that the recording ends in."""
        if self._carried is not None:
            self._frame -= self._carried.shape[1]
            self._count(self._carried, self._carried.shape[1])
            self._carried = None

    @staticmethod
    def _open_run(audio: NDArray[np.float32]) -> int:
        """How many samples at the end belong, in some channel, to a run at full scale."""
        below = np.abs(audio[:, : -_LONGEST_CARRY - 2 : -1]) < FULL_SCALE
        return max((int(row.argmax()) if row.any() else len(row) for row in below), default=0)

    def _count(self, audio: NDArray[np.float32], stop: int) -> None:
        """Count the runs that begin before ``stop``."""
        for row in audio:
            if max(float(row.max(initial=0.0)), -float(row.min(initial=0.0))) < FULL_SCALE:
                continue
            side = np.where(row >= FULL_SCALE, 1, np.where(row <= -FULL_SCALE, -1, 0)).astype(np.int8)
            edges = np.flatnonzero(np.diff(side)) + 1
            starts = np.concatenate([[0], edges])
            ends = np.concatenate([edges, [len(row)]])
            # a run in the sample kept as an edge was counted with the piece before
            chosen = (side[starts] != 0) & (ends - starts >= _MIN_RUN) & (starts < stop)
            chosen &= (starts > 0) | (not self._has_edge)
            self._judge(row, starts[chosen], ends[chosen])

    def _judge(self, row: NDArray[np.float32], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        """Count those of the runs that are flat and have a steep edge, or no edge at all."""
        if len(starts) == 0:
            return
        padded = np.append(row, row[-1:])
        spans = np.stack([starts, ends], axis=1).ravel()
        spread = np.maximum.reduceat(padded, spans)[::2] - np.minimum.reduceat(padded, spans)[::2]
        drop_before = np.where(starts > 0, np.abs(row[starts] - row[starts - 1]), 0.0)
        after = np.minimum(ends, len(row) - 1)
        drop_after = np.where(ends < len(row), np.abs(row[starts] - row[after]), 0.0)
        whole = (starts == 0) & (ends == len(row))
        cut = (spread <= _STEP) & ((np.maximum(drop_before, drop_after) > _MIN_EDGE) | whole)
        if cut.any():
            self.runs += int(cut.sum())
            self.samples += int((ends - starts)[cut].sum())
            first = self._frame + int(starts[cut][0])
            self.first_frame = first if self.first_frame is None else min(self.first_frame, first)
