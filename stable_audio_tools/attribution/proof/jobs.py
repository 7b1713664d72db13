"""Many training jobs in pieces: what is measured of each model is kept as soon as its stack is done."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stable_audio_tools.attribution.proof.retrain import Job, NetworkData, Retrainer
from stable_audio_tools.errors import StoreError
from stable_audio_tools.runtime.files import atomic_path, hash_json, write_json
from stable_audio_tools.runtime.progress import say
from stable_audio_tools.schema.reader import read_json


class Results:
    """Measured losses by job, in a folder of files that each hold one stack of models.

    Args:
        folder: where they are.
        stamp: what they depend on; results of another stamp are refused.
    """

    def __init__(self, folder: str | Path, stamp: object) -> None:
        self.folder = Path(folder)
        path = self.folder / "stamp.json"
        stamp = json.loads(json.dumps(stamp, default=str))
        if path.exists() and hash_json(read_json(path)) != hash_json(stamp):
            raise StoreError(
                f"{self.folder}: holds results of other settings or tracks; use another folder, or delete it"
            )
        write_json(path, stamp)

    @staticmethod
    def key(job: Job) -> str:
        """The job's name and seed in one."""
        return f"{job.name}/seed{job.seed}"

    def write(self, jobs: Sequence[Job], measured: Tensor) -> None:
        """Keep what was measured (len(jobs), Q, K) of a stack."""
        keys = [self.key(job) for job in jobs]
        with atomic_path(self.folder / f"{hash_json(keys)[:16]}.npz") as temporary:
            np.savez_compressed(temporary, keys=np.array(keys), measured=measured.numpy().astype(np.float32))

    def read(self) -> dict[str, Tensor]:
        """Everything there is, (Q, K) by key."""
        found: dict[str, Tensor] = {}
        for path in sorted(self.folder.glob("[!.]*.npz")):
            with np.load(path, allow_pickle=False) as held:
                values = torch.from_numpy(held["measured"])
                found |= dict(zip(held["keys"].tolist(), values, strict=True))
        return found

    def missing(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs without a result, in order."""
        there = self.read()
        return [job for job in jobs if self.key(job) not in there]


def run_jobs(
    retrainer: Retrainer,
    jobs: Sequence[Job],
    results: Results,
    queries: Callable[[], NetworkData],
    times: Sequence[float],
    *,
    draws: int = 2,
    at_once: int = 32,
    shard: tuple[int, int] = (0, 1),
    deadline: float | None = None,
    description: str = "models",
) -> bool:
    """Train the jobs of a shard that have no result, ``at_once`` in a stack; True when none is missing.

    Every stack has the same number of models, the last one filled up with repetitions, so that a compiled
    step fits all. A stack that would probably not end before ``deadline`` (of :func:`time.monotonic`) is left
    to the next call.
    """
    number, of = shard
    mine = [jobs[i] for i in range(len(jobs)) if i // at_once % of == number]
    left = results.missing(mine)
    if len(left) < len(mine):
        say(f"{description}: {len(mine) - len(left)} of {len(mine)} models are there, going on")
    longest = 0.0
    for start in range(0, len(left), at_once):
        began = time.monotonic()
        if deadline is not None and began + longest > deadline:
            say(f"{description}: {len(left) - start} models are left for the next call")
            return False
        stack = left[start : start + at_once]
        filled = (stack * at_once)[:at_once]
        weights = retrainer.train(filled, description)
        measured = retrainer.measure(weights, queries(), times, draws)[: len(stack)]
        results.write(stack, measured)
        longest = max(longest, time.monotonic() - began)
    return True
