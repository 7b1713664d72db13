"""Every flag of a training run, from ``defaults.ini`` and the command line."""

from __future__ import annotations

import configparser
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from stable_audio_tools.errors import ConfigError, UsageError
from stable_audio_tools.schema.base import nearest

DEFAULTS_FILE = "defaults.ini"
LOGGERS = ("csv", "tensorboard", "wandb", "comet", "none")
PRECISIONS = ("16-mixed", "bf16-mixed", "bf16-true", "32-true")
CHECKPOINTING = ("none", "half", "full")
_PRECISION_ALIASES = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true"}
_WEIGHT_NORM_MOMENTS = ("pre_load", "post_load")
_LEAST = {
    "batch_size": 1,
    "accum_batches": 1,
    "num_workers": 0,
    "num_gpus": 0,
    "num_nodes": 1,
    "checkpoint_every": 1,
    "val_every": 1,
    "log_every": 1,
    "gradient_clip_val": 0,
}

_RUN, _START, _COMPUTE = "The run", "Where to start from", "Compute"


def _flag(default: Any, text: str, panel: str | None = None, **more: Any) -> Any:
    """A field that is also a command-line flag, with the help it shows there."""
    return field(default=default, metadata={"help": text, "panel": panel, **more})


@dataclass(frozen=True)
class TrainSettings:
    """The settings of a run. Counts named ``..._every`` and ``max_steps`` are optimizer steps.

    Raises:
        UsageError: a value is out of range; the message names the flag.
    """

    model_config: str = _flag("", "Model config (JSON).")
    dataset_config: str = _flag("", "Dataset config (JSON).")
    val_dataset_config: str | None = _flag(None, "Dataset config for validation.")
    pretrained_ckpt_path: str | None = _flag(None, "Unwrapped checkpoint to start from.", _START)
    load_partial: bool = _flag(
        False, "Load what fits of that checkpoint and report the rest.", _START, one_way=True
    )
    pretransform_ckpt_path: str | None = _flag(None, "Checkpoint to take the VAE from.", _START)
    lora_ckpt_path: str | None = _flag(None, "Adapter folder to start from.", _START)
    ckpt_path: str | None = _flag(None, "Training checkpoint to continue exactly.", _START)
    recover: bool = _flag(False, "Continue the newest run of this name in its own folder.", _START)
    remove_pretransform_weight_norm: str | None = _flag(
        None, "Fuse the VAE's weight norm before or after loading it: pre_load or post_load.", _START
    )
    name: str = _flag("stable_audio_tools", "Name of the run.", _RUN)
    save_dir: str = _flag("runs", "Folder that holds <name>/<run_id>.", _RUN)
    seed: int = _flag(42, "Seed of every draw.", _RUN)
    max_steps: int = _flag(-1, "Stop after this many optimizer steps; -1 goes on.", _RUN)
    logger: str = _flag("csv", f"Where numbers go: {', '.join(LOGGERS)}.", _RUN)
    log_every: int = _flag(50, "Steps between logged values.", _RUN)
    val_every: int = _flag(1000, "Steps between validations.", _RUN)
    checkpoint_every: int = _flag(10_000, "Steps between checkpoints.", _RUN)
    save_top_k: int = _flag(-1, "How many of the newest checkpoints to keep; -1 keeps all.", _RUN)
    batch_size: int = _flag(8, "Crops per batch and device.", _COMPUTE)
    accum_batches: int = _flag(1, "Batches per optimizer step.", _COMPUTE)
    num_workers: int = _flag(4, "Loader processes.", _COMPUTE)
    precision: str = _flag("16-mixed", f"One of {', '.join(PRECISIONS)}.", _COMPUTE)
    num_gpus: int = _flag(1, "GPUs per node; 0 computes on the CPU.", _COMPUTE)
    num_nodes: int = _flag(1, "Nodes.", _COMPUTE)
    strategy: str | None = _flag(None, "ddp, fsdp, deepspeed or another of Lightning's.", _COMPUTE)
    gradient_clip_val: float = _flag(0.0, "Largest norm of the gradient; 0 does not clip.", _COMPUTE)
    device: str = _flag("auto", "auto, cpu, cuda or mps.", _COMPUTE)
    compile: bool | None = _flag(None, "Compile the network's blocks; unless told, on CUDA.", _COMPUTE)
    activation_checkpointing: str = _flag(
        "none", "Blocks to compute again in the backward pass, for memory: none, half or full.", _COMPUTE
    )
    ema_on_cpu: bool = _flag(
        False, "Keep the average in main memory, updated every 10 steps.", _COMPUTE, one_way=True
    )

    def __post_init__(self) -> None:
        for key in ("model_config", "dataset_config"):
            if not getattr(self, key):
                raise UsageError(f"{_spelled(key)}: not given; name the JSON file here or in {DEFAULTS_FILE}")
        for key, least in _LEAST.items():
            if getattr(self, key) < least:
                raise UsageError(f"{_spelled(key)}: expected {least} or more, found {getattr(self, key)}")
        for key in ("max_steps", "save_top_k"):
            if getattr(self, key) < 1 and getattr(self, key) != -1:
                raise UsageError(
                    f"{_spelled(key)}: expected 1 or more, or -1 for no limit, found {getattr(self, key)}"
                )
        object.__setattr__(self, "precision", _PRECISION_ALIASES.get(self.precision, self.precision))
        _check_choice("precision", self.precision, PRECISIONS)
        _check_choice("logger", self.logger, LOGGERS)
        _check_choice("activation_checkpointing", self.activation_checkpointing, CHECKPOINTING)
        if self.remove_pretransform_weight_norm is not None:
            moment = self.remove_pretransform_weight_norm
            _check_choice("remove_pretransform_weight_norm", moment, _WEIGHT_NORM_MOMENTS)
        if self.load_partial and not self.pretrained_ckpt_path:
            raise UsageError("--load-partial: expected --pretrained-ckpt-path beside it, found none")
        if self.recover and self.ckpt_path:
            raise UsageError(
                "--recover and --ckpt-path exclude each other: the first finds the checkpoint itself"
            )

    @classmethod
    def from_flags(cls, flags: Mapping[str, Any], config_file: str | Path | None = None) -> TrainSettings:
        """The settings of ``flags`` (None is not given), then of ``config_file``, then the built-in defaults.

        Raises:
            UsageError: a flag is unknown or out of range, or ``config_file`` was named and does not exist.
            ConfigError: ``config_file`` has an unknown key or a value of the wrong kind.
        """
        unknown = sorted(set(flags) - set(_types()))
        if unknown:
            raise UsageError(f"unknown training flag {unknown[0]!r}{_hint(unknown[0])}")
        given = {key: value for key, value in flags.items() if value is not None}
        return cls(**{**load_defaults(config_file), **given})

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values, for the manifest."""
        return asdict(self)


def load_defaults(config_file: str | Path | None = None) -> dict[str, Any]:
    """The values in section ``[DEFAULTS]`` of ``config_file``; empty values are left out.

    Without a name, or under the name ``defaults.ini``, a missing file is no error and gives no values.

    Raises:
        UsageError: the file was named and does not exist.
        ConfigError: it is not an ini file, a key is unknown (the nearest is named), or a value does not fit.
    """
    path = Path(config_file or DEFAULTS_FILE)
    if not path.is_file():
        if str(path) == DEFAULTS_FILE:
            return {}
        raise UsageError(f"--config-file: {path}: no such file")
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(path.read_text(encoding="utf-8-sig"), source=str(path))
    except (configparser.Error, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a readable ini file: {error}") from error
    if not parser.has_section("DEFAULTS"):
        raise ConfigError(f"{path}: expected a section [DEFAULTS], found {parser.sections() or 'none'}")
    values: dict[str, Any] = {}
    for key, text in parser.items("DEFAULTS"):
        if key not in _types():
            raise ConfigError(f"{path}: [DEFAULTS]: unknown key {key!r}{_hint(key)}")
        text = text.strip()
        if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":  # public files quote their strings
            text = text[1:-1]
        if text:
            values[key] = _parse(text, _types()[key], f"{path}: [DEFAULTS]: {key}")
    return values


def _types() -> dict[str, type]:
    """The type of each setting by name, without its ``| None``."""
    hints = typing.get_type_hints(TrainSettings)
    plain: dict[str, type] = {}
    for entry in fields(TrainSettings):
        hint = hints[entry.name]
        if isinstance(hint, types.UnionType):
            hint = next(part for part in typing.get_args(hint) if part is not type(None))
        plain[entry.name] = hint
    return plain


def _parse(text: str, kind: type, where: str) -> Any:
    if kind is bool:
        words = configparser.ConfigParser.BOOLEAN_STATES
        if text.lower() not in words:
            raise ConfigError(f"{where}: expected true or false, found {text!r}")
        return words[text.lower()]
    try:
        return kind(text)
    except ValueError as error:
        raise ConfigError(f"{where}: expected {kind.__name__}, found {text!r}") from error


def _spelled(key: str) -> str:
    return "--" + key.replace("_", "-")


def _hint(key: str) -> str:
    guess = nearest(key, list(_types()))
    return f"; did you mean {guess!r}?" if guess else f"; known: {', '.join(sorted(_types()))}"


def _check_choice(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{_spelled(key)}: unknown value {value!r}; known: {', '.join(known)}")
