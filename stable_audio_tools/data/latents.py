"""Crops of stored latents, each a function of (seed, epoch, row) alone, like those of recordings."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stable_audio_tools.data.index import FILELIST, Track, TrackIndex
from stable_audio_tools.data.latent_files import DETAILS, crop_of, read_details, read_latents, read_record
from stable_audio_tools.data.local import TrackDataset
from stable_audio_tools.data.metadata import resolve_module_path
from stable_audio_tools.data.paths import find_path, normalise_path, read_path_list
from stable_audio_tools.data.sample import Info
from stable_audio_tools.errors import ConfigError, DataError
from stable_audio_tools.runtime.progress import track as progress
from stable_audio_tools.runtime.progress import warn
from stable_audio_tools.runtime.seeds import generator
from stable_audio_tools.schema.dataset import LatentDirectory, PreEncodedDataset

# So many small files take some seconds to read; below it a progress bar only flickers.
_WORTH_A_BAR = 20_000


@dataclass(frozen=True)
class LatentTrack(Track):
    """A track as latents: one crop of it or several, of which ``path`` is the first.

    Attributes:
        crops: the files, in the order of their numbers; epoch e takes number e modulo how many there are.
        lengths: of the crops, in latents.
        crop_length: latents in a sample, as the config says; None takes a crop as it is stored.
        seconds_total: length of the recording, or None where nothing says it.
        sample_rate: of the recording as it was encoded, in Hz, or None.
        frame_samples: audio samples per latent, or None.
        silence: the latent of silence, a number per channel, for what is padded; empty pads with zeros.
    """

    crops: tuple[Path, ...] = ()
    lengths: tuple[int, ...] = ()
    crop_length: int | None = None
    seconds_total: float | None = None
    sample_rate: int | None = None
    frame_samples: int | None = None
    silence: tuple[float, ...] = ()


class LatentDataset(TrackDataset):
    """Stored latents as crops of one length.

    Where several crops of a track are stored, each epoch takes the next, as training on the recordings would
    have done: number k is what it takes in epoch k.

    Each sample is ``(latents, info)``: latents float32 ``(C, L)``, or codes int64 ``(Q, L)``, and the dict
    that was stored, brought up to date for the crop: ``padding_mask`` ``(L,)``, 1 is audio;
    ``seconds_start``, ``offset_seconds`` and ``timestamps`` of the crop; besides ``latent_filename``,
    ``latent_crop_start`` and ``latent_crop_length``. Latents shorter than the crop are padded at the end with
    silence. A metadata function is called as ``get_custom_metadata(info, None)``; ``__replace__`` replaces
    the latents.

    Args:
        index: of :class:`LatentTrack`, see :func:`latent_index` and :func:`fit_to_model`.
        random_crop: crop anywhere in what is not padding; otherwise from the start.
        seed: of the crops.
        on_error: see :class:`~stable_audio_tools.data.local.TrackDataset`.
    """

    def __init__(
        self,
        index: TrackIndex,
        *,
        random_crop: bool = False,
        seed: int = 42,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        super().__init__(index, seed=seed, on_error=on_error)
        self.random_crop = random_crop

    def _load(self, track: Track, epoch: int) -> tuple[Tensor, Info] | None:
        assert isinstance(track, LatentTrack)
        path = track.crops[epoch % len(track.crops)]
        info = self._record(track, path)
        stored = _stored_mask(path, info)
        # without a mask nothing is padding
        mask = (
            torch.ones(self._latents(track, path, 0, None).shape[-1])
            if stored is None
            else torch.tensor(stored).float()
        )
        real, length = _real_length(mask), track.crop_length or len(mask)
        start = 0
        if self.random_crop:
            draws = generator("crop", self.seed, epoch, track.index)
            start = int(torch.randint(max(0, real - length) + 1, (), generator=draws))
        latents = self._latents(track, path, start, length)
        if latents.shape[-1] != len(mask[start : start + length]):
            raise DataError(
                f"{path}: its padding_mask of {len(mask)} does not fit its length; encode it again"
            )
        info |= {
            "index": track.index,
            "sample_id": track.sample_id,
            "dataset_id": track.dataset_id,
            "latent_filename": str(path),
            "latent_crop_start": start,
            "latent_crop_length": length,
            "padding_mask": F.pad(mask[start : start + length], (0, length - latents.shape[-1])),
            **_place(path, info, start, length, track.frame_samples),
        }
        extra = self._known(track, info, None)
        if extra is None:
            return None
        if "__audio__" in extra:
            raise DataError(
                f"{track.metadata_module}: returned __audio__ for {path}, which holds latents;"
                " return __replace__ with latents (C, L)"
            )
        latents = self._replaced(extra.pop("__replace__", None), latents, track)
        return _padded(latents, length, track.silence), {**info, **extra}

    def _record(self, track: LatentTrack, path: Path) -> dict[str, Any]:
        """What was stored of the crop at ``path``."""
        return read_record(path)

    def _latents(self, track: LatentTrack, path: Path, start: int, length: int | None) -> Tensor:
        """Latents of the crop at ``path``, from ``start`` on."""
        return read_latents(path, start, length)

    def _replaced(self, replacement: Any, latents: Tensor, track: LatentTrack) -> Tensor:
        if replacement is None:
            return latents
        found = replacement.shape if isinstance(replacement, Tensor) else type(replacement).__name__
        if not isinstance(replacement, Tensor) or replacement.shape != latents.shape:
            raise DataError(
                f"{track.metadata_module}: __replace__ for {track.path} is {found}, expected latents of the"
                f" shape {tuple(latents.shape)}"
            )
        return replacement.to(latents.dtype)


def latent_index(config: PreEncodedDataset, base_dir: Path | None = None) -> TrackIndex:
    """The tracks that ``config`` names, in the order in which they were encoded.

    Crops of one track are one row, so that row i is track i of the index that was encoded, less what could
    not be read. What is shorter or longer than the config allows is left out.

    Raises:
        DataError: a folder, a latent's JSON or a metadata module is missing, or nothing is left.
    """
    found = [track for entry in config.datasets for track in _list_latents(entry, config, base_dir)]
    tracks = [track for track in found if _is_wanted(track.seconds_total, config)]
    left_out = len(found) - len(tracks)
    if not tracks:
        folders = ", ".join(entry.path for entry in config.datasets)
        why = (
            f"min_length_sec and max_length_sec leave out all {left_out} tracks" if left_out else "no latents"
        )
        raise DataError(f"{why} in {folders}; expected .{_suffix(config)} files with .json beside them")
    if left_out:
        warn(f"{left_out} tracks are shorter or longer than min_length_sec and max_length_sec allow")
    return TrackIndex(tracks)


def fit_to_model(index: TrackIndex, *, sample_size: int, sample_rate: int) -> TrackIndex:
    """The tracks of ``index``, each with one length to take, since a batch holds one.

    Without a ``latent_crop_length`` crops are taken as they are stored, or, where their lengths differ, as
    long as the model's window of ``sample_size`` samples.

    Raises:
        DataError: the latents are of another sample rate.
        ConfigError: their lengths differ, and nothing says how long a latent is.
    """
    tracks = [track for track in index if isinstance(track, LatentTrack)]
    other = next((track for track in tracks if track.sample_rate not in (None, sample_rate)), None)
    if other is not None:
        raise DataError(
            f"{other.path}: latents of audio at {other.sample_rate} Hz, but the model is for {sample_rate}"
            " Hz; encode the recordings with its own autoencoder"
        )
    lengths = {length for track in tracks if track.crop_length is None for length in track.lengths}
    if len(lengths) < 2:
        return index
    return TrackIndex(
        [
            track
            if track.crop_length is not None
            else replace(track, crop_length=_window(track, lengths, sample_size))
            for track in tracks
        ]
    )


def _list_latents(
    entry: LatentDirectory, config: PreEncodedDataset, base_dir: Path | None
) -> list[LatentTrack]:
    root, tried = find_path(entry.path, base_dir)
    if root is None or not root.is_dir():
        places = " or ".join(str(place) for place in tried)
        what = "is not a folder" if root is not None else "does not exist"
        raise DataError(f"dataset {entry.id!r}: path {entry.path!r} {what}; looked for {places}")
    root = root.absolute()
    module = entry.custom_metadata_module
    if module is not None:
        module = str(resolve_module_path(module, base_dir))
    details = read_details(root)
    names = _names(root, _suffix(config))
    listed = progress(names, f"latents of {entry.id}") if len(names) > _WORTH_A_BAR else names
    groups: dict[tuple[int, int, int, str], list[tuple[str, dict[str, Any]]]] = {}
    for name in listed:
        record = read_record(root / name)
        groups.setdefault(_row_of(name, record), []).append((name, record))
    _warn_if_unfinished(entry, root, details, len(names))
    rows = [_track(root, entry, module, details, groups[key]) for key in sorted(groups)]
    length = entry.latent_crop_length or config.latent_crop_length
    return [replace(track, crop_length=length) for track in rows]


def _names(root: Path, suffix: str) -> list[str]:
    """Relative paths of the latents under ``root``, or those that its ``filelist.txt`` names; sorted."""
    filelist = root / FILELIST
    if filelist.is_file():
        listed = [normalise_path(line, root) for line in read_path_list(filelist)]
        missing = [name for name in listed if name is None or not (root / name).is_file()]
        if missing:
            raise DataError(f"{filelist}: {len(missing)} of {len(listed)} files are not in this folder")
        return sorted({name for name in listed if name is not None})
    names = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(folder).relative_to(root)
        names += [
            (inside / name).as_posix()
            for name in files
            if name.endswith(f".{suffix}") and not name.startswith(".")
        ]
    return sorted(names)


def _row_of(name: str, record: dict[str, Any]) -> tuple[int, int, int, str]:
    """What the crops of one track share, and tracks are sorted by; a file of others is a track of its own."""
    row, sample_id = record.get("index"), record.get("sample_id")
    if isinstance(row, int) and isinstance(sample_id, str) and "crop" in record:
        return (0, row, 0, sample_id)
    crop = crop_of(Path(name))
    return (1, 0, 0, name) if crop is None else (1, *crop, name)


def _track(
    root: Path,
    entry: LatentDirectory,
    module: str | None,
    details: dict[str, Any],
    members: Sequence[tuple[str, dict[str, Any]]],
) -> LatentTrack:
    crops = sorted(members, key=lambda member: (member[1].get("crop", 0), member[0]))
    name, record = crops[0]
    masks = [(root / name, _stored_mask(root / name, record)) for name, record in crops]
    lengths = tuple(read_latents(path).shape[-1] if mask is None else len(mask) for path, mask in masks)
    facts = details.get("latents") or {}
    return LatentTrack(
        -1,
        str(record.get("sample_id", f"{entry.id}/{name}")),
        root / name,
        name,
        root,
        str(record.get("dataset_id", entry.id)),
        module,
        crops=tuple(root / name for name, _ in crops),
        lengths=lengths,
        seconds_total=record.get("seconds_total"),
        sample_rate=record.get("sample_rate"),
        frame_samples=facts.get("downsampling_ratio") or guessed_ratio(details, lengths[0]),
        silence=tuple(facts.get("silence") or ()),
    )


def guessed_ratio(details: dict[str, Any], length: int) -> int | None:
    """Audio samples per latent in a folder of the public package, where every crop is as long."""
    size = details.get("sample_size")
    if not isinstance(size, int) or size < 1 or length < 1 or size % length:
        return None
    return size // length


def _warn_if_unfinished(entry: LatentDirectory, root: Path, details: dict[str, Any], found: int) -> None:
    expected = (details.get("latents") or {}).get("count")
    if isinstance(expected, int) and found < expected and (root / DETAILS).is_file():
        warn(
            f"dataset {entry.id!r}: {found} of {expected} crops are stored; the command that encodes goes on"
            f" where it stopped, and {root} lists what it could not read"
        )


def _is_wanted(seconds: float | None, config: PreEncodedDataset) -> bool:
    if seconds is None:
        return True
    shortest, longest = config.min_length_sec or 0.0, config.max_length_sec or math.inf
    return shortest <= seconds <= longest


def _window(track: LatentTrack, lengths: Collection[int], sample_size: int) -> int:
    if track.frame_samples is None:
        raise ConfigError(
            f"latent_crop_length: missing; the latents in {track.root} are {min(lengths)} to {max(lengths)}"
            " long, and a batch holds one length"
        )
    return -(-sample_size // track.frame_samples)


def _stored_mask(path: Path, record: dict[str, Any]) -> list[int] | None:
    """The mask that was stored, a number per latent; None where there is none.

    Raises:
        DataError: it is no list.
    """
    mask = record.get("padding_mask")
    if mask is not None and (not isinstance(mask, list) or not mask):
        raise DataError(f"{path.with_suffix('.json')}: padding_mask must be a list of 0 and 1")
    return mask


def _real_length(mask: Tensor) -> int:
    """Where the last latent ends that is not padding."""
    real = mask.nonzero()
    return int(real[-1]) + 1 if len(real) else 0


def _place(
    path: Path, record: dict[str, Any], start: int, length: int, frame_samples: int | None
) -> dict[str, Any]:
    """Where in the recording a crop is that begins ``start`` latents into the stored one.

    Raises:
        DataError: nothing says how long a latent is.
    """
    rate = record.get("sample_rate")
    if frame_samples is None or rate is None:
        if start == 0:
            return {}
        raise DataError(
            f"{path}: a crop {start} latents into it cannot be placed in seconds, since neither {DETAILS} nor"
            " its JSON says how long a latent is; set random_crop to false, or encode it again"
        )
    before = record.get("offset_seconds", record.get("seconds_start", 0))
    offset = round(before * rate) + start * frame_samples
    place = {"seconds_start": offset // rate, "offset_seconds": offset / rate}
    total = record.get("duration_seconds", record.get("seconds_total"))
    if total:
        end = offset / rate + length * frame_samples / rate
        place["timestamps"] = (min(1.0, offset / rate / total), min(1.0, end / total))
    return place


def _padded(latents: Tensor, length: int, silence: Sequence[float]) -> Tensor:
    missing = length - latents.shape[-1]
    if missing <= 0:
        return latents
    quiet = torch.zeros(len(latents), dtype=latents.dtype)
    if len(silence) == len(latents):
        quiet = torch.tensor(silence).to(latents.dtype)
    return torch.cat([latents, quiet[:, None].expand(-1, missing)], dim=1)


def _suffix(config: PreEncodedDataset) -> str:
    return config.latent_extension.removeprefix(".")
