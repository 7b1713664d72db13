"""The styles of the demo's artists: each takes a :class:`~stable_audio_tools.demo.song.Song` and plays it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.demo.song import Song
from stable_audio_tools.demo.styles import ambient, breaks, chiptune, chorale, dub, folk, house, waltz

Style = Callable[[Song], NDArray[np.float32]]

STYLES: dict[str, Style] = {
    "ambient": ambient.play,
    "breaks": breaks.play,
    "chiptune": chiptune.play,
    "chorale": chorale.play,
    "dub": dub.play,
    "folk": folk.play,
    "house": house.play,
    "waltz": waltz.play,
}
