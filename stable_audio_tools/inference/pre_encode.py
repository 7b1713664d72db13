"""Recordings to latents on disk, once, so that training reads them instead of encoding."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.audio.transforms import resampled_length
from stable_audio_tools.data.dataset import make_loader
from stable_audio_tools.data.index import Track, TrackIndex
from stable_audio_tools.data.latent_files import (
    DETAILS,
    FORMAT,
    Crop,
    latent_mask,
    read_details,
    remove_latents,
    stored_crops,
    write_latents,
)
from stable_audio_tools.data.local import LocalDataset
from stable_audio_tools.data.sample import Info, SampleKey
from stable_audio_tools.data.webdataset import ShardDataset, ShardIndex, ShardTrack, recordings_of
from stable_audio_tools.errors import ConfigError, DataError, StoreError, UsageError
from stable_audio_tools.inference.latent_encoder import EncoderFiles, LatentEncoder
from stable_audio_tools.inference.pre_encode_settings import PreEncodeSettings
from stable_audio_tools.inference.shares import Share, work_together
from stable_audio_tools.runtime.files import sha256_file, write_json
from stable_audio_tools.runtime.manifest import installed_versions
from stable_audio_tools.runtime.progress import progress_bar, say, warn
from stable_audio_tools.runtime.seeds import generator
from stable_audio_tools.schema.dataset import AudioDirDataset, WebDataset
from stable_audio_tools.schema.reader import read_dataset_config

_NOT_HEARD = frozenset(
    {"on_error", "drop_last", "exclude_paths_file"}
    | {"index_dir", "epoch_steps", "resampled_shards", "shuffle_buffer"}
)
_WHERE = {"path", "custom_metadata_module", "manifest", "s3_path", "profile", "endpoint_url", "anonymous"}
"""Keys of a dataset config that do not change what is stored."""

FAILED = "failed_files"
"""``failed_files-<rank>.json`` lists what a rank could not read, with the reasons."""


def pre_encode(settings: PreEncodeSettings) -> Path:
    """Store the latents of every track as ``settings`` say; returns the folder.

    Rank r of R encodes the rows r, r + R, ... of the index. Row and crop are in the name of each file, so
    that a run that was killed goes on where it stopped, also on another number of GPUs; on the same number
    bit for bit. Every track is encoded, the last few that fill no batch too; one shorter than the crop is
    padded, with its mask.

    Raises:
        StableAudioError: a config, a checkpoint, a file or a flag is wrong, or the folder belongs to another
            run.
    """
    job = Job.of(settings)
    share = Share.of_this_process(settings.num_gpus, settings.num_nodes)
    device = share.device(settings.device, settings.num_gpus)
    if settings.strategy != "auto":
        say(f"--strategy {settings.strategy} has no effect: the processes share nothing")
    if settings.model_half and device.type == "cpu":
        say("--model-half has no effect on a CPU")
    job.require_same_run()
    work_together(share, partial(_encode_share, settings))
    _report(job)
    return job.folder


def _encode_share(settings: PreEncodeSettings, share: Share) -> None:
    job = Job.of(settings)
    device = share.device(settings.device, settings.num_gpus)
    encoder = LatentEncoder(job.files.load(device), settings.kind, settings.float16)
    job.open_folder(encoder)
    job.encode(share, encoder)


@dataclass(frozen=True)
class Job:
    """What is encoded, and where it goes."""

    settings: PreEncodeSettings
    files: EncoderFiles
    dataset: AudioDirDataset | WebDataset
    index: TrackIndex
    folder: Path

    @classmethod
    def of(cls, settings: PreEncodeSettings) -> Job:
        """Read what ``settings`` name.

        Raises:
            StableAudioError: a config or a flag is wrong, or there are no tracks.
        """
        files = EncoderFiles.find(settings)
        dataset = read_dataset_config(settings.dataset_config)
        index = recordings_of(dataset, base_dir=Path(settings.dataset_config).parent)
        assert isinstance(dataset, AudioDirDataset | WebDataset)  # or recordings_of refuses
        if settings.crops > 1 and not dataset.random_crop:
            raise ConfigError(
                f"{settings.dataset_config}: random_crop is false, so --crops {settings.crops} would store"
                " one crop so many times; set it to true"
            )
        return cls(settings, files, dataset, index, Path(settings.output_path))

    def stamp(self) -> dict[str, Any]:
        """What the files depend on; how fast they are made, and how many, does not count."""
        modules = {track.metadata_module for track in self.index if track.metadata_module is not None}
        reading = self.dataset.model_dump(
            mode="json", exclude={**dict.fromkeys(_NOT_HEARD, True), "datasets": {"__all__": _WHERE}}
        )
        return {
            **self.files.stamp(),
            "dataset_config": reading,
            "tracks": self.index.hash,
            "metadata_modules": sorted(sha256_file(module) for module in modules),
            "sample_size": self.files.sample_size,
            "crops": self.settings.crops,
            "kind": self.settings.kind,
            "float16": self.settings.float16,
            "seed": self.settings.seed,
        }

    def require_same_run(self) -> None:
        """Refuse a folder that holds something else.

        Raises:
            StoreError: it was made from something else, or by the public package.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"--output-path: {self.folder} is a file, expected a folder")
        if not (self.folder / DETAILS).is_file():
            return
        then, now = read_details(self.folder).get("stamp"), self.stamp()
        if then is None:
            raise StoreError(
                f"{self.folder}: {DETAILS} is that of another program, so its latents cannot be continued;"
                " give another --output-path"
            )
        differing = [key for key, value in now.items() if then.get(key) != value]
        if differing:
            raise StoreError(
                f"{self.folder}: holds latents of another run, {', '.join(differing)} differ; give another"
                " --output-path, or what they were made with"
            )

    def open_folder(self, encoder: LatentEncoder) -> None:
        """Write ``details.json`` and ``tracks.jsonl``, or go on in a folder that has them."""
        if (self.folder / DETAILS).is_file():
            return
        self.index.write(self.folder / "tracks.jsonl")
        details = {
            "model_config": str(self.files.model_config),
            "dataset_config": self.dataset.model_dump(mode="json"),
            "sample_size": self.files.sample_size,
            "args": self.settings.as_dict(),
            "format": FORMAT,
            "latents": {"count": len(self.index) * self.settings.crops, **encoder.facts()},
            "stamp": self.stamp(),
            "versions": installed_versions(),
        }
        write_json(self.folder / DETAILS, details)

    def encode(self, share: Share, encoder: LatentEncoder) -> None:
        """Encode what is missing of a share."""
        done = stored_crops(self.folder, verify=self.settings.verify)
        batches = [batch for batch in self._batches(share) if any(Crop(*key) not in done for key in batch)]
        if not batches:
            return
        if share.rank == 0 and done:
            say(f"{self.folder}: {len(done)} crops are there, going on")
        remove_latents(self.folder, {Crop(*key) for batch in batches for key in batch} - done)
        dataset = self._tracks(encoder.channels)
        loader = make_loader(dataset, batches, self.settings.num_workers)
        failed: list[dict[str, str]] = []
        with _progress(share, sum(map(len, batches))) as advance:
            for keys, (audio, infos) in zip(batches, loader, strict=True):
                failed += self._store(share.rank, keys, audio, infos, encoder, done)
                advance(len(keys))
        list_of_failed = self.folder / f"{FAILED}-{share.rank}.json"
        if failed:
            write_json(list_of_failed, failed)
        else:
            list_of_failed.unlink(missing_ok=True)

    def _tracks(self, channels: int) -> TracksToEncode:
        """The recordings as the encoder takes them."""
        options: dict[str, Any] = {
            "sample_size": max(1, self.files.sample_size),
            "sample_rate": self.files.config.sample_rate,
            "audio_channels": channels,
            "seed": self.settings.seed,
            # one crop has the prompt that attribution asks with, several those of their epochs
            "vary_prompts": self.settings.crops > 1,
        }
        tracks: TracksToEncode
        if isinstance(self.index, ShardIndex):
            assert isinstance(self.dataset, WebDataset)
            tracks = ShardsToEncode(self.index, self.dataset, **options)
        else:
            tracks = TracksToEncode(
                self.index,
                random_crop=self.dataset.random_crop,
                augment_polarity=self.dataset.augment_polarity,
                volume_norm=self.dataset.volume_norm,
                on_error=self.dataset.on_error,
                **options,
            )
        tracks.whole = self.files.sample_size == 0
        return tracks

    def _batches(self, share: Share) -> list[list[SampleKey]]:
        """The batches of a share, the same whatever is done already, so that each is computed as it was."""
        rows = list(range(len(self.index)))
        if self.settings.shuffle:
            order = generator("pre-encode order", self.settings.seed)
            rows = torch.randperm(len(rows), generator=order).tolist()
        own = [row for row in rows if row % share.world_size == share.rank]
        keys = [SampleKey(row, crop) for row in own for crop in range(self.settings.crops)]
        # whole tracks differ in length, so each is a batch
        size = 1 if self.files.sample_size == 0 else self.settings.batch_size
        batches = [keys[start : start + size] for start in range(0, len(keys), size)]
        return batches[: self.settings.limit_batches]

    def _store(
        self,
        rank: int,
        keys: list[SampleKey],
        audio: Tensor,
        infos: tuple[Info, ...],
        encoder: LatentEncoder,
        done: set[Crop],
    ) -> list[dict[str, str]]:
        """Encode a batch and write what is missing of it; returns what could not be read, with reasons."""
        failed = [{"path": info["path"], "error": info["failed"]} for info in infos if "failed" in info]
        good = [place for place, info in enumerate(infos) if "failed" not in info]
        if not good:
            return failed
        device = next((p.device for p in encoder.pretransform.parameters()), torch.device("cpu"))
        draws = [
            generator("pre-encode", self.settings.seed, infos[place]["sample_id"], keys[place].epoch)
            for place in good
        ]
        kept = audio if len(good) == len(infos) else audio[good]
        stored = encoder.encode(kept.to(device), draws)
        for latents, place in zip(stored, good, strict=True):
            crop, info = Crop(*keys[place]), infos[place]
            if crop in done:
                continue
            mask = latent_mask(info["padding_mask"][None], latents.shape[-1])[0]
            record = {**info, "padding_mask": mask.int()}
            write_latents(self.folder, rank, crop, encoder.array(latents, info["path"]), record)
        return failed


class TracksToEncode(LocalDataset):
    """Crops of a track, or whole tracks, with the hash of the file; one that fails is not replaced.

    What cannot be read under ``on_error="skip"``, or is rejected, comes as silence; its info says ``failed``.
    """

    whole = False
    """Whether whole tracks are wanted, however long."""

    def __getitem__(self, key: int | SampleKey) -> tuple[Tensor, Info]:
        row, epoch = key if isinstance(key, SampleKey) else (key, 0)
        track = self.index[row]
        try:
            sample = self._load(track, epoch)
            if sample is not None:
                sample[1]["source_sha256"] = self._sha256(track)
                return sample
            reason = "rejected by its metadata module"
        except DataError as error:
            if self.on_error == "raise":
                raise
            reason = str(error)
        warn(f"left out: {track.place}: {reason}" if track.place not in reason else f"left out: {reason}")
        silence = torch.zeros(self.audio_channels, 1 if self.whole else self.sample_size)
        return silence, {"path": track.place, "failed": reason}

    def _crop(self, track: Track, draws: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        if self.whole:
            file = self._file(track)
            self.sample_size = resampled_length(file.num_frames, file.sample_rate, self.sample_rate)
        return super()._crop(track, draws)

    def _sha256(self, track: Track) -> str:
        """Of the recording's file."""
        return sha256_file(track.path)


class ShardsToEncode(TracksToEncode, ShardDataset):
    """The same of recordings in shards."""

    def _sha256(self, track: Track) -> str:
        """Of the bytes in the shard."""
        assert isinstance(track, ShardTrack)
        return hashlib.sha256(track.reader.contents(track)[track.audio.name]).hexdigest()


def _report(job: Job) -> None:
    found, expected = len(stored_crops(job.folder)), len(job.index) * job.settings.crops
    lists = sorted(job.folder.glob(f"{FAILED}-*.json"))
    rest = ""
    if found < expected:
        why = f"; {' and '.join(path.name for path in lists)} says what failed" if lists else ""
        rest = f"; the same command goes on{why}"
    say(f"{job.folder}: {found} of {expected} crops of {len(job.index)} tracks are stored{rest}")


@contextmanager
def _progress(share: Share, total: int) -> Iterator[Callable[[int], None]]:
    """A bar for the first process of a machine; those beside it have as much to do."""
    if share.local_rank:
        yield lambda count: None
        return
    of = f", process {share.rank} of {share.world_size}" if share.world_size > 1 else ""
    with progress_bar(f"encoding{of}", total) as bar:
        yield lambda count: bar.advance(bar.task_ids[0], count)
