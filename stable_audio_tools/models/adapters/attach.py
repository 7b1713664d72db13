"""Adapters that were read, put on a model: one or several, each with its strength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.errors import CheckpointError, UsageError
from stable_audio_tools.models.adapters.form import Adapter, LowRank
from stable_audio_tools.models.adapters.lora import (
    ADAPTER,
    adapted_layers,
    inject,
    is_plain_convolution,
    is_weight_normed,
)
from stable_audio_tools.models.adapters.reading import read_adapter
from stable_audio_tools.models.adapters.strength import AdapterPaths, choose_adapters
from stable_audio_tools.runtime.progress import say, warn
from stable_audio_tools.schema.training import LoraConfig

_PREFIXES = ("", "model.", "conditioner.")
"""What a tool may leave out of its module paths; Stable Audio 3 loads into these parts by themselves."""


def load_adapters(
    model: nn.Module, adapters: AdapterPaths, base_sha256: str | None = None, lora: LoraConfig | None = None
) -> None:
    """Read adapters and put them on ``model``, in place; it has none so far.

    The changes of several add up. One of strength 0 is left out, so that what remains is the base itself.

    Args:
        adapters: paths, each with ``:strength`` where it is not 1.
        base_sha256: hash of the checkpoint that ``model`` was loaded from. Where an adapter names another,
            one line warns: adapters work best on the very weights they were trained on.
        lora: the ``lora`` block of the model config, for LoRAW files.

    Raises:
        UsageError: the model has adapters already, or a strength is not finite.
        CheckpointError: an adapter cannot be read or does not fit; layers are named.
    """
    if adapted_layers(model):
        raise UsageError("the model has adapters already; merge them first")
    layers: list[dict[str, LowRank]] = []
    for choice in choose_adapters(adapters):
        adapter = read_adapter(choice.path, lora)
        say(f"{adapter.source}: {adapter.kind} on {len(adapter.layers)} layers, strength {choice.strength:g}")
        warn_of_another_base(adapter, base_sha256)
        resolved = resolve_layers(model, adapter)
        if choice.strength != 0:
            layers.append(
                {path: _at(layer, choice.strength, model, path) for path, layer in resolved.items()}
            )
    _require_sums(layers)
    names = [ADAPTER if not i else f"{ADAPTER}_{i + 1}" for i in range(len(layers))]
    for name, changes in zip(names, layers, strict=True):
        attach(model, changes, name)
    for layer in adapted_layers(model).values():
        layer.set_adapter([name for name in names if name in layer.lora_A])


def load_adapter(
    model: nn.Module, path: str | Path, base_sha256: str | None = None, lora: LoraConfig | None = None
) -> None:
    """Put one adapter on ``model`` as it was trained, in place; where it has one, only take the weights.

    Args and errors are those of :func:`load_adapters`.
    """
    adapter = read_adapter(path, lora)
    warn_of_another_base(adapter, base_sha256)
    if adapted_layers(model):
        copy_into(model, adapter)
    else:
        attach(model, resolve_layers(model, adapter))


def attach(model: nn.Module, layers: Mapping[str, LowRank], name: str = ADAPTER) -> None:
    """Put one adapter on ``model``, under a name of its own.

    Layers of a smaller rank than the largest are padded with zeros, which changes nothing.
    """
    from peft import LoraConfig as PeftConfig

    rank = max(layer.rank for layer in layers.values())
    dora = any(layer.magnitude is not None for layer in layers.values())
    scale = next(iter(layers.values())).scale
    config = PeftConfig(
        r=rank,
        lora_alpha=scale * rank,  # type: ignore[arg-type]  # PEFT only ever divides it by the rank
        target_modules=list(layers),
        use_dora=dora,
    )
    inject(model, config, seed=0, name=name)
    adapted = {path: layer for path, layer in adapted_layers(model).items() if name in layer.lora_A}
    for path, layer in adapted.items():
        _fill(layer, layers[path], name, rank)


def copy_into(model: nn.Module, adapter: Adapter) -> None:
    """Copy an adapter into the one that ``model`` has, for training to go on from it.

    Scales that differ go into the up factors, so that the model computes what the adapter stands for.

    Raises:
        CheckpointError: the layers, the rank or the type are others than those of the ``lora`` block.
    """
    layers, own = resolve_layers(model, adapter), adapted_layers(model)
    source, advice = adapter.source, "check the lora block"
    for what, paths in (("missing", own.keys() - layers.keys()), ("unexpected", layers.keys() - own.keys())):
        if paths:
            raise CheckpointError(
                f"{source}: {len(paths)} {what} adapter weights, first of {min(paths)!r}; {advice}"
            )
    for path, layer in own.items():
        found, expected = layers[path].rank, layer.r[ADAPTER]
        if found > expected:
            raise CheckpointError(
                f"{source}: {path}: found rank {found}, expected {expected}; check the rank"
            )
        if layer.use_dora[ADAPTER] != (layers[path].magnitude is not None):
            kind = "a DoRA" if layers[path].magnitude is not None else "a LoRA"
            raise CheckpointError(f"{source}: is {kind} adapter, but the lora block says otherwise; {advice}")
        scale = float(layer.scaling[ADAPTER])
        rescaled = replace(layers[path], up=layers[path].up * (layers[path].scale / scale), scale=scale)
        _fill(layer, rescaled, ADAPTER, expected)


def resolve_layers(model: nn.Module, adapter: Adapter) -> dict[str, LowRank]:
    """The adapter's layers by their paths in ``model``.

    Raises:
        CheckpointError: a layer is not in the model, is of another shape, or cannot carry an adapter.
    """
    modules = {path: _base(module) for path, module in model.named_modules()}
    resolved = {}
    for path, layer in adapter.layers.items():
        target = next((prefix + path for prefix in _PREFIXES if prefix + path in modules), None)
        if target is None:
            raise CheckpointError(
                f"{adapter.source}: adapts {path!r}, which this model does not have; check the model config"
            )
        resolved[target] = _fitted(layer, modules[target], target, adapter.source)
    return resolved


def warn_of_another_base(adapter: Adapter, base_sha256: str | None) -> None:
    """Say so where the adapter was trained on other weights than those of hash ``base_sha256``."""
    trained_on = adapter.base_sha256
    if base_sha256 and trained_on and trained_on != base_sha256:
        warn(f"{adapter.source}: trained on base {trained_on[:12]}, but the base here is {base_sha256[:12]}")


def _base(module: nn.Module) -> nn.Module:
    """The layer inside an adapted one."""
    found: Any = module
    return cast(nn.Module, found.get_base_layer()) if hasattr(module, "get_base_layer") else module


def _fitted(layer: LowRank, module: nn.Module, path: str, source: str) -> LowRank:
    """``layer`` in the shape of its module's weight."""
    if is_weight_normed(module):
        raise CheckpointError(
            f"{source}: adapts the weight-normalised convolution {path!r}, which cannot carry an adapter"
        )
    if not isinstance(module, nn.Linear) and not is_plain_convolution(module):
        raise CheckpointError(
            f"{source}: adapts {path!r}, a {type(module).__name__}; expected a linear layer or a plain"
            " convolution"
        )
    shape = tuple(cast(Tensor, module.weight).shape)
    down = (
        layer.down.reshape(layer.rank, *shape[1:])
        if layer.down[0].numel() == _size(shape[1:])
        else layer.down
    )
    found = (len(layer.up), *down.shape[1:])
    if found != shape:
        raise CheckpointError(f"{source}: {path}: found a change of shape {found}, expected {shape}")
    if layer.magnitude is not None and layer.magnitude.numel() != shape[0]:
        raise CheckpointError(
            f"{source}: {path}: found {layer.magnitude.numel()} magnitudes, expected {shape[0]}"
        )
    return replace(layer, down=down)


def _size(shape: Sequence[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _at(layer: LowRank, strength: float, model: nn.Module, path: str) -> LowRank:
    """``layer`` with its change of the weight scaled, and its magnitude as far from that of the base."""
    if strength == 1:
        return layer
    if layer.magnitude is None:
        return replace(layer, scale=layer.scale * strength)
    weight = cast(Tensor, _base(model.get_submodule(path)).weight).detach().float().cpu()
    norm = weight.flatten(1).norm(dim=1)
    return replace(layer, scale=layer.scale * strength, magnitude=norm + strength * (layer.magnitude - norm))


def _require_sums(layers: Sequence[Mapping[str, LowRank]]) -> None:
    """Refuse a DoRA on a layer that another adapter changes too."""
    for position, changes in enumerate(layers):
        for path, layer in changes.items():
            others = [other for i, other in enumerate(layers) if i != position and path in other]
            if others and layer.magnitude is not None:
                raise CheckpointError(
                    f"several adapters change {path!r}, and one of them is a DoRA: it sets the length of"
                    " whole rows of the weight, so that its change does not add up with another's; merge it"
                    " into the base (sat unwrap --lora-ckpt-path) and put the others on the result"
                )


@torch.no_grad()
def _fill(layer: Any, values: LowRank, name: str, rank: int) -> None:
    """Copy factors, scale and magnitude into a layer of PEFT."""
    missing = rank - values.rank
    down = F.pad(values.down, (0, 0) * (values.down.dim() - 1) + (0, missing))
    up = F.pad(values.up, (0, missing))
    layer.lora_A[name].weight.copy_(down)
    layer.lora_B[name].weight.copy_(up.reshape(layer.lora_B[name].weight.shape))
    layer.scaling[name] = values.scale
    if values.magnitude is not None:
        magnitude = layer.lora_magnitude_vector[name].weight
        magnitude.copy_(values.magnitude.reshape(magnitude.shape))
