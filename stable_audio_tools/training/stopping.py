"""Signals that end a run before its last step: the last whole step is saved first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch

from stable_audio_tools.runtime.progress import say
from stable_audio_tools.training.checkpoints import CheckpointKeeper

SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")
"""Ctrl-C, a stop, and what Slurm is asked to send some time before it takes a machine away."""


class Stopped(Exception):  # noqa: N818 - nothing is wrong
    """A run ended by the signal ``number``, after its last whole step was saved."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class CutShort(BaseException):
    """A signal ended what may be done again; no one who catches errors takes it for one."""


def cutting(trainer: pl.Trainer) -> AbstractContextManager[None]:
    """A block that a signal ends at once, with :class:`CutShort`; also one that was heard before."""
    listeners = [each for each in getattr(trainer, "callbacks", ()) if isinstance(each, StopOnSignal)]
    return listeners[0].cutting() if listeners else nullcontext()


def leave_signals_to_us(trainer: pl.Trainer) -> None:
    """Keep Lightning from telling other ranks of a SIGTERM in each batch, for which it waits for the GPU.

    With :class:`StopOnSignal` ranks agree beside their work.
    """
    loop = trainer.fit_loop.epoch_loop
    if hasattr(loop, "_broadcast_sigterm_tensor"):
        setattr(loop, "_broadcast_sigterm_tensor", lambda: None)  # noqa: B010


class StopOnSignal(pl.Callback):
    """Ends the run at the end of the present batch when a signal comes, with the last whole step saved.

    Demos and evaluations, in :func:`cutting`, are given up then, and the validation of a single process: they
    may take longer than there is time, and the run that goes on does them first. Batches that were
    accumulated towards the next step are dropped and taken again by the run that goes on. A second Ctrl-C
    interrupts at once.

    Of several ranks it is enough that one hears the signal: after each batch they tell each other, beside the
    work of the next one, so that all stop at the same batch.

    It stands behind the side jobs, so that the step that is saved is that of one which was given up.

    Args:
        keeper: saves the step.
    """

    def __init__(self, keeper: CheckpointKeeper) -> None:
        self.keeper = keeper
        self.heard = 0
        self._cuts = False
        self._before: dict[int, Any] = {}
        self._group: Any = None
        self._told: tuple[Any, torch.Tensor] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen. Lightning has set its own handlers by now, and puts back what was there before them."""
        if trainer.received_sigterm:
            self.heard = signal.SIGTERM
        if trainer.world_size > 1:
            self._group = torch.distributed.new_group(backend="gloo")
        if threading.current_thread() is not threading.main_thread():
            return  # Python lets only that one listen
        for number in (getattr(signal, name) for name in SIGNALS if hasattr(signal, name)):
            self._before[number] = signal.signal(number, self._hear)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Stop here if any rank has heard a signal.

        Raises:
            Stopped: the step is saved and the run is to end.
        """
        number = self._agreed()
        if number:
            self._stop(trainer, pl_module, number)

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Give up the validation of a single process; of several, batches may be unequally many.

        Raises:
            Stopped: as at the end of a batch.
        """
        if self.heard and self._group is None:
            self._stop(trainer, pl_module, self.heard)

    @contextmanager
    def cutting(self) -> Iterator[None]:
        """See :func:`cutting`."""
        if self.heard:
            raise CutShort
        self._cuts = True
        try:
            yield
        finally:
            self._cuts = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop listening."""
        if self._told is not None:
            self._told[0].wait()
        self._leave()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Stop listening."""
        self._leave()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.heard:
                raise KeyboardInterrupt
            say("stopping after this batch, with a checkpoint; Ctrl-C again stops at once")
        self.heard = self.heard or number
        if self._cuts:
            self._cuts = False
            raise CutShort

    def _stop(self, trainer: pl.Trainer, pl_module: pl.LightningModule, number: int) -> None:
        self.keeper.save_now(trainer, pl_module)
        raise Stopped(number)

    def _agreed(self) -> int:
        """The signal that some rank had heard by the batch before this one; that of this rank if alone."""
        if self._group is None:
            return self.heard
        number = 0
        if self._told is not None:
            work, highest = self._told
            work.wait()
            number = int(highest)
        mine = torch.tensor([self.heard])
        maximum = torch.distributed.ReduceOp.MAX
        work = torch.distributed.all_reduce(mine, maximum, group=self._group, async_op=True)
        self._told = (work, mine)
        return number

    def _leave(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
