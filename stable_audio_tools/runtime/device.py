"""Which device to compute on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

from stable_audio_tools.errors import UsageError


def resolve_device(name: str | torch.device | None = None) -> torch.device:
    """The device called ``name`` (``cpu``, ``cuda``, ``cuda:1``, ``mps``); the best one for None or ``auto``.

    Raises:
        UsageError: the name is unknown, or this machine has no such device.
    """
    if isinstance(name, torch.device):
        return name
    if name is None or name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}: expected auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {name!r} was asked for, but this machine has no CUDA GPU; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device {name!r} was asked for, but there are only {torch.cuda.device_count()} CUDA GPUs"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device 'mps' was asked for, but this machine has no Apple GPU; use --device cpu")
    return device


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """``tensor`` on ``device``. To a GPU it goes from pinned memory, so that nobody waits for it."""
    device = torch.device(device)
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@contextmanager
def aside(device: torch.device | str) -> Iterator[list[Tensor]]:
    """Queue GPU work of the block beside the work that is queued already, which it does not depend on.

    Code that looks at a number, as libraries do, then waits for the block's own work and not for all of it.
    Put tensors that are used after the block into the list it yields. Elsewhere than on a GPU, a no-op.
    """
    used_later: list[Tensor] = []
    device = torch.device(device)
    if device.type != "cuda":
        yield used_later
        return
    before, stream = torch.cuda.current_stream(device), _second_stream(device)
    with torch.cuda.stream(stream):
        yield used_later
    before.wait_stream(stream)
    for tensor in used_later:
        tensor.record_stream(before)


@lru_cache
def _second_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
