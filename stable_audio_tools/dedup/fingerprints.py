"""What is remembered of a track: its histogram of DAC codes, its onsets in order, whether it sounds at all.

DAC is the codec of R. Kumar et al., "High-Fidelity Audio Compression with Improved RVQGAN" (NeurIPS 2023):
residual vector quantisation, so codebook 1 holds the coarse sound and each further one what the ones before
left over.
"""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stable_audio_tools.audio.files import probe, read_audio
from stable_audio_tools.audio.transforms import rms_normalize
from stable_audio_tools.dedup.verify import onset_features
from stable_audio_tools.errors import AudioError, UsageError
from stable_audio_tools.runtime.device import resolve_device
from stable_audio_tools.runtime.files import atomic_path, hash_json
from stable_audio_tools.runtime.libraries import load_pretrained

HISTOGRAM_MODES = ("per-codebook", "global")
_INAUDIBLE_RMS = 1e-4  # -80 dBFS


@dataclass(frozen=True)
class FingerprintSettings:
    """How tracks are turned into codes.

    ``max_audio_seconds`` is counted from the start of a file, ``None`` takes all of it; ``chunk_seconds`` and
    ``batch_size`` bound the memory of the model, and a chunk's edges change a handful of its codes.
    """

    max_audio_seconds: float | None = 120.0
    chunk_seconds: float = 10.0
    batch_size: int = 4

    def __post_init__(self) -> None:
        if self.max_audio_seconds is not None and not self.max_audio_seconds > 0:
            raise UsageError(
                f"max audio seconds is {self.max_audio_seconds}: expected a number above 0, or nothing"
            )
        if not self.chunk_seconds > 0 or self.batch_size < 1:
            raise UsageError(
                f"chunks of {self.chunk_seconds} s in batches of {self.batch_size}: expected numbers above 0"
            )


@dataclass(frozen=True)
class Recording:
    """A decoded track: mono ``(T,)`` at the codec's rate, its whole length, and why it is inaudible."""

    audio: torch.Tensor
    duration_seconds: float
    flaw: str | None


@dataclass(frozen=True)
class Fingerprint:
    """``counts`` of each code, ``(codebooks, codebook size)`` int32; ``onsets`` ``(frames, bands)`` int8.

    ``flaw`` is ``silent``, ``constant`` or ``anti-phase`` where there is nothing to compare in the mono mix.
    """

    counts: NDArray[np.int32]
    onsets: NDArray[np.int8]
    duration_seconds: float
    flaw: str | None


def load_recording(path: str | Path, sample_rate: int, max_seconds: float | None) -> Recording:
    """Decode the first ``max_seconds`` of a file (``None``: all of it) and mix it to mono.

    Raises:
        AudioError: the file cannot be decoded, or holds no audio or values that are not finite.
    """
    duration = probe(path).duration_seconds
    channels, _ = read_audio(path, duration_seconds=max_seconds, sample_rate=sample_rate)
    if channels.shape[-1] == 0:
        raise AudioError(
            f"{path}: decodes to no audio at all; replace the file or take it out of the dataset"
        )
    if not torch.isfinite(channels).all():
        raise AudioError(f"{path}: has samples that are not finite numbers; encode the file again")
    mono = channels.mean(0)
    return Recording(mono, duration, _flaw(channels, mono))


def _flaw(channels: torch.Tensor, mono: torch.Tensor) -> str | None:
    """Why the mono mix holds nothing to compare, or None."""
    if (mono - mono.mean()).square().mean().sqrt() > _INAUDIBLE_RMS:
        return None
    if (channels - channels.mean(-1, keepdim=True)).square().mean().sqrt() > _INAUDIBLE_RMS:
        return "anti-phase"
    return "constant" if channels.abs().max() > _INAUDIBLE_RMS else "silent"


class DacFingerprinter:
    """Codes audio with a DAC of the Hugging Face format.

    Args:
        model_path: a folder, or a name on the hub such as ``descript/dac_44khz``.
        device: where the codec runs; ``None`` is the best there is.

    Attributes:
        sample_rate: what :meth:`fingerprint` expects, in Hz.
        stamp: a hash of the codec's weights and of all settings; equal stamps make equal fingerprints.

    Raises:
        CheckpointError: there is no DAC at ``model_path``.
    """

    def __init__(
        self,
        model_path: str | Path = "descript/dac_44khz",
        *,
        device: str | torch.device | None = None,
        settings: FingerprintSettings | None = None,
    ) -> None:
        self.device = resolve_device(device)
        self.settings = settings or FingerprintSettings()
        self._model = _load_dac(str(model_path)).eval().requires_grad_(False)
        config = self._model.config
        self.sample_rate = int(config.sampling_rate)
        self._hop = math.prod(config.downsampling_ratios)
        self._codebooks, self._codebook_size = int(config.n_codebooks), int(config.codebook_size)
        self.weights_sha256 = _weights_sha256(self._model)
        stamped = {name: value for name, value in asdict(self.settings).items() if name != "batch_size"}
        self.stamp = hash_json({"format": 2, "weights": self.weights_sha256, **stamped})
        self._model.to(self.device)

    @torch.inference_mode()
    def count_codes(self, audio: torch.Tensor) -> NDArray[np.int32]:
        """How often each code occurs in mono ``audio`` ``(T,)``: ``(codebooks, codebook size)``.

        The last chunk is padded with zeros for the model; the codes of the padding are not counted.
        """
        chunk = max(1, round(self.settings.chunk_seconds * self.sample_rate / self._hop)) * self._hop
        chunks = torch.nn.functional.pad(audio, (0, -len(audio) % chunk)).view(-1, 1, chunk)
        codes = [
            self._model.encode(batch.to(self.device)).audio_codes.permute(1, 0, 2).flatten(1).cpu()
            for batch in chunks.split(self.settings.batch_size)
        ]
        heard = torch.cat(codes, dim=1)[:, : math.ceil(len(audio) / self._hop)]
        counts = torch.stack([torch.bincount(book, minlength=self._codebook_size) for book in heard])
        return counts.to(torch.int32).numpy()

    def fingerprint(self, recording: Recording) -> Fingerprint:
        """The fingerprint of a track; a flawed one has no codes, which would only describe the codec."""
        if recording.flaw:
            counts = np.zeros((self._codebooks, self._codebook_size), dtype=np.int32)
        else:
            # a codec hears loudness too, and a softer copy is still a copy
            counts = self.count_codes(rms_normalize(recording.audio[None])[0])
        onsets = onset_features(recording.audio, self.sample_rate)
        return Fingerprint(counts, onsets, recording.duration_seconds, recording.flaw)


def _load_dac(model_path: str) -> Any:
    from transformers import DacModel

    advice = "--model-path a folder with config.json and model.safetensors, or a name on the hub"
    return load_pretrained(model_path, "DAC", DacModel, advice=advice)[0]


def _weights_sha256(model: torch.nn.Module) -> str:
    """A hash of the weights that make codes; the decoder does not."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(("encoder.", "quantizer.")):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def histogram(counts: NDArray[np.int32], mode: str = "per-codebook") -> NDArray[np.float32]:
    """Counts of codes as one vector of length 1, so that a dot product of two is their cosine.

    ``per-codebook`` gives every codebook its own histogram of length 1 and joins them, ``(codebooks *
    size,)``: the cosine is then the mean of the codebooks' cosines. ``global`` adds the codebooks up into one
    histogram of ``(size,)``: smaller by the number of codebooks, and coarser, since entry 7 of two codebooks
    is not one sound. No counts at all give zeros, which resemble nothing.

    Raises:
        UsageError: an unknown mode.
    """
    if mode not in HISTOGRAM_MODES:
        raise UsageError(f"unknown histogram mode {mode!r}: expected one of {', '.join(HISTOGRAM_MODES)}")
    books = counts.astype(np.float64)
    if mode == "global":
        books = books.sum(0, keepdims=True)
    lengths = np.linalg.norm(books, axis=1, keepdims=True)
    joined = (books / np.where(lengths == 0, 1.0, lengths) / math.sqrt(len(books))).ravel()
    return joined.astype(np.float32)


def save_fingerprint(path: Path, fingerprint: Fingerprint, stamp: str) -> None:
    """Write one fingerprint as ``.npz``; the file is whole or absent."""
    facts = {"stamp": stamp, "duration_seconds": fingerprint.duration_seconds, "flaw": fingerprint.flaw}
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(
            stream, counts=fingerprint.counts, onsets=fingerprint.onsets, facts=np.array(json.dumps(facts))
        )


def load_fingerprint(path: Path, stamp: str) -> Fingerprint | None:
    """The fingerprint stored at ``path``, or None where there is none of these settings and weights."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            facts: dict[str, Any] = json.loads(str(stored["facts"]))
            if facts["stamp"] != stamp:
                return None
            return Fingerprint(stored["counts"], stored["onsets"], facts["duration_seconds"], facts["flaw"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None  # absent or damaged, it is only a cache miss: it is made again and replaced
