"""From tracks to a feature store: decode, encode, condition, differentiate, write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stable_audio_tools.attribution.features.store import FeatureStore, Stamp
from stable_audio_tools.attribution.gradients.numerics import exact_float32, repeatable, worth_compiling
from stable_audio_tools.attribution.gradients.rows import DenseGradients, GradientFeatures, HookedGradients
from stable_audio_tools.attribution.gradients.task import DiffusionTask, LatentBatch
from stable_audio_tools.attribution.queries import TrackSource
from stable_audio_tools.attribution.settings import FeatureSettings
from stable_audio_tools.attribution.sharing import ALONE
from stable_audio_tools.data.dataset import make_loader
from stable_audio_tools.data.latents import LatentDataset, fit_to_model
from stable_audio_tools.data.local import LocalDataset, TrackDataset
from stable_audio_tools.data.sample import SampleKey
from stable_audio_tools.errors import UsageError
from stable_audio_tools.inference.shares import Share
from stable_audio_tools.models.adapters.lora import adapted_layers
from stable_audio_tools.runtime.progress import say, track, warn

NETWORK_PREFIX = "model."
"""Where the diffusion network is in the whole model, so that names read as state-dict keys."""

ADAPTER_REGEX = r"\.lora_[AB]\."
"""What was trained of a LoRA-tuned model, and is therefore differentiated unless told otherwise."""

LEFT_OUT = "unreadable, or rejected by its metadata module"

RECORD_KEYS = (
    *(
        "sample_id",
        "path",
        "relpath",
        "dataset_id",
        "prompt",
        "title",
        "artist",
        "artist_id",
        "album",
        "album_id",
    ),
    *("label", "publisher", "isrc", "tsrc", "license", "licence", "url"),
    *("tags", "seconds_start", "seconds_total", "offset_seconds", "duration_seconds"),
)


def gradient_features(
    model: Any, settings: FeatureSettings, compiled_batch: int | None = None, stretches: int = 1
) -> GradientFeatures:
    """What turns measured passes of ``model`` into rows, by ``settings.mode``.

    Only the diffusion network is differentiated. Of a LoRA-tuned model these are the adapters, by default.
    In hooked mode the network's blocks are compiled for batches of ``compiled_batch`` samples; None does not.
    A pass measures each of ``stretches`` parts of a sample.
    """
    network: nn.Module = model.model
    regex = settings.param_regex
    if regex is None and adapted_layers(network):
        regex = ADAPTER_REGEX
    common: dict[str, Any] = {
        "measurements": stretches * len(settings.measurements),
        "seed": settings.seed,
        "param_regex": regex,
        "prefix": NETWORK_PREFIX,
    }
    if settings.mode == "dense":
        return DenseGradients(network, dim=settings.proj_dim, **common)
    return HookedGradients(network, rank=settings.proj_rank, compiled_batch=compiled_batch, **common)


def extract_features(
    model: Any,
    source: TrackSource,
    store_dir: str | Path,
    settings: FeatureSettings,
    *,
    stamp: Stamp,
    batch_size: int = 8,
    num_workers: int = 0,
    compile: bool | None = None,
    share: Share = ALONE,
    description: str = "features",
) -> FeatureStore:
    """Write the feature row of every track of ``source``, or of those still missing, into a store.

    Rows do not depend on ``batch_size`` or ``num_workers`` beyond rounding. Batches lie on a fixed grid over
    the index, so a run that was killed and continued computes each batch as it would have been, bit for bit.

    Args:
        model: a ``ConditionedDiffusionModelWrapper`` on its device; it is put in evaluation mode.
        source: the tracks; row i of the store is track i.
        stamp: what the model is, by name (hashes); tracks and settings are added here.
        compile: compile the network's blocks; None does where it pays, on a GPU and for many tracks.
        share: which process of how many this is: it does every n-th batch of those missing. The numbers may
            be others each time; nothing is lost or left out.

    Raises:
        StoreError: the store belongs to another run.
        DataError: a file cannot be read, a prompt is missing, or a gradient is not finite.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, found {batch_size}")
    model.eval()
    index = source.index
    task = DiffusionTask(model, settings, stored=source.stored)
    settings, device = task.settings, task.device
    if compile is None:
        compile = worth_compiling(device, len(index) * settings.K)
    gradients = gradient_features(model, settings, batch_size if compile else None)
    store = FeatureStore.create(
        store_dir,
        sample_ids=[entry.sample_id for entry in index],
        dim=gradients.dim,
        latent_dim=2 * model.io_channels,
        stamp={
            **stamp,
            "index": source.stamp(),
            "settings": settings.comparable(),
            "crops": settings.crops(),
        },
        dtype=settings.store_dtype,
        measurements=len(settings.measurements),
        info={"settings": settings.to_dict(), "left_out": gradients.left_out},
        part=(share.rank, share.world_size),
    )
    missing = store.missing()
    if len(missing) < len(index):
        say(f"{store_dir}: {len(index) - len(missing)} of {len(index)} rows are there, going on")
    batches = [
        rows
        for rows in batches_to_do(missing, len(index), batch_size)
        if rows[0] // batch_size % share.world_size == share.rank
    ]
    loader = make_loader(
        source_dataset(model, source, settings),
        [[SampleKey(row, 0) for row in rows] for rows in batches],
        num_workers,
    )
    with exact_float32(settings.precision == "float32"), repeatable(device):
        unwritten: Callable[[], None] | None = None
        for rows, (audio, infos) in zip(batches, track(loader, description, total=len(batches)), strict=True):
            batch = task.prepare(audio, infos)  # its text is encoded while a GPU is at the batch before
            if unwritten is not None:
                unwritten()
            features = gradients(batch, task.passes)
            unwritten = partial(_write, store, rows, features, batch, infos)
        if unwritten is not None:
            unwritten()
    if not store.finish():
        others = share.world_size - 1
        say(
            f"{store_dir}: done here; {len(store.missing())} rows of the {others} other processes are to come"
        )
    return store


def _write(
    store: FeatureStore,
    rows: Sequence[int],
    features: Tensor,
    batch: LatentBatch,
    infos: Sequence[Mapping[str, Any]],
) -> None:
    """Write a batch. A track that training had to replace was not trained on: its row stays zero."""
    kept = kept_rows(infos, features.device)[:, None]
    statistics = latent_statistics(batch.latents, batch.mask) * kept
    store.write(rows, features * kept, statistics, [_record(info) for info in infos])


def kept_rows(infos: Sequence[Mapping[str, Any]], device: torch.device) -> Tensor:
    """1 for each track that training had, 0 for one that it had to replace: (B,)."""
    return torch.tensor([float("replaced" not in info) for info in infos], device=device)


def batches_to_do(missing: Sequence[int], count: int, batch_size: int) -> list[list[int]]:
    """The batches of the grid 0, batch_size, 2 batch_size, ... that have a row missing, each one whole."""
    starts = sorted({row // batch_size for row in missing})
    return [list(range(i * batch_size, min((i + 1) * batch_size, count))) for i in starts]


def latent_statistics(latents: Tensor, mask: Tensor) -> Tensor:
    """Mean and standard deviation over unpadded time of latents (B, C, L), by channel: (B, 2 C)."""
    count = mask.sum(2).clamp(min=1)
    mean = (latents * mask).sum(2) / count
    variance = ((latents - mean[..., None]) ** 2 * mask).sum(2) / count
    return torch.cat([mean, variance.sqrt()], dim=1)


def source_dataset(model: Any, source: TrackSource, settings: FeatureSettings) -> TrackDataset:
    """The tracks of ``source`` as ``model`` takes them: crops of recordings, or of stored latents."""
    if source.stored:
        config = model.config
        return LatentDataset(
            fit_to_model(source.index, sample_size=config.sample_size, sample_rate=config.sample_rate),
            random_crop=settings.random_crop,
            seed=settings.seed,
            on_error=source.on_error,
        )
    pretransform = model.pretransform
    return LocalDataset(
        source.index,
        sample_size=model.config.sample_size,
        sample_rate=model.config.sample_rate,
        audio_channels=model.io_channels if pretransform is None else pretransform.io_channels,
        random_crop=settings.random_crop,
        seed=settings.seed,
        volume_norm=source.volume_norm,
        on_error=source.on_error,
    )


def _record(info: Mapping[str, Any]) -> dict[str, Any]:
    """What a row is."""
    if "replaced" in info:
        warn(f"{info['replaced']}: {LEFT_OUT}, so its row is left zero")
        return {"sample_id": info["replaced"], "left_out": LEFT_OUT}
    return {key: info[key] for key in RECORD_KEYS if info.get(key) is not None}
