"""The table of a run, without what depends on the machine."""

from __future__ import annotations

import csv
from pathlib import Path


def read_table(path: Path) -> list[dict[str, str]]:
    """All rows of a ``metrics.csv``."""
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def learned(row: dict[str, str]) -> dict[str, str]:
    """What of a row two runs have in common that train the same."""
    return {key: value for key, value in row.items() if not key.startswith(("speed/", "memory/"))}


def learned_rows(path: Path) -> list[dict[str, str]]:
    """All rows of a ``metrics.csv``, as far as two runs have them in common."""
    return [learned(row) for row in read_table(path)]
