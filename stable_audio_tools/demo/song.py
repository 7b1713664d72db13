"""What a style needs to know to play one piece."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.demo.mixer import Mixer
from stable_audio_tools.demo.theory import Key
from stable_audio_tools.runtime.seeds import derive_seed


@dataclass(frozen=True)
class Song:
    """A plan of a piece; the same plan always gives the same sound.

    The last five say how it is played, each from 0 to 1: ``brightness`` of the timbres, ``density`` of the
    notes, ``space`` of the reverb and echoes, ``grit`` of the saturation, ``swing`` of the off-beats.
    """

    key: Key
    tempo: float
    progression: tuple[int, ...]
    bars: int
    beats_per_bar: int
    seed: int
    brightness: float = 0.5
    density: float = 0.5
    space: float = 0.5
    grit: float = 0.2
    swing: float = 0.0

    @property
    def beat(self) -> float:
        """Seconds in one beat."""
        return 60.0 / self.tempo

    @property
    def bar(self) -> float:
        """Seconds in one bar."""
        return self.beat * self.beats_per_bar

    @property
    def seconds(self) -> float:
        """Length of the piece, with a bar's tail cut to at most 1.2 s for the last chord to ring."""
        return self.bars * self.bar + min(1.2, self.bar)

    def chords(self) -> list[int]:
        """The root degree of every bar."""
        return [self.progression[bar % len(self.progression)] for bar in range(self.bars)]

    def rng(self, part: str) -> np.random.Generator:
        """The generator of one part of the arrangement, independent of all others."""
        return np.random.default_rng(derive_seed("demo song", self.seed, part))

    def mixer(self) -> Mixer:
        """An empty canvas as long as the piece."""
        return Mixer(self.seconds)

    def finish(self, mixer: Mixer, reverb_seconds: float = 1.0) -> NDArray[np.float32]:
        """The finished stereo sound, shape ``(2, n)``."""
        return mixer.finish(self.rng("reverb"), reverb_seconds * (0.5 + self.space), 0.5 * self.grit)

    def step(self, bar: int, sixteenth: float) -> float:
        """Seconds at a sixteenth of a bar; odd sixteenths come late by the swing."""
        late = self.swing * 0.33 if sixteenth % 2 == 1 else 0.0
        return bar * self.bar + (sixteenth + late) * self.beat / 4
