"""Where a run's numbers go: a CSV file, and TensorBoard, Weights & Biases or Comet where asked for."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from stable_audio_tools.errors import UsageError
from stable_audio_tools.runtime.files import atomic_path
from stable_audio_tools.training.run_page import RunPage

_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "comet": "comet_ml"}


class CsvLogger(Logger):
    """One row a step and one column a metric, in ``metrics.csv``, whole after every row.

    A run that continues in the same folder keeps the rows up to the step it starts from.
    """

    def __init__(self, path: Path, resumed_step: int | None = None) -> None:
        super().__init__()
        self.path = path
        self._columns = ["step"]
        self._rows: list[dict[str, Any]] = []
        if resumed_step is not None and path.is_file():
            with path.open(newline="", encoding="utf-8") as stream:
                reader = csv.DictReader(stream)
                self._columns = list(reader.fieldnames or self._columns)
                self._rows = [row for row in reader if int(row["step"]) <= resumed_step]
            self._rewrite()

    @property
    def name(self) -> str:
        """What Lightning calls it."""
        return "csv"

    @property
    def version(self) -> str:
        """The run id."""
        return self.path.parent.name

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add ``metrics`` to the row of ``step``."""
        values = {key: f"{float(value):.6g}" for key, value in metrics.items()}
        fresh = not self._rows or self._rows[-1]["step"] != str(step)
        if fresh:
            self._rows.append({"step": str(step)})
        self._rows[-1].update(values)
        new_columns = [key for key in values if key not in self._columns]
        self._columns += new_columns
        if new_columns or not fresh or not self.path.exists():
            self._rewrite()
            return
        with self.path.open("a", newline="", encoding="utf-8") as stream:
            csv.DictWriter(stream, self._columns).writerow(self._rows[-1])

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the manifest of the run has them."""

    def _rewrite(self) -> None:
        with atomic_path(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, self._columns)
            writer.writeheader()
            writer.writerows(self._rows)


def check_logger(name: str) -> None:
    """Complain where the package behind ``name`` is not installed.

    Raises:
        UsageError: it is missing; the message names the extra that brings it.
    """
    package = _PACKAGES.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        raise UsageError(
            f"--logger {name}: {package} is not installed; pip install 'stable-audio-tools[{name}]'"
        )


def create_loggers(
    name: str, run_folder: Path, project: str, resumed_step: int | None = None
) -> list[Logger]:
    """``metrics.csv`` and ``index.html`` in the run folder, and the tracker called ``name``; nothing for
    ``none``.

    Args:
        name: ``csv``, ``tensorboard``, ``wandb``, ``comet`` or ``none``.
        project: the name of the run, under which the trackers file it.
        resumed_step: the step from which a run goes on in its own folder.

    Raises:
        UsageError: the tracker's package is not installed.
    """
    if name == "none":
        return []
    check_logger(name)
    loggers: list[Logger] = [CsvLogger(run_folder / "metrics.csv", resumed_step)]
    loggers.append(RunPage(run_folder, project))  # after the table, whose rows it begins with
    if name == "tensorboard":
        from pytorch_lightning.loggers import TensorBoardLogger

        loggers.append(TensorBoardLogger(run_folder, name="tensorboard", version=""))
    elif name == "wandb":
        from pytorch_lightning.loggers import WandbLogger

        # the run id makes a recovered run go on under the same name
        loggers.append(WandbLogger(project=project, save_dir=run_folder, id=run_folder.name, resume="allow"))
    elif name == "comet":
        from pytorch_lightning.loggers import CometLogger

        loggers.append(CometLogger(project=project, name=run_folder.name))
    return loggers
