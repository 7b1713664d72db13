"""Which tracks share landmarks, from an inverted index: for every hash, the tracks and moments that have it.

Every track is looked up among those before it and then added, so each pair is seen once. Memory is 6 bytes a
posting and 128 MB for the table, whatever the number of pairs. One value in four of all hashes is kept, and
half of those again, and so on, until the postings fit; values are dropped in all tracks alike, so that copies
keep the same ones. A hash that a great many tracks have says nothing and is passed over.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.dedup.landmarks import HASH_BITS, SAMPLED_SHARE, Constellations, sampled
from stable_audio_tools.dedup.spectra import FRAMES_PER_SECOND
from stable_audio_tools.runtime.progress import track

POSTING_BYTES = 6
_LEAST_VOTES = 4
_TICK_FRAMES = 10  # postings keep moments to a quarter of a second
_BIN_TICKS = FRAMES_PER_SECOND // _TICK_FRAMES  # offsets are counted by the second
_RECORD = np.dtype([("hash", "<u4"), ("tick", "<u2")])


class Votes(NamedTuple):
    """Pairs of tracks, ``first[k] < second[k]``, and the hashes they share at one offset, each ``(K,)``."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    votes: NDArray[np.int64]


class LandmarkSearch:
    """Collects the hashes of tracks, on disk, then finds the pairs that share some in order.

    Args:
        folder: where the hashes wait; the file is gone when the search is closed.
        max_index_bytes: what the postings may take in memory.
        max_postings: a hash that occurs more often is passed over. None: 64 and one for every 2,000 tracks.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        max_index_bytes: int = 8 << 30,
        max_postings: int | None = None,
    ) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix=".tmp-landmarks-", dir=folder)  # noqa: SIM115
        self._sizes: list[int] = []
        self._max_index_bytes, self._max_postings = max_index_bytes, max_postings
        self.share = SAMPLED_SHARE
        """The share of hash values that was looked at; known after :meth:`pairs`."""
        self.postings = 0
        """How many postings the index held; known after :meth:`pairs`."""

    def __enter__(self) -> LandmarkSearch:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def dropped(self) -> str:
        """What was not looked at, in words; empty where everything was. Known after :meth:`pairs`."""
        if self.share == SAMPLED_SHARE:
            return ""
        gib = self._max_index_bytes / 2**30
        return (
            f"one landmark in {round(1 / self.share)} is searched, not one in {round(1 / SAMPLED_SHARE)}:"
            f" more would not fit into {gib:.3g} GiB"
        )

    def add(self, found: Constellations) -> None:
        """Add the next track."""
        kept = sampled(found.hashes, SAMPLED_SHARE)
        self.add_hashes(found.hashes[kept], found.frames[kept])

    def add_hashes(self, hashes: NDArray[np.uint32], frames: NDArray[np.float32]) -> None:
        """Add the next track by its sampled hashes and their moments in frames."""
        records = np.empty(len(hashes), _RECORD)
        records["hash"] = hashes
        records["tick"] = np.minimum(frames / _TICK_FRAMES, 65535).astype(np.uint16)
        self._file.write(records.tobytes())
        self._sizes.append(len(records))

    def pairs(self, min_votes: int, max_per_track: int | None) -> Votes:
        """Pairs with ``min_votes`` hashes in common at one offset, give or take a second.

        Where a smaller share of hashes is looked at, fewer votes are asked for, but never fewer than four.
        Of the tracks before it each track keeps the ``max_per_track`` (None: all) with most votes.
        """
        starts = self._count()
        min_votes = min(min_votes, max(_LEAST_VOTES, round(min_votes * self.share / SAMPLED_SHARE)))
        tracks = np.zeros(self.postings, np.uint32)
        ticks = np.zeros(self.postings, np.uint16)
        ends = starts[:-1].copy()
        found: list[tuple[NDArray[np.int64], NDArray[np.int64], int]] = []
        for row, records in enumerate(track(self._tracks(), "landmarks", total=len(self))):
            hashes = records["hash"]
            kept = sampled(hashes, self.share) & (starts[hashes + 1] > starts[hashes])
            records = records[kept]
            others, votes = _look_up(records, starts, ends, tracks, ticks, min_votes)
            if max_per_track is not None and len(others) > max_per_track:
                best = np.sort(np.lexsort((others, -votes))[:max_per_track])
                others, votes = others[best], votes[best]
            if len(others):
                found.append((others, votes, row))
            _post(records, row, ends, tracks, ticks)
        return _as_votes(found)

    def _tracks(self) -> Iterator[NDArray[np.void]]:
        self._file.flush()
        self._file.seek(0)
        for size in self._sizes:
            yield np.frombuffer(self._file.read(size * _RECORD.itemsize), _RECORD)

    def _count(self) -> NDArray[np.int64]:
        """Where the postings of each hash start, ``(2 ** HASH_BITS + 1,)``; those passed over have none."""
        counts = np.zeros(1 << HASH_BITS, np.int64)
        for block in self._blocks():
            counts += np.bincount(block["hash"], minlength=len(counts))
        limit = self._max_postings or 64 + len(self) // 2000
        counts[counts > limit] = 0
        values = np.arange(len(counts), dtype=np.uint32)
        self.share = SAMPLED_SHARE
        while counts.sum() * POSTING_BYTES > self._max_index_bytes:
            self.share /= 2
            counts[~sampled(values, self.share)] = 0
        starts = np.concatenate([[0], np.cumsum(counts)])
        self.postings = int(starts[-1])
        return starts

    def _blocks(self, size: int = 1 << 22) -> Iterator[NDArray[np.void]]:
        self._file.flush()
        self._file.seek(0)
        while data := self._file.read(size * _RECORD.itemsize):
            yield np.frombuffer(data, _RECORD)


def _look_up(
    records: NDArray[np.void],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    tracks: NDArray[np.uint32],
    ticks: NDArray[np.uint16],
    min_votes: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The tracks that share enough of ``records`` at one offset, ascending, and their votes."""
    first = starts[records["hash"]]
    counts = ends[records["hash"]] - first
    total = int(counts.sum())
    nothing = np.zeros(0, np.int64)
    if total < min_votes:
        return nothing, nothing
    before = np.cumsum(counts) - counts
    at = np.repeat(first - before, counts) + np.arange(total)
    others = tracks[at].astype(np.int64)
    often = np.bincount(others) >= min_votes
    mine = np.flatnonzero(often[others])
    if not len(mine):
        return nothing, nothing
    offsets = np.repeat(records["tick"].astype(np.int64), counts)[mine] - ticks[at[mine]]
    keys, votes = np.unique((others[mine] << 20) + offsets // _BIN_TICKS + (1 << 19), return_counts=True)
    beside = np.zeros_like(votes)
    beside[:-1] = np.where(np.diff(keys) == 1, votes[1:], 0)
    votes = votes + beside
    heads = np.flatnonzero(np.diff(keys >> 20, prepend=-1))
    best = np.maximum.reduceat(votes, heads)
    enough = best >= min_votes
    return (keys[heads] >> 20)[enough], best[enough]


def _post(
    records: NDArray[np.void],
    row: int,
    ends: NDArray[np.int64],
    tracks: NDArray[np.uint32],
    ticks: NDArray[np.uint16],
) -> None:
    """Add a track's postings; ``records`` are in ascending order of hash."""
    hashes = records["hash"]
    if not len(hashes):
        return
    heads = np.flatnonzero(np.diff(hashes.astype(np.int64), prepend=-1))
    sizes = np.diff(np.append(heads, len(hashes)))
    at = ends[hashes] + np.arange(len(hashes)) - np.repeat(heads, sizes)
    tracks[at] = row
    ticks[at] = records["tick"]
    ends[hashes[heads]] += sizes


def _as_votes(found: list[tuple[NDArray[np.int64], NDArray[np.int64], int]]) -> Votes:
    if not found:
        nothing = np.zeros(0, np.int64)
        return Votes(nothing, nothing, nothing)
    first = np.concatenate([others for others, _, _ in found])
    votes = np.concatenate([count for _, count, _ in found])
    second = np.concatenate([np.full(len(others), row, np.int64) for others, _, row in found])
    order = np.lexsort((second, first))
    return Votes(first[order], second[order], votes[order])
