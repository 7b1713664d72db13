"""Long work says what it is doing, on standard error, so that results on standard output stay clean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

console = Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """One line for the user, on standard error."""
    console.print(message, markup=False, soft_wrap=True)


def warn(message: str) -> None:
    """One line the user should see, on standard error."""
    console.print(f"warning: {message}", style="yellow", markup=False, soft_wrap=True)


@contextmanager
def progress_bar(description: str, total: int | None = None) -> Iterator[Progress]:
    """A bar with count, elapsed and remaining time; a plain line at the end where there is no terminal."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=False,
    ) as progress:
        progress.add_task(description, total=total)
        yield progress


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield ``items`` while showing how far along they are."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    with progress_bar(description, total) as progress:
        task = progress.task_ids[0]
        for item in items:
            yield item
            progress.advance(task)
