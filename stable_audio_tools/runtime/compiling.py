"""Compiled modules, run as they were written."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def eager() -> AbstractContextManager[None]:
    """Run compiled modules as they were written, for as long as the block lasts.

    Demos and evaluations call them with other batch sizes, and would wait for each to be compiled.
    """
    set_stance = getattr(torch.compiler, "set_stance", None)  # since torch 2.6
    stance: AbstractContextManager[None] = nullcontext() if set_stance is None else set_stance("force_eager")
    return stance
