"""Which part of the extraction this process does."""

from __future__ import annotations

import os
import re

import torch

from stable_audio_tools.errors import UsageError
from stable_audio_tools.inference.shares import Share
from stable_audio_tools.runtime.device import resolve_device

ALONE = Share(0, 1)
"""One process does all of the work."""

_LAUNCHERS = (  # torchrun, srun: rank, number of processes, rank on this machine
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)


def share_of(shard: str | None = None) -> Share:
    """The share that ``shard`` names, or that torchrun or srun gave this process; without them all of it.

    Args:
        shard: ``i/n``, the i-th of n, counted from 0: for the tasks of a Slurm array, which nobody introduces
            to each other. Under torchrun each of its processes then does its part of that part.

    Raises:
        UsageError: ``shard`` is not of that form, or not one of its n.
    """
    launched = _launched()
    if shard is None:
        return launched
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if match is None or not int(match[1]) < int(match[2]):
        raise UsageError(f"--shard {shard!r}: expected i/n with i from 0 to n - 1, such as 0/4")
    number, count = int(match[1]), int(match[2])
    size = launched.world_size
    return Share(number * size + launched.rank, count * size, launched.local_rank)


def device_of(share: Share, name: str | None) -> torch.device:
    """The device called ``name`` for this process: of several GPUs each process takes its own."""
    device = resolve_device(name)
    if device.type == "cuda" and device.index is None:
        return resolve_device(f"cuda:{share.local_rank}")
    return device


def _launched() -> Share:
    for rank, size, local_rank in _LAUNCHERS:
        if rank in os.environ and _number(size, 1) > 1:
            return Share(_number(rank, 0), _number(size, 1), _number(local_rank, 0))
    return ALONE


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise UsageError(f"{name} in the environment is {text!r}, expected a whole number")
    return int(text)
