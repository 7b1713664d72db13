"""What is written beside audio: the rows of the tables, the licences, and whom to name."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

from stable_audio_tools.data.jamendo import JamendoNames
from stable_audio_tools.data.licenses import LICENSES_FILE, TrackLicense
from stable_audio_tools.data.tables import read_lines
from stable_audio_tools.runtime.files import write_text
from stable_audio_tools.runtime.progress import say

ATTRIBUTION_FILE = "ATTRIBUTION.tsv"
SUMMARY_FILE = "LICENSES.md"

_ATTRIBUTION_COLUMNS = ("TRACK_ID", "PATH", "TITLE", "ARTIST", "ALBUM", "LICENSE", "LICENSE_URL", "URL")
_RECORD_PATH = re.compile(r"\d\d/(\d+)\.mp3\Z")
_MEANING = {
    "NC": "NonCommercial: not for commercial use",
    "ND": "NoDerivatives: works made from it may not be shared",
    "SA": "ShareAlike: works made from it carry the same licence",
}


def copy_rows(source: Path, target: Path, numbers: Collection[int], header: str | None = None) -> None:
    """Write the lines of the table ``source`` that are of the tracks ``numbers``, letter for letter.

    A table without a header gets ``header``. What ``target`` listed of other tracks is kept as ``.bak``.
    """
    wanted, lines = set(numbers), read_lines(source)
    headed = not lines[0].startswith("track_")
    kept = [lines[0]] if headed else [header] if header is not None else []
    kept += [line for line in lines[headed:] if _number(line) in wanted]
    _keep_backup(target, wanted)
    write_text(target, "".join(f"{line}\n" for line in kept))


def copy_licenses(source: Path, target: Path, numbers: Collection[int]) -> None:
    """Write the records of ``audio_licenses.txt`` that are of the tracks ``numbers``, letter for letter."""
    wanted, lines = set(numbers), read_lines(source)
    kept: list[str] = []
    for place, line in enumerate(lines):
        match = _RECORD_PATH.match(line.rstrip())
        if match is not None and int(match[1]) in wanted:
            kept += [*lines[place : place + 3], ""]
    write_text(target, "".join(f"{line}\n" for line in kept))


def write_attribution(
    folder: Path,
    paths: Mapping[int, str],
    names: Mapping[int, JamendoNames],
    licenses: Mapping[int, TrackLicense],
    seconds: float,
) -> None:
    """Write whom to name for each recording, and a summary of what may be done with them.

    Args:
        paths: the recordings, as they lie in the audio folder, by track id.
        seconds: how long they are together.
    """
    rows = ["\t".join(_ATTRIBUTION_COLUMNS)]
    for number, path in sorted(paths.items(), key=lambda item: item[1]):
        name, license_ = names.get(number), licenses.get(number)
        cells = (
            f"track_{number:07d}",
            path,
            name.title if name else license_.attribution if license_ else "",
            name.artist if name else "",
            name.album if name else "",
            license_.short if license_ else "not listed",
            license_.url if license_ else "",
            name.url if name else license_.page if license_ else "",
        )
        rows.append("\t".join(" ".join(cell.split()) for cell in cells))
    write_text(folder / ATTRIBUTION_FILE, "".join(f"{row}\n" for row in rows))
    write_text(folder / SUMMARY_FILE, _summary(paths, licenses, seconds / 3600))


def license_counts(numbers: Collection[int], licenses: Mapping[int, TrackLicense]) -> str:
    """One line: how many tracks of each licence, and of NC and ND."""
    found = [licenses.get(number) for number in numbers]
    counts = Counter(license_.code if license_ else "not listed" for license_ in found)
    bound = {
        "NC (no commercial use)": sum(1 for one in found if one is None or not one.commercial_use),
        "ND (no derived works)": sum(1 for one in found if one is None or not one.derivatives),
    }
    each = ", ".join(f"{code} {count}" for code, count in _most_first(counts))
    return f"{each}; {', '.join(f'{name}: {count}' for name, count in bound.items())}"


def _summary(paths: Mapping[int, str], licenses: Mapping[int, TrackLicense], hours: float) -> str:
    shorts = Counter(licenses[number].short if number in licenses else "not listed" for number in paths)
    lines = [
        "# Licences of the recordings here",
        "",
        f"{len(paths)} recordings, {hours:.1f} hours. Each has its own licence, as of the day that the data"
        f" set was made. {ATTRIBUTION_FILE} names title, artist, licence and page of each, as these licences"
        f" ask you to do; {LICENSES_FILE} has the publisher's own words.",
        "",
        "| licence | recordings |",
        "|---|---|",
        *(f"| {short} | {count} |" for short, count in _most_first(shorts)),
        "",
        *(f"- {sign}: {meaning}" for sign, meaning in _MEANING.items()),
        "- Tables and tags of MTG-Jamendo: CC BY-NC-SA 4.0, Music Technology Group, UPF.",
    ]
    return "\n".join(lines) + "\n"


def _most_first(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _keep_backup(target: Path, wanted: Collection[int]) -> None:
    if not target.is_file():
        return
    others = {_number(line) for line in read_lines(target)} - set(wanted) - {None}
    if others:
        backup = target.with_name(f"{target.name}.bak")
        os.replace(target, backup)
        say(f"{target}: listed {len(others)} tracks that are not here; kept as {backup.name}")


def _number(line: str) -> int | None:
    """The id of the track that a line is of."""
    digits = line.split("\t", 1)[0].removeprefix("track_")
    return int(digits) if digits.isascii() and digits.isdigit() else None
