"""Ambient: slow detuned pads that open and close, a low drone, bells far away."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.demo.song import Song
from stable_audio_tools.demo.synth import adsr, bell, detuned_saws, hz, samples, sine, sweeping_lowpass
from stable_audio_tools.demo.theory import lead_voices, write_melody


def play(song: Song) -> NDArray[np.float32]:
    mix, rng = song.mixer(), song.rng("pads")
    chords = lead_voices([song.key.chord(degree, 4) for degree in song.chords()], 50, 74)
    dark, bright = 350 + 300 * song.brightness, 900 + 2200 * song.brightness
    for bar, chord in enumerate(chords):
        n = samples(song.bar * 1.5)
        for voice, note in enumerate(chord):
            pad = detuned_saws(hz(note), n, rng, cents=6 + 6 * song.grit)
            pad = sweeping_lowpass(pad, np.array([dark, bright, dark])) * adsr(
                n, 0.35 * song.bar, 0.1, 0.9, 0.5 * song.bar
            )
            mix.add(pad, bar * song.bar, 0.22, -0.6 + 0.4 * voice, 0.4)
        root = song.key.note(song.chords()[bar], 2)
        drone = sine(hz(root), n) + 0.25 * sine(2 * hz(root), n)
        mix.add(drone * adsr(n, 0.3, 0.1, 0.9, 0.4 * song.bar), bar * song.bar, 0.28, 0, 0.1)
    rng = song.rng("bells")
    for tune_note in write_melody(
        song.key, song.chords(), song.beats_per_bar, rng, density=0.15 + 0.3 * song.density, octave=5
    ):
        tone = bell(tune_note.pitch, 2.0, rng, song.brightness)
        mix.add(tone, tune_note.start * song.beat, 0.16, rng.uniform(-0.7, 0.7), 0.7)
    return song.finish(mix, 3.0)
