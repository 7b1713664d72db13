"""Sums of scores over the tracks of an artist, an album, a label, or a cluster of duplicates.

Groups differ in size, so a sum alone favours the large ones. Beside it stands ``times_average``: what a track
of the group scores on average, over what a track of the whole set does. 1 is a group like any other; it is
not a share of anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.attribution.scoring.ranking import (
    Records,
    order,
    query_cells,
    ranked_values,
    write_csv,
)
from stable_audio_tools.dedup.clusters import connected_groups
from stable_audio_tools.errors import DataError
from stable_audio_tools.runtime.progress import warn

GROUP_FILES = {
    "artist": "artists.csv",
    "album": "albums.csv",
    "label": "labels.csv",
    "cluster": "clusters.csv",
}
"""Kinds of groups by the field of a track that names them, and the table of each."""

GROUP_COLUMNS = (
    *("query", "query_prompt", "rank", "group", "tracks", "score_sum", "score_squared_sum", "best_rank"),
    *("times_average", "times_average_low", "times_average_high", "rank_low", "rank_high"),
)


@dataclass(frozen=True)
class Groups:
    """Which track is of which group.

    Attributes:
        key: the field that names them.
        names: of the groups, in the order in which they appear.
        member: (N,) the position in ``names`` of each track's group.
        known: how many tracks name theirs; the others are alone.
    """

    key: str
    names: list[str]
    member: Tensor
    known: int

    @property
    def counts(self) -> Tensor:
        """Tracks of each group, (G,)."""
        return torch.bincount(self.member, minlength=len(self.names))

    def sums(self, values: Tensor) -> Tensor:
        """``values`` (..., N) added up by group: (..., G)."""
        added = values.new_zeros(*values.shape[:-1], len(self.names))
        return added.index_add_(-1, self.member, values)

    def times_average(self, values: Tensor) -> Tensor:
        """The mean of ``values`` (..., N) in each group over the mean size of all: (..., G)."""
        means = self.sums(values) / self.counts
        return means / values.abs().mean(-1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)


@dataclass(frozen=True)
class GroupInterval:
    """What resampling says of the groups of one clip: each tensor is (G,)."""

    low: Tensor
    high: Tensor
    rank_low: Tensor
    rank_high: Tensor


def group_tracks(tracks: Records, key: str) -> Groups:
    """The groups that ``key`` of each track names; a track without one is a group of its own."""
    names = [str(track.get(key) or f"(no {key}) {track.get('sample_id')}") for track in tracks]
    places = {name: position for position, name in enumerate(dict.fromkeys(names))}
    member = torch.tensor([places[name] for name in names], dtype=torch.long)
    return Groups(key, list(places), member, sum(bool(track.get(key)) for track in tracks))


def all_groups(tracks: Records) -> list[Groups]:
    """Artists and albums, and of labels and clusters those that any track names."""
    found = [group_tracks(tracks, key) for key in GROUP_FILES]
    return [groups for groups in found if groups.known or groups.key in ("artist", "album")]


def related(tracks: Records) -> Tensor:
    """(N,) a number per track, the same for tracks that share an artist, an album or a cluster."""
    first: dict[tuple[str, str], int] = {}
    edges = []
    for row, track in enumerate(tracks):
        for key in ("artist", "album", "cluster"):
            name = track.get(key)
            if key == "album":  # two artists can each have a "Greatest Hits"
                name = name and f"{track.get('artist')}\x1f{name}"
            if name:
                edges.append((first.setdefault((key, str(name)), row), row))
    member = torch.arange(len(tracks))
    for component in connected_groups(len(tracks), edges):
        member[component] = component[0]
    return member


def read_clusters(path: str | Path) -> dict[str, str]:
    """The cluster of each sample id that has duplicates, from a dedup run's folder or ``summary.json``.

    Raises:
        DataError: there is no such file, or it is not one of dedup's.
    """
    path = Path(path)
    path = path / "summary.json" if path.is_dir() else path
    try:
        groups = json.loads(path.read_text(encoding="utf-8"))["groups"]
        return {str(name): str(group[0]) for group in groups for name in group}
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(
            f"{path}: holds no duplicate groups; expected the summary.json that `sat dedup` writes"
        ) from error


def described(tracks: Records, dedup: str | Path | None = None) -> list[dict[str, Any]]:
    """The tracks, each with its ``label``, and with its ``cluster`` where dedup put it into one."""
    clusters = {} if dedup is None else read_clusters(dedup)
    if clusters and not any(track.get("sample_id") in clusters for track in tracks):
        warn(f"{dedup}: none of its {len(clusters)} tracks is in the training set, so it groups nothing")
    found = []
    for track in tracks:
        more = {
            "label": track.get("label") or track.get("publisher"),
            "cluster": clusters.get(str(track.get("sample_id"))),
        }
        found.append({**track, **{key: value for key, value in more.items() if value}})
    return found


def write_groups(
    path: str | Path,
    scores: Tensor,
    queries: Records,
    groups: Groups,
    *,
    rank_by: str = "score",
    intervals: Sequence[GroupInterval] | None = None,
) -> Path:
    """Write one CSV row per query and group, best first.

    ``score_sum`` adds the scores of the group's tracks, so a group with more tracks has more to add;
    ``tracks`` says how many, ``best_rank`` where its first track stands, ``times_average`` what a track of
    the group scores beside a track of the set. The interval columns are empty where nothing was resampled.

    Args:
        scores: (Q, N).
        intervals: one per query.
    """
    return write_csv(path, GROUP_COLUMNS, _rows(scores, queries, groups, rank_by, intervals))


def _rows(
    scores: Tensor, queries: Records, groups: Groups, rank_by: str, intervals: Sequence[GroupInterval] | None
) -> Iterable[Mapping[str, object]]:
    scores = scores.double()
    sums, squares = groups.sums(scores), groups.sums(scores**2)
    average = groups.times_average(ranked_values(scores, rank_by))
    ranked = (sums if rank_by == "score" else squares).argsort(dim=1, descending=True, stable=True).tolist()
    best = torch.full((len(scores), len(groups.names)), scores.shape[1] + 1)
    ranks = order(scores, rank_by).argsort(dim=1) + 1
    best.scatter_reduce_(1, groups.member.expand_as(ranks), ranks, "amin")
    counts = groups.counts.tolist()
    for q, query in enumerate(queries):
        found = None if intervals is None else intervals[q]
        for rank, g in enumerate(ranked[q], start=1):
            yield {
                **query_cells(query),
                "rank": rank,
                "group": groups.names[g],
                "tracks": counts[g],
                "score_sum": number(float(sums[q, g])),
                "score_squared_sum": number(float(squares[q, g])),
                "best_rank": int(best[q, g]),
                "times_average": number(float(average[q, g])),
                "times_average_low": "" if found is None else number(float(found.low[g])),
                "times_average_high": "" if found is None else number(float(found.high[g])),
                "rank_low": "" if found is None else int(found.rank_low[g]),
                "rank_high": "" if found is None else int(found.rank_high[g]),
            }


def number(value: float) -> str:
    """A figure of a table: nine digits, and nothing where it is not finite."""
    return f"{value:.9g}" if math.isfinite(value) else ""
