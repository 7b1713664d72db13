"""From a dataset config to batches, in an order that is a function of (seed, epoch)."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from stable_audio_tools.data.index import TrackIndex
from stable_audio_tools.data.latents import LatentDataset, fit_to_model, latent_index
from stable_audio_tools.data.local import LocalDataset, TrackDataset
from stable_audio_tools.data.sample import EpochOrder, Info, SampleKey, collate
from stable_audio_tools.data.shard_latents import ShardLatentDataset
from stable_audio_tools.data.webdataset import ShardDataset, ShardIndex
from stable_audio_tools.errors import DataError, StableAudioError
from stable_audio_tools.runtime.seeds import generator
from stable_audio_tools.schema.base import Config
from stable_audio_tools.schema.built import not_built
from stable_audio_tools.schema.dataset import AudioDirDataset, DatasetConfig, PreEncodedDataset, WebDataset
from stable_audio_tools.schema.reader import parse_dataset_config

Batch = tuple[Tensor, tuple[Info, ...]]


class KeyedBatchSampler(Sampler[list[SampleKey]]):
    """Batches of sample keys for one rank.

    The order of an epoch is drawn from ``(seed, epoch)``. Batch ``b`` of all ranks together is one slice of
    it, and each rank takes its part: with the same number of samples in all, a run sees the same data on
    any number of GPUs. An endless sampler goes from one epoch to the next within a batch, so that every track
    has its turn and the order does not depend on the batch size: two batches of four are one of eight.
    ``start_batch`` batches are skipped without being decoded, which is all a resumed run needs.

    Args:
        num_tracks: length of the index.
        batch_size: samples in a batch of one rank.
        shuffle: draw the order; otherwise the order of the index.
        seed: of the order.
        rank: which part of each batch to take.
        world_size: how many parts there are.
        drop_last: leave out the tracks at the end of an epoch that do not fill a batch of all ranks, and
            refuse a dataset that does not fill one. Otherwise the last batch is shorter; with several ranks,
            which must stay in step, the first tracks of the epoch fill up what is missing to give each rank
            equally many.
        start_batch: how many batches to skip, counted from the first of epoch 0.
        infinite: go on with the next epoch, and leave nothing out; otherwise each iteration is one epoch, the
            next one each time.
        order: the dataset's own order, of ``num_tracks`` samples an epoch.

    Raises:
        DataError: no batch can be filled.
    """

    def __init__(
        self,
        num_tracks: int,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 42,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = True,
        start_batch: int = 0,
        infinite: bool = False,
        order: EpochOrder | None = None,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size or start_batch < 0:
            raise DataError(
                f"batch size {batch_size}, rank {rank} of {world_size}, start batch {start_batch}:"
                " expected a positive size, a rank below the number of ranks, and a start of 0 or more"
            )
        together = batch_size * world_size
        if num_tracks < 1 or (drop_last and num_tracks < together):
            ranks = f" x {world_size} GPUs" if world_size > 1 else ""
            raise DataError(
                f"the dataset has {num_tracks} tracks, too few for one batch of {together}"
                f" (batch size {batch_size}{ranks}); lower --batch-size, add tracks, or turn drop_last off"
            )
        self.num_tracks = num_tracks
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.infinite = infinite
        self.order = order
        self.batches_per_epoch = num_tracks // together if drop_last else -(-num_tracks // together)
        self.start_batch = start_batch
        self._next_epoch, self._skip = divmod(start_batch, self.batches_per_epoch)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        if self.infinite:
            yield from self._endless()
            return
        epoch, skip = self._next_epoch, self._skip
        self._next_epoch, self._skip = epoch + 1, 0
        yield from self._epoch(epoch, skip)

    def __len__(self) -> int:
        """Batches in an epoch."""
        if self.infinite:
            raise TypeError("an infinite loader has no length")
        return self.batches_per_epoch

    def _endless(self) -> Iterator[list[SampleKey]]:
        together = self.batch_size * self.world_size
        epoch, skip = divmod(self.start_batch * together, self.num_tracks)
        epochs = map(self._order, itertools.count(epoch))
        keys = itertools.islice(itertools.chain.from_iterable(epochs), skip, None)
        while True:
            batch = list(itertools.islice(keys, together))
            yield batch[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]

    def _epoch(self, epoch: int, skip: int) -> Iterator[list[SampleKey]]:
        order = iter(self._order(epoch))
        first: list[SampleKey] = []
        for batch in range(self.batches_per_epoch):
            keys = list(itertools.islice(order, self.batch_size * self.world_size))
            first = first or keys
            missing = -len(keys) % self.world_size
            keys = keys + [first[place % len(first)] for place in range(missing)]
            share = len(keys) // self.world_size
            if batch >= skip:
                yield keys[self.rank * share : (self.rank + 1) * share]

    def _order(self, epoch: int) -> Iterable[SampleKey]:
        """The samples of an epoch, for all ranks together."""
        if self.order is not None:
            return self.order(epoch)
        if self.shuffle:
            draws = generator("order", self.seed, epoch)
            order = torch.randperm(self.num_tracks, generator=draws).tolist()
        else:
            order = list(range(self.num_tracks))
        return (SampleKey(row, epoch) for row in order)


@dataclass(frozen=True)
class _Failure:
    """An error on its way from a worker to the main process, where it is raised as it was."""

    error: StableAudioError


class _Samples(Dataset[Any]):
    """The dataset as workers see it: an error that a user can act on becomes a value.

    Raised in a worker it would reach the user as a page of traceback around one line.
    """

    def __init__(self, dataset: TrackDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, Info] | _Failure:
        try:
            return self.dataset[key]
        except StableAudioError as error:
            return _Failure(error)


def _collate(samples: Sequence[Any]) -> Batch | _Failure:
    failure = next((sample for sample in samples if isinstance(sample, _Failure)), None)
    return failure or collate(samples)


def _leave_signals_to_the_parent(_: int) -> None:
    """Let Ctrl-C, or a notice that Slurm sends to every process of a job, reach the parent alone.

    It still needs batches, to end a step and save. A worker ends when the parent says so, or is gone.
    """
    for name in ("SIGINT", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_on_the_parent_s_word, args=(os.getppid(),), daemon=True).start()


def _end_on_the_parent_s_word(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class AudioLoader(DataLoader[Any]):
    """A :class:`~torch.utils.data.DataLoader` of ``(audio (B, C, T), tuple of info dicts)``."""

    def check_worker_number_rationality(self) -> None:
        """Nothing: more workers than processors are slower, if at all, and no cause for a page of warning."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, _Failure):
                raise batch.error
            yield batch


@dataclass(frozen=True)
class Window:
    """What a model takes: ``sample_size`` audio samples at ``sample_rate`` Hz in ``audio_channels``."""

    sample_size: int
    sample_rate: int
    audio_channels: int


def _of_audio(
    config: AudioDirDataset,
    window: Window,
    *,
    base_dir: Path | None,
    seed: int,
    shuffle: bool,
    apply_excludes: bool,
) -> TrackDataset:
    return LocalDataset(
        TrackIndex.from_config(config, base_dir=base_dir, apply_excludes=apply_excludes),
        sample_size=window.sample_size,
        sample_rate=window.sample_rate,
        audio_channels=window.audio_channels,
        random_crop=config.random_crop,
        seed=seed,
        augment_polarity=config.augment_polarity,
        volume_norm=config.volume_norm,
        on_error=config.on_error,
        vary_prompts=shuffle,
    )


def _of_latents(
    config: PreEncodedDataset,
    window: Window,
    *,
    base_dir: Path | None,
    seed: int,
    **_: Any,
) -> TrackDataset:
    index = latent_index(config, base_dir)
    return LatentDataset(
        fit_to_model(index, sample_size=window.sample_size, sample_rate=window.sample_rate),
        random_crop=config.random_crop,
        seed=seed,
        on_error=config.on_error,
    )


def _of_shards(
    config: WebDataset,
    window: Window,
    *,
    base_dir: Path | None,
    seed: int,
    shuffle: bool,
    apply_excludes: bool,
) -> TrackDataset:
    index = ShardIndex.from_shards(config, base_dir=base_dir, apply_excludes=apply_excludes)
    if config.pre_encoded:
        return ShardLatentDataset(index, config, sample_rate=window.sample_rate, seed=seed)
    return ShardDataset(
        index,
        config,
        sample_size=window.sample_size,
        sample_rate=window.sample_rate,
        audio_channels=window.audio_channels,
        seed=seed,
        vary_prompts=shuffle,
    )


DATASETS: dict[type[Config], Callable[..., TrackDataset]] = {
    AudioDirDataset: _of_audio,
    PreEncodedDataset: _of_latents,
    WebDataset: _of_shards,
}
"""What reads the tracks of each type of dataset, by the class of its config."""


def create_dataloader_from_config(
    dataset_config: dict[str, Any] | DatasetConfig,
    batch_size: int,
    sample_size: int,
    sample_rate: int,
    audio_channels: int = 2,
    num_workers: int = 4,
    shuffle: bool = True,
    *,
    seed: int = 42,
    base_dir: Path | None = None,
    start_batch: int = 0,
    infinite: bool = False,
    rank: int = 0,
    world_size: int = 1,
    drop_last: bool | None = None,
    apply_excludes: bool = True,
    multiprocessing_context: str | None = None,
) -> AudioLoader:
    """A loader of crops from the recordings that ``dataset_config`` names.

    Batches are ``(audio, infos)``: float32 ``(B, C, sample_size)`` at ``sample_rate`` Hz and a tuple of B
    dicts, see :class:`~stable_audio_tools.data.local.LocalDataset`. They depend on the seed and the batch
    number only, not on workers, restarts or the order of reading.

    Args:
        dataset_config: the config, or its JSON value.
        batch_size: samples in a batch of this rank.
        sample_size: audio samples in a crop.
        sample_rate: rate in Hz.
        audio_channels: channels of the crops.
        num_workers: processes that decode; 0 decodes in this one.
        shuffle: draw the order of each epoch, and prompts where the config has several; otherwise the order
            of the index, and one prompt a track.
        seed: of order, crops and prompts.
        base_dir: where relative paths are looked up after the working folder: the config file's folder.
        start_batch: how many batches to skip, without decoding them.
        infinite: never end; otherwise one epoch for each iteration.
        rank: this process among ``world_size``.
        world_size: how many processes share each batch.
        drop_last: overrides the config's.
        apply_excludes: leave out what the config's exclude list names.
        multiprocessing_context: ``fork``, ``spawn`` or ``forkserver``; None is the platform's.

    Raises:
        ConfigError: the config is wrong, or of a type that can be read but is not built.
        DataError: no tracks, or fewer than a batch.
    """
    config = parse_dataset_config(dataset_config) if isinstance(dataset_config, dict) else dataset_config
    make = DATASETS.get(type(config))
    if make is None:
        raise not_built(config, DATASETS, "", "dataset_type")
    window = Window(sample_size, sample_rate, audio_channels)
    dataset = make(
        config, window, base_dir=base_dir, seed=seed, shuffle=shuffle, apply_excludes=apply_excludes
    )
    order = dataset.epoch_order(batch_size * world_size, shuffle)
    batches = KeyedBatchSampler(
        len(dataset) if order is None else order.num_samples,
        batch_size,
        shuffle=shuffle,
        seed=seed,
        rank=rank,
        world_size=world_size,
        drop_last=config.drop_last if drop_last is None else drop_last,
        start_batch=start_batch,
        infinite=infinite,
        order=order,
    )
    return make_loader(dataset, batches, num_workers, multiprocessing_context)


def make_loader(
    dataset: TrackDataset,
    batches: Sampler[list[SampleKey]] | Sequence[list[SampleKey]],
    num_workers: int = 4,
    multiprocessing_context: str | None = None,
) -> AudioLoader:
    """A loader of the given batches of sample keys, in their order."""
    return AudioLoader(
        _Samples(dataset),
        batch_sampler=batches,
        collate_fn=_collate,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=_leave_signals_to_the_parent,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context=multiprocessing_context if num_workers > 0 else None,
    )
