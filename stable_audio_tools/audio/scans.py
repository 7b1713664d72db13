"""What was found in files that had to be read from end to end, kept on disk for other processes and runs.

An MP3 says nowhere where its frames are, so finding out means reading all of it: once for each process,
unless the environment variable ``SAT_SCAN_CACHE`` names a folder. Then there is a small file in it for each
MP3, good until its size or time of change differs. On a network disk that saves reading everything twice.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from stable_audio_tools.audio.mp3 import FrameIndex
from stable_audio_tools.audio.packets import PacketStream
from stable_audio_tools.runtime.files import write_text
from stable_audio_tools.runtime.progress import warn

VARIABLE = "SAT_SCAN_CACHE"
_FORMAT = "stable-audio-tools/scan@1"


def kept_scan(path: Path, size: int, changed: int) -> PacketStream | None:
    """What was kept of the file of this size and time of change, if anything."""
    place = _place(path)
    if place is None:
        return None
    try:
        value = json.loads(place.read_bytes())
        if [value["format"], value["size"], value["changed"]] != [_FORMAT, size, changed]:
            return None
        return _stream(value["stream"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep_scan(path: Path, size: int, changed: int, found: PacketStream) -> None:
    """Keep ``found``, where it took reading the whole file."""
    place = _place(path)
    if place is None or found.index is None:
        return
    value = {"format": _FORMAT, "path": str(path), "size": size, "changed": changed, "stream": _plain(found)}
    try:
        write_text(place, json.dumps(value))
    except OSError as error:
        warn(f"{place.parent}: scans cannot be kept there ({VARIABLE}): {error.strerror or error}")


def _place(path: Path) -> Path | None:
    folder = os.environ.get(VARIABLE)
    if not folder:
        return None
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
    return Path(folder).expanduser() / name[:2] / f"{name}.json"


def _plain(found: PacketStream) -> dict[str, Any]:
    assert found.index is not None
    index = dict(found.index.__dict__)
    anchors = index.pop("anchors").astype("<u8")
    return {
        **{name: value for name, value in found.__dict__.items() if name != "index"},
        "index": {
            **index,
            "header": index["header"].hex(),
            "anchors": base64.b85encode(anchors.tobytes()).decode(),
        },
    }


def _stream(value: dict[str, Any]) -> PacketStream:
    index = dict(value.pop("index"))
    anchors = np.frombuffer(base64.b85decode(index.pop("anchors")), dtype="<u8")
    small = np.uint32 if index["end"] < 2**32 else np.uint64
    header = bytes.fromhex(index.pop("header"))
    return PacketStream(**value, index=FrameIndex(**index, anchors=anchors.astype(small), header=header))
