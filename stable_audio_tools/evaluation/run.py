"""Scores of generated clips: distance to real music, and agreement with their prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stable_audio_tools.data.prompts import prompt_for_clip
from stable_audio_tools.errors import DataError
from stable_audio_tools.evaluation.alignment import text_audio_alignment
from stable_audio_tools.evaluation.clap import DEFAULT_CLAP, ClapEmbedder
from stable_audio_tools.evaluation.frechet import frechet_distance
from stable_audio_tools.evaluation.reference import (
    ReferenceSet,
    embed_recordings,
    list_recordings,
    reference_from_folder,
)
from stable_audio_tools.runtime.files import write_json
from stable_audio_tools.runtime.manifest import installed_versions


def evaluate_folder(
    generated_dir: str | Path,
    reference: str | Path,
    *,
    clap: str | Path | None = None,
    batch_size: int = 16,
    device: str | None = None,
    output_path: str | Path | None = None,
) -> dict[str, Any]:
    """Score a folder of generated clips.

    Args:
        generated_dir: the clips; prompts come from their sidecars, their tags or ``prompts.csv``.
        reference: a ``.npz`` of :func:`~stable_audio_tools.evaluation.song_describer.precompute`, or a folder
            of real recordings.
        clap: the CLAP to use; by default the one that made the ``.npz``, or ``laion/clap-htsat-fused``.
        batch_size: clips embedded at once.
        device: where CLAP runs; ``None`` is the best there is.
        output_path: where to write the scores as JSON too.

    Returns:
        What :func:`score_clips` returns.

    Raises:
        DataError: no clips, no reference, or a reference made by another CLAP.
        CheckpointError: there is no such CLAP.
    """
    clips = list_recordings(generated_dir)
    if Path(reference).is_dir():
        embedder = ClapEmbedder(clap or DEFAULT_CLAP, device, batch_size=batch_size)
        real = reference_from_folder(reference, embedder)
    else:
        real = ReferenceSet.load(reference)
        embedder = ClapEmbedder(clap or real.clap, device, batch_size=batch_size)
    prompts, unknown = {}, []
    for clip in clips:
        try:
            prompts[clip] = str(prompt_for_clip(clip)["prompt"])
        except DataError as error:
            unknown.append(str(error))
    scores = score_clips(clips, prompts, real, embedder)
    if unknown:
        scores["notes"].append(f"{len(unknown)} of {len(clips)} clips have no known prompt: {unknown[0]}")
    scores["reference"] = str(reference)
    if output_path is not None:
        write_json(output_path, scores)
    return scores


def require_same_clap(reference: ReferenceSet, clap: ClapEmbedder) -> None:
    """Refuse to compare embeddings of different models: their spaces have nothing in common.

    Raises:
        DataError: the weights differ.
    """
    if clap.weights_sha256 != reference.clap_sha256:
        raise DataError(
            f"the reference was embedded by {reference.clap} ({reference.clap_sha256[:12]}), "
            f"the clips would be by {clap.name} ({clap.weights_sha256[:12]}): "
            "use one model for both, or make the reference again"
        )


def score_clips(
    clips: Sequence[Path], prompts: Mapping[Path, str], reference: ReferenceSet, clap: ClapEmbedder
) -> dict[str, Any]:
    """Embed clips and score them against a reference.

    Returns:
        A JSON value: ``fad``, ``alignment`` (mean cosine of clips and prompts), ``alignment_mismatched`` (the
        same with the prompts of the other clips: what ignoring the prompt scores), ``reference_alignment``
        (real recordings with their captions: what there is to reach), each None where it cannot be computed;
        counts, ``per_clip``, ``failed``, the CLAP used, ``notes`` on how far to trust the numbers, and
        versions.

    Raises:
        DataError: the reference was embedded by another CLAP, or no clip can be read.
    """
    require_same_clap(reference, clap)
    rows, failed = embed_recordings(clips, clap)
    if not rows:
        raise DataError(
            f"none of {len(clips)} clips can be read: {next(iter(failed.values()), 'there are none')}"
        )
    audio = np.stack(list(rows.values()))
    notes = _sample_size_notes(len(rows), len(reference.audio_embeddings), clap.dim)
    enough = min(len(rows), len(reference.audio_embeddings)) >= 2
    prompted = [clip for clip in rows if clip in prompts]
    aligned = None
    if prompted:
        text = clap.embed_text([prompts[clip] for clip in prompted]).numpy()
        aligned = text_audio_alignment(np.stack([rows[clip] for clip in prompted]), text)
    cosines = dict(zip(prompted, aligned.cosines.tolist(), strict=True)) if aligned else {}
    ceiling = None
    if len(reference.text_embeddings):
        ceiling = text_audio_alignment(reference.audio_embeddings, reference.text_embeddings).mean
    return {
        "fad": frechet_distance(audio, reference.audio_embeddings) if enough else None,
        "alignment": aligned.mean if aligned else None,
        "alignment_mismatched": aligned.mismatched_mean if aligned else None,
        "reference_alignment": ceiling,
        "clips": len(rows),
        "clips_with_prompt": len(prompted),
        "reference_recordings": len(reference.audio_embeddings),
        "per_clip": [
            {"file": str(clip), "prompt": prompts.get(clip), "alignment": cosines.get(clip)} for clip in rows
        ],
        "failed": {str(clip): reason for clip, reason in failed.items()},
        "clap": clap.name,
        "clap_sha256": clap.weights_sha256,
        "notes": notes,
        "versions": installed_versions(),
    }


def _sample_size_notes(clips: int, recordings: int, dim: int) -> list[str]:
    """What the reader must know about a FAD of so few clips."""
    fewest = min(clips, recordings)
    if fewest < 2:
        return [f"no FAD: {clips} clips and {recordings} recordings, a distribution needs at least 2 of each"]
    if fewest <= dim:
        return [
            f"FAD of {clips} clips and {recordings} recordings in {dim} dimensions is biased upwards: "
            "compare it only with numbers from as many clips and the same recordings"
        ]
    return []
