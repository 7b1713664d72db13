"""Conditioners: what turns a prompt, a number or a choice into vectors."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stable_audio_tools.schema.base import Config


class T5Config(Config):
    """A frozen T5 encoder by Hugging Face name or local folder (Raffel et al. 2020)."""

    t5_model_name: str = "t5-base"
    max_length: int = Field(128, ge=1)
    enable_grad: bool = False
    project_out: bool = False


class NumberConfig(Config):
    """A number, clamped to its range and embedded with learned Fourier features."""

    min_val: float = 0.0
    max_val: float = 1.0
    fourier_features_type: Literal["learned"] = "learned"

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> NumberConfig:
        if self.max_val <= self.min_val:
            raise ValueError(f"max_val must be above min_val, found {self.min_val} and {self.max_val}")
        return self


class IntConfig(Config):
    """A whole number in a range, one embedding each."""

    min_val: int = 0
    max_val: int = 512


class ListConfig(Config):
    """One of a list of words, one embedding each, and one for anything else."""

    options: list[str] = Field(min_length=1)


class T5Conditioner(Config):
    id: str
    type: Literal["t5"]
    config: T5Config = T5Config()


class NumberConditioner(Config):
    id: str
    type: Literal["number"]
    config: NumberConfig = NumberConfig()


class IntConditioner(Config):
    id: str
    type: Literal["int"]
    config: IntConfig = IntConfig()


class ListConditioner(Config):
    id: str
    type: Literal["list"]
    config: ListConfig


ConditionerConfig = Annotated[
    T5Conditioner | NumberConditioner | IntConditioner | ListConditioner, Field(discriminator="type")
]
