"""What was due at the step that a run goes on from, and was cut off there: it is done first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from stable_audio_tools.runtime.files import write_json
from stable_audio_tools.runtime.progress import say
from stable_audio_tools.schema.reader import read_json
from stable_audio_tools.training.callbacks import StepCallback
from stable_audio_tools.training.module import ModelTrainer, ours
from stable_audio_tools.training.side_jobs import SideJob

VALIDATION = "the validation"
_START = "start"


def begin_record(run_folder: Path, step: int) -> None:
    """Write down that a run begins at ``step`` and owes nothing, unless it goes on in its own folder."""
    path = _record(run_folder)
    if not path.exists():
        write_json(path, {_START: step})


class CatchingUp(StepCallback):
    """Does what a run still owes for the step of its checkpoint, before it takes the next step.

    Weights are saved before anything else is done at a step, so a run that ends in between would go on past a
    validation, a demo or an evaluation that never was. ``jobs.json`` in the run folder has the step at which
    each was last done. What is owed is tried once, unless a signal cuts it short: it may be what ended the
    run.

    Args:
        jobs: what is done beside the training. They stand before this callback, and what ends the run behind
            it.
        val_every: steps between validations; None where there are none.
    """

    def __init__(self, run_folder: Path, jobs: Sequence[SideJob], val_every: int | None) -> None:
        self.path = _record(run_folder)
        self.jobs = jobs
        self.every = {job.name: job.every for job in jobs}
        if val_every is not None:
            self.every[VALIDATION] = val_every
        self._owed: dict[str, int] = {}
        self._started = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See what is owed, and validate if that is."""
        self._started = True
        self._begin(trainer, ours(pl_module))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Do the owed jobs: before the first batch is worked on, which they may need."""
        self._do_jobs(trainer, ours(pl_module), batch)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Catch up where training did not start, since all steps are taken."""
        if self._started:
            return
        self._begin(trainer, ours(pl_module))
        if self._owed:
            loader: Any = trainer.train_dataloader
            self._do_jobs(trainer, ours(pl_module), next(iter(loader)))

    def on_step(self, trainer: pl.Trainer, module: ModelTrainer, step: int) -> None:
        """The jobs of this step are done, or cut short."""
        done = [job.name for job in self.jobs if step % job.every == 0 and not job.cut_short]
        self._note(trainer, dict.fromkeys(done, step))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """So is the validation."""
        self._note(trainer, {VALIDATION: ours(pl_module).steps_done})

    def _begin(self, trainer: pl.Trainer, module: ModelTrainer) -> None:
        step = module.steps_done
        # only the first rank reads the record, which it is about to change
        owed = trainer.strategy.broadcast(self._look(step) if trainer.is_global_zero else {})
        if not owed:
            return
        say(f"step {step}: not done before the run ended, so first: {', '.join(owed)}")
        self._note(trainer, dict.fromkeys(owed, step))
        self._owed = owed
        if VALIDATION in owed:
            _validate(trainer)

    def _do_jobs(self, trainer: pl.Trainer, module: ModelTrainer, batch: Any) -> None:
        owed, self._owed = self._owed, {}
        for job in self.jobs:
            if job.name in owed:
                job.take(batch)
                job.do(trainer, module, module.steps_done)
                if job.cut_short:
                    self._note(trainer, {job.name: owed[job.name]})

    def _look(self, step: int) -> dict[str, int]:
        """What was due by ``step`` but was last done before, by name, and when that was."""
        record: dict[str, int] = read_json(self.path)
        done = {name: record.get(name, record[_START]) for name in self.every}
        return {name: done[name] for name, every in self.every.items() if done[name] < step // every * every}

    def _note(self, trainer: pl.Trainer, done: Mapping[str, int]) -> None:
        if done and trainer.is_global_zero:
            write_json(self.path, read_json(self.path) | dict(done))


def _validate(trainer: pl.Trainer) -> None:
    """Validate as Lightning does between two batches."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False
    trainer.validating = True
    loop.run()
    trainer.training = True


def _record(run_folder: Path) -> Path:
    return run_folder / "jobs.json"
