"""How well clips agree with their prompts: cosine of CLAP embeddings of audio and text (the "CLAP score")."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stable_audio_tools.errors import DataError


@dataclass(frozen=True)
class Alignment:
    """``cosines`` of each clip with its own prompt ``(N,)``, their mean, and the mean with all other prompts.

    ``mismatched_mean`` is what clips score that ignore their prompts; only the part of ``mean`` above it is
    understanding. It is None for a single clip.
    """

    cosines: NDArray[np.float64]
    mean: float
    mismatched_mean: float | None


def text_audio_alignment(audio: ArrayLike, text: ArrayLike) -> Alignment:
    """Cosines of embeddings, row by row.

    Args:
        audio: embeddings of clips ``(N, D)``, of any length above 0.
        text: embeddings of their prompts ``(N, D)``.

    Raises:
        DataError: the shapes differ, or there are no rows, or a row is zero or not finite.
    """
    clips, prompts = _unit_rows(audio, "audio"), _unit_rows(text, "text")
    if clips.shape != prompts.shape:
        raise DataError(
            f"audio embeddings {clips.shape} and text embeddings {prompts.shape} differ in shape: "
            "expected one prompt for each clip, embedded by one model"
        )
    table = clips @ prompts.T
    own = np.diagonal(table).copy()
    count = len(own)
    others = float((table.sum() - own.sum()) / (count * (count - 1))) if count > 1 else None
    return Alignment(own, float(own.mean()), others)


def _unit_rows(values: ArrayLike, name: str) -> NDArray[np.float64]:
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 2 or len(rows) == 0:
        raise DataError(f"{name} embeddings have shape {rows.shape}: expected a matrix with one row a clip")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise DataError(
            f"{name} embeddings have a row that is zero or not finite: look for broken audio files"
        )
    return rows / lengths
