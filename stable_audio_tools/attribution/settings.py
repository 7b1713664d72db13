"""What an attribution run can be told, and which of it decides the numbers."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch

from stable_audio_tools.attribution.gradients.measurements import MEASUREMENTS, measurement_names
from stable_audio_tools.attribution.gradients.schedule import TIMESTEP_STRATEGIES
from stable_audio_tools.errors import UsageError

GRADIENT_MODES = ("hooked", "dense")
NOISE_MODES = ("shared", "per-track")
PRECISIONS = ("auto", "float32", "bfloat16")
STORE_DTYPES = ("float32", "float16")


def _flag(default: Any, text: str) -> Any:
    """A field that is also a command-line flag, with the help it shows there."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class FeatureSettings:
    """Everything that changes a feature row; stores with different settings do not mix.

    By default both the squared output norm of D-TRAK (Zheng et al. 2024) and the loss of TRAK (Park et al.
    2023) are differentiated, at five evenly spread timesteps: together they foretell retrained models better
    than either at ten (docs/results.md), for less time. There is no guidance dropout, and noise is shared by
    all tracks and queries, so that two rows differ by their music and not by their draw. The script that
    users of the public code run is ``f="l2-norm", K=10, mode="dense", proj_dim=16384``, scored with
    ``used_dim=8192`` and ``lambda_reg=100``.

    Raises:
        UsageError: a value is out of range; the message names the setting.
    """

    f: str = _flag(
        "mean-squared-l2-norm+loss", f"What is differentiated, joined by +: {', '.join(MEASUREMENTS)}."
    )
    K: int = _flag(5, "Timesteps per sample; their gradients are summed.")
    t_strategy: str = _flag("uniform", "Which timesteps: uniform over all, or cumulative, the first K.")
    num_train_steps: int = _flag(1000, "Timesteps are whole steps out of this many: t = step / this.")
    mode: str = _flag("hooked", "hooked projects inside the backward pass; dense is the slow reference.")
    proj_rank: int | None = _flag(
        None,
        "Hooked: a layer's gradient becomes rank x rank numbers; 0 keeps it whole. By default 16, for small"
        " models 32 or 64.",
    )
    proj_dim: int = _flag(16384, "Dense: the whole gradient becomes this many numbers; 0 keeps it whole.")
    param_regex: str | None = _flag(None, "Differentiate only parameters whose names match.")
    noise: str = _flag("shared", "Noise and encoder draws: shared by all tracks and queries, or per-track.")
    seed: int = _flag(0, "Seed of the projections and of random crops.")
    e_seed: int = _flag(0, "Seed of the noise, the encoder's draw and guidance dropout.")
    cfg_dropout_prob: float = _flag(0.0, "Chance that a sample's conditioning is left out at a timestep.")
    random_crop: bool = _flag(False, "Take a random window of each track, the same at every run.")
    max_examples: int | None = _flag(None, "Only the first tracks of the index.")
    precision: str = _flag(
        "auto", "float32 (TF32 off), or bfloat16 autocast; auto takes bfloat16 on a GPU that has it."
    )
    store_dtype: str = _flag("float32", "float32 or float16 on disk.")

    def __post_init__(self) -> None:
        measurement_names(self.f)
        _one_of("t_strategy", self.t_strategy, TIMESTEP_STRATEGIES)
        _one_of("mode", self.mode, GRADIENT_MODES)
        _one_of("noise", self.noise, NOISE_MODES)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("store_dtype", self.store_dtype, STORE_DTYPES)
        if not 1 <= self.K <= self.num_train_steps:
            raise UsageError(
                f"K must be between 1 and num_train_steps ({self.num_train_steps}), found {self.K}"
            )
        if (self.proj_rank or 0) < 0 or self.proj_dim < 0:
            raise UsageError(
                f"proj_rank and proj_dim cannot be negative, found {self.proj_rank} and {self.proj_dim}"
            )
        if not 0 <= self.cfg_dropout_prob <= 1:
            raise UsageError(f"cfg_dropout_prob must be between 0 and 1, found {self.cfg_dropout_prob}")
        if self.max_examples is not None and self.max_examples < 1:
            raise UsageError(f"max_examples must be at least 1, found {self.max_examples}")
        if self.param_regex is not None:
            try:
                re.compile(self.param_regex)
            except re.error as error:
                raise UsageError(
                    f"param_regex {self.param_regex!r} is not a regular expression: {error}"
                ) from error

    def on(self, device: torch.device) -> FeatureSettings:
        """These settings with what ``auto`` means on ``device``."""
        if self.precision != "auto":
            return self
        half = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return replace(self, precision="bfloat16" if half else "float32")

    @property
    def measurements(self) -> list[str]:
        """Names of what is differentiated."""
        return measurement_names(self.f)

    def comparable(self) -> dict[str, Any]:
        """The settings that must agree between two stores whose rows are compared."""
        unused = {"hooked": "proj_dim", "dense": "proj_rank"}[self.mode]
        own = {"max_examples", "store_dtype", "random_crop", unused}
        return {name: value for name, value in asdict(self).items() if name not in own}

    def crops(self) -> dict[str, Any]:
        """The settings that must agree within one store."""
        return {"random_crop": self.random_crop, "max_examples": self.max_examples}

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FeatureSettings:
        """The settings that :meth:`to_dict` wrote."""
        known = {known_field.name for known_field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


def _one_of(name: str, value: str, known: Any) -> None:
    if value not in known:
        raise UsageError(f"unknown {name} {value!r}; known: {', '.join(known)}")
