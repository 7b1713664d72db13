"""``index.html`` of a run folder: its curves, drawn again while the run goes on."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from stable_audio_tools.audio.plots import curves_png
from stable_audio_tools.report.page import Cell, Page, image, link, side_by_side, table, text

SHARE = 0.01
"""Of the time of a run that drawing the page may take."""
LEAST_SECONDS = 10.0
"""Between two drawings."""
POINTS = 400
"""Of a curve at most; where there are more, each is the mean of its neighbours."""


class _Plot(NamedTuple):
    """A picture: its title, which metrics are in it, what its axis is, and whether that is logarithmic."""

    title: str
    wanted: Callable[[str], bool]
    ylabel: str = ""
    log: bool = False


def _starts(*beginnings: str) -> Callable[[str], bool]:
    return lambda name: name.startswith(beginnings)


def _is(*names: str) -> Callable[[str], bool]:
    return lambda name: name in names


PLOTS: dict[str, tuple[str, list[_Plot]]] = {
    "Loss": (
        "The mean of the steps since the value before. Timesteps are drawn anew in each step, so a curve of a"
        " diffusion model is noisy and soon looks flat; trust the bands and the validation below.",
        [_Plot("training and validation", _is("train/loss", "val/loss"), "loss")],
    ),
    "Loss by timestep": (
        "0 is clean and 1 is noise. A band that rises while others fall is where the model gets worse.",
        [
            _Plot("training, by band", _starts("train/loss_t"), "loss"),
            _Plot(
                "validation, at fixed timesteps with the same noise every time", _starts("val/loss_t"), "loss"
            ),
        ],
    ),
    "Parts of the loss": (
        "As they are added up, weights included.",
        [
            _Plot("training", lambda name: _is_part(name, "train/"), "loss"),
            _Plot("validation", lambda name: _is_part(name, "val/"), ""),
        ],
    ),
    "Evaluation": (
        "Of clips from the averaged weights: a lower FAD is closer to real music, a higher alignment"
        " closer to the prompts.",
        [
            _Plot("Fréchet audio distance", _is("eval/fad"), "FAD"),
            _Plot("agreement with the prompts", _is("eval/alignment"), "cosine"),
        ],
    ),
    "Optimizer": (
        "The norm is that of the gradient before it is clipped.",
        [
            _Plot("learning rate", _is("train/lr", "train/disc_lr")),
            _Plot("gradient norm", _is("train/grad_norm", "train/disc_grad_norm"), log=True),
        ],
    ),
    "Speed": (
        "Demos, validation and checkpoints are not counted. Waiting for data above a quarter means that the"
        " loader is the limit.",
        [
            _Plot("steps per second", _is("speed/steps_per_second")),
            _Plot("share of the time spent waiting for data", _is("speed/waiting_for_data")),
            _Plot("peak memory", _is("memory/peak_gib"), "GiB"),
        ],
    ),
}
"""Sections of the page in their order, each with what to know and its pictures."""

_ELSEWHERE = (
    "train/loss",
    "val/loss",
    "train/lr",
    "train/disc_lr",
    "train/grad_norm",
    "train/disc_grad_norm",
)


class RunPage(Logger):
    """Draws what is logged. It costs at most a hundredth of the time of the run.

    Args:
        folder: the run folder, where ``index.html`` goes; a ``metrics.csv`` that a run goes on with is read.
        project: the name of the run.
    """

    def __init__(self, folder: Path, project: str) -> None:
        super().__init__()
        self.folder = folder
        self.project = project
        self.state = "running"
        self.curves: dict[str, tuple[list[float], list[float]]] = {}
        self._started = time.monotonic()
        self._next, self._drawn = 0.0, False
        self._read(folder / "metrics.csv")

    @property
    def name(self) -> str:
        """What Lightning calls it."""
        return "page"

    @property
    def version(self) -> str:
        """The run id."""
        return self.folder.name

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Take the numbers, and draw the page where it is time."""
        for name, value in metrics.items():
            self._add(name, float(step or 0), float(value))
        if time.monotonic() >= self._next:
            self.write()

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the manifest of the run has them."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Draw the page for the last time."""
        self.state = {"success": "finished", "failed": "stopped by an error"}.get(status, status)
        self.write()

    def write(self) -> None:
        """Draw the page, and wait a hundred times as long before it is drawn again."""
        if not self.curves:
            return
        started = time.monotonic()
        page = Page(f"Run {self.project}", f"{self.folder.name}: {self.state}, step {self._last_step():.0f}")
        page.section("In short", self._facts(), *self._links())
        for title, (about, plots) in PLOTS.items():
            pictures = [image(png, plot.title) for plot in plots if (png := self._draw(plot)) is not None]
            if pictures:
                page.section(title, text(about), side_by_side(pictures))
        page.write(self.folder / "index.html")
        now = time.monotonic()
        # the first drawing loads matplotlib, so it says nothing of the next
        rest = (now - started) / SHARE if self._drawn else LEAST_SECONDS
        self._next, self._drawn = now + max(LEAST_SECONDS, rest), True

    def _read(self, path: Path) -> None:
        if not path.is_file():
            return
        with path.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                for name, value in row.items():
                    if name != "step" and value:
                        self._add(name, float(row["step"]), float(value))

    def _add(self, name: str, step: float, value: float) -> None:
        steps, values = self.curves.setdefault(name, ([], []))
        steps.append(step)
        values.append(value)

    def _last_step(self) -> float:
        return max(steps[-1] for steps, _ in self.curves.values())

    def _facts(self) -> Markup:
        shown = [
            ("train/loss", "training loss"),
            ("val/loss", "validation loss"),
            ("eval/fad", "Fréchet audio distance"),
            ("eval/alignment", "agreement with the prompts"),
            ("train/grad_norm", "gradient norm"),
            ("speed/steps_per_second", "steps per second"),
            ("speed/clips_per_second", "clips per second"),
            ("speed/waiting_for_data", "share of the time spent waiting for data"),
            ("memory/peak_gib", "peak memory in GiB"),
        ]
        rows: list[list[Cell]] = []
        for name, label in shown:
            if name in self.curves:
                steps, values = self.curves[name]
                best: str | float = min(values) if name in ("train/loss", "val/loss", "eval/fad") else ""
                rows.append([label, values[-1], f"step {steps[-1]:.0f}", best])
        return table(["", "last", "at", "lowest"], rows)

    def _links(self) -> list[Markup]:
        there = [
            ("demos/index.html", "demos to listen to"),
            ("metrics.csv", "all numbers"),
            ("manifest.json", "settings and versions"),
        ]
        links = [link(path, label) for path, label in there if (self.folder / path).is_file()]
        return [Markup("<p>{}</p>").format(Markup(" · ").join(links))] if links else []

    def _draw(self, plot: _Plot) -> bytes | None:
        chosen = {
            _short(name): thinned(steps, values)
            for name, (steps, values) in sorted(self.curves.items())
            if plot.wanted(name)
        }
        if not chosen:
            return None
        return curves_png(chosen, title=plot.title, xlabel="step", ylabel=plot.ylabel, log_y=plot.log)


def thinned(
    steps: Sequence[float], values: Sequence[float], points: int = POINTS
) -> tuple[list[float], list[float]]:
    """A curve of at most ``points``: neighbours are averaged, so that noise shrinks and nothing is lost."""
    size = -(-len(steps) // points)
    if size <= 1:
        return list(steps), list(values)
    starts = range(0, len(steps), size)
    return (
        [sum(steps[i : i + size]) / len(steps[i : i + size]) for i in starts],
        [sum(values[i : i + size]) / len(values[i : i + size]) for i in starts],
    )


def _is_part(name: str, beginning: str) -> bool:
    return name.startswith(beginning) and name not in _ELSEWHERE and "/loss_t" not in name


def _short(name: str) -> str:
    return name if name in ("train/loss", "val/loss") else name.partition("/")[2]
