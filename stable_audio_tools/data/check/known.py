"""What the loader would say of each track: its prompt, its artist, its number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from stable_audio_tools.audio.files import read_audio
from stable_audio_tools.data.check.measure import FileFacts, without_path
from stable_audio_tools.data.check.survey import available_cpus
from stable_audio_tools.data.index import Track
from stable_audio_tools.data.metadata import MetadataFunction, load_metadata_function
from stable_audio_tools.data.sources import probe_source
from stable_audio_tools.errors import DataError
from stable_audio_tools.runtime.progress import track as progress

# What a metadata function is shown that does not do without audio.
_HEARD_SECONDS = 10.0
_MOST_THREADS = 8


@dataclass(frozen=True)
class Known:
    """``fields`` of a track, or why there are none."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    rejected: bool = False
    why_no_prompt: str = "nothing names one"

    @property
    def prompt(self) -> str:
        """The prompt; the first of several; empty where there is none."""
        prompt = self.fields.get("prompt")
        if isinstance(prompt, list):
            prompt = prompt[0] if prompt else ""
        return prompt.strip() if isinstance(prompt, str) else ""


def known_of_all(index: Sequence[Track], facts: Sequence[FileFacts]) -> list[Known]:
    """What is known of every track, in the order of the index.

    Raises:
        DataError: a metadata module cannot be run at all.
    """
    modules = {track.metadata_module for track in index if track.metadata_module is not None}
    functions = {name: load_metadata_function(name) for name in sorted(modules)}
    if len(index) != len(facts):
        raise ValueError(f"{len(index)} tracks with the facts of {len(facts)}")
    # Tags cost 2 ms a file, in FFmpeg, which threads share; a user's function may not bear threads.
    threads = 1 if functions else min(_MOST_THREADS, available_cpus())
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(partial(_known, functions=functions), index, facts)
        return list(progress(found, "metadata", len(index)))


def _known(track: Track, facts: FileFacts, functions: Mapping[str, MetadataFunction]) -> Known:
    """The same sources in the same order as the loader asks them, without a crop."""
    if facts.measured is None:
        return Known(why_no_prompt="it cannot be read")
    try:
        described = track.description.known(track.path, track.relpath, None)
        own: dict[str, Any] = {}
        if track.metadata_module is not None:
            own = _asked(functions[track.metadata_module], track, {**_info(track, facts), **described})
        if own.pop("__reject__", False):
            return Known({**described, **own}, rejected=True)
        fields = {**described, **own}
        if "prompt" not in own:
            fields |= track.description.prompt(fields, track.path, track.relpath, None)
    except DataError as error:
        return Known(error=without_path(str(error), track.path))
    where = (
        "no caption, tag or manifest" if track.metadata_module is None else Path(track.metadata_module).name
    )
    return Known(fields, why_no_prompt=f"{where} gives it one")


def _asked(function: MetadataFunction, track: Track, info: dict[str, Any]) -> dict[str, Any]:
    """What a metadata function says, shown no audio, or some if it does not do without."""
    try:
        return dict(function(dict(info), None))
    except DataError:
        audio, _ = read_audio(probe_source(track.source), duration_seconds=_HEARD_SECONDS)
        return dict(function(dict(info), audio))


def _info(track: Track, facts: FileFacts) -> dict[str, Any]:
    """What a metadata function is told of a track besides its crop."""
    info: dict[str, Any] = {
        "index": track.index,
        "sample_id": track.sample_id,
        "path": track.place,
        "relpath": track.relpath,
        "dataset_id": track.dataset_id,
        "seconds_start": 0,
        "offset_seconds": 0.0,
    }
    if facts.measured is not None:
        seconds = facts.measured.seconds
        info |= {"seconds_total": -int(-seconds // 1), "duration_seconds": seconds}
        info |= {"sample_rate": facts.measured.sample_rate, "timestamps": (0.0, 1.0)}
    return info
