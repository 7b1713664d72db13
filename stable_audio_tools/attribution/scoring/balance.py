"""Several measurements in one row, each with the same say.

Gradients of the loss and of an output norm differ in length by orders of magnitude. So the columns of each
measurement are divided by the root mean square distance of the tracks' rows from their mean, over those
columns. Kernels of rows that lie beside each other add up, so what is scored is the sum of the measurements'
kernels, each over its mean eigenvalue (the one of what all tracks share aside).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from stable_audio_tools.attribution.features.store import FeatureStore
from stable_audio_tools.attribution.gradients.measurements import measurement_names
from stable_audio_tools.runtime.files import write_json

ROWS_AT_ONCE = 64


def balanced(train: FeatureStore, *others: FeatureStore) -> tuple[FeatureStore, ...]:
    """The tracks and what they are compared with, every measurement at the same scale.

    Stores of one measurement are left as they are.
    """
    weights = column_weights(train)
    stores = (train, *others)
    return stores if weights is None else tuple(store.weighted(weights) for store in stores)


def column_weights(train: FeatureStore) -> Tensor | None:
    """What each column is multiplied by, (D,) float64, kept in the store; None for one measurement."""
    names = measurements_of(train)
    if len(names) == 1:
        return None
    path = train.folder / "spread.json"
    spread = json.loads(path.read_text()) if path.exists() else _spread(train, names, path)
    lengths = torch.tensor([spread[name] for name in names], dtype=torch.float64)
    weights = torch.where(lengths > 0, 1 / lengths.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    return weights.repeat_interleave(train.dim // len(names))


def measurements_of(store: FeatureStore) -> list[str]:
    """Whose gradients lie beside each other in the rows of ``store``."""
    return measurement_names(store.meta["stamp"].get("settings", {}).get("f", "loss"))


def _spread(train: FeatureStore, names: list[str], path: Path) -> dict[str, float]:
    """The root mean square distance of rows from their mean, by measurement; rows left zero do not count."""
    total = torch.zeros(train.dim, dtype=torch.float64)
    square, count = torch.zeros(len(names), dtype=torch.float64), 0
    for start in range(0, len(train), ROWS_AT_ONCE):
        rows = train.block(slice(start, start + ROWS_AT_ONCE)).double()
        count += int(rows.any(1).sum())
        total += rows.sum(0)
        square += rows.unflatten(1, (len(names), -1)).square().sum((0, 2))
    mean = total / max(count, 1)
    within = square / max(count, 1) - mean.unflatten(0, (len(names), -1)).square().sum(1)
    found = dict(zip(names, within.clamp(min=0).sqrt().tolist(), strict=True))
    write_json(path, found)
    return found
