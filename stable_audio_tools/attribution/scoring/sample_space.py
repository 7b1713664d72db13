"""The estimator as a linear map, for questions beyond one score per clip and track.

With features phi of a query and Phi (N, D) of the tracks, scores are phi Phi^T A with A = (Phi Phi^T + lambda
I)^-1. They are linear in phi, so the score of a part of a query (one timestep, some columns, some seconds) is
that of a query of its own, and parts add up to the whole. By the push-through identity the score is also
phi P phi_n^T with P = (Phi^T Phi + lambda I)^-1, which is linear in the track, so it splits over the parts of
a track as well.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from stable_audio_tools.attribution.features.store import FeatureStore
from stable_audio_tools.attribution.scoring.balance import column_weights
from stable_audio_tools.attribution.scoring.kernels import kept_decomposition
from stable_audio_tools.attribution.scoring.scores import ScoreSettings, damped_inverse, regularisation

LINEAR_METHODS = ("dtrak", "trak")
"""Methods that are this map."""

COLUMNS_AT_ONCE = 4096
"""Feature columns held in float64 at a time: 160 MB for 5,000 tracks."""

UNIT = 16
"""Columns that stay together where columns are dealt to blocks."""

MOST_TRACKS = 20_000
"""Above it the (N, N) inverse, 3.2 GB in float64, is not made."""


class SampleSpace:
    """The tracks' side of the estimator, held fixed.

    Args:
        train: the tracks' features.
        rows: which of its rows count (a track that training rejected does not).
        settings: lambda and the columns in use.
        device: where the large products are taken; results are on the CPU.
    """

    def __init__(
        self,
        train: FeatureStore,
        rows: list[int],
        settings: ScoreSettings,
        device: torch.device | str = "cpu",
    ) -> None:
        self._weights = column_weights(train)
        self._train = train.weighted(self._weights)
        # float64 is missing on Apple's GPUs
        self._device = torch.device("cpu" if torch.device(device).type == "mps" else device)
        self._rows = torch.tensor(rows)
        self._dim = settings.used_dim or train.dim
        found = kept_decomposition(train, self._dim) if len(rows) == len(train) else None
        if found is None:
            values, vectors = torch.linalg.eigh(self._kernel())
        else:
            values, vectors = (found.values * self._scale).to(self._device), found.vectors.to(self._device)
        self.regularisation = regularisation(values, settings.lambda_scale, settings.lambda_reg)
        self.inverse = inverse_of(values, vectors, self.regularisation).cpu()
        """A, (N, N) float64."""

    def _kernel(self) -> Tensor:
        kernel = torch.zeros(len(self._rows), len(self._rows), dtype=torch.float64, device=self._device)
        for _, tracks in self._blocks():
            kernel.addmm_(tracks, tracks.T)
        return kernel * self._scale

    @property
    def _scale(self) -> float:
        return self._train.dim / self._dim

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, self._dim, COLUMNS_AT_ONCE):
            columns = slice(start, min(start + COLUMNS_AT_ONCE, self._dim))
            yield columns, self._train.features(columns)[self._rows].to(self._device)

    def cross(self, store: FeatureStore, blocks: int = 1, rows: slice = slice(None)) -> Tensor:
        """Inner products of ``rows`` of ``store`` (R of them) with the tracks, by block: (blocks, R, N).

        Columns go to blocks in turn, :data:`UNIT` at a time. Every block then holds some columns of every
        layer's projection, which are independent draws of the same thing, so blocks differ by those alone.
        """
        store = store.weighted(self._weights)
        count = len(range(*rows.indices(len(store))))
        products = torch.zeros(blocks, count, len(self._rows), dtype=torch.float64, device=self._device)
        for columns, tracks in self._blocks():
            parts = store.features(columns)[rows].to(self._device)
            block_of = torch.arange(columns.start, columns.stop) // UNIT % blocks
            for block in block_of.unique().tolist():
                mine = block_of == block
                products[block].addmm_(parts[:, mine], tracks[:, mine].T)
        return (products * self._scale).cpu()

    def rows(self, store: FeatureStore) -> Tensor:
        """All rows of ``store`` as they are compared, (R, D) float64."""
        return store.weighted(self._weights).features()

    def scores(self, cross: Tensor) -> Tensor:
        """Scores (..., N) from inner products (..., N)."""
        return cross @ self.inverse

    def scores_left_out(self, member: Tensor) -> Tensor:
        """Scores (N, N) of the tracks as queries, see :func:`scores_left_out`."""
        return scores_left_out(self.inverse, member)

    def between_parts(
        self, query_parts: Tensor, track_parts: Tensor, query_cross: Tensor, track_cross: Tensor
    ) -> Tensor:
        """Scores (S, T) of each part of a query with each part of a track.

        Args:
            query_parts: (S, D), see :meth:`rows`.
            track_parts: (T, D), likewise.
            query_cross: their inner products with the tracks, (S, N).
            track_cross: those of the track's parts, (T, N).
        """
        direct = query_parts[:, : self._dim] @ track_parts[:, : self._dim].T * self._scale
        return (direct - self.scores(query_cross) @ track_cross.T) / self.regularisation


def inverse_of(values: Tensor, vectors: Tensor, regularisation: float) -> Tensor:
    """A = (K + lambda I)^-1, (N, N), from the eigenvalues and eigenvectors of K."""
    return (vectors * damped_inverse(values, regularisation)) @ vectors.T


def scores_left_out(inverse: Tensor, member: Tensor) -> Tensor:
    """Scores (N, N) that track i gets as a query when the tracks of its own group are not there.

    ``inverse`` (N, N) is A, ``member`` (N,) numbers the groups. The columns of a track's own group are NaN.
    Exact, without another inversion: for the rows g of a group, K_g,-g (K_-g + lambda)^-1 is -A_gg^-1 A_g,-g
    by the formula of the inverse of a block matrix.
    """
    scores = torch.full_like(inverse, torch.nan)
    for group in member.unique().tolist():
        inside = member == group
        own = inverse[inside][:, inside]
        others = inverse[inside][:, ~inside]
        if others.shape[1]:
            scores[inside.nonzero(), (~inside).nonzero().T] = -torch.linalg.lstsq(own, others).solution
    return scores
