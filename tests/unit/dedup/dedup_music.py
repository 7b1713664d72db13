"""Short synthesised pieces of music."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RATE = 16000


def compose(seed: int, seconds: float = 12.0, notes: tuple[float, ...] | None = None) -> NDArray[np.float32]:
    """Plucked notes over a noise beat, mono at 16 kHz; ``notes`` fixes the pitches but not their order."""
    random = np.random.default_rng(seed)
    length = round(seconds * RATE)
    audio = np.zeros(length + RATE)
    pitches = notes or tuple(110.0 * 2 ** (random.integers(0, 36, 8) / 12))
    start = 0.0
    while start < seconds:
        time = np.arange(RATE // 2) / RATE
        pitch = random.choice(pitches)
        pluck = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 6)) * np.exp(-8 * time)
        beat = random.standard_normal(len(time)) * np.exp(-60 * time)
        at = round(start * RATE)
        audio[at : at + len(time)] += 0.2 * pluck + 0.1 * beat
        start += random.choice([0.2, 0.3, 0.45])
    return audio[:length].astype(np.float32)
