"""Lines of the tables of MTG-Jamendo: plain text, in which a quote is a quote and only a tab ends a cell."""

from __future__ import annotations

from pathlib import Path

from stable_audio_tools.errors import DataError

# A symbolic link of a repository, fetched over HTTP, is a file that holds the name of another.
_STUB_BYTES = 255


def read_lines(path: Path) -> list[str]:
    """The lines of a table, without their ends.

    Where the file is a symbolic link that was downloaded as text (``autotagging.tsv`` of MTG-Jamendo is one,
    31 bytes long), the file it names is read instead.

    Raises:
        DataError: the file cannot be read, is not UTF-8 text, or names a file that is not there.
    """
    text = _read(path)
    target = _linked(path, text)
    if target is not None:
        if not target.is_file():
            raise DataError(
                f"{path}: is a symbolic link that was downloaded as text: it says {text.strip()!r};"
                " download that file, beside it or in its place"
            )
        text = _read(target)
    # Only these end a line; str.splitlines would also split at signs that names may hold.
    return text.replace("\r\n", "\n").split("\n")


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: {error}") from error


def _linked(path: Path, text: str) -> Path | None:
    name = text.strip()
    if not name or len(text) > _STUB_BYTES or any(sign in name for sign in "\t\n") or " " in name:
        return None
    return path.parent / name if Path(name).suffix == path.suffix else None
