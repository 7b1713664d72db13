"""Features of parts: of a clip at each timestep on its own, and of some seconds of a clip or a track.

Parts are rows of stores like any other, so they are stamped, resumed and compared in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.attribution.features.extract import gradient_features, kept_rows, source_dataset
from stable_audio_tools.attribution.features.store import FeatureStore, Stamp
from stable_audio_tools.attribution.gradients.measurements import measurement_names, stretches
from stable_audio_tools.attribution.gradients.numerics import exact_float32, repeatable
from stable_audio_tools.attribution.gradients.task import DiffusionTask, LatentBatch
from stable_audio_tools.attribution.queries import TrackSource
from stable_audio_tools.attribution.settings import FeatureSettings
from stable_audio_tools.data.dataset import make_loader
from stable_audio_tools.data.sample import SampleKey
from stable_audio_tools.runtime.progress import track

AVERAGES = ("loss", "mean-squared-l2-norm", "mean")
"""Measurements that are means over time, so that a part of n_s of n frames counts n_s / n of the whole."""


@dataclass(frozen=True)
class Measured:
    """A model and how it is measured: what every part needs."""

    model: Any
    settings: FeatureSettings
    stamp: Stamp
    batch_size: int = 8
    num_workers: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", self.settings.on(self.device))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        found: torch.device = next(self.model.model.parameters()).device
        return found


def prepared(
    measured: Measured, source: TrackSource, rows: Sequence[int], task: DiffusionTask, what: str
) -> Iterator[tuple[list[int], LatentBatch, tuple[Any, ...]]]:
    """The tracks ``rows`` of ``source``, read and encoded as the extraction does, in batches."""
    size = measured.batch_size
    batches = [list(rows[start : start + size]) for start in range(0, len(rows), size)]
    loader = make_loader(
        source_dataset(measured.model, source, measured.settings),
        [[SampleKey(row, 0) for row in batch] for batch in batches],
        measured.num_workers if len(batches) > 1 else 0,
    )
    with exact_float32(measured.settings.precision == "float32"), repeatable(measured.device):
        for batch, (audio, infos) in zip(batches, track(loader, what, total=len(batches)), strict=True):
            yield batch, task.prepare(audio, infos), infos


def timestep_rows(measured: Measured, source: TrackSource, folder: Path) -> FeatureStore:
    """One row per clip and timestep, row ``clip * K + k``; the K rows of a clip add up to its feature row."""
    K = measured.settings.K
    names = [f"{item.sample_id}#t{k}" for item in source.index for k in range(K)]
    task = DiffusionTask(measured.model, measured.settings, stored=source.stored)
    gradients = gradient_features(measured.model, measured.settings)
    store = _create(measured, source, folder, names, gradients.dim, {"parts": "timesteps"})
    missing = sorted({row // K for row in store.missing()})
    for rows, batch, infos in prepared(measured, source, missing, task, "timesteps of clips"):
        kept = kept_rows(infos, measured.device)
        features = torch.stack([gradients(batch, [passed]) for passed in task.passes], dim=1)  # (B, K, D)
        features = (features * kept[:, None, None]).flatten(0, 1)
        _write(store, [row * K + k for row in rows for k in range(K)], features)
    return store


def segment_rows(
    measured: Measured, source: TrackSource, rows: Sequence[int], segments: int, timesteps: int, folder: Path
) -> FeatureStore:
    """``segments`` rows per track of ``rows``, each measured over its own stretch of the latents.

    Of a measurement that is a mean over time the rows of a track add up to what the whole track gives at the
    same timesteps. ``timesteps`` of the K are used, spread evenly.
    """
    names = [f"{source.index[row].sample_id}#s{s}" for row in rows for s in range(segments)]
    task = DiffusionTask(measured.model, measured.settings, stored=source.stored)
    gradients = gradient_features(measured.model, measured.settings, stretches=segments)
    stamp = {"parts": f"{segments} segments at {timesteps} timesteps", "rows": names}
    store = _create(measured, source, folder, names, gradients.dim // segments, stamp)
    missing = sorted({row // segments for row in store.missing()})
    passes = [
        partial(task.measure_stretches, k=k, count=segments) for k in spread(measured.settings.K, timesteps)
    ]
    place = {rows[number]: number for number in missing}
    for done, batch, infos in prepared(measured, source, list(place), task, "segments"):
        features = gradients(batch, passes).unflatten(1, (segments, -1))
        weights = stretch_weights(batch.mask, segments, measured.settings.f)
        weights = weights.repeat_interleave(features.shape[2] // weights.shape[2], dim=2)
        features = features * weights * kept_rows(infos, measured.device)[:, None, None]
        _write(
            store,
            [place[row] * segments + s for row in done for s in range(segments)],
            features.flatten(0, 1),
        )
    return store


def spread(K: int, count: int) -> list[int]:
    """``count`` of K timesteps, evenly spread; all where there are no more."""
    return list(range(K)) if count >= K else [(2 * i + 1) * K // (2 * count) for i in range(count)]


def stretch_weights(mask: Tensor, count: int, f: str) -> Tensor:
    """What each stretch of ``mask`` (B, 1, L) counts in the whole, by measurement: (B, count, M)."""
    frames = stretches(mask, count).sum(2)
    shares = frames / frames.sum(1, keepdim=True).clamp(min=1)
    weights = [shares if name in AVERAGES else (frames > 0).to(shares) for name in measurement_names(f)]
    return torch.stack(weights, dim=2)


def _create(
    measured: Measured, source: TrackSource, folder: Path, names: list[str], dim: int, stamp: Stamp
) -> FeatureStore:
    return FeatureStore.create(
        folder,
        sample_ids=names,
        dim=dim,
        latent_dim=1,
        stamp={
            **measured.stamp,
            "index": source.stamp(),
            "settings": measured.settings.comparable(),
            "crops": measured.settings.crops(),
            **stamp,
        },
        dtype=measured.settings.store_dtype,
        measurements=len(measured.settings.measurements),
        info={"settings": measured.settings.to_dict()},
    )


def _write(store: FeatureStore, rows: list[int], features: Tensor) -> None:
    store.write(
        rows, features, torch.zeros(len(rows), 1), [{"sample_id": store.sample_ids[row]} for row in rows]
    )
