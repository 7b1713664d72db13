"""Drum and bass: a chopped break, ghost notes, a growling sub bass, high electric-piano chords."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.demo.drums import hat, kick, snare
from stable_audio_tools.demo.mixer import Mixer
from stable_audio_tools.demo.song import Song
from stable_audio_tools.demo.synth import SAMPLE_RATE, adsr, fm, hz, samples, saw, sine, sweeping_lowpass
from stable_audio_tools.demo.theory import lead_voices, write_melody


def play(song: Song) -> NDArray[np.float32]:
    mix = song.mixer()
    _break(song, mix)
    _bass(song, mix)
    rng = song.rng("keys")
    chords = lead_voices([song.key.chord(degree, 4) for degree in song.chords()], 58, 79)
    for bar in range(0, song.bars, 2):
        for note in chords[bar]:
            tone = fm(note, 2 * song.bar, 2.0, 1.0 + 2.5 * song.brightness, 0.7)
            mix.add(tone, bar * song.bar, 0.13, rng.uniform(-0.6, 0.6), 0.5)
    rng = song.rng("tune")
    for tune in write_melody(
        song.key, song.chords(), song.beats_per_bar, rng, density=0.5 * song.density, octave=6
    ):
        tone = fm(tune.pitch, 0.5, 3.0, 1.5 * song.brightness, 0.2)
        mix.add(tone, tune.start * song.beat, 0.08, rng.uniform(-0.5, 0.5), 0.5)
    return song.finish(mix, 1.0)


def _break(song: Song, mix: Mixer) -> None:
    """Kick and snare of the classic two-step break, cut differently in every fourth bar."""
    rng = song.rng("break")
    for bar in range(song.bars):
        kicks, snares = [0, 10], [4, 12]
        if bar % 2:
            kicks = [0, 7, 10]
        if bar % 4 == 3:
            snares = [4, 11, 12, 14]
        for step in kicks:
            mix.add(kick(58, 0.8, 0.2), song.step(bar, step), 0.65, 0, 0.02)
        for step in snares:
            mix.add(snare(rng, 210, 0.4 + 0.5 * song.brightness, 0.2), song.step(bar, step), 0.6, 0.05, 0.12)
        for step in range(16):
            if step not in snares and rng.random() < 0.12 + 0.25 * song.density:
                mix.add(snare(rng, 240, 0.3, 0.08), song.step(bar, step), 0.13, -0.1, 0.05)
            if step % 2 == 0:
                mix.add(hat(rng, tone=4500), song.step(bar, step), 0.22 * rng.uniform(0.6, 1.0), 0.2, 0)


def _bass(song: Song, mix: Mixer) -> None:
    """Long notes under a filter that wobbles in time with the beat."""
    for bar, degree in enumerate(song.chords()):
        for step, length in ((0, 10), (10, 6)):
            n = samples(length * song.beat / 4 * 0.95)
            note = hz(song.key.note(degree, 2))
            wobble = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(0, n, 256) / SAMPLE_RATE / song.beat)
            growl = saw(note, n) + saw(note * 1.006, n, 0.3)
            growl = sweeping_lowpass(growl, 180 + (300 + 900 * song.grit) * wobble)
            mix.add(
                (0.8 * sine(note, n) + 0.4 * growl) * adsr(n, 0.01, 0.1, 0.85, 0.04),
                song.step(bar, step),
                0.4,
                0,
                0,
            )
