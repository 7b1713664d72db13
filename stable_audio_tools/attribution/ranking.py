"""The tables a reader opens: tracks ranked for each query, and sums per artist and per album."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.errors import UsageError
from stable_audio_tools.runtime.files import atomic_path

RANK_BY = ("score", "score_squared")
RANKING_COLUMNS = (
    "query",
    "query_prompt",
    "rank",
    "sample_id",
    "path",
    "score",
    "score_squared",
    "artist",
    "album",
    "title",
)
GROUP_COLUMNS = (
    "query",
    "query_prompt",
    "rank",
    "group",
    "tracks",
    "score_sum",
    "score_squared_sum",
    "best_rank",
)

Records = Sequence[Mapping[str, Any]]
"""One per row of a store: sample_id, path, prompt, artist, album, title, ..."""


def order(scores: Tensor, rank_by: str = "score") -> Tensor:
    """Tracks of each query from first to last, (Q, N): by score, or by its square whatever its sign.

    The sign says whether a track pushed the measurement of the query up or down; for the loss that is hurting
    and helping, for a norm of the output it has no such meaning. Ties keep the order of the index.
    """
    if rank_by not in RANK_BY:
        raise UsageError(f"unknown rank_by {rank_by!r}; known: {', '.join(RANK_BY)}")
    values = scores if rank_by == "score" else scores**2
    return values.argsort(dim=1, descending=True, stable=True)


def write_ranking(
    path: str | Path,
    scores: Tensor,
    queries: Records,
    tracks: Records,
    *,
    rank_by: str = "score",
    top_k: int | None = None,
) -> Path:
    """Write one CSV row per query and track, best first; ``top_k`` limits the rows of a query.

    Args:
        scores: (Q, N).
        queries: what the rows of ``scores`` are.
        tracks: what its columns are.
    """
    rows = (
        _ranking_row(queries[q], rank, tracks[n], float(scores[q, n]))
        for q, ranked in enumerate(order(scores, rank_by).tolist())
        for rank, n in enumerate(ranked[:top_k], start=1)
    )
    return _write_csv(path, RANKING_COLUMNS, rows)


def write_groups(
    path: str | Path, scores: Tensor, queries: Records, tracks: Records, *, key: str, rank_by: str = "score"
) -> Path:
    """Write one CSV row per query and group; ``key`` (``artist``, ``album``) of a track names its group.

    ``score_sum`` adds the scores of the group's tracks, so a group with more tracks has more to add;
    ``tracks`` says how many, ``best_rank`` where its first track stands. A track without one is alone.
    """
    names = [str(track.get(key) or f"(no {key}) {track.get('sample_id')}") for track in tracks]
    groups = {name: position for position, name in enumerate(dict.fromkeys(names))}
    member = torch.tensor([groups[name] for name in names])
    count = torch.bincount(member, minlength=len(groups)).tolist()
    sums, squares = (
        torch.zeros(len(scores), len(groups), dtype=torch.float64).index_add_(1, member, values)
        for values in (scores.double(), scores.double() ** 2)
    )
    ranked_groups = (
        (sums if rank_by == "score" else squares).argsort(dim=1, descending=True, stable=True).tolist()
    )
    best = torch.full((len(scores), len(groups)), len(names) + 1)
    ranks = order(scores, rank_by).argsort(dim=1) + 1
    best.scatter_reduce_(1, member.expand_as(ranks), ranks, "amin")
    labels = list(groups)
    rows = (
        {
            **_query_cells(queries[q]),
            "rank": rank,
            "group": labels[g],
            "tracks": count[g],
            "score_sum": _number(float(sums[q, g])),
            "score_squared_sum": _number(float(squares[q, g])),
            "best_rank": int(best[q, g]),
        }
        for q, ranked in enumerate(ranked_groups)
        for rank, g in enumerate(ranked, start=1)
    )
    return _write_csv(path, GROUP_COLUMNS, rows)


def _ranking_row(
    query: Mapping[str, Any], rank: int, track: Mapping[str, Any], score: float
) -> dict[str, Any]:
    return {
        **_query_cells(query),
        "rank": rank,
        "sample_id": track.get("sample_id", ""),
        "path": track.get("path", ""),
        "score": _number(score),
        "score_squared": _number(score**2),
        **{name: track.get(name) or "" for name in ("artist", "album", "title")},
    }


def _query_cells(query: Mapping[str, Any]) -> dict[str, Any]:
    return {"query": query.get("sample_id", ""), "query_prompt": query.get("prompt") or ""}


def _number(value: float) -> str:
    return f"{value:.9g}" if math.isfinite(value) else ""


def _write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Path:
    path = Path(path)
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path
