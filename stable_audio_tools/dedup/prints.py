"""What is remembered of a track's sound: its onsets and landmarks in order, a hash of its samples, its flaws.

A file is decoded once, from start to end, in pieces of a minute, so memory does not grow with its length.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stable_audio_tools.audio.files import AudioInfo, probe, read_audio
from stable_audio_tools.dedup.landmarks import Peaks, constellations, find_peaks
from stable_audio_tools.dedup.spectra import ANALYSIS_RATE, FRAMES_PER_SECOND, SpectrumStream
from stable_audio_tools.dedup.verify import ONSET_REACH_FRAMES, Evidence, onsets_of
from stable_audio_tools.errors import AudioError
from stable_audio_tools.runtime.files import atomic_path

PRINT_FORMAT = "print 1"
"""Changes when prints do, so that stored ones are made again."""

_PIECE_SECONDS = 60.0
_INAUDIBLE_RMS = 1e-4  # -80 dBFS
_LOSSLESS = frozenset({"wav", "flac", "aiff", "au", "caf", "w64", "alac"})


@dataclass(frozen=True)
class Facts:
    """What is known of a file beside its sound.

    ``audio_sha256`` is over its samples at 16 bits, its rate and its channels: equal for equal sound,
    whatever container or tags it comes in. ``flaw`` is ``silent``, ``constant`` or ``anti-phase`` where there
    is nothing to compare in the mono mix, else None.
    """

    duration_seconds: float
    sample_rate: int
    channels: int
    lossless: bool
    audio_sha256: str
    flaw: str | None


@dataclass(frozen=True)
class Print:
    """The order-aware fingerprint of a track; ``onsets`` are ``(frames, bands)`` int8."""

    onsets: NDArray[np.int8]
    peaks: Peaks
    facts: Facts

    @property
    def sounding_seconds(self) -> float:
        """The length without silence at the ends, to a tenth of a second."""
        changing = np.flatnonzero(self.onsets.any(axis=1))
        if not len(changing):
            return 0.0
        # A row looks ahead: the first one that changes is that far before the sound.
        first, last = int(changing[0]), int(changing[-1])
        start = first + ONSET_REACH_FRAMES if first else 0
        end = last + ONSET_REACH_FRAMES if last == len(self.onsets) - 1 else last
        return max(0, end - start) / FRAMES_PER_SECOND

    def evidence(self) -> Evidence:
        """What a comparison with another track looks at."""
        return Evidence(self.onsets, self.peaks, constellations(self.peaks))


class _Levels:
    """Running sums that tell sound from none, for the mono mix and for the channels."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.peak = 0.0
        self.sums = np.zeros(channels + 1)
        self.squares = np.zeros(channels + 1)

    def add(self, channels: torch.Tensor, mono: torch.Tensor) -> None:
        rows = torch.cat([channels, mono[None]]).double()
        self.count += rows.shape[1]
        self.peak = max(self.peak, float(channels.abs().max()))
        self.sums += rows.sum(1).numpy()
        self.squares += rows.square().sum(1).numpy()

    def flaw(self) -> str | None:
        """Why the mono mix holds nothing to compare, or None."""
        variance = np.maximum(self.squares / self.count - (self.sums / self.count) ** 2, 0.0)
        if variance[-1] > _INAUDIBLE_RMS**2:
            return None
        if variance[:-1].max() > _INAUDIBLE_RMS**2:
            return "anti-phase"
        return "constant" if self.peak > _INAUDIBLE_RMS else "silent"


def listen(file: str | Path | AudioInfo) -> Print:
    """Decode a whole file, or what :func:`~stable_audio_tools.audio.files.probe` said of it; make its print.

    Raises:
        AudioError: the file cannot be decoded, or holds no audio or values that are not finite.
    """
    import soxr

    info = file if isinstance(file, AudioInfo) else probe(file)
    path = info.path
    levels, spectrum, digest = _Levels(info.channels), SpectrumStream(), hashlib.sha256()
    digest.update(f"{info.sample_rate} {info.channels}".encode())
    resampler = soxr.ResampleStream(info.sample_rate, ANALYSIS_RATE, 1, dtype="float32", quality="HQ")
    offset = 0.0
    while True:
        piece, _ = read_audio(info, offset_seconds=offset, duration_seconds=_PIECE_SECONDS)
        offset += _PIECE_SECONDS
        last = offset >= info.duration_seconds
        if piece.shape[-1]:
            if not torch.isfinite(piece).all():
                raise AudioError(f"{path}: has samples that are not finite numbers; encode the file again")
            digest.update((piece.T * 32768).round().clamp(-32768, 32767).short().numpy().tobytes())
            mono = piece.mean(0)
            levels.add(piece, mono)
            spectrum.feed(torch.from_numpy(resampler.resample_chunk(mono.numpy(), last=last)))
        if last or not piece.shape[-1]:
            break
    if levels.count == 0:
        raise AudioError(
            f"{path}: decodes to no audio at all; replace the file or take it out of the dataset"
        )
    bands, pitches = spectrum.finish()
    return Print(onsets_of(bands), find_peaks(pitches), _facts(info, digest.hexdigest(), levels.flaw()))


def _facts(info: AudioInfo, audio_sha256: str, flaw: str | None) -> Facts:
    lossless = info.format.lower() in _LOSSLESS
    return Facts(info.duration_seconds, info.sample_rate, info.channels, lossless, audio_sha256, flaw)


def save_print(path: Path, made: Print) -> None:
    """Write one print as ``.npz``, about 20 kB a minute; the file is whole or absent."""
    facts = json.dumps({"format": PRINT_FORMAT, **asdict(made.facts)})
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(
            stream,
            onsets=made.onsets,
            frames=made.peaks.frames,
            semitones=made.peaks.semitones,
            facts=np.array(facts),
        )


def load_print(path: Path) -> Print | None:
    """The print stored at ``path``, or None where there is none of this format."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            facts: dict[str, Any] = json.loads(str(stored["facts"]))
            if facts.pop("format") != PRINT_FORMAT:
                return None
            return Print(stored["onsets"], Peaks(stored["frames"], stored["semitones"]), Facts(**facts))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None  # absent or damaged, it is only a cache miss: it is made again and replaced
