"""``audio_licenses.txt`` of MTG-Jamendo and Song Describer: whose each track is, and what it may be used for.

A record is three lines: the path ``NN/id.mp3``, ``<title> by <artist> from Jamendo: <page>`` and ``Available
under <licence>: <its page>``. An empty line ends it in MTG-Jamendo, a line ``--`` in Song Describer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from stable_audio_tools.data.tables import read_lines
from stable_audio_tools.errors import DataError

LICENSES_FILE = "audio_licenses.txt"

_PATH = re.compile(r"\d\d/(\d+)\.mp3\Z")
_ATTRIBUTION = re.compile(r"(.+ by .+) from Jamendo: (https?://\S+)\Z")
_LICENSE = re.compile(r"Available under (?:an? )?(.+?)(?: licen[cs]e)?: (https?://\S+)\Z", re.IGNORECASE)
_CREATIVE_COMMONS = re.compile(
    r"https?://(?:www\.)?creativecommons\.org/licenses/(by(?:-nc)?(?:-nd|-sa)?)/(\d+\.\d+)", re.IGNORECASE
)
_FREE_ART = re.compile(r"https?://(?:www\.)?artlibre\.org/", re.IGNORECASE)


@dataclass(frozen=True)
class TrackLicense:
    """One record of the file.

    ``code`` is ``by``, ``by-nc-sa`` and so on; ``lal`` is the Free Art licence, and ``other`` any that is not
    known here, of which nothing is assumed but that it may not be used.
    """

    track_id: int
    path: str
    attribution: str
    """``<title> by <artist>``, in one piece: both may hold the word."""
    page: str
    name: str
    url: str
    code: str
    version: str

    @property
    def commercial_use(self) -> bool:
        return self.code != "other" and "nc" not in self.code.split("-")

    @property
    def derivatives(self) -> bool:
        """Whether works made from it may be shared."""
        return self.code != "other" and "nd" not in self.code.split("-")

    @property
    def short(self) -> str:
        """``CC BY-NC-SA 3.0``, or the name that the file gives."""
        if self.code in ("lal", "other"):
            return self.name
        return f"CC {self.code.upper()} {self.version}"


def read_licenses(path: str | Path) -> dict[int, TrackLicense]:
    """Licences by track id, in the order of the file.

    Raises:
        DataError: the file cannot be read, or a record is malformed or repeated; with the number of its line.
    """
    path = Path(path)
    lines = read_lines(path)
    licenses: dict[int, TrackLicense] = {}
    number = 0
    while number < len(lines):
        if lines[number] in ("", "--"):
            number += 1
            continue
        record = _record(lines[number : number + 3], path, number + 1)
        if record.track_id in licenses:
            raise DataError(f"{path}:{number + 1}: track {record.track_id} is listed a second time")
        licenses[record.track_id] = record
        number += 3
    if not licenses:
        raise DataError(f"{path}: holds no licences")
    return licenses


def _record(lines: list[str], path: Path, number: int) -> TrackLicense:
    expected = (
        (_PATH, "a path NN/id.mp3"),
        (_ATTRIBUTION, "'<title> by <artist> from Jamendo: <page>'"),
        (_LICENSE, "'Available under <licence>: <page>'"),
    )
    matches = []
    for step, (pattern, what) in enumerate(expected):
        line = lines[step] if step < len(lines) else ""
        match = pattern.fullmatch(line.rstrip())
        if match is None:
            raise DataError(f"{path}:{number + step}: {line!r:.120}, expected {what}")
        matches.append(match)
    audio, attribution, license_ = matches
    code, version = _code(license_[2])
    return TrackLicense(
        int(audio[1]), audio[0], attribution[1], attribution[2], license_[1], license_[2], code, version
    )


def _code(url: str) -> tuple[str, str]:
    match = _CREATIVE_COMMONS.match(url)
    if match is not None:
        return match[1].lower(), match[2]
    return ("lal" if _FREE_ART.match(url) else "other"), ""
