"""Folk: a finger-picked steel-string guitar, a plucked tune above it and a soft foot on the floor."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.demo.drums import kick, shaker
from stable_audio_tools.demo.song import Song
from stable_audio_tools.demo.synth import bandpass, pluck
from stable_audio_tools.demo.theory import lead_voices, write_melody

_PICKING = ((0, 2, 1, 3, 0, 2, 1, 2), (0, 1, 2, 3, 2, 1, 3, 2), (0, 3, 1, 2, 0, 3, 2, 1))


def play(song: Song) -> NDArray[np.float32]:
    mix, rng = song.mixer(), song.rng("guitar")
    pattern = _PICKING[int(rng.integers(len(_PICKING)))]
    chords = lead_voices([song.key.chord(degree, 3) for degree in song.chords()], 55, 71)
    for bar, (degree, chord) in enumerate(zip(song.chords(), chords, strict=True)):
        strings = [song.key.note(degree, 2) + (12 if song.key.note(degree, 2) < 40 else 0), *chord]
        for eighth in range(2 * song.beats_per_bar):
            note = strings[pattern[eighth % 8]]
            at = song.step(bar, 2 * eighth) + 0.006 * rng.standard_normal()
            thumb = eighth % 4 == 0
            tone = pluck(strings[0] if thumb else note, 1.6, rng, 0.2 + 0.6 * song.brightness, 0.997)
            tone = tone + 0.4 * bandpass(tone, 210.0, 0.4)  # the body of the guitar
            mix.add(tone, at, (0.34 if thumb else 0.24) * rng.uniform(0.8, 1.0), -0.3, 0.15)
        mix.add(kick(60, 0.0), song.step(bar, 0), 0.25, 0, 0.1)
        for beat in range(song.beats_per_bar if song.density > 0.45 else 0):
            mix.add(shaker(rng), song.step(bar, 4 * beat + 2), 0.12, 0.5, 0.1)
    rng = song.rng("tune")
    for tune_note in write_melody(
        song.key, song.chords(), song.beats_per_bar, rng, density=0.2 + 0.5 * song.density, octave=5
    ):
        tone = pluck(tune_note.pitch, 1.2, rng, 0.35 + 0.6 * song.brightness, 0.996)
        mix.add(tone, tune_note.start * song.beat + 0.008 * abs(rng.standard_normal()), 0.3, 0.35, 0.25)
    return song.finish(mix, 0.9)
