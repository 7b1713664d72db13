"""How far a download is: bytes, rate and time left, for many transfers at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from stable_audio_tools.runtime.progress import console, say

_LINE_EVERY = 30.0


class Meter:
    """Counts bytes and files from any thread. A total is a guess that is put right as sizes become known."""

    def __init__(self, description: str, files: int, expected_bytes: float) -> None:
        self.description = description
        self.files = files
        self.files_done = 0
        self.bytes_done = 0
        self.bytes_total = expected_bytes
        self._bytes_new = 0
        """Without what lay here already: only these make a rate."""
        self._lock = threading.Lock()
        self._started = self._said = time.monotonic()
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def correct(self, guessed: float, known: float) -> None:
        """A file that was taken for ``guessed`` bytes has ``known``."""
        with self._lock:
            self.bytes_total += known - guessed
        self._show()

    def advance(self, count: int, *, transferred: bool = True) -> None:
        """``count`` bytes more; without ``transferred`` they lay here already. Negative takes some back."""
        with self._lock:
            self.bytes_done += count
            self._bytes_new += count if transferred else 0
        self._show()

    def finish_file(self) -> None:
        """One file more is whole."""
        with self._lock:
            self.files_done += 1
        self._show()

    @contextmanager
    def shown(self) -> Iterator[Meter]:
        """Show a bar; where there is no terminal, a line every half minute and one at the end."""
        if not console.is_terminal:
            yield self
            say(self.line())
            return
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[files]} files"),
            console=console,
        ) as self._progress:
            self._task = self._progress.add_task(self.description, total=None, files=f"0/{self.files}")
            yield self
            self._show()

    def line(self) -> str:
        """``audio: 120/5000 files, 1.1 of 45.0 GB, 12.3 MB/s, 0:59:40 left``."""
        with self._lock:
            seconds = max(time.monotonic() - self._started, 1e-9)
            rate, left = self._bytes_new / seconds, max(self.bytes_total - self.bytes_done, 0.0)
            text = (
                f"{self.description}: {self.files_done}/{self.files} files, {size_text(self.bytes_done)}"
                f" of {size_text(max(self.bytes_total, self.bytes_done))}, {size_text(rate)}/s"
            )
            return f"{text}, {timedelta(seconds=round(left / rate))} left" if rate and left >= 1 else text

    def _show(self) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(
                self._task,
                completed=self.bytes_done,
                total=max(self.bytes_total, self.bytes_done),
                files=f"{self.files_done}/{self.files}",
            )
        elif not console.is_terminal:
            with self._lock:
                due = time.monotonic() - self._said > _LINE_EVERY
                if due:
                    self._said = time.monotonic()
            if due:
                say(self.line())


def size_text(count: float) -> str:
    """Bytes as people say them: ``512 B``, ``3.4 MB``, ``45.0 GB``, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
