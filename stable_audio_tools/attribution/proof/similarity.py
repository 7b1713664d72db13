"""Baselines that look at the latents and at no model: an influence estimate must beat them to be of use.

Each gives a score (Q, N) of every track for every query; larger is more alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stable_audio_tools.attribution.features.extract import latent_statistics
from stable_audio_tools.attribution.gradients.task import LatentBatch
from stable_audio_tools.runtime.seeds import generator


def random_scores(tracks: LatentBatch, queries: LatentBatch) -> Tensor:
    """Knows nothing."""
    draw = generator("proof-random-scores")
    return torch.randn(len(queries), len(tracks), generator=draw, dtype=torch.float64)


def latent_statistics_cosine(tracks: LatentBatch, queries: LatentBatch) -> Tensor:
    """Cosine of the latents' mean and deviation over time, standardised: ``latent-cosine`` of the command."""
    rows, clips = (latent_statistics(batch.latents, batch.mask).double() for batch in (tracks, queries))
    centre, spread = rows.mean(0), rows.std(0, unbiased=False).clamp(min=1e-8)
    return F.normalize((clips - centre) / spread) @ F.normalize((rows - centre) / spread).T


def frame_cosine(tracks: LatentBatch, queries: LatentBatch) -> Tensor:
    """Cosine of the latents frame by frame, as they lie."""
    rows, clips = ((batch.latents * batch.mask).flatten(1).double() for batch in (tracks, queries))
    return F.normalize(clips) @ F.normalize(rows).T


def aligned_cosine(tracks: LatentBatch, queries: LatentBatch) -> Tensor:
    """Cosine of the latents at the shift where it is largest, what runs past the other's ends counting 0."""
    length = tracks.latents.shape[-1] + queries.latents.shape[-1]
    rows, clips = (batch.latents * batch.mask for batch in (tracks, queries))
    spectra, lengths = torch.fft.rfft(rows, length), rows.flatten(1).norm(dim=1)
    best = []
    for clip in clips:
        products = (spectra * torch.fft.rfft(clip, length).conj()).sum(1)
        peak = torch.fft.irfft(products, length).amax(1)
        best.append(peak / (lengths * clip.norm()).clamp(min=1e-12))
    return torch.stack(best).double()


def covariance_cosine(tracks: LatentBatch, queries: LatentBatch) -> Tensor:
    """Cosine of how the latents' channels vary together, means aside: harmony and timbre without time."""
    rows, clips = (_covariance(batch) for batch in (tracks, queries))
    centre = rows.mean(0)
    return F.normalize(clips - centre) @ F.normalize(rows - centre).T


def energy_nearness(tracks: LatentBatch, queries: LatentBatch) -> Tensor:
    """How close the latents' energies are: what loudness alone would say."""
    rows, clips = (
        (batch.latents**2 * batch.mask).flatten(1).mean(1).double().clamp(min=1e-12).log()
        for batch in (tracks, queries)
    )
    return -(clips[:, None] - rows[None]).abs()


def same_group(groups: Sequence[str | None], of_queries: Sequence[str | None]) -> Tensor:
    """1 for tracks of the query's own artist, else 0: what knowing the artist alone would say."""
    return torch.tensor(
        [[float(own is not None and own == theirs) for theirs in groups] for own in of_queries],
        dtype=torch.float64,
    )


def _covariance(batch: LatentBatch) -> Tensor:
    count = batch.mask.sum(2, keepdim=True).clamp(min=1)
    centred = (batch.latents - (batch.latents * batch.mask).sum(2, keepdim=True) / count) * batch.mask
    return (centred @ centred.transpose(1, 2) / count).flatten(1).double()


BASELINES: dict[str, Callable[[LatentBatch, LatentBatch], Tensor]] = {
    "random": random_scores,
    "latent-cosine": latent_statistics_cosine,
    "frame-cosine": frame_cosine,
    "aligned-cosine": aligned_cosine,
    "covariance": covariance_cosine,
    "energy": energy_nearness,
}
