"""MP3, AAC, Vorbis and other packet streams through FFmpeg, exact to the sample.

Seeking in such files by time is a guess: an MP3 without an index holds no positions at all. So an MP3 is
indexed frame by frame (``mp3.py``), an MP4 holds a table of its packets, and in whatever else the packets are
walked from the first one, which costs about 3 microseconds each (28 ms for four minutes). Only the packets of
the wanted span are decoded. One thing is not exact: AAC may replace a noisy band by noise that the decoder
draws (PNS), and decoding from another start draws other noise.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

from stable_audio_tools.audio.mp3 import FrameIndex, decode_frames, index_frames
from stable_audio_tools.errors import AudioError

# An MP3 frame may lean on up to 511 bytes before it (bit reservoir). At 8 kbit/s and 24 kHz stereo, where a
# frame holds 3 bytes of music, those are the 2 s before it.
_LEAD_IN_SECONDS = 2.5
# Containers in which FFmpeg finds a time without walking there: MP4 by its table of packets, Ogg by bisection
# over its pages. A seek lands on the packet at that time or before it.
_SEEKABLE = frozenset({"m4a", "ogg"})
_OGG_PAGE_BYTES = 27 + 255 + 255 * 255
# Vorbis blocks have up to 8192 samples, and a packet's time may be off by about half of one.
_TIMESTAMP_ERROR_FRAMES = 8192
# A header may be off by a codec frame or two (1152 samples at 8 kHz are 0.14 s) with nothing missing.
_TRUNCATION_TOLERANCE_SECONDS = 0.3


@dataclass(frozen=True)
class PacketStream:
    """The first audio stream of a file, as its packets say it is."""

    format: str
    sample_rate: int
    channels: int
    num_frames: int
    promised_frames: int | None
    """What the header promised, where it holds a promise and not a guess from the bit rate."""
    one_page: bool = False
    """Whether it is a Vorbis stream of a single Ogg page, of which :func:`decode` would lose some samples.

    The first packet of Vorbis only primes the decoder. In such a stream FFmpeg counts it in nevertheless, so
    that all times are late and it cuts off as much at the end.
    """
    index: FrameIndex | None = field(default=None, repr=False)
    """Of an MP3 that is regular."""

    @property
    def truncated(self) -> bool:
        """Whether packets that the header promised are missing."""
        if self.promised_frames is None:
            return False
        missing = self.promised_frames - self.num_frames
        return missing > _TRUNCATION_TOLERANCE_SECONDS * self.sample_rate


def scan(path: Path, data: bytes | None = None) -> PacketStream:
    """Count what is in the file, or in ``data`` that would be in it, without decoding it.

    Raises:
        AudioError: FFmpeg finds no audio in the file.
    """
    with _opened(path, data) as (container, stream):
        rate = int(stream.codec_context.sample_rate)
        channels = int(stream.codec_context.channels)
        ticks_per_frame = 1 / (stream.time_base * rate)
        start = stream.start_time or 0
        name = _format_name(container.format.name)
        index, first = None, None
        if name == "mp3":
            index = _frame_index(path, data, container, stream)
        if index is not None:
            counted = index.num_frames * index.frame_samples - index.skip
        elif name == "m4a" and _has_all_of_its_table(path, data, stream):
            counted = round(stream.duration / ticks_per_frame)
        elif name == "ogg" and stream.duration and _is_one_whole_ogg(path, data):
            counted = round(stream.duration / ticks_per_frame)
            first = next((packet.pts for packet in _packets(container, stream)), None)
        else:
            end, first = _walked_end(container, stream)
            counted = round((end - start) / ticks_per_frame)
        promised = None
        if stream.duration and _header_knows_length(path, data, container.format.name, stream):
            promised = round(stream.duration / ticks_per_frame)
        # The header also knows how much of the last packet is padding, which the packets do not say.
        num_frames = counted if promised is None else min(counted, promised)
        vorbis = name == "ogg" and stream.codec_context.name == "vorbis"
        one_page = vorbis and first is not None and first >= start
        return PacketStream(name, rate, channels, num_frames, promised, one_page, index)


def _frame_index(path: Path, data: bytes | None, container: Any, stream: Any) -> FrameIndex | None:
    """The index of an MP3, from the first packet that FFmpeg takes for music."""
    packet = next(_packets(container, stream), None)
    codec = stream.codec_context
    if packet is None or packet.pos is None or packet.pts != 0 or codec.format.name != "fltp":
        return None
    skip = round((stream.start_time or 0) * stream.time_base * codec.sample_rate)
    return index_frames(path, data, packet.pos, skip, codec.sample_rate, codec.channels, codec.codec.name)


def _has_all_of_its_table(path: Path, data: bytes | None, stream: Any) -> bool:
    """Whether an MP4 lists its packets, and has bytes up to the last of them."""
    entries = stream.index_entries
    if not stream.frames or len(entries) != stream.frames or not stream.duration:
        return False
    last = entries[-1]
    return last.pos + last.size <= (len(data) if data is not None else path.stat().st_size)


def _is_one_whole_ogg(path: Path, data: bytes | None) -> bool:
    """Whether an Ogg file ends with a whole page of the stream that it starts with.

    Then the position which that page states is the length of the stream (RFC 3533, 6).
    """
    with open(path, "rb") if data is None else io.BytesIO(data) as file:
        head = file.read(27)
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - _OGG_PAGE_BYTES))
        tail = file.read()
    at = tail.rfind(b"OggS")
    page = tail[at:]
    if at < 0 or len(page) < 27 or page[14:18] != head[14:18]:
        return False
    segments = page[27 : 27 + page[26]]
    return len(page) == 27 + page[26] + sum(segments)


def _walked_end(container: Any, stream: Any) -> tuple[int, int | None]:
    """The tick after the last packet, and the tick of the first one."""
    end, first = stream.start_time or 0, None
    for packet in _packets(container, stream):
        length = _duration(packet)
        end = packet.pts + length if length < 0 else max(end, packet.pts + length)
        first = packet.pts if first is None else first
    return end, first


def decode(
    path: Path,
    start_frame: int,
    num_frames: int,
    *,
    index: FrameIndex | None = None,
    data: bytes | None = None,
) -> np.ndarray:
    """``num_frames`` samples from ``start_frame`` as float32 ``(C, T)``; fewer where the stream ends.

    ``index`` is what :func:`scan` found, if anything; ``data`` is the content of the file where it is in
    memory.

    Raises:
        AudioError: the span holds a packet that cannot be decoded.
    """
    if index is not None:
        return decode_frames(path, data, index, start_frame, num_frames)
    pieces: list[np.ndarray] = []
    starts: list[int] = []
    count = 0
    with _opened(path, data) as (container, stream):
        rate = int(stream.codec_context.sample_rate)
        channels = int(stream.codec_context.channels)
        for frame in _frames_from(path, container, stream, start_frame):
            position = round((frame.pts - (stream.start_time or 0)) * stream.time_base * rate)
            starts.append(position - count)
            pieces.append(frame.to_ndarray())
            count += frame.samples
            if position > start_frame + num_frames + _TIMESTAMP_ERROR_FRAMES:
                break
    if not pieces:
        return np.zeros((channels, 0), dtype=np.float32)
    # An Ogg page may give one of its packets a wrong time, so the start is what most frames agree on.
    begin = start_frame - sorted(starts)[len(starts) // 2]
    return np.concatenate(pieces, axis=1)[:, max(begin, 0) : max(begin + num_frames, 0)]


def read_tags(path: Path, data: bytes | None = None) -> dict[str, str]:
    """The tags of the container and of its first audio stream, keys in lower case."""
    with _opened(path, data) as (container, stream):
        tags = {**container.metadata, **stream.metadata}
        return {key.lower(): value for key, value in tags.items()}


def _frames_from(path: Path, container: Any, stream: Any, start_frame: int) -> Iterator[Any]:
    """Decoded planar float frames, from a little before ``start_frame`` on."""
    rate = stream.codec_context.sample_rate
    start = stream.start_time or 0
    first_tick = start + (start_frame - _LEAD_IN_SECONDS * rate) / (stream.time_base * rate)
    start_tick = start + start_frame / (stream.time_base * rate)
    if _format_name(container.format.name) in _SEEKABLE and first_tick > start:
        container.seek(int(first_tick), stream=stream)
    to_float = _converter(stream)
    broken: float | None = None
    for packet in _packets(container, stream):
        if packet.pts + _duration(packet) < first_tick:
            continue
        try:
            decoded = stream.codec_context.decode(packet)
            frames = [converted for frame in decoded for converted in to_float(frame)]
        except (FFmpegError, ValueError) as error:
            if packet.pts >= start_tick and broken is None:
                broken = float((packet.pts - start) * stream.time_base)
                reason = str(error)
            continue
        if broken is not None and frames:  # what comes after the last good packet is a tag, not music
            raise AudioError(
                f"{path}: cannot be decoded at {broken:.2f} s: {reason}; re-encode or remove the file"
            )
        yield from frames
    try:
        yield from (out for frame in stream.codec_context.decode(None) for out in to_float(frame))
    except (FFmpegError, ValueError, EOFError):
        return


def _converter(stream: Any) -> Callable[[Any], list[Any]]:
    """Decoded frames as planar floats, which most decoders make anyway."""
    codec = stream.codec_context
    to_float = av.AudioResampler(format="fltp", layout=codec.layout, rate=codec.sample_rate)
    return lambda frame: [frame] if frame.format.name == "fltp" else to_float.resample(frame)


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    return (packet for packet in container.demux(stream) if packet.pts is not None and packet.size)


def _duration(packet: Any) -> int:
    """Ticks of a packet; below zero for the last one of an Ogg stream that is declared to end before it.

    FFmpeg hands those on as 32 bits that have wrapped: 4294967104 for -192, a stream of three days.
    """
    ticks = int(packet.duration or 0)
    return ticks - 2**32 if ticks >= 2**31 else ticks


@contextmanager
def _opened(path: Path, data: bytes | None = None) -> Iterator[tuple[Any, Any]]:
    """The container and its first audio stream; FFmpeg's errors become ours, with the file's name."""
    try:
        source = str(path) if data is None else io.BytesIO(data)
        with av.open(source, metadata_errors="replace") as container:
            if not container.streams.audio:
                raise AudioError(f"{path}: holds no audio stream")
            stream = container.streams.audio[0]
            if not (stream.time_base and stream.codec_context.sample_rate and stream.codec_context.channels):
                raise AudioError(f"{path}: not a readable audio file: its header gives no sample rate")
            yield container, stream
    except (FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise AudioError(f"{path}: not a readable audio file: {reason}") from error


def _format_name(ffmpeg_name: str) -> str:
    return "m4a" if "m4a" in ffmpeg_name.split(",") else ffmpeg_name.split(",")[0]


def _header_knows_length(path: Path, data: bytes | None, ffmpeg_name: str, stream: Any) -> bool:
    """Whether the encoder wrote the stream's duration; otherwise FFmpeg guesses it from the bit rate."""
    if _format_name(ffmpeg_name) == "m4a":
        return bool(stream.frames)
    return ffmpeg_name == "mp3" and _has_xing_header(path, data)


def _has_xing_header(path: Path, data: bytes | None) -> bool:
    """Whether the first MP3 frame is a Xing/Info header that gives the number of frames."""
    with open(path, "rb") if data is None else io.BytesIO(data) as file:
        head = file.read(10)
        if head[:3] == b"ID3":  # sizes in ID3v2 have seven bits a byte
            size = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
            file.seek(10 + size + (10 if head[5] & 0x10 else 0))
        else:
            file.seek(0)
        first_frame = file.read(4096)
    for mark in (b"Xing", b"Info"):
        where = first_frame.find(mark)
        if where >= 0 and len(first_frame) >= where + 8:
            return bool(first_frame[where + 7] & 1)
    return False
