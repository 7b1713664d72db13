"""Files from mirrors, resumed after any interruption and verified before they get their names.

While ``x.mp3`` comes it is ``.x.mp3.part``, and ``.x.mp3.part.json`` beside it says what it is to become. A
resumed part is hashed from its first byte, so that whatever happened to it in between is seen. Only a file
whose checksum is right takes its name.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from stable_audio_tools.data.download.http import Client, MirrorFaultError, MirrorRefusalError
from stable_audio_tools.data.download.meter import Meter
from stable_audio_tools.data.download.mirrors import Mirrors, StoppedError
from stable_audio_tools.data.download.placing import (
    BLOCK,
    ChecksumError,
    Digest,
    disk_full_is_said,
    open_part,
    settle,
    sync,
    write_all,
)
from stable_audio_tools.errors import DataError
from stable_audio_tools.runtime.files import write_json

_NOTHING_BEYOND = 416
"""The status of a server that has no bytes from there on: the part may be the whole, or of another file."""

T = TypeVar("T")


class UnreachableError(DataError):
    """No mirror answered: not a word about the file itself."""


@dataclass(frozen=True)
class Wanted:
    """A file to get.

    ``path`` follows the address of a mirror. With ``size``, the file is the ``size`` bytes from ``offset`` on
    of what lies there (a member of an archive). ``digest`` is None only for tables that are checked by
    reading them. ``guess`` is the expected length in bytes, for the progress.
    """

    path: str
    target: Path
    digest: Digest | None
    guess: float = 0.0
    offset: int = 0
    size: int | None = None


class Fetcher:
    """Gets files from mirrors; any thread may call it.

    Args:
        retries: how often in a row one mirror may stumble over one file without a byte more.
    """

    def __init__(self, client: Client, mirrors: Mirrors, *, retries: int = 5) -> None:
        self.client = client
        self.mirrors = mirrors
        self.retries = retries

    def fetch(self, wanted: Wanted, meter: Meter | None = None) -> None:
        """Get ``wanted``; where the last run left a part of it, go on from there.

        Raises:
            ChecksumError, MirrorRefusalError, UnreachableError: what the mirrors had to say; names them.
            DiskFullError: of the disk.
            StoppedError: ``mirrors.stop`` was set; the part is kept.
        """
        part = Part(wanted, meter)
        self._ask(wanted.path, lambda url: part.fill(self.client, url, self.mirrors.stop), part.known)

    def read(self, path: str, first: int, count: int) -> tuple[bytes, int | None]:
        """``count`` bytes of a file from ``first`` on, and the length of the whole file.

        Raises:
            MirrorRefusalError, UnreachableError: as :meth:`fetch`.
        """

        def attempt(url: str) -> tuple[bytes, int | None]:
            with self.client.get(url, first, first + count - 1) as reply:
                if reply.start != first:
                    raise MirrorRefusalError("answers a request for a part with the whole file")
                data = b"".join(reply.blocks())
                if len(data) != count:
                    raise MirrorFaultError(f"gave {len(data)} bytes of {count}")
                return data, reply.total

        return self._ask(path, attempt)

    def length(self, path: str) -> int | None:
        """How long the mirrors say a file is; None where they do not say.

        Raises:
            MirrorRefusalError, UnreachableError: as :meth:`fetch`.
        """
        return self._ask(path, self.client.length)

    def _ask(self, path: str, attempt: Callable[[str], T], progress: Callable[[], int] = lambda: 0) -> T:
        """``attempt`` with the address of the file on one mirror after another, until one succeeds."""
        left = list(self.mirrors.urls)
        stumbles: Counter[str] = Counter()
        said: dict[str, DataError] = {}
        furthest = progress()
        while left:
            mirror = self.mirrors.choose(left)
            try:
                result = attempt(f"{mirror}/{path}")
            except MirrorFaultError as error:
                said[mirror] = error
                if progress() > furthest:  # a bad line, but a line: go on at once
                    furthest = progress()
                    continue
                self.mirrors.stumbled(mirror, error.wait_seconds)
                stumbles[mirror] += 1
                if stumbles[mirror] > self.retries:
                    left.remove(mirror)
            except (MirrorRefusalError, ChecksumError) as error:
                said[mirror] = error
                left.remove(mirror)
            else:
                self.mirrors.answered(mirror)
                return result
        raise _verdict(path, said)


def _verdict(path: str, said: dict[str, DataError]) -> DataError:
    words = "; ".join(f"{mirror} {error}" for mirror, error in said.items())
    kinds = {type(error) for error in said.values()}
    if ChecksumError in kinds:
        return ChecksumError(f"{path}: {words}")
    if MirrorRefusalError in kinds:
        return MirrorRefusalError(f"{path}: {words}")
    return UnreachableError(f"{path}: {words}")


class Part:
    """What has come of one file so far."""

    def __init__(self, wanted: Wanted, meter: Meter | None = None) -> None:
        self.wanted = wanted
        self.path = wanted.target.with_name(f".{wanted.target.name}.part")
        self.note = wanted.target.with_name(f".{wanted.target.name}.part.json")
        self._meter = meter
        self._guess = wanted.guess
        self._counted = 0

    def known(self) -> int:
        """How many bytes lie here."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def fill(self, client: Client, url: str, stop: threading.Event) -> None:
        """Get what is missing from ``url``, verify the whole, and give it its name.

        A part that turns out wrong is thrown away; if it had been resumed, it is fetched anew once.

        Raises:
            MirrorFaultError, MirrorRefusalError, ChecksumError, DiskFullError, StoppedError
        """
        resumed = self.known() > 0
        try:
            self._fill(client, url, stop)
        except ChecksumError:
            self.discard()
            if not resumed:
                raise
            try:
                self._fill(client, url, stop)
            except ChecksumError:
                self.discard()
                raise

    def discard(self) -> None:
        """Throw away what lies here."""
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)
        self._count(-self._counted)

    def _fill(self, client: Client, url: str, stop: threading.Event) -> None:
        hasher, have, validator = self._hasher(), 0, None
        if self._may_resume(url):
            have, validator = self._rehash(hasher), self._validator(url)
        else:
            self.discard()
        self._count(have - self._counted, transferred=False)
        if not self._whole(have, hasher):
            try:
                have, hasher = self._stream(client, url, have, validator, hasher, stop)
            except MirrorRefusalError as error:
                if error.status != _NOTHING_BEYOND or not have:
                    raise
            if not self._whole(have, hasher, ended=True):
                raise ChecksumError(self._what_is_wrong(have, hasher))
        settle(self.path, self.wanted.target)
        self.note.unlink(missing_ok=True)

    def _whole(self, have: int, hasher: Any, *, ended: bool = False) -> bool:
        """Whether these bytes are the file; without a checksum, whether they are as many as was promised."""
        if self.wanted.digest is not None:
            return bool(hasher.hexdigest() == self.wanted.digest.value)
        total = self._note().get("total")
        return ended if total is None else bool(have == total)

    def _what_is_wrong(self, have: int, hasher: Any) -> str:
        digest = self.wanted.digest
        if digest is None:
            return f"gave {have} bytes, expected {self._note().get('total')}"
        found, expected = hasher.hexdigest()[:12], digest.value[:12]
        return f"gave {have} bytes whose {digest.algorithm} is {found}..., expected {expected}..."

    def _stream(
        self,
        client: Client,
        url: str,
        have: int,
        validator: str | None,
        hasher: Any,
        stop: threading.Event,
    ) -> tuple[int, Any]:
        """Append what comes; returns how many bytes there are then and the hash of all of them."""
        offset, size = self.wanted.offset, self.wanted.size
        last = None if size is None else offset + size - 1
        with client.get(url, offset + have, last, validator) as reply:
            if reply.start != offset + have:
                if size is not None:
                    raise MirrorRefusalError("answers a request for a part with the whole file")
                self.discard()
                have, hasher = 0, self._hasher()
            whole = reply.total if size is None else size
            with disk_full_is_said(self.note):
                self._learn(url, whole, reply.validator)
            with disk_full_is_said(self.path), open_part(self.path, have) as file:
                for block in reply.blocks():
                    if stop.is_set():
                        raise StoppedError("stopped")
                    write_all(file, block)
                    hasher.update(block)
                    have += len(block)
                    self._count(len(block))
                sync(file)
        if whole is not None and have < whole:
            raise MirrorFaultError(f"gave {have} bytes of {whole}")
        return have, hasher

    def _may_resume(self, url: str) -> bool:
        """Whether what lies here can be the start of what is wanted; the checksum decides in the end."""
        known, note = self.known(), self._note()
        if not known or (self.wanted.size is not None and known > self.wanted.size):
            return False
        if self.wanted.digest is not None:
            return bool(note.get("digest") == self.wanted.digest.value)
        return note.get("url") == url and note.get("validator") is not None

    def _validator(self, url: str) -> str | None:
        """For If-Range. Another mirror has other marks for the same bytes; the checksum sees to those."""
        note = self._note()
        return note.get("validator") if note.get("url") == url and self.wanted.size is None else None

    def _note(self) -> dict[str, Any]:
        try:
            value = json.loads(self.note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def _learn(self, url: str, whole: int | None, validator: str | None) -> None:
        digest = self.wanted.digest.value if self.wanted.digest is not None else None
        note = {"url": url, "validator": validator, "total": whole, "digest": digest}
        if self._note() != note:
            write_json(self.note, note)
        if self._meter is not None and whole is not None:
            self._meter.correct(self._guess, whole)
            self._guess = whole

    def _hasher(self) -> Any:
        return hashlib.new(self.wanted.digest.algorithm if self.wanted.digest is not None else "sha256")

    def _rehash(self, hasher: Any) -> int:
        count = 0
        with open(self.path, "rb") as file:
            while block := file.read(BLOCK):
                hasher.update(block)
                count += len(block)
        return count

    def _count(self, count: int, *, transferred: bool = True) -> None:
        self._counted += count
        if self._meter is not None and count:
            self._meter.advance(count, transferred=transferred)
