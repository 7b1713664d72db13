"""The table of contents of a tar of samples: what lies where, so that any sample is one read away.

A sample is the members whose names are alike up to the first dot after the last slash, as in WebDataset:
``00/42.mp3``, ``00/42.json``, ``00/42.txt``. A table is made once, from the headers alone, and kept.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from stable_audio_tools.data.shard_stores import Shard, ShardStore
from stable_audio_tools.errors import DataError
from stable_audio_tools.runtime.files import write_text
from stable_audio_tools.runtime.progress import track, warn

_FORMAT = "stable-audio-tools/shard@1"
_THREADS = 16
# One request of S3 costs as much as 64 kB on the way, and reaches over a sample's JSON to the next header.
_WINDOW_BYTES = 1 << 16


@dataclass(frozen=True)
class Member:
    """A file in a tar: where its content starts and how long it is."""

    name: str
    offset: int
    size: int

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix.lower()


@dataclass(frozen=True)
class Contents:
    """The members of a shard in their order, and what is wrong with it, if anything."""

    members: list[Member]
    damage: str | None = None


def default_index_dir() -> Path:
    """``~/.cache/stable-audio-tools/shards``, or the same under ``XDG_CACHE_HOME``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "stable-audio-tools" / "shards"


def read_contents(store: ShardStore, shards: Sequence[Shard], index_dir: Path) -> list[Contents]:
    """The table of each shard, from ``index_dir`` where it is there and still true, else from the shard.

    A kill loses only the tables of the shards that were being read.

    Raises:
        DataError: a shard cannot be read at all.
    """
    tables: dict[int, Contents] = {}
    for row, shard in enumerate(shards):
        kept = _kept(_table_path(store, shard, index_dir), shard)
        if kept is not None:
            tables[row] = kept
    missing = [row for row in range(len(shards)) if row not in tables]

    def make(row: int) -> tuple[int, Contents]:
        contents = scan_tar(store, shards[row])
        _keep(_table_path(store, shards[row], index_dir), shards[row], contents)
        return row, contents

    if missing:
        with ThreadPoolExecutor(min(_THREADS, len(missing))) as pool:
            found = pool.map(make, missing)
            tables.update(track(found, f"listing the shards of {store.place}", total=len(missing)))
    return [tables[row] for row in range(len(shards))]


def scan_tar(store: ShardStore, shard: Shard) -> Contents:
    """The members of a shard, by its headers; of a damaged one, those before the damage.

    Raises:
        DataError: it is not a tar, or cannot be read.
    """
    where = store.where(shard)
    members: list[Member] = []
    places: dict[str, tuple[int, int]] = {}
    damage = None
    try:
        tar: Any
        with tarfile.open(fileobj=_Window(store, shard), mode="r:", errors="surrogateescape") as tar:
            try:
                while (entry := tar.next()) is not None:
                    tar.members = []  # else it keeps every header
                    if entry.isreg() and entry.offset_data + entry.size > shard.size:
                        damage = f"is cut off in {entry.name!r}"
                        break
                    members += _members_of(entry, places)
                else:
                    damage = _what_is_at_the_end(store, shard, tar.offset)
            except tarfile.TarError as error:
                # without the padding after its last member it is whole all the same
                damage = None if tar.offset > shard.size else f"is damaged near byte {tar.offset}: {error}"
    except tarfile.TarError as error:
        if shard.size and store.read(shard, 0, min(shard.size, 1024)).strip(b"\0"):
            raise DataError(f"{where}: not a tar file: {error}") from error
    return Contents(members, damage)


def samples_of(members: Sequence[Member]) -> dict[str, list[Member]]:
    """Members by sample, in the order of their first ones.

    Where a name has several dots, as in ``Mr. A - b.mp3``, the first may not be where the sample's name
    ends: if two members of a kind fall together so, they are told apart by all but their last suffix.
    """
    groups: dict[str, list[Member]] = {}
    for member in {member.name: member for member in members}.values():  # of one name the last counts
        groups.setdefault(_key(member.name), []).append(member)
    samples: dict[str, list[Member]] = {}
    for key, group in groups.items():
        if len({member.suffix for member in group}) == len(group):
            samples.setdefault(key, []).extend(group)
        else:
            for member in group:
                samples.setdefault(str(PurePosixPath(member.name).with_suffix("")), []).append(member)
    return samples


def _key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _members_of(entry: tarfile.TarInfo, places: dict[str, tuple[int, int]]) -> list[Member]:
    """The member that a header tells of, or none; a hard link is another name for one before it."""
    if entry.isreg() and not entry.issparse():
        places[entry.name] = (entry.offset_data, entry.size)
    elif not entry.islnk() or entry.linkname not in places:
        return []
    if PurePosixPath(entry.name).name.startswith("."):
        return []
    name = PurePosixPath(entry.name).as_posix()  # without the ./ of `tar -C folder .`
    return [Member(name, *places[entry.linkname if entry.islnk() else entry.name])]


def _what_is_at_the_end(store: ShardStore, shard: Shard, offset: int) -> str | None:
    """Python's reader takes a broken header for the end; the end is zeros, or nothing."""
    length = min(512, shard.size - offset)
    if length > 0 and store.read(shard, offset, length).strip(b"\0"):
        return f"is damaged: at byte {offset} there is no header of a member"
    return None


class _Window(io.RawIOBase):
    """A shard as a file that is read in windows."""

    def __init__(self, store: ShardStore, shard: Shard) -> None:
        self._store, self._shard = store, shard
        self._position = 0
        self._start, self._content = 0, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._shard.size}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        rest = max(0, self._shard.size - self._position)
        size = rest if size is None or size < 0 else min(size, rest)
        at = self._position - self._start
        if size and not 0 <= at <= at + size <= len(self._content):
            length = min(max(size, _WINDOW_BYTES), rest)
            self._start, self._content = self._position, self._store.read(self._shard, self._position, length)
            at = 0
        self._position += size
        return self._content[at : at + size]


def _table_path(store: ShardStore, shard: Shard, index_dir: Path) -> Path:
    name = hashlib.sha256(os.fsencode(store.where(shard))).hexdigest()[:32]
    return index_dir / name[:2] / f"{name}.json"


def _kept(path: Path, shard: Shard) -> Contents | None:
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
        if (value["format"], value["size"], value["version"]) != (_FORMAT, shard.size, shard.version):
            return None
        return Contents([Member(*entry) for entry in value["members"]], value["damage"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(path: Path, shard: Shard, contents: Contents) -> None:
    value = {
        "format": _FORMAT,
        "shard": shard.name,
        "size": shard.size,
        "version": shard.version,
        "damage": contents.damage,
        "members": [[member.name, member.offset, member.size] for member in contents.members],
    }
    try:
        write_text(path, json.dumps(value, separators=(",", ":")))
    except OSError as error:
        warn(f"{path.parent}: tables of shards cannot be kept there: {error.strerror or error}")
