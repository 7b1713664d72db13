"""One set of names for what is known of a track, whoever wrote it down."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from stable_audio_tools.errors import DataError

SYNONYMS: dict[str, tuple[str, ...]] = {
    "prompt": ("caption", "captions", "prompts", "text", "description"),
    "tags": ("keywords",),
    "genre": ("genres",),
    "mood": ("moods", "mood/theme"),
    "instrument": ("instruments",),
    "bpm": ("tbpm", "tempo", "tmpo"),
    "key": ("tkey", "initialkey", "initial_key", "initial key", "keyscale"),
    "title": ("track_name", "track_title"),
    "artist": ("artist_name", "artists", "album_artist"),
    "album": ("album_name", "album_title"),
}
"""What a field is called elsewhere. The first name that holds a value is it; others stay as they are."""

_LISTS = frozenset({"tags", "genre", "mood", "instrument"})
_TEXTS = frozenset({"title", "artist", "album", "key"})

LOADER_KEYS = frozenset(
    {"index", "sample_id", "path", "relpath", "dataset_id", "replaced", "seconds_start", "seconds_total"}
    | {"offset_seconds", "duration_seconds", "sample_rate", "padding_mask", "timestamps", "latent_filename"}
    | {"__audio__", "__reject__"}
)
"""What the loader itself says of a crop. Metadata of such a name is kept as ``metadata_<name>``."""


def standard_fields(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``raw`` under the names used here, empty values left out.

    ``prompt`` is a text, or a list of several; ``tags``, ``genre``, ``mood`` and ``instrument`` are lists of
    texts; ``bpm`` is a number; ``title``, ``artist``, ``album`` and ``key`` are texts. These names are found
    in any case. What has another name stays, as it is.

    Args:
        raw: what a file says of a track.
        where: the file, and its line if it has several; starts every error.

    Raises:
        DataError: a field is not of its kind.
    """
    given = {str(name).strip(): value for name, value in raw.items() if not _is_empty(value)}
    spelled = {name.lower(): name for name in reversed(given)}
    fields: dict[str, Any] = {}
    for name, others in SYNONYMS.items():
        found = next((spelled[spelling] for spelling in (name, *others) if spelling in spelled), None)
        if found is not None:
            value = _checked(name, given.pop(found), f"{where}: {found}")
            if not _is_empty(value):
                fields[name] = value
    for name, value in given.items():
        if name:  # the first column of a table that pandas wrote has none
            fields[f"metadata_{name}" if name in LOADER_KEYS or name in fields else name] = value
    return fields


def _checked(name: str, value: Any, where: str) -> Any:
    if name == "prompt":
        return _captions(value, where)
    if name in _LISTS:
        return _words(value, where)
    if name == "bpm":
        return _tempo(value, where)
    if name in _TEXTS:
        if isinstance(value, str):
            return " ".join(value.split())
        return ", ".join(_words(value if isinstance(value, list) else [value], where))
    return value


def _captions(value: Any, where: str) -> str | list[str]:
    captions = value if isinstance(value, list) else [value]
    wrong = next((entry for entry in captions if not isinstance(entry, str)), None)
    if wrong is not None:
        raise DataError(f"{where}: {wrong!r:.80} is not a text; expected a caption or a list of them")
    texts = [text for caption in captions if (text := " ".join(caption.split()))]
    return texts[0] if len(texts) == 1 else texts


def _words(value: Any, where: str) -> list[str]:
    """A list of texts, or one text of several: parted by ``;`` or ``|``, or else by commas."""
    if isinstance(value, str):
        value = re.split(r"[;|\0]" if re.search(r"[;|\0]", value) else ",", value)
    if not isinstance(value, list) or not all(isinstance(entry, str | int | float) for entry in value):
        raise DataError(f"{where}: {value!r:.80} is not a list of texts")
    words = [text for entry in value if (text := " ".join(str(entry).split()))]
    return list(dict.fromkeys(words))


def _tempo(value: Any, where: str) -> float:
    try:
        tempo = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        tempo = math.nan
    if not 0 < tempo < 10_000:
        raise DataError(f"{where}: {value!r:.80} is not a tempo, expected beats per minute")
    return tempo


def _is_empty(value: Any) -> bool:
    return value is None or value == [] or (isinstance(value, str) and not value.strip())
