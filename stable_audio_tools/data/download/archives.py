"""Members of archives, near and far: only whole regular files inside the folder, each verified.

An archive is somebody else's list of paths. A member with ``..`` in its name, an absolute one, a link or a
device is refused by name, and the others are taken. Of an archive on a mirror single members can be had by
their byte ranges, once its headers were read.
"""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from stable_audio_tools.data.download.placing import ChecksumError, Digest, copy_verified, set_aside
from stable_audio_tools.errors import DataError
from stable_audio_tools.runtime.files import sha256_file
from stable_audio_tools.runtime.progress import warn

_AHEAD = 2048
"""How much of a far archive is read at a time: a header, and the byte before it that tarfile looks at."""


@dataclass
class Unpacked:
    """What came out of an archive: SHA-256 by name, what was refused, and what was wrong with the rest."""

    sha256: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Span:
    """Where the bytes of a member lie in its archive."""

    offset: int
    size: int


def why_unsafe(name: str) -> str | None:
    """Why a member's name must not become a path, or None."""
    if not name or "\0" in name:
        return "has no name that a file can have"
    if name.startswith(("/", "\\")) or (len(name) > 1 and name[1] == ":"):
        return "is an absolute path"
    if "\\" in name:
        return "has a backslash in its name"
    if ".." in PurePosixPath(name).parts:
        return "leaves the folder"
    return None


def unpack_tar(archive: Path, wanted: Mapping[str, Digest], target_of: Callable[[str], Path]) -> Unpacked:
    """Take the members ``wanted`` out of a tar, each under its name only if its checksum is right.

    Other regular files are passed over. An archive that breaks off gives what it has.

    Args:
        wanted: checksums by name of member.
        target_of: where a member is written.

    Raises:
        DiskFullError: there is no room.
    """
    result = Unpacked()
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                reason = why_unsafe(name) or _why_not_regular(member)
                if reason is not None:
                    result.refused.append(f"{archive.name}: {member.name!r} {reason}")
                elif member.isreg() and name in wanted:
                    stream = tar.extractfile(member)
                    if stream is not None:
                        _take(stream, name, wanted[name], target_of(name), result, member.size)
    except (tarfile.TarError, EOFError, ValueError) as error:
        result.problems.append(f"{archive.name}: breaks off ({error})")
    return result


def unpack_zip(archive: Path, target_of: Callable[[str], Path | None]) -> Unpacked:
    """Take members out of a zip, each under its name only if the zip's own checksum of it is right.

    Args:
        target_of: where a member is written; None passes it over.

    Raises:
        DiskFullError: there is no room.
    """
    result = Unpacked()
    try:
        with zipfile.ZipFile(archive) as packed:
            for member in packed.infolist():
                reason = why_unsafe(member.filename)
                mode = member.external_attr >> 16
                if reason is None and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                    reason = "is a link or a device"
                if reason is not None:
                    result.refused.append(f"{archive.name}: {member.filename!r} {reason}")
                    continue
                target = None if member.is_dir() else target_of(member.filename)
                if target is None:
                    continue
                try:
                    result.sha256[member.filename] = _extract(packed, member, target)
                except (zipfile.BadZipFile, EOFError, ValueError, RuntimeError, NotImplementedError) as error:
                    result.problems.append(f"{archive.name}: {member.filename}: {error}")
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        result.problems.append(f"{archive.name}: is no whole zip ({error})")
    return result


def index_tar(name: str, read: Callable[[int, int], tuple[bytes, int | None]]) -> dict[str, Span]:
    """Where each regular file of a far tar lies, from its headers alone.

    Args:
        name: for messages.
        read: bytes from an offset, a count of them, and the length of the whole, as ``Fetcher.read`` gives.

    Raises:
        DataError: it is no tar, or breaks off.
    """
    far = io.BufferedReader(_FarFile(read), _AHEAD)
    spans: dict[str, Span] = {}
    try:
        with tarfile.open(fileobj=far, mode="r:") as tar:
            for member in tar:
                plain = member.name.removeprefix("./")
                if why_unsafe(plain) is None and _why_not_regular(member) is None and member.isreg():
                    spans[plain] = Span(member.offset_data, member.size)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise DataError(f"{name}: cannot be indexed ({error})") from error
    return spans


class _FarFile(io.RawIOBase):
    """A file on a mirror that is read where it is needed."""

    def __init__(self, read: Callable[[int, int], tuple[bytes, int | None]]) -> None:
        self._read_far = read
        self._at = 0
        _, total = read(0, 1)
        if total is None:
            raise DataError("the mirror does not say how long the archive is")
        self._length = total

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        self._at = start + offset
        return self._at

    def readinto(self, buffer: IO[bytes] | memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer)  # type: ignore[arg-type]
        count = min(len(view), max(self._length - self._at, 0))
        if count:
            view[:count] = self._read_far(self._at, count)[0]
        self._at += count
        return count


def _extract(packed: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> str:
    """Write one member unless it is there; a file of its name that is another is set aside. Its SHA-256."""
    if target.is_file():
        if target.stat().st_size == member.file_size and _crc(target) == member.CRC:
            return sha256_file(target)
        warn(f"{target}: is not what {packed.filename} holds; set aside as {set_aside(target).name}")
    with packed.open(member) as stream:
        return copy_verified(stream, target, None, member.filename)


def _crc(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def _take(stream: IO[bytes], name: str, digest: Digest, target: Path, result: Unpacked, size: int) -> None:
    try:
        result.sha256[name] = copy_verified(stream, target, digest, name)
    except ChecksumError as error:
        result.problems.append(str(error))
    except tarfile.ReadError as error:
        result.problems.append(f"{name}: of its {size} bytes only some are there ({error})")
        raise


def _why_not_regular(member: tarfile.TarInfo) -> str | None:
    if member.issym() or member.islnk():
        return f"is a link to {member.linkname!r}"
    if member.issparse() or not (member.isreg() or member.isdir()):
        return "is not a regular file"
    return None
