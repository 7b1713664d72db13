"""The music that the tiny models learn from: rendered once to disk, then held whole in memory."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stable_audio_tools.demo.artists import DEMO_ARTISTS, pretraining_artists
from stable_audio_tools.demo.catalogue import default_workers
from stable_audio_tools.demo.pieces import Piece, compose
from stable_audio_tools.demo.synth import SAMPLE_RATE
from stable_audio_tools.runtime.files import atomic_path
from stable_audio_tools.runtime.progress import track


@dataclass(frozen=True)
class World:
    """Pieces with their sound.

    Attributes:
        pieces: what is played.
        audio: all of it one after the other, int16 ``(2, total samples)``.
        starts: first sample of every piece, ``(N,)``; ``lengths``: its samples, ``(N,)``.
    """

    pieces: list[Piece]
    audio: Tensor
    starts: Tensor
    lengths: Tensor

    @property
    def device(self) -> torch.device:
        return self.audio.device

    @property
    def hours(self) -> float:
        """How much music there is."""
        return int(self.lengths.sum()) / SAMPLE_RATE / 3600

    def whole(self, index: int) -> Tensor:
        """One piece from beginning to end, float32 ``(2, T)``."""
        start = int(self.starts[index])
        return self.audio[:, start : start + int(self.lengths[index])].float() / 32768

    def crops(self, batch_size: int, length: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random spans of random pieces: float32 ``(B, 2, length)`` and the index of each piece ``(B,)``.

        ``draw`` is a CPU generator, so that a run draws the same crops on every device.
        """
        indices = torch.randint(len(self.pieces), (batch_size,), generator=draw)
        room = (self.lengths[indices] - length).clamp(min=0)
        offsets = (torch.rand(batch_size, generator=draw) * (room + 1)).long()
        starts = (self.starts[indices] + offsets).clamp(max=self.audio.shape[1] - length).to(self.device)
        spans = starts[:, None] + torch.arange(length, device=self.device)
        return self.audio[:, spans].transpose(0, 1).float() / 32768, indices


def pretraining_world(
    folder: Path, device: torch.device, *, artists_per_style: int, pieces_per_artist: int, seed: int
) -> World:
    """The generic artists' music; ``folder`` keeps it for the next run with the same arguments."""
    name = f"pretraining {seed}"
    pieces = compose(
        pretraining_artists(artists_per_style), pieces_per_artist, world=name, first_id=1, seconds=(10, 16)
    )
    return _load(folder / f"pretraining-{artists_per_style}-{pieces_per_artist}-{seed}.npy", pieces, device)


def held_out_world(folder: Path, device: torch.device, *, pieces_per_artist: int, seed: int) -> World:
    """Music by the demo's artists that no model is trained on and that is not in the demo catalogue."""
    pieces = compose(
        DEMO_ARTISTS, pieces_per_artist, world=f"held out {seed}", first_id=900_001, seconds=(10, 14)
    )
    return _load(folder / f"held-out-{pieces_per_artist}-{seed}.npy", pieces, device)


def _load(path: Path, pieces: Sequence[Piece], device: torch.device) -> World:
    lengths_path = path.with_suffix(".lengths.npy")
    if not lengths_path.exists():
        sounds = _render(pieces)
        for target, array in (
            (path, np.concatenate(sounds, axis=1)),
            (lengths_path, np.array([sound.shape[1] for sound in sounds])),
        ):
            with atomic_path(target) as temporary:
                np.save(temporary, array)
    lengths = torch.from_numpy(np.load(lengths_path)).long()
    audio = torch.from_numpy(np.load(path)).to(device)
    return World(list(pieces), audio, lengths.cumsum(0) - lengths, lengths)


def _render(pieces: Sequence[Piece]) -> list[NDArray[np.int16]]:
    with ProcessPoolExecutor(default_workers(), mp_context=get_context("spawn")) as pool:
        return list(track(pool.map(_play, pieces, chunksize=2), "playing the pretraining music", len(pieces)))


def _play(piece: Piece) -> NDArray[np.int16]:
    return np.round(piece.play() * 32767).astype(np.int16)
