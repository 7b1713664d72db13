"""Prompts and names for recordings in MTG-Jamendo layout.

``raw_30s.tsv`` and ``raw.meta.tsv`` are looked for in the folder of the recording and above it. A recording
without a line in ``raw_30s.tsv`` is an error; ``"on_error": "skip"`` in the dataset config leaves it out.
"""

from __future__ import annotations

from typing import Any

from stable_audio_tools.data.jamendo import JamendoFolder

_folder = JamendoFolder()


def get_custom_metadata(info: dict[str, Any], audio: Any) -> dict[str, Any]:
    """Prompt, ids, names and tags of the recording at ``info["path"]``."""
    return _folder.metadata(info["path"])
