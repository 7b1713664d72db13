"""Crops of local recordings, each a function of (seed, epoch, row) alone."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from stable_audio_tools.audio.files import AudioInfo, probe, read_audio
from stable_audio_tools.audio.transforms import pad_or_trim, resampled_length, rms_normalize, set_channels
from stable_audio_tools.data.index import Track, TrackIndex
from stable_audio_tools.data.metadata import MetadataFunction, load_metadata_function
from stable_audio_tools.data.sample import EpochOrder, Info, SampleKey
from stable_audio_tools.errors import DataError
from stable_audio_tools.runtime.progress import warn
from stable_audio_tools.runtime.seeds import generator

# What names a sample and says where it is from: changed, a result would be laid to the wrong track.
_OURS = {"index", "sample_id", "dataset_id", "replaced"}
# So many unusable tracks in a row are no accident: the dataset is broken, and reading all of it helps nobody.
_MAX_ERRORS = 100


class TrackDataset(Dataset[tuple[Tensor, Info]]):
    """Samples of the tracks of an index; a subclass says how one is read.

    ``dataset[i]`` is track i in epoch 0, ``dataset[SampleKey(i, epoch)]`` its crop of another epoch. The same
    key gives the same sample in any process and any order.

    A track that is rejected, or unreadable under ``on_error="skip"``, is replaced by the next one that is
    not, and ``info["replaced"]`` is the ``sample_id`` of the track that was asked for.

    Args:
        index: the tracks.
        seed: of the crops.
        on_error: ``raise``, or ``skip`` to warn once for each file and go on with the next.
    """

    def __init__(
        self, index: TrackIndex, *, seed: int = 42, on_error: Literal["raise", "skip"] = "raise"
    ) -> None:
        self.index = index
        self.seed = seed
        self.on_error = on_error
        modules = sorted({track.metadata_module for track in index if track.metadata_module is not None})
        self._metadata: dict[str, MetadataFunction] = {name: load_metadata_function(name) for name in modules}
        self._warned: set[str] = set()

    def __len__(self) -> int:
        return len(self.index)

    def epoch_order(self, batch_size: int, shuffle: bool) -> EpochOrder | None:
        """The order of an epoch where the dataset has its own; None is a permutation of the index.

        Args:
            batch_size: samples in a batch of all ranks.
            shuffle: draw the order; otherwise that of the index.
        """
        return None

    def __getitem__(self, key: int | SampleKey) -> tuple[Tensor, Info]:
        row, epoch = key if isinstance(key, SampleKey) else (key, 0)
        asked_for = self.index[row]
        errors: list[DataError] = []
        for step in range(len(self.index)):
            track = self.index[(asked_for.index + step) % len(self.index)]
            result = self._try_track(track, epoch)
            if isinstance(result, DataError):
                errors.append(result)
                if len(errors) == _MAX_ERRORS:
                    break
            elif result is not None:
                if step:
                    result[1]["replaced"] = asked_for.sample_id
                return result
        why = f"the last one: {errors[-1]}" if errors else "get_custom_metadata rejects each"
        raise DataError(f"none of {step + 1} tracks from {asked_for.sample_id} on can be used; {why}")

    def _try_track(self, track: Track, epoch: int) -> tuple[Tensor, Info] | DataError | None:
        """The sample, None if the metadata function rejects the track, or the error that is to be skipped."""
        try:
            return self._load(track, epoch)
        except DataError as error:
            if self.on_error == "raise":
                raise
            if track.sample_id not in self._warned:
                self._warned.add(track.sample_id)
                warn(f"skipped, the next track takes its place: {error}")
            return error

    def _load(self, track: Track, epoch: int) -> tuple[Tensor, Info] | None:
        """The sample of a track in an epoch, or None where its metadata function rejects it."""
        raise TypeError(f"{type(self).__name__} must define _load")

    def _known(self, track: Track, info: Info, audio: Tensor | None) -> dict[str, Any] | None:
        """What the track's metadata function adds to ``info``, orders included; None if it rejects it.

        Raises:
            DataError: the function fails, or sets what names a sample.
        """
        if track.metadata_module is None:
            return {}
        extra = dict(self._metadata[track.metadata_module](info, audio))
        if extra.pop("__reject__", False):
            return None
        if taken := _OURS & extra.keys():
            raise DataError(f"{track.metadata_module}: get_custom_metadata may not set {sorted(taken)}")
        return extra


class LocalDataset(TrackDataset):
    """Audio files as crops of one length, rate and number of channels.

    ``dataset[i]`` is track i in epoch 0, ``dataset[SampleKey(i, epoch)]`` its crop of another epoch. The same
    key gives the same crop in any process and any order. Shorter recordings are zero-padded at the end.

    Each sample is ``(audio, info)``: audio float32 ``(C, sample_size)`` and a dict with ``index``,
    ``sample_id``, ``path``, ``relpath``, ``dataset_id``, ``seconds_start`` (whole seconds before the crop),
    ``seconds_total`` (whole seconds of the recording, rounded up), ``offset_seconds`` and
    ``duration_seconds`` (the same, exact), ``sample_rate``, ``padding_mask`` (``(sample_size,)``, 1 is
    audio), ``timestamps`` (start and end of the crop as shares of the recording), what the track's
    ``description`` knows of it (``prompt``, ``artist``, ...), and whatever the metadata function returns,
    which goes before that. Two of its keys are orders: ``__audio__`` replaces the audio, ``__reject__`` asks
    for another track.

    A track that is rejected, or unreadable under ``on_error="skip"``, is replaced by the next one that is
    not, and ``info["replaced"]`` is the ``sample_id`` of the track that was asked for.

    Args:
        index: the tracks.
        sample_size: audio samples in a crop.
        sample_rate: rate of the crops in Hz.
        audio_channels: channels of the crops.
        random_crop: crop anywhere; otherwise from the start.
        seed: of the crops.
        augment_polarity: flip the sign of half the crops.
        volume_norm: bring each crop to -16 dBFS root mean square, with no peak above 1.
        on_error: ``raise``, or ``skip`` to warn once for each file and go on with the next.
        vary_prompts: draw captions, templates and tags anew for each track and epoch, where the config says
            how; otherwise a track has one prompt.
    """

    def __init__(
        self,
        index: TrackIndex,
        *,
        sample_size: int,
        sample_rate: int,
        audio_channels: int = 2,
        random_crop: bool = True,
        seed: int = 42,
        augment_polarity: bool = False,
        volume_norm: bool = False,
        on_error: Literal["raise", "skip"] = "raise",
        vary_prompts: bool = False,
    ) -> None:
        super().__init__(index, seed=seed, on_error=on_error)
        self.sample_size = sample_size
        self.sample_rate = sample_rate
        self.audio_channels = audio_channels
        self.random_crop = random_crop
        self.augment_polarity = augment_polarity
        self.volume_norm = volume_norm
        self.vary_prompts = vary_prompts

    def _load(self, track: Track, epoch: int) -> tuple[Tensor, Info] | None:
        draws = generator("crop", self.seed, epoch, track.index)
        audio, info = self._crop(track, draws)
        words = generator("prompt", self.seed, epoch, track.sample_id) if self.vary_prompts else None
        known = track.description.known(track.path, track.relpath, words)
        info.update(known)
        extra = self._known(track, info, audio)
        if extra is None:
            return None
        replacement = extra.pop("__audio__", None)
        if replacement is not None:
            audio, info["padding_mask"] = self._fit(replacement, track)
        info.update(extra)
        if "prompt" not in extra:
            info.update(track.description.prompt({**known, **extra}, track.path, track.relpath, words))
        if self.volume_norm:
            audio = rms_normalize(audio, self._level(draws))
        if self.augment_polarity and bool(torch.rand((), generator=draws) < 0.5):
            audio = -audio
        return audio, info

    def _level(self, draws: torch.Generator) -> float:
        """The level in dBFS that a crop is brought to."""
        return -16.0

    def _file(self, track: Track) -> AudioInfo:
        """What holds the audio of ``track``."""
        return probe(track.path)

    def _crop(self, track: Track, draws: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        file = self._file(track)
        total = resampled_length(file.num_frames, file.sample_rate, self.sample_rate)
        room = max(0, total - self.sample_size)
        offset = int(torch.randint(room + 1, (), generator=draws)) if self.random_crop else 0
        audio, _ = read_audio(
            file,
            offset_seconds=offset / self.sample_rate,
            duration_seconds=self.sample_size / self.sample_rate,
            sample_rate=self.sample_rate,
            channels=self.audio_channels,
        )
        audio, mask = pad_or_trim(audio, self.sample_size)
        return audio, {
            "index": track.index,
            "sample_id": track.sample_id,
            "path": track.place,
            "relpath": track.relpath,
            "dataset_id": track.dataset_id,
            "seconds_start": offset // self.sample_rate,
            "seconds_total": math.ceil(total / self.sample_rate),
            "offset_seconds": offset / self.sample_rate,
            "duration_seconds": total / self.sample_rate,
            "sample_rate": self.sample_rate,
            "padding_mask": mask,
            "timestamps": (offset / total, min(1.0, (offset + self.sample_size) / total)),
        }

    def _fit(self, audio: Any, track: Track) -> tuple[Tensor, Tensor]:
        """Audio from a metadata function, as every other sample is."""
        if not isinstance(audio, Tensor) or audio.ndim != 2 or not audio.is_floating_point():
            found = tuple(audio.shape) if isinstance(audio, Tensor) else type(audio).__name__
            raise DataError(
                f"{track.metadata_module}: __audio__ for {track.path} is {found}, expected floats (C, T)"
            )
        return pad_or_trim(set_channels(audio.float(), self.audio_channels), self.sample_size)
