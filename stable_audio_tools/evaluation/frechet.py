"""The Fréchet distance between two sets of embeddings.

M. Heusel et al., "GANs Trained by a Two Time-Scale Update Rule" (NeurIPS 2017), eq. 6; for audio K. Kilgour
et al., "Fréchet Audio Distance" (Interspeech 2019)::

    d^2 = |mu_x - mu_y|^2 + tr(S_x) + tr(S_y) - 2 tr((S_x S_y)^(1/2))

With S_x = A^T A and S_y = B^T B, where A and B are the centred embeddings over sqrt(N - 1), the last trace is
the sum of the singular values of A B^T: S_x S_y and (A B^T)(A B^T)^T have the same eigenvalues. No matrix
root is taken, so sets with fewer clips than dimensions need no special case, and d(X, X) is 0 to rounding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stable_audio_tools.errors import DataError


def frechet_distance(x: ArrayLike, y: ArrayLike) -> float:
    """The squared Fréchet distance between Gaussians fitted to two sets of embeddings.

    Computed in float64; symmetric, and the same in any order of the rows. With few rows it is biased upwards
    (about in proportion to 1/N), so compare only numbers from sets of the same sizes.

    Args:
        x: embeddings ``(N, D)``, N >= 2.
        y: embeddings ``(M, D)``, M >= 2.

    Raises:
        DataError: a set is no matrix, has fewer than two rows, another width than the other, or values not
            finite.
    """
    first, second = _validated(x, "first"), _validated(y, "second")
    if first.shape[1] != second.shape[1]:
        raise DataError(
            f"embeddings of width {first.shape[1]} and {second.shape[1]} cannot be compared: "
            "make both with the same CLAP model"
        )
    mean_gap = np.square(first.mean(0) - second.mean(0)).sum()
    a, b = _covariance_factor(first), _covariance_factor(second)
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    distance = mean_gap + np.square(a).sum() + np.square(b).sum() - 2.0 * cross
    return max(float(distance), 0.0)


def _validated(values: ArrayLike, name: str) -> NDArray[np.float64]:
    embeddings = np.asarray(values, dtype=np.float64)
    if embeddings.ndim != 2 or len(embeddings) < 2:
        raise DataError(
            f"the {name} set of embeddings has shape {embeddings.shape}: a distance between distributions "
            "needs a matrix of at least two rows; evaluate at least two clips"
        )
    if not np.isfinite(embeddings).all():
        raise DataError(
            f"the {name} set of embeddings holds values that are not finite: look for broken audio files"
        )
    return embeddings


def _covariance_factor(embeddings: NDArray[np.float64]) -> NDArray[np.float64]:
    """A matrix A of at most D rows with A^T A the sample covariance."""
    centred = (embeddings - embeddings.mean(0)) / np.sqrt(len(embeddings) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r")) if len(centred) > centred.shape[1] else centred
