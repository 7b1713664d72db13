"""From a file into a model: whole by default, or what fits of it, with a report either way."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from stable_audio_tools.errors import CheckpointError, UsageError
from stable_audio_tools.models.autoencoders.autoencoder import AudioAutoencoder
from stable_audio_tools.models.checkpoints.kinds import (
    WRAPPED,
    Kind,
    State,
    autoencoder_state,
    model_kind,
    unwrap_state_dict,
)
from stable_audio_tools.models.checkpoints.reading import Checkpoint, read_checkpoint
from stable_audio_tools.models.checkpoints.report import LoadReport, compare
from stable_audio_tools.nn.convs import respell_weight_norm
from stable_audio_tools.runtime.progress import say, warn


def load_checkpoint(
    model: nn.Module, path: str | Path, strict: bool = True, allow_missing: Sequence[str] = ()
) -> LoadReport:
    """Load a checkpoint into a model of the same kind; a wrapped one is unwrapped, and this is said.

    With ``strict=False`` a model whose config has changed since takes what fits by name and shape, and keeps
    its fresh weights for the rest: more layers, another conditioner, other channels. What was left is warned
    of, and the report has it to the last key (:meth:`LoadReport.write`).

    Args:
        strict: refuse missing, unexpected and mismatched keys; otherwise only a file of which nothing fits.
        allow_missing: prefixes of keys that may be missing and are not reported, such as ``"pretransform."``
            where it is loaded on its own.

    Raises:
        CheckpointError: the file is missing or damaged, of another kind, or does not fit. The model is then
            as it was.
    """
    checkpoint = read_checkpoint(path)
    own = model.state_dict()
    kind, state, weights = unwrapped(checkpoint, own)
    expected = model_kind(own)
    if kind is not expected:
        raise CheckpointError(
            f"{path}: found {checkpoint.kind.value}, expected {expected.value}{_advice(kind, expected)}"
        )
    return load_state(model, state, checkpoint, weights, strict, allow_missing)


def load_pretransform(model: nn.Module, path: str | Path, strict: bool = True) -> LoadReport:
    """Load the autoencoder in front of a model; see :func:`load_autoencoder`.

    Raises:
        UsageError: the model has no pretransform, or one that takes no checkpoint.
        CheckpointError: the file is missing or damaged, holds no autoencoder, or does not fit.
    """
    pretransform = getattr(model, "pretransform", None)
    if pretransform is None:
        raise UsageError(
            f"{path}: a pretransform checkpoint was given, but the model config has no pretransform"
        )
    autoencoder = getattr(pretransform, "model", None)
    if not isinstance(autoencoder, AudioAutoencoder):
        raise UsageError(
            f"{path}: a pretransform checkpoint was given, but the model's pretransform,"
            f" {type(pretransform).__name__}, takes none; expected one of type 'autoencoder'"
        )
    return load_autoencoder(autoencoder, path, strict)


def load_autoencoder(autoencoder: nn.Module, path: str | Path, strict: bool = True) -> LoadReport:
    """Load an autoencoder from its own checkpoint or from that of a whole model that has it as pretransform.

    Raises:
        CheckpointError: the file is missing or damaged, holds no autoencoder, or does not fit.
    """
    checkpoint = read_checkpoint(path)
    kind, state, weights = unwrapped(checkpoint)
    state = autoencoder_state(kind, state)
    if not state:
        raise CheckpointError(
            f"{path}: found {checkpoint.kind.value} without an autoencoder, expected an autoencoder"
        )
    return load_state(autoencoder, state, checkpoint, weights, strict)


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
    missing = (key for key in report.missing if not key.startswith(tuple(allow_missing)))
    report = replace(report, missing=tuple(missing))
    if problems := report.problems():
        if strict:
            raise CheckpointError(
                f"{checkpoint.path}: does not fit the model: {problems}{_missing_advice(report)}"
            )
        if not report.loaded:
            raise CheckpointError(f"{checkpoint.path}: not one key fits the model: {problems}")
        warn(report.summary())
    model.load_state_dict({key: state[key] for key in report.fitting}, strict=False)
    return report


def unwrapped(checkpoint: Checkpoint, own: Container[str] = ()) -> tuple[Kind, State, str]:
    """Kind, state and weights after unwrapping, where there is something to unwrap.

    ``own`` are the keys of the model it is for: where the file has one of them as it is, it is not wrapped.
    """
    if checkpoint.kind not in WRAPPED:
        return checkpoint.kind, checkpoint.state, "stored"
    if any(key in own for key in checkpoint.state):
        return model_kind(checkpoint.state), checkpoint.state, "stored"
    state, weights = unwrap_state_dict(checkpoint.state)
    say(f"{checkpoint.path}: {checkpoint.kind.value}; using its {weights} weights")
    return WRAPPED[checkpoint.kind].inside, state, weights


def _advice(found: Kind, expected: Kind) -> str:
    if found in (Kind.AUTOENCODER, Kind.PRETRANSFORM) and expected is not Kind.AUTOENCODER:
        return "; give an autoencoder with --pretransform-ckpt-path"
    if expected is Kind.AUTOENCODER and found is not Kind.ADAPTER:
        return "; 'sat extract-vae' writes the autoencoder in front of it to a file of its own"
    if found is Kind.ADAPTER:
        return "; give adapters with --lora-ckpt-path, and the model they were trained on here"
    return ""


def _missing_advice(report: LoadReport) -> str:
    if report.missing and all(key.startswith("pretransform.") for key in report.missing):
        return "; give the autoencoder with --pretransform-ckpt-path"
    if report.missing or report.mismatched:
        return "; is this the model config it was trained with? --load-partial trains on from what fits"
    return ""
