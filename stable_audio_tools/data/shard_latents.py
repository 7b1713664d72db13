"""Latents in tar files: what ``pre_encode.py`` stores, packed as shards.

A sample is ``<name>.npy`` and ``<name>.json``. ``details.json``, packed with them, says how long a latent is,
without which a crop from the middle cannot be placed in seconds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from stable_audio_tools.data.index import Track
from stable_audio_tools.data.latent_files import read_latents
from stable_audio_tools.data.latents import LatentDataset, LatentTrack
from stable_audio_tools.data.sample import Info
from stable_audio_tools.data.shard_order import ShardOrder
from stable_audio_tools.data.webdataset import ShardIndex, ShardTrack
from stable_audio_tools.errors import DataError
from stable_audio_tools.schema.dataset import WebDataset


@dataclass(frozen=True, kw_only=True)
class ShardLatentTrack(ShardTrack, LatentTrack):
    """Latents in a shard."""


class ShardLatentDataset(LatentDataset):
    """The crops of :class:`~stable_audio_tools.data.latents.LatentDataset`, of latents in shards.

    Without a ``latent_crop_length`` latents are taken as they are stored, which must be of one length.

    Args:
        index: of the ``.npy`` files.
        config: what else is asked of them.
        sample_rate: of the model, in Hz.
        seed: of the crops and their order.
    """

    index: ShardIndex

    def __init__(self, index: ShardIndex, config: WebDataset, *, sample_rate: int, seed: int = 42) -> None:
        ratios: dict[str, int | None] = {}
        shards: list[list[ShardTrack]] = []
        for rows in index.shard_rows:
            tracks = [track for track in index[rows.start : rows.stop] if isinstance(track, ShardTrack)]
            shards.append([_with_latents(track, config, ratios) for track in tracks])
        super().__init__(
            ShardIndex(shards, excluded=index.excluded, unsupported=index.unsupported),
            random_crop=config.random_crop and config.latent_crop_length is not None,
            seed=seed,
            on_error=config.on_error,
        )
        self.config = config
        self.sample_rate = sample_rate
        self._stored_length: int | None = None

    def epoch_order(self, batch_size: int, shuffle: bool) -> ShardOrder | None:
        return (
            ShardOrder.asked_for(self.config, self.index.shard_rows, self.seed, batch_size)
            if shuffle
            else None
        )

    def _load(self, track: Track, epoch: int) -> tuple[Tensor, Info] | None:
        try:
            return super()._load(track, epoch)
        except DataError as error:  # a path cannot hold the two slashes of s3://
            raise type(error)(str(error).replace(str(track.path), track.place)) from error

    def _record(self, track: LatentTrack, path: Path) -> dict[str, Any]:
        assert isinstance(track, ShardLatentTrack)
        contents = track.reader.contents(track)
        beside = next((name for name in contents if name.endswith(".json")), None)
        if beside is None:
            raise DataError(f"{path}: there is no JSON beside it; pack both files of each sample")
        try:
            record = json.loads(contents[beside])
        except ValueError as error:
            raise DataError(f"{path.parent / Path(beside).name}: cannot be read as JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataError(
                f"{path.parent / Path(beside).name}: found {type(record).__name__}, not an object"
            )
        if record.get("padding_mask") is None:
            record["padding_mask"] = [1] * self._latents(track, path, 0, None).shape[-1]
        if record.get("sample_rate") not in (None, self.sample_rate):
            raise DataError(
                f"{path}: latents of audio at {record['sample_rate']} Hz, but the model is for"
                f" {self.sample_rate} Hz; encode the recordings with its own autoencoder"
            )
        self._check_length(path, len(record["padding_mask"]))
        return record

    def _latents(self, track: LatentTrack, path: Path, start: int, length: int | None) -> Tensor:
        assert isinstance(track, ShardLatentTrack)
        return read_latents(path, start, length, data=track.reader.contents(track)[track.audio.name])

    def _check_length(self, path: Path, length: int) -> None:
        if self.config.latent_crop_length is not None:
            return
        self._stored_length = self._stored_length or length
        if length != self._stored_length:
            raise DataError(
                f"{path}: {length} latents, others are {self._stored_length}; set latent_crop_length, since a"
                " batch holds one length"
            )


def _with_latents(track: ShardTrack, config: WebDataset, ratios: dict[str, int | None]) -> ShardLatentTrack:
    place = track.reader.store.where(track.shard)
    if place not in ratios:
        ratios[place] = _ratio(track)
    known = {entry.name: getattr(track, entry.name) for entry in fields(ShardTrack)}
    return ShardLatentTrack(
        **known,
        crops=(track.path,),
        crop_length=config.latent_crop_length,
        frame_samples=ratios[place],
    )


def _ratio(track: ShardTrack) -> int | None:
    """Audio samples per latent, as the shard's ``details.json`` says, if it has one."""
    if track.details is None:
        return None
    where = f"{track.reader.store.where(track.shard)}/{track.details.name}"
    content = track.reader.store.read(track.shard, track.details.offset, track.details.size)
    try:
        details = json.loads(content)
    except ValueError as error:
        raise DataError(f"{where}: cannot be read as JSON: {error}") from error
    if not isinstance(details, dict):
        raise DataError(f"{where}: found {type(details).__name__}, expected an object")
    facts = details.get("latents") or {}
    return facts.get("downsampling_ratio")
