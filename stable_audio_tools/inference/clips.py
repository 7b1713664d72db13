"""Clips on disk: audio files that say how they were made, in a sidecar and in a tag."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from stable_audio_tools.audio.files import save_audio
from stable_audio_tools.audio.transforms import peak_normalize
from stable_audio_tools.data.sidecars import sidecar_path, sidecar_tag, write_sidecar
from stable_audio_tools.diffusion.noise import PerClipNoise
from stable_audio_tools.diffusion.samplers import get_sampler
from stable_audio_tools.errors import AudioError, ConfigError, UsageError
from stable_audio_tools.inference.generation import GenerationRun, SamplerOptions
from stable_audio_tools.inference.unconditional import UnconditionalRun
from stable_audio_tools.models.unconditional import DiffusionModelWrapper
from stable_audio_tools.runtime.device import resolve_device
from stable_audio_tools.runtime.files import hash_json, safe_name
from stable_audio_tools.runtime.manifest import installed_versions
from stable_audio_tools.runtime.progress import progress_bar, warn
from stable_audio_tools.schema.generation import ClipSidecar
from stable_audio_tools.schema.reader import read_json

_NOT_SETTINGS = {"created", "render_seconds", "versions"}


@dataclass(frozen=True)
class ClipRequest:
    """One clip to make.

    Attributes:
        prompt: what it should sound like; empty for a model that takes no prompts.
        seconds_total: length of the piece that the model is told of.
        seconds_start: where in that piece the clip begins; the clip lasts to ``seconds_total``.
        negative_prompt: what to steer away from.
        seed: 0 to 2^63 - 1, or None for the base seed plus the clip's position.
        conditioning: values of further conditioners, by id.
        name: stem of the file name, or None for the position and the prompt.
    """

    prompt: str
    seconds_total: float
    seconds_start: float = 0.0
    negative_prompt: str | None = None
    seed: int | None = None
    conditioning: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None

    def metadata(self, prompt: str) -> dict[str, Any]:
        """What the conditioners read, with ``prompt`` for the prompt."""
        times = {"seconds_start": self.seconds_start, "seconds_total": self.seconds_total}
        return {**times, **self.conditioning, "prompt": prompt}


@dataclass(frozen=True)
class _Job:
    request: ClipRequest
    path: Path
    num_samples: int
    sidecar: ClipSidecar


def generate_clips(
    model: Any,
    requests: Sequence[ClipRequest],
    out_dir: str | Path,
    *,
    batch_size: int = 4,
    steps: int = 100,
    cfg_scale: float = 7.0,
    sampler: str | None = None,
    sampler_options: Mapping[str, Any] | None = None,
    seed: int = 42,
    device: str | torch.device = "cpu",
    full_window: bool = False,
    normalize: bool = True,
    suffix: str = ".wav",
    checkpoint: str | None = None,
    model_sha256: str | None = None,
) -> list[Path]:
    """Render ``requests`` into ``out_dir``: for each, the audio file and ``<name>.json`` beside it.

    A clip depends on its request, the settings and its seed, and not on the batch that it was rendered in:
    on a CPU it is the clip of ``generate_diffusion_cond`` (or ``generate_diffusion_uncond``) with
    ``batch_size=1`` and that seed. Where
    ``model_sha256`` is given, a clip that is on disk already with the same weights and settings is kept, so
    that an interrupted run goes on where it stopped.

    Args:
        model: a ``ConditionedDiffusionModelWrapper`` or, for requests without prompts, a
            ``DiffusionModelWrapper``; it is moved to ``device`` and put in evaluation mode.
        batch_size: clips rendered at once, of those that are equally long.
        steps: sampler steps.
        cfg_scale: strength of guidance; without effect on a model that takes no prompts.
        sampler: a name of ``diffusion.samplers.SAMPLERS``, or None for the objective's default.
        sampler_options: more of :class:`~stable_audio_tools.inference.generation.SamplerOptions`, by name.
        seed: base seed; clip i has ``seed + i`` unless its request names one.
        full_window: render the whole training window and cut it to length, as the public package does. By
            default only the length that was asked for is rendered.
        normalize: scale each clip to a peak of 1; silence stays silence.
        suffix: ``.wav``, ``.flac`` or ``.ogg``.
        checkpoint: file that the weights came from, for the sidecar.
        model_sha256: hash of that file, for the sidecar.

    Returns:
        The audio files, in the order of ``requests``.

    Raises:
        UsageError: an argument does not fit.
        AudioError: a clip came out as NaN or infinite; the message names it. Clips before it are on disk.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, found {batch_size}")
    options = SamplerOptions.parse({**(sampler_options or {}), "sampler_type": sampler})
    _, chosen = get_sampler(sampler, model.diffusion_objective)
    if not chosen.batch_independent:
        batch_size = 1
    if _is_unconditional(model):
        cfg_scale = 1.0
    common = _common_settings(model, options, steps, cfg_scale, checkpoint, model_sha256)
    common["sampler_options"] |= {"full_window": full_window, "normalize": normalize}
    jobs = _plan(model, requests, Path(out_dir), suffix, seed, common)
    # Without the hash a clip of other weights would look the same.
    todo = [job for job in jobs if model_sha256 is None or not _is_done(job)]
    target = resolve_device(device)
    if todo:
        model.to(target).eval()
    with progress_bar("rendering", total=len(jobs)) as progress:
        bar = progress.task_ids[0]
        progress.advance(bar, len(jobs) - len(todo))
        for batch in _batches(todo, batch_size):
            started = time.perf_counter()
            window = model.config.sample_size if full_window else batch[0].num_samples
            audio = _render(model, batch, window, target, options, steps, cfg_scale)
            seconds_each = (time.perf_counter() - started) / len(batch)
            for job, clip in zip(batch, audio, strict=True):
                _save(job, clip[:, : job.num_samples], normalize, seconds_each)
                progress.advance(bar)
    return [job.path for job in jobs]


def _common_settings(
    model: Any,
    options: SamplerOptions,
    steps: int,
    cfg_scale: float,
    checkpoint: str | None,
    model_sha256: str | None,
) -> dict[str, Any]:
    """What all clips of a run have in their sidecars."""
    name, chosen = get_sampler(options.sampler_type, model.diffusion_objective)
    kept = ("sigma_min", "rho", "scale_phi", "cfg_interval", "dist_shift")
    return {
        "sample_rate": model.sample_rate,
        "steps": steps,
        "cfg_scale": cfg_scale,
        "sampler": name,
        "sampler_options": {key: getattr(options, key) for key in kept}
        | {
            "sigma_max": chosen.first_level(options.sigma_max),
            "cfg_interval": list(options.cfg_interval),
        }
        | options.projection,
        "objective": model.diffusion_objective,
        "checkpoint": checkpoint,
        "model_sha256": model_sha256,
        "config_sha256": hash_json(model.config.model_dump(mode="json")),
        "versions": installed_versions(),
    }


def _plan(
    model: Any, requests: Sequence[ClipRequest], folder: Path, suffix: str, seed: int, common: dict[str, Any]
) -> list[_Job]:
    """Name, length and sidecar of every clip."""
    unconditional = _is_unconditional(model)
    digits = max(4, len(str(len(requests))))
    taken: set[str] = set()
    jobs, cut = [], 0
    for position, request in enumerate(requests):
        if unconditional and (request.prompt or request.negative_prompt is not None):
            raise UsageError(f"clip {position}: found a prompt, but this model takes none; leave it empty")
        seconds = request.seconds_total - request.seconds_start
        if not math.isfinite(seconds) or round(seconds * model.sample_rate) < 1:
            raise UsageError(
                f"clip {position}: seconds_total {request.seconds_total} must be above"
                f" seconds_start {request.seconds_start}"
            )
        num_samples = round(seconds * model.sample_rate)
        cut += num_samples > model.config.sample_size
        num_samples = min(num_samples, model.config.sample_size)
        stem = safe_name(request.name or f"{position:0{digits}d}_{request.prompt}")
        path = folder / f"{_unique(stem, taken)}{suffix}"
        sidecar = ClipSidecar(
            file=path.name,
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            conditioning=dict(request.conditioning),
            seconds_start=request.seconds_start,
            seconds_total=request.seconds_total,
            duration_seconds=num_samples / model.sample_rate,
            seed=seed + position if request.seed is None else request.seed,
            created="",
            render_seconds=0.0,
            **common,
        )
        if not 0 <= sidecar.seed < 2**63:
            raise UsageError(f"clip {position}: seed {sidecar.seed}, expected 0 to 2^63 - 1")
        jobs.append(_Job(request, path, num_samples, sidecar))
    if cut:
        longest = model.config.duration_seconds
        warn(f"{cut} clips are cut to {longest:.1f} s, the longest that this model was trained on")
    return jobs


def _is_unconditional(model: Any) -> bool:
    """Whether it takes no prompts."""
    return isinstance(model, DiffusionModelWrapper)


def _unique(stem: str, taken: set[str]) -> str:
    """``stem``, or ``stem-2`` and so on; case does not count, as on some file systems."""
    name, number = stem, 1
    while name.lower() in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name.lower())
    return name


def _is_done(job: _Job) -> bool:
    """Whether the clip is on disk with these settings. The sidecar is written last and vouches for both."""
    sidecar = sidecar_path(job.path)
    if not job.path.is_file() or not sidecar.is_file():
        return False
    try:
        found = ClipSidecar.model_validate(read_json(sidecar))
    except (ConfigError, ValidationError):
        return False
    return found.model_dump(exclude=_NOT_SETTINGS) == job.sidecar.model_dump(exclude=_NOT_SETTINGS)


def _batches(jobs: Sequence[_Job], batch_size: int) -> Iterator[list[_Job]]:
    """Clips that can be rendered together: equally long, and all with or all without a negative prompt."""
    groups: dict[tuple[int, bool], list[_Job]] = {}
    for job in jobs:
        groups.setdefault((job.num_samples, job.request.negative_prompt is not None), []).append(job)
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


@torch.no_grad()
def _render(
    model: Any,
    batch: Sequence[_Job],
    num_samples: int,
    device: torch.device,
    options: SamplerOptions,
    steps: int,
    cfg_scale: float,
) -> Tensor:
    """Audio ``(B, C, num_samples)`` on the CPU."""
    kind = UnconditionalRun if _is_unconditional(model) else GenerationRun
    run = kind(model, len(batch), num_samples, device, options)
    source = PerClipNoise([job.sidecar.seed for job in batch])
    noise = source.initial(run.latent_shape).to(device)
    tensors = run.embed([job.request.metadata(job.request.prompt) for job in batch], None)
    negative: Mapping[str, Any] = {}
    if batch[0].request.negative_prompt is not None:
        negative = run.embed([job.request.metadata(job.request.negative_prompt or "") for job in batch], None)
    latents = run.sample(noise, tensors, negative, steps, cfg_scale, noise_source=source)
    return run.decode(latents).cpu()


def _save(job: _Job, audio: Tensor, normalize: bool, render_seconds: float) -> None:
    if not torch.isfinite(audio).all():
        raise AudioError(
            f"{job.path}: the model made NaN or infinite samples for {job.request.prompt!r}; it was not"
            " written. Try float32 weights, a lower cfg_scale or other sigmas, and check the checkpoint"
        )
    sidecar = job.sidecar.model_copy(
        update={
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "render_seconds": round(render_seconds, 3),
        }
    )
    beside = sidecar_path(job.path)
    beside.unlink(missing_ok=True)
    tags = {"title": job.request.prompt, "comment": sidecar_tag(sidecar)}
    save_audio(job.path, peak_normalize(audio) if normalize else audio, job.sidecar.sample_rate, tags=tags)
    write_sidecar(job.path, sidecar)
