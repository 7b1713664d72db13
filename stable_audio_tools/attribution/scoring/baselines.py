"""What an attribution must beat: likeness that asks no gradient, and chance.

Each takes two stores, N tracks and Q queries, and gives scores (Q, N) in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.attribution.features.store import FeatureStore
from stable_audio_tools.audio.files import AUDIO_SUFFIXES, read_audio
from stable_audio_tools.audio.loudness import LoudnessMeter
from stable_audio_tools.errors import UsageError
from stable_audio_tools.evaluation.clap import ClapEmbedder
from stable_audio_tools.runtime.files import atomic_path, hash_json
from stable_audio_tools.runtime.progress import track
from stable_audio_tools.runtime.seeds import generator

if TYPE_CHECKING:
    from stable_audio_tools.attribution.scoring.scores import ScoreSettings

HEARD_SECONDS = 60.0
"""How much of a recording is listened to, from where its crop starts."""

QUIETEST_LUFS = -70.0
"""What silence counts as."""


def latent_cosine(train: FeatureStore, queries: FeatureStore, settings: ScoreSettings) -> Tensor:
    """Baseline without gradients: cosine of the latents' mean and deviation over time, standardised."""
    tracks, clips = train.latents(), queries.latents()
    centre = tracks.mean(0)
    spread = tracks.std(0, unbiased=False).clamp(min=1e-8)
    tracks, clips = ((rows - centre) / spread for rows in (tracks, clips))
    return F.normalize(clips) @ F.normalize(tracks).T


def clap_cosine(train: FeatureStore, queries: FeatureStore, settings: ScoreSettings) -> Tensor:
    """Cosine of the CLAP embeddings of the recordings; they are kept in the stores."""
    embedder: list[ClapEmbedder] = []  # loaded only where something is not known yet

    def embed(record: Mapping[str, Any]) -> Tensor:
        if not embedder:
            embedder.append(ClapEmbedder(settings.clap_model))
        audio, rate = _heard(record, embedder[0].sample_rate, 1)
        return embedder[0].embed_audio([audio], rate)[0]

    key = f"clap-{hash_json(settings.clap_model)[:12]}"
    tracks, clips = (_known_or_made(store, key, embed).double() for store in (train, queries))
    return F.normalize(clips) @ F.normalize(tracks).T


def loudness_likeness(train: FeatureStore, queries: FeatureStore, settings: ScoreSettings) -> Tensor:
    """Minus the difference of loudness in LU (BS.1770): a baseline that hears one number."""

    def measure(record: Mapping[str, Any]) -> Tensor:
        audio, rate = _heard(record, None, None)
        meter = LoudnessMeter(rate, len(audio))
        meter.feed(audio.numpy())
        loudness = meter.integrated()
        return torch.tensor([QUIETEST_LUFS if loudness is None else max(loudness, QUIETEST_LUFS)])

    tracks, clips = (_known_or_made(store, "loudness", measure).double() for store in (train, queries))
    return -(clips - tracks.T).abs()


def random_scores(train: FeatureStore, queries: FeatureStore, settings: ScoreSettings) -> Tensor:
    """Baseline that knows nothing: a draw per query and track."""
    draws = [
        torch.randn(
            len(train), generator=generator("attribution-random", settings.seed, query), dtype=torch.float64
        )
        for query in queries.sample_ids
    ]
    return torch.stack(draws)


def _known_or_made(store: FeatureStore, key: str, make: Callable[[Mapping[str, Any]], Tensor]) -> Tensor:
    """One row per recording of the store, (N, E), from ``<key>.npy`` in its folder or made and kept there.

    A track that is left out has a row of zeros.
    """
    path = store.folder / f"{key}.npy"
    if path.exists():
        return torch.from_numpy(np.load(path))
    records = store.records()
    for record in records:
        if "left_out" not in record:
            _require_recording(record)  # before an hour of listening, not after
    made = [
        None if "left_out" in record else make(record)
        for record in track(records, f"{store.folder.name}: {key.split('-')[0]}")
    ]
    width = max((len(row) for row in made if row is not None), default=1)
    rows = torch.stack([torch.zeros(width) if row is None else row.float() for row in made])
    with atomic_path(path) as temporary:
        np.save(temporary, rows.numpy())
    return rows


def _heard(record: Mapping[str, Any], sample_rate: int | None, channels: int | None) -> tuple[Tensor, int]:
    """The recording of a row from where its crop starts, (C, T), and its rate in Hz."""
    audio, rate = read_audio(
        str(record["path"]),
        offset_seconds=float(record.get("offset_seconds") or 0.0),
        duration_seconds=HEARD_SECONDS,
        sample_rate=sample_rate,
        channels=channels,
    )
    return audio, rate


def _require_recording(record: Mapping[str, Any]) -> None:
    path = Path(str(record.get("path", "")))
    if path.suffix.lower() not in AUDIO_SUFFIXES or not path.is_file():
        raise UsageError(
            f"{record.get('sample_id')}: its recording is not at {str(path)!r}; this baseline listens to"
            " recordings, use latent-cosine where there are only latents"
        )
