"""From features to scores: how much each training track speaks for each query.

Attribution methods read two finished stores, N tracks and Q queries, and give a score matrix (Q, N).
D features are far more than N tracks, so the regularised inverse is taken in the space of samples:

    scores = phi_q Phi^T (Phi Phi^T + lambda I)^-1

(TRAK, Park et al. 2023, by the push-through identity),
with one float64 eigendecomposition of the N x N kernel Phi Phi^T.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.attribution.store import FeatureStore
from stable_audio_tools.errors import StoreError, UsageError
from stable_audio_tools.runtime.seeds import generator

COLUMNS_AT_ONCE = 4096
"""Feature columns held in float64 at a time: 160 MB for 5,000 tracks."""


def _flag(default: Any, text: str) -> Any:
    """A field that is also a command-line flag, with the help it shows there."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class ScoreSettings:
    """How features become scores.

    ``lambda_scale`` is relative to the kernel's mean eigenvalue, see :func:`mean_eigenvalue`, so it means the
    same for any model, measurement and number of tracks. Its default of 0.1 lets a track that resembles no
    other keep 1 / (1 + 0.1), nine tenths, of its score on itself, and damps the directions with less than a
    tenth of the average energy, where projection noise lives. It was set from that argument and not from any
    retraining. ``lambda_reg`` is absolute and, where given, used instead.

    Raises:
        UsageError: a value is out of range; the message names the setting.
    """

    method: str = _flag("dtrak", "dtrak, trak, gradcos, graddot, or a baseline: latent-cosine, random.")
    lambda_scale: float = _flag(0.1, "Regularisation, relative to the kernel's mean eigenvalue.")
    lambda_reg: float | None = _flag(None, "Absolute regularisation, in place of lambda_scale.")
    used_dim: int | None = _flag(None, "Dense features: only the first columns, rescaled.")
    seed: int = _flag(0, "Seed of the random baseline.")

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"unknown attribution method {self.method!r}; known: {', '.join(METHODS)}")
        if self.lambda_scale < 0 or (self.lambda_reg is not None and self.lambda_reg < 0):
            raise UsageError(
                f"lambda cannot be negative, found lambda_scale {self.lambda_scale}"
                f" and lambda_reg {self.lambda_reg}"
            )
        if self.used_dim is not None and self.used_dim < 1:
            raise UsageError(f"used_dim must be at least 1, found {self.used_dim}")


def regularised_scores(
    kernel: Tensor, cross: Tensor, *, lambda_scale: float = 0.1, lambda_reg: float | None = None
) -> Tensor:
    """``cross (kernel + lambda I)^-1`` for ``kernel`` (N, N) of the tracks and ``cross`` (Q, N).

    With lambda 0 the directions without energy are left out (the pseudo-inverse).
    """
    values, vectors = torch.linalg.eigh(kernel.double())
    values = values.clamp(min=0)
    damped = values + (lambda_scale * mean_eigenvalue(values) if lambda_reg is None else lambda_reg)
    floor = values.max() * torch.finfo(torch.float64).eps * len(values)
    inverse = torch.where(damped > floor, 1 / damped.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    return ((cross.double() @ vectors) * inverse) @ vectors.T


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
    settings = train.meta["stamp"].get("settings", {})
    if settings.get("mode") != "dense" or not settings.get("proj_dim"):
        raise UsageError(
            f"used_dim belongs to dense features; {train.folder} holds {settings.get('mode')} ones"
        )
    if used_dim > train.dim:
        raise UsageError(f"used_dim is {used_dim}, but {train.folder} has {train.dim} columns")
    return used_dim


Method = Callable[[FeatureStore, FeatureStore, ScoreSettings], Tensor]


def dtrak(train: FeatureStore, queries: FeatureStore, settings: ScoreSettings) -> Tensor:
    """D-TRAK (Zheng et al. 2024): the TRAK estimator on the gradient of any measurement."""
    kernel, cross, _ = kernels(train, queries, settings.used_dim)
    return regularised_scores(
        kernel, cross, lambda_scale=settings.lambda_scale, lambda_reg=settings.lambda_reg
    )


def trak(train: FeatureStore, queries: FeatureStore, settings: ScoreSettings) -> Tensor:
    """TRAK for diffusion models (Park et al. 2023): the same estimator, on the gradient of the loss only."""
    measurement = train.meta["stamp"].get("settings", {}).get("f")
    if measurement != "loss":
        raise UsageError(
            f"method 'trak' needs features of f 'loss'; {train.folder} has {measurement!r}, use 'dtrak'"
        )
    return dtrak(train, queries, settings)


def gradient_dot(train: FeatureStore, queries: FeatureStore, settings: ScoreSettings) -> Tensor:
    """Inner product of gradients (Charpiat et al. 2019)."""
    return kernels(train, queries, settings.used_dim)[1]


def gradient_cosine(train: FeatureStore, queries: FeatureStore, settings: ScoreSettings) -> Tensor:
    """Cosine of gradients (Charpiat et al. 2019); 0 where a gradient is zero."""
    kernel, cross, own = kernels(train, queries, settings.used_dim)
    lengths = own.sqrt()[:, None] * kernel.diagonal().sqrt()[None, :]
    return torch.where(lengths > 0, cross / lengths.clamp(min=torch.finfo(torch.float64).tiny), 0.0)


def latent_cosine(train: FeatureStore, queries: FeatureStore, settings: ScoreSettings) -> Tensor:
    """Baseline without gradients: cosine of the latents' mean and deviation over time, standardised."""
    tracks, clips = train.latents(), queries.latents()
    centre = tracks.mean(0)
    spread = tracks.std(0, unbiased=False).clamp(min=1e-8)
    tracks, clips = ((rows - centre) / spread for rows in (tracks, clips))
    return torch.nn.functional.normalize(clips) @ torch.nn.functional.normalize(tracks).T


def random_scores(train: FeatureStore, queries: FeatureStore, settings: ScoreSettings) -> Tensor:
    """Baseline that knows nothing: a draw per query and track."""
    draws = [
        torch.randn(
            len(train), generator=generator("attribution-random", settings.seed, query), dtype=torch.float64
        )
        for query in queries.sample_ids
    ]
    return torch.stack(draws)


METHODS: dict[str, Method] = {
    "dtrak": dtrak,
    "trak": trak,
    "gradcos": gradient_cosine,
    "graddot": gradient_dot,
    "latent-cosine": latent_cosine,
    "random": random_scores,
}


def score(train: FeatureStore, queries: FeatureStore, settings: ScoreSettings | None = None) -> Tensor:
    """Scores (Q, N) in float64 of every track for every query.

    Raises:
        StoreError: the stores were made by different models or settings, or the scores are not finite.
        UsageError: the method does not fit the features.
    """
    settings = settings or ScoreSettings()
    train.require_comparable(queries)
    scores = METHODS[settings.method](train, queries, settings)
    if not torch.isfinite(scores).all():
        raise StoreError(
            f"{train.folder}: scores are not finite; raise lambda_scale, or extract the features again"
        )
    return scores
