"""From features to scores: how much each training track speaks for each query.

Attribution methods read two finished stores, N tracks and Q queries, and give a score matrix (Q, N).
D features are far more than N tracks, so the regularised inverse is taken in the space of samples:

    scores = phi_q Phi^T (Phi Phi^T + lambda I)^-1

(TRAK, Park et al. 2023, by the push-through identity),
with one float64 eigendecomposition of the N x N kernel Phi Phi^T.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.attribution.features.store import FeatureStore
from stable_audio_tools.attribution.gradients.measurements import measurement_names
from stable_audio_tools.attribution.scoring.balance import balanced
from stable_audio_tools.attribution.scoring.baselines import (
    clap_cosine,
    latent_cosine,
    loudness_likeness,
    random_scores,
)
from stable_audio_tools.attribution.scoring.kernels import (
    COLUMNS_AT_ONCE,
    EXACT_ROWS,
    Products,
    cross_products,
    decompose,
    products,
    sketched_scores,
)
from stable_audio_tools.errors import StoreError, UsageError
from stable_audio_tools.evaluation.clap import DEFAULT_CLAP

DEFAULT_LAMBDA = 3.0
"""Relative to the mean eigenvalue: of 0.001 to 100, what foretells retrained models within half a point of
the best on the tuning halves of ``benchmarks/lds.py``, for the default measurements and for the output norm
alone; see docs/results.md. From 1 to 10 it matters little."""
SMALL_WORK = 2e11
SMALL_ROWS = 1000
"""Products and tracks up to which all is done in float64 and nothing is kept: a few seconds on two cores."""


def _flag(default: Any, text: str) -> Any:
    """A field that is also a command-line flag, with the help it shows there."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class ScoreSettings:
    """How features become scores.

    ``lambda_scale`` is relative to the kernel's mean eigenvalue, see :func:`mean_eigenvalue`, so it means the
    same for any model, measurement and number of tracks. At 1 a track that resembles no other would keep half
    of its score on itself, at the default of 3 a quarter; directions of less than the average energy, where
    projection noise lives, are damped. ``lambda_reg`` is absolute and, where given, used instead.

    Raises:
        UsageError: a value is out of range; the message names the setting.
    """

    method: str = _flag(
        "dtrak", "dtrak, trak, gradcos, graddot; baselines: latent-cosine, clap, loudness, random."
    )
    lambda_scale: float = _flag(DEFAULT_LAMBDA, "Regularisation, relative to the kernel's mean eigenvalue.")
    lambda_reg: float | None = _flag(None, "Absolute regularisation, in place of lambda_scale.")
    used_dim: int | None = _flag(None, "Dense features: only the first columns, rescaled.")
    seed: int = _flag(0, "Seed of the random baseline.")
    sketch_dim: int = _flag(8192, "Beyond 20,000 tracks: rows are sketched to this many numbers.")
    clap_model: str = _flag(DEFAULT_CLAP, "Of the baseline clap: a CLAP's name or folder.")

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"unknown attribution method {self.method!r}; known: {', '.join(METHODS)}")
        if self.lambda_scale < 0 or (self.lambda_reg is not None and self.lambda_reg < 0):
            raise UsageError(
                f"lambda cannot be negative, found lambda_scale {self.lambda_scale}"
                f" and lambda_reg {self.lambda_reg}"
            )
        if self.sketch_dim < 1:
            raise UsageError(f"sketch_dim must be at least 1, found {self.sketch_dim}")
        if self.used_dim is not None and self.used_dim < 1:
            raise UsageError(f"used_dim must be at least 1, found {self.used_dim}")


def regularised_scores(
    kernel: Tensor, cross: Tensor, *, lambda_scale: float = DEFAULT_LAMBDA, lambda_reg: float | None = None
) -> Tensor:
    """``cross (kernel + lambda I)^-1`` for ``kernel`` (N, N) of the tracks and ``cross`` (Q, N).

    With lambda 0 the directions without energy are left out (the pseudo-inverse).
    """
    values, vectors = torch.linalg.eigh(kernel.double())
    return _damped(values, vectors, cross, lambda_scale, lambda_reg)


def _damped(
    values: Tensor, vectors: Tensor, cross: Tensor, lambda_scale: float, lambda_reg: float | None
) -> Tensor:
    inverse = damped_inverse(values, regularisation(values, lambda_scale, lambda_reg))
    return ((cross.double() @ vectors) * inverse) @ vectors.T


def regularisation(values: Tensor, lambda_scale: float, lambda_reg: float | None = None) -> float:
    """The absolute lambda of a kernel with eigenvalues (N,): ``lambda_reg`` where it is given."""
    return float(lambda_scale * mean_eigenvalue(values.clamp(min=0))) if lambda_reg is None else lambda_reg


def damped_inverse(values: Tensor, lambda_reg: float) -> Tensor:
    """``1 / (values + lambda)`` of a kernel's eigenvalues (N,), and 0 in directions without energy."""
    values = values.clamp(min=0)
    damped, floor = values + lambda_reg, values.max() * torch.finfo(torch.float64).eps * len(values)
    return torch.where(damped > floor, 1 / damped.clamp(min=torch.finfo(torch.float64).tiny), 0.0)


def mean_eigenvalue(values: Tensor) -> Tensor:
    """The mean of a kernel's eigenvalues (N,) in ascending order, the largest aside.

    The largest belongs to what all tracks have in common. With noise shared by all of them it can be a
    thousand times the rest (cosines of 0.999), and a lambda measured against it would leave nothing of what
    tells the tracks apart: a copy no longer found its original.
    """
    return values[:-1].mean() if len(values) > 1 else values.mean()


def kernels(
    train: FeatureStore, queries: FeatureStore, used_dim: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Inner products: tracks with tracks (N, N), queries with tracks (Q, N), queries with themselves (Q,).

    Features are read a block of columns at a time, so memory is N x N and not N x D.
    """
    dim = _used_columns(train, used_dim)
    kernel = torch.zeros(len(train), len(train), dtype=torch.float64)
    cross = torch.zeros(len(queries), len(train), dtype=torch.float64)
    own = torch.zeros(len(queries), dtype=torch.float64)
    for start in range(0, dim, COLUMNS_AT_ONCE):
        columns = slice(start, min(start + COLUMNS_AT_ONCE, dim))
        tracks, clips = train.features(columns), queries.features(columns)
        kernel.addmm_(tracks, tracks.T)
        cross.addmm_(clips, tracks.T)
        own += (clips**2).sum(1)
    scale = train.dim / dim
    return kernel * scale, cross * scale, own * scale


def _used_columns(train: FeatureStore, used_dim: int | None) -> int:
    if used_dim is None:
        return train.dim
    if used_dim > train.dim:
        raise UsageError(f"used_dim is {used_dim}, but {train.folder} has {train.dim} columns")
    return used_dim


Method = Callable[[FeatureStore, FeatureStore, ScoreSettings], Tensor]


def dtrak(train: FeatureStore, queries: FeatureStore, settings: ScoreSettings) -> Tensor:
    """D-TRAK (Zheng et al. 2024): the TRAK estimator on the gradient of any measurement."""
    dim, scale, absolute = (
        _used_columns(train, settings.used_dim),
        settings.lambda_scale,
        settings.lambda_reg,
    )
    train, queries = balanced(train, queries)
    if _is_small(train, queries, dim):
        kernel, cross, _ = kernels(train, queries, settings.used_dim)
        return regularised_scores(kernel, cross, lambda_scale=scale, lambda_reg=absolute)
    if (
        absolute is not None
    ):  # it is meant for products over all columns; the first ones are this much shorter
        absolute *= dim / train.dim
    device = _device()
    if len(train) > EXACT_ROWS:
        size = min(settings.sketch_dim, dim)
        return sketched_scores(
            train, queries, dim, sketch_dim=size, lambda_scale=scale, lambda_reg=absolute, device=device
        )
    found = decompose(train, dim, device)
    cross = cross_products(train, queries, found, device)
    return _damped(found.values, found.vectors, cross, scale, absolute)


def _is_small(train: FeatureStore, queries: FeatureStore, dim: int) -> bool:
    return len(train) <= SMALL_ROWS and len(train) * (len(train) + len(queries)) * dim <= SMALL_WORK


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _products(train: FeatureStore, queries: FeatureStore, used_dim: int | None) -> Products:
    """Inner products without those of tracks with tracks."""
    dim = _used_columns(train, used_dim)
    train, queries = balanced(train, queries)
    if _is_small(train, queries, dim):
        kernel, cross, own = kernels(train, queries, used_dim)
        return Products(None, kernel.diagonal(), cross, own)
    found, scale = products(train, queries, dim, device=_device()), train.dim / dim
    return Products(None, found.norms.cpu() * scale, found.cross.cpu() * scale, found.own.cpu() * scale)


def trak(train: FeatureStore, queries: FeatureStore, settings: ScoreSettings) -> Tensor:
    """TRAK for diffusion models (Park et al. 2023): the same estimator, on the gradient of the loss only."""
    return dtrak(train, queries, settings)


def gradient_dot(train: FeatureStore, queries: FeatureStore, settings: ScoreSettings) -> Tensor:
    """Inner product of gradients (Charpiat et al. 2019)."""
    return _products(train, queries, settings.used_dim).cross


def gradient_cosine(train: FeatureStore, queries: FeatureStore, settings: ScoreSettings) -> Tensor:
    """Cosine of gradients (Charpiat et al. 2019); 0 where a gradient is zero."""
    found = _products(train, queries, settings.used_dim)
    lengths = found.own.clamp(min=0).sqrt()[:, None] * found.norms.clamp(min=0).sqrt()[None, :]
    return torch.where(lengths > 0, found.cross / lengths.clamp(min=torch.finfo(torch.float64).tiny), 0.0)


METHODS: dict[str, Method] = {
    "dtrak": dtrak,
    "trak": trak,
    "gradcos": gradient_cosine,
    "graddot": gradient_dot,
    "latent-cosine": latent_cosine,
    "clap": clap_cosine,
    "loudness": loudness_likeness,
    "random": random_scores,
}
"""By name. A new one is a function of two stores in a file of its own, and a line here."""


def require_fitting(settings: ScoreSettings, features: Mapping[str, Any], where: str) -> None:
    """Check that features of these settings can be scored so; ``where`` says in a message what holds them.

    Raises:
        UsageError: they cannot.
    """
    f = features.get("f", "loss")
    if settings.method == "trak" and f != "loss":
        raise UsageError(f"method 'trak' needs features of f 'loss'; {where} has {f!r}, use 'dtrak'")
    if settings.used_dim is None:
        return
    if len(measurement_names(f)) > 1:
        raise UsageError(f"used_dim is for features of one measurement (--f); {where} has {f!r}")
    if features.get("mode") != "dense" or not features.get("proj_dim"):
        raise UsageError(f"used_dim belongs to dense features; {where} has {features.get('mode')} ones")


def score(train: FeatureStore, queries: FeatureStore, settings: ScoreSettings | None = None) -> Tensor:
    """Scores (Q, N) in float64 of every track for every query.

    Raises:
        StoreError: the stores were made by different models or settings, or the scores are not finite.
        UsageError: the method does not fit the features.
    """
    settings = settings or ScoreSettings()
    train.require_comparable(queries)
    require_fitting(settings, train.meta["stamp"].get("settings", {}), str(train.folder))
    scores = METHODS[settings.method](train, queries, settings)
    if not torch.isfinite(scores).all():
        raise StoreError(
            f"{train.folder}: scores are not finite; raise lambda_scale, or extract the features again"
        )
    return scores


def score_many(
    pairs: Sequence[tuple[FeatureStore, FeatureStore]], settings: ScoreSettings | None = None
) -> Tensor:
    """The mean of the scores of several pairs of stores: other checkpoints, seeds of noise or projections.

    Scores of dtrak, trak and cosines do not change with the length of features, so none outweighs another;
    those of graddot are divided by the mean squared length of each store's tracks before.

    Raises:
        StoreError: the stores hold other tracks or clips, or see :func:`score`.
    """
    settings = settings or ScoreSettings()
    first = pairs[0]
    total: Tensor | None = None
    for pair in pairs:
        for store, expected in zip(pair, first, strict=True):
            if store.sample_ids != expected.sample_ids:
                raise StoreError(
                    f"{store.folder}: holds other rows than {expected.folder}, so their scores have no mean;"
                    " extract the features of both from the same dataset"
                )
        scores = score(*pair, settings)
        if settings.method == "graddot" and len(pairs) > 1:
            scores = scores / _products(*pair, settings.used_dim).norms.mean()
        total = scores if total is None else total + scores
    assert total is not None
    return total / len(pairs)
