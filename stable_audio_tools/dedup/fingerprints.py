"""How often a track says each code of a DAC: a fingerprint that sees sound, and no order.

DAC is the codec of R. Kumar et al., "High-Fidelity Audio Compression with Improved RVQGAN" (NeurIPS 2023):
residual vector quantisation, so codebook 1 holds the coarse sound and each further one what the ones before
left over.
"""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stable_audio_tools.audio.files import AudioInfo, read_audio
from stable_audio_tools.audio.transforms import rms_normalize
from stable_audio_tools.dedup.settings import HISTOGRAM_MODES
from stable_audio_tools.errors import UsageError
from stable_audio_tools.runtime.device import resolve_device
from stable_audio_tools.runtime.files import atomic_path, hash_json
from stable_audio_tools.runtime.libraries import load_pretrained

CODES_FORMAT = 3


def read_for_codes(path: str | Path | AudioInfo, sample_rate: int, max_seconds: float | None) -> torch.Tensor:
    """The first ``max_seconds`` of a file (None: all of it), mono ``(T,)``, as loud as all others.

    A codec hears loudness too, and a softer copy is still a copy.

    Raises:
        AudioError: the file cannot be decoded.
    """
    channels, _ = read_audio(path, duration_seconds=max_seconds, sample_rate=sample_rate)
    return rms_normalize(channels.mean(0, keepdim=True))[0]


class DacFingerprinter:
    """Codes audio with a DAC of the Hugging Face format.

    Args:
        model_path: a folder, or a name on the hub such as ``descript/dac_44khz``.
        device: where the codec runs; ``None`` is the best there is.
        max_audio_seconds: how much of a file is heard, from its start; ``None`` takes all of it.
        chunk_seconds, batch_size: they bound the memory of the model.

    Attributes:
        sample_rate: of what :meth:`count_codes` expects, in Hz.
        stamp: a hash of the codec's weights and of all settings; equal stamps make equal fingerprints.

    Raises:
        CheckpointError: there is no DAC at ``model_path``.
    """

    def __init__(
        self,
        model_path: str | Path = "descript/dac_44khz",
        *,
        device: str | torch.device | None = None,
        max_audio_seconds: float | None = 120.0,
        chunk_seconds: float = 10.0,
        batch_size: int = 4,
    ) -> None:
        self.device = resolve_device(device)
        self.max_audio_seconds, self.batch_size = max_audio_seconds, batch_size
        self._model = _load_dac(str(model_path)).eval().requires_grad_(False)
        config = self._model.config
        self.sample_rate = int(config.sampling_rate)
        self._hop = math.prod(config.downsampling_ratios)
        self._chunk = max(1, round(chunk_seconds * self.sample_rate / self._hop)) * self._hop
        self._codebooks, self._codebook_size = int(config.n_codebooks), int(config.codebook_size)
        self.weights_sha256 = _weights_sha256(self._model)
        self.stamp = hash_json(
            {
                "format": CODES_FORMAT,
                "weights": self.weights_sha256,
                "seconds": max_audio_seconds,
                "chunk": self._chunk,
            }
        )
        self._model.to(self.device)

    def read(self, path: str | Path | AudioInfo) -> torch.Tensor:
        """What of a file :meth:`count_codes` takes; for threads that decode ahead."""
        return read_for_codes(path, self.sample_rate, self.max_audio_seconds)

    def chunks(self, audio: torch.Tensor) -> int:
        """How many chunks ``audio`` ``(T,)`` makes: what fills a batch."""
        return -(-len(audio) // self._chunk)

    @torch.inference_mode()
    def count_codes(self, tracks: Sequence[torch.Tensor]) -> list[NDArray[np.int32]]:
        """How often each code occurs in each of several tracks: ``(codebooks, codebook size)`` a track.

        Tracks are mono ``(T,)``. Chunks of all tracks share batches. The last chunk of a track is padded with
        zeros for the model; the codes of the padding are not counted.
        """
        padded = [torch.nn.functional.pad(audio, (0, -len(audio) % self._chunk)) for audio in tracks]
        chunks = torch.cat([audio.view(-1, 1, self._chunk) for audio in padded])
        codes = torch.cat(
            [
                self._model.encode(batch.to(self.device)).audio_codes.cpu()
                for batch in chunks.split(self.batch_size)
            ]
        )
        counts = []
        for audio, own in zip(tracks, codes.split([self.chunks(audio) for audio in tracks]), strict=True):
            heard = own.permute(1, 0, 2).flatten(1)[:, : math.ceil(len(audio) / self._hop)]
            books = [torch.bincount(book, minlength=self._codebook_size) for book in heard]
            counts.append(torch.stack(books).to(torch.int32).numpy())
        return counts


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


def save_codes(path: Path, counts: NDArray[np.int32], stamp: str) -> None:
    """Write the counts of one track as ``.npz``; the file is whole or absent."""
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, counts=counts, stamp=np.array(stamp))


def load_codes(path: Path, stamp: str) -> NDArray[np.int32] | None:
    """The counts stored at ``path``, or None where there are none of these settings and weights."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["stamp"]) != stamp:
                return None
            counts: NDArray[np.int32] = stored["counts"]
            return counts
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None  # absent or damaged, it is only a cache miss: it is made again and replaced
