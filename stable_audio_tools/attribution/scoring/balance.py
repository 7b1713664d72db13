"""Several measurements in one row, each with the same say.

Gradients of the loss and of an output norm differ in length by orders of magnitude. So the columns of each
measurement are divided by the root mean square distance of the tracks' rows from their mean, over those
columns. Kernels of rows that lie beside each other add up, so what is scored is the sum of the measurements'
kernels, each over its mean eigenvalue (the one of what all tracks share aside).
"""

from __future__ import annotations

import json

import torch
from torch import Tensor

from stable_audio_tools.attribution.features.store import FeatureStore
from stable_audio_tools.runtime.files import write_json

ROWS_AT_ONCE = 64


def balanced(train: FeatureStore, queries: FeatureStore) -> tuple[FeatureStore, FeatureStore]:
    """The tracks and what they are compared with, every measurement at the same scale."""
    weights = column_weights(train)
    return train.weighted(weights), queries.weighted(weights)


def column_weights(train: FeatureStore) -> Tensor | None:
    """What each column is multiplied by, (D,) float64, kept in the store; None for one measurement."""
    if train.measurements == 1:
        return None
    path = train.folder / "spread.json"
    if not path.exists():
        write_json(path, _spread(train).tolist())
    lengths = torch.tensor(json.loads(path.read_text()), dtype=torch.float64)
    weights = torch.where(lengths > 0, 1 / lengths.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    return weights.repeat_interleave(train.dim // train.measurements)


def _spread(train: FeatureStore) -> Tensor:
    """The root mean square distance of rows from their mean, by measurement; rows left zero do not count."""
    total = torch.zeros(train.dim, dtype=torch.float64)
    square, count = torch.zeros(train.measurements, dtype=torch.float64), 0
    for start in range(0, len(train), ROWS_AT_ONCE):
        rows = train.block(slice(start, start + ROWS_AT_ONCE)).double()
        count += int(rows.any(1).sum())
        total += rows.sum(0)
        square += rows.unflatten(1, (train.measurements, -1)).square().sum((0, 2))
    mean = total / max(count, 1)
    within = square / max(count, 1) - mean.unflatten(0, (train.measurements, -1)).square().sum(1)
    return within.clamp(min=0).sqrt()
