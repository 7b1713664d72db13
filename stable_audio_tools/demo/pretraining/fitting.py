"""The training loop that all tiny models share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from stable_audio_tools.errors import TrainingError
from stable_audio_tools.runtime.progress import progress_bar, say


@dataclass(frozen=True)
class FitSettings:
    """How long and how fast. ``limit_seconds`` ends a run early, its schedule complete."""

    steps: int
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    ema_decay: float = 0.998
    warmup: float = 0.02
    limit_seconds: float | None = None


@dataclass
class History:
    """Steps taken, seconds, and every logged value averaged over twenty stretches of the run."""

    steps: int = 0
    seconds: float = 0.0
    curves: dict[str, list[float]] = field(default_factory=dict)


def fit(
    name: str,
    model: nn.Module,
    step_fn: Callable[[int], tuple[Tensor, dict[str, Tensor]]],
    settings: FitSettings,
) -> History:
    """Minimise ``step_fn(step) -> (loss, values to log)`` with AdamW on a warm-up and cosine schedule.

    The trained parameters of ``model`` are replaced by their running average at the end.

    Raises:
        TrainingError: the loss is not finite.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, settings.learning_rate, (0.9, 0.98), weight_decay=settings.weight_decay
    )
    average, update_average = (
        [p.detach().clone() for p in parameters],
        get_ema_multi_avg_fn(settings.ema_decay),
    )
    history, window = History(), max(1, settings.steps // 20)
    totals: dict[str, Tensor] = {}
    started = time.monotonic()
    with progress_bar(f"training {name}", settings.steps) as bar:
        for step in range(settings.steps):
            progress = step / settings.steps
            if settings.limit_seconds is not None:
                progress = max(progress, (time.monotonic() - started) / settings.limit_seconds)
            if progress >= 1:
                break
            rate = min(1.0, progress / settings.warmup) * (0.5 + 0.5 * math.cos(math.pi * progress))
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * max(rate, 1e-3)
            loss, values = step_fn(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
            optimizer.step()
            if step == 0:
                average = [p.detach().clone() for p in parameters]
            with torch.no_grad():
                update_average(average, [p.detach() for p in parameters], step)
            for key, value in {"loss": loss.detach(), **values}.items():
                totals[key] = totals.get(key, torch.zeros_like(value)) + value
            history.steps = step + 1
            bar.advance(bar.task_ids[0])
            if (step + 1) % window == 0:
                _log(name, history, totals, window, time.monotonic() - started)
                totals = {}
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=True):
            parameter.copy_(mean)
    history.seconds = time.monotonic() - started
    return history


def _log(name: str, history: History, totals: dict[str, Tensor], count: int, seconds: float) -> None:
    means = {key: float(total) / count for key, total in totals.items()}
    if not math.isfinite(means["loss"]):
        raise TrainingError(f"training {name}: the loss is {means['loss']} near step {history.steps}")
    for key, mean in means.items():
        history.curves.setdefault(key, []).append(round(mean, 5))
    values = ", ".join(f"{key} {mean:.4f}" for key, mean in means.items())
    say(f"{name}: step {history.steps}, {seconds:.0f} s, {values}")
