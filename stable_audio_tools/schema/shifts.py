"""How timesteps are shifted, in training or in sampling."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from stable_audio_tools.schema.base import Config


class DistributionShiftConfig(Config):
    """Shift by sequence length (Esser et al. 2024, section 5.3.2): ``mu`` is linear in the length."""

    type: Literal["full"] = "full"
    base_shift: float = 0.5
    max_shift: float = 1.15
    min_length: int = 256
    max_length: int = 4096
    use_sine: bool = False

    @model_validator(mode="after")
    def _lengths_differ(self) -> DistributionShiftConfig:
        if self.min_length >= self.max_length:
            raise ValueError(f"min_length {self.min_length} must be below max_length {self.max_length}")
        return self


class FluxShiftConfig(Config):
    """Shift whose factor is a power of the length: ``alpha_min`` at ``min_length`` to ``alpha_max`` at
    ``max_length``, and no further. 1 is no shift; two equal factors are one for all lengths."""

    type: Literal["flux"]
    min_length: int = Field(256, ge=1)
    max_length: int = Field(4096, ge=1)
    alpha_min: float = Field(1.0, gt=0)
    alpha_max: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _lengths_differ(self) -> FluxShiftConfig:
        if self.min_length >= self.max_length:
            raise ValueError(f"min_length {self.min_length} must be below max_length {self.max_length}")
        return self


class LogSNRShiftConfig(Config):
    """Times evenly spaced in log-SNR, from ``logsnr_end`` at 0 to a start that falls by ``rate`` with every
    doubling of the length, and is ``anchor_logsnr`` at ``anchor_length``."""

    type: Literal["logsnr"]
    anchor_length: int = Field(2000, ge=1)
    anchor_logsnr: float = -6.2
    rate: float = 1.0
    logsnr_end: float = 2.0


class NoShiftConfig(Config):
    """Times as they are."""

    type: Literal["none"]


def _full_by_default(value: Any) -> Any:
    return {"type": "full", **value} if isinstance(value, dict) else value


ShiftConfig = Annotated[
    Annotated[
        DistributionShiftConfig | FluxShiftConfig | LogSNRShiftConfig | NoShiftConfig,
        Field(discriminator="type"),
    ],
    BeforeValidator(_full_by_default),
]
