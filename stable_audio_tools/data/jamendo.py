"""The tables of MTG-Jamendo (Bogdanov et al. 2019), read whole and checked line by line.

``raw_30s.tsv`` and the ``autotagging_*.tsv`` splits have one track a line: id, artist, album, path,
duration, and one tag in each column from the sixth on. ``raw.meta.tsv`` has the names. Both are plain
tab-separated text: a quote is a quote.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stable_audio_tools.data.prompt_templates import listing
from stable_audio_tools.data.tables import read_lines
from stable_audio_tools.errors import DataError

_TRACK_COLUMNS = ("TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS")
_META_COLUMNS = (
    "TRACK_ID", "ARTIST_ID", "ALBUM_ID", "TRACK_NAME", "ARTIST_NAME", "ALBUM_NAME", "RELEASEDATE", "URL",
)  # fmt: skip
_TAG_SEPARATOR = "---"

# Jamendo writes tags as one word. A text encoder knows the words better apart.
_SPELLED = {
    "60s": "sixties",
    "70s": "seventies",
    "80s": "eighties",
    "90s": "nineties",
    "acidjazz": "acid jazz",
    "acousticbassguitar": "acoustic bass guitar",
    "acousticguitar": "acoustic guitar",
    "alternativerock": "alternative rock",
    "classicalguitar": "classical guitar",
    "classicrock": "classic rock",
    "clubdance": "club dance",
    "darkambient": "dark ambient",
    "deephouse": "deep house",
    "doublebass": "double bass",
    "drummachine": "drum machine",
    "drumnbass": "drum and bass",
    "easylistening": "easy listening",
    "electricguitar": "electric guitar",
    "electricpiano": "electric piano",
    "electropop": "electro pop",
    "ethnicrock": "ethnic rock",
    "frenchhorn": "french horn",
    "hardrock": "hard rock",
    "heavymetal": "heavy metal",
    "hiphop": "hip hop",
    "instrumentalpop": "instrumental pop",
    "instrumentalrock": "instrumental rock",
    "jazzfunk": "jazz funk",
    "jazzfusion": "jazz fusion",
    "newage": "new age",
    "newwave": "new wave",
    "pipeorgan": "pipe organ",
    "popfolk": "pop folk",
    "poprock": "pop rock",
    "postrock": "post rock",
    "punkrock": "punk rock",
    "rnb": "R&B",
    "rocknroll": "rock and roll",
    "singersongwriter": "singer-songwriter",
    "synthpop": "synth pop",
    "triphop": "trip hop",
    "worldfusion": "world fusion",
}


@dataclass(frozen=True)
class JamendoTrack:
    """A line of ``raw_30s.tsv``; ``tags`` by category (``genre``, ``instrument``, ``mood/theme``)."""

    track_id: int
    artist_id: int
    album_id: int
    path: str
    duration_seconds: float
    tags: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class JamendoNames:
    """A line of ``raw.meta.tsv``."""

    track_id: int
    artist_id: int
    album_id: int
    title: str
    artist: str
    album: str
    release_date: str
    url: str


def read_raw_30s(path: str | Path) -> dict[int, JamendoTrack]:
    """Tracks by id, in the order of the file, from ``raw_30s.tsv``, ``raw.tsv`` or any
    ``autotagging*.tsv``.

    Raises:
        DataError: the file cannot be read, has another header, or a line is malformed or repeated; with its
        number.
    """
    tracks: dict[int, JamendoTrack] = {}
    for where, cells in _rows(Path(path), _TRACK_COLUMNS, minimum=5):
        track = JamendoTrack(
            _number(cells[0], "track", where),
            _number(cells[1], "artist", where),
            _number(cells[2], "album", where),
            cells[3],
            _seconds(cells[4], where),
            _tags(cells[5:], where),
        )
        if track.track_id in tracks:
            raise DataError(f"{where}: track {track.track_id} is listed a second time")
        tracks[track.track_id] = track
    return tracks


def read_raw_meta(path: str | Path) -> dict[int, JamendoNames]:
    """Names by track id, in the order of the file, from ``raw.meta.tsv`` or ``audio_metadata.tsv``.

    Raises:
        DataError: as :func:`read_raw_30s`.
    """
    names: dict[int, JamendoNames] = {}
    for where, cells in _rows(Path(path), _META_COLUMNS, minimum=len(_META_COLUMNS)):
        if len(cells) == len(_META_COLUMNS) + 1 and not cells[4]:
            del cells[4]  # two published titles end in a tab
        if len(cells) > len(_META_COLUMNS):
            raise DataError(f"{where}: {len(cells)} columns, expected {len(_META_COLUMNS)}")
        row = JamendoNames(
            _number(cells[0], "track", where),
            _number(cells[1], "artist", where),
            _number(cells[2], "album", where),
            *cells[3:],
        )
        if row.track_id in names:
            raise DataError(f"{where}: track {row.track_id} is listed a second time")
        names[row.track_id] = row
    return names


def prompt_from_tags(tags: Mapping[str, Sequence[str]], title: str | None = None) -> str:
    """A sentence or two from tags and title, always the same for the same track.

    >>> prompt_from_tags({"genre": ["jazz", "lounge"], "instrument": ["piano"], "mood/theme": ["relaxing"]},
    "Ace") 'Jazz and lounge music with piano. Mood: relaxing. Title: Ace.'
    """
    genres, instruments, moods = (
        listing(_spelled(tags.get(category, ()))) for category in ("genre", "instrument", "mood/theme")
    )
    first = f"{genres} music" if genres else "Music"
    sentences = [f"{first} with {instruments}" if instruments else first]
    sentences += [f"Mood: {moods}"] if moods else []
    sentences += [f"Title: {title.strip()}"] if title and title.strip() else []
    text = ". ".join(sentence.rstrip(".") for sentence in sentences) + "."
    return text[0].upper() + text[1:]


def metadata_of(track: JamendoTrack, names: JamendoNames | None) -> dict[str, Any]:
    """What a dataset needs to know of a track: prompt, ids, names and tags."""
    return {
        "prompt": prompt_from_tags(track.tags, names.title if names else None),
        "track_id": track.track_id,
        "artist_id": track.artist_id,
        "artist": names.artist if names else "",
        "album_id": track.album_id,
        "album": names.album if names else "",
        "title": names.title if names else "",
        "tags": [f"{category}{_TAG_SEPARATOR}{tag}" for category, tags in track.tags.items() for tag in tags],
    }


def fields_of(track: JamendoTrack, names: JamendoNames | None) -> dict[str, Any]:
    """The same under the names of prompt templates: tags as words, and only what is known."""
    words = {
        name: _spelled(track.tags.get(category, ()))
        for name, category in (("genre", "genre"), ("instrument", "instrument"), ("mood", "mood/theme"))
    }
    every = _spelled([tag for tags in track.tags.values() for tag in tags])
    date = names.release_date if names else ""
    known = {**metadata_of(track, names), **words, "tags": every, "date": date}
    return {name: value for name, value in known.items() if value not in ("", [])}


class JamendoFolder:
    """A folder with ``raw_30s.tsv`` and ``raw.meta.tsv`` above its recordings; each table is read once.

    A recording is found by the number its name starts with: ``03/1000203.mp3``, ``1000203.low.mp3``.
    """

    TRACKS = "raw_30s.tsv"
    NAMES = "raw.meta.tsv"

    def __init__(self) -> None:
        self._tables: dict[Path, tuple[dict[int, JamendoTrack], dict[int, JamendoNames]]] = {}
        self._homes: dict[Path, Path] = {}

    def metadata(self, audio_path: str | Path) -> dict[str, Any]:
        """:func:`metadata_of` the recording at ``audio_path``.

        Raises:
            DataError: no tables above it, no number in its name, or no line for it in ``raw_30s.tsv``.
        """
        return metadata_of(*self._lines(audio_path))

    def fields(self, audio_path: str | Path) -> dict[str, Any]:
        """:func:`fields_of` the recording at ``audio_path``; raises as :meth:`metadata`."""
        return fields_of(*self._lines(audio_path))

    def _lines(self, audio_path: str | Path) -> tuple[JamendoTrack, JamendoNames | None]:
        path = Path(audio_path).absolute()
        home = self._home(path.parent)
        tracks, names = self._read(home)
        number = track_number(path)
        track = tracks.get(number)
        if track is None:
            raise DataError(f"{path}: {home / self.TRACKS} has no line for track {number}")
        return track, names.get(number)

    def _home(self, folder: Path) -> Path:
        if folder not in self._homes:
            above = (folder, *folder.parents)
            home = next((place for place in above if (place / self.TRACKS).is_file()), None)
            if home is None:
                raise DataError(f"{folder}: neither this folder nor one above it has {self.TRACKS}")
            if not (home / self.NAMES).is_file():
                raise DataError(f"{home}: has {self.TRACKS} but not {self.NAMES}; put it beside the other")
            self._homes[folder] = home
        return self._homes[folder]

    def _read(self, home: Path) -> tuple[dict[int, JamendoTrack], dict[int, JamendoNames]]:
        if home not in self._tables:
            self._tables[home] = (read_raw_30s(home / self.TRACKS), read_raw_meta(home / self.NAMES))
        return self._tables[home]


def track_number(path: Path) -> int:
    """The number that the name of a recording starts with.

    Raises:
        DataError: it starts with something else.
    """
    number = path.name.split(".")[0]
    if not (number.isascii() and number.isdigit()):
        raise DataError(f"{path}: expected a name that starts with the track's number, as 1000203.mp3")
    return int(number)


def _spelled(tags: Sequence[str]) -> list[str]:
    return [_SPELLED.get(tag, tag) for tag in tags]


def _rows(path: Path, header: Sequence[str], minimum: int) -> Iterator[tuple[str, list[str]]]:
    """Each line's place (``file:number``) and cells.

    The tables of Song Describer are the same without a header: a first line that starts with a track is one.
    """
    lines = read_lines(path)
    found = lines[0].split("\t")
    headed = not found[0].startswith("track_")
    if headed and found != list(header):
        raise DataError(f"{path}: the header is {' '.join(found)!r:.120}, expected {' '.join(header)!r}")
    for number, line in enumerate(lines[headed:], start=1 + headed):
        if not line:
            continue
        cells = line.split("\t")
        if len(cells) < minimum:
            raise DataError(f"{path}:{number}: {len(cells)} columns, expected at least {minimum}")
        yield f"{path}:{number}", cells


def _number(cell: str, kind: str, where: str) -> int:
    """``track_0000948`` as 948."""
    digits = cell.removeprefix(f"{kind}_")
    if digits == cell or not (digits.isascii() and digits.isdigit()):
        raise DataError(f"{where}: {cell!r} is not a {kind} id, expected {kind}_ and a number")
    return int(digits)


def _seconds(cell: str, where: str) -> float:
    try:
        seconds = float(cell)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise DataError(f"{where}: {cell!r} is not a duration in seconds")
    return seconds


def _tags(cells: Sequence[str], where: str) -> dict[str, tuple[str, ...]]:
    tags: dict[str, tuple[str, ...]] = {}
    for cell in cells:
        category, separator, tag = cell.partition(_TAG_SEPARATOR)
        if not cell:  # a track without tags may end in an empty column
            continue
        if not separator or not category or not tag:
            raise DataError(f"{where}: {cell!r} is not a tag, expected category{_TAG_SEPARATOR}tag")
        tags[category] = (*tags.get(category, ()), tag)
    return tags
