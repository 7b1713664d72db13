"""The folder of a run: its name, what is written into it at the start, and how it is found again."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from stable_audio_tools.data.index import TrackIndex
from stable_audio_tools.errors import CheckpointError
from stable_audio_tools.runtime.files import write_json
from stable_audio_tools.runtime.manifest import write_manifest
from stable_audio_tools.runtime.progress import say, warn
from stable_audio_tools.schema.dataset import DatasetConfig
from stable_audio_tools.schema.model import ModelConfig
from stable_audio_tools.training.checkpoints import newest_first, read_record, require_whole
from stable_audio_tools.training.hardware import Hardware
from stable_audio_tools.training.settings import TrainSettings

RUN_ID_VARIABLE = "STABLE_AUDIO_TOOLS_RUN_ID"
"""Carries the run id to the processes that a multi-GPU run starts from this one."""


@dataclass(frozen=True)
class Resume:
    """Where a run goes on: the checkpoint, what it records, and its run folder if it goes on in there."""

    path: Path
    record: dict[str, Any]
    run_folder: Path | None

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(
            self.record["position"]["steps"] if "position" in self.record else self.record["global_step"]
        )

    def start_batch(self, batch_size: int, world_size: int) -> int:
        """The batch of each rank with which the data goes on, at this batch size and number of ranks."""
        data = self.record.get("data")
        if data is None:  # the public package does not record it
            return 0
        batches = int(self.record["position"]["batches"])
        return batches * data["batch_size"] * data["world_size"] // (batch_size * world_size)

    def warn_of_changes(self, now: dict[str, Any]) -> None:
        """Say what keeps the run from going on exactly: where ``now`` differs from the record."""
        then = {"seed": self.record.get("seed"), **self.record.get("data", {})}
        differing = [key for key, value in now.items() if then.get(key) != value]
        if differing:
            warn(
                f"{self.path}: {', '.join(differing)} changed since, so the run goes on, but not bit for bit"
            )


def find_resume(settings: TrainSettings) -> Resume | None:
    """The checkpoint to continue from, as ``--ckpt-path`` or ``--recover`` ask for.

    Where the newest one is damaged, ``--recover`` takes the one before and says so; the damaged file gets
    ``.damaged`` behind its name.

    Raises:
        CheckpointError: there is no such file, it is no training checkpoint, or all of them are damaged.
    """
    if settings.ckpt_path:
        return Resume(Path(settings.ckpt_path), read_record(settings.ckpt_path), None)
    if not settings.recover:
        return None
    runs = Path(settings.save_dir) / settings.name
    found = newest_first(runs)
    for path in found:
        try:
            require_whole(path)
            return Resume(path, read_record(path), path.parents[1])
        except CheckpointError as error:
            warn(f"{error}; --recover goes on from the one before")
            with suppress(FileNotFoundError):  # another rank was first
                path.rename(path.with_name(path.name + ".damaged"))
    if found:
        raise CheckpointError(
            f"--recover: {runs}: all {len(found)} checkpoints are damaged; use another --name"
        )
    say(f"--recover: no checkpoint under {runs} yet, so this is a new run")
    return None


def make_run_folder(
    settings: TrainSettings,
    hardware: Hardware,
    resume: Resume | None,
    model_config: ModelConfig,
    dataset_config: DatasetConfig,
    index: TrackIndex,
) -> Path:
    """Make ``<save-dir>/<name>/<run_id>``, or go on in that of ``resume``, and write down what is run."""
    runs = Path(settings.save_dir) / settings.name
    recovered = resume.run_folder if resume is not None else None
    folder = recovered or runs / _run_id(runs, hardware)
    if hardware.rank > 0:
        return folder
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    write_json(folder / "model_config.json", model_config.model_dump(mode="json"))
    write_json(folder / "dataset_config.json", dataset_config.model_dump(mode="json"))
    index.write(folder / "tracks.jsonl")
    # a recovered run keeps the manifest of its first start
    name = f"manifest-step={resume.step:08d}" if resume is not None and recovered else "manifest"
    facts = {"tracks": len(index), "tracks_sha256": index.hash, "hardware": hardware.describe()}
    write_manifest(folder, name, {**settings.as_dict(), **facts})
    return folder


def _run_id(runs: Path, hardware: Hardware) -> str:
    """A new name in ``runs``: the time it started, or the job's; the same in every process of the run."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    if hardware.world_size > 1:
        job = os.environ.get("SLURM_JOB_ID") or os.environ.get("TORCHELASTIC_RUN_ID", "none")
        return os.environ.setdefault(RUN_ID_VARIABLE, stamp if job == "none" else f"job-{job}")
    name, count = stamp, 1
    while (runs / name).exists():
        count += 1
        name = f"{stamp}-{count}"
    return name
