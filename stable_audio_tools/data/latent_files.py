"""Latents on disk, as the public package lays them out.

::

    details.json            what the folder was made from, and how
    0/0000000170002.npy     by rank 0, of track 17, crop 2: latents (C, L)
    0/0000000170002.json    what the loader knew of the crop; padding_mask has a number per latent

A crop is there once its JSON is, which is written last. Files of the public package number batches where ours
number tracks, and are read alike.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stable_audio_tools.errors import DataError
from stable_audio_tools.runtime.files import atomic_path, sha256_file, write_text
from stable_audio_tools.runtime.progress import warn

DETAILS = "details.json"
FORMAT = "stable-audio-tools/latents@1"
MAX_CROPS = 10_000
"""Crops of a track: the last four digits of a name count them."""


class Crop(NamedTuple):
    """Which crop of which track."""

    row: int
    number: int


def latent_name(rank: int, crop: Crop) -> str:
    """The name of a crop without a suffix: rank, row and number in 3, 6 and 4 digits, or more."""
    return f"{rank:03d}{crop.row:06d}{crop.number:04d}"


def crop_of(path: Path) -> Crop | None:
    """The crop that a file is named after; None where the name is not one of :func:`latent_name`."""
    name = path.stem
    if not (name.isascii() and name.isdigit() and len(name) >= 13):
        return None
    return Crop(int(name[3:-4]), int(name[-4:]))


def latent_mask(padding_masks: Tensor, length: int) -> Tensor:
    """The mask ``(B, length)`` of latents for one of samples ``(B, T)``: each as its first sample."""
    return F.interpolate(padding_masks[:, None].float(), size=length, mode="nearest")[:, 0]


def write_latents(folder: Path, rank: int, crop: Crop, latents: np.ndarray, info: Mapping[str, Any]) -> None:
    """Write a crop ``(C, L)`` and what is known of it, with the SHA-256 of its file as ``latents_sha256``.

    Raises:
        DataError: ``info`` holds something that JSON does not.
    """
    path = folder / str(rank) / f"{latent_name(rank, crop)}.npy"
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(latents), allow_pickle=False)
    record = {key: _plain(value, key, info) for key, value in info.items()}
    record |= {"crop": crop.number, "latents_sha256": hashlib.sha256(content.getbuffer()).hexdigest()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getbuffer())
    write_text(path.with_suffix(".json"), json.dumps(record))


def read_latents(
    path: Path, start: int = 0, length: int | None = None, *, data: bytes | None = None
) -> Tensor:
    """Latents ``(C, length)`` from frame ``start`` on, fewer at the end; only they are read from the disk.

    Floats become float32, whole numbers, which are codes, int64. ``data`` is the content of the file where it
    is in memory and ``path`` only names it.

    Raises:
        DataError: the file is no array of numbers ``(C, L)``, or is cut off.
    """
    try:
        if data is None:
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            stored = np.load(io.BytesIO(data), allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise DataError(f"{path}: not a whole array of numbers: {error}; encode it again") from error
    if not isinstance(stored, np.ndarray) or stored.ndim != 2 or stored.dtype.kind not in "fiu":
        found = f"{stored.dtype} {stored.shape}" if isinstance(stored, np.ndarray) else "several arrays"
        raise DataError(f"{path}: found {found}, expected latents or codes (channels, length)")
    end = None if length is None else start + length
    kind = np.float32 if stored.dtype.kind == "f" else np.int64
    return torch.from_numpy(np.array(stored[:, start:end], dtype=kind))


def read_record(path: Path) -> dict[str, Any]:
    """What is known of the latents at ``path``, from the JSON beside them.

    Raises:
        DataError: it is missing or broken.
    """
    beside = path.with_suffix(".json")
    try:
        record = json.loads(beside.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path}: {beside.name} is not beside it; encode it again, or remove it") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{beside}: cannot be read as JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{beside}: found {type(record).__name__}, expected an object")
    return record


def read_details(folder: Path) -> dict[str, Any]:
    """What ``details.json`` in ``folder``, or beside it, says; empty where there is none.

    Raises:
        DataError: it is broken.
    """
    for path in (folder / DETAILS, folder.parent / DETAILS):
        if path.is_file():
            try:
                details = json.loads(path.read_bytes())
            except (OSError, ValueError) as error:
                raise DataError(f"{path}: cannot be read as JSON: {error}") from error
            if not isinstance(details, dict):
                raise DataError(f"{path}: found {type(details).__name__}, expected an object")
            return details
    return {}


def stored_crops(folder: Path, *, verify: bool = False) -> set[Crop]:
    """The crops that are there whole, of any rank.

    Args:
        verify: read each one and hold it to its hash; a damaged one is warned of and not among them.
    """
    found = set()
    for path in _latent_paths(folder):
        crop = crop_of(path)
        if crop is None:
            continue
        if verify and not _is_whole(path):
            warn(f"{path}: does not match its hash, so it is encoded again")
            continue
        found.add(crop)
    return found


def remove_latents(folder: Path, crops: Container[Crop]) -> None:
    """Remove what there is of ``crops``, of any rank: damaged, or cut off by a kill before its JSON."""
    for rank in _rank_folders(folder):
        for path in rank.iterdir():
            if path.suffix in (".npy", ".json") and crop_of(path) in crops:
                path.unlink(missing_ok=True)


def _rank_folders(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if entry.name.isdigit()] if folder.is_dir() else []


def _latent_paths(folder: Path) -> Iterator[Path]:
    """Latents with their JSON beside them, in the folders of the ranks."""
    for rank in _rank_folders(folder):
        names = set(os.listdir(rank))
        for name in names:
            if name.endswith(".npy") and name[:-4] + ".json" in names and not name.startswith("."):
                yield rank / name


def _is_whole(path: Path) -> bool:
    try:
        return read_record(path).get("latents_sha256") == sha256_file(path)
    except (DataError, OSError):
        return False


def _plain(value: Any, key: str, info: Mapping[str, Any]) -> Any:
    """``value`` as JSON has it."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(name): _plain(item, key, info) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, key, info) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, os.PathLike):
        return str(value)
    raise DataError(
        f"{info.get('path', '?')}: its metadata {key!r} is a {type(value).__name__}, which cannot be stored;"
        " return strings, numbers, lists or tensors"
    )
