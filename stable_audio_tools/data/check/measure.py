"""One file, decoded once from start to end, in figures."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stable_audio_tools.audio.files import AudioInfo, probe, read_audio
from stable_audio_tools.audio.loudness import LoudnessMeter, hop_length
from stable_audio_tools.data.check.meters import Clipping, Levels, Silence
from stable_audio_tools.data.sources import Source, sha256_of
from stable_audio_tools.errors import DataError

VERSION = 1
"""Of what is measured; figures of another version are measured again."""

# Samples of all channels decoded at once: 32 MB, about 95 s of stereo. What is on the way doubles it twice.
_BLOCK_SAMPLES = 1 << 23


@dataclass(frozen=True)
class Measurement:
    """What a recording holds. Levels are in dB relative to full scale, None for digital silence.

    ``rms_dbfs`` is of the loudest channel and, as ``mono_mix_dbfs``, without its offset;
    ``dc_offset`` the largest mean of a channel, with its sign; ``silent_channels`` counts those below -80
    dBFS; ``correlation`` is of the front pair, see :class:`~stable_audio_tools.data.check.meters.Levels`;
    ``silence_seconds`` are below -60 dBFS in spans of 100 ms; ``audio_sha256`` is over rate, channels and
    interleaved float32 samples: equal for a WAV and its FLAC, and for two MP3s that differ in their tags.
    """

    format: str
    sample_rate: int
    channels: int
    seconds: float
    peak_dbfs: float | None
    rms_dbfs: float | None
    mono_mix_dbfs: float | None
    loudness_lufs: float | None
    dc_offset: float
    correlation: float | None
    dual_mono: bool
    silent_channels: int
    silence_seconds: float
    leading_silence_seconds: float
    trailing_silence_seconds: float
    longest_silence_seconds: float
    longest_silence_start_seconds: float
    clipped_runs: int
    clipped_samples: int
    first_clip_seconds: float | None
    not_finite_samples: int
    audio_sha256: str


@dataclass(frozen=True)
class FileFacts:
    """A file and what was found in it: ``measured``, or ``error``, in one line. Never both.

    ``path`` is the place of its source; of a member of a shard ``changed_ns`` is a number made of the shard's
    version.
    """

    path: str
    size_bytes: int
    changed_ns: int
    sha256: str | None
    measured: Measurement | None
    error: str | None = None

    def record(self) -> dict[str, Any]:
        """As JSON, with the version of what was measured."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> FileFacts | None:
        """What :meth:`record` made; None if it is of another version or not whole."""
        if record.get("version") != VERSION:
            return None
        try:
            values = {key: value for key, value in record.items() if key in cls.__dataclass_fields__}
            measured = values.get("measured")
            values["measured"] = None if measured is None else Measurement(**measured)
            return cls(**values)
        except TypeError:
            return None


def check_file(source: Source) -> FileFacts:
    """The facts of one file; whatever is wrong with it becomes ``error``, so that the next one is reached.

    Raises:
        DataError: the shard that holds it cannot be read, which says nothing of the recording.
    """
    path, place = source.path, source.place
    size = changed = 0
    digest = None
    content = source.content()
    try:
        size, changed = source.stamp()
        info = probe(path, content)
        digest = sha256_of(info)
        measured = measure(info)
    except FileNotFoundError:
        return FileFacts(place, size, changed, digest, None, _not_there(path))
    except (DataError, OSError, ValueError, RuntimeError, MemoryError, OverflowError) as error:
        # whatever a decoder makes of a broken file, the others are still to be read
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        line = " ".join((reason or type(error).__name__).split())
        return FileFacts(place, size, changed, digest, None, without_path(line, path))
    return FileFacts(place, size, changed, digest, measured)


def measure(info: AudioInfo) -> Measurement:
    """Decode the file in pieces and measure it.

    Raises:
        AudioError: the file cannot be decoded to its end.
    """
    rate, channels = info.sample_rate, info.channels
    hop = hop_length(rate)
    piece = max(1, _BLOCK_SAMPLES // (channels * hop)) * hop
    levels, silence, clipping = Levels(channels), Silence(hop), Clipping()
    loudness = LoudnessMeter(rate, channels)
    digest = hashlib.sha256(f"{rate} {channels} ".encode())
    not_finite = 0
    for start in range(0, info.num_frames, piece):
        span, _ = read_audio(info, offset_seconds=start / rate, duration_seconds=piece / rate)
        audio = span.numpy()
        digest.update(np.ascontiguousarray(audio.T).data)
        finite = np.isfinite(audio)
        if not finite.all():
            not_finite += int(audio.size - np.count_nonzero(finite))
            audio = np.where(finite, audio, np.float32(0.0))
        for meter in (levels, silence, clipping, loudness):
            meter.feed(audio)
    clipping.finish()
    silent, leading, trailing, longest, longest_start = (frames / rate for frames in silence.spans())
    lufs = loudness.integrated()
    return Measurement(
        format=info.format,
        sample_rate=rate,
        channels=channels,
        seconds=round(info.duration_seconds, 4),
        peak_dbfs=_decibels(levels.peak),
        rms_dbfs=_decibels(float(levels.rms.max())),
        mono_mix_dbfs=_decibels(levels.mono_mix_rms),
        loudness_lufs=None if lufs is None else round(lufs, 2),
        dc_offset=round(float(levels.offsets[np.abs(levels.offsets).argmax()]), 6),
        correlation=None if levels.correlation is None else round(levels.correlation, 4),
        dual_mono=levels.front_pair_is_one_channel,
        silent_channels=int((levels.rms < 1e-4).sum()),
        silence_seconds=round(silent, 3),
        leading_silence_seconds=round(leading, 3),
        trailing_silence_seconds=round(trailing, 3),
        longest_silence_seconds=round(longest, 3),
        longest_silence_start_seconds=round(longest_start, 3),
        clipped_runs=clipping.runs,
        clipped_samples=clipping.samples,
        first_clip_seconds=None if clipping.first_frame is None else round(clipping.first_frame / rate, 3),
        not_finite_samples=not_finite,
        audio_sha256=digest.hexdigest(),
    )


def _decibels(amplitude: float) -> float | None:
    return round(20 * math.log10(amplitude), 2) if amplitude > 0 else None


def _not_there(path: Path) -> str:
    if path.is_symlink():
        return f"a symbolic link to {os.readlink(path)}, which does not exist"
    return "no such file"


def without_path(message: str, path: Path) -> str:
    """Without the file's own name, which every table here shows beside the message."""
    return message.removeprefix(f"{' '.join(str(path).split())}: ")
