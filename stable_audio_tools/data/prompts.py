"""Which prompt a clip was made from: its sidecar, its tags, or ``prompts.csv`` in its folder."""

from __future__ import annotations

import csv
from functools import lru_cache
from pathlib import Path
from typing import Any

from stable_audio_tools.data.paths import normalise_path
from stable_audio_tools.data.sidecars import read_sidecar
from stable_audio_tools.errors import DataError

PROMPTS_FILE = "prompts.csv"
_REQUIRED = ("file", "prompt")
_SECONDS = ("seconds_start", "seconds_total")


def prompt_for_clip(path: str | Path) -> dict[str, Any]:
    """The conditioning of the clip at ``path``: ``prompt``, and the two ``seconds_*`` where known.

    From its sidecar (``<clip>.json`` or the comment tag), with whatever else it was conditioned on; else
    from the line of ``prompts.csv`` in its folder that names it (columns
    ``file,prompt[,seconds_start,seconds_total]``).

    Raises:
        DataError: neither says; names the clip.
    """
    path = Path(path)
    sidecar = read_sidecar(path)
    if sidecar is not None:
        return {
            **sidecar.conditioning,
            "prompt": sidecar.prompt,
            "seconds_start": sidecar.seconds_start,
            "seconds_total": sidecar.seconds_total,
        }
    table = path.parent / PROMPTS_FILE
    if not table.is_file():
        raise DataError(
            f"{path}: its prompt is not known: no sidecar {path.with_suffix('.json').name}, no tag, and no"
            f" {PROMPTS_FILE} in its folder (columns file,prompt)"
        )
    rows = _read_prompts(table, table.stat().st_mtime_ns)
    if path.name not in rows:
        raise DataError(f"{path}: {table} has no line for it; add {path.name},<prompt>")
    return dict(rows[path.name])


@lru_cache(maxsize=64)
def _read_prompts(table: Path, changed: int) -> dict[str, dict[str, Any]]:
    """Conditioning by file name; ``changed`` is there so that an edited table is read again."""
    rows: dict[str, dict[str, Any]] = {}
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            missing = [name for name in _REQUIRED if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{table}: lacks the column {missing[0]!r}; expected file,prompt")
            for row in reader:
                where = f"{table}:{reader.line_num}"
                name = normalise_path(row["file"] or "", table.parent)
                if not name or not row["prompt"]:
                    raise DataError(f"{where}: file or prompt is empty")
                if name in rows:
                    raise DataError(f"{where}: {name} is listed a second time")
                rows[name] = {"prompt": row["prompt"], **_seconds(row, where)}
    except OSError as error:
        raise DataError(f"{table}: cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: not a table of UTF-8 text: {error}") from error
    return rows


def _seconds(row: dict[str, str], where: str) -> dict[str, float]:
    try:
        return {name: float(row[name]) for name in _SECONDS if row.get(name)}
    except ValueError as error:
        raise DataError(f"{where}: {error}, expected seconds") from error
