"""Waltz: a solo piano in three, low note and two chords in the left hand, a singing right hand."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.demo.mixer import Mixer
from stable_audio_tools.demo.song import Song
from stable_audio_tools.demo.synth import piano
from stable_audio_tools.demo.theory import lead_voices, write_melody


def play(song: Song) -> NDArray[np.float32]:
    mix, rng = song.mixer(), song.rng("left hand")
    chords = lead_voices([song.key.chord(degree, 3) for degree in song.chords()], 52, 66)
    for bar, (degree, chord) in enumerate(zip(song.chords(), chords, strict=True)):
        accent = 1.0 + 0.15 * np.sin(2 * np.pi * bar / 4)
        _strike(song, mix, song.key.note(degree, 2), bar * song.bar, 2 * song.bar, 0.5 * accent, rng)
        for beat in range(1, song.beats_per_bar):
            late = song.swing * 0.12 * song.beat if beat == 1 else 0.0
            for note in chord:
                _strike(
                    song,
                    mix,
                    note,
                    bar * song.bar + beat * song.beat + late,
                    0.9 * song.beat,
                    0.2 * accent,
                    rng,
                )
    rng = song.rng("right hand")
    for tune_note in write_melody(
        song.key, song.chords(), song.beats_per_bar, rng, density=0.25 + 0.55 * song.density, octave=5
    ):
        at = tune_note.start * song.beat + 0.008 * rng.standard_normal()
        _strike(
            song,
            mix,
            tune_note.pitch,
            at,
            max(0.8, 1.5 * tune_note.length * song.beat),
            0.42 * rng.uniform(0.8, 1.1),
            rng,
        )
        if song.grit > 0.5 and tune_note.length >= 1:
            _strike(song, mix, tune_note.pitch - 12, at, 0.8, 0.2, rng)
    return song.finish(mix, 1.3)


def _strike(
    song: Song, mix: Mixer, note: int, at: float, seconds: float, gain: float, rng: np.random.Generator
) -> None:
    """One key of the piano; low strings stand to the left."""
    mix.add(
        piano(note, seconds, rng, song.brightness), at, gain, float(np.clip((note - 62) / 40, -0.6, 0.6)), 0.2
    )
