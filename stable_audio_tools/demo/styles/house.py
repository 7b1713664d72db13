"""House: four on the floor, off-beat hats, claps on two and four; bass and stabs duck under the kick."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.demo.drums import clap, hat, kick
from stable_audio_tools.demo.mixer import Mixer
from stable_audio_tools.demo.song import Song
from stable_audio_tools.demo.synth import (
    SAMPLE_RATE,
    adsr,
    detuned_saws,
    hz,
    lowpass,
    samples,
    saw,
    sweeping_lowpass,
)
from stable_audio_tools.demo.theory import euclid, lead_voices


def play(song: Song) -> NDArray[np.float32]:
    mix = song.mixer()
    mix.merge(_harmony(song), _duck(song))
    rng = song.rng("drums")
    for bar in range(song.bars):
        for beat in range(song.beats_per_bar):
            mix.add(kick(47, 0.3 + 0.6 * song.grit), song.step(bar, 4 * beat), 0.75, 0, 0)
            mix.add(
                hat(rng, open_=True), song.step(bar, 4 * beat + 2), 0.2 + 0.1 * song.brightness, 0.15, 0.05
            )
            if beat % 2:
                mix.add(clap(rng), song.step(bar, 4 * beat), 0.45, 0, 0.2)
        if song.density > 0.4:
            for step in range(1, 4 * song.beats_per_bar, 2):
                mix.add(hat(rng), song.step(bar, step), 0.12 * rng.uniform(0.6, 1), -0.2, 0)
    return song.finish(mix, 0.8)


def _harmony(song: Song) -> Mixer:
    """Bass line and chord stabs."""
    mix, rng = song.mixer(), song.rng("harmony")
    chords = lead_voices([song.key.chord(degree, 4) for degree in song.chords()], 55, 76)
    stabs = euclid(3 + round(3 * song.density), 16, int(rng.integers(0, 4)))
    line = [
        (step, int(rng.choice([0, 0, 0, 4, 7])))
        for step in range(16)
        if step % 4 and rng.random() < 0.35 + 0.4 * song.density
    ]
    for bar, (degree, chord) in enumerate(zip(song.chords(), chords, strict=True)):
        opening = (0.4 + 0.6 * bar / song.bars) * (900 + 2600 * song.brightness)
        for step in stabs:
            n = samples(song.beat * 0.45)
            stab = sum((detuned_saws(hz(note), n, rng, 7) for note in chord), np.zeros(n))
            stab = lowpass(stab, opening) * adsr(n, 0.005, 0.12, 0.35, 0.06)
            mix.add(stab, song.step(bar, step), 0.13, rng.uniform(-0.4, 0.4), 0.3)
        for step, above in line:
            n = samples(song.beat * 0.3)
            bass = saw(hz(song.key.note(degree + above, 2)), n) * adsr(n, 0.003, 0.1, 0.5, 0.03)
            mix.add(sweeping_lowpass(bass, np.array([900.0, 250.0])), song.step(bar, step), 0.4, 0, 0)
    mix.echo(song.beat * 0.75, 0.2 + 0.2 * song.space, 2)
    return mix


def _duck(song: Song) -> NDArray[np.float64]:
    """Gain that drops at every beat and comes back before the next."""
    beats = (np.arange(samples(song.seconds)) / SAMPLE_RATE / song.beat) % 1.0
    return 0.25 + 0.75 * np.minimum(1.0, beats / 0.55) ** 1.5
