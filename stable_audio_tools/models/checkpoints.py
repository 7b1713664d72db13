"""Reading, recognising, loading and writing checkpoints.

A file is ``.safetensors``, or a ``torch.save``d dict with a ``state_dict`` (or a bare state dict). What it
holds is told from its keys: a model, or a *wrapped* one as a training run saves it, ``diffusion.*`` with the
averaged network under ``diffusion_ema.ema_model.*``, or ``autoencoder.*`` with
``autoencoder_ema.ema_model.*``. The average covers the diffusion network only, so conditioners and
pretransform always come from the online weights.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from stable_audio_tools.errors import CheckpointError, UsageError
from stable_audio_tools.nn.convs import respell_weight_norm
from stable_audio_tools.runtime.files import atomic_path, sha256_file
from stable_audio_tools.runtime.progress import say, warn

State = dict[str, Tensor]


class Kind(Enum):
    """What a state dict holds; the value is what messages call it."""

    DIFFUSION = "a diffusion model"
    AUTOENCODER = "an autoencoder"
    WRAPPED_DIFFUSION = "a wrapped training checkpoint of a diffusion model"
    WRAPPED_AUTOENCODER = "a wrapped training checkpoint of an autoencoder"
    ADAPTER = "a LoRA adapter"
    UNKNOWN = "a state dict of another kind"


# Prefix of the online weights, prefix of the averaged ones, and where those go in the unwrapped model.
_WRAPPED = {
    Kind.WRAPPED_DIFFUSION: ("diffusion.", "diffusion_ema.ema_model.", "model."),
    Kind.WRAPPED_AUTOENCODER: ("autoencoder.", "autoencoder_ema.ema_model.", ""),
}
_PREFIXES = {
    Kind.DIFFUSION: ("model.model.", "conditioner.", "pretransform."),
    Kind.AUTOENCODER: ("encoder.", "decoder.", "bottleneck."),
    **{kind: prefixes[:2] for kind, prefixes in _WRAPPED.items()},
}
_ADAPTER_MARKS = (".lora_", "/lora_", "/dora_mag", ".magnitude")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it lies in its file. ``model_config`` is the JSON value embedded in it, if any."""

    path: Path
    kind: Kind
    state: State
    model_config: dict[str, Any] | None


class Unwrapped(NamedTuple):
    """A model's state dict out of a training checkpoint, and which weights it has: ``EMA`` or ``online``."""

    state: State
    weights: str


@dataclass(frozen=True)
class LoadReport:
    """What loading did. ``weights`` is ``EMA`` or ``online`` after unwrapping, else ``stored``."""

    path: Path
    kind: Kind
    weights: str
    loaded: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()

    def problems(self) -> str:
        """Missing, unexpected and mismatched keys in words; empty if there are none."""
        parts = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", self.mismatched),
        )
        return "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in parts if names)


def checkpoint_kind(state: Iterable[str]) -> Kind:
    """What a state dict (or its keys) holds."""
    keys = list(state)
    if keys and all(any(mark in key for mark in _ADAPTER_MARKS) for key in keys):
        return Kind.ADAPTER
    for kind, prefixes in _PREFIXES.items():
        if any(key.startswith(prefixes) for key in keys):
            return kind
    return Kind.UNKNOWN


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of any kind onto the CPU, without running code from it.

    Raises:
        CheckpointError: the file is missing, damaged, or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    try:
        state, config = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickled(path)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error):
            raise CheckpointError(
                f"{path}: not loaded, since it is damaged or holds Python objects besides tensors, which"
                " could run code; expected a .safetensors file or a .ckpt of tensors"
            ) from error
        raise CheckpointError(_damaged(path, error)) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise CheckpointError(_damaged(path, error)) from error
    if not state:
        raise CheckpointError(
            f"{path}: holds no tensors; expected a state dict, or a dict with a 'state_dict'"
        )
    return Checkpoint(path, checkpoint_kind(state), state, config)


def read_state_dict(path: str | Path) -> State:
    """The state dict in a file, as it is stored there; see :func:`read_checkpoint`."""
    return read_checkpoint(path).state


def unwrap_state_dict(state: Mapping[str, Tensor]) -> Unwrapped:
    """The model's own state dict out of that of a training checkpoint: averaged weights where there are any.

    Raises:
        CheckpointError: ``state`` is not wrapped.
    """
    kind = checkpoint_kind(state)
    if kind not in _WRAPPED:
        raise CheckpointError(
            f"expected a wrapped training checkpoint, found {kind.value}: nothing to unwrap"
        )
    online, averaged, target = _WRAPPED[kind]
    model = {key.removeprefix(online): value for key, value in state.items() if key.startswith(online)}
    ema = {
        target + key.removeprefix(averaged): value for key, value in state.items() if key.startswith(averaged)
    }
    return Unwrapped({**model, **ema}, "EMA" if ema else "online")


def load_checkpoint(
    model: nn.Module, path: str | Path, strict: bool = True, allow_missing: Sequence[str] = ()
) -> LoadReport:
    """Load a checkpoint into a model of the same kind; a wrapped one is unwrapped, and this is said.

    Args:
        strict: refuse missing, unexpected and mismatched keys. Otherwise they are warned of, unless no key
            fits at all.
        allow_missing: prefixes of keys that may be missing, such as ``"pretransform."`` where it is loaded
            on its own.

    Raises:
        CheckpointError: the file is missing or damaged, of another kind, or does not fit. The model is then
            as it was.
    """
    checkpoint = read_checkpoint(path)
    kind, state, weights = _unwrapped(checkpoint)
    expected = checkpoint_kind(model.state_dict())
    if kind is not expected:
        raise CheckpointError(
            f"{path}: found {checkpoint.kind.value}, expected {expected.value}{_advice(kind, expected)}"
        )
    return load_state(model, state, checkpoint, weights, strict, allow_missing)


def load_pretransform(model: nn.Module, path: str | Path, strict: bool = True) -> LoadReport:
    """Load the autoencoder of a diffusion model, from its own checkpoint or that of a whole diffusion model.

    Raises:
        UsageError: the model has no pretransform.
        CheckpointError: the file is missing or damaged, holds no autoencoder, or does not fit.
    """
    pretransform = getattr(model, "pretransform", None)
    if pretransform is None:
        raise UsageError(
            f"{path}: a pretransform checkpoint was given, but the model config has no pretransform"
        )
    checkpoint = read_checkpoint(path)
    kind, state, weights = _unwrapped(checkpoint)
    if kind is Kind.DIFFUSION:
        prefix = "pretransform.model."
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if kind not in (Kind.DIFFUSION, Kind.AUTOENCODER) or not state:
        raise CheckpointError(
            f"{path}: found {checkpoint.kind.value} without an autoencoder, expected an autoencoder"
        )
    return load_state(pretransform.model, state, checkpoint, weights, strict)


def load_state(
    model: nn.Module,
    state: Mapping[str, Tensor],
    checkpoint: Checkpoint,
    weights: str = "stored",
    strict: bool = True,
    allow_missing: Sequence[str] = (),
) -> LoadReport:
    """Load ``state``, which came out of ``checkpoint``, into ``model``; see :func:`load_checkpoint`."""
    state = respell_weight_norm(dict(state), model)
    report = compare(model, state, checkpoint, weights)
    problems = report.problems()
    if problems and strict:
        tolerable = all(key.startswith(tuple(allow_missing)) for key in report.missing)
        if report.unexpected or report.mismatched or not tolerable:
            raise CheckpointError(
                f"{checkpoint.path}: does not fit the model: {problems}{_missing_advice(report)}"
            )
    elif problems:
        if not report.loaded:
            raise CheckpointError(f"{checkpoint.path}: not one key fits the model: {problems}")
        warn(f"{checkpoint.path}: {report.loaded} keys loaded, the rest left as it was: {problems}")
    refused = {*report.unexpected, *report.mismatched}
    model.load_state_dict({key: value for key, value in state.items() if key not in refused}, strict=False)
    return report


def compare(
    model: nn.Module, state: Mapping[str, Tensor], checkpoint: Checkpoint, weights: str = "stored"
) -> LoadReport:
    """How the keys and shapes of ``state`` fit ``model``, without loading anything."""
    own = model.state_dict()
    shared = [key for key in own if key in state]
    mismatched = [key for key in shared if own[key].shape != state[key].shape]
    return LoadReport(
        path=checkpoint.path,
        kind=checkpoint.kind,
        weights=weights,
        loaded=len(shared) - len(mismatched),
        missing=tuple(key for key in own if key not in state),
        unexpected=tuple(key for key in state if key not in own),
        mismatched=tuple(mismatched),
    )


def save_checkpoint(
    path: str | Path, state: Mapping[str, Tensor], model_config: dict[str, Any] | None = None
) -> Path:
    """Write a state dict with its model config: ``.safetensors``, config in the metadata, or ``.ckpt``."""
    path = Path(path)
    with atomic_path(path) as temporary:
        if path.suffix == ".safetensors":
            # One entry at most: safetensors writes several in an order that differs from file to file.
            metadata = (
                {"format": "pt"} if model_config is None else {"model_config": json.dumps(model_config)}
            )
            save_file(_unshared(state), temporary, metadata=metadata)
        else:
            config = {} if model_config is None else {"model_config": model_config}
            with open(temporary, "wb") as stream:  # given a path, torch writes its name into the file
                torch.save({"state_dict": dict(state), **config}, stream)
    return path


def model_sha256(path: str | Path) -> str:
    """The SHA-256 of a checkpoint file, by which sidecars and feature stores know it.

    It is computed once per process, until the file's size or time of change differs.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    status = path.stat()
    return _sha256(path.resolve(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(path: Path, size: int, changed: int) -> str:
    return sha256_file(path)


def _read_safetensors(path: Path) -> tuple[State, dict[str, Any] | None]:
    with safe_open(path, framework="pt") as file:
        config = (file.metadata() or {}).get("model_config")
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(config) if config else None  # noqa: SIM118


def _read_pickled(path: Path) -> tuple[State, dict[str, Any] | None]:
    # Memory-mapped where the format allows it: optimizer states, half of a training checkpoint, stay on disk.
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    if not isinstance(content, Mapping):
        raise ValueError(f"holds a {type(content).__name__}")
    state = content.get("state_dict", content)
    if not isinstance(state, Mapping):
        raise ValueError(f"its state_dict is a {type(state).__name__}")
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    return tensors, content.get("model_config")


def _unwrapped(checkpoint: Checkpoint) -> tuple[Kind, State, str]:
    """Kind, state and weights after unwrapping, where there is something to unwrap."""
    if checkpoint.kind not in _WRAPPED:
        return checkpoint.kind, checkpoint.state, "stored"
    state, weights = unwrap_state_dict(checkpoint.state)
    say(f"{checkpoint.path}: {checkpoint.kind.value}; using its {weights} weights")
    return checkpoint_kind(state), state, weights


def _unshared(state: Mapping[str, Tensor]) -> State:
    """Contiguous tensors with no storage in common, as safetensors needs them."""
    seen: set[int] = set()
    result: State = {}
    for key, value in state.items():
        value = value.detach().contiguous()
        pointer = value.untyped_storage().data_ptr()
        result[key] = value.clone() if pointer in seen else value
        seen.add(pointer)
    return result


def _advice(found: Kind, expected: Kind) -> str:
    if (found, expected) == (Kind.AUTOENCODER, Kind.DIFFUSION):
        return "; give an autoencoder with --pretransform-ckpt-path"
    if (found, expected) == (Kind.DIFFUSION, Kind.AUTOENCODER):
        return "; its pretransform can be loaded into a diffusion model with --pretransform-ckpt-path"
    if found is Kind.ADAPTER:
        return "; give adapters with --lora-ckpt-path, and the model they were trained on here"
    return ""


def _missing_advice(report: LoadReport) -> str:
    if report.missing and all(key.startswith("pretransform.") for key in report.missing):
        return "; give the autoencoder with --pretransform-ckpt-path"
    if report.missing or report.mismatched:
        return "; is this the model config it was trained with?"
    return ""


def _damaged(path: Path, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).split("\n")[0]
    return f"{path}: damaged, truncated or not a checkpoint: {reason[:160]}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
