"""The second half of a dedup run: exact copies, candidates, and the evidence about each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from stable_audio_tools.dedup.candidates import similar_pairs
from stable_audio_tools.dedup.hearing import Cache, Heard
from stable_audio_tools.dedup.inverted import LandmarkSearch
from stable_audio_tools.dedup.settings import DedupSettings
from stable_audio_tools.dedup.verify import Alignment, Evidence, align, is_one_recording
from stable_audio_tools.runtime.progress import say, track

_EVIDENCE_IN_MEMORY = 512
"""Tracks; a four-minute one takes 1 MB."""


@dataclass(frozen=True)
class Pair:
    """Two tracks and the evidence about them; ``a`` and ``b`` are positions in the index, ``a < b``.

    ``similarity`` is the cosine of their code histograms and ``votes`` the hashes of landmarks they share,
    each None where the pair was not found that way. Equal files and equal audio need no alignment.
    """

    a: int
    b: int
    duplicate: bool
    similarity: float | None = None
    votes: int | None = None
    identical_bytes: bool = False
    identical_audio: bool = False
    alignment: Alignment | None = None


def find_pairs(
    heard: Mapping[int, Heard], names: Sequence[str], cache: Cache, settings: DedupSettings
) -> list[Pair]:
    """All pairs that were looked at, with the verdict on each, by position.

    Args:
        heard: what is known of each track, by its position in the index.
        names: their sample ids, by position: the search goes by them, so that the order of the index changes
            nothing.
        cache: where the prints are.
    """
    audible = sorted((i for i in heard if heard[i].facts.flaw is None), key=lambda i: names[i])
    pairs, rows = _exact_copies(audible, heard)
    votes = _by_landmarks(rows, heard, cache, settings) if settings.verify else {}
    cosines = _by_codes(rows, heard, settings)

    @lru_cache(maxsize=_EVIDENCE_IN_MEMORY)
    def evidence(row: int) -> Evidence:
        return cache.load_print(heard[row].digest).evidence()

    for a, b in track(sorted(votes.keys() | cosines.keys()), "pairs"):
        alignment, same = None, True
        if settings.verify:
            alignment = align(evidence(a), evidence(b))
            same = is_one_recording(alignment, settings)
        pairs.append(Pair(a, b, same, cosines.get((a, b)), votes.get((a, b)), alignment=alignment))
    return sorted(pairs, key=lambda pair: (pair.a, pair.b))


def _exact_copies(audible: Sequence[int], heard: Mapping[int, Heard]) -> tuple[list[Pair], list[int]]:
    """Each copy with the first track of its sound by name, and the tracks that are left to compare."""
    first: dict[str, int] = {}
    pairs = []
    for i in audible:
        own = heard[i]
        original = first.setdefault(own.facts.audio_sha256, i)
        if original != i:
            a, b = sorted((original, i))
            same_bytes = heard[original].digest == own.digest
            pairs.append(Pair(a, b, True, identical_bytes=same_bytes, identical_audio=True))
    return pairs, list(first.values())


def _by_landmarks(
    rows: Sequence[int], heard: Mapping[int, Heard], cache: Cache, settings: DedupSettings
) -> dict[tuple[int, int], int]:
    """The hashes of landmarks shared, by pairs that share enough."""
    with LandmarkSearch(cache.folder, max_index_bytes=int(settings.max_index_gib * 2**30)) as search:
        for row in track(rows, "hashes"):
            search.add(cache.load_print(heard[row].digest).evidence().constellations)
        found = search.pairs(settings.min_votes, settings.max_candidates)
        if search.dropped:
            say(f"dedup: {search.dropped}")
    return {
        _ordered(rows[i], rows[j]): int(votes)
        for i, j, votes in zip(found.first.tolist(), found.second.tolist(), found.votes.tolist(), strict=True)
    }


def _by_codes(
    rows: Sequence[int], heard: Mapping[int, Heard], settings: DedupSettings
) -> dict[tuple[int, int], float]:
    """The cosines of code histograms, by pairs that reach the threshold."""
    coded = [(row, made) for row in rows if (made := heard[row].histogram) is not None]
    if not coded:
        return {}
    found = similar_pairs(
        np.stack([made for _, made in coded]),
        settings.similarity_threshold,
        device=settings.similarity_device,
        max_per_track=settings.max_candidates if settings.verify else None,
    )
    return {
        _ordered(coded[i][0], coded[j][0]): round(cosine, 6)
        for i, j, cosine in zip(
            found.first.tolist(), found.second.tolist(), found.cosine.tolist(), strict=True
        )
    }


def _ordered(a: int, b: int) -> tuple[int, int]:
    return (a, b) if a < b else (b, a)
