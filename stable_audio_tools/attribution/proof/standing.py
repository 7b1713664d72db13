"""Does the verdict of a report keep its promise? How often it says that something stands out, and rightly.

Held-out queries are asked twice: as they are, with other tracks by their artist in the training set, and with
these taken out. Then nothing should stand out but by chance, as often as the level of the test allows.

Shapes: Q queries, N tracks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from stable_audio_tools.attribution.evidence.confidence import (
    ALPHA,
    STANDS_OUT,
    Standout,
    null_evidence,
    standouts,
)
from stable_audio_tools.attribution.proof.kernels import Kernels
from stable_audio_tools.attribution.scoring.groups import Groups, group_tracks
from stable_audio_tools.attribution.scoring.sample_space import inverse_of, scores_left_out
from stable_audio_tools.attribution.scoring.scores import regularisation


def standing_table(
    kernels: Kernels,
    lambda_scale: float,
    rank_by: str,
    artists: Sequence[str | None],
    asked: Mapping[str, Sequence[int]],
    theirs: Sequence[str | None],
    without_artist: str,
) -> list[dict[str, Any]]:
    """One row a kind of query, for single tracks and for artists: how many stand out, how many rightly.

    Args:
        artists: of the tracks, N.
        asked: rows of the queries by kind.
        theirs: the artist of each query, Q.
        without_artist: the kind that is also asked without its artists.
    """
    groups = group_tracks([{"sample_id": str(n), "artist": name} for n, name in enumerate(artists)], "artist")
    values, vectors = torch.linalg.eigh(kernels.tracks)
    inverse = inverse_of(values, vectors, regularisation(values, lambda_scale))
    left_out, scores = scores_left_out(inverse, groups.member), kernels.cross @ inverse
    rows = []
    levels: list[tuple[str, Groups | None]] = [("a track", None)]
    levels += [("an artist", groups)] if groups.known else []
    for what, within in levels:
        null = null_evidence(left_out, rank_by, within)
        for kind, queries in asked.items():
            found = standouts(scores[list(queries)], null, rank_by, within)
            rows.append(_row(what, kind, found, [theirs[q] for q in queries], within))
        alone = []
        for query in asked[without_artist]:
            name = theirs[query]
            other = groups.member != (groups.names.index(name) if name and name in groups.names else -1)
            # exact: what the artist's tracks had is shared out among the others
            rest = scores[query, other] + scores[query, ~other] @ left_out[~other][:, other]
            part = None if within is None else Groups("artist", groups.names, groups.member[other], 0)
            reduced = null_evidence(left_out[other][:, other], rank_by, part)
            alone += standouts(rest[None], reduced, rank_by, part)
        rows.append(_row(what, f"{without_artist}, without their artists", alone, [None] * len(alone), None))
    return rows


def _row(
    what: str, kind: str, found: Sequence[Standout], theirs: Sequence[str | None], groups: Groups | None
) -> dict[str, Any]:
    out = [item.verdict == STANDS_OUT for item in found]
    row = {"what": what, "queries": kind, "count": len(found), "stand_out": sum(out), "level": ALPHA}
    if groups is not None:
        row["right"] = sum(
            yes and groups.names[item.place] == artist
            for yes, item, artist in zip(out, found, theirs, strict=True)
        )
    return row
