"""A stereo mixer: place mono sounds in time and space, then echo, reverb and a soft limiter."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stable_audio_tools.demo.synth import SAMPLE_RATE, Signal, highpass, lowpass, samples


class Mixer:
    """A stereo canvas of ``seconds``, with one send to a reverb. Sounds are cut at its end."""

    def __init__(self, seconds: float) -> None:
        self.length = samples(seconds)
        self.dry = np.zeros((2, self.length))
        self.wet = np.zeros((2, self.length))

    def add(self, sound: Signal, at: float, gain: float = 1.0, pan: float = 0.0, send: float = 0.1) -> None:
        """Put ``sound`` ``at`` seconds; ``pan`` from -1 (left) to 1 (right); ``send`` to the reverb."""
        start = max(0, round(at * SAMPLE_RATE))
        sound = sound[: max(0, self.length - start)] * gain
        angle = (pan + 1) * np.pi / 4
        for channel, weight in enumerate((np.cos(angle), np.sin(angle))):
            self.dry[channel, start : start + len(sound)] += weight * sound
            self.wet[channel, start : start + len(sound)] += weight * send * sound

    def merge(self, other: Mixer, envelope: Signal | float = 1.0) -> None:
        """Add another mixer's sound, scaled by an envelope over the whole length (ducking, fades)."""
        self.dry += other.dry * envelope
        self.wet += other.wet * envelope

    def echo(self, delay: float, feedback: float = 0.4, repeats: int = 4) -> None:
        """Repeats that change sides, each softer and darker than the one before."""
        source = self.dry.copy()
        for repeat in range(1, repeats + 1):
            shift = samples(delay * repeat)
            if shift >= self.length:
                return
            source = lowpass(source[::-1] * feedback, 3500.0)
            self.dry[:, shift:] += source[:, :-shift]

    def finish(
        self, rng: np.random.Generator, reverb_seconds: float = 1.2, drive: float = 0.0
    ) -> NDArray[np.float32]:
        """The mix, shape ``(2, n)``: with reverb and drive, at -16 dB RMS, peaks under 0.9, ends faded."""
        out = self.dry + _reverberate(self.wet, reverb_seconds, rng)
        out = highpass(out, 25.0)
        out /= np.abs(out).max() + 1e-9
        if drive > 0:
            out = np.tanh((1 + 3 * drive) * out)
        # every track equally loud: -16 dB RMS, what stands out is rounded off below full scale
        out *= 10 ** (-16 / 20) / (np.sqrt(np.mean(out**2)) + 1e-9)
        out = 0.9 * np.tanh(out / 0.9)
        fade = np.minimum(
            1.0,
            np.minimum(np.arange(self.length) / samples(0.01), np.arange(self.length)[::-1] / samples(0.4)),
        )
        return (out * fade).astype(np.float32)


def _reverberate(sound: NDArray[np.float64], seconds: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Convolve with fading noise, a different one in each ear (Moorer 1979)."""
    n = samples(seconds)
    tail = rng.standard_normal((2, n)) * 0.001 ** (np.arange(n) / n)
    tail = lowpass(tail, 3000.0, 1)
    tail /= np.sqrt((tail**2).sum(axis=1, keepdims=True))
    size = 1 << (sound.shape[1] + n).bit_length()
    return np.fft.irfft(np.fft.rfft(sound, size) * np.fft.rfft(tail, size), size)[:, : sound.shape[1]]
