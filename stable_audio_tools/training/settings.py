"""Every flag of a training run, from ``defaults.ini`` and the command line."""

from __future__ import annotations

import configparser
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from stable_audio_tools.errors import ConfigError, UsageError
from stable_audio_tools.schema.base import nearest

DEFAULTS_FILE = "defaults.ini"
LOGGERS = ("csv", "tensorboard", "wandb", "comet", "none")
PRECISIONS = ("16-mixed", "bf16-mixed", "32-true", "64-true", "16-true", "bf16-true")
_PRECISION_ALIASES = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}
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


@dataclass(frozen=True)
class TrainSettings:
    """The settings of a run. Counts named ``..._every`` and ``max_steps`` are optimizer steps.

    Raises:
        UsageError: a value is out of range; the message names the flag.
    """

    model_config: str = ""
    dataset_config: str = ""
    val_dataset_config: str | None = None
    pretrained_ckpt_path: str | None = None
    pretransform_ckpt_path: str | None = None
    lora_ckpt_path: str | None = None
    ckpt_path: str | None = None
    """A training checkpoint to continue exactly."""
    recover: bool = False
    """Continue the newest run of this name in its own folder."""
    remove_pretransform_weight_norm: str | None = None
    name: str = "stable_audio_tools"
    save_dir: str = "runs"
    seed: int = 42
    max_steps: int = -1
    logger: str = "csv"
    log_every: int = 50
    val_every: int = 1000
    checkpoint_every: int = 10_000
    save_top_k: int = -1
    """How many of the newest checkpoints to keep; -1 keeps all."""
    batch_size: int = 8
    accum_batches: int = 1
    num_workers: int = 4
    precision: str = "16-mixed"
    num_gpus: int = 1
    num_nodes: int = 1
    strategy: str | None = None
    gradient_clip_val: float = 0.0
    device: str = "auto"

    def __post_init__(self) -> None:
        for key in ("model_config", "dataset_config"):
            if not getattr(self, key):
                raise UsageError(
                    f"{_flag(key)}: not given; name the JSON file, on the command line or in {DEFAULTS_FILE}"
                )
        for key, least in _LEAST.items():
            if getattr(self, key) < least:
                raise UsageError(f"{_flag(key)}: expected {least} or more, found {getattr(self, key)}")
        for key in ("max_steps", "save_top_k"):
            if getattr(self, key) < 1 and getattr(self, key) != -1:
                raise UsageError(
                    f"{_flag(key)}: expected 1 or more, or -1 for no limit, found {getattr(self, key)}"
                )
        object.__setattr__(self, "precision", _PRECISION_ALIASES.get(self.precision, self.precision))
        _check_choice("precision", self.precision, PRECISIONS)
        _check_choice("logger", self.logger, LOGGERS)
        if self.remove_pretransform_weight_norm is not None:
            moment = self.remove_pretransform_weight_norm
            _check_choice("remove_pretransform_weight_norm", moment, _WEIGHT_NORM_MOMENTS)
        if self.recover and self.ckpt_path:
            raise UsageError(
                "--recover and --ckpt-path exclude each other: the first finds the checkpoint itself"
            )

    @classmethod
    def from_flags(cls, flags: Mapping[str, Any], config_file: str | Path | None = None) -> TrainSettings:
        """The settings for ``flags`` (None means not given), then ``config_file``, then the built-in defaults.

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
        ConfigError: it is not an ini file, a key is unknown (the nearest is named), or a value is of the wrong kind.
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
    for field in fields(TrainSettings):
        hint = hints[field.name]
        if isinstance(hint, types.UnionType):
            hint = next(part for part in typing.get_args(hint) if part is not type(None))
        plain[field.name] = hint
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


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def _hint(key: str) -> str:
    guess = nearest(key, list(_types()))
    return f"; did you mean {guess!r}?" if guess else f"; known: {', '.join(sorted(_types()))}"


def _check_choice(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{_flag(key)}: unknown value {value!r}; known: {', '.join(known)}")
