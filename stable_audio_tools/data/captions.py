"""What is known of a track without any Python of the user's: tables, files beside it, and its own tags.

``song.txt`` is the caption of ``song.mp3``; ``song.json`` an object of fields; a manifest says the same for a
whole folder. ``standard_fields`` in ``fields.py`` gives them one set of names. A field is taken from the
first source of :class:`Description` that has it: a caption may come from a file and the artist from the tags.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from stable_audio_tools.audio import packets
from stable_audio_tools.data.fields import SYNONYMS, standard_fields
from stable_audio_tools.data.jamendo import JamendoFolder
from stable_audio_tools.data.prompt_templates import DEFAULT_PROMPTS, make_prompt, needed_fields
from stable_audio_tools.data.sidecars import parse_sidecar
from stable_audio_tools.data.song_describer import SongDescriberFolder
from stable_audio_tools.errors import DataError
from stable_audio_tools.schema.prompts import PromptConfig

# What programs write into tags for each other.
_TECHNICAL_TAGS = frozenset(
    {"encoder", "encoded_by", "major_brand", "minor_version", "compatible_brands", "handler_name"}
    | {"vendor_id", "creation_time", "language"}
)
_TEMPO_TAGS = frozenset({"bpm", *SYNONYMS["bpm"]})


@dataclass(frozen=True)
class Description:
    """How the tracks of a folder are described.

    Attributes:
        sources: where to look, the first before the others; see ``SOURCES``.
        rows: of the manifest, by the track's path from its folder.
        prompts: the templates; None takes the caption, or makes one of tags.
    """

    sources: tuple[str, ...] = ()
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    prompts: PromptConfig | None = None

    def known(self, path: Path, relpath: str, draws: torch.Generator | None = None) -> dict[str, Any]:
        """Everything that is known of the track, under the names of ``fields.py``.

        Of several captions ``prompt`` is one: drawn, or the first where ``draws`` is None.

        Raises:
            DataError: a file that describes it is malformed, or a table that must know it does not.
        """
        known: dict[str, Any] = {}
        for source in self.sources:
            found = self.rows.get(relpath, {}) if source == "manifest" else _read(source, path)
            known = {**found, **known}
        captions = known.get("prompt")
        if isinstance(captions, list):
            row = 0 if draws is None else int(torch.randint(len(captions), (), generator=draws))
            known["prompt"] = captions[row]
        return known

    def prompt(
        self, known: Mapping[str, Any], path: Path, relpath: str, draws: torch.Generator | None = None
    ) -> dict[str, str]:
        """The prompt by the templates, as ``{"prompt": text}``; empty where nothing is known of the track.

        Args:
            known: the answer of :meth:`known`, with what a metadata module adds.
            path: the recording.
            relpath: its path from its folder, of which ``{filename}`` and ``{folder}`` are parts.
            draws: makes the choices; None makes the same prompt each time.

        Raises:
            DataError: the config's templates all need what is not known of this track.
        """
        if not self.sources and self.prompts is None:
            return {}
        fields = {**_of_the_path(relpath), **{str(name).lower(): value for name, value in known.items()}}
        if "year" not in fields and str(fields.get("date", ""))[:4].isdigit():
            fields["year"] = str(fields["date"])[:4]
        text = make_prompt(self.prompts or DEFAULT_PROMPTS, fields, draws if self.prompts else None)
        if text is not None:
            return {"prompt": text}
        if self.prompts is None:
            return {}
        needed = ", ".join(needed_fields(self.prompts))
        found = ", ".join(sorted(name for name, value in fields.items() if value not in ("", [], None)))
        raise DataError(
            f"{path}: no prompt template fits it: they need {needed}; known of it are {found};"
            " add a template of what every track has, such as '{filename}'"
        )


def _of_the_path(relpath: str) -> dict[str, str]:
    path = Path(relpath)
    spaced = path.stem.replace("_", " ").replace("-", " ")
    return {"filename": " ".join(spaced.split()), "folder": path.parent.name}


def _read(source: str, path: Path) -> Mapping[str, Any]:
    beside = [path.with_suffix(suffix) for suffix in _BESIDE.get(source, ())] or [path]
    stamps = tuple(_changed(place) for place in beside)
    return _remembered(source, path, stamps)


@lru_cache(maxsize=1 << 16)
def _remembered(source: str, path: Path, stamps: tuple[int, ...]) -> Mapping[str, Any]:
    """What ``source`` says, read again where a file's time of change is another."""
    return SOURCES[source](path)


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return -1


def _from_text(path: Path) -> dict[str, Any]:
    beside = path.with_suffix(".txt")
    if not beside.is_file():
        return {}
    text = " ".join(_text_of(beside).split())
    return {"prompt": text} if text else {}


def _from_json(path: Path) -> dict[str, Any]:
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return {}
    return json_fields(_text_of(beside), str(beside), path.name)


def json_fields(text: str, where: str, track: str) -> dict[str, Any]:
    """What the JSON of ``track`` says of it.

    Raises:
        DataError: it is not a JSON object, or a field of it is not of its kind; starts with ``where``.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}:{error.lineno}: not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(value, dict):
        found = type(value).__name__
        raise DataError(f"{where}: is a {found}, expected an object of what is known of {track}")
    sidecar = parse_sidecar(value, where)
    if sidecar is not None:  # of a clip that was generated here
        return standard_fields({**sidecar.conditioning, "prompt": sidecar.prompt}, where)
    return standard_fields(value, where)


def _from_tags(path: Path) -> dict[str, Any]:
    return tag_fields(packets.read_tags(path), f"{path}: its tags")


def tag_fields(read: Mapping[str, str], where: str) -> dict[str, Any]:
    """What the tags of a file say of it: ID3, Vorbis comments and the like.

    A ``description`` or ``comment`` is no caption, since shops and rippers write there, unless it is the
    sidecar of a clip that was generated here. A tempo that is none is no error: programs write 0 for unknown.
    """
    tags: dict[str, Any] = dict(read)
    sidecar = _sidecar_in(tags.pop("comment", ""), where)
    apart: dict[str, Any] = {name: tags.pop(name) for name in ("description", "text") if name in tags}
    tags = {name: value for name, value in tags.items() if name not in _TECHNICAL_TAGS}
    try:
        fields = standard_fields(tags, where)
    except DataError:
        fields = standard_fields({name: tags[name] for name in tags if name not in _TEMPO_TAGS}, where)
    return {**apart, **fields, **sidecar}


def _sidecar_in(comment: str, where: str) -> dict[str, Any]:
    """The prompt in a comment of ours; another's comment stays a comment."""
    try:
        sidecar = parse_sidecar(json.loads(comment), where)
    except ValueError:
        sidecar = None
    if sidecar is not None:
        return standard_fields({**sidecar.conditioning, "prompt": sidecar.prompt}, where)
    return {"comment": comment} if comment.strip() else {}


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: {error}") from error


_jamendo = JamendoFolder()
_song_describer = SongDescriberFolder()

SOURCES: dict[str, Callable[[Path], Mapping[str, Any]]] = {
    "json": _from_json,
    "text": _from_text,
    "tags": _from_tags,
    "jamendo": _jamendo.fields,
    "song_describer": _song_describer.fields,
}
"""The sources besides ``manifest``, which a description holds itself; ``schema.dataset`` names them too."""

_BESIDE = {"json": (".json",), "text": (".txt",)}
