"""Dataset configs for the tiny recordings."""

from __future__ import annotations

import json
from pathlib import Path

MODULE = """
def get_custom_metadata(info, audio):
    number = int(info["relpath"].split("/")[-1].split(".")[0])
    if number == REJECTED:
        return {"__reject__": True}
    artist = f"Artist {number // 100 % 100}"
    return {"prompt": f"rock {number % 5} guitar", "artist": artist, "title": str(number)}
"""


def write_dataset(folder: Path, audio: Path, name: str = "train", rejected: int = -1) -> Path:
    """A dataset config in ``folder`` for the recordings in ``audio``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}_md.py").write_text(MODULE.replace("REJECTED", str(rejected)))
    entry = {"id": name, "path": str(audio), "custom_metadata_module": str(folder / f"{name}_md.py")}
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"dataset_type": "audio_dir", "datasets": [entry], "random_crop": True}))
    return path
