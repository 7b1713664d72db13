"""Evaluation on the Song Describer Dataset.

I. Manco et al., "The Song Describer Dataset" (2023): 1,106 captions of 706 tracks of Creative Commons music.
The recordings and captions are embedded once; then any checkpoint renders the captions and is held against
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stable_audio_tools.data.song_describer import Caption, find_recording, read_song_describer
from stable_audio_tools.errors import DataError, UsageError
from stable_audio_tools.evaluation.clap import DEFAULT_CLAP, ClapEmbedder
from stable_audio_tools.evaluation.reference import ReferenceSet, embed_recordings
from stable_audio_tools.evaluation.run import require_same_clap, score_clips
from stable_audio_tools.inference.clips import ClipRequest, generate_clips
from stable_audio_tools.models.adapters.strength import AdapterPaths
from stable_audio_tools.models.files import ModelFiles
from stable_audio_tools.runtime.device import resolve_device
from stable_audio_tools.runtime.files import sha256_file, write_json
from stable_audio_tools.runtime.progress import warn
from stable_audio_tools.runtime.seeds import generator

PROMPT_SOURCES = ("random", "first", "longest")
"""Which of a track's captions is its prompt: one drawn with the seed, the first, or the longest."""


def choose_prompts(
    captions: Sequence[Caption], source: str = "random", seed: int = 42
) -> list[tuple[Caption, str]]:
    """For each track, in the order of the table, its first row and the caption that is its prompt.

    A random choice is keyed by the track: it does not depend on which other tracks there are.

    Raises:
        UsageError: an unknown source.
    """
    if source not in PROMPT_SOURCES:
        raise UsageError(f"unknown prompt source {source!r}: expected one of {', '.join(PROMPT_SOURCES)}")
    by_track: dict[int, list[Caption]] = {}
    for caption in captions:
        by_track.setdefault(caption.track_id, []).append(caption)
    chosen = []
    for track_id, rows in by_track.items():
        texts = [row.caption for row in rows]
        if source == "first":
            text = texts[0]
        elif source == "longest":
            text = max(texts, key=len)
        else:
            draw = generator("song describer prompt", seed, track_id)
            text = texts[int(torch.randint(len(texts), (1,), generator=draw))]
        chosen.append((rows[0], text))
    return chosen


def precompute(
    csv_path: str | Path,
    audio_dir: str | Path,
    output_path: str | Path,
    *,
    prompt_source: str = "random",
    prompt_seed: int = 42,
    valid_only: bool = False,
    clap: str | Path = DEFAULT_CLAP,
    batch_size: int = 16,
    max_audio_seconds: float | None = None,
    device: str | None = None,
) -> ReferenceSet:
    """Embed the recordings and one caption of each, and write them as ``.npz``.

    Recordings that are missing or broken are left out, listed in the file's settings and warned of.

    Args:
        csv_path: ``song_describer.csv``.
        audio_dir: the folder that holds ``NN/<track id>.2min.mp3``.
        output_path: the ``.npz`` to write; see
            :class:`~stable_audio_tools.evaluation.reference.ReferenceSet`.
        prompt_source: ``random``, ``first`` or ``longest`` of a track's captions.
        prompt_seed: of ``random``.
        valid_only: only captions that the dataset marks as valid.
        clap: a folder, or a name on the hub.
        batch_size: recordings embedded at once.
        max_audio_seconds: how much of each recording is heard, from its start; ``None`` for all of it.
        device: where CLAP runs; ``None`` is the best there is.

    Raises:
        UsageError: an unknown prompt source, or an output that is not ``.npz``.
        DataError: the table is wrong, or none of its recordings can be read.
        CheckpointError: there is no such CLAP.
    """
    if Path(output_path).suffix != ".npz":
        raise UsageError(f"{output_path}: embeddings are written as .npz; name the output so")
    captions = read_song_describer(csv_path)
    wanted = [caption for caption in captions if caption.is_valid_subset or not valid_only]
    chosen = choose_prompts(wanted, prompt_source, prompt_seed)
    found: dict[Path, tuple[Caption, str]] = {}
    left_out: dict[int, str] = {}
    for caption, prompt in chosen:
        try:
            found[find_recording(caption, audio_dir)] = (caption, prompt)
        except DataError as error:
            left_out[caption.track_id] = str(error)
    if not found:
        raise DataError(
            f"{audio_dir}: has none of the {len(chosen)} tracks of {csv_path}: {_first(left_out)}"
        )
    embedder = ClapEmbedder(clap, device, batch_size=batch_size)
    rows, failed = embed_recordings(list(found), embedder, max_seconds=max_audio_seconds)
    left_out |= {found[path][0].track_id: reason for path, reason in failed.items()}
    if not rows:
        raise DataError(f"{audio_dir}: none of {len(found)} recordings can be read: {_first(left_out)}")
    if left_out:
        warn(f"{len(left_out)} of {len(chosen)} tracks are left out: {_first(left_out)}")
    prompts = [found[path][1] for path in rows]
    result = ReferenceSet(
        audio_embeddings=np.stack(list(rows.values())),
        text_embeddings=embedder.embed_text(prompts).numpy(),
        prompts=tuple(prompts),
        track_ids=tuple(str(found[path][0].track_id) for path in rows),
        clap=embedder.name,
        clap_sha256=embedder.weights_sha256,
        settings={
            "csv_path": str(csv_path),
            "csv_sha256": sha256_file(csv_path),
            "audio_dir": str(audio_dir),
            "prompt_source": prompt_source,
            "prompt_seed": prompt_seed,
            "valid_only": valid_only,
            "max_audio_seconds": max_audio_seconds,
            "left_out": {str(track_id): reason for track_id, reason in left_out.items()},
        },
    )
    result.save(output_path)
    return result


def evaluate_checkpoint(
    model_config: str | Path,
    ckpt_path: str | Path,
    precomputed_embeddings_path: str | Path,
    *,
    lora_ckpt_path: AdapterPaths = None,
    output_dir: str | Path = "outputs/song_describer_eval",
    steps: int = 100,
    cfg_scale: float = 7.0,
    sampler: str | None = None,
    sampler_options: dict[str, Any] | None = None,
    seed: int = 42,
    seconds: float | None = None,
    limit: int | None = None,
    gen_batch_size: int = 4,
    clap: str | Path | None = None,
    clap_batch_size: int = 16,
    device: str | None = None,
) -> dict[str, Any]:
    """Render the prompts of a precomputed set with a checkpoint and score the clips against its recordings.

    The clips go to ``<output_dir>/clips`` with their sidecars, the scores to ``<output_dir>/results.json``.
    Clips that are there already, made with the same settings and checkpoint, are not rendered again.

    Args:
        model_config: the model's JSON config.
        ckpt_path: its checkpoint.
        precomputed_embeddings_path: what :func:`precompute` wrote.
        lora_ckpt_path: an adapter on top of the checkpoint, or several, by strength.
        steps, cfg_scale, sampler, sampler_options, seed: as of
            :func:`~stable_audio_tools.inference.clips.generate_clips`.
        seconds: length of the clips; ``None`` is the length that the model was trained on.
        limit: render only the first prompts; ``None`` for all.
        gen_batch_size: clips rendered at once.
        clap: the CLAP to use; ``None`` is the one that made the set, by its name.
        clap_batch_size: clips embedded at once.
        device: where everything runs; ``None`` is the best there is.

    Returns:
        What :func:`~stable_audio_tools.evaluation.run.score_clips` returns, and the settings.

    Raises:
        DataError: the set is missing, has no prompts, or was made by another CLAP.
        CheckpointError: the checkpoint or the CLAP is missing or does not fit.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}: expected at least 1 prompt, or nothing for all of them")
    target = resolve_device(device)
    reference = ReferenceSet.load(precomputed_embeddings_path)
    if not reference.prompts:
        raise DataError(
            f"{precomputed_embeddings_path}: holds no prompts to render; make it with a caption table"
        )
    # Before hours of rendering: is the CLAP there?
    embedder = ClapEmbedder(clap or reference.clap, target, batch_size=clap_batch_size)
    require_same_clap(reference, embedder)
    files = ModelFiles(Path(model_config), Path(ckpt_path), lora_ckpt_path)
    model = files.load_conditional(target)
    length = model.config.duration_seconds if seconds is None else seconds
    requests = [
        ClipRequest(prompt, seconds_total=length, name=track_id)
        for prompt, track_id in zip(reference.prompts[:limit], reference.track_ids[:limit], strict=True)
    ]
    clips = generate_clips(
        model,
        requests,
        Path(output_dir) / "clips",
        batch_size=gen_batch_size,
        steps=steps,
        cfg_scale=cfg_scale,
        sampler=sampler,
        sampler_options=sampler_options,
        seed=seed,
        device=target,
        checkpoint=files.name,
        model_sha256=files.sha256(),
    )
    del model  # two models need not fit on one GPU
    scores = score_clips(clips, dict(zip(clips, reference.prompts, strict=False)), reference, embedder)
    scores["reference"] = str(precomputed_embeddings_path)
    scores["settings"] = {
        "model_config": str(model_config),
        "ckpt_path": str(ckpt_path),
        "lora_ckpt_path": [str(adapter) for adapter in files.adapters] or None,
        "model_sha256": files.sha256(),
        "steps": steps,
        "cfg_scale": cfg_scale,
        "sampler": sampler,
        "sampler_options": sampler_options or {},
        "seed": seed,
        "seconds": length,
        "limit": limit,
    }
    write_json(Path(output_dir) / "results.json", scores)
    return scores


def _first(reasons: dict[int, str]) -> str:
    return next(iter(reasons.values()))
