"""A small synthesiser in numpy: oscillators, envelopes, filters, plucked strings and struck bars.

Every voice returns one mono signal, a float array of shape ``(n,)`` near [-1, 1] at :data:`SAMPLE_RATE`.
Nothing is random unless it is given a ``numpy.random.Generator``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Signal = NDArray[np.float64]

SAMPLE_RATE = 16_000
"""Samples per second of everything the demo composes; its models work at the same rate."""

NYQUIST = SAMPLE_RATE / 2


def samples(seconds: float) -> int:
    """``seconds`` in samples, at least one."""
    return max(1, round(seconds * SAMPLE_RATE))


def hz(note: float) -> float:
    """Frequency of a MIDI note number in equal temperament, 69 being 440 Hz."""
    return float(440.0 * 2.0 ** ((note - 69.0) / 12.0))


def _cycles(frequency: float | Signal, n: int, start: float) -> Signal:
    """Phase in cycles after each sample, for a constant or a changing frequency."""
    return start + np.cumsum(np.broadcast_to(np.asarray(frequency, dtype=np.float64), (n,))) / SAMPLE_RATE


def sine(frequency: float | Signal, n: int, start: float = 0.0) -> Signal:
    """A sine wave; ``start`` is its phase in cycles."""
    return np.sin(2 * np.pi * _cycles(frequency, n, start))


def _step_residual(position: Signal, increment: Signal) -> Signal:
    """What a step of a waveform has too much to be free of aliases (Valimaki and Huovilainen 2007)."""
    after = np.clip(position / increment, 0.0, 1.0)
    before = np.clip((position - 1.0) / increment, -1.0, 0.0)
    return -((1.0 - after) ** 2) + (1.0 + before) ** 2


def saw(frequency: float | Signal, n: int, start: float = 0.0) -> Signal:
    """A band-limited rising sawtooth."""
    increment = np.broadcast_to(np.asarray(frequency, dtype=np.float64), (n,)) / SAMPLE_RATE
    position = _cycles(frequency, n, start) % 1.0
    return 2.0 * position - 1.0 - _step_residual(position, increment)


def pulse(frequency: float | Signal, n: int, width: float = 0.5, start: float = 0.0) -> Signal:
    """A band-limited pulse that is high for ``width`` of its period, without its constant part."""
    return saw(frequency, n, start) - saw(frequency, n, start + 1.0 - width)


def triangle(frequency: float, n: int, start: float = 0.0) -> Signal:
    """A triangle wave built from its first odd partials."""
    out = np.zeros(n)
    for order, partial in enumerate(range(1, 12, 2)):
        if partial * frequency < NYQUIST:
            out += (-1) ** order * sine(partial * frequency, n, start * partial) / partial**2
    return out * 0.81


def detuned_saws(
    frequency: float, n: int, rng: np.random.Generator, cents: float = 9.0, voices: int = 3
) -> Signal:
    """Several sawtooths a few cents apart, the sound of a string section or a wide synthesiser."""
    offsets = np.linspace(-cents, cents, voices)
    return sum((saw(frequency * 2 ** (c / 1200), n, rng.random()) for c in offsets), np.zeros(n)) / np.sqrt(
        voices
    )


def adsr(n: int, attack: float, decay: float, sustain: float, release: float) -> Signal:
    """An envelope of ``n`` samples, times in seconds; the release ends with the last sample."""
    knots = np.array(
        [0.0, attack, attack + decay, max(attack + decay, n / SAMPLE_RATE - release), n / SAMPLE_RATE]
    )
    if knots[-2] >= knots[-1]:  # a note shorter than its stages keeps their proportions
        knots[1:4] *= 0.9 * knots[-1] / knots[3]
    return np.interp(np.arange(n) / SAMPLE_RATE, knots, [0.0, 1.0, sustain, sustain, 0.0])


def decaying(n: int, half_life: float, attack: float = 0.002) -> Signal:
    """An envelope that halves every ``half_life`` seconds after a short rise."""
    seconds = np.arange(n) / SAMPLE_RATE
    tail = np.minimum(1.0, (n - np.arange(n)) / samples(0.01))
    return np.minimum(1.0, seconds / attack) * 0.5 ** (seconds / half_life) * tail


def shape_spectrum(sound: Signal, gain: Callable[[Signal], Signal]) -> Signal:
    """Multiply the spectrum by ``gain(frequency in Hz)``; zero phase, along the last axis."""
    n = sound.shape[-1]
    size = 1 << (n + 255).bit_length()
    frequencies = np.fft.rfftfreq(size, 1 / SAMPLE_RATE).astype(np.float64)
    return np.fft.irfft(np.fft.rfft(sound, size) * gain(frequencies), size)[..., :n]


def lowpass(sound: Signal, cutoff: float, order: int = 2) -> Signal:
    """Butterworth magnitude low-pass."""
    return shape_spectrum(sound, lambda f: 1.0 / np.sqrt(1.0 + (f / cutoff) ** (2 * order)))


def highpass(sound: Signal, cutoff: float, order: int = 2) -> Signal:
    """Butterworth magnitude high-pass."""
    return shape_spectrum(sound, lambda f: 1.0 / np.sqrt(1.0 + (cutoff / np.maximum(f, 1e-3)) ** (2 * order)))


def bandpass(sound: Signal, centre: float, octaves: float = 1.0) -> Signal:
    """A bell on the logarithmic frequency axis, ``octaves`` wide."""
    return shape_spectrum(
        sound, lambda f: np.exp(-0.5 * (np.log2(np.maximum(f, 1e-3) / centre) / octaves) ** 2)
    )


def sweeping_lowpass(sound: Signal, cutoff: Signal, frame: int = 512) -> Signal:
    """A low-pass whose cutoff moves: ``cutoff`` is stretched over the sound, applied by overlap-add."""
    hop = frame // 2
    window = np.sin(np.pi * (np.arange(frame) + 0.5) / frame)
    padded = np.pad(sound, (hop, frame + hop))
    frames = np.lib.stride_tricks.sliding_window_view(padded, frame)[::hop] * window
    edges = np.interp(np.linspace(0, 1, len(frames)), np.linspace(0, 1, len(cutoff)), cutoff)
    frequency = np.fft.rfftfreq(frame, 1 / SAMPLE_RATE)
    gain = 1.0 / np.sqrt(1.0 + (frequency / edges[:, None]) ** 6)
    filtered = np.fft.irfft(np.fft.rfft(frames) * gain, frame) * window
    out = np.zeros(len(filtered) * hop + hop)
    even, odd = filtered[0::2], filtered[1::2]
    out[: even.size] += even.ravel()
    out[hop : hop + odd.size] += odd.ravel()
    return out[hop : hop + len(sound)]


def pluck(
    note: float, seconds: float, rng: np.random.Generator, brightness: float = 0.5, damping: float = 0.996
) -> Signal:
    """A plucked string (Karplus and Strong 1983), one period at a time, then stretched to the exact pitch."""
    n = samples(seconds)
    exact = SAMPLE_RATE / hz(note) - 0.5  # the two-point average in the loop delays by half a sample
    period = max(4, round(exact))
    stretch = period / exact
    string = rng.uniform(-1, 1, period)
    for _ in range(round(3 * (1 - brightness))):  # a softer finger excites fewer high partials
        string = 0.5 * (string + np.roll(string, 1))
    string -= string.mean()
    periods = []
    for _ in range(int(n * stretch) // period + 2):
        periods.append(string)
        string = damping * 0.5 * (string + np.roll(string, 1))
    tone = np.interp(np.arange(n) * stretch, np.arange(len(periods) * period), np.concatenate(periods))
    tone = tone / (np.abs(tone).max() + 1e-9)
    return tone * np.minimum(1.0, (n - np.arange(n)) / samples(0.03))


def struck(
    note: float, seconds: float, partials: dict[float, float], half_life: float, rng: np.random.Generator
) -> Signal:
    """A struck body: ``partials`` maps frequency ratios to amplitudes; higher ones fade faster."""
    n = samples(seconds)
    out = np.zeros(n)
    for ratio, amplitude in partials.items():
        if (frequency := hz(note) * ratio) < 0.95 * NYQUIST:
            out += amplitude * sine(frequency, n, rng.random()) * decaying(n, half_life / (0.6 + 0.4 * ratio))
    return out


def piano(note: float, seconds: float, rng: np.random.Generator, brightness: float = 0.5) -> Signal:
    """A piano-like tone: stretched partials, two strings a hair apart, and the knock of the hammer."""
    stiffness = 4e-4
    tilt = 1.9 - 0.9 * brightness
    partials = {k * np.sqrt(1 + stiffness * k * k): k**-tilt for k in range(1, 14)}
    half_life = float(np.clip(0.9 * 2 ** ((60 - note) / 18), 0.15, 2.0))
    tone = struck(note, seconds, partials, half_life, rng) + 0.5 * struck(
        note + 0.02, seconds, partials, half_life, rng
    )
    knock = bandpass(rng.standard_normal(len(tone)), 900.0, 0.8) * decaying(len(tone), 0.008)
    return 0.5 * tone + 0.15 * knock


def bell(note: float, seconds: float, rng: np.random.Generator, brightness: float = 0.5) -> Signal:
    """A small bell, with the partials of a tuned bar."""
    return 0.6 * struck(note, seconds, {1.0: 1.0, 2.76: 0.5 * brightness, 5.4: 0.25 * brightness}, 0.7, rng)


def fm(note: float, seconds: float, ratio: float, index: float, half_life: float = 0.4) -> Signal:
    """Two-operator frequency modulation with a fading index (Chowning 1973)."""
    n = samples(seconds)
    modulator = sine(hz(note) * ratio, n) * index * decaying(n, half_life * 0.5)
    return np.sin(2 * np.pi * hz(note) * np.arange(n) / SAMPLE_RATE + modulator) * decaying(
        n, half_life, 0.004
    )
