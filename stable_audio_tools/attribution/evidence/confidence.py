"""How sure a ranking is: intervals by resampling, and whether any track stands out at all.

**Intervals** (:func:`resample`). A score is a sum over timesteps, each with its noise, and over blocks of
random projections. Both are drawn anew with replacement, at once (the bootstrap, Efron 1979; for two crossed
factors, Owen 2007), and the spread of what comes out is the interval. It says how much the choice of
timesteps, noise and projection matters. The tracks' side is held fixed, and so are model, training run and
lambda: the interval does not say what another training run would give.

**Standing out** (:func:`standouts`). The evidence for a clip is its largest score over the root mean square
of its scores, which no scale of the query changes. The null: every training track asked as if it were a clip,
while it and the tracks related to it (artist, album, duplicates) are left out. That is the largest score
which real music of this catalogue gets from music that is not its own. The share of tracks that reach the
clip's evidence is its p-value; N tracks resolve 1 / (N + 1). The same is asked of artists: an artist's
evidence is what its tracks have of the sum of all ranked values, beyond their share of the tracks, over the
square root of their number. A clip that leans on all of an artist's tracks alike shows there, and in no
single track.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stable_audio_tools.attribution.scoring.groups import GroupInterval, Groups
from stable_audio_tools.attribution.scoring.ranking import order, ranked_values
from stable_audio_tools.runtime.seeds import generator

BLOCKS = 8
"""Blocks of projection columns that are resampled."""

RESAMPLES = 200

LEVEL = 0.95
"""Of the intervals."""

ALPHA = 0.05
"""A clip stands out if no more than this share of the null reaches its evidence."""

STANDS_OUT, NOTHING, TOO_FEW = "stands out", "no track stands out", "too few tracks to tell"


@dataclass(frozen=True)
class Resampled:
    """What resampling says of one clip.

    ``low`` and ``high`` (N,) hold a track's ranked value (score or its square) over the average size of
    those of all tracks; ``first_share`` is how many of the resamples keep the first track first.
    """

    first_share: float
    low: Tensor
    high: Tensor
    rank_low: Tensor
    rank_high: Tensor
    groups: dict[str, GroupInterval] = field(default_factory=dict)


@dataclass(frozen=True)
class Standout:
    """The evidence for one clip beside the null.

    ``resolution`` is the smallest p-value there can be.
    """

    evidence: float
    p_value: float
    resolution: float
    verdict: str
    place: int
    """The track or the group with that evidence."""


def resample(
    parts: Tensor,
    scores: Tensor,
    groups: Sequence[Groups],
    rank_by: str,
    seed: int,
    clip: str,
    resamples: int = RESAMPLES,
) -> Resampled:
    """Intervals of one clip's tracks and groups.

    Args:
        parts: its scores by block and timestep, (blocks, K, N).
        scores: its scores (N,), to which the parts add up but for rounding.
        groups: the groups that get an interval.
        clip: its id, which keys the draws.
    """
    blocks, K, N = parts.shape
    draws = generator("attribution-resample", seed, clip)
    times = _counts(resamples, K, draws)
    columns = _counts(resamples, blocks, draws)
    weights = (columns[:, :, None] * times[:, None, :]).flatten(1)  # (R, blocks K)
    drawn = ranked_values(weights @ parts.reshape(-1, N), rank_by)
    whole = ranked_values(scores, rank_by)
    low, high = interval(_times_average(drawn), _times_average(whole))
    rank_low, rank_high = _rank_interval(drawn, whole)
    return Resampled(
        float((drawn.argmax(1) == order(scores[None], rank_by)[0, 0]).double().mean()),
        low,
        high,
        rank_low,
        rank_high,
        {found.key: _group_interval(found, drawn, whole) for found in groups},
    )


def interval(drawn: Tensor, whole: Tensor, level: float = LEVEL) -> tuple[Tensor, Tensor]:
    """Bias-corrected percentiles (Efron 1981) of resampled values (R, N) around ``whole`` (N,).

    Squares are larger in every resample, by the spread itself; the correction takes the percentiles from
    where the value lies among its resamples. Where it lies outside all of them the interval is stretched to
    hold it.
    """
    R = len(drawn)
    below = ((drawn < whole).double().mean(0) + 0.5 * (drawn == whole).double().mean(0)).clamp(
        1 / R, 1 - 1 / R
    )
    shift = 2 * torch.special.ndtri(below)
    reach = float(torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64)))
    ordered = drawn.sort(0).values
    ends = []
    for sign in (-1, 1):
        place = (torch.special.ndtr(shift + sign * reach) * (R - 1)).round().long()
        ends.append(ordered.gather(0, place[None])[0])
    return torch.minimum(ends[0], whole), torch.maximum(ends[1], whole)


def null_evidence(left_out: Tensor, rank_by: str, groups: Groups | None = None) -> Tensor:
    """The evidence of each track asked as a clip, from scores (N, N) that are NaN where left out."""
    seen = ~left_out.isnan()
    enough = seen.sum(1) >= 2
    values = torch.where(seen, left_out, 0.0)
    return _evidence(values, seen, rank_by, groups).amax(1)[enough]


def standouts(
    scores: Tensor, null: Tensor, rank_by: str, groups: Groups | None = None, alpha: float = ALPHA
) -> list[Standout]:
    """Evidence, p-value and verdict of each clip, from scores (Q, N) and the null's evidence (M,).

    Of single tracks, or of ``groups``, as the null is.
    """
    found, places = _evidence(scores, torch.ones_like(scores, dtype=torch.bool), rank_by, groups).max(1)
    resolution = 1 / (1 + len(null))
    results = []
    for evidence, place in zip(found.tolist(), places.tolist(), strict=True):
        p_value = (1 + int((null >= evidence).sum())) / (1 + len(null))
        verdict = TOO_FEW if resolution > alpha else STANDS_OUT if p_value <= alpha else NOTHING
        results.append(Standout(evidence, p_value, resolution, verdict, place))
    return results


def _evidence(scores: Tensor, seen: Tensor, rank_by: str, groups: Groups | None) -> Tensor:
    """The evidence for each track (Q, N) or group (Q, G); -inf where none of it is seen.

    Of a track its score, of any sign for squares, over the root mean square of those seen. Of a group what
    it has of all ranked values beyond its share of the tracks, over the root of its size.
    """
    tiny = torch.finfo(scores.dtype).tiny
    if groups is None:
        sized = scores if rank_by == "score" else scores.abs()
        spread = ((scores**2 * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True)).sqrt()
        relative = torch.where(spread > 0, sized / spread.clamp(min=tiny), 0.0)
        return torch.where(seen, relative, -torch.inf)
    values = torch.where(seen, ranked_values(scores, rank_by), 0.0)
    size = groups.sums(seen.to(values.dtype))
    whole = values.abs().sum(1, keepdim=True).clamp(min=tiny)
    beyond = groups.sums(values) / whole - size / size.sum(1, keepdim=True)
    return torch.where(size > 0, beyond / size.clamp(min=1).sqrt(), -torch.inf)


def _counts(rows: int, size: int, draws: torch.Generator) -> Tensor:
    """How often each of ``size`` things is drawn in ``size`` draws with replacement, (rows, size)."""
    chosen = torch.randint(size, (rows, size), generator=draws)
    return torch.zeros(rows, size, dtype=torch.float64).scatter_add_(
        1, chosen, torch.ones(rows, size, dtype=torch.float64)
    )


def _times_average(values: Tensor) -> Tensor:
    return values / values.abs().mean(-1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)


def _rank_interval(drawn: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
    """The middle of the ranks (from 1) that resamples give, stretched to hold the rank itself."""
    ranks, own = (
        values.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1) + 1 for values in (drawn, whole)
    )
    ordered = ranks.sort(0).values
    tail = int((1 - LEVEL) / 2 * (len(drawn) - 1))
    return torch.minimum(ordered[tail], own), torch.maximum(ordered[-1 - tail], own)


def _group_interval(groups: Groups, drawn: Tensor, whole: Tensor) -> GroupInterval:
    low, high = interval(groups.times_average(drawn), groups.times_average(whole))
    return GroupInterval(low, high, *_rank_interval(groups.sums(drawn), groups.sums(whole)))
