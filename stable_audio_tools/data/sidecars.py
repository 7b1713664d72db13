"""The sidecar of a generated clip: ``<clip>.json`` beside it, and the same JSON in its comment tag."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stable_audio_tools.audio.files import read_tags
from stable_audio_tools.errors import DataError
from stable_audio_tools.runtime.files import write_json
from stable_audio_tools.schema.generation import ClipSidecar

_FORMAT_PREFIX = "stable-audio-tools/clip@"


def sidecar_path(clip: str | Path) -> Path:
    """``song.json`` for ``song.wav``."""
    return Path(clip).with_suffix(".json")


def write_sidecar(clip: str | Path, sidecar: ClipSidecar) -> Path:
    """Write ``sidecar`` beside ``clip``; returns its path."""
    path = sidecar_path(clip)
    write_json(path, sidecar.model_dump(mode="json"))
    return path


def sidecar_tag(sidecar: ClipSidecar) -> str:
    """``sidecar`` as one line of JSON, for the comment tag."""
    return json.dumps(sidecar.model_dump(mode="json"), ensure_ascii=True, separators=(",", ":"))


def read_sidecar(clip: str | Path) -> ClipSidecar | None:
    """What is recorded of ``clip``: the JSON beside it, else its comment tag, else None.

    JSON of other programs, without our ``format`` key, counts as none.

    Raises:
        DataError: there is a sidecar, but it is broken.
        AudioError: there is none beside the clip, and the clip itself cannot be read.
    """
    path = sidecar_path(clip)
    if path.is_file():
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read as the sidecar of {clip}: {error}") from error
        found = parse_sidecar(value, f"{path}")
        if found is not None:
            return found
    try:
        value = json.loads(read_tags(clip).get("comment", ""))
    except ValueError:  # somebody else's comment
        return None
    return parse_sidecar(value, f"{clip}: comment tag")


def parse_sidecar(value: Any, where: str) -> ClipSidecar | None:
    """The sidecar in a JSON value; None where it is of another program.

    Raises:
        DataError: it is one, but broken; names ``where``.
    """
    if not isinstance(value, dict) or not str(value.get("format", "")).startswith(_FORMAT_PREFIX):
        return None
    try:
        return ClipSidecar.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(step) for step in first["loc"])
        raise DataError(f"{where}: not a sidecar of a clip: {key}: {first['msg']}") from error
