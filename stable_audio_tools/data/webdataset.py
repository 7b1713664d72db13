"""Recordings in tar files, on disk or on S3, as crops that any process can read in any order.

A shard's table of contents (``shards.py``) makes every sample one ranged read, so that its rows are an index
like that of a folder: ranks divide each batch, workers change nothing, a resumed run starts where it was.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import soundfile
import torch
from torch import Tensor

from stable_audio_tools.audio import packets
from stable_audio_tools.audio.files import AUDIO_SUFFIXES, AudioInfo, probe, read_audio
from stable_audio_tools.audio.transforms import shorten_silences
from stable_audio_tools.data.captions import Description, json_fields, tag_fields
from stable_audio_tools.data.fields import LOADER_KEYS
from stable_audio_tools.data.index import Fault, Track, TrackIndex, audio_dir, is_text, without_excluded
from stable_audio_tools.data.latent_files import DETAILS
from stable_audio_tools.data.local import LocalDataset
from stable_audio_tools.data.metadata import resolve_module_path
from stable_audio_tools.data.paths import find_path
from stable_audio_tools.data.sample import Info
from stable_audio_tools.data.shard_order import ShardOrder
from stable_audio_tools.data.shard_stores import LocalShards, S3Shards, Shard, ShardStore
from stable_audio_tools.data.shards import Member, default_index_dir, read_contents, samples_of
from stable_audio_tools.data.sources import ShardSource, Source
from stable_audio_tools.errors import ConfigError, DataError
from stable_audio_tools.runtime.progress import warn
from stable_audio_tools.schema.dataset import DatasetConfig, WebDataset, WebDatasetShards

# Members of a sample that are closer than this are read at once.
_GAP_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class ShardTrack(Track):
    """A recording in a shard; ``relpath`` is ``<shard>/<member>``, ``path`` only names it."""

    shard: Shard
    audio: Member
    members: tuple[Member, ...]
    reader: ShardReader
    details: Member | None = None
    """The shard's ``details.json``, of latents."""

    @property
    def place(self) -> str:
        return self.source.place

    @property
    def source(self) -> Source:
        return ShardSource(self.path, self.reader.store, self.shard, self.audio)

    @property
    def other_names(self) -> tuple[str, ...]:
        return self.sample_id, self.place

    def exclude_name(self, relpath_is_unique: bool) -> str:
        """Its sample id, which stays when the shards move to another disk or bucket."""
        return self.sample_id

    @property
    def num_bytes(self) -> int | None:
        return self.audio.size


class ShardReader:
    """Samples of one store. The last one is kept, since its audio and its metadata are asked for in turn."""

    def __init__(self, store: ShardStore) -> None:
        self.store = store
        self._last: tuple[str, dict[str, bytes]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    def contents(self, track: ShardTrack) -> dict[str, bytes]:
        """What the members of a sample hold, by their names."""
        last = self._last  # threads may ask: each takes what it read
        if last is None or last[0] != track.relpath:
            last = self._last = (track.relpath, self._read(track))
        return last[1]

    def _read(self, track: ShardTrack) -> dict[str, bytes]:
        contents: dict[str, bytes] = {}
        group: list[Member] = []
        for member in sorted(track.members, key=lambda member: member.offset):
            if group and member.offset - group[-1].offset - group[-1].size > _GAP_BYTES:
                contents |= self._read_group(track.shard, group)
                group = []
            group.append(member)
        return contents | self._read_group(track.shard, group)

    def _read_group(self, shard: Shard, group: Sequence[Member]) -> dict[str, bytes]:
        start, end = group[0].offset, max(member.offset + member.size for member in group)
        content = self.store.read(shard, start, end - start)
        return {
            member.name: content[member.offset - start : member.offset - start + member.size]
            for member in group
        }


class ShardRows(Mapping[str, Mapping[str, Any]]):
    """What is known of each recording by its ``relpath``, read from its shard when it is asked for."""

    def __init__(self, tags: bool) -> None:
        self._tags = tags
        self._tracks: dict[str, ShardTrack] = {}

    def add(self, track: ShardTrack) -> None:
        self._tracks[track.relpath] = track

    def __getitem__(self, relpath: str) -> Mapping[str, Any]:
        track = self._tracks[relpath]
        contents = track.reader.contents(track)
        tags: dict[str, Any] = {}
        caption: dict[str, Any] = {}
        said: dict[str, Any] = {}
        if self._tags:
            read = packets.read_tags(Path(track.place), contents[track.audio.name])
            tags = tag_fields(read, f"{track.place}: its tags")
        for name, content in contents.items():
            suffix = PurePosixPath(name).suffix.lower()
            where = f"{track.reader.store.where(track.shard)}/{name}"
            if suffix == ".txt" and (text := " ".join(_text(content, where).split())):
                caption["prompt"] = text
            elif suffix == ".json":
                said |= _said(_text(content, where), where, track.audio.name)
        return {**tags, **caption, **said}

    def __iter__(self) -> Iterator[str]:
        return iter(self._tracks)

    def __len__(self) -> int:
        return len(self._tracks)


class ShardIndex(TrackIndex):
    """The recordings of all shards, in the order of their datasets, shards and members.

    ``shard_rows`` are the rows of each shard.
    """

    def __init__(
        self,
        shards: Sequence[Sequence[ShardTrack]],
        *,
        excluded: int = 0,
        unsupported: Sequence[Path] = (),
        faults: Sequence[Fault] = (),
    ) -> None:
        super().__init__(
            [track for tracks in shards for track in tracks],
            excluded=excluded,
            unsupported=unsupported,
            faults=faults,
        )
        self.shard_rows: list[range] = []
        start = 0
        for tracks in shards:
            self.shard_rows.append(range(start, start + len(tracks)))
            start += len(tracks)

    @classmethod
    def from_shards(
        cls, config: WebDataset, *, base_dir: Path | None = None, apply_excludes: bool = True
    ) -> ShardIndex:
        """List the recordings of ``config``; relative paths are looked up here, then in ``base_dir``.

        An exclude list names them by their sample id, or by their path from the folder of shards, as
        ``000.tar/42.mp3``.

        Raises:
            DataError: a folder or bucket is missing or refuses, a shard is damaged (``on_error="skip"`` takes
                what is before the damage, with a warning), or there are no recordings left.
        """
        index_dir = Path(config.index_dir).expanduser() if config.index_dir else default_index_dir()
        shards: list[list[ShardTrack]] = []
        unsupported: list[Path] = []
        faults: list[Fault] = []
        for entry in config.datasets:
            found, listing = _list_shards(entry, config, base_dir, index_dir)
            shards += found
            unsupported += listing.refused
            faults += listing.faults
        places = ", ".join(str(entry.path or entry.s3_path) for entry in config.datasets)
        listed = sum(map(len, shards))
        if not listed:
            raise DataError(f"no recordings in the shards of {places}; expected .tar files of audio files")
        if apply_excludes and config.exclude_paths_file is not None:
            everything = [track for tracks in shards for track in tracks]
            kept = without_excluded(everything, config.exclude_paths_file, base_dir)
            stays = {id(track) for track in kept}
            shards = [[track for track in tracks if id(track) in stays] for tracks in shards]
            if not kept:
                raise DataError(
                    f"all {listed} recordings in the shards of {places} are on the exclude list"
                    f" {config.exclude_paths_file}"
                )
        shards = [tracks for tracks in shards if tracks]
        excluded = listed - sum(map(len, shards))
        return cls(shards, excluded=excluded, unsupported=unsupported, faults=faults)


def recordings_of(
    config: DatasetConfig, *, base_dir: Path | None = None, apply_excludes: bool = True, lenient: bool = False
) -> TrackIndex:
    """The recordings of a dataset, in folders or in shards, for what reads each of them whole.

    Args:
        config: of the dataset.
        base_dir: where relative paths are looked up after the working folder.
        apply_excludes: leave out what the config's exclude list names.
        lenient: list what can be listed, as under ``on_error="skip"``.

    Raises:
        ConfigError: the dataset holds no recordings but latents.
        DataError: a folder, bucket, list or shard is missing, or no track is left.
    """
    if isinstance(config, WebDataset):
        if config.pre_encoded:
            raise ConfigError("pre_encoded: these shards hold latents; expected shards of recordings")
        shards = config.model_copy(update={"on_error": "skip"}) if lenient else config
        return ShardIndex.from_shards(shards, base_dir=base_dir, apply_excludes=apply_excludes)
    folders = audio_dir(config)
    if lenient:
        folders = folders.model_copy(update={"on_error": "skip"})
    return TrackIndex.from_config(folders, base_dir=base_dir, apply_excludes=apply_excludes)


class ShardDataset(LocalDataset):
    """The crops of :class:`~stable_audio_tools.data.local.LocalDataset`, of recordings in shards.

    Args:
        index: the recordings.
        config: what else is asked of them.
        **options: of ``LocalDataset``.
    """

    index: ShardIndex

    def __init__(self, index: ShardIndex, config: WebDataset, **options: Any) -> None:
        super().__init__(
            index,
            random_crop=config.random_crop,
            augment_polarity=config.augment_polarity,
            volume_norm=config.volume_norm,
            on_error=config.on_error,
            **options,
        )
        self.config = config

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

    def _file(self, track: Track) -> AudioInfo:
        assert isinstance(track, ShardTrack)
        info = probe(track.path, track.reader.contents(track)[track.audio.name])
        if not self.config.remove_silence or info.channels != 1:
            return info
        audio, rate = read_audio(info, sample_rate=self.sample_rate)
        level, kept_seconds = self.config.silence_threshold
        shorter = shorten_silences(
            audio,
            level=level,
            longest=round(max(self.config.max_silence_duration, kept_seconds) * rate),
            kept=round(kept_seconds * rate),
        )
        content = io.BytesIO()
        soundfile.write(content, shorter.T.numpy(), rate, format="WAV", subtype="FLOAT")
        return probe(track.path.with_suffix(".wav"), content.getvalue())

    def _level(self, draws: torch.Generator) -> float:
        middle, width = self.config.volume_norm_param
        return middle + width * (2 * float(torch.rand((), generator=draws)) - 1)


def _store_of(entry: WebDatasetShards, base_dir: Path | None) -> ShardStore:
    if entry.s3_path is not None:
        return S3Shards(
            entry.s3_path,
            profile=entry.profile,
            endpoint_url=entry.endpoint_url,
            anonymous=entry.anonymous,
        )
    assert entry.path is not None
    path, tried = find_path(entry.path, base_dir)
    if path is None:
        places = " or ".join(str(place) for place in tried)
        raise DataError(f"dataset {entry.id!r}: path {entry.path!r} does not exist; looked for {places}")
    return LocalShards(path.absolute())


@dataclass
class _Listing:
    """The recordings of an entry while its shards are listed, and what is left out."""

    entry: WebDatasetShards
    store: ShardStore
    module: str | None
    suffixes: frozenset[str]
    rows: ShardRows
    empty: list[str] = field(default_factory=list)
    refused: list[Path] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reader = ShardReader(self.store)
        self.root = Path(self.store.place)
        self.description = Description(("manifest",), self.rows, self.entry.prompts)

    def tracks(self, shard: Shard, members: Sequence[Member]) -> list[ShardTrack]:
        where = self.store.where(shard)
        folder = Path(where)
        tracks = []
        details = next((member for member in members if member.name == DETAILS), None)
        for key, sample in samples_of(members).items():
            audio = next((member for member in sample if member.suffix in self.suffixes), None)
            if audio is None:
                self.empty += [] if details in sample else [f"{where}/{key}"]
                continue
            relpath = f"{shard.name}/{audio.name}"
            if not is_text(relpath):
                self.refused.append(Path(where) / audio.name)
                continue
            track = ShardTrack(
                -1,
                f"{self.entry.id}/{relpath}",
                folder / audio.name,
                relpath,
                self.root,
                self.entry.id,
                self.module,
                self.description,
                shard=shard,
                audio=audio,
                members=tuple(member for member in sample if member is audio or _describes(member)),
                reader=self.reader,
                details=details,
            )
            self.rows.add(track)
            tracks.append(track)
        return tracks

    @property
    def faults(self) -> list[Fault]:
        """What never became a track, but for what is refused by its name."""
        broken = [Fault("broken-shard", where, damage) for where, damage in self.damaged.items()]
        return broken + [Fault("no-recording", sample, self._why_empty) for sample in self.empty]

    @property
    def _why_empty(self) -> str:
        return f"has no file of these: {' '.join(sorted(self.suffixes))}"

    def warn(self) -> None:
        """Say what is left out."""
        what = "recording" if self.suffixes is AUDIO_SUFFIXES else "latents"
        if self.empty:
            warn(f"{len(self.empty)} samples hold no {what} and are left out, the first is {self.empty[0]}")
        if self.refused:
            first = repr(str(self.refused[0]))
            warn(f"{len(self.refused)} samples are left out, their name is not UTF-8: {first}")


def _list_shards(
    entry: WebDatasetShards, config: WebDataset, base_dir: Path | None, index_dir: Path
) -> tuple[list[list[ShardTrack]], _Listing]:
    """The recordings of each shard of an entry, and what cannot be taken."""
    store = _store_of(entry, base_dir)
    shards = store.shards()
    if not shards:
        raise DataError(f"dataset {entry.id!r}: no .tar files in {store.place}")
    module = entry.custom_metadata_module
    if module is not None:
        module = str(resolve_module_path(module, base_dir))
    suffixes = frozenset({".npy"}) if config.pre_encoded else AUDIO_SUFFIXES
    listing = _Listing(entry, store, module, suffixes, ShardRows(tags=module is None))
    found: list[list[ShardTrack]] = []
    for shard, contents in zip(shards, read_contents(store, shards, index_dir), strict=True):
        if contents.damage is not None:
            message = (
                f"{store.where(shard)}: {contents.damage}; {len(contents.members)} members are before that"
            )
            if config.on_error == "raise":
                raise DataError(f"{message}; fetch it again, or set on_error to 'skip' to use those")
            listing.damaged[store.where(shard)] = message.removeprefix(f"{store.where(shard)}: ")
            warn(message)
        found.append(listing.tracks(shard, contents.members))
    listing.warn()
    return found, listing


def _describes(member: Member) -> bool:
    return member.suffix in (".json", ".txt")


def _said(text: str, where: str, track: str) -> dict[str, Any]:
    """The JSON under our names, and under its own for metadata modules that know those."""
    fields = json_fields(text, where, track)
    return {**{name: value for name, value in json.loads(text).items() if name not in LOADER_KEYS}, **fields}


def _text(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text: {error}") from error
