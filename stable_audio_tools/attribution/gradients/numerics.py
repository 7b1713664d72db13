"""How exactly a GPU computes, and whether compiling for it pays."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from stable_audio_tools.attribution.gradients.layers import has_triton
from stable_audio_tools.errors import UsageError

COMPILE_FROM = 20_000
"""Tracks times timesteps from which a minute of compiling is worth it: it saves about 5 ms each."""


def worth_compiling(device: torch.device, passes: int) -> bool:
    """Whether ``passes`` (tracks times timesteps, done ones too) are enough to compile for."""
    return device.type == "cuda" and has_triton() and passes >= COMPILE_FROM


@contextmanager
def exact_float32(enabled: bool = True) -> Iterator[None]:
    """Without TF32, which keeps 10 bits of a product's factors, while the block lasts."""
    if not enabled:
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """The same bits at every run on this device, while the block lasts.

    The backward pass of attention on a GPU adds up in the order in which its threads arrive, unless it is
    told not to; a run that was killed and continued would differ from one pass in the last bits. Where torch
    is only asked to warn, attention goes on in any order.

    Raises:
        UsageError: inside the block, where an operation can only be computed in any order; names it.
    """
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    memory: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # it would write all memory once more
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"this GPU cannot measure this model twice with the same result; run with --device cpu: {reason}"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=only_warned)
        memory.fill_uninitialized_memory = before[1]
