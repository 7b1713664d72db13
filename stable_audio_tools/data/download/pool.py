"""Many transfers at once: one that fails is named and the others go on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field

from stable_audio_tools.data.download.mirrors import StoppedError
from stable_audio_tools.data.download.placing import DiskFullError
from stable_audio_tools.errors import DataError


@dataclass
class Outcome:
    """What became of the tasks. ``failed`` says why, by name; ``fatal`` is what ended all of them early."""

    failed: dict[str, DataError] = field(default_factory=dict)
    fatal: DataError | None = None


def run_all(tasks: Mapping[str, Callable[[], None]], workers: int, stop: threading.Event) -> Outcome:
    """Run named tasks in threads. ``stop`` is set when none should go on: Ctrl-C, a full disk, a bug.

    Any exception that is not a :class:`DataError` ends all of them and is raised here.
    """
    outcome = Outcome()
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="download") as pool:
        names = {pool.submit(_unless_stopped, task, stop): name for name, task in tasks.items()}
        try:
            for done in as_completed(names):
                error = done.exception()
                if isinstance(error, DiskFullError):
                    outcome.fatal = outcome.fatal or error
                elif isinstance(error, StoppedError):
                    continue
                elif isinstance(error, DataError):
                    outcome.failed[names[done]] = error
                elif error is not None:
                    raise error
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return outcome


def _unless_stopped(task: Callable[[], None], stop: threading.Event) -> None:
    if stop.is_set():
        raise StoppedError("stopped")
    try:
        task()
    except DiskFullError:
        stop.set()  # here, before this thread takes up its next task
        raise
