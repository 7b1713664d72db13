"""Jobs that use the averaged weights while a run goes on, and must never harm it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch

from stable_audio_tools.runtime.progress import say, warn
from stable_audio_tools.training.callbacks import StepCallback
from stable_audio_tools.training.module import ModelTrainer
from stable_audio_tools.training.sharding import whole_networks
from stable_audio_tools.training.stopping import CutShort, cutting

T = TypeVar("T")


class SideJob(StepCallback, ABC):
    """Every ``every`` steps, on the first rank: :meth:`work` with the averaged network in the model.

    The global generator, which generation seeds, is set aside meanwhile, so that a run with the job trains
    the same weights as one without. A job that fails is said in one line and does not end the run.

    Attributes:
        cut_short: a signal has ended it, and is about to end the run.
    """

    name = "side job"
    cut_short = False

    def __init__(self, every: int) -> None:
        self.every = every

    def on_step(self, trainer: pl.Trainer, module: ModelTrainer, step: int) -> None:
        """Do the work where it is time."""
        if step % self.every == 0:
            self.do(trainer, module, step)

    def do(self, trainer: pl.Trainer, module: ModelTrainer, step: int) -> None:
        """Do the work now, on every rank that has a part in it."""
        with whole_networks(trainer):
            if trainer.is_global_zero:
                self.send(trainer, self.attempt(trainer, module, step, self.work), step)

    def take(self, batch: Any) -> None:
        """Keep what the work needs of ``batch``: nothing, unless overridden."""

    def attempt(
        self,
        trainer: pl.Trainer,
        module: ModelTrainer,
        step: int,
        work: Callable[[Any, Any, int], T],
    ) -> T | None:
        """What ``work`` of the averaged model, ``module`` and ``step`` returns; None without success."""
        devices = [module.device] if module.device.type == "cuda" else []
        try:
            with (
                torch.random.fork_rng(devices=devices),
                torch.no_grad(),
                trainer.precision_plugin.forward_context(),
                module.averaged() as model,
                cutting(trainer),  # the innermost, so that all else is put back
            ):
                return work(model, module, step)
        except CutShort:
            self.cut_short = True
            say(f"step {step}: {self.name} is left to the run that goes on")
            return None
        except Exception as error:  # whatever went wrong here, the weights are more precious
            reason = " ".join(str(error).split()) or type(error).__name__
            warn(f"step {step}: {self.name} failed and training goes on: {reason}")
            return None

    def send(self, trainer: pl.Trainer, metrics: dict[str, float] | None, step: int) -> None:
        """Send numbers to every logger, if there are any."""
        for logger in trainer.loggers if metrics else []:
            logger.log_metrics(metrics or {}, step)

    @abstractmethod
    def work(self, model: Any, module: Any, step: int) -> dict[str, float]:
        """Use ``model``, averaged, of the trainer ``module``, and return numbers for the log, by name."""
