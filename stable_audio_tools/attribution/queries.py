"""Which tracks are asked about, and which clips ask; with what each was made from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from stable_audio_tools.data.index import Track, TrackIndex, audio_dir
from stable_audio_tools.data.latents import latent_index
from stable_audio_tools.data.prompts import prompt_for_clip
from stable_audio_tools.data.sidecars import read_sidecar
from stable_audio_tools.errors import DataError
from stable_audio_tools.runtime.files import hash_json, sha256_file
from stable_audio_tools.schema.dataset import DatasetConfig, PreEncodedDataset
from stable_audio_tools.schema.reader import parse_dataset_config, read_dataset_config

GENERATED_METADATA = (
    Path(__file__)
    .parents[1]
    .joinpath("configs", "dataset_configs", "custom_metadata", "custom_md_generated_from_test.py")
)
"""Knows the prompt of a clip from its sidecar, its tags or ``prompts.csv``."""


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


def query_source(source: str | Path) -> TrackSource:
    """The clips in a folder, or those of a dataset config (``.json``), each with a way to its prompt.

    A clip with a sidecar or tags of ours is conditioned on what those say. Another takes what the config's
    metadata module says, or, where there is none, its caption (of a manifest, ``.json`` or ``.txt``), or its
    line in ``prompts.csv`` in its folder.

    Raises:
        DataError: the source is missing or holds no audio, or a clip's prompt is not known; names the file.
    """
    source = Path(source)
    if source.is_dir():
        folder = {"id": source.resolve().name or "queries", "path": str(source.absolute())}
        config = parse_dataset_config({"dataset_type": "audio_dir", "datasets": [folder]})
        return _with_prompts(config, None)
    if source.suffix.lower() != ".json":
        what = "is a file" if source.exists() else "does not exist"
        raise DataError(f"{source}: {what}; expected a folder of clips or a dataset config (.json)")
    return _with_prompts(read_dataset_config(source), source.parent)


def train_source(path: str | Path) -> TrackSource:
    """The tracks of a dataset config as training lists and reads them, without those on the exclude list."""
    path = Path(path)
    config = read_dataset_config(path)
    if isinstance(config, PreEncodedDataset):
        return TrackSource(latent_index(config, path.parent), config.on_error, stored=True)
    config = audio_dir(config)
    index = TrackIndex.from_config(config, base_dir=path.parent)
    return TrackSource(index, config.on_error, config.volume_norm)


def _with_prompts(config: DatasetConfig, base_dir: Path | None) -> TrackSource:
    tracks = [
        replace(track, metadata_module=str(GENERATED_METADATA))
        if (track.metadata_module is None and not _has_caption(track)) or read_sidecar(track.path) is not None
        else track
        for track in TrackIndex.from_config(config, base_dir=base_dir)
    ]
    for track in tracks:
        if _asks_its_clip(track):
            prompt_for_clip(track.path)  # before an hour of work, not after
    return TrackSource(TrackIndex(tracks), volume_norm=audio_dir(config).volume_norm)


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
