"""Drum voices for the demo catalogue: mono signals of shape ``(n,)`` near [-1, 1]."""

from __future__ import annotations

import numpy as np

from stable_audio_tools.demo.synth import Signal, bandpass, decaying, highpass, samples, sine


def kick(pitch: float = 48.0, punch: float = 0.5, seconds: float = 0.35) -> Signal:
    """A bass drum: a sine that falls to ``pitch`` Hz, with a click set by ``punch``."""
    n = samples(seconds)
    fall = pitch * (1.0 + (3.0 + 4.0 * punch) * 0.5 ** (np.arange(n) / samples(0.012)))
    return np.tanh((1.2 + punch) * sine(fall, n) * decaying(n, 0.09, 0.001))


def snare(rng: np.random.Generator, tone: float = 190.0, snap: float = 0.6, seconds: float = 0.25) -> Signal:
    """A snare drum: a short tone and bright noise."""
    n = samples(seconds)
    body = sine(tone * (1.0 + 0.5 * 0.5 ** (np.arange(n) / samples(0.01))), n) * decaying(n, 0.04, 0.001)
    wires = highpass(rng.standard_normal(n), 1500.0) * decaying(n, 0.03 + 0.05 * snap, 0.001)
    return 0.6 * body + 0.35 * (0.5 + snap) * wires


def clap(rng: np.random.Generator, seconds: float = 0.3) -> Signal:
    """A hand clap: three bursts and a tail of band-passed noise."""
    n = samples(seconds)
    envelope = 0.8 * decaying(n, 0.05, 0.001)
    for start in (0.0, 0.011, 0.022):
        at = samples(start)
        envelope[at : at + samples(0.01)] += 0.8
    return 0.5 * bandpass(rng.standard_normal(n), 1400.0, 0.6) * envelope


def hat(rng: np.random.Generator, open_: bool = False, tone: float = 5000.0) -> Signal:
    """A hi-hat, closed or open."""
    n = samples(0.3 if open_ else 0.07)
    return 0.5 * highpass(rng.standard_normal(n), tone, 4) * decaying(n, 0.07 if open_ else 0.014, 0.001)


def shaker(rng: np.random.Generator, seconds: float = 0.09) -> Signal:
    """A shaker: noise with a soft start."""
    n = samples(seconds)
    return 0.5 * bandpass(rng.standard_normal(n), 4500.0, 0.5) * np.sin(np.pi * np.arange(n) / n) ** 2


def rim(rng: np.random.Generator, tone: float = 1700.0) -> Signal:
    """A rim shot."""
    n = samples(0.06)
    return 0.6 * sine(tone, n) * decaying(n, 0.008, 0.0005) + 0.2 * rng.standard_normal(n) * decaying(
        n, 0.004, 0.0005
    )
