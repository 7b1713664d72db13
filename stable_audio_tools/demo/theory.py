"""Keys, chords, voice leading, melodies and rhythms: what a composer of the demo catalogue knows.

Notes are MIDI numbers, scale degrees count from 0, times are in beats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

MODES: dict[str, tuple[int, ...]] = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
}
NOTE_NAMES = ("C", "D flat", "D", "E flat", "E", "F", "G flat", "G", "A flat", "A", "B flat", "B")


@dataclass(frozen=True)
class Key:
    """A tonic (0 to 11) and a mode."""

    tonic: int
    mode: str

    def note(self, degree: int, octave: int = 4) -> int:
        """The note of a scale degree, below 0 or above 6 in other octaves. ``note(0, 4)`` of C is 60."""
        scale = MODES[self.mode]
        return 12 * (octave + 1 + degree // 7) + self.tonic + scale[degree % 7]

    def chord(self, degree: int, size: int = 3, octave: int = 4) -> list[int]:
        """Stacked thirds on a degree, in root position."""
        return [self.note(degree + 2 * step, octave) for step in range(size)]

    @property
    def name(self) -> str:
        return f"{NOTE_NAMES[self.tonic]} {self.mode}"


@dataclass(frozen=True)
class Note:
    """A note of a melody: when and how long in beats, and which."""

    start: float
    length: float
    pitch: int


def lead_voices(chords: Sequence[Sequence[int]], low: int, high: int) -> list[list[int]]:
    """Revoice each chord inside [low, high] so that the voices move little from the chord before."""
    voiced: list[list[int]] = []
    target = [low + (high - low) * (i + 1) / (len(chords[0]) + 1) for i in range(len(chords[0]))]
    for chord in chords:
        free = list(chord)
        voices = []
        for wanted in target:
            options = [(pitch, index) for index, pitch in enumerate(free)]
            pitch, index = min(options, key=lambda option: abs(_nearest_octave(option[0], wanted) - wanted))
            note = _nearest_octave(pitch, wanted)
            voices.append(note + 12 * (note < low) - 12 * (note > high))
            free.pop(index)
            free = free or list(chord)
        target = [float(v) for v in voices]
        voiced.append(sorted(voices))
    return voiced


def _nearest_octave(pitch: int, wanted: float) -> int:
    return pitch + 12 * round((wanted - pitch) / 12)


def write_melody(
    key: Key,
    progression: Sequence[int],
    beats_per_bar: int,
    rng: np.random.Generator,
    *,
    density: float = 0.5,
    octave: int = 5,
) -> list[Note]:
    """One bar of melody for each chord.

    A two-bar rhythmic motif returns; chord tones fall on the strong beats, steps in between, and the last
    note is a long one of the chord.
    """
    motifs = [_rhythm(beats_per_bar, density, rng) for _ in range(2)]
    degree = int(rng.choice([0, 2, 4]))
    notes = []
    for bar, root in enumerate(progression):
        last = bar == len(progression) - 1
        rhythm = [0.0, beats_per_bar * 0.5] if last else motifs[bar % 2]
        for start, end in pairwise([*rhythm, float(beats_per_bar)]):
            if start == int(start) and int(start) % 2 == 0:
                degree = min(
                    (root + tone + 7 * shift for tone in (0, 2, 4) for shift in (-2, -1, 0, 1)),
                    key=lambda d: abs(d - degree) + rng.random(),
                )
            else:
                degree += int(rng.choice([-2, -1, -1, 1, 1, 2]))
            degree = degree - 7 if degree > 9 else degree + 7 if degree < -3 else degree
            notes.append(Note(bar * beats_per_bar + start, end - start, key.note(degree, octave)))
    return notes


def _rhythm(beats: int, density: float, rng: np.random.Generator) -> list[float]:
    """Onsets in one bar: always the first beat, other beats often, the off-beats as dense as asked."""
    onsets = [0.0]
    for eighth in range(1, 2 * beats):
        chance = (0.35 + 0.5 * density) if eighth % 2 == 0 else 0.75 * density
        if rng.random() < chance:
            onsets.append(eighth / 2)
    return onsets


def euclid(hits: int, steps: int, rotation: int = 0) -> list[int]:
    """The steps of ``hits`` onsets spread as evenly as possible over ``steps`` (Toussaint 2005)."""
    return sorted((step * steps // hits + rotation) % steps for step in range(hits))
