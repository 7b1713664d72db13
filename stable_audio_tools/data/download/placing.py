"""Files on this disk: written through, verified, set aside where they are not what their name says."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stable_audio_tools.data.download.meter import size_text
from stable_audio_tools.errors import DataError

BLOCK = 1 << 20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class DiskFullError(DataError):
    """There is no room for what comes."""


class ChecksumError(DataError):
    """What came is not what the catalogue lists."""


@dataclass(frozen=True)
class Digest:
    """A published checksum: ``algorithm`` of hashlib and the value in hex."""

    algorithm: str
    value: str


def open_part(path: Path, have: int) -> Any:
    """``path`` opened to append after its first ``have`` bytes, without a buffer: a kill loses nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "ab" if have else "wb", buffering=0)


@contextmanager
def disk_full_is_said(path: Path) -> Iterator[None]:
    """Turn an operating system's word for no room into one for people.

    Raises:
        DiskFullError: with how much is free.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        free = size_text(free_bytes(path.parent))
        raise DiskFullError(f"{path.parent}: the disk is full ({free} free)") from error


def verified(path: Path, digest: Digest) -> bool:
    """Whether the file at ``path`` has the checksum ``digest``."""
    hasher = hashlib.new(digest.algorithm)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            hasher.update(block)
    return hasher.hexdigest() == digest.value


def copy_verified(source: Any, target: Path, digest: Digest | None, name: str) -> str:
    """Write the stream ``source`` to ``target``, which gets its name only if the checksum is right.

    Returns the SHA-256 of what was written.

    Raises:
        ChecksumError: it is not.
        DiskFullError: there is no room.
    """
    part = target.with_name(f".{target.name}.part")
    hasher = hashlib.new(digest.algorithm if digest is not None else "sha256")
    sha256 = hasher if hasher.name == "sha256" else hashlib.sha256()
    try:
        with disk_full_is_said(part), open_part(part, 0) as file:
            while block := source.read(BLOCK):
                write_all(file, block)
                hasher.update(block)
                if sha256 is not hasher:
                    sha256.update(block)
            sync(file)
        if digest is not None and hasher.hexdigest() != digest.value:
            raise ChecksumError(f"{name}: its {digest.algorithm} is not the one that the catalogue lists")
        settle(part, target)
    finally:
        part.unlink(missing_ok=True)
    return str(sha256.hexdigest())


def set_aside(path: Path) -> Path:
    """Move a file that is not what its name says to a hidden name beside it, which nothing trains on."""
    for number in range(1, 1000):
        aside = path.with_name(f".unverified-{number}-{path.name}")
        if not aside.exists():
            os.replace(path, aside)
            return aside
    raise DataError(f"{path}: is not what the catalogue lists, nor were 999 before it; remove it")


def free_bytes(folder: Path) -> int:
    """Room on the disk of ``folder``, or of the nearest folder above it that exists."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def write_all(file: Any, block: bytes) -> None:
    """Write all of ``block``: without a buffer a write may take only some of it."""
    rest = memoryview(block)
    while len(rest):
        rest = rest[file.write(rest) :]


def sync(file: Any) -> None:
    """Have the bytes on the disk: a name must not outlive them in a power cut."""
    os.fsync(file.fileno())


def settle(part: Path, target: Path) -> None:
    """Give a part its name."""
    if not part.exists():
        open_part(part, 0).close()  # an empty file of a catalogue that lists one
    os.replace(part, target)
