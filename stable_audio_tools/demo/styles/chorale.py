"""Chorale: a small string orchestra in four parts, with passing notes in the first violins."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.demo.song import Song
from stable_audio_tools.demo.synth import Signal, adsr, hz, lowpass, samples, saw, sine
from stable_audio_tools.demo.theory import lead_voices, write_melody


def play(song: Song) -> NDArray[np.float32]:
    mix, rng = song.mixer(), song.rng("inner parts")
    roots = song.chords()
    chords = lead_voices([song.key.chord(degree, 3) for degree in roots], 50, 69)
    halves = 2 if song.density > 0.5 else 1
    for bar, chord in enumerate(chords):
        length = song.bar / halves
        for half in range(halves):
            at = bar * song.bar + half * length
            for part, note in enumerate(chord):
                mix.add(_section(song, note, length * 1.1, rng), at, 0.24, -0.5 + 0.4 * part, 0.35)
            bass = song.key.note(roots[bar] + (0 if half == 0 else 4 - 7), 2)
            mix.add(_section(song, bass + 12 * (bass < 36), length * 1.1, rng), at, 0.32, 0.5, 0.3)
    rng = song.rng("violins")
    for tune_note in write_melody(
        song.key, roots, song.beats_per_bar, rng, density=0.1 + 0.35 * song.density, octave=5
    ):
        mix.add(
            _section(song, tune_note.pitch, tune_note.length * song.beat * 1.08, rng),
            tune_note.start * song.beat,
            0.3,
            -0.55,
            0.35,
        )
    return song.finish(mix, 2.0)


def _section(song: Song, note: int, seconds: float, rng: np.random.Generator) -> Signal:
    """Four players on one line, each with a vibrato and a tuning of their own."""
    n = samples(seconds)
    out = np.zeros(n)
    rise = np.minimum(1.0, np.arange(n) / samples(0.35))
    for _ in range(4):
        vibrato = 0.004 * rise * sine(rng.uniform(4.8, 6.0), n, rng.random())
        out += saw(hz(note) * (1 + rng.normal(0, 0.0025)) * (1 + vibrato), n, rng.random())
    out = lowpass(out, 900 + 2600 * song.brightness + 2 * hz(note), 1)
    return 0.4 * out * adsr(n, 0.06 + 0.12 * song.space, 0.2, 0.85, 0.15)
