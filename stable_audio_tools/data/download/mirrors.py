"""Several addresses of one catalogue: which to ask next, and how long to leave one alone that stumbled."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Sequence

from stable_audio_tools.errors import DataError

LONGEST_WAIT = 60.0


class StoppedError(DataError):
    """The download is being ended."""


class Mirrors:
    """Addresses in order of preference, shared by all workers.

    After the n-th stumble in a row a mirror is left alone for ``wait_seconds * 2^(n-1)``, a minute at the
    most, or as long as it asks for; others are asked meanwhile. One answer makes up for all its stumbles.
    """

    def __init__(self, urls: Sequence[str], wait_seconds: float = 1.0) -> None:
        self.urls = tuple(urls)
        self.stop = threading.Event()
        self._wait = wait_seconds
        self._lock = threading.Lock()
        self._stumbles = dict.fromkeys(self.urls, 0)
        self._free_at = dict.fromkeys(self.urls, 0.0)

    def choose(self, among: Collection[str]) -> str:
        """The first of ``among`` that may be asked; waits where all are to be left alone.

        Raises:
            StoppedError: :attr:`stop` was set.
        """
        while not self.stop.is_set():
            with self._lock:
                now = time.monotonic()
                candidates = [url for url in self.urls if url in among]
                free = next((url for url in candidates if self._free_at[url] <= now), None)
                pause = min(self._free_at[url] for url in candidates) - now
            if free is not None:
                return free
            self.stop.wait(pause)
        raise StoppedError("stopped")

    def answered(self, url: str) -> None:
        """``url`` gave what it was asked for."""
        with self._lock:
            self._stumbles[url] = 0
            self._free_at[url] = 0.0

    def stumbled(self, url: str, wait_seconds: float = 0.0) -> None:
        """``url`` stumbled; ``wait_seconds`` is what it asked for itself."""
        with self._lock:
            own = self._wait * 2 ** min(self._stumbles[url], 16)
            self._stumbles[url] += 1
            pause = min(max(own, wait_seconds), LONGEST_WAIT)
            self._free_at[url] = max(self._free_at[url], time.monotonic() + pause)
