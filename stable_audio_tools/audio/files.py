"""Audio files in and out: what they hold, any span of them, and saving.

libsndfile reads the formats in which its seeks are exact, FFmpeg (``packets.py``) MP3, AAC, Vorbis and the
rest: of 480 random seeks in Vorbis files, libsndfile 1.2.2 answered 17 with samples from somewhere else. Only
Vorbis of a single Ogg page goes to libsndfile, which reads it from the start: FFmpeg loses samples there.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import torch
from torch import Tensor

from stable_audio_tools.audio import packets, scans
from stable_audio_tools.audio.mp3 import FrameIndex
from stable_audio_tools.audio.transforms import resample, resampled_length, set_channels
from stable_audio_tools.errors import AudioError
from stable_audio_tools.runtime.files import atomic_path

AUDIO_SUFFIXES = frozenset(
    {".aac", ".aif", ".aifc", ".aiff", ".au", ".caf", ".flac"}
    | {".m4a", ".mp3", ".mp4", ".oga", ".ogg", ".opus", ".w64", ".wav"}
)
"""File name endings, in lower case, of the formats that can be read."""

_PACKET_SUFFIXES = frozenset({".mp3", ".m4a", ".mp4", ".aac"})
_SNDFILE_FORMATS = {"WAVEX": "wav", "RF64": "wav"}
# Context on either side of a resampled span: longer than the filter of soxr HQ at any rate above 8 kHz.
_CONTEXT_SECONDS = 0.05
_BLOCK = 65536


@dataclass(frozen=True)
class AudioInfo:
    """What an audio file holds, without decoding it. ``num_frames`` counts samples per channel."""

    path: Path
    sample_rate: int
    channels: int
    num_frames: int
    format: str
    decoder: Literal["libsndfile", "ffmpeg"]
    frame_index: FrameIndex | None = field(default=None, repr=False, compare=False)
    """Where the frames of an MP3 are."""
    data: bytes | None = field(default=None, repr=False, compare=False)
    """The content, where it is in memory and ``path`` only names it."""

    @property
    def duration_seconds(self) -> float:
        return self.num_frames / self.sample_rate


def probe(path: str | Path, data: bytes | None = None) -> AudioInfo:
    """What the file holds. Answers are remembered until the file's size or time of change differs.

    With ``data``, the content of a file that ``path`` only names, nothing is read or remembered.

    An Ogg stream says nowhere how long it is meant to be, so one that was cut off is a shorter one.

    Raises:
        AudioError: the file is missing, empty, not audio, or shorter than its header says.
    """
    path = Path(path)
    if data is not None:
        if not data:
            raise AudioError(f"{path}: the file is empty")
        return replace(_examine(path, data), data=data)
    try:
        status = path.stat()
    except OSError as error:
        raise AudioError(f"{path}: {error.strerror or error}") from error
    if path.is_dir():
        raise AudioError(f"{path}: is a folder, expected an audio file")
    if status.st_size == 0:
        raise AudioError(f"{path}: the file is empty")
    return _probe(path, status.st_size, status.st_mtime_ns)


def read_audio(
    path: str | Path | AudioInfo,
    *,
    offset_seconds: float = 0.0,
    duration_seconds: float | None = None,
    sample_rate: int | None = None,
    channels: int | None = None,
) -> tuple[Tensor, int]:
    """Decode a span of a file; returns float32 audio ``(C, T)`` and its sample rate.

    Only the span is decoded. A resampled span is the same as that span of the whole file resampled, and has
    exactly ``round(duration_seconds * sample_rate)`` samples where the file is long enough, fewer at its end.

    Args:
        path: the file, or what :func:`probe` said of it.
        offset_seconds: where the span starts.
        duration_seconds: its length; None reads to the end.
        sample_rate: rate of the result in Hz; None keeps the file's.
        channels: channels of the result, see :func:`~stable_audio_tools.audio.transforms.set_channels`.

    Raises:
        AudioError: the file cannot be read, is truncated, or the span is negative.
    """
    info = path if isinstance(path, AudioInfo) else probe(path)
    rate = sample_rate or info.sample_rate
    if offset_seconds < 0 or (duration_seconds is not None and duration_seconds < 0):
        raise AudioError(
            f"{info.path}: the span from {offset_seconds} s for {duration_seconds} s is negative"
        )
    start = round(offset_seconds * rate)
    available = max(0, resampled_length(info.num_frames, info.sample_rate, rate) - start)
    if available == 0:
        return torch.zeros(channels or info.channels, 0), rate
    length = available if duration_seconds is None else min(round(duration_seconds * rate), available)
    if rate == info.sample_rate:
        audio = torch.from_numpy(_decode(info, start, length))
    else:
        audio = _decode_resampled(info, start, length, rate)
    if audio.shape[-1] < length:
        found = (start + audio.shape[-1]) / rate
        raise AudioError(_truncated(info.path, found, info.duration_seconds))
    return (audio if channels is None else set_channels(audio, channels)), rate


def read_tags(path: str | Path | AudioInfo) -> dict[str, str]:
    """The file's text tags, keys in lower case (``title``, ``comment``, ...); empty where it has none.

    FFmpeg reads them all: libsndfile leaves out those of 2 kB and more in a WAV, as of a long prompt.
    """
    info = path if isinstance(path, AudioInfo) else probe(path)
    return packets.read_tags(info.path, info.data)


def save_audio(
    path: str | Path, audio: Tensor, sample_rate: int, *, tags: Mapping[str, str] | None = None
) -> Path:
    """Write ``audio`` ``(C, T)`` as 16-bit WAV or FLAC or as Ogg Vorbis, by the suffix.

    ``audio`` is floats in [-1, 1], clipped where they are outside, or int16, which is written as it is. The
    file is whole or absent. ``tags`` may hold ``title``, ``comment``, ``artist``, ``album``, ``date``,
    ``genre`` and ``software``.

    Raises:
        AudioError: unknown suffix, wrong shape, or values that are not finite.
    """
    path = Path(path)
    formats = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}
    if path.suffix.lower() not in formats:
        raise AudioError(
            f"{path}: cannot save as {path.suffix or 'a file without suffix'}; expected {', '.join(formats)}"
        )
    if audio.ndim != 2 or not (audio.is_floating_point() or audio.dtype == torch.int16):
        raise AudioError(
            f"{path}: audio is {audio.dtype} {tuple(audio.shape)}, expected floats or int16 (C, T)"
        )
    samples = audio.detach().cpu()
    if samples.is_floating_point():
        if not bool(torch.isfinite(samples).all()):
            raise AudioError(f"{path}: audio to save holds NaN or infinite values; nothing was written")
        samples = samples.float().clamp(-1.0, 1.0)
    frames = samples.T.contiguous().numpy()
    container, subtype = formats[path.suffix.lower()]
    try:
        with (
            atomic_path(path) as temporary,
            soundfile.SoundFile(
                _name(temporary), "w", sample_rate, frames.shape[1], subtype, format=container
            ) as file,
        ):
            for key, value in (tags or {}).items():
                if value:  # libsndfile refuses an empty one
                    setattr(file, key, value)
            for begin in range(0, len(frames), _BLOCK):  # libvorbis overflows its stack on long writes
                file.write(frames[begin : begin + _BLOCK])
    except (OSError, soundfile.LibsndfileError, AttributeError, UnicodeEncodeError) as error:
        raise AudioError(f"{path}: cannot be written: {error}") from error
    return path


def _name(path: Path) -> str | bytes:
    """``path`` as libsndfile takes it: by its bytes, since soundfile refuses names that are not UTF-8."""
    return str(path) if os.name == "nt" else os.fsencode(path)


def _source(path: Path, data: bytes | None) -> str | bytes | io.BytesIO:
    return _name(path) if data is None else io.BytesIO(data)


@lru_cache(maxsize=1 << 16)
def _probe(path: Path, size: int, changed: int) -> AudioInfo:
    return _examine(path, None, (size, changed))


def _examine(path: Path, data: bytes | None, stamp: tuple[int, int] | None = None) -> AudioInfo:
    if path.suffix.lower() not in _PACKET_SUFFIXES:
        info = _probe_sndfile(path, data)
        if info is not None:
            return info
    found = scans.kept_scan(path, *stamp) if stamp is not None else None
    if found is None:
        found = packets.scan(path, data)
        if stamp is not None:
            scans.keep_scan(path, *stamp, found)
    if found.truncated and found.promised_frames is not None:
        seconds = (found.num_frames / found.sample_rate, found.promised_frames / found.sample_rate)
        raise AudioError(_truncated(path, *seconds))
    if found.num_frames <= 0:
        raise AudioError(f"{path}: holds no audio")
    decoder: Literal["libsndfile", "ffmpeg"] = "libsndfile" if found.one_page else "ffmpeg"
    return AudioInfo(
        path, found.sample_rate, found.channels, found.num_frames, found.format, decoder, found.index
    )


def _probe_sndfile(path: Path, data: bytes | None) -> AudioInfo | None:
    """What libsndfile finds, or None where it cannot open the file or it is one for FFmpeg."""
    try:
        with soundfile.SoundFile(_source(path, data)) as file:
            if file.format == "MP3" or file.subtype == "VORBIS":
                return None
            format_name = (
                "opus" if file.subtype == "OPUS" else _SNDFILE_FORMATS.get(file.format, file.format.lower())
            )
            info = AudioInfo(path, file.samplerate, file.channels, file.frames, format_name, "libsndfile")
            promised = _promised_share(file.extra_info) * info.num_frames
            if promised > info.num_frames + 0.01 * info.sample_rate:
                raise AudioError(_truncated(path, info.duration_seconds, promised / info.sample_rate))
            if info.num_frames <= 0:
                raise AudioError(f"{path}: holds no audio")
            if not _last_frame_is_there(file):
                readable = _readable_frames(path, data) / file.samplerate
                raise AudioError(_truncated(path, readable, info.duration_seconds))
            return info
    except soundfile.LibsndfileError:
        return None


def _last_frame_is_there(file: soundfile.SoundFile) -> bool:
    """FLAC holds its length in the header only; a cut shows when the end is looked for."""
    try:
        file.seek(file.frames - 1)
        return len(file.read(1)) == 1
    except soundfile.LibsndfileError:
        return False


def _readable_frames(path: Path, data: bytes | None) -> int:
    count = 0
    with soundfile.SoundFile(_source(path, data)) as file:
        try:
            while block := len(file.read(4096)):
                count += block
        except soundfile.LibsndfileError:
            return count
    return count


def _promised_share(libsndfile_log: str) -> float:
    """How many times the bytes that are there a WAV or AIFF header promises; 1 where it says nothing."""
    match = re.search(r"^\s*(?:data|SSND)\s*: (\d+) \(should be (\d+)\)", libsndfile_log, re.MULTILINE)
    if match is None:
        return 1.0
    promised, found = int(match[1]), int(match[2])
    # A writer that cannot seek back leaves 0xFFFFFFFF or 0x7FFFFFFF and the like: no promise at all.
    return promised / found if found > 0 and promised < 0x7FFFF000 else 1.0


def _truncated(path: Path, found_seconds: float, promised_seconds: float) -> str:
    return (
        f"{path}: truncated: its header promises {promised_seconds:.2f} s, but only {found_seconds:.2f} s"
        " are there; fetch the file again or remove it"
    )


def _decode(info: AudioInfo, start: int, length: int) -> np.ndarray:
    """``length`` samples from ``start`` at the file's own rate, float32 ``(C, T)``."""
    if length <= 0:
        return np.zeros((info.channels, 0), dtype=np.float32)
    if info.decoder == "ffmpeg":
        return packets.decode(info.path, start, length, index=info.frame_index, data=info.data)
    try:
        with soundfile.SoundFile(_source(info.path, info.data)) as file:
            before = start if info.format == "ogg" else 0  # one page of Vorbis: read from its start
            file.seek(start - before)
            samples = file.read(before + length, dtype="float32", always_2d=True)
            return np.ascontiguousarray(samples[before:].T)
    except soundfile.LibsndfileError as error:
        raise AudioError(
            f"{info.path}: cannot be decoded near {start / info.sample_rate:.2f} s: {error}"
        ) from error


def _decode_resampled(info: AudioInfo, start: int, length: int, rate: int) -> Tensor:
    """The span ``start``, ``length`` in samples of ``rate``.

    Decoding starts where a sample of either rate falls on the same instant, so that the resampler sees the
    phase it would see from the start of the file.
    """
    divisor = math.gcd(info.sample_rate, rate)
    source_step, result_step = info.sample_rate // divisor, rate // divisor
    context = math.ceil(_CONTEXT_SECONDS * divisor)
    first_step = max(0, start // result_step - context)
    lead = start - first_step * result_step
    last_source = math.ceil((start + length) * info.sample_rate / rate + _CONTEXT_SECONDS * info.sample_rate)
    source_start = first_step * source_step
    source_length = min(last_source, info.num_frames) - source_start
    audio = torch.from_numpy(_decode(info, source_start, source_length))
    return resample(audio, info.sample_rate, rate)[..., lead : lead + length]
