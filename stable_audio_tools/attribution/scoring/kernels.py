"""Inner products of many rows, and the regularised inverse of their kernel, at any number of tracks.

Three ways, by the size of the work; all are phi_q Phi^T (Phi Phi^T + lambda I)^-1:

- small: everything in float64 (``scores.kernels``);
- up to :data:`EXACT_ROWS` tracks: products in float32 of what rows differ by, and one eigendecomposition of
  the N x N kernel, kept in the store, so that further clips cost their own products only;
- beyond: rows are sketched to D' numbers (Charikar et al. 2002) and the inverse is taken there, D' x D', with
  the rows streamed from the disk: phi_q (Phi^T Phi + lambda I)^-1 Phi^T is the same by the push-through
  identity.

With noise shared by all tracks, rows agree in all but a thousandth of their energy. So the mean row m is
taken off before a product in float32, and put back in float64:

    phi_i . phi_j = (phi_i - m) . (phi_j - m) + (phi_i - m) . m + (phi_j - m) . m + m . m

Shapes: ``N`` tracks, ``Q`` queries, ``D`` features, ``D'`` sketched features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.attribution.features.store import FeatureStore
from stable_audio_tools.attribution.gradients.numerics import exact_float32
from stable_audio_tools.runtime.files import atomic_path
from stable_audio_tools.runtime.progress import say, track
from stable_audio_tools.runtime.seeds import generator

EXACT_ROWS = 20_000
"""Tracks up to which the kernel is decomposed whole: 3 GB, and minutes on a GPU."""

COLUMNS_AT_ONCE = 4096
ROWS_AT_ONCE = 4096
NUMBERS_AT_ONCE = 1 << 27
"""Of many tracks fewer columns are read at a time: half a gigabyte in float32."""


@dataclass(frozen=True)
class Products:
    """Inner products of tracks and queries, in float64.

    Attributes:
        kernel: (N, N), or None where it was not asked for.
        norms: of the tracks, squared, (N,).
        cross: (Q, N).
        own: squared norms of the queries, (Q,).
    """

    kernel: Tensor | None
    norms: Tensor
    cross: Tensor
    own: Tensor


@dataclass(frozen=True)
class Decomposition:
    """The eigendecomposition of the tracks' kernel, with what is needed to multiply queries with tracks.

    Attributes:
        values: (N,) ascending.
        vectors: (N, N), a column each.
        centre: the mean row m, (D,) float32.
        shared: (phi_i - m) . m of each track, (N,) float64.
    """

    values: Tensor
    vectors: Tensor
    centre: Tensor
    shared: Tensor


def products(
    train: FeatureStore, queries: FeatureStore, dim: int, *, kernel: bool = False, device: torch.device
) -> Products:
    """Inner products over the first ``dim`` columns, in blocks of columns, float32 around the mean row."""
    count, asked = len(train), len(queries)
    gram = _zeros(count, count, device=device) if kernel else None
    norms, shared, square = _zeros(count, device=device), _zeros(count, device=device), 0.0
    cross, own, own_shared = (_zeros(*shape, device=device) for shape in ((asked, count), (asked,), (asked,)))
    for columns, tracks, centre in _centred(train, dim, device):
        clips = queries.block(columns=columns, device=device) - centre
        if gram is not None:
            gram += tracks @ tracks.T
        cross += clips @ tracks.T
        norms += (tracks**2).sum(1)
        own += (clips**2).sum(1)
        shared += tracks @ centre
        own_shared += clips @ centre
        square += float((centre.double() ** 2).sum())
    if gram is not None:
        gram += shared[:, None] + shared[None, :] + square
    cross += own_shared[:, None] + shared[None, :] + square
    return Products(gram, norms + 2 * shared + square, cross, own + 2 * own_shared + square)


def decompose(train: FeatureStore, dim: int, device: torch.device) -> Decomposition:
    """The decomposition of the kernel of the first ``dim`` columns, kept in the store for the next time."""
    found = kept_decomposition(train, dim)
    if found is not None:
        return found
    say(f"{train.folder}: one eigendecomposition of {len(train)} x {len(train)}, kept for the next time")
    gram = _zeros(len(train), len(train), device=device)
    shared, square = _zeros(len(train), device=device), 0.0
    centres = []
    for _, tracks, centre in _centred(train, dim, device):
        gram += tracks @ tracks.T
        shared += tracks @ centre
        square += float((centre.double() ** 2).sum())
        centres.append(centre.cpu())
    gram += shared[:, None] + shared[None, :] + square
    values, vectors = torch.linalg.eigh(gram)
    found = Decomposition(values.cpu(), vectors.cpu(), torch.cat(centres), shared.cpu())
    _write_decomposition(_kept_in(train, dim), found)
    return found


def cross_products(
    train: FeatureStore, queries: FeatureStore, found: Decomposition, device: torch.device
) -> Tensor:
    """Inner products of queries and tracks, (Q, N) float64: one pass over the tracks' rows in float32."""
    dim = len(found.centre)
    clips = queries.block(columns=slice(0, dim), device=device) - found.centre.to(device)
    parts = []
    with exact_float32():
        for rows in _blocks(len(train), max(1, NUMBERS_AT_ONCE // dim)):
            tracks = train.block(rows, slice(0, dim), device)
            part = _zeros(len(clips), len(tracks), device=device)
            for columns in _blocks(dim, COLUMNS_AT_ONCE):
                part += clips[:, columns] @ tracks[:, columns].T
            parts.append(part.cpu())
    square = (found.centre.double() ** 2).sum()
    return torch.cat(parts, dim=1) + found.shared[None, :] + square


def sketched_scores(
    train: FeatureStore,
    queries: FeatureStore,
    dim: int,
    *,
    sketch_dim: int,
    lambda_scale: float,
    lambda_reg: float | None,
    device: torch.device,
) -> Tensor:
    """Scores (Q, N) by way of rows sketched to ``sketch_dim`` numbers; memory is D' x D' and Q x N.

    The sketched rows and their D' x D' product are kept beside the rows: further clips cost one pass.
    """
    rows, gram, centre = _sketched_store(train, dim, sketch_dim, device)
    regularisation = lambda_reg
    if regularisation is None:  # the N x N kernel has the same eigenvalues, and zeros
        mean = (gram.trace() - _largest_eigenvalue(gram)) / max(1, len(train) - 1)
        regularisation = float(lambda_scale * mean)
    clips = torch.cat([_sketch(block, sketch_dim) for _, block in _row_blocks(queries, dim)])
    gram.diagonal().add_(regularisation)
    weights = torch.cholesky_solve(clips.double().to(device).T, torch.linalg.cholesky(gram))
    scores = torch.empty(len(queries), len(train), dtype=torch.float64)
    with exact_float32():
        for span in _blocks(len(train), ROWS_AT_ONCE):
            block = torch.from_numpy(np.array(rows[span])).to(device)
            scores[:, span] = (block @ weights.float()).T.cpu().double()
    return scores + (centre.double() @ weights).cpu()[:, None]


def _sketched_store(
    train: FeatureStore, dim: int, sketch_dim: int, device: torch.device
) -> tuple[np.ndarray, Tensor, Tensor]:
    """Sketched rows less their centre (N, D'), memory-mapped; with it their product (D', D') in float64, and
    the centre (D',)."""
    path = train.folder / f"sketch-{dim}-{sketch_dim}.npy"
    rest = path.with_suffix(".npz")
    if not rest.exists():
        say(f"{train.folder}: {len(train)} rows are sketched to {sketch_dim} numbers, kept for the next time")
        gram, total = _zeros(sketch_dim, sketch_dim, device=device), _zeros(sketch_dim, device=device)
        centre: Tensor | None = None
        blocks = -(-len(train) // ROWS_AT_ONCE)
        with atomic_path(path) as temporary, exact_float32():
            rows = np.lib.format.open_memmap(
                temporary, mode="w+", dtype=np.float32, shape=(len(train), sketch_dim)
            )
            for span, values in track(_row_blocks(train, dim), "sketched rows", total=blocks):
                sketched = _sketch(values.to(device), sketch_dim)
                if centre is None:
                    centre = sketched.mean(0)
                sketched -= centre
                gram += sketched.T @ sketched
                total += sketched.sum(0)
                rows[span] = sketched.cpu().numpy()
            rows.flush()
        assert centre is not None
        middle = centre.double()
        gram += torch.outer(total, middle) + torch.outer(middle, total)
        gram += len(train) * torch.outer(middle, middle)
        with atomic_path(rest) as temporary:  # last: its presence means both
            np.savez(temporary, gram=gram.cpu().numpy(), centre=centre.cpu().numpy())
    with np.load(rest) as arrays:
        found = [torch.from_numpy(arrays[name]).to(device) for name in ("gram", "centre")]
    return np.load(path, mmap_mode="r"), found[0], found[1]


def _sketch(rows: Tensor, sketch_dim: int) -> Tensor:
    """Rows (n, D) as (n, D'): column j with a random sign is added to column j mod D'. Unbiased products."""
    dim = rows.shape[1]
    bits = torch.randint(0, 2, (dim,), generator=generator("attribution-sketch", dim, sketch_dim))
    signed = rows * (bits.to(rows.device, rows.dtype) * 2 - 1)
    return F.pad(signed, (0, -dim % sketch_dim)).unflatten(1, (-1, sketch_dim)).sum(1)


def _largest_eigenvalue(matrix: Tensor, steps: int = 100) -> Tensor:
    """By power iteration; it need not be exact where it is not far above the rest."""
    vector = torch.randn(len(matrix), generator=generator("attribution-power"), dtype=torch.float64)
    vector = vector.to(matrix.device)
    for _ in range(steps):
        vector = matrix @ (vector / vector.norm().clamp(min=torch.finfo(torch.float64).tiny))
    return vector.norm()


def _zeros(*shape: int, device: torch.device) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device=device)


def _centred(train: FeatureStore, dim: int, device: torch.device) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Columns of all tracks less their mean, (N, d) float32, with which they are and the mean (d,)."""
    with exact_float32():
        for columns in _blocks(dim, min(COLUMNS_AT_ONCE, max(1, NUMBERS_AT_ONCE // len(train)))):
            tracks = train.block(columns=columns, device=device)
            centre = tracks.mean(0)
            tracks -= centre
            yield columns, tracks, centre


def _row_blocks(store: FeatureStore, dim: int) -> Iterator[tuple[slice, Tensor]]:
    for span in _blocks(len(store), ROWS_AT_ONCE):
        yield span, store.block(span, slice(0, dim))


def _blocks(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def kept_decomposition(train: FeatureStore, dim: int) -> Decomposition | None:
    """What :func:`decompose` has left in the store, or None."""
    path = _kept_in(train, dim)
    rest = path.with_name(f"{path.name}.npz")
    if not rest.exists():
        return None
    vectors = torch.from_numpy(np.load(path.with_name(f"{path.name}-vectors.npy")))
    with np.load(rest) as arrays:
        values, centre, shared = (torch.from_numpy(arrays[name]) for name in ("values", "centre", "shared"))
    return Decomposition(values, vectors, centre, shared)


def _kept_in(train: FeatureStore, dim: int) -> Path:
    return train.folder / f"kernel-{dim}"


def _write_decomposition(path: Path, found: Decomposition) -> None:
    with atomic_path(path.with_name(f"{path.name}-vectors.npy")) as temporary:
        np.save(temporary, found.vectors.numpy())
    with atomic_path(path.with_name(f"{path.name}.npz")) as temporary:  # last: its presence means both
        np.savez(
            temporary,
            values=found.values.numpy(),
            centre=found.centre.numpy(),
            shared=found.shared.numpy(),
        )
