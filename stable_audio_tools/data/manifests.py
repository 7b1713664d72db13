"""Tables of tracks that a user wrote: CSV, TSV or one JSON object a line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from stable_audio_tools.data.fields import standard_fields
from stable_audio_tools.data.paths import normalise_path
from stable_audio_tools.errors import DataError

PATH_COLUMNS = ("path", "file", "file_name", "filename", "file_path", "filepath", "audio_path", "audio")
"""What the column of paths may be called; the first of these that is there is it."""

_SUFFIXES = {".csv": ",", ".tsv": "\t", ".jsonl": "", ".ndjson": ""}


def read_manifest(path: Path, root: Path) -> dict[str, dict[str, Any]]:
    """What the manifest at ``path`` says of each recording, by its path from ``root``, in its order.

    A row names its recording relative to ``root`` or absolutely. A recording may have several rows, each with
    a caption of its own, if they agree on the rest. Fields are those of
    :func:`~stable_audio_tools.data.fields.standard_fields`; columns of other names are kept.

    Raises:
        DataError: the file cannot be read, has no column of paths, or a row is malformed, names a file
            outside of ``root`` or contradicts another; with the number of its line.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise DataError(f"{path}: not a manifest; expected a file that ends in {', '.join(_SUFFIXES)}")
    rows: dict[str, dict[str, Any]] = {}
    lines: dict[str, int] = {}
    for number, raw in _rows(path):
        where = f"{path}:{number}"
        name, rest = _named(raw, root, where)
        fields = standard_fields(rest, where)
        if name in rows:
            fields = _merged(rows[name], fields, where, lines[name])
        rows[name] = fields
        lines.setdefault(name, number)
    if not rows:
        raise DataError(f"{path}: lists no tracks")
    return rows


def _named(raw: dict[str, Any], root: Path, where: str) -> tuple[str, dict[str, Any]]:
    """The path of a row, and the rest of it."""
    spelled = {str(key).strip().lower(): key for key in raw}
    column = next((spelled[name] for name in PATH_COLUMNS if name in spelled), None)
    if column is None:
        known = ", ".join(PATH_COLUMNS)
        raise DataError(f"{where}: has no column of paths; expected one called {known}")
    text = raw[column]
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: {column} is {text!r}, expected the path of a recording")
    name = normalise_path(text, root)
    if name is None:
        raise DataError(f"{where}: {text!r} is outside the dataset's folder {root}")
    return name, {key: value for key, value in raw.items() if key != column}


def _merged(one: dict[str, Any], other: dict[str, Any], where: str, first: int) -> dict[str, Any]:
    """Two rows of one recording: their captions together, and what either says."""
    captions: list[str] = []
    for row in (one, other):
        prompt = row.get("prompt", [])
        captions += [prompt] if isinstance(prompt, str) else prompt
    captions = list(dict.fromkeys(captions))
    fields = {**one, **other}
    differing = sorted(name for name in one if name != "prompt" and one[name] != fields[name])
    if differing:
        name = differing[0]
        found, before = f"{other[name]!r:.60}", f"{one[name]!r:.60}"
        raise DataError(f"{where}: {name} is {found}, but line {first} says {before} of the same file")
    if captions:
        fields["prompt"] = captions[0] if len(captions) == 1 else captions
    return fields


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    delimiter = _SUFFIXES[path.suffix.lower()]
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield from _table(file, path, delimiter) if delimiter else _objects(file, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: {error}") from error


def _objects(file: TextIO, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON: {error.msg} at column {error.colno}") from error
        if not isinstance(value, dict):
            raise DataError(f"{path}:{number}: {value!r:.60} is not an object, expected one a line")
        yield number, value


def _table(file: TextIO, path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    head = file.readline()
    file.seek(0)
    if delimiter == "," and "," not in head and ";" in head:
        delimiter = ";"  # what spreadsheets write where the comma is the decimal sign
    # A TSV has no quotes: one that starts a title is part of it.
    quoting: Any = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
    header: list[str] = []
    before = 0
    try:
        for cells in reader:
            number, before = before + 1, reader.line_num  # a quoted cell may hold line ends
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = _header(cells, path)
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{path}:{number}: {len(cells)} cells, expected {len(header)} as in the header; a text"
                    f" with {delimiter!r} in it needs quotes around it"
                )
            yield number, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}:{before + 1}: not a table: {error}") from error


def _header(cells: list[str], path: Path) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}:1: column {twice!r} is there twice")
    return names
