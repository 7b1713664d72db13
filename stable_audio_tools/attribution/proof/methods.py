"""From kernels to scores, for every way of scoring that is put to the test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stable_audio_tools.attribution.proof.kernels import Kernels
from stable_audio_tools.attribution.scoring.scores import DEFAULT_LAMBDA, damped_inverse, regularisation
from stable_audio_tools.errors import UsageError

ESTIMATORS = ("dtrak", "gradcos", "graddot")


@dataclass(frozen=True)
class Method:
    """One way from kernels to scores.

    Attributes:
        name: what tables call it.
        plans: names of feature plans; scores over several are averaged, each query's to the same spread.
        beside: instead, rows of the plans are put beside each other, as a store of several measurements does.
        estimator: ``dtrak`` (also that of TRAK), ``gradcos`` or ``graddot``.
        square: whether scores are squared at the end, for measurements whose sign means nothing.
        lambda_scale: regularisation of ``dtrak``, relative to the mean eigenvalue.
        parts: instead of plans, other methods whose scores are averaged in the same way.
    """

    name: str
    plans: tuple[str, ...] = ()
    estimator: str = "dtrak"
    square: bool = False
    lambda_scale: float = DEFAULT_LAMBDA
    parts: tuple[Method, ...] = ()
    beside: bool = False

    def __post_init__(self) -> None:
        if self.estimator not in ESTIMATORS:
            raise UsageError(f"unknown estimator {self.estimator!r}; known: {', '.join(ESTIMATORS)}")

    def needs(self) -> set[str]:
        """Names of all plans it reads."""
        return set(self.plans).union(*(part.needs() for part in self.parts))

    def with_lambda(self, value: float) -> Method:
        """The same with another regularisation, everywhere in it."""
        return replace(self, lambda_scale=value, parts=tuple(part.with_lambda(value) for part in self.parts))


class Scorer:
    """Scores of methods on one set of kernels; each kernel is decomposed once."""

    def __init__(self, kernels: Mapping[str, Kernels]) -> None:
        self.kernels = kernels
        self._spectra: dict[tuple[str, ...], tuple[Tensor, Tensor, Tensor]] = {}

    def can(self, method: Method) -> bool:
        """Whether all its plans are there."""
        return method.needs() <= set(self.kernels)

    def scores(self, method: Method) -> Tensor:
        """Scores (Q, N), float64."""
        rows = [method.plans] if method.beside else [(plan,) for plan in method.plans]
        singles = [self._single(plans, method) for plans in rows]
        singles += [self.scores(part) for part in method.parts]
        found = singles[0] if len(singles) == 1 else sum(map(_even, singles), torch.zeros(()))
        return found**2 if method.square else found

    def beside(self, plans: tuple[str, ...]) -> Kernels:
        """The kernels of rows of all ``plans`` beside each other."""
        return Kernels.beside([self.kernels[plan] for plan in plans])

    def _single(self, plans: tuple[str, ...], method: Method) -> Tensor:
        if method.estimator == "graddot":
            return self.beside(plans).cross
        if method.estimator == "gradcos":
            held = self.beside(plans)
            lengths = held.own.clamp(min=0).sqrt()[:, None] * held.tracks.diagonal().clamp(min=0).sqrt()[None]
            return held.cross / lengths.clamp(min=torch.finfo(torch.float64).tiny)
        if plans not in self._spectra:
            held = self.beside(plans)
            values, vectors = torch.linalg.eigh(held.tracks)
            self._spectra[plans] = values, vectors, held.cross @ vectors
        values, vectors, projected = self._spectra[plans]
        inverse = damped_inverse(values, regularisation(values, method.lambda_scale))
        return (projected * inverse) @ vectors.T


def _even(scores: Tensor) -> Tensor:
    """Scores with a spread of 1 for each query."""
    return scores / scores.std(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
