"""The first half of a dedup run: every file heard once, and what was heard kept on disk by its content.

::

    <output>/fingerprints/ab/abcd....npz   onsets, landmarks and facts of the file of that SHA-256
    <output>/codes/ab/abcd....npz          its counts of DAC codes, where a codec is asked
    <output>/files.jsonl                   the SHA-256 of each file, by path, size and time of change

A run that was killed goes on from these; a file that was moved or copied is not heard again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache as cache_once
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from stable_audio_tools.audio.files import probe
from stable_audio_tools.data.index import Track
from stable_audio_tools.data.sources import FileSource, Source
from stable_audio_tools.dedup.fingerprints import DacFingerprinter, histogram, load_codes, save_codes
from stable_audio_tools.dedup.prints import Facts, Print, listen, load_print, save_print
from stable_audio_tools.dedup.settings import DedupSettings
from stable_audio_tools.errors import DataError
from stable_audio_tools.runtime.files import sha256_file
from stable_audio_tools.runtime.progress import track

T = TypeVar("T")
U = TypeVar("U")


@dataclass
class Heard:
    """What stays in memory of a track; its print is read back from the cache by ``digest``."""

    digest: str
    facts: Facts
    sounding_seconds: float
    size_bytes: int
    histogram: NDArray[np.float32] | None = None


class Cache:
    """Prints and counts by the hash of the file they are of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def print_path(self, digest: str) -> Path:
        return self.folder / "fingerprints" / digest[:2] / f"{digest}.npz"

    def codes_path(self, digest: str) -> Path:
        return self.folder / "codes" / digest[:2] / f"{digest}.npz"

    def load_print(self, digest: str) -> Print:
        """The print of a file that was heard in this run.

        Raises:
            DataError: it was damaged or removed since.
        """
        found = load_print(self.print_path(digest))
        if found is None:
            raise DataError(
                f"{self.print_path(digest)}: was damaged or removed during the run; run the command again"
            )
        return found


class Digests:
    """SHA-256 of recordings, remembered by place, size and time of change."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, Lock()
        self._known: dict[tuple[str, int, int], str] = {}
        if path.is_file():
            for line in path.read_bytes().splitlines():
                try:
                    name, size, changed, digest = json.loads(line)
                except (ValueError, TypeError):
                    continue  # the end of a line that a kill cut off
                self._known[name, size, changed] = digest

    def of(self, source: Source, content: Callable[[], bytes | None]) -> tuple[str, int]:
        """The hash of a recording and its size in bytes; ``content`` is asked only where it is not known."""
        stamp = source.stamp()
        key = (os.path.abspath(source.path) if isinstance(source, FileSource) else source.place, *stamp)
        if key not in self._known:
            data = content()
            digest = sha256_file(source.path) if data is None else hashlib.sha256(data).hexdigest()
            with self._lock:
                self._known[key] = digest
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with open(self._path, "a", encoding="ascii") as out:
                    out.write("\n" * (not _ends_a_line(self._path)) + json.dumps([*key, digest]) + "\n")
        return self._known[key], stamp[0]


def _ends_a_line(path: Path) -> bool:
    with open(path, "rb") as file:
        if file.seek(0, 2) == 0:
            return True
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def hear_all(
    tracks: Sequence[Track], cache: Cache, settings: DedupSettings, codec: DacFingerprinter | None
) -> tuple[dict[int, Heard], dict[str, str]]:
    """What was heard by position in ``tracks``, and what went wrong by path."""
    digests = Digests(cache.folder / "files.jsonl")
    in_hand: defaultdict[str, Lock] = defaultdict(Lock)

    def prepare(item: Track) -> tuple[Heard, torch.Tensor | None]:
        source = item.source
        content = cache_once(source.content)
        digest, size = digests.of(source, content)
        with in_hand[digest]:  # copies of one file must not be heard, and written, at the same time
            found = load_print(cache.print_path(digest))
            if found is None:
                found = listen(probe(source.path, content()))
                save_print(cache.print_path(digest), found)
        heard = Heard(digest, found.facts, found.sounding_seconds, size)
        if codec is None or found.facts.flaw:
            return heard, None
        counts = load_codes(cache.codes_path(digest), codec.stamp)
        if counts is None:
            return heard, codec.read(probe(source.path, content()))
        heard.histogram = histogram(counts, settings.histogram_mode)
        return heard, None

    heard: dict[int, Heard] = {}
    failed: dict[str, str] = {}
    waiting: list[tuple[Heard, torch.Tensor]] = []

    def count_waiting() -> None:
        assert codec is not None
        for (one, _), counts in zip(waiting, codec.count_codes([audio for _, audio in waiting]), strict=True):
            save_codes(cache.codes_path(one.digest), counts, codec.stamp)
            one.histogram = histogram(counts, settings.histogram_mode)
        waiting.clear()

    with ThreadPoolExecutor(settings.num_workers) as pool:
        upcoming = _ahead(pool, prepare, tracks, 2 * settings.num_workers)
        for position, future in enumerate(track(upcoming, "fingerprints", total=len(tracks))):
            try:
                heard[position], audio = future.result()
            except (DataError, OSError) as error:
                failed[tracks[position].place] = str(error)
                continue
            if codec is not None and audio is not None:
                waiting.append((heard[position], audio))
                if sum(codec.chunks(one) for _, one in waiting) >= settings.batch_size:
                    count_waiting()
        if waiting:
            count_waiting()
    return heard, failed


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[T], U], items: Sequence[T], depth: int
) -> Iterator[Future[U]]:
    """One future for each item, in order, with at most ``depth`` of them started and not yet taken.

    Unbounded, the decoded dataset would pile up in memory in front of a slow codec.
    """
    remaining = iter(items)
    waiting = [pool.submit(work, item) for item in islice(remaining, depth)]
    while waiting:
        yield waiting.pop(0)
        waiting.extend(pool.submit(work, item) for item in islice(remaining, 1))
