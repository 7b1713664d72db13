"""Rank correlation over subsets, and how sure it is.

Shapes: S subsets, Q queries, D draws. A bootstrap draws subsets and queries again, both with replacement,
since both are samples; all methods are judged on the same draws, so that their difference has an interval of
its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stable_audio_tools.runtime.seeds import generator

LEVEL = 0.95
DRAWS_AT_ONCE = 50


@dataclass(frozen=True)
class Interval:
    """An estimate and the bounds that hold it with 95 % confidence."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Three numbers, to five digits."""
        return {"value": round(self.value, 5), "low": round(self.low, 5), "high": round(self.high, 5)}

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


class RankedColumns:
    """Columns of an (S, Q) array, sorted once, so that ranks under many drawn weights cost no sorting."""

    def __init__(self, values: Tensor) -> None:
        self.order = values.double().argsort(dim=0, stable=True)
        in_order = values.double().gather(0, self.order)
        self.opens = torch.ones_like(in_order, dtype=torch.bool)
        self.opens[1:] = in_order[1:] != in_order[:-1]
        self.has_ties = not bool(self.opens.all())

    def ranks(self, weights: Tensor) -> Tensor:
        """Ranks (D, S, Q) under how often each row was drawn, (D, S); ties get the mean of theirs."""
        counts = weights.double()[:, self.order]
        ends = counts.cumsum(1)
        starts = ends - counts
        if self.has_ties:  # a run of equal values spans from its first start to its last end
            closes = torch.ones_like(self.opens)
            closes[:-1] = self.opens[1:]
            starts = torch.where(self.opens, starts, 0.0).cummax(1).values
            ends = torch.where(closes, ends, torch.inf).flip(1).cummin(1).values.flip(1)
        index = self.order.expand_as(counts)
        return torch.empty_like(counts).scatter_(1, index, (starts + ends + 1) / 2)


def spearman(predicted: Tensor, measured: Tensor) -> Tensor:
    """Spearman's rank correlation down the columns of two (S, Q) arrays: (Q,) float64.

    A column without any differences correlates with nothing and gives 0.
    """
    once = torch.ones(1, len(predicted))
    return _correlation(RankedColumns(predicted).ranks(once), RankedColumns(measured).ranks(once), once)[0]


def _correlation(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """Weighted correlation over S of two (D, S, Q): (D, Q)."""
    share = (weights.double() / weights.double().sum(1, keepdim=True))[..., None]
    first = first - (share * first).sum(1, keepdim=True)
    second = second - (share * second).sum(1, keepdim=True)
    spread = ((share * first**2).sum(1) * (share * second**2).sum(1)).sqrt()
    return torch.where(spread > 1e-12, (share * first * second).sum(1) / spread.clamp(min=1e-12), 0.0)


class TwoWayBootstrap:
    """Mean rank correlation of several predictions with one measured outcome, on shared draws.

    Args:
        predictions: by method, (S, Q): what each says of every subset and query.
        measured: (S, Q), larger is better as in ``predictions``.
        draws: how many times subsets and queries are drawn again.
    """

    def __init__(
        self, predictions: Mapping[str, Tensor], measured: Tensor, draws: int = 1000, seed: int = 0
    ) -> None:
        self.estimates = {name: spearman(p, measured).mean().item() for name, p in predictions.items()}
        weights, shares = (
            _drawn_counts(n, draws, seed, n_is) for n, n_is in zip(measured.shape, "SQ", strict=True)
        )
        shares = shares.double() / measured.shape[1]
        ranked = {name: RankedColumns(p) for name, p in predictions.items()}
        outcome = RankedColumns(measured)
        samples: dict[str, list[Tensor]] = {name: [] for name in predictions}
        for part, share in zip(weights.split(DRAWS_AT_ONCE), shares.split(DRAWS_AT_ONCE), strict=True):
            target = outcome.ranks(part)
            for name, columns in ranked.items():
                each = _correlation(columns.ranks(part), target, part)
                samples[name].append((each * share).sum(1))
        self.samples = {name: torch.cat(values) for name, values in samples.items()}

    def interval(self, method: str) -> Interval:
        """Mean correlation of a method."""
        return percentile_interval(self.estimates[method], self.samples[method])

    def difference(self, method: str, other: str) -> Interval:
        """How much higher ``method`` is than ``other``, paired."""
        return percentile_interval(
            self.estimates[method] - self.estimates[other], self.samples[method] - self.samples[other]
        )


def _drawn_counts(count: int, draws: int, seed: int, name: str) -> Tensor:
    """How often each of ``count`` things is drawn in each of ``draws`` samples, (draws, count)."""
    rows = torch.randint(count, (draws, count), generator=generator("proof-bootstrap", seed, name))
    return torch.zeros(draws, count, dtype=torch.long).scatter_add_(1, rows, torch.ones_like(rows))


def percentile_interval(estimate: float, samples: Tensor) -> Interval:
    """The middle 95 % of bootstrap values around an estimate (Efron 1979)."""
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = torch.quantile(samples.double(), tails).tolist()
    return Interval(estimate, low, high)


def mean_interval(values: Tensor, draws: int = 2000, seed: int = 0) -> Interval:
    """The mean of independent values (n,), drawn again with replacement."""
    rows = torch.randint(len(values), (draws, len(values)), generator=generator("proof-mean", seed))
    return percentile_interval(values.double().mean().item(), values.double()[rows].mean(1))


def ratio_interval(above: Tensor, below: Tensor, draws: int = 2000, seed: int = 0) -> Interval:
    """The ratio of the means of paired values (n,), pairs drawn again with replacement."""
    rows = torch.randint(len(above), (draws, len(above)), generator=generator("proof-ratio", seed))
    above, below = above.double(), below.double()
    return percentile_interval(
        (above.mean() / below.mean()).item(), above[rows].mean(1) / below[rows].mean(1)
    )
