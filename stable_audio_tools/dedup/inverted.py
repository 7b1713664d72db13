"""Which tracks share landmarks, from an inverted index: for every hash, the tracks and moments that have it.

Every track is looked up among those before it and then added, so each pair is seen once. Memory is 6 bytes a
posting and 0.4 GB for tables, whatever the number of pairs. One value in four of all hashes is searched, the
same ones in every track. Where that is more than memory holds, or than a search has time for, the values that
most tracks have are passed over first: they say least, and copies keep the same rare ones.
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
_LEAST_SHARE = 0.01
MAX_HITS = 200_000
"""For a track; 10 to 20 ms."""
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
        max_hits: how many postings the search may look at for a track, on average.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        max_index_bytes: int = 8 << 30,
        max_hits: int = MAX_HITS,
    ) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix=".tmp-landmarks-", dir=folder)  # noqa: SIM115
        self._sizes: list[int] = []
        self._max_index_bytes, self._max_hits = max_index_bytes, max_hits
        self.offered = 0
        """How many postings there were; known after :meth:`pairs`."""
        self.postings = 0
        """How many of them the index held; known after :meth:`pairs`."""
        self.most_common = 0
        """In how many places the most common hash that was searched is; known after :meth:`pairs`."""

    def __enter__(self) -> LandmarkSearch:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def dropped(self) -> str:
        """What was not looked at, in words; empty where everything was. Known after :meth:`pairs`."""
        if self.postings == self.offered:
            return ""
        share = 1 - self.postings / self.offered
        return (
            f"{share:.0%} of all landmark hashes are passed over: they are in over {self.most_common} places"
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

        Where a share of the hashes is passed over, fewer votes are asked for, but never fewer than four; of
        long tracks, which share many hashes by chance, one in a hundred that the shorter one has. Of the
        tracks before it each track keeps the ``max_per_track`` (None: all) with most votes.
        """
        starts = self._count()
        min_votes = min(min_votes, max(_LEAST_VOTES, round(min_votes * self.postings / max(1, self.offered))))
        tracks = np.zeros(self.postings, np.uint32)
        ticks = np.zeros(self.postings, np.uint16)
        ends, sizes = starts[:-1].copy(), np.zeros(len(self), np.int64)
        found: list[tuple[NDArray[np.int64], NDArray[np.int64], int]] = []
        for row, records in enumerate(track(self._tracks(), "landmarks", total=len(self))):
            hashes = records["hash"]
            kept = starts[hashes + 1] > starts[hashes]
            records = records[kept]
            others, votes = _look_up(records, starts, ends, tracks, ticks, min_votes)
            sizes[row] = len(records)
            enough = votes >= _LEAST_SHARE * np.minimum(sizes[others], len(records))
            others, votes = others[enough], votes[enough]
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
        # Values by how common they are: so many postings and looks does it cost to search all up to there.
        values = np.bincount(counts)
        common = np.arange(len(values))
        postings, hits = np.cumsum(values * common), np.cumsum(values * common**2)
        affordable = (postings * POSTING_BYTES <= self._max_index_bytes) & (
            hits <= self._max_hits * len(self)
        )
        self.most_common = int(affordable.sum()) - 1
        self.offered = int(postings[-1])
        counts[counts > self.most_common] = 0
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
