"""The linear datamodeling score: does the sum of a subset's scores foretell what a model of it can do?

Park et al. 2023, section 2. For each query, models trained on random halves of the tracks are ranked by their
loss on it; the score is Spearman's correlation of that ranking with the one by the sum of the scores of the
tracks each has seen, averaged over queries. A track that helps lowers the loss, so the outcome is minus the
loss.

Shapes: S subsets, Q queries, N tracks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from stable_audio_tools.attribution.proof.methods import Method, Scorer
from stable_audio_tools.attribution.proof.statistics import (
    Interval,
    TwoWayBootstrap,
    percentile_interval,
    spearman,
)
from stable_audio_tools.attribution.proof.subsets import halves

LAMBDAS = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


@dataclass(frozen=True)
class Outcomes:
    """What retraining found.

    Attributes:
        subsets: (S, N), true where a subset holds a track.
        measured: (seeds, S, Q), minus the loss.
    """

    subsets: Tensor
    measured: Tensor

    @property
    def mean(self) -> Tensor:
        """Over the seeds, (S, Q)."""
        return self.measured.mean(0)

    def part(self, rows: Tensor, queries: Tensor) -> Outcomes:
        """Some subsets and queries."""
        return Outcomes(self.subsets[rows], self.measured[:, rows][:, :, queries])


def predictions(subsets: Tensor, scores: Tensor) -> Tensor:
    """The sum of scores (Q, N) over each subset (S, N): (S, Q)."""
    return subsets.double() @ scores.double().T


def lds(outcomes: Outcomes, scores: Tensor) -> float:
    """The linear datamodeling score of ``scores`` (Q, N)."""
    return spearman(predictions(outcomes.subsets, scores), outcomes.mean).mean().item()


@dataclass(frozen=True)
class Ceiling:
    """How well the outcome can be known at all.

    Attributes:
        retrained: correlation of one retraining with another that differs in its seed only.
        perfect: what a perfect estimate would reach against the mean of the seeds, by the formula of Spearman
            and Brown for the reliability of a mean, sqrt(n r / (1 + (n - 1) r)).
    """

    retrained: Interval
    perfect: Interval


def ceiling(outcomes: Outcomes, draws: int = 1000, seed: int = 0) -> Ceiling | None:
    """The ceiling from the first two seeds; None where there is one seed only."""
    count = len(outcomes.measured)
    if count < 2:
        return None
    between = TwoWayBootstrap({"first": outcomes.measured[0]}, outcomes.measured[1], draws, seed)
    samples = between.samples["first"].clamp(0, 1)
    value = max(0.0, between.estimates["first"])

    def perfect(r: Any) -> Any:
        return (count * r / (1 + (count - 1) * r)) ** 0.5

    return Ceiling(between.interval("first"), percentile_interval(perfect(value), perfect(samples)))


@dataclass(frozen=True)
class Split:
    """Subsets and queries for tuning, and the others, for reporting."""

    tune_subsets: Tensor
    report_subsets: Tensor
    tune_queries: Tensor
    report_queries: Tensor

    @classmethod
    def of(cls, subsets: int, queries: int, kind: str) -> Split:
        """Random halves of both."""
        return cls(*halves(subsets, "subsets"), *halves(queries, "queries", kind))


def tuned(
    method: Method, scorer: Scorer, outcomes: Outcomes, queries: Tensor, lambdas: Sequence[float] = LAMBDAS
) -> tuple[Method, float]:
    """``method`` with the lambda that does best on ``outcomes``, and how well; ``queries`` are its rows."""
    if method.estimator != "dtrak" and not method.parts:
        return method, lds(outcomes, scorer.scores(method)[queries])
    tried = [method.with_lambda(value) for value in lambdas]
    found = [lds(outcomes, scorer.scores(candidate)[queries]) for candidate in tried]
    best = max(range(len(tried)), key=found.__getitem__)
    return tried[best], found[best]


def lds_table(
    scores: Mapping[str, Tensor], outcomes: Outcomes, *, against: str | None = None, draws: int = 1000
) -> tuple[list[dict[str, Any]], TwoWayBootstrap]:
    """One row a method: its score with interval, as a fraction of the ceiling, and minus that of ``against``.

    ``scores`` are (Q, N) for the queries of ``outcomes``.
    """
    foretold = {name: predictions(outcomes.subsets, values) for name, values in scores.items()}
    bootstrap = TwoWayBootstrap(foretold, outcomes.mean, draws)
    top = ceiling(outcomes, draws)
    rows: list[dict[str, Any]] = []
    for name in scores:
        row: dict[str, Any] = {"method": name, "lds": bootstrap.interval(name).to_dict()}
        if top is not None and top.perfect.value > 0:
            row["of_ceiling"] = round(bootstrap.estimates[name] / top.perfect.value, 4)
        if against is not None and name != against:
            row["minus_baseline"] = bootstrap.difference(name, against).to_dict()
        rows.append(row)
    return sorted(rows, key=lambda row: -row["lds"]["value"]), bootstrap
