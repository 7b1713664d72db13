"""What both downloads do alike: hold the folder, look at what lies there, say what lacks."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from stable_audio_tools.data.download.http import Client, check_base_urls
from stable_audio_tools.data.download.meter import Meter, size_text
from stable_audio_tools.data.download.mirrors import Mirrors
from stable_audio_tools.data.download.placing import Digest, free_bytes, set_aside, verified
from stable_audio_tools.data.download.pool import run_all
from stable_audio_tools.data.download.settings import TransferSettings
from stable_audio_tools.data.download.transfer import Fetcher
from stable_audio_tools.errors import DataError, UsageError
from stable_audio_tools.runtime.progress import say, warn

WORK = ".download"
"""The folder beside the audio for tables, archives and indexes: hidden, so that no dataset reads it."""

_NAMED = 5


@contextmanager
def only_run(home: Path) -> Iterator[Path]:
    """Hold ``home`` for this run; gives its :data:`WORK` folder. A kill lets go of it.

    Raises:
        UsageError: another run holds it, or the folder cannot be made.
    """
    from filelock import FileLock, Timeout

    work = home / WORK
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{work}: cannot be made ({error.strerror}); choose another folder") from error
    lock = FileLock(work / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(
            f"{home}: another download is at work here; wait for it or choose another folder"
        ) from error
    try:
        yield work
    finally:
        lock.release()


def make_fetcher(urls: str, flag: str, settings: TransferSettings) -> Fetcher:
    """A fetcher for a list of mirrors.

    Raises:
        UsageError: an address is malformed.
    """
    mirrors = Mirrors(check_base_urls(urls, flag), settings.retry_seconds)
    client = Client(settings.workers, settings.timeout_seconds)
    return Fetcher(client, mirrors, retries=settings.retries)


def keep_verified(
    folder: Path, checksums: Mapping[str, Digest], names: Sequence[str], workers: int
) -> set[str]:
    """Which of ``names`` lie in ``folder`` with the right checksum; the wrong ones are set aside and named.

    Every file is read, whatever an earlier run said of it.
    """
    good: set[str] = set()
    sizes = {name: (folder / name).stat().st_size for name in names}
    meter = Meter("checking what is here", len(names), sum(sizes.values()))

    def check(name: str) -> None:
        path = folder / name
        if verified(path, checksums[name]):
            good.add(name)
        else:
            size, aside = size_text(sizes[name]), set_aside(path)
            warn(f"{path}: is not what the catalogue lists ({size}); set aside as {aside.name}")
        meter.advance(sizes[name])
        meter.finish_file()

    if not names:
        return good
    with meter.shown():
        outcome = run_all({name: partial(check, name) for name in names}, workers, threading.Event())
    for error in outcome.failed.values():
        raise error
    return good


def warn_of_room(folder: Path, expected_bytes: float) -> None:
    """Say so where the disk looks too small. It is said, not refused: the size is a guess."""
    free = free_bytes(folder)
    if expected_bytes > free:
        warn(f"{folder}: about {size_text(expected_bytes)} are to come and {size_text(free)} are free")


def raise_if_lacking(lacking: Mapping[str, str], wanted: int, fatal: DataError | None) -> None:
    """End a run that is not complete with an error that names what lacks and why.

    Raises:
        DataError: something lacks.
    """
    again = "run the same command again to go on where it stopped"
    if fatal is not None:
        raise DataError(f"{fatal}; {len(lacking)} of {wanted} files are missing; make room and {again}")
    if lacking:
        first = list(lacking.items())
        for name, reason in first[:_NAMED]:
            say(f"missing {name}: {reason}")
        if len(first) > _NAMED:
            say(f"and {len(first) - _NAMED} more")
        raise DataError(f"{len(lacking)} of {wanted} files are missing, {first[0][0]} first; {again}")
