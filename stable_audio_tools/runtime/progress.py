"""Long work says what it is doing, on standard error, so that results on standard output stay clean."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")

console = Console(stderr=True, highlight=False)


_RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
"""Where torchrun, srun and Lightning tell a process which of several it is."""


def say(message: str) -> None:
    """One line for the user, on standard error; of several processes only the first speaks."""
    if _is_first():
        console.print(message, markup=False, soft_wrap=True)


def warn(message: str) -> None:
    """One line the user should see, on standard error; of several processes only the first speaks."""
    if _is_first():
        console.print(f"warning: {message}", style="yellow", markup=False, soft_wrap=True)


def _is_first() -> bool:
    return all(os.environ.get(name, "0") == "0" for name in _RANKS)


@contextmanager
def progress_bar(description: str, total: int | None = None) -> Iterator[Progress]:
    """A bar with count, elapsed and remaining time; where there is no terminal, one line at the end."""
    live = console.is_terminal
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not live,
    ) as progress:
        progress.add_task(description, total=total)
        try:
            yield progress
        finally:
            if not live:
                for task in progress.tasks:
                    say(_closing_line(task))


def _closing_line(task: Task) -> str:
    of_total = "" if task.total is None else f"/{task.total:.0f}"
    elapsed = timedelta(seconds=round(task.elapsed or 0.0))
    return f"{task.description}  {task.completed:.0f}{of_total}  {elapsed}"


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield ``items`` while showing how far along they are."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress_bar(description, total) as progress:
        task = progress.task_ids[0]
        for item in items:
            yield item
            progress.advance(task)
