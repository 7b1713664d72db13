"""Short synthesised pieces of music, and their prints."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from stable_audio_tools.audio.transforms import resample
from stable_audio_tools.dedup.landmarks import find_peaks
from stable_audio_tools.dedup.prints import Facts, Print
from stable_audio_tools.dedup.spectra import ANALYSIS_RATE, SpectrumStream
from stable_audio_tools.dedup.verify import onsets_of

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


def print_of(audio: NDArray[np.float32]) -> Print:
    """The print of mono audio at 16 kHz, as if it had been a file."""
    made = torch.from_numpy(np.ascontiguousarray(audio, dtype=np.float32))
    spectrum = SpectrumStream()
    spectrum.feed(resample(made, RATE, ANALYSIS_RATE))
    bands, pitches = spectrum.finish()
    facts = Facts(len(audio) / RATE, RATE, 1, True, "", None)
    return Print(onsets_of(bands), find_peaks(pitches), facts)
