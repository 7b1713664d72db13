"""The captions of the Song Describer Dataset (Manco et al. 2023), CC BY-SA 4.0."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stable_audio_tools.data.jamendo import (
    JamendoNames,
    JamendoTrack,
    fields_of,
    read_raw_30s,
    read_raw_meta,
    track_number,
)
from stable_audio_tools.errors import DataError

_COLUMNS = (
    "caption_id", "track_id", "caption", "is_valid_subset", "familiarity", "artist_id", "album_id", "path",
    "duration",
)  # fmt: skip
_SUBSET = {"True": True, "False": False, "": None}


@dataclass(frozen=True)
class Caption:
    """One caption of one track. ``is_valid_subset`` is None where the table says nothing."""

    caption_id: int
    track_id: int
    caption: str
    is_valid_subset: bool | None
    familiarity: int | None
    artist_id: int
    album_id: int
    path: str
    duration_seconds: float


def read_song_describer(path: str | Path) -> list[Caption]:
    """Every caption of ``song_describer.csv``, in its order; a track may have several.

    Raises:
        DataError: the file cannot be read, lacks a column, or a row is malformed; with its line.
    """
    path = Path(path)
    captions = []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(
                    f"{path}: lacks the columns {', '.join(missing)}; expected song_describer.csv"
                )
            for row in reader:
                captions.append(_caption(row, f"{path}:{reader.line_num}"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a table of UTF-8 text: {error}") from error
    if not captions:
        raise DataError(f"{path}: holds no captions")
    return captions


def find_recording(caption: Caption, audio_dir: str | Path) -> Path:
    """The recording of ``caption``: the table says ``NN/id.mp3``, the published audio is ``NN/id.2min.mp3``.

    Raises:
        DataError: neither is in ``audio_dir``.
    """
    listed = Path(audio_dir) / caption.path
    excerpt = listed.with_suffix(f".2min{listed.suffix}")
    for candidate in (excerpt, listed):
        if candidate.is_file():
            return candidate
    raise DataError(f"no recording of track {caption.track_id}: looked for {excerpt} and {listed}")


class SongDescriberFolder:
    """A folder with ``song_describer.csv`` above its recordings; each table is read once.

    ``raw.tsv`` (tags) and ``audio_metadata.tsv`` (names) beside it are used where they are there.
    """

    TABLE = "song_describer.csv"
    TRACKS = "raw.tsv"
    NAMES = "audio_metadata.tsv"

    def __init__(self) -> None:
        self._tables: dict[Path, _Tables] = {}
        self._homes: dict[Path, Path] = {}

    def fields(self, audio_path: str | Path) -> dict[str, Any]:
        """What is known of the recording, with all its captions but those that were found wrong.

        Validated captions come before the ones that nobody has judged.

        Raises:
            DataError: no table above it, no number in its name, or no caption of it in the table.
        """
        path = Path(audio_path).absolute()
        home = self._home(path.parent)
        tables = self._read(home)
        number = track_number(path)
        captions = tables.captions.get(number)
        if captions is None:
            raise DataError(f"{path}: {home / self.TABLE} has no caption of track {number}")
        known: dict[str, Any] = {}
        if number in tables.tracks:
            known = fields_of(tables.tracks[number], tables.names.get(number))
        elif number in tables.names:
            names = tables.names[number]
            known = {"title": names.title, "artist": names.artist, "album": names.album}
        known |= {"track_id": number, "artist_id": captions[0].artist_id, "album_id": captions[0].album_id}
        usable = sorted(
            (caption for caption in captions if caption.is_valid_subset is not False),
            key=lambda caption: caption.is_valid_subset is None,
        )
        known.pop("prompt", None)
        if usable:
            known["prompt"] = [caption.caption for caption in usable]
        return known

    def _home(self, folder: Path) -> Path:
        if folder not in self._homes:
            above = (folder, *folder.parents)
            home = next((place for place in above if (place / self.TABLE).is_file()), None)
            if home is None:
                raise DataError(f"{folder}: neither this folder nor one above it has {self.TABLE}")
            self._homes[folder] = home
        return self._homes[folder]

    def _read(self, home: Path) -> _Tables:
        if home not in self._tables:
            captions: dict[int, list[Caption]] = {}
            for caption in read_song_describer(home / self.TABLE):
                captions.setdefault(caption.track_id, []).append(caption)
            tracks, names = home / self.TRACKS, home / self.NAMES
            self._tables[home] = _Tables(
                captions,
                read_raw_30s(tracks) if tracks.is_file() else {},
                read_raw_meta(names) if names.is_file() else {},
            )
        return self._tables[home]


@dataclass(frozen=True)
class _Tables:
    captions: dict[int, list[Caption]]
    tracks: dict[int, JamendoTrack]
    names: dict[int, JamendoNames]


def _caption(row: dict[str, str], where: str) -> Caption:
    if None in row or None in row.values():
        raise DataError(f"{where}: has not as many columns as the header")
    try:
        caption = Caption(
            caption_id=int(row["caption_id"]),
            track_id=int(row["track_id"]),
            caption=row["caption"].strip(),
            is_valid_subset=_SUBSET[row["is_valid_subset"]],
            familiarity=int(row["familiarity"]) if row["familiarity"] else None,
            artist_id=int(row["artist_id"]),
            album_id=int(row["album_id"]),
            path=row["path"],
            duration_seconds=float(row["duration"]),
        )
    except (ValueError, KeyError) as error:
        raise DataError(f"{where}: malformed row: {error}") from error
    if not caption.caption:
        raise DataError(f"{where}: the caption is empty")
    return caption
