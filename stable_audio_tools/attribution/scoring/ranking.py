"""The table a reader opens: tracks ranked for each query; sums over groups of tracks are in ``groups.py``."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
Records = Sequence[Mapping[str, Any]]
"""One per row of a store: sample_id, path, prompt, artist, album, title, ..."""


def order(scores: Tensor, rank_by: str = "score") -> Tensor:
    """Tracks of each query from first to last, (Q, N): by score, or by its square whatever its sign.

    The sign says whether a track pushed the measurement of the query up or down; for the loss that is hurting
    and helping, for a norm of the output it has no such meaning. Ties keep the order of the index.
    """
    return ranked_values(scores, rank_by).argsort(dim=-1, descending=True, stable=True)


def ranked_values(scores: Tensor, rank_by: str) -> Tensor:
    """What tracks are ranked by: the scores (..., N) or their squares."""
    if rank_by not in RANK_BY:
        raise UsageError(f"unknown rank_by {rank_by!r}; known: {', '.join(RANK_BY)}")
    return scores if rank_by == "score" else scores**2


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
    return write_csv(path, RANKING_COLUMNS, rows)


def _ranking_row(
    query: Mapping[str, Any], rank: int, track: Mapping[str, Any], score: float
) -> dict[str, Any]:
    return {
        **query_cells(query),
        "rank": rank,
        "sample_id": track.get("sample_id", ""),
        "path": track.get("path", ""),
        "score": _number(score),
        "score_squared": _number(score**2),
        **{name: track.get(name) or "" for name in ("artist", "album", "title")},
    }


def query_cells(query: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a table that say which query a row is about."""
    return {"query": query.get("sample_id", ""), "query_prompt": query.get("prompt") or ""}


def _number(value: float) -> str:
    return f"{value:.9g}" if math.isfinite(value) else ""


def write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write a table in one step."""
    path = Path(path)
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path
