"""Where the bytes of a recording are: in a file of its own, or inside a shard.

What reads recordings whole, such as the check and the search for duplicates, takes either. A source is small,
so that it can be sent to another process; a track knows its whole dataset.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stable_audio_tools.audio.files import AudioInfo, probe
from stable_audio_tools.data.shard_stores import Shard, ShardStore
from stable_audio_tools.data.shards import Member
from stable_audio_tools.runtime.files import sha256_file


class Source(Protocol):
    """One recording's bytes."""

    @property
    def path(self) -> Path:
        """Its name for the decoder, which goes by the suffix; messages about it begin with this."""

    @property
    def place(self) -> str:
        """Where it is, for people and journals."""

    def stamp(self) -> tuple[int, int]:
        """The size in bytes and a number that is another after a change; OSError where it is not there."""

    def content(self) -> bytes | None:
        """The bytes, where no file holds just these.

        Raises:
            DataError: what holds it cannot be read.
        """


@dataclass(frozen=True)
class FileSource:
    """A file."""

    path: Path

    @property
    def place(self) -> str:
        return str(self.path)

    def stamp(self) -> tuple[int, int]:
        status = self.path.stat()
        return status.st_size, status.st_mtime_ns

    def content(self) -> bytes | None:
        return None


@dataclass(frozen=True)
class ShardSource:
    """A member of a shard; ``path`` only names it."""

    path: Path
    store: ShardStore
    shard: Shard
    member: Member

    @property
    def place(self) -> str:
        return f"{self.store.where(self.shard)}/{self.member.name}"

    def stamp(self) -> tuple[int, int]:
        """The size, and the version of the whole shard and the place in it as a number."""
        version = hashlib.sha256(f"{self.shard.version} {self.shard.size} {self.member.offset}".encode())
        return self.member.size, int.from_bytes(version.digest()[:6], "big")

    def content(self) -> bytes | None:
        return self.store.read(self.shard, self.member.offset, self.member.size)


def probe_source(source: Source) -> AudioInfo:
    """What a recording holds, with its bytes where no file has them.

    Raises:
        AudioError: as :func:`~stable_audio_tools.audio.files.probe`.
        DataError: what holds it cannot be read.
    """
    return probe(source.path, source.content())


def sha256_of(info: AudioInfo) -> str:
    """The SHA-256 of a recording's file, or of the member of a shard, in hex."""
    return sha256_file(info.path) if info.data is None else hashlib.sha256(info.data).hexdigest()
