"""Where the frames of an MP3 are, and decoding some of them.

Every frame says its own length, so a walk from header to header finds all of them without decoding: 2 ms for
four minutes, where FFmpeg's demuxer takes 28 ms. One position in 32 is kept, 1.2 kB for four minutes, from
which any span is read, walked and decoded by itself. Files in which the walk meets anything but frames and a
tag at the end have no such index, and FFmpeg's demuxer reads them (``packets.py``).

ISO/IEC 11172-3 and 13818-3, Layer III; MPEG 2.5 is its known extension to 8, 11.025 and 12 kHz.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np

from stable_audio_tools.errors import AudioError

_STEP = 32  # frames between two kept positions
_KILOBITS_1 = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KILOBITS_2 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
# The overlap of the transform and the history of the filter bank reach into the frame before.
_OVERLAP_FRAMES = 2
_TAGS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"ID3", b"3DI")


@dataclass(frozen=True)
class FrameIndex:
    """Positions of the frames of an MP3.

    ``anchors`` are the byte offsets of frames 0, 32, 64, ...; ``end`` is the first byte after the last frame.
    ``skip`` samples of the first frames come before the music (the delay of encoder and decoder).
    """

    anchors: np.ndarray = field(repr=False)
    end: int
    num_frames: int
    frame_samples: int
    skip: int
    sample_rate: int
    channels: int
    decoder: str
    header: bytes
    """The first four bytes of the first frame."""

    @property
    def lengths(self) -> dict[bytes, int]:
        """Frame length by the first three bytes of its header, for headers that may occur in this file."""
        return _lengths_like(self.header[1] & 0xFE, self.header[2] >> 2 & 3)

    @property
    def overhead(self) -> int:
        """Bytes of a frame that are never music: header, checksum, side information."""
        if self.header[1] >> 3 & 3 == 3:
            return 6 + (32 if self.channels == 2 else 17)
        return 6 + (17 if self.channels == 2 else 9)

    @property
    def reservoir(self) -> int:
        """Bytes of earlier frames that a frame may lean on: main_data_begin has 9 bits in MPEG 1, else 8."""
        return 511 if self.header[1] >> 3 & 3 == 3 else 255


def index_frames(
    path: Path, data: bytes | None, first: int, skip: int, sample_rate: int, channels: int, decoder: str
) -> FrameIndex | None:
    """The index of the MP3 whose first frame of music is at byte ``first``; None where it is irregular."""
    with _bytes_of(path, data) as content:
        header = content[first : first + 4]
        if _rate_of(header) != sample_rate:
            return None
        lengths = _lengths_like(header[1] & 0xFE, header[2] >> 2 & 3)
        positions, end = _walk(content, first, lengths)
        if end > len(content):  # the last frame is cut
            return None
        if not positions or not _is_tail(content[end : end + 4096]):
            return None
        if any((content[position + 3] >> 6 == 3) != (channels == 1) for position in positions):
            return None
    small = np.uint32 if end < 2**32 else np.uint64
    return FrameIndex(
        anchors=np.array(positions[::_STEP], small),
        end=end,
        num_frames=len(positions),
        frame_samples=1152 if header[1] >> 3 & 3 == 3 else 576,
        skip=skip,
        sample_rate=sample_rate,
        channels=channels,
        decoder=decoder,
        header=header,
    )


def decode_frames(path: Path, data: bytes | None, index: FrameIndex, start: int, length: int) -> np.ndarray:
    """``length`` samples from ``start`` as float32 ``(C, T)``; fewer where the stream ends.

    Raises:
        AudioError: the span holds a frame that cannot be decoded, or the file is not what it was.
    """
    first = min((start + index.skip) // index.frame_samples, index.num_frames)
    last = min(-(-(start + length + index.skip) // index.frame_samples), index.num_frames)
    if first >= last:
        return np.zeros((index.channels, 0), dtype=np.float32)
    packets, begin = _packets(path, data, index, first, last)
    pieces = _decode_packets(path, index, packets, begin, first)
    samples = np.concatenate(pieces, axis=1)
    lead = start + index.skip - first * index.frame_samples
    return samples[:, lead : lead + length]


def _packets(
    path: Path, data: bytes | None, index: FrameIndex, first: int, last: int
) -> tuple[list[bytes], int]:
    """The bytes of frames up to ``last``, from one that ``first`` does not depend on; and its number."""
    wanted = max(0, first - _OVERLAP_FRAMES)
    anchor = wanted // _STEP
    while anchor and not _covers(index, int(index.anchors[wanted // _STEP]), wanted // _STEP, anchor):
        anchor -= 1
    begin = int(index.anchors[anchor])
    stop = -(-last // _STEP)
    end = int(index.anchors[stop]) if stop < len(index.anchors) else index.end
    try:
        content = data[begin:end] if data is not None else _read(path, begin, end)
    except OSError as error:
        raise AudioError(f"{path}: {error.strerror or error}") from error
    positions, after = _walk(content, 0, index.lengths)
    if after != end - begin or len(positions) < last - anchor * _STEP:
        raise AudioError(f"{path}: has changed while it was in use; start again")
    positions.append(after)
    number = wanted - anchor * _STEP
    while (
        number
        and positions[wanted - anchor * _STEP]
        - positions[number]
        - index.overhead * (wanted - anchor * _STEP - number)
        < index.reservoir
    ):
        number -= 1
    bounds = positions[number : last - anchor * _STEP + 1]
    return [content[a:b] for a, b in pairwise(bounds)], anchor * _STEP + number


def _covers(index: FrameIndex, position: int, at: int, anchor: int) -> bool:
    """Whether the frames from ``anchor`` to anchor ``at`` hold as many bytes as the reservoir can."""
    frames = (at - anchor) * _STEP
    return position - int(index.anchors[anchor]) - frames * index.overhead >= index.reservoir


def _decode_packets(
    path: Path, index: FrameIndex, packets: list[bytes], begin: int, first: int
) -> list[np.ndarray]:
    import av
    from av.error import FFmpegError

    codec: Any = av.CodecContext.create(index.decoder, "r")
    pieces: list[np.ndarray] = []
    for number, packet in enumerate(packets, start=begin):
        try:
            frames = codec.decode(av.Packet(packet))
        except (FFmpegError, ValueError) as error:
            if number < first:  # what it leans on was not read, and nobody asked for it
                continue
            if number == index.num_frames - 1:  # as of a tag that looks like a frame
                break
            seconds = (number * index.frame_samples - index.skip) / index.sample_rate
            raise AudioError(
                f"{path}: cannot be decoded at {max(seconds, 0):.2f} s: {error}; re-encode or remove the file"
            ) from error
        if number >= first:
            pieces += [frame.to_ndarray() for frame in frames]
    return pieces or [np.zeros((index.channels, 0), dtype=np.float32)]


def _rate_of(header: bytes) -> int | None:
    """The sample rate that a frame's header names; None if it is not one of Layer III."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return None
    rates, which = _RATES.get(header[1] >> 3 & 3), header[2] >> 2 & 3
    return rates[which] if rates is not None and which < 3 else None


@lru_cache(maxsize=32)
def _lengths_like(second: int, rate_bits: int) -> dict[bytes, int]:
    """Frame lengths by header, for the second byte of one without its checksum bit, and a sample rate."""
    version = second >> 3 & 3
    kilobits, factor = (_KILOBITS_1, 144000) if version == 3 else (_KILOBITS_2, 72000)
    lengths = {}
    for rate, padding, private, checked in product(range(14), (0, 1), (0, 1), (0, 1)):
        third = (rate + 1) << 4 | rate_bits << 2 | padding << 1 | private
        length = factor * kilobits[rate] // _RATES[version][rate_bits] + padding
        lengths[bytes((0xFF, second | checked, third))] = length
    return lengths


def _walk(content: bytes | mmap.mmap, position: int, lengths: dict[bytes, int]) -> tuple[list[int], int]:
    """Positions of frames that follow each other without a gap, and where the last one ends."""
    positions: list[int] = []
    known = lengths.get
    while length := known(content[position : position + 3]):
        positions.append(position)
        position += length
    return positions, position


def _is_tail(rest: bytes) -> bool:
    """Whether what follows the last frame is nothing, a tag, or zeros."""
    return not rest.strip(b"\0") or rest.startswith(_TAGS)


def _read(path: Path, begin: int, end: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(begin)
        return file.read(end - begin)


@contextmanager
def _bytes_of(path: Path, data: bytes | None) -> Iterator[bytes | mmap.mmap]:
    if data is not None:
        yield data
        return
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content
