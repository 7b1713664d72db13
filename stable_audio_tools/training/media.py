"""Clips, pictures and prompts for the trackers that show them; the table of a run has numbers only."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CometLogger, Logger, TensorBoardLogger, WandbLogger
from torch import Tensor


@dataclass(frozen=True)
class ShownClip:
    """A clip of a demo, as it lies in the run folder.

    Attributes:
        name: of its files, without suffix.
        prompt: empty where it has none.
        audio: ``(C, T)`` within [-1, 1].
        sample_rate: in Hz.
        wav: the file.
        png: its spectrogram.
    """

    name: str
    prompt: str
    audio: Tensor
    sample_rate: int
    wav: Path
    png: Path


def _to_tensorboard(logger: Any, clip: ShownClip, step: int) -> None:
    from matplotlib.image import imread

    board = logger.experiment
    # TensorBoard plays one channel
    board.add_audio(f"demo/{clip.name}", clip.audio.mean(dim=0), step, sample_rate=clip.sample_rate)
    picture = imread(io.BytesIO(clip.png.read_bytes()), format="png")
    board.add_image(f"demo/{clip.name}/spectrogram", picture[..., :3], step, dataformats="HWC")
    if clip.prompt:
        board.add_text(f"demo/{clip.name}/prompt", clip.prompt, step)


def _to_wandb(logger: Any, clip: ShownClip, step: int) -> None:
    caption = [clip.prompt or clip.name]
    logger.log_audio(f"demo/{clip.name}", [str(clip.wav)], step=step, caption=caption)
    logger.log_image(f"demo/{clip.name}/spectrogram", [str(clip.png)], step=step, caption=caption)


def _to_comet(logger: Any, clip: ShownClip, step: int) -> None:
    experiment = logger.experiment
    about = {"prompt": clip.prompt}
    experiment.log_audio(
        str(clip.wav), sample_rate=clip.sample_rate, file_name=f"demo/{clip.name}", metadata=about, step=step
    )
    experiment.log_image(str(clip.png), name=f"demo/{clip.name}/spectrogram", step=step)


SHOW: dict[type[Logger], Callable[[Any, ShownClip, int], None]] = {
    TensorBoardLogger: _to_tensorboard,
    WandbLogger: _to_wandb,
    CometLogger: _to_comet,
}
"""By the kind of logger, how it is shown a clip. Others take numbers only."""


def show_clip(loggers: Iterable[Logger], clip: ShownClip, step: int) -> None:
    """Give ``clip`` with its spectrogram and prompt to the loggers that can show it."""
    for logger in loggers:
        for kind, show in SHOW.items():
            if isinstance(logger, kind):
                show(logger, clip, step)
