"""Low-rank adapters on a model's layers, through PEFT: put on fresh, listed, left out for a step, merged.

An adapter adds ``alpha / rank * multiplier * B A`` to the weight of a layer (Hu et al. 2021), and with
``"type": "dora"`` learns the lengths of the weight's rows apart from their directions (Liu et al. 2024).
Module paths are relative to the whole model, so ``model.model.transformer.layers.0.self_attn.to_qkv`` names
the same layer in a state dict, in an adapter file and in an error message.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from stable_audio_tools.errors import UsageError
from stable_audio_tools.nn.convs import WNConv1d, WNConvTranspose1d
from stable_audio_tools.runtime import seeds
from stable_audio_tools.schema.training import LoraConfig

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

ADAPTER = "default"
"""The name, in PEFT, of the adapter that is trained, and of the first of several."""


def apply_lora(model: nn.Module, config: LoraConfig, seed: int = 42) -> list[str]:
    """Put fresh adapters on ``model``, in place, and freeze everything else.

    A fresh adapter changes nothing: its B is zero. Its A is drawn from ``seed``.

    Returns:
        The paths of the adapted layers.

    Raises:
        UsageError: no layer has one of ``component_whitelist`` among the dotted parts of its path, a
            weight-normalised convolution has one, or the model has adapters already.
    """
    from peft import LoraConfig as PeftConfig

    if adapted_layers(model):
        raise UsageError("the model has adapters already; merge or load into them instead")
    targets = _targets(model, config.component_whitelist)
    alpha = (config.alpha or config.rank) * config.multiplier
    peft_config = PeftConfig(
        r=config.rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT only ever divides it by the rank
        target_modules=targets,
        lora_dropout=config.dropout,
        use_dora=config.type == "dora" or config.weight_decompose,
    )
    inject(model, peft_config, seed)
    return targets


def adapted_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The layers of ``model`` that carry an adapter, by path."""
    from peft.tuners.lora import LoraLayer

    return {path: module for path, module in model.named_modules() if isinstance(module, LoraLayer)}


def adapter_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The trained adapter: ``<path>.lora_A.weight``, ``.lora_B.weight``, ``.lora_magnitude_vector``."""
    state: dict[str, Tensor] = {}
    for path, layer in adapted_layers(model).items():
        for name, value in cast(nn.Module, layer).state_dict().items():
            if name.startswith("lora_") and name.split(".")[1] == ADAPTER:
                state[f"{path}.{_file_key(name)}"] = value
    return state


def merge_adapters(model: nn.Module) -> nn.Module:
    """Add every adapter into its layer, in place, so that the state dict has the public keys again."""
    for path, layer in adapted_layers(model).items():
        layer.merge()
        parent_path, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent_path), name, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
    return model


@contextmanager
def dropped_adapters(model: nn.Module, chance: float, *key: int | str) -> Iterator[None]:
    """Leave out each adapter with probability ``chance``, drawn from ``key``, while the block lasts."""
    layers = list(adapted_layers(model).values()) if chance > 0 else []
    draws = torch.rand(len(layers), generator=seeds.generator(*key)).tolist()
    dropped = [layer for layer, draw in zip(layers, draws, strict=True) if draw < chance]
    for layer in dropped:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in dropped:
            layer.enable_adapters(True)


def inject(model: nn.Module, peft_config: Any, seed: int, name: str = ADAPTER) -> None:
    """Let PEFT put an adapter ``name`` on ``model``; its draws come from ``seed``, not from torch's own."""
    from peft import inject_adapter_in_model

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # that this is not the first adapter is known here
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        torch.manual_seed(seeds.derive_seed("lora", seed))
        inject_adapter_in_model(peft_config, model, adapter_name=name)


def is_weight_normed(module: nn.Module) -> bool:
    """Whether this is a convolution whose weight is made anew from two factors at each call."""
    return isinstance(module, WNConv1d | WNConvTranspose1d) or hasattr(module, "parametrizations")


def is_plain_convolution(module: nn.Module) -> bool:
    """Whether this is a one-dimensional convolution whose weight is one matrix a tap."""
    return isinstance(module, nn.Conv1d) and module.groups == 1 and not is_weight_normed(module)


def _targets(model: nn.Module, whitelist: list[str]) -> list[str]:
    """Paths of the linear layers and plain convolutions that have a whitelisted part."""
    wanted = set(whitelist)
    chosen = {path: module for path, module in model.named_modules() if wanted & set(path.split("."))}
    refused = [path for path, module in chosen.items() if is_weight_normed(module)]
    if refused:
        raise UsageError(
            f"lora.component_whitelist: {sorted(wanted)} takes in the weight-normalised convolution"
            f" {refused[0]!r} (and {len(refused) - 1} more), which cannot carry an adapter; whitelist parts"
            " of the transformer only"
        )
    targets = [
        path
        for path, module in chosen.items()
        if isinstance(module, nn.Linear) or is_plain_convolution(module)
    ]
    if not targets:
        raise UsageError(
            f"lora.component_whitelist: no linear layer has {sorted(wanted)} in its path; try ['transformer']"
        )
    return targets


def _file_key(name: str) -> str:
    """``lora_A.default.weight`` as PEFT's files spell it."""
    plain = name.replace(f".{ADAPTER}", "")
    return plain.removesuffix(".weight") if plain.startswith("lora_magnitude_vector") else plain
