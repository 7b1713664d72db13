"""Which tracks must stay out of training, because the evaluation hears them or something too close to them.

A track is too close if it is the same by its number, byte for byte, or sample by sample once decoded, or if
it is by an artist of the evaluation set. The last rule is the widest: a model that has learned an artist's
other songs is not asked about music it has never heard (A. Flexer, "A closer look on artist filters for
musical genre classification", ISMIR 2007).

Numbers are those of Jamendo, which MTG-Jamendo and the Song Describer Dataset share. Some of their tracks
are the same file under two numbers; the published lists of checksums tell them without any audio.
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from stable_audio_tools.data.jamendo import read_raw_30s
from stable_audio_tools.data.song_describer import read_song_describer
from stable_audio_tools.errors import DataError, UsageError

RULES: dict[str, str] = {
    "track": "the same track by its number",
    "bytes": "the same file byte for byte",
    "audio": "the same audio once decoded",
    "recording": "the same recording, altered,",
    "artist": "another track of the same artist",
}
"""Why a track is too close to the evaluation set. ``recording`` is for whoever searched for duplicates."""

# What stands where no artist is known.
_NOBODY = frozenset(
    {"", "-", "?", "n/a", "none", "null", "unknown", "unknown artist", "<unknown>", "untitled", "anonymous"}
    | {"various", "various artists", "va", "v.a.", "artist"}
)
_JAMENDO_PATH = re.compile(r"(?:^|/)(\d\d)/(\d+)(?:\.low|\.2min)?\.[0-9a-zA-Z]+$")
_CHECKSUM = re.compile(r"([0-9a-fA-F]{64})[ \t]+\*?(.+)")


@dataclass(frozen=True)
class Identity:
    """By what a track can be known again.

    ``artists`` holds ``id <number>`` and names, folded; ``sha256`` the hashes of its file in any encoding
    that is known; ``audio_sha256`` is of its decoded samples.
    """

    name: str
    track_id: str | None = None
    artists: frozenset[str] = frozenset()
    sha256: frozenset[str] = frozenset()
    audio_sha256: str | None = None


@dataclass(frozen=True)
class Leak:
    """Training track ``row`` is too close to ``evaluation_name`` by ``rule``; ``evidence`` is what agrees."""

    row: int
    rule: str
    evaluation_name: str
    evidence: str


def find_leaks(
    training: Sequence[Identity],
    evaluation: Sequence[Identity],
    rules: Iterable[str] = ("track", "bytes", "audio", "artist"),
) -> list[Leak]:
    """The training tracks that are too close to the evaluation set, by row, then by rule in their order.

    A track that several rules meet has one leak for each, with the first evaluation track it agrees with.

    Raises:
        UsageError: an unknown rule.
    """
    rules = list(rules)
    unknown = [rule for rule in rules if rule not in RULES]
    if unknown:
        raise UsageError(f"unknown leakage rule {unknown[0]!r}: expected {', '.join(RULES)}")
    owners: dict[str, dict[str, str]] = {rule: {} for rule in rules}
    for identity in evaluation:
        for rule in rules:
            for mark in _marks(identity, rule):
                owners[rule].setdefault(mark, identity.name)
    leaks = []
    for row, identity in enumerate(training):
        for rule in (rule for rule in RULES if rule in owners):
            shared = next((mark for mark in _marks(identity, rule) if mark in owners[rule]), None)
            if shared is not None:
                leaks.append(Leak(row, rule, owners[rule][shared], shared))
    return leaks


def _marks(identity: Identity, rule: str) -> list[str]:
    """What ``rule`` compares, in a fixed order."""
    if rule == "track":
        return [] if identity.track_id is None else [identity.track_id]
    if rule == "bytes":
        return sorted(identity.sha256)
    if rule == "audio":
        return [] if identity.audio_sha256 is None else [identity.audio_sha256]
    return sorted(identity.artists) if rule == "artist" else []


def identity_of(
    name: str,
    relpath: str,
    fields: Mapping[str, Any],
    *,
    sha256: str | None = None,
    audio_sha256: str | None = None,
    manifest: Mapping[str, frozenset[str]] | None = None,
    artist_ids: Mapping[str, int] | None = None,
) -> Identity:
    """The identity of a track, of what is known of it.

    Args:
        name: what reports call it.
        relpath: its path, of which a Jamendo number is taken: ``37/24837.mp3``.
        fields: its metadata: ``track_id``, ``artist_id`` and ``artist`` count.
        sha256, audio_sha256: hashes of its file and of its decoded samples.
        manifest: published checksums by track number, see :func:`read_checksums`.
        artist_ids: artists by track number, for tracks whose metadata does not say; see
            :func:`artists_near`.
    """
    number = fields.get("track_id")
    track_id = str(number).strip() if number not in (None, "") else jamendo_number(relpath)
    artist_id = fields.get("artist_id")
    if artist_id in (None, "") and track_id is not None:
        artist_id = (artist_ids or {}).get(track_id)
    artists = {f"id {artist_id}"} if artist_id not in (None, "") else set()
    artists |= {folded for artist in _texts(fields.get("artist")) if (folded := fold_artist(artist))}
    hashes = frozenset() if sha256 is None else frozenset({sha256})
    published = (manifest or {}).get(track_id or "", frozenset())
    return Identity(name, track_id, frozenset(artists), hashes | published, audio_sha256)


def jamendo_number(path: str) -> str | None:
    """``24837`` for ``audio/37/24837.low.mp3``; None for a path of another layout.

    The folder must be the last two digits of the number, and not all of it: ``02/02.mp3`` is of an album.
    """
    match = _JAMENDO_PATH.search(path)
    if match is None or int(match[2]) < 100 or int(match[2]) % 100 != int(match[1]):
        return None
    return str(int(match[2]))


def fold_artist(name: str) -> str:
    """A name as it is compared: case, width of letters and spaces do not count. Empty if it is nobody's."""
    folded = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    return "" if folded in _NOBODY else folded


def read_checksums(paths: Iterable[str | Path]) -> dict[str, frozenset[str]]:
    """SHA-256 by Jamendo number, from lists with ``<sha256> <NN/id.mp3>`` a line, such as MTG publishes.

    Raises:
        DataError: a file cannot be read, a line is not a checksum and a name, or no name is of Jamendo.
    """
    found: dict[str, set[str]] = {}
    for path in map(Path, paths):
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read: {error}") from error
        before = len(found)
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            match = _CHECKSUM.fullmatch(line.strip())
            if match is None:
                raise DataError(f"{path}:{number}: {line!r:.100} is not a SHA-256 and a name")
            track = jamendo_number(match[2])
            if track is not None:
                found.setdefault(track, set()).add(match[1].lower())
        if len(found) == before:
            raise DataError(
                f"{path}: names no track as NN/id.mp3; expected the checksums of tracks, not tars"
            )
    return {track: frozenset(hashes) for track, hashes in found.items()}


def twins(checksums: Mapping[str, frozenset[str]]) -> list[list[str]]:
    """Groups of numbers whose files are the same byte for byte, smallest number first."""
    owners: dict[str, set[str]] = {}
    for track, hashes in checksums.items():
        for digest in hashes:
            owners.setdefault(digest, set()).add(track)
    groups = {tuple(sorted(group, key=int)) for group in owners.values() if len(group) > 1}
    return sorted((list(group) for group in groups), key=lambda group: int(group[0]))


def read_table(path: str | Path, manifest: Mapping[str, frozenset[str]] | None = None) -> list[Identity]:
    """The tracks of a table: ``song_describer.csv``, an MTG-Jamendo ``.tsv``, or any CSV of tracks.

    Any CSV needs a column ``track_id``, ``path``, ``sha256``, ``artist_id`` or ``artist``; each is compared
    by its own rule.

    Raises:
        DataError: the file cannot be read, is malformed, or has none of these columns.
    """
    path = Path(path)
    if path.suffix.lower() == ".tsv":
        rows = [
            {"path": row.path, "track_id": row.track_id, "artist_id": row.artist_id}
            for row in read_raw_30s(path).values()
        ]
    elif path.suffix.lower() == ".csv":
        rows = _csv_rows(path)
    else:
        raise DataError(f"{path}: not a table of tracks; expected .csv or .tsv")
    identities: dict[tuple[str, str | None], Identity] = {}
    for number, row in enumerate(rows, start=1):
        where = str(row.get("path") or row.get("track_id") or f"row {number}")
        digest = str(row.get("sha256") or "").lower() or None
        found = identity_of(where, where, row, sha256=digest, manifest=manifest)
        identities.setdefault((found.name, found.track_id), found)
    return list(identities.values())


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = {name.strip().lower(): name for name in reader.fieldnames or ()}
            if {"caption_id", "track_id"} <= columns.keys():
                return [
                    {"path": row.path, "track_id": row.track_id, "artist_id": row.artist_id}
                    for row in read_song_describer(path)
                ]
            wanted = [
                name for name in ("path", "track_id", "sha256", "artist_id", "artist") if name in columns
            ]
            if not wanted:
                raise DataError(
                    f"{path}: has the columns {', '.join(columns) or '(none)'}; expected one of path,"
                    " track_id, sha256, artist_id and artist"
                )
            return [{name: (row[columns[name]] or "").strip() for name in wanted} for row in reader]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a table of UTF-8 text: {error}") from error


@lru_cache(maxsize=64)
def artists_near(folder: Path) -> Mapping[str, int]:
    """Artist by track number from the tables of Jamendo in ``folder`` or in the two above it; often none."""
    found: dict[str, int] = {}
    for place in (folder, *folder.parents[:2]):
        for name in ("raw_30s.tsv", "raw.tsv"):
            if (place / name).is_file():
                tracks = read_raw_30s(place / name).values()
                found |= {str(track.track_id): track.artist_id for track in tracks}
        if (place / "song_describer.csv").is_file():
            captions = read_song_describer(place / "song_describer.csv")
            found |= {str(caption.track_id): caption.artist_id for caption in captions}
    return found


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [entry for entry in value if isinstance(entry, str)] if isinstance(value, list | tuple) else []
