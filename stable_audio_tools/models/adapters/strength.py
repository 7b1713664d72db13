"""Adapters by strength, as a command line names them: ``path`` or ``path:0.5``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stable_audio_tools.errors import UsageError


@dataclass(frozen=True)
class AdapterChoice:
    """Where an adapter is, and how much of it to use: 0 is the base alone, 1 the adapter as trained."""

    path: Path
    strength: float = 1.0

    def __str__(self) -> str:
        return str(self.path) if self.strength == 1 else f"{self.path}:{self.strength:g}"


AdapterPaths = str | Path | AdapterChoice | Sequence[str | Path | AdapterChoice] | None
"""One adapter or several; a path may end in ``:`` and a strength."""


def choose_adapters(given: AdapterPaths) -> tuple[AdapterChoice, ...]:
    """The adapters that ``given`` names.

    Raises:
        UsageError: a strength is not finite, or an adapter is named twice.
    """
    if given is None:
        return ()
    entries = [given] if isinstance(given, str | Path | AdapterChoice) else list(given)
    choices = tuple(entry if isinstance(entry, AdapterChoice) else _parse(str(entry)) for entry in entries)
    seen: set[Path] = set()
    for choice in choices:
        if not math.isfinite(choice.strength):
            raise UsageError(f"adapter {choice.path}: expected a finite strength, found {choice.strength}")
        if choice.path in seen:
            raise UsageError(f"adapter {choice.path}: given twice; add up the strengths instead")
        seen.add(choice.path)
    return choices


def _parse(text: str) -> AdapterChoice:
    """``path:strength``; a path that exists as it stands has no strength in it, colon or not."""
    path, colon, number = text.rpartition(":")
    if not colon or not path or Path(text).exists():
        return AdapterChoice(Path(text))
    try:
        return AdapterChoice(Path(path), float(number))
    except ValueError:
        return AdapterChoice(Path(text))
