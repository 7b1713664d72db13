"""Finding what a config names, and lists of paths: ``filelist.txt`` and exclude lists, in one syntax.

A list has one path a line, relative to a dataset folder or absolute. Lines that start with ``#`` and empty
lines say nothing. A line that starts with a double quote is a JSON string: so a name may hold a newline or
start with ``#``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from stable_audio_tools.errors import DataError
from stable_audio_tools.runtime.files import atomic_path


def find_path(name: str, base_dir: Path | None, *more_bases: Path) -> tuple[Path | None, list[Path]]:
    """Where ``name`` is: in the working folder, in ``base_dir`` or in ``more_bases``, whichever is first.

    Returns the path, or None, and every place that was tried.
    """
    path = Path(name).expanduser()
    bases = [Path.cwd(), *([] if base_dir is None else [base_dir]), *more_bases]
    tried = [path] if path.is_absolute() else list(dict.fromkeys(base.absolute() / path for base in bases))
    return next((place for place in tried if place.exists()), None), tried


def normalise_path(text: str, root: Path) -> str | None:
    """``text`` as a POSIX path from ``root``, without ``.``, ``..`` and doubled slashes; None if outside.

    Nothing is looked up on the disk but ``root`` itself, which an absolute path may name with or without the
    symbolic links in it.
    """
    normal = os.path.normpath(text)
    if not os.path.isabs(normal):
        inside = normal
    else:
        bases = (os.path.normpath(root.absolute()), os.path.realpath(root))
        base = next((base for base in bases if os.path.commonpath((base, normal)) == base), None)
        if base is None:
            return None
        inside = os.path.relpath(normal, base)
    if inside in (os.curdir, os.pardir) or inside.startswith(os.pardir + os.sep):
        return None
    return Path(inside).as_posix()


def read_path_list(path: Path) -> list[str]:
    """The paths in a list file, as written.

    Raises:
        DataError: the file cannot be read, or a quoted line is not a JSON string.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    names = []
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.removesuffix("\r")
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if line.startswith('"'):
            try:
                line = str(json.loads(line))
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path}:{number}: starts with a quote but is not a JSON string: {line}"
                ) from error
        names.append(line)
    return names


def write_path_list(path: Path, names: Iterable[str], comments: Sequence[str] = ()) -> None:
    """Write ``names`` so that :func:`read_path_list` gives them back, under ``comments``; in one step."""
    lines = [f"# {comment}" for comment in comments]
    lines += [_line(name) for name in names]
    with atomic_path(path) as temporary:
        temporary.write_bytes(
            "".join(f"{line}\n" for line in lines).encode("utf-8", errors="surrogateescape")
        )


def append_path_list(path: Path, groups: Mapping[str, Sequence[str]]) -> int:
    """Add names to a list, each group under its comment; what it holds, comments and all, stays as it is.

    A name that is there already is not added again. The file is written in one step, and made if there is
    something to add or none yet. Returns how many names were added.

    Raises:
        DataError: there is a file, and :func:`read_path_list` cannot read it.
    """
    known = set(read_path_list(path)) if path.exists() else set()
    before = path.read_bytes() if path.exists() else b""
    if before and not before.endswith(b"\n"):
        before += b"\n"
    lines: list[str] = []
    added = 0
    for comment, names in groups.items():
        new = [name for name in dict.fromkeys(names) if name not in known]
        known.update(new)
        added += len(new)
        lines += [f"# {comment}", *map(_line, new)] if new else []
    if lines or not path.exists():
        with atomic_path(path) as temporary:
            text = "".join(f"{line}\n" for line in lines)
            temporary.write_bytes(before + text.encode("utf-8", errors="surrogateescape"))
    return added


def _line(name: str) -> str:
    return json.dumps(name) if _needs_quotes(name) else name


def _needs_quotes(name: str) -> bool:
    return name != name.strip() or name.startswith(("#", '"')) or "\n" in name or "\r" in name
