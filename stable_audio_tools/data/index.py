"""The one list of tracks for training, dedup, attribution and reports: row i is the same track everywhere."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar, overload

from stable_audio_tools.audio.files import AUDIO_SUFFIXES
from stable_audio_tools.data.captions import Description
from stable_audio_tools.data.manifests import read_manifest
from stable_audio_tools.data.metadata import resolve_module_path
from stable_audio_tools.data.paths import find_path, normalise_path, read_path_list
from stable_audio_tools.data.sources import FileSource, Source
from stable_audio_tools.errors import DataError
from stable_audio_tools.runtime.files import write_text
from stable_audio_tools.runtime.progress import warn
from stable_audio_tools.schema.built import not_built
from stable_audio_tools.schema.dataset import AudioDirDataset, AudioDirectory, DatasetConfig

T = TypeVar("T", bound="Track")

FILELIST = "filelist.txt"

# Recordings, by their names, that nothing here can decode: they are listed, never skipped without a word.
_UNSUPPORTED_SUFFIXES = frozenset(
    {".ac3", ".amr", ".ape", ".dff", ".dsf", ".dts", ".m4b", ".m4p", ".mid", ".midi", ".mka", ".mp2", ".mpc"}
    | {".ra", ".shn", ".tak", ".tta", ".webm", ".wma", ".wv"}
)


@dataclass(frozen=True)
class Track:
    """One recording.

    ``relpath`` is a POSIX path from ``root``; ``sample_id`` is ``<dataset_id>/<relpath>``. ``description``
    knows what is said of it without a metadata module; the tracks of a folder share it.
    """

    index: int
    sample_id: str
    path: Path
    relpath: str
    root: Path
    dataset_id: str
    metadata_module: str | None
    description: Description = field(default=Description(), compare=False, repr=False)

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return str(self.path)

    @property
    def num_bytes(self) -> int | None:
        """The size of the recording's file; None where it is not there."""
        try:
            return self.path.stat().st_size
        except OSError:
            return None

    @property
    def source(self) -> Source:
        """Its bytes."""
        return FileSource(self.path)

    @property
    def other_names(self) -> tuple[str, ...]:
        """What a line of an exclude list may call it, besides a path."""
        return ()

    def exclude_name(self, relpath_is_unique: bool) -> str:
        """What the exclude lists that are written here call it."""
        return self.relpath if relpath_is_unique else str(self.path.absolute())


class Fault(NamedTuple):
    """What is wrong with something that never became a track; ``kind`` is one of the check's."""

    kind: str
    name: str
    detail: str


def exclude_names(index: Sequence[Track], rows: Sequence[int]) -> list[str]:
    """The lines of an exclude list for the tracks of ``rows``."""
    users = Counter(track.relpath for track in index)
    return [index[row].exclude_name(users[index[row].relpath] == 1) for row in rows]


class TrackIndex(Sequence[Track]):
    """Tracks in the order of their datasets, then of their paths."""

    def __init__(
        self,
        tracks: Sequence[Track],
        *,
        excluded: int = 0,
        unsupported: Sequence[Path] = (),
        unlisted: Mapping[Path, str] | None = None,
        faults: Sequence[Fault] = (),
    ) -> None:
        self._tracks = [replace(track, index=row) for row, track in enumerate(tracks)]
        self.excluded = excluded
        """How many tracks the exclude list took out."""
        self.unsupported = list(unsupported)
        """Audio files of a format that cannot be decoded, or of a name that is not UTF-8."""
        self.unlisted = dict(unlisted or {})
        """Folders that could not be looked into, with the reason; empty unless errors are to be skipped."""
        self.faults = list(faults)
        """What else never became a track, with the reason."""

    @classmethod
    def from_config(
        cls, config: DatasetConfig, *, base_dir: Path | None = None, apply_excludes: bool = True
    ) -> TrackIndex:
        """List the tracks of ``config``; relative paths are looked up here, then in ``base_dir``.

        An exclude list that does not exist yet is a warning that names the command which makes it. A
        symbolic link that leads nowhere is a track, which cannot be read. Under ``on_error="skip"`` so is a
        listed file that does not exist, and a subfolder that may not be read is a warning.

        Raises:
            ConfigError: the dataset is of a type that can be read but is not built.
            DataError: a folder, a listed file or a metadata module is missing, or no track is left.
        """
        config = audio_dir(config)
        tracks: list[Track] = []
        unsupported: list[Path] = []
        unlisted: dict[Path, str] | None = {} if config.on_error == "skip" else None
        for entry in config.datasets:
            found, refused = _list_directory(entry, base_dir, unlisted)
            tracks += found
            unsupported += refused
        for folder, reason in (unlisted or {}).items():
            warn(f"skipped, with all that is in it: {folder}: cannot be listed: {reason}")
        if unsupported:
            names = ", ".join(repr(str(path)) for path in unsupported[:3])
            more = ", ..." if len(unsupported) > 3 else ""
            why = "their format cannot be decoded or their name is not UTF-8"
            warn(f"{len(unsupported)} files are left out, {why}: {names}{more}")
        kept = tracks
        if apply_excludes and config.exclude_paths_file is not None:
            kept = without_excluded(tracks, config.exclude_paths_file, base_dir)
        if not kept:
            raise DataError(_why_empty(config, len(tracks), len(unsupported)))
        excluded = len(tracks) - len(kept)
        return cls(kept, excluded=excluded, unsupported=unsupported, unlisted=unlisted)

    @overload
    def __getitem__(self, row: int) -> Track: ...

    @overload
    def __getitem__(self, row: slice) -> list[Track]: ...

    def __getitem__(self, row: int | slice) -> Track | list[Track]:
        return self._tracks[row]

    def __len__(self) -> int:
        return len(self._tracks)

    def __iter__(self) -> Iterator[Track]:
        return iter(self._tracks)

    @cached_property
    def hash(self) -> str:
        """SHA-256, in hex, over every track's name and size in order: the same index on any machine.

        A track that is not there, as a link that leads nowhere, has no size; reading it is what fails.
        """
        digest = hashlib.sha256()
        for track in self._tracks:
            size = track.num_bytes
            digest.update(os.fsencode(track.sample_id) + b"\0")
            digest.update(b"\0" if size is None else b"%d\0" % size)
        return digest.hexdigest()

    def write(self, path: str | Path) -> None:
        """Write one JSON object a track: ``index``, ``sample_id``, ``dataset_id``, ``relpath``, ``path``."""
        rows = (
            {
                "index": track.index,
                "sample_id": track.sample_id,
                "dataset_id": track.dataset_id,
                "relpath": track.relpath,
                "path": track.place,
            }
            for track in self._tracks
        )
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def audio_dir(config: DatasetConfig) -> AudioDirDataset:
    """``config`` itself, where it is of the one type that is built.

    Raises:
        ConfigError: it is of another.
    """
    if not isinstance(config, AudioDirDataset):
        raise not_built(config, [AudioDirDataset], "", "dataset_type")
    return config


def _list_directory(
    entry: AudioDirectory, base_dir: Path | None, unlisted: dict[Path, str] | None
) -> tuple[list[Track], list[Path]]:
    """The tracks of a folder and its files that cannot be tracks; see :func:`_walk` for ``unlisted``."""
    root, tried = find_path(entry.path, base_dir)
    if root is None or not root.is_dir():
        places = " or ".join(str(place) for place in tried)
        what = "is not a folder" if root is not None else "does not exist"
        raise DataError(f"dataset {entry.id!r}: path {entry.path!r} {what}; looked for {places}")
    root = root.absolute()
    module = entry.custom_metadata_module
    if module is not None:
        module = str(resolve_module_path(module, base_dir))
    filelist = root / FILELIST
    manifest = None if entry.manifest is None else _find_manifest(entry.id, entry.manifest, root, base_dir)
    rows = {} if manifest is None else read_manifest(manifest, root)
    description = Description(entry.sources, rows, entry.prompts)
    the_list = filelist if filelist.is_file() else manifest
    if the_list is None:
        names = sorted(_walk(root, unlisted))
    else:
        names = _listed(filelist, root) if the_list == filelist else sorted(rows)
        if unlisted is None:
            _check_all_exist(names, root, the_list)
    wanted = [name for name in names if _suffix(name) in AUDIO_SUFFIXES and is_text(name)]
    # In a folder only what looks like audio counts as refused; in a list the user asked for every line.
    asked_for = frozenset(names) if the_list is not None else frozenset()
    looks_like_audio = AUDIO_SUFFIXES | _UNSUPPORTED_SUFFIXES
    taken = frozenset(wanted)
    refused = [
        root / name
        for name in names
        if name not in taken and (name in asked_for or _suffix(name) in looks_like_audio)
    ]
    tracks = [
        Track(-1, f"{entry.id}/{name}", root / name, name, root, entry.id, module, description)
        for name in wanted
    ]
    return tracks, refused


def _find_manifest(dataset_id: str, name: str, root: Path, base_dir: Path | None) -> Path:
    inside = root / name
    if inside.is_file():
        return inside
    path, tried = find_path(name, base_dir)
    if path is None or not path.is_file():
        places = ", ".join(str(place) for place in dict.fromkeys([inside, *tried]))
        raise DataError(f"dataset {dataset_id!r}: manifest {name!r} is no file; looked for {places}")
    return path


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


def is_text(name: str) -> bool:
    """Whether a file name is UTF-8: others cannot be written into reports, tables and exclude lists."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _listed(filelist: Path, root: Path) -> list[str]:
    """The relative paths in ``filelist``, sorted, each once."""
    lines = read_path_list(filelist)
    relative = {line: normalise_path(line, root) for line in lines}
    outside = [line for line, name in relative.items() if name is None]
    if outside:
        raise DataError(
            f"{filelist}: {len(outside)} lines are outside the folder, the first is {outside[0]!r}"
        )
    return sorted({name for name in relative.values() if name is not None})


def _check_all_exist(names: Sequence[str], root: Path, the_list: Path) -> None:
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise DataError(
            f"{the_list}: {len(missing)} of {len(names)} files do not exist, the first is {missing[0]!r}"
        )


def _walk(root: Path, unlisted: dict[Path, str] | None) -> Iterator[str]:
    """Relative POSIX paths of the files under ``root``. Hidden and temporary files (``.tmp-*``) are skipped.

    Symbolic links are followed, but never into a folder that they are inside of; one that leads nowhere
    counts as a file. A subfolder that cannot be listed is noted in ``unlisted``, or an error if that is None.
    """
    pending = [(root, frozenset({_identity(root)}))]
    while pending:
        folder, above = pending.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            if unlisted is None or folder == root:
                raise DataError(f"{folder}: cannot be listed: {error.strerror or error}") from error
            unlisted[folder] = error.strerror or str(error)
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _leads_to(entry, os.DirEntry.is_dir):
                identity = _identity(Path(entry.path))
                if identity not in above:
                    pending.append((Path(entry.path), above | {identity}))
            elif _leads_to(entry, os.DirEntry.is_file) or not os.path.exists(entry.path):
                yield Path(entry.path).relative_to(root).as_posix()


def _leads_to(entry: os.DirEntry[str], kind: Callable[[os.DirEntry[str]], bool]) -> bool:
    """Whether ``entry`` is of ``kind``; a link in a circle is of none, and asking it is an error."""
    try:
        return kind(entry)
    except OSError:
        return False


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def without_excluded(tracks: Sequence[T], name: str, base_dir: Path | None) -> list[T]:
    """The tracks that the exclude list ``name`` does not name.

    A list that does not exist, and one that names no track here, is a warning.
    """
    path, tried = find_path(name, base_dir)
    if path is None:
        places = " or ".join(str(place) for place in tried)
        warn(
            f"exclude list {name!r} does not exist (looked for {places}), so duplicates stay in;"
            " make it with `sat dedup` (scripts/dac_hist_dedup.py)"
        )
        return list(tracks)
    lines = read_path_list(path)
    roots = {track.root for track in tracks}
    out = {(root, relative) for root in roots for line in lines if (relative := normalise_path(line, root))}
    named = frozenset(lines)
    kept = [
        track
        for track in tracks
        if (track.root, track.relpath) not in out and named.isdisjoint(track.other_names)
    ]
    if lines and len(kept) == len(tracks):
        warn(f"none of the {len(lines)} lines of {path} names a track here, the first is {lines[0]!r}")
    return kept


def _why_empty(config: AudioDirDataset, found: int, unsupported: int) -> str:
    folders = ", ".join(entry.path for entry in config.datasets)
    if found:
        return f"all {found} tracks in {folders} are on the exclude list {config.exclude_paths_file}"
    known = " ".join(sorted(AUDIO_SUFFIXES))
    also = f" ({unsupported} are of a format that cannot be decoded)" if unsupported else ""
    return f"no audio files in {folders}{also}; expected {known}"
