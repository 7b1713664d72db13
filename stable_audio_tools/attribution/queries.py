"""Which clips are asked about, and what each was made from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import stable_audio_tools
from stable_audio_tools.data.index import Track, TrackIndex
from stable_audio_tools.data.prompts import prompt_for_clip
from stable_audio_tools.data.sidecars import read_sidecar
from stable_audio_tools.errors import DataError
from stable_audio_tools.runtime.files import hash_json, sha256_file
from stable_audio_tools.schema.dataset import DatasetConfig
from stable_audio_tools.schema.reader import parse_dataset_config, read_dataset_config

GENERATED_METADATA = Path(stable_audio_tools.__file__).parent.joinpath(
    "configs", "dataset_configs", "custom_metadata", "custom_md_generated_from_test.py"
)
"""Knows the prompt of a clip from its sidecar, its tags or ``prompts.csv``."""


def query_index(source: str | Path) -> TrackIndex:
    """The clips in a folder, or those of a dataset config (``.json``), each with a way to its prompt.

    A clip with a sidecar or tags of ours is conditioned on what those say. Another takes what the config's
    metadata module says, or, where there is none, its line in ``prompts.csv`` in its folder.

    Raises:
        DataError: the source is missing or holds no audio, or a clip's prompt is not known; names the file.
    """
    source = Path(source)
    if source.is_dir():
        folder = {"id": source.resolve().name or "queries", "path": str(source.absolute())}
        config = parse_dataset_config({"dataset_type": "audio_dir", "datasets": [folder]})
        return _with_prompts(TrackIndex.from_config(config))
    if source.suffix.lower() != ".json":
        what = "is a file" if source.exists() else "does not exist"
        raise DataError(f"{source}: {what}; expected a folder of clips or a dataset config (.json)")
    return _with_prompts(TrackIndex.from_config(read_dataset_config(source), base_dir=source.parent))


def train_index(config: DatasetConfig, base_dir: Path | None = None) -> TrackIndex:
    """The training tracks, as training itself lists them: without those on the exclude list."""
    return TrackIndex.from_config(config, base_dir=base_dir)


def index_stamp(index: TrackIndex) -> str:
    """A hash of what the rows of ``index`` are: names, sizes, metadata modules, and the clips' prompts."""
    modules = sorted({track.metadata_module for track in index if track.metadata_module is not None})
    prompts = [prompt_for_clip(track.path) for track in index if _asks_its_clip(track)]
    return hash_json([index.hash, [sha256_file(module) for module in modules], prompts])


def first_tracks(index: TrackIndex, count: int | None) -> TrackIndex:
    """The first ``count`` tracks, or all for None."""
    return index if count is None else TrackIndex(index[:count], excluded=index.excluded)


def _with_prompts(index: TrackIndex) -> TrackIndex:
    tracks = [
        replace(track, metadata_module=str(GENERATED_METADATA))
        if track.metadata_module is None or read_sidecar(track.path) is not None
        else track
        for track in index
    ]
    for track in tracks:
        if _asks_its_clip(track):
            prompt_for_clip(track.path)  # before an hour of work, not after
    return TrackIndex(tracks, excluded=index.excluded, unsupported=index.unsupported)


def _asks_its_clip(track: Track) -> bool:
    return track.metadata_module is not None and Path(track.metadata_module) == GENERATED_METADATA
