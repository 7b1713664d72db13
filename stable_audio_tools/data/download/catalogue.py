"""The tables of MTG-Jamendo (Bogdanov et al. 2019), fetched once for a folder and read.

They stay in the folder, so that a run that goes on tomorrow chooses from the same tables. Audio is verified
against the published checksums among them, which come over HTTPS from the repository of the data set.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from stable_audio_tools.data.download.archives import why_unsafe
from stable_audio_tools.data.download.placing import Digest, set_aside
from stable_audio_tools.data.download.settings import JamendoSettings
from stable_audio_tools.data.download.transfer import Fetcher, Wanted
from stable_audio_tools.data.jamendo import JamendoTrack, read_raw_30s
from stable_audio_tools.data.licenses import LICENSES_FILE, TrackLicense, read_licenses
from stable_audio_tools.errors import DataError
from stable_audio_tools.runtime.progress import say, warn

_MANIFEST_LINE = re.compile(r"([0-9a-f]+)\s+\*?(\S.*)\Z")
_HEX_DIGITS = {"sha256": 64, "md5": 32}
_TRACK_PATH = re.compile(r"(\d\d)/(\d+)\.mp3\Z")
_LINK_BYTES = 255
_MOODTHEME = "autotagging_moodtheme"

T = TypeVar("T")


@dataclass(frozen=True)
class Catalogue:
    """The tables that a choice is made from.

    ``tracks`` are those of the subset and split asked for, ``all_tracks`` those of ``raw_30s.tsv``.
    """

    folder: Path
    archive: str
    """The published set of tars: raw_30s, or the smaller one of the mood/theme subset."""
    quality: str
    tracks: dict[int, JamendoTrack]
    all_tracks: dict[int, JamendoTrack]
    licenses: dict[int, TrackLicense]
    checksums: dict[str, Digest]
    """By path in the audio folder: ``63/1159663.mp3``, ``63/1159663.low.mp3``."""

    def file_of(self, track: JamendoTrack) -> str:
        """The path of a track in the audio folder, as it is published."""
        return track.path if self.quality == "audio" else track.path.removesuffix(".mp3") + ".low.mp3"

    def tar_of(self, track: JamendoTrack) -> str:
        """The tar that holds a track: there is one for each folder."""
        return f"{self.archive}_{self.quality}-{track.path[:2]}.tar"

    def remote(self, name: str) -> str:
        """Where a file of this quality lies on a mirror."""
        return f"{self.archive}/{self.quality}/{name}"

    @property
    def tables(self) -> dict[str, Path]:
        """The tables that every part of the data set shares, by the names they keep."""
        return {
            "raw_30s.tsv": self.folder / "data/raw_30s.tsv",
            "raw.meta.tsv": self.folder / "data/raw.meta.tsv",
            LICENSES_FILE: self.folder / LICENSES_FILE,
        }


def fetch_catalogue(fetcher: Fetcher, folder: Path, settings: JamendoSettings) -> Catalogue:
    """The tables that ``settings`` need, from ``folder`` or else from the mirrors of ``fetcher``.

    Raises:
        DataError: a table cannot be had, or is not what it should be; it is fetched again next time.
    """
    # The mirrors have single files of raw_30s only; the mood/theme subset has smaller tars of its own.
    smaller = settings.subset == _MOODTHEME and settings.mode != "track"
    archives = ["raw_30s", *([_MOODTHEME] if smaller else [])]
    subset = _subset_table(settings)
    manifests = [f"data/download/{archive}_{settings.quality}_sha256_tracks.txt" for archive in archives]
    for name in dict.fromkeys(["data/raw_30s.tsv", subset, "data/raw.meta.tsv", LICENSES_FILE, *manifests]):
        _fetch_table(fetcher, folder, name)
    full = _read(read_raw_30s, folder / "data/raw_30s.tsv")
    chosen = full if subset == "data/raw_30s.tsv" else _read(read_raw_30s, folder / subset)
    strange = [track.path for track in chosen.values() if not _TRACK_PATH.match(track.path)]
    if strange:
        raise DataError(f"{folder / subset}: the path {strange[0]!r} is not of the form NN/id.mp3")
    return Catalogue(
        folder,
        archives[-1],
        settings.quality,
        chosen,
        full,
        _licenses(folder / LICENSES_FILE, needed=settings.license != "any"),
        {
            name: digest
            for manifest in manifests
            for name, digest in _read(read_checksums, folder / manifest).items()
        },
    )


def tar_checksums(fetcher: Fetcher, catalogue: Catalogue) -> dict[str, Digest]:
    """The published checksums of the tars, by name.

    Raises:
        DataError: as :func:`fetch_catalogue`.
    """
    name = f"data/download/{catalogue.archive}_{catalogue.quality}_sha256_tars.txt"
    _fetch_table(fetcher, catalogue.folder, name)
    return _read(read_checksums, catalogue.folder / name)


def read_checksums(path: str | Path, algorithm: str = "sha256") -> dict[str, Digest]:
    """Checksums by name from lines ``<hex> <name>``.

    Raises:
        DataError: the file cannot be read, or a line is malformed or repeated; with its number.
    """
    checksums: dict[str, Digest] = {}
    for number, line in enumerate(_lines(Path(path)), start=1):
        match = _MANIFEST_LINE.match(line)
        if match is None or len(match[1]) != _HEX_DIGITS[algorithm] or why_unsafe(match[2]) is not None:
            raise DataError(f"{path}:{number}: {line!r:.120}, expected the {algorithm} in hex and a name")
        if match[2] in checksums:
            raise DataError(f"{path}:{number}: {match[2]} is listed a second time")
        checksums[match[2]] = Digest(algorithm, match[1])
    if not checksums:
        raise DataError(f"{path}: holds no checksums")
    return checksums


def _subset_table(settings: JamendoSettings) -> str:
    if settings.split == "all":
        return f"data/{settings.subset}.tsv"
    # The splits are of the autotagging tables; raw_30s itself has none.
    name = "autotagging" if settings.subset == "raw_30s" else settings.subset
    return f"data/splits/split-{settings.split_number}/{name}-{settings.split}.tsv"


def _fetch_table(fetcher: Fetcher, folder: Path, name: str) -> None:
    """Get a table, and the one it links to: a link in the repository comes as the name of its target."""
    for _ in range(3):
        path = folder / name
        if not path.is_file():
            say(f"fetching the table {name}")
            fetcher.fetch(Wanted(name, path, None))
        if path.stat().st_size > _LINK_BYTES:
            return
        text = path.read_text(encoding="utf-8", errors="replace").strip()
        if "\n" in text or "\t" in text or " " in text or posixpath.splitext(text)[1] != ".tsv":
            return
        name = posixpath.normpath(posixpath.join(posixpath.dirname(name), text))
        if why_unsafe(name) is not None:
            raise DataError(f"{path}: is a link to {text!r}, outside the repository")


def _read(reader: Callable[[Path], T], path: Path) -> T:
    """What ``reader`` makes of a table; one that it refuses does not stay here to be refused for ever."""
    try:
        return reader(path)
    except DataError as error:
        aside = set_aside(path)
        raise DataError(f"{error}; put aside as {aside.name}, the next run fetches it anew") from error


def _licenses(path: Path, *, needed: bool) -> dict[int, TrackLicense]:
    """Licences by track. One record that cannot be read keeps nobody from the audio unless it must."""
    try:
        return read_licenses(path)
    except DataError as error:
        if needed:
            raise DataError(f"{error}; without --license the tracks come and the file is copied") from error
        warn(f"{error}; licences are copied as they are, not summed up")
        return {}


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
