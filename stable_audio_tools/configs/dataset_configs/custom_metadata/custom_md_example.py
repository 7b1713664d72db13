"""A start for a metadata module of one's own: what a config cannot say, in Python.

``info`` is all that is known of the track: ``path``, ``relpath``, ``seconds_start``, ``seconds_total`` and,
with ``"metadata_sources": ["json", "text", "tags"]`` in the config, what those say. ``audio`` is the
crop, float32 ``(C, T)``, or None where nothing is decoded. What comes back goes before everything else. Two
keys are orders: ``"__reject__": True`` takes the next track instead, ``"__audio__"`` holds a tensor that
replaces the crop.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def get_custom_metadata(info: dict[str, Any], audio: Any) -> dict[str, Any]:
    """The caption where there is one; else the words of the file's name and of its folder."""
    if info.get("prompt"):
        return {}
    path = Path(info["relpath"])
    words = f"{path.parent.name} {path.stem}".replace("_", " ").replace("-", " ").split()
    return {"prompt": " ".join(words)}
