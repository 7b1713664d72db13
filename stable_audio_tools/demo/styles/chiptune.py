"""Chiptune: one pulse wave for the tune, one for broken chords, a triangle bass and a noise channel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.demo.song import Song
from stable_audio_tools.demo.synth import adsr, decaying, hz, pulse, samples, sine, triangle
from stable_audio_tools.demo.theory import euclid, write_melody


def play(song: Song) -> NDArray[np.float32]:
    mix, width = song.mixer(), 0.125 + 0.25 * song.brightness
    sixteenth = samples(song.beat / 4)
    per_bar = 4 * song.beats_per_bar
    noise = song.rng("noise")
    for bar, degree in enumerate(song.chords()):
        chord = [*song.key.chord(degree, 3, 4), song.key.note(degree, 5)]
        order = [0, 1, 2, 3] if bar % 4 < 3 else [3, 2, 1, 0]
        for step in range(per_bar):
            tone = pulse(hz(chord[order[step % 4]] + 12), sixteenth, width) * decaying(sixteenth, 0.06)
            mix.add(tone, song.step(bar, step), 0.16, 0.35, 0.05)
        for step in euclid(3 + round(4 * song.density), per_bar, 0):
            n = samples(song.beat * 0.4)
            bass = triangle(hz(song.key.note(degree, 2)), n) * adsr(n, 0.003, 0.05, 0.8, 0.02)
            mix.add(bass, song.step(bar, step), 0.45, 0, 0)
        for step in range(0, per_bar, 2):
            n = samples(0.12 if step % 8 == 4 else 0.03)
            held = np.repeat(noise.uniform(-1, 1, n // 3 + 1), 3)[
                :n
            ]  # few values a second, as the old chips had
            mix.add(held * decaying(n, 0.02), song.step(bar, step), 0.22 if step % 8 == 4 else 0.09, -0.1, 0)
    tune = song.rng("tune")
    for tune_note in write_melody(
        song.key, song.chords(), song.beats_per_bar, tune, density=0.4 + 0.5 * song.density, octave=5
    ):
        n = samples(tune_note.length * song.beat * 0.92)
        vibrato = hz(tune_note.pitch) * (1 + 0.006 * sine(6.0, n) * np.linspace(0, 1, n))
        mix.add(
            pulse(vibrato, n, 0.5) * adsr(n, 0.004, 0.08, 0.6, 0.03),
            tune_note.start * song.beat,
            0.24,
            -0.25,
            0.08,
        )
    mix.echo(song.beat * 0.75, 0.15 + 0.2 * song.space, 2)
    return song.finish(mix, 0.4)
