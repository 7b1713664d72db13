"""What makes a step fast or small: compiled blocks, recomputed activations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from stable_audio_tools.errors import UsageError
from stable_audio_tools.models.autoencoders.taae import TAAEBlock
from stable_audio_tools.nn.transformer import ContinuousTransformer, TransformerBlock
from stable_audio_tools.training.hardware import Hardware
from stable_audio_tools.training.module import ModelTrainer
from stable_audio_tools.training.settings import TrainSettings

CHECKPOINTING = {"none": 0, "half": 2, "full": 1}
"""By the name of the policy: of how many blocks one is recomputed in the backward pass; 0 is of none."""

CPU_THREADS = 4
"""Of the process that feeds a GPU."""


def make_fast(module: ModelTrainer, settings: TrainSettings, hardware: Hardware) -> None:
    """Prepare the model of ``module`` in place as ``settings`` ask, after the average was copied from it.

    Raises:
        UsageError: blocks are to be computed again, but the model has none.
    """
    policy = settings.activation_checkpointing
    if not set_checkpointing(module.wrapped, policy) and policy != "none":
        raise UsageError(f"--activation-checkpointing {policy}: this model has no transformer blocks")
    on_gpu = hardware.accelerator == "gpu"
    if on_gpu:
        # small CPU tensors, drawn or stacked while the GPU computes, take longer the more threads share them:
        # on 32 cores stacking a batch of latents took 65 ms
        torch.set_num_threads(min(torch.get_num_threads(), CPU_THREADS))
    wanted = on_gpu if settings.compile is None else settings.compile
    # a block whose adapters are drawn in each step would be compiled anew in each
    if wanted and not module.drops_adapters:
        compile_model(module.wrapped)


def set_checkpointing(model: nn.Module, policy: str) -> int:
    """Recompute blocks of ``model`` in the backward pass as ``policy`` says; returns how many stacks do."""
    every, stacks = CHECKPOINTING[policy], 0
    # told by their classes: layers of transformers have a flag of the same name and another meaning
    for module in model.modules() if every else ():
        if isinstance(module, ContinuousTransformer):
            module.gradient_checkpointing, module.checkpoint_every = True, every
        elif isinstance(module, TAAEBlock):
            module.gradient_checkpointing = True
        else:
            continue
        stacks += 1
    return stacks


def compile_model(model: Any) -> int:
    """Compile what the time of a step goes to, in place; returns the number of compiled modules.

    Transformer blocks are compiled one by one: all share one piece of code, so it takes as long as one block,
    and keys of the state dict stay as they are. A frozen autoencoder's encoder is compiled whole.
    """
    compiled = list(_worth_compiling(model))
    for module in compiled:
        module.compile()
    return len(compiled)


def _worth_compiling(model: Any) -> Iterator[nn.Module]:
    yield from (module for module in model.modules() if isinstance(module, TransformerBlock))
    codec = getattr(getattr(model, "pretransform", None), "model", None)
    encoder = getattr(codec, "encoder", None)
    if isinstance(encoder, nn.Module) and not any(p.requires_grad for p in encoder.parameters()):
        yield encoder
