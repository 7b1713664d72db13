"""The music that attribution is tested on: short pieces by 128 made-up artists, as latents of the demo's VAE.

Every artist plays in one of the demo's eight styles, with narrow habits of their own. The world holds what
models are trained on, other pieces of the same artists that no model sees, and altered copies of some of the
training pieces, which no model sees either.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stable_audio_tools.demo.artists import GENRES, Artist, pretraining_artists
from stable_audio_tools.demo.assets import asset, base_model_config
from stable_audio_tools.demo.catalogue import default_workers
from stable_audio_tools.demo.configs import LATENT_DIM, RATIO
from stable_audio_tools.demo.pieces import Piece, compose
from stable_audio_tools.demo.synth import SAMPLE_RATE, lowpass
from stable_audio_tools.demo.theory import MODES
from stable_audio_tools.models.checkpoints import read_state_dict
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.runtime.files import atomic_path
from stable_audio_tools.runtime.progress import track
from stable_audio_tools.runtime.seeds import derive_seed, generator

Audio = NDArray[np.float32]

STYLES = tuple(sorted(GENRES))
SHARED_STEPS = tuple(progression for progression in pretraining_artists(1)[0].progressions)
COPIES = ("softer and duller", "pitch", "tempo", "speed", "partial")
"""Altered copies: 6 dB softer without highs; two semitones up; 6 % faster; both at once as a record that
turns faster; and the second half of a piece behind the first half of another."""


@dataclass(frozen=True)
class WorldSize:
    """How much music."""

    artists: int = 128
    per_artist: int = 8
    held_out: int = 128
    """Unseen pieces, one an artist."""
    copied: int = 16
    """Training pieces that are copied, each in every way."""
    frames: int = 64
    """Latents of a segment; 64 are 2.05 s."""
    seed: int = 0


@dataclass(frozen=True)
class World:
    """Rows of all roles in one array.

    Attributes:
        latents: float32 (N, C, L).
        rows: per row: ``id``, ``role`` (train, held-out, copy), ``artist``, ``style`` (0 to 7), ``tempo``,
            ``brightness``, ``loudness`` in dB; copies also have ``copy_of`` and ``kind``.
    """

    latents: Tensor
    rows: list[dict[str, Any]]

    def of(self, role: str) -> list[int]:
        """Positions of the rows of a role."""
        return [i for i, row in enumerate(self.rows) if row["role"] == role]


def artists(size: WorldSize) -> tuple[Artist, ...]:
    """Made-up artists, each with one or two progressions and a small part of a style's range."""
    made = []
    for number in range(size.artists):
        rng = np.random.default_rng(derive_seed("lds artist", size.seed, number))
        style = STYLES[number % len(STYLES)]
        low, high = GENRES[style].tempo
        tempo = float(rng.uniform(low, high - 0.15 * (high - low)))
        character = {}
        for name, most in (("brightness", 1), ("density", 1), ("space", 1), ("grit", 0.8), ("swing", 0.6)):
            start = float(rng.uniform(0, 0.8 * most))
            character[name] = (start, start + 0.2 * most)
        made.append(
            Artist(
                artist_id=10_000 + number, name=f"{style} {number:03d}", style=style, albums=("One", "Two"),
                titles=("Piece",),
                modes=tuple(str(m) for m in rng.choice(sorted(MODES), size=2, replace=False)),
                progressions=tuple(SHARED_STEPS[i] for i in rng.choice(len(SHARED_STEPS), 2, replace=False)),
                tempo=(tempo, tempo + 0.15 * (high - low)),
                tonics=tuple(int(t) for t in rng.choice(12, size=3, replace=False)),
                character=character,
            )
        )  # fmt: skip
    return tuple(made)


@dataclass(frozen=True)
class _Job:
    piece: Piece
    other: Piece | None
    kind: str
    samples: int


def make_world(size: WorldSize, workers: int | None = None) -> World:
    """Compose, play, alter and encode everything; the same for the same size."""
    cast = artists(size)
    pieces = compose(cast, size.per_artist, world=f"lds {size.seed}", first_id=1, seconds=(3.0, 4.0))
    unseen = compose(cast, 1, world=f"lds unseen {size.seed}", first_id=500_001, seconds=(3.0, 4.0))
    unseen = unseen[: size.held_out]
    draws = np.random.default_rng(derive_seed("lds copies", size.seed))
    originals = sorted(int(i) for i in draws.choice(len(pieces), size.copied, replace=False))
    length = size.frames * RATIO
    jobs = [_Job(piece, None, "", length) for piece in [*pieces, *unseen]]
    rows = [_row(piece, "train" if piece.track_id < 500_001 else "held-out") for piece in [*pieces, *unseen]]
    for index in originals:
        for kind in COPIES:
            other = pieces[int(draws.integers(len(pieces)))]
            jobs.append(_Job(pieces[index], other, kind, length))
            rows.append(
                {**_row(pieces[index], "copy"), "id": f"{kind} copy of {pieces[index].track_id}"}
                | {"copy_of": str(pieces[index].track_id), "kind": kind}
            )
    with ProcessPoolExecutor(workers or default_workers(), mp_context=get_context("spawn")) as pool:
        sounds = list(track(pool.map(_play, jobs, chunksize=8), "playing", len(jobs)))
    for row, sound in zip(rows, sounds, strict=True):
        row["loudness"] = round(float(10 * np.log10(np.mean(sound**2) + 1e-12)), 3)
    return World(encode(sounds), rows)


def _row(piece: Piece, role: str) -> dict[str, Any]:
    return {
        "id": str(piece.track_id), "role": role, "artist": piece.artist.name, "style": piece.artist.style,
        "style_number": STYLES.index(piece.artist.style), "tempo": piece.song.tempo,
        "brightness": round(piece.song.brightness, 4),
    }  # fmt: skip


def _play(job: _Job) -> Audio:
    """The first seconds of a piece, altered as asked."""
    piece, song, n = job.piece, job.piece.song, job.samples
    if job.kind == "pitch":
        key = replace(song.key, tonic=song.key.tonic + 2)
        return _first(replace(piece, song=replace(song, key=key)).play(), n)
    if job.kind == "tempo":
        return _first(replace(piece, song=replace(song, tempo=song.tempo * 1.06)).play(), n)
    sound = piece.play()
    if job.kind == "speed":
        at = np.arange(int(sound.shape[1] / 1.06)) * 1.06
        sound = np.stack([np.interp(at, np.arange(sound.shape[1]), ear) for ear in sound])
    elif job.kind == "softer and duller":
        sound = 0.5 * lowpass(sound.astype(np.float64), 2500.0)
    elif job.kind == "partial":
        assert job.other is not None
        ramp = np.clip((np.arange(n) - n // 2) / (0.02 * SAMPLE_RATE), 0, 1)
        sound = _first(sound, n) * ramp + _first(job.other.play(), n) * (1 - ramp)
    return _first(sound, n)


def _first(sound: NDArray[Any], n: int) -> Audio:
    sound = sound[:, :n].astype(np.float32)
    return np.pad(sound, ((0, 0), (0, n - sound.shape[1])))


@torch.no_grad()
def encode(sounds: Sequence[Audio], batch: int = 32) -> Tensor:
    """Latents (N, C, L) of stereo sounds by the demo's VAE, with one draw of its noise for all."""
    config = base_model_config()
    model = create_model_from_config(
        {
            "model_type": "autoencoder", "sample_size": config["sample_size"], "sample_rate": SAMPLE_RATE,
            "audio_channels": 2, "model": config["model"]["pretransform"]["config"],
        }
    ).eval()  # fmt: skip
    prefix, scale = "pretransform.model.", config["model"]["pretransform"]["scale"]
    state = read_state_dict(asset("base") / "model.safetensors")
    model.load_state_dict(
        {key.removeprefix(prefix): value.float() for key, value in state.items() if key.startswith(prefix)}
    )
    made = []
    for start in track(range(0, len(sounds), batch), "encoding"):
        audio = torch.from_numpy(np.stack(sounds[start : start + batch]))
        draws = [generator("lds encode") for _ in range(len(audio))]
        made.append(model.encode(audio, generator=draws) / scale)
    return torch.cat(made)


def save_world(path: Path, world: World, size: WorldSize) -> None:
    """One file: latents in half precision, and what the rows are."""
    about = json.dumps({"size": asdict(size), "rows": world.rows})
    with atomic_path(path) as temporary:
        np.savez_compressed(
            temporary, latents=world.latents.numpy().astype(np.float16), about=np.array(about)
        )


def load_world(path: Path) -> World:
    """What :func:`save_world` wrote."""
    with np.load(path, allow_pickle=False) as held:
        latents, about = torch.from_numpy(held["latents"].astype(np.float32)), json.loads(str(held["about"]))
    return World(latents, about["rows"])


def model_config(frames: int, width: int = 256, depth: int = 6) -> dict[str, Any]:
    """A diffusion transformer over these latents; 256 and 6 give 5.7 M parameters.

    It hears the style, the tempo and the brightness of a piece, as a prompt would tell them, and not whose it
    is.
    """
    numbers = {"tempo": (40, 220), "brightness": (0, 1)}
    return {
        "model_type": "diffusion_cond",
        "sample_size": frames,
        "sample_rate": SAMPLE_RATE,
        "audio_channels": LATENT_DIM,
        "model": {
            "conditioning": {
                "configs": [
                    {"id": "style_number", "type": "int", "config": {"min_val": 0, "max_val": 7}},
                    *(
                        {"id": name, "type": "number", "config": {"min_val": low, "max_val": high}}
                        for name, (low, high) in numbers.items()
                    ),
                ],
                "cond_dim": 64,
            },
            "diffusion": {
                "type": "dit",
                "diffusion_objective": "v",
                "cross_attention_cond_ids": ["style_number", *numbers],
                "config": {
                    "io_channels": LATENT_DIM, "embed_dim": width, "depth": depth,
                    "num_heads": max(1, width // 64), "cond_token_dim": 64, "project_cond_tokens": True,
                    "transformer_type": "continuous_transformer", "ff_kwargs": {"mult": 2},
                },
            },
            "io_channels": LATENT_DIM,
        },
        "training": {"cfg_dropout_prob": 0.1, "timestep_sampler": "uniform"},
    }  # fmt: skip
