"""Checkpoints of a run: written in one step, kept by a rule, found again."""

from __future__ import annotations

import errno
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from stable_audio_tools.errors import CheckpointError, TrainingError
from stable_audio_tools.models.adapters.peft_folder import save_adapter
from stable_audio_tools.models.checkpoints import LoadReport, checkpoint_kind
from stable_audio_tools.models.checkpoints.zero import bare_weights, weights_file
from stable_audio_tools.runtime.files import atomic_path, write_json
from stable_audio_tools.runtime.progress import warn
from stable_audio_tools.schema.reader import read_json
from stable_audio_tools.training.module import ModelTrainer, ours

_NAME = re.compile(r"step=(\d+)\.ckpt")
ADAM_STATES = 2
"""Most optimizers keep two numbers for each that is trained."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under another name, then renames it: a kill leaves the old one or the new one."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write ``checkpoint`` to ``path``.

        Raises:
            TrainingError: the disk is full; nothing is left of the file, and those before it stay.
        """
        try:
            with atomic_path(path) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:  # torch's own writer raises a RuntimeError without a number
            needed = _size_of(checkpoint)
            free = free_space(path)
            if getattr(error, "errno", None) not in _FULL and free >= 1.25 * needed:
                raise
            raise TrainingError(
                f"{path}: not written, the disk is full: a checkpoint takes {gigabytes(needed)},"
                f" {gigabytes(free)} are free; those before it are untouched. Make room, or keep fewer with"
                " --save-top-k, and go on with --recover"
            ) from error


class CheckpointKeeper(pl.Callback):
    """Saves ``step=<n>.ckpt`` every so many steps, at the end and when told; ``best.ckpt`` by validation.

    A step may be saved while batches of the next are being accumulated: weights and optimizer are still those
    of the step, and the position in the data is put back to it, so that these batches are taken again.

    A LoRA run also gets a PEFT folder of the same name, ``.adapter``, beside each checkpoint.

    Args:
        folder: where checkpoints go.
        every: optimizer steps between checkpoints.
        keep: how many of the newest to keep; -1 keeps all. ``best.ckpt`` is always kept.
        base: name and SHA-256 of the checkpoint that adapters are trained on.
    """

    def __init__(self, folder: Path, every: int, keep: int = -1, base: tuple[str, str] | None = None) -> None:
        self.folder = folder
        self.every = every
        self.keep = keep
        self.base = base
        self.best_loss = float("inf")
        self._saved_step = -1

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Recall the best loss of a run that goes on."""
        record = self.folder / "best.json"
        if record.is_file():
            self.best_loss = read_json(record)["val_loss"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Clear away what a killed writer left."""
        self._saved_step = ours(pl_module).steps_done
        if trainer.is_global_zero:
            for leftover in self.folder.glob(".tmp-*"):
                leftover.unlink()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Save where a step was completed and it is time."""
        module = ours(pl_module)
        if module.micro_batch == 0 and module.steps_done % self.every == 0:
            self._save_step(trainer, module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last step, if it is not saved yet."""
        self.save_now(trainer, pl_module)

    def save_now(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last whole step, if it is not saved yet."""
        module = ours(pl_module)
        if module.steps_done != self._saved_step:
            self._save_step(trainer, module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put Lightning's count of batches back to the end of the step."""
        over = ours(pl_module).micro_batch
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            for name in ("ready", "started", "processed", "completed"):
                counts[name] -= over

    def offer_best(self, trainer: pl.Trainer, module: ModelTrainer, loss: float) -> None:
        """Save ``best.ckpt`` if ``loss`` is the lowest so far; ``best.json`` says whose it is."""
        if loss >= self.best_loss:
            return
        self.best_loss = loss
        self._write(trainer, module, self.folder / "best.ckpt")
        if trainer.is_global_zero:
            write_json(self.folder / "best.json", {"step": module.steps_done, "val_loss": loss})

    def _save_step(self, trainer: pl.Trainer, module: ModelTrainer) -> None:
        self._write(trainer, module, self.folder / f"step={module.steps_done:08d}.ckpt")
        self._saved_step = module.steps_done
        if self.keep > 0 and trainer.is_global_zero:
            for old in step_checkpoints(self.folder)[: -self.keep]:
                shutil.rmtree(old) if old.is_dir() else old.unlink()
                shutil.rmtree(old.with_suffix(".adapter"), ignore_errors=True)

    def _write(self, trainer: pl.Trainer, module: ModelTrainer, path: Path) -> None:
        trainer.save_checkpoint(path)
        if module.lora and trainer.is_global_zero:
            base_name, base_sha256 = self.base or (None, None)
            save_adapter(module.wrapped, path.with_suffix(".adapter"), base_sha256, base_name)


def step_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints ``step=<n>.ckpt`` in ``folder``, by step."""
    found = [(int(match[1]), path) for path in folder.glob("*.ckpt") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def newest_first(runs: Path) -> list[Path]:
    """The checkpoints in all run folders of ``runs`` (``<save-dir>/<name>``), the one last written first."""
    found = [path for run in runs.glob("*/checkpoints") for path in step_checkpoints(run)]
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)


def newest_checkpoint(runs: Path) -> Path | None:
    """The checkpoint last written in any run folder of ``runs``, or None."""
    return next(iter(newest_first(runs)), None)


def require_whole(path: Path) -> None:
    """Compare every part of a checkpoint with its checksum, which takes one reading of the file.

    Raises:
        CheckpointError: it is cut short, or bits of it have changed.
    """
    if path.is_dir():  # of DeepSpeed, which writes the file "latest" at the end
        if not (path / "latest").is_file():
            raise CheckpointError(f"{path}: damaged: it was not written to its end")
        path = weights_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from error
    if bad is not None:
        raise CheckpointError(f"{path}: damaged: {bad} does not match its checksum")


def free_space(path: str | Path) -> int:
    """Bytes free where ``path`` is, or is going to be."""
    there = Path(path).absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def gigabytes(count: int) -> str:
    """``count`` bytes in words."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def warn_of_little_space(module: ModelTrainer, folder: Path) -> None:
    """Say it where there is no room for two checkpoints of ``module`` in ``folder``."""
    state = sum(value.nbytes for value in module.saved_state().values())
    trained = sum(each.nbytes for each in module.parameters() if each.requires_grad)
    needed, free = state + ADAM_STATES * trained, free_space(folder)
    if free < 2 * needed:
        warn(
            f"{folder}: {gigabytes(free)} are free, and a checkpoint takes about {gigabytes(needed)};"
            " make room for two at least, since the old one goes when the new one is there"
        )


def _size_of(value: Any) -> int:
    """Bytes of the tensors in nested dicts and lists."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(_size_of, value.values()))
    return sum(map(_size_of, value)) if isinstance(value, list | tuple) else 0


def read_record(path: str | Path) -> dict[str, Any]:
    """What a training checkpoint records about its run: everything in it but tensors and loop states.

    ``shapes`` is the shape of each weight by name.

    Raises:
        CheckpointError: there is no such file, it cannot be read, or it is no training checkpoint.
    """
    path = Path(path)
    in_folder = path.is_dir()
    if in_folder:
        path = weights_file(path)
    if not path.is_file():
        raise CheckpointError(f"--ckpt-path: {path}: no such file")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises many kinds, all of which mean the same to the user
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"--ckpt-path: {path}: not a readable checkpoint: {reason}") from error
    if in_folder and isinstance(checkpoint, dict):  # the optimizer is in files beside it
        checkpoint |= {"state_dict": bare_weights(checkpoint.pop("module", {})), "optimizer_states": []}
    if not isinstance(checkpoint, dict) or "optimizer_states" not in checkpoint:
        raise CheckpointError(
            f"--ckpt-path: {path}: expected a training checkpoint with optimizer states, found one without;"
            " to start from plain weights use --pretrained-ckpt-path"
        )
    heavy = {"state_dict", "optimizer_states", "loops", "callbacks"}
    shapes = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
    return {**{key: value for key, value in checkpoint.items() if key not in heavy}, "shapes": shapes}


def require_same_weights(path: Path, shapes: Mapping[str, tuple[int, ...]], module: ModelTrainer) -> None:
    """Refuse to continue from a checkpoint of another model, or of a LoRA run with a full one.

    Args:
        path: the checkpoint.
        shapes: of the weights in it, by name.

    Raises:
        CheckpointError: weights are missing, unexpected or of another shape; some are named.
    """
    own = {name: tuple(value.shape) for name, value in module.saved_state().items()}
    shared = [name for name in own if name in shapes]
    report = LoadReport(
        path,
        checkpoint_kind(shapes),
        "stored",
        len(shared),
        missing=tuple(name for name in own if name not in shapes),
        unexpected=tuple(name for name in shapes if name not in own),
        mismatched=tuple(name for name in shared if own[name] != shapes[name]),
    )
    if problems := report.problems():
        raise CheckpointError(
            f"--ckpt-path: {path}: is not a checkpoint of this {'LoRA run' if module.lora else 'model'}:"
            f" {problems}; continue with the model config of that run, and with train_lora.py if it was one"
        )
