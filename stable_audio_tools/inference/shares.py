"""Work that several processes share without talking to each other: who does what, and starting them."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from stable_audio_tools.errors import StableAudioError, StoreError, UsageError
from stable_audio_tools.runtime.device import resolve_device

_LAUNCHERS = (  # torchrun, srun: rank, number of processes, rank on this machine
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)


@dataclass(frozen=True)
class Share:
    """The part of the work that one process does: rows ``rank``, ``rank + world_size``, ... of the index.

    Attributes:
        rank: this process among all of ``world_size``.
        local_rank: this process among those of its machine.
        others: local ranks that this process has to start, because no launcher did.
    """

    rank: int
    world_size: int
    local_rank: int = 0
    others: tuple[int, ...] = ()

    @classmethod
    def of_this_process(cls, num_gpus: int, num_nodes: int) -> Share:
        """The share that torchrun or srun gave this process; without them the first of its machine.

        Args:
            num_gpus: processes on a machine; 0 is one, on the CPU.
            num_nodes: machines; ``NODE_RANK`` says which this is.

        Raises:
            UsageError: other numbers were started than the flags say, or NODE_RANK is missing.
        """
        local = max(1, num_gpus)
        size = local * num_nodes
        for rank, started, local_rank in _LAUNCHERS:
            found = _number(started, 1)
            if rank in os.environ and found > 1:
                if found != size:
                    raise UsageError(
                        f"--num-gpus {num_gpus} --num-nodes {num_nodes}: {found} processes were started"
                        f" ({started}), expected {size}; give the numbers that they were started with"
                    )
                return cls(_number(rank, 0), size, _number(local_rank, 0))
        node = _number("NODE_RANK", -1) if num_nodes > 1 else 0
        if not 0 <= node < num_nodes:
            raise UsageError(
                f"--num-nodes {num_nodes}: NODE_RANK is {os.environ.get('NODE_RANK', 'not set')}, expected 0"
                f" to {num_nodes - 1}; set it on each machine, or start with torchrun or srun"
            )
        return cls(node * local, size, 0, tuple(range(1, local)))

    def device(self, name: str, num_gpus: int) -> torch.device:
        """The device of this process: a GPU each, or the CPU for ``num_gpus`` 0.

        Raises:
            UsageError: there is none for it.
        """
        device = torch.device("cpu") if num_gpus == 0 else resolve_device(name)
        if device.type == "cuda" and device.index is None:
            return resolve_device(f"cuda:{self.local_rank}")
        return device


def work_together(share: Share, work: Callable[[Share], None]) -> None:
    """Do ``work`` for this share here, and for the others of this machine in processes of their own.

    ``work`` is pickled. What one process finishes stays, whatever happens to another.

    Raises:
        StableAudioError: what a process raised, the first in the order of their ranks.
    """
    context = multiprocessing.get_context("spawn")
    errors: Any = context.SimpleQueue()
    shares = [Share(share.rank + local, share.world_size, local) for local in share.others]
    processes = [context.Process(target=_work, args=(work, their, errors)) for their in shares]
    for process in processes:
        process.start()
    try:
        work(share)
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.terminate()
            process.join()
    raised: dict[int, StableAudioError] = {}
    while not errors.empty():
        rank, error = errors.get()
        raised[rank] = error
    for their, process in zip(shares, processes, strict=True):
        if process.exitcode:
            raise raised.get(their.rank) or StoreError(
                f"process {their.rank} of {share.world_size} ended with exit code {process.exitcode}; what it"
                " finished is kept, and the same command goes on"
            )


def _work(work: Callable[[Share], None], share: Share, errors: Any) -> None:
    try:
        work(share)
    except StableAudioError as error:
        errors.put((share.rank, error))
        raise SystemExit(2) from None


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f"{name} in the environment is {text!r}, expected a whole number") from error
