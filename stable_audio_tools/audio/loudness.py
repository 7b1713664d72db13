"""How loud a recording is, after Recommendation ITU-R BS.1770-5: integrated loudness in LUFS.

Audio goes through a filter that hears as a head does (K-weighting), its power is taken over blocks of 400 ms
that overlap by 300 ms, and the mean is over those blocks that are louder than -70 LUFS and not more than
10 LU below the mean of these: pauses do not count.

The two filters are given for 48 kHz; for other rates they are derived from the analogue parameters behind
those numbers (B. De Man, "Evaluation of implementations of the EBU R128 loudness measurement", AES 2018).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

HOPS_PER_SECOND = 10
"""Power is kept for each 100 ms; a block is four of them."""

_HOPS_PER_BLOCK = 4
_ABSOLUTE_GATE_LUFS = -70.0
_RELATIVE_GATE_LU = -10.0
_OFFSET_LU = -0.691
# The response falls by e^36 in this time: what comes after is below the rounding of a float64.
_RESPONSE_SECONDS = 0.15
# Weights by number of channels, in the order of WAV files; a subwoofer does not count, sides and surrounds
# count 1.5 dB more. Any other number of channels is counted plainly.
_SURROUND = 1.41
_WEIGHTS = {
    5: (1.0, 1.0, 1.0, _SURROUND, _SURROUND),
    6: (1.0, 1.0, 1.0, 0.0, _SURROUND, _SURROUND),
    8: (1.0, 1.0, 1.0, 0.0, 1.0, 1.0, _SURROUND, _SURROUND),
}


class LoudnessMeter:
    """Measures a stream: any number of :meth:`feed`, then :meth:`integrated`.

    Args:
        sample_rate: in Hz.
        channels: of the stream, in the order of WAV files.
    """

    def __init__(self, sample_rate: int, channels: int) -> None:
        self._hop = hop_length(sample_rate)
        self._response = _k_weighting_response(sample_rate)
        self._weights = np.array(_WEIGHTS.get(channels, (1.0,) * channels))
        self._history = np.zeros((channels, len(self._response) - 1), np.float32)
        self._rest = np.zeros((channels, 0), np.float32)
        self._powers: list[NDArray[np.float64]] = []

    def feed(self, audio: NDArray[np.float32]) -> None:
        """Take the next samples, ``(C, T)``, finite."""
        from scipy.signal import oaconvolve

        if audio.shape[-1] == 0:
            return
        context = np.concatenate([self._history, audio], axis=1)
        weighted = oaconvolve(context, self._response[None], mode="valid", axes=1)
        self._history = context[:, context.shape[1] - self._history.shape[1] :]
        stream = np.concatenate([self._rest, weighted], axis=1)
        whole = stream.shape[1] // self._hop * self._hop
        hops = stream[:, :whole].reshape(len(stream), -1, self._hop)
        power = np.einsum("cht,cht->ch", hops, hops, dtype=np.float64) / self._hop
        self._powers.append(self._weights @ power)
        self._rest = stream[:, whole:]

    def integrated(self) -> float | None:
        """Loudness in LUFS; None where nothing is louder than -70 LUFS, or all is shorter than 400 ms."""
        hops = np.concatenate(self._powers) if self._powers else np.zeros(0)
        if len(hops) < _HOPS_PER_BLOCK:
            return None
        blocks = np.convolve(hops, np.full(_HOPS_PER_BLOCK, 1 / _HOPS_PER_BLOCK), mode="valid")
        heard = blocks[blocks > _power(_ABSOLUTE_GATE_LUFS)]
        if len(heard) == 0:
            return None
        gate = _power(_lufs(float(heard.mean())) + _RELATIVE_GATE_LU)
        return _lufs(float(heard[heard > gate].mean()))


def hop_length(sample_rate: int) -> int:
    """Samples in 100 ms."""
    return max(1, round(sample_rate / HOPS_PER_SECOND))


def _lufs(power: float) -> float:
    return _OFFSET_LU + 10.0 * math.log10(power)


def _power(lufs: float) -> float:
    return 10.0 ** ((lufs - _OFFSET_LU) / 10.0)


@lru_cache(maxsize=8)
def _k_weighting_response(sample_rate: int) -> NDArray[np.float32]:
    """The impulse response of both filters; convolved by FFT it costs a quarter of the recursion."""
    from scipy.signal import sosfilt

    impulse = np.zeros(max(2, round(_RESPONSE_SECONDS * sample_rate)))
    impulse[0] = 1.0
    return sosfilt(k_weighting(sample_rate), impulse).astype(np.float32)


def k_weighting(sample_rate: int) -> NDArray[np.float64]:
    """The K-weighting filter as second-order sections ``(2, 6)``: a high shelf, then a high pass."""
    # the shelf: +4 dB above 1682 Hz
    k = math.tan(math.pi * min(1681.974450955533, 0.45 * sample_rate) / sample_rate)
    q, high = 0.7071752369554196, 10 ** (3.999843853973347 / 20)
    band = high**0.4996667741545416
    a0 = 1 + k / q + k * k
    shelf = [
        (high + band * k / q + k * k) / a0,
        2 * (k * k - high) / a0,
        (high - band * k / q + k * k) / a0,
        1.0,
        2 * (k * k - 1) / a0,
        (1 - k / q + k * k) / a0,
    ]
    # the high pass at 38 Hz
    k = math.tan(math.pi * 38.13547087602444 / sample_rate)
    q = 0.5003270373238773
    a0 = 1 + k / q + k * k
    high_pass = [1.0, -2.0, 1.0, 1.0, 2 * (k * k - 1) / a0, (1 - k / q + k * k) / a0]
    return np.array([shelf, high_pass])
