"""Rank correlation over subsets, and how sure it is.

Shapes: S subsets, Q queries. A bootstrap draws subsets and queries again, both with replacement, since both are
samples; all methods are judged on the same draws, so that their difference has an interval of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stable_audio_tools.runtime.seeds import generator

LEVEL = 0.95


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


def spearman(predicted: Tensor, measured: Tensor, weights: Tensor | None = None) -> Tensor:
    """Spearman's rank correlation down the columns of two (S, Q) arrays: (Q,) float64.

    ``weights`` (S,) counts how often each row was drawn. Ties get the mean of their ranks; a column without
    any differences correlates with nothing and gives 0.
    """
    weights = torch.ones(len(predicted)) if weights is None else weights
    return _correlation(_ranks(predicted, weights), _ranks(measured, weights), weights.double())


def _correlation(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    share = (weights / weights.sum())[:, None]
    first = first - (share * first).sum(0)
    second = second - (share * second).sum(0)
    spread = ((share * first**2).sum(0) * (share * second**2).sum(0)).sqrt()
    return torch.where(spread > 1e-12, (share * first * second).sum(0) / spread.clamp(min=1e-12), 0.0)


def _ranks(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted ranks of each column, ties averaged, float64."""
    values, order = values.double().sort(dim=0, stable=True)
    counts = weights.double()[order]
    ends = counts.cumsum(0)
    # A run of equal values spans from its first start to its last end.
    new = torch.ones_like(values, dtype=torch.bool)
    new[1:] = values[1:] != values[:-1]
    last = torch.ones_like(new)
    last[:-1] = new[1:]
    start = torch.where(new, ends - counts, 0.0).cummax(0).values
    end = torch.where(last, ends, torch.inf).flip(0).cummin(0).values.flip(0)
    sorted_ranks = (start + end + 1) / 2
    return torch.empty_like(sorted_ranks).scatter_(0, order, sorted_ranks)


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
        subsets, queries = measured.shape
        draw = generator("proof-bootstrap", seed)
        samples: dict[str, list[Tensor]] = {name: [] for name in predictions}
        for _ in range(draws):
            rows = torch.randint(subsets, (subsets,), generator=draw)
            columns = torch.randint(queries, (queries,), generator=draw)
            weights = torch.bincount(rows, minlength=subsets)
            share = torch.bincount(columns, minlength=queries).double() / queries
            ranks = _ranks(measured, weights)
            for name, predicted in predictions.items():
                each = _correlation(_ranks(predicted, weights), ranks, weights.double())
                samples[name].append((each * share).sum())
        self.samples = {name: torch.stack(values) for name, values in samples.items()}

    def interval(self, method: str) -> Interval:
        """Mean correlation of a method."""
        return percentile_interval(self.estimates[method], self.samples[method])

    def difference(self, method: str, other: str) -> Interval:
        """How much higher ``method`` is than ``other``, paired."""
        return percentile_interval(
            self.estimates[method] - self.estimates[other], self.samples[method] - self.samples[other]
        )


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
