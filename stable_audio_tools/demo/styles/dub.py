"""Dub: a heavy round bass, organ skanks off the beat drowned in echo, one drop on the third beat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.demo.drums import hat, kick, rim, snare
from stable_audio_tools.demo.mixer import Mixer
from stable_audio_tools.demo.song import Song
from stable_audio_tools.demo.synth import adsr, hz, lowpass, pulse, samples, sine
from stable_audio_tools.demo.theory import lead_voices


def play(song: Song) -> NDArray[np.float32]:
    mix, skanks, rng = song.mixer(), song.mixer(), song.rng("keys")
    chords = lead_voices([song.key.chord(degree, 3) for degree in song.chords()], 57, 74)
    for bar, chord in enumerate(chords):
        n = samples(song.beat * 0.22)
        for beat in range(song.beats_per_bar):
            if beat % 2 and rng.random() < 0.55 + 0.45 * song.density:
                organ = sum((pulse(hz(note), n, 0.4) + sine(2 * hz(note), n) for note in chord), np.zeros(n))
                organ = lowpass(organ, 800 + 2400 * song.brightness) * adsr(n, 0.004, 0.05, 0.6, 0.03)
                skanks.add(organ, song.step(bar, 4 * beat), 0.14, -0.3, 0.25)
    skanks.echo(song.beat * 0.75, 0.4 + 0.25 * song.space, 5)
    mix.merge(skanks)
    _bass(song, mix)
    rng = song.rng("drums")
    for bar in range(song.bars):
        mix.add(kick(44, 0.2), song.step(bar, 8), 0.7, 0, 0.05)
        mix.add(rim(rng), song.step(bar, 8), 0.45, 0.1, 0.5)
        for step in range(0, 16, 2):
            mix.add(hat(rng), song.step(bar, step), 0.14 * (1.3 if step % 4 == 0 else 0.8), 0.3, 0)
        if bar % 4 == 3:
            for step in (13, 14, 15):
                mix.add(snare(rng, 220, song.brightness), song.step(bar, step), 0.3, -0.1, 0.6)
    return song.finish(mix, 1.2)


def _bass(song: Song, mix: Mixer) -> None:
    """A riff of long and short low notes, the same in every bar, on the chord of the bar."""
    rng = song.rng("bass")
    steps = [
        0,
        *sorted(rng.choice([3, 4, 6, 7, 10, 12, 14], size=2 + round(2 * song.density), replace=False)),
    ]
    degrees = [0, *rng.choice([0, 2, 4, -1, 0], size=len(steps) - 1)]
    ends = [*steps[1:], 16]
    for bar, root in enumerate(song.chords()):
        for step, end, above in zip(steps, ends, degrees, strict=True):
            n = samples((end - step) * song.beat / 4 * 0.9)
            note = hz(song.key.note(root + int(above), 2))
            tone = np.tanh((1.2 + 2 * song.grit) * (sine(note, n) + 0.3 * sine(2 * note, n)))
            mix.add(tone * adsr(n, 0.008, 0.15, 0.75, 0.05), song.step(bar, float(step)), 0.6, 0, 0)
