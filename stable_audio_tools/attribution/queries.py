"""Which tracks are asked about, and which clips ask; with what each was made from."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from stable_audio_tools.audio.files import AUDIO_SUFFIXES
from stable_audio_tools.data.captions import Description
from stable_audio_tools.data.index import Track, TrackIndex, audio_dir
from stable_audio_tools.data.latents import latent_index
from stable_audio_tools.data.manifests import PATH_COLUMNS
from stable_audio_tools.data.paths import find_path
from stable_audio_tools.data.prompts import prompt_for_clip
from stable_audio_tools.data.sidecars import read_sidecar
from stable_audio_tools.errors import DataError
from stable_audio_tools.runtime.files import hash_json, sha256_file
from stable_audio_tools.schema.dataset import PreEncodedDataset
from stable_audio_tools.schema.reader import parse_dataset_config, read_dataset_config

GENERATED_METADATA = (
    Path(__file__)
    .parents[1]
    .joinpath("configs", "dataset_configs", "custom_metadata", "custom_md_generated_from_test.py")
)
"""Knows the prompt of a clip from its sidecar, its tags or ``prompts.csv``."""

BESIDE = ("json", "text", "tags")
"""Where else a clip may be described."""

_QUERIES = "a folder of clips, an audio file, a table (.csv) or a dataset config (.json)"


@dataclass(frozen=True)
class TrackSource:
    """Tracks, and how their dataset config says to read them.

    Attributes:
        index: the tracks.
        on_error: what an unreadable file does; ``skip`` leaves its row zero, since training skipped it too.
        volume_norm: whether crops are brought to one loudness, as in training.
        stored: the tracks are stored latents.
    """

    index: TrackIndex
    on_error: Literal["raise", "skip"] = "raise"
    volume_norm: bool = False
    stored: bool = False

    def first(self, count: int | None) -> TrackSource:
        """The first ``count`` tracks, or all for None."""
        return self if count is None else replace(self, index=TrackIndex(self.index[:count]))

    def stamp(self) -> str:
        """A hash of what the rows are: names, sizes, metadata modules, reading, captions and prompts."""
        modules = sorted({track.metadata_module for track in self.index if track.metadata_module is not None})
        prompts = [prompt_for_clip(track.path) for track in self.index if _asks_its_clip(track)]
        described = [_described(track, self.on_error) for track in self.index if track.description.sources]
        hashes = [sha256_file(module) for module in modules]
        return hash_json([self.index.hash, hashes, prompts, described, self.volume_norm])


def query_source(source: str | Path, prompt: str | None = None) -> TrackSource:
    """Clips, each with a way to its prompt: a folder, an audio file, a table or a dataset config (``.json``).

    A clip with a sidecar or tags of ours is conditioned on what those say. Another takes what the config's
    metadata module says, or, where there is none, its caption (of a manifest, ``.json`` or ``.txt``), or its
    line in ``prompts.csv`` in its folder. A table (``.csv``) has the columns ``path,prompt[,seconds_start,
    seconds_total]``, and what it says goes before all of these; so does ``prompt``, for every clip.

    Raises:
        DataError: the source is missing or holds no audio, or a clip's prompt is not known; names the file.
    """
    found = _query_source(Path(source))
    if prompt is None:
        for track in found.index:
            if _asks_its_clip(track):
                prompt_for_clip(track.path)  # before an hour of work, not after
        return found
    tracks = [
        replace(track, metadata_module=None, description=_saying({"prompt": prompt}, track))
        for track in found.index
    ]
    return replace(found, index=TrackIndex(tracks))


def _query_source(source: Path) -> TrackSource:
    kind = source.suffix.lower()
    if source.is_dir():
        folder = {"id": source.resolve().name or "queries", "path": str(source.absolute())}
        config = parse_dataset_config({"dataset_type": "audio_dir", "datasets": [folder]})
        return _with_prompts(TrackIndex.from_config(config))
    if not source.exists():
        raise DataError(f"{source}: does not exist; expected {_QUERIES}")
    if kind == ".csv":
        return TrackSource(TrackIndex(_rows_of_table(source)))
    if kind in AUDIO_SUFFIXES:
        folder_name = source.resolve().parent.name or "queries"
        return _with_prompts([_clip(source, source.name, folder_name, Description(BESIDE))])
    if kind != ".json":
        raise DataError(f"{source}: is a file; expected {_QUERIES}")
    dataset = read_dataset_config(source)
    index = TrackIndex.from_config(dataset, base_dir=source.parent)
    return _with_prompts(index, audio_dir(dataset).volume_norm)


def train_source(path: str | Path) -> TrackSource:
    """The tracks of a dataset config as training lists and reads them, without those on the exclude list."""
    path = Path(path)
    config = read_dataset_config(path)
    if isinstance(config, PreEncodedDataset):
        return TrackSource(latent_index(config, path.parent), config.on_error, stored=True)
    config = audio_dir(config)
    index = TrackIndex.from_config(config, base_dir=path.parent)
    return TrackSource(index, config.on_error, config.volume_norm)


def _with_prompts(clips: Sequence[Track], volume_norm: bool = False) -> TrackSource:
    tracks = [
        replace(track, metadata_module=str(GENERATED_METADATA))
        if (track.metadata_module is None and not _has_caption(track)) or read_sidecar(track.path) is not None
        else track
        for track in clips
    ]
    return TrackSource(TrackIndex(tracks), volume_norm=volume_norm)


def _saying(fields: Mapping[str, Any], track: Track) -> Description:
    return Description(("manifest", *BESIDE), {track.relpath: fields})


def _clip(path: Path, name: str, dataset_id: str, description: Description) -> Track:
    path = path.absolute()
    return Track(-1, f"{dataset_id}/{name}", path, name, path.parent, dataset_id, None, description)


def _rows_of_table(table: Path) -> list[Track]:
    """The clips that a table names, in its order; paths are looked up from its folder, then from here.

    Raises:
        DataError: a column is missing, a row is malformed or a file does not exist; with the line.
    """
    clips: list[Track] = []
    try:
        with open(table, encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            names = [name.strip().lower() for name in reader.fieldnames or ()]
            path_column = next((name for name in PATH_COLUMNS if name in names), None)
            if path_column is None or "prompt" not in names:
                raise DataError(f"{table}: has the columns {', '.join(names)}; expected path and prompt")
            for row in reader:
                cells = {(key or "").strip().lower(): (value or "").strip() for key, value in row.items()}
                clips.append(_row_of_table(cells, path_column, table, f"{table}:{reader.line_num}"))
    except OSError as error:
        raise DataError(f"{table}: cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error, AttributeError) as error:
        raise DataError(f"{table}: not a table of UTF-8 text: {error}") from error
    if not clips:
        raise DataError(f"{table}: lists no clips")
    twice = [name for name, count in Counter(clip.sample_id for clip in clips).items() if count > 1]
    if twice:
        raise DataError(f"{table}: {twice[0]} is listed a second time")
    return clips


def _row_of_table(cells: dict[str, str], path_column: str, table: Path, where: str) -> Track:
    text = cells.pop(path_column)
    path, tried = find_path(text, table.parent) if text else (None, [])
    if path is None or not path.is_file():
        places = " or ".join(str(place) for place in tried) or "nothing"
        raise DataError(f"{where}: {path_column} {text!r} is no file; looked for {places}")
    if not cells["prompt"]:
        raise DataError(f"{where}: the prompt is empty")
    fields: dict[str, Any] = {key: value for key, value in cells.items() if key and value}
    for name in ("seconds_start", "seconds_total"):
        if name in fields:
            try:
                fields[name] = float(fields[name])
            except ValueError as error:
                raise DataError(f"{where}: {name} is {fields[name]!r}, expected seconds") from error
    clip = _clip(path, Path(text).as_posix().lstrip("./"), table.stem, Description())
    return replace(clip, description=_saying(fields, clip))


def _has_caption(track: Track) -> bool:
    """Whether somebody wrote a prompt for it: one made of tags does not go before ``prompts.csv``."""
    written = replace(track.description, sources=tuple(s for s in track.description.sources if s != "tags"))
    return track.description.prompts is not None or "prompt" in written.known(track.path, track.relpath)


def _described(track: Track, on_error: str) -> list[Any]:
    """What is known of the track without a module, and the templates that make a prompt of it."""
    prompts = track.description.prompts
    try:
        known = track.description.known(track.path, track.relpath)
    except DataError as error:
        if on_error == "raise":
            raise
        known = {"error": str(error)}
    return [known, None if prompts is None else prompts.model_dump()]


def _asks_its_clip(track: Track) -> bool:
    return track.metadata_module is not None and Path(track.metadata_module) == GENERATED_METADATA
