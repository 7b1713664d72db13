"""What happens around the steps of a run: numbers are logged, progress shown, a bad batch written down."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from stable_audio_tools.runtime.files import write_json
from stable_audio_tools.runtime.progress import console, say
from stable_audio_tools.training.checkpoints import CheckpointKeeper
from stable_audio_tools.training.gauges import Gauges
from stable_audio_tools.training.module import ModelTrainer, ours

_SHOWN = {
    "train/loss": "loss {:.4f}",
    "speed/steps_per_second": "{:.2f} steps/s",
    "speed/clips_per_second": "{:.1f} clips/s",
    "memory/peak_gib": "{:.2f} GiB",
}
"""What the line of progress shows of the numbers logged last."""


class StepCallback(pl.Callback):
    """A callback that acts once per optimizer step, whatever the accumulation."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Pass on the batches that completed a step."""
        module = ours(pl_module)
        if module.micro_batch == 0:
            self.on_step(trainer, module, module.steps_done)

    def on_step(self, trainer: pl.Trainer, module: ModelTrainer, step: int) -> None:
        """Act on step ``step``, counted from 1 over all resumes."""


class MetricsLog(StepCallback):
    """Sends the module's numbers to every logger each ``every`` steps, and after validation.

    The validation loss also decides what ``keeper`` keeps as the best checkpoint. What ``gauges`` have
    measured is logged beside the losses.
    """

    def __init__(self, every: int, keeper: CheckpointKeeper, gauges: Gauges) -> None:
        self.every = every
        self.keeper = keeper
        self.gauges = gauges
        self.latest: dict[str, float] = {}

    def on_step(self, trainer: pl.Trainer, module: ModelTrainer, step: int) -> None:
        """Log the steps since the last time; the last step too, so that a short run has its numbers."""
        if step % self.every == 0 or step == trainer.max_steps:
            # the losses first: once they are here, the GPU has done all that the gauges ask about
            losses = module.take_metrics()
            self._log(trainer, losses | self.gauges.take(step, module.device), step)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the validation loss and offer the checkpoint."""
        module = ours(pl_module)
        metrics = module.take_validation()
        if metrics:
            self._log(trainer, metrics, module.steps_done)
            say(f"step {module.steps_done}: validation loss {metrics['val/loss']:.4f}")
            self.keeper.offer_best(trainer, module, metrics["val/loss"])

    def _log(self, trainer: pl.Trainer, metrics: dict[str, float], step: int) -> None:
        self.latest.update(metrics)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step)


class StepProgress(StepCallback):
    """Step, loss, rate, memory and time left: a live bar in a terminal, elsewhere a line with each logged
    loss.

    The rate is that of the steps between two logged values; the time left counts on demos, validation and
    checkpoints to take as long as they did so far.
    """

    def __init__(self, metrics: MetricsLog, max_steps: int) -> None:
        self.metrics = metrics
        self.max_steps = max_steps
        self._bar: Progress | None = None
        self._first_step = 0
        self._started = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, and the bar where there is a terminal."""
        self._first_step, self._started = ours(pl_module).steps_done, time.monotonic()
        if trainer.is_global_zero and console.is_terminal:
            total = self.max_steps if self.max_steps > 0 else None
            columns = (
                TextColumn("training"),
                BarColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, console=console)
            self._bar.add_task("", total=total, completed=self._first_step)
            self._bar.start()

    def on_step(self, trainer: pl.Trainer, module: ModelTrainer, step: int) -> None:
        """Show how far it is."""
        if not trainer.is_global_zero:
            return
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, description=self._line(step))
        elif step % self.metrics.every == 0 or step == self.max_steps:
            say(f"step {self._line(step)}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the bar as it is."""
        self._stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back before the error is shown."""
        self._stop()

    def _line(self, step: int) -> str:
        total = f"/{self.max_steps}" if self.max_steps > 0 else ""
        parts = [f"{step}{total}"]
        parts += [
            shown.format(self.metrics.latest[name])
            for name, shown in _SHOWN.items()
            if name in self.metrics.latest
        ]
        elapsed = time.monotonic() - self._started
        if self.max_steps > 0 and step > self._first_step:
            left = (self.max_steps - step) * elapsed / (step - self._first_step)
            parts.append(f"{_duration(left)} left")
        return "  ".join(parts)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class BadBatchReport(pl.Callback):
    """Writes ``nan_batch.json`` into the run folder when a loss was not finite."""

    def __init__(self, run_folder: Path) -> None:
        self.path = run_folder / "nan_batch.json"

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Write down the batch that failed."""
        bad_batch = ours(pl_module).watch.bad_batch
        if bad_batch is not None:
            write_json(self.path, bad_batch)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
