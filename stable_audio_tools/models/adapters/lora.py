"""Low-rank adapters on a model's linear layers, through PEFT, in PEFT's file format.

An adapter adds ``alpha / rank * multiplier * B A`` to the weight of a linear layer (Hu et al. 2021), and with
``"type": "dora"`` learns the weight's magnitude apart from its direction (Liu et al. 2024). Module paths are
relative to the whole model, so ``model.model.transformer.layers.0.self_attn.to_qkv`` names the same layer in
a state dict, in an adapter file and in an error message.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stable_audio_tools.errors import CheckpointError, UsageError
from stable_audio_tools.nn.convs import WNConv1d, WNConvTranspose1d
from stable_audio_tools.runtime import seeds
from stable_audio_tools.runtime.files import atomic_path, write_json
from stable_audio_tools.runtime.progress import warn
from stable_audio_tools.schema.training import LoraConfig

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

ADAPTER = "default"
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PEFT_PREFIX = "base_model.model."  # what PEFT puts in front of every key of its files


def apply_lora(model: nn.Module, config: LoraConfig, seed: int = 42) -> list[str]:
    """Put fresh adapters on ``model``, in place, and freeze everything else.

    A fresh adapter changes nothing: its B is zero. Its A is drawn from ``seed``.

    Returns:
        The paths of the adapted layers.

    Raises:
        UsageError: no linear layer has one of ``component_whitelist`` among the dotted parts of its path, a
            weight-normalised convolution has one, or the model has adapters already.
    """
    from peft import LoraConfig as PeftConfig

    targets = _targets(model, config.component_whitelist)
    alpha = (config.alpha or config.rank) * config.multiplier
    peft_config = PeftConfig(
        r=config.rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT only ever divides it by the rank
        target_modules=targets,
        lora_dropout=config.dropout,
        use_dora=config.type == "dora" or config.weight_decompose,
    )
    _inject(model, peft_config, seed)
    return targets


def adapted_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The layers of ``model`` that carry an adapter, by path."""
    from peft.tuners.lora import LoraLayer

    return {path: module for path, module in model.named_modules() if isinstance(module, LoraLayer)}


def adapter_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' weights: ``<path>.lora_A.weight``, ``.lora_B.weight``, ``.lora_magnitude_vector``."""
    state: dict[str, Tensor] = {}
    for path, layer in adapted_layers(model).items():
        for name, value in cast(nn.Module, layer).state_dict().items():
            if name.startswith("lora_"):
                state[f"{path}.{_file_key(name)}"] = value
    return state


def save_adapter(
    model: nn.Module, folder: str | Path, base_sha256: str | None = None, base_name: str | None = None
) -> Path:
    """Write the adapters of ``model`` to ``folder`` in PEFT's format; returns the folder.

    ``base_sha256``, the hash of the checkpoint they were trained on, goes into the config as ``revision`` and
    ``base_name`` as ``base_model_name_or_path``.

    Raises:
        UsageError: the model has no adapters.
    """
    layers = adapted_layers(model)
    if not layers:
        raise UsageError("the model has no adapters to save; call apply_lora first")
    folder = Path(folder)
    peft_config = cast(Any, model).peft_config[ADAPTER]
    config = {
        **{
            key: sorted(value) if isinstance(value, set) else value
            for key, value in peft_config.to_dict().items()
        },
        "peft_type": "LORA",
        "inference_mode": True,
        "base_model_name_or_path": base_name,
        "revision": f"sha256:{base_sha256}" if base_sha256 else None,
        "target_modules": sorted(layers),
    }
    state = {
        _PEFT_PREFIX + key: value.detach().cpu().contiguous()
        for key, value in adapter_state_dict(model).items()
    }
    with atomic_path(folder / WEIGHTS_FILE) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    write_json(folder / CONFIG_FILE, config)
    return folder


def load_adapter(model: nn.Module, folder: str | Path, base_sha256: str | None = None) -> None:
    """Put the adapters of a PEFT folder on ``model``, in place; where it has adapters, only take the weights.

    Where both ``base_sha256`` and the hash in the folder are known and differ, one line warns: adapters work
    best on the very weights they were trained on.

    Raises:
        CheckpointError: a file is missing or not PEFT's, or names and shapes do not fit the model.
    """
    from peft import LoraConfig as PeftConfig

    folder = Path(folder)
    config, state = _read_folder(folder)
    trained_on = str(config.get("revision") or "").removeprefix("sha256:")
    if base_sha256 and trained_on and trained_on != base_sha256:
        warn(f"{folder}: trained on base {trained_on[:12]}, but the base here is {base_sha256[:12]}")
    if not adapted_layers(model):
        paths = dict(model.named_modules())
        absent = [path for path in config["target_modules"] if path not in paths]
        if absent:
            raise CheckpointError(
                f"{folder}: adapts {absent[0]!r}, which this model does not have; check the model config"
            )
        known = {key: config[key] for key in ("r", "lora_alpha", "lora_dropout", "use_dora") if key in config}
        _inject(model, PeftConfig(target_modules=list(config["target_modules"]), **known), seed=0)
    load_adapter_state(model, state, str(folder))


def load_adapter_state(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Copy weights named as in :func:`adapter_state_dict` into the adapters of ``model``.

    Raises:
        CheckpointError: a weight is missing, unexpected or of another shape; it is named.
    """
    own = adapter_state_dict(model)
    for what, names in (("missing", own.keys() - state.keys()), ("unexpected", state.keys() - own.keys())):
        if names:
            raise CheckpointError(
                f"{source}: {len(names)} {what} adapter weights, first {min(names)!r}; check the lora block"
            )
    for name, value in state.items():
        if value.shape != own[name].shape:
            found, expected = tuple(value.shape), tuple(own[name].shape)
            raise CheckpointError(
                f"{source}: {name}: found shape {found}, expected {expected}; check the rank"
            )
        own[name].copy_(value)


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


def _targets(model: nn.Module, whitelist: list[str]) -> list[str]:
    """Paths of the linear layers that have a whitelisted part."""
    wanted = set(whitelist)
    chosen = {path: module for path, module in model.named_modules() if wanted & set(path.split("."))}
    refused = [path for path, module in chosen.items() if isinstance(module, WNConv1d | WNConvTranspose1d)]
    if refused:
        raise UsageError(
            f"lora.component_whitelist: {sorted(wanted)} takes in the weight-normalised convolution"
            f" {refused[0]!r} (and {len(refused) - 1} more), which cannot carry an adapter; whitelist parts"
            " of the transformer only"
        )
    targets = [path for path, module in chosen.items() if isinstance(module, nn.Linear)]
    if not targets:
        raise UsageError(
            f"lora.component_whitelist: no linear layer has {sorted(wanted)} in its path; try ['transformer']"
        )
    return targets


def _inject(model: nn.Module, peft_config: Any, seed: int) -> None:
    from peft import inject_adapter_in_model

    if adapted_layers(model):
        raise UsageError("the model has adapters already; merge or load into them instead")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.derive_seed("lora", seed))
        inject_adapter_in_model(peft_config, model, adapter_name=ADAPTER)


def _read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and weights of a PEFT folder, without PEFT's key prefix."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder}: no {name}; expected an adapter folder as written beside each checkpoint"
            )
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        state = load_file(folder / WEIGHTS_FILE)
    except (ValueError, OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: not a readable adapter: {error}") from error
    if config.get("peft_type") != "LORA" or not isinstance(config.get("target_modules"), list):
        raise CheckpointError(
            f"{folder}: {CONFIG_FILE} is not of a LoRA adapter with a list of target_modules"
        )
    return config, {key.removeprefix(_PEFT_PREFIX): value for key, value in state.items()}


def _file_key(name: str) -> str:
    """``lora_A.default.weight`` as PEFT's files spell it."""
    plain = name.replace(f".{ADAPTER}", "")
    return plain.removesuffix(".weight") if plain.startswith("lora_magnitude_vector") else plain
