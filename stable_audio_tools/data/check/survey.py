"""All files of an index, measured by several processes, each file once: a killed survey goes on."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from stable_audio_tools.data.check.measure import FileFacts, check_file
from stable_audio_tools.data.sources import Source
from stable_audio_tools.errors import UsageError
from stable_audio_tools.runtime.files import atomic_path
from stable_audio_tools.runtime.progress import progress_bar, say

# Starting processes costs about 3 s; so few files are measured sooner without.
_WORTH_PROCESSES = 16
_AHEAD = 4
_CRASHED = "the decoder crashed on it, which ended its process; re-encode or remove the file"


def available_cpus() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def survey(
    sources: Sequence[Source], journal: Path, *, num_workers: int | None = None, description: str = "files"
) -> list[FileFacts]:
    """The facts of each of ``sources``, in their order.

    Every file that is done is a line of ``journal`` at once. A file whose size and time of change are those
    of its line is not read again; one that could not be read is tried again. At the end the journal holds
    exactly ``sources``, in their order.

    Args:
        sources: the recordings.
        journal: the JSON lines file to go on from and to write.
        num_workers: processes; None is as many as there are processors, 0 measures in this one.
        description: what the progress bar says.

    Raises:
        DataError: a shard cannot be read; what was measured so far is in the journal.
        UsageError: a negative number of workers.
    """
    if num_workers is not None and num_workers < 0:
        raise UsageError(f"num workers is {num_workers}: expected 0 or more")
    workers = available_cpus() if num_workers is None else num_workers
    known = _read_journal(journal)
    facts = {
        source: found
        for source in sources
        if (found := _still_true(known.get(source.place), source)) is not None
    }
    todo = [source for source in dict.fromkeys(sources) if source not in facts]
    if facts:
        say(f"{description}: {len(facts)} of {len(sources)} are known from {journal}")
    journal.parent.mkdir(parents=True, exist_ok=True)
    if todo:
        with progress_bar(description, len(todo)) as bar, open(journal, "a", encoding="ascii") as out:
            if out.tell() and not _ends_whole(journal):
                out.write("\n")
            inline = workers <= 1 or len(todo) < _WORTH_PROCESSES
            for source, found in _measure_here(todo) if inline else _measure_apart(todo, workers):
                facts[source] = found
                _write_line(out, found)
                bar.advance(bar.task_ids[0])
    result = [facts[source] for source in sources]
    with atomic_path(journal) as temporary, open(temporary, "w", encoding="ascii") as out:
        for found in result:
            _write_line(out, found)
    return result


def _measure_here(sources: Sequence[Source]) -> Iterator[tuple[Source, FileFacts]]:
    return ((source, check_file(source)) for source in sources)


def _measure_apart(sources: Sequence[Source], workers: int) -> Iterator[tuple[Source, FileFacts]]:
    """In processes of their own, in the order in which they are done.

    A crash inside a decoder takes all processes of a pool with it, and the pool does not say whose file it
    was: those that were under way are measured again, each in a pool of its own, and the guilty one is named.
    """
    remaining = deque(sources)
    while remaining:
        begun: dict[Source, Future[FileFacts]] = {}
        with _pool(workers) as pool:
            try:
                while begun or remaining:
                    while remaining and len(begun) < _AHEAD * workers:
                        begun[remaining[0]] = pool.submit(check_file, remaining[0])
                        remaining.popleft()
                    wait(begun.values(), return_when=FIRST_COMPLETED)
                    for source in [source for source, future in begun.items() if future.done()]:
                        found = begun[source].result()
                        del begun[source]
                        yield source, found
            except BrokenProcessPool:
                say(f"a process ended without a word; the {len(begun)} files under way are read one by one")
        for source in begun:
            yield source, _alone(source)


def _alone(source: Source) -> FileFacts:
    """The facts of a file that may crash its process."""
    with _pool(1) as pool:
        try:
            return pool.submit(check_file, source).result()
        except BrokenProcessPool:
            return FileFacts(source.place, *source.stamp(), None, None, _CRASHED)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that do not inherit our threads; those of a fork server share what they have imported."""
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C, what has not begun does not begin


def _begin_worker() -> None:
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which then ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A main process that is killed cannot end its workers, and they would wait for it for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _read_journal(journal: Path) -> dict[str, FileFacts]:
    """The last line of each path; what is not whole, as the line a kill cut off, is left out."""
    known: dict[str, FileFacts] = {}
    if not journal.is_file():
        return known
    with open(journal, encoding="ascii", errors="replace") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            found = FileFacts.from_record(record) if isinstance(record, dict) else None
            if found is not None:
                known[found.path] = found
    return known


def _still_true(found: FileFacts | None, source: Source) -> FileFacts | None:
    if found is None or found.measured is None:
        return None
    try:
        stamp = source.stamp()
    except OSError:
        return None
    return found if (found.size_bytes, found.changed_ns) == stamp else None


def _ends_whole(journal: Path) -> bool:
    with open(journal, "rb") as lines:
        lines.seek(-1, os.SEEK_END)
        return lines.read(1) == b"\n"


def _write_line(out: TextIO, found: FileFacts) -> None:
    out.write(json.dumps(found.record()) + "\n")
    out.flush()
