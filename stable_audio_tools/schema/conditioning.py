"""Conditioners: what turns a prompt, a number or a choice into vectors."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stable_audio_tools.schema.autoencoder import PretransformConfig
from stable_audio_tools.schema.base import Config

PaddingMode = Literal["zero", "none", "learned"]
"""What stands where a prompt is only padding: zeros, what the encoder makes of it, or a learned vector."""


class _ConditionerConfig(Config):
    output_dim: int | None = Field(None, ge=1)
    """Width of the embeddings in place of the model's ``cond_dim``."""


class T5Config(_ConditionerConfig):
    """A frozen T5 encoder by Hugging Face name or local folder (Raffel et al. 2020)."""

    t5_model_name: str = "t5-base"
    max_length: int = Field(128, ge=1)
    enable_grad: bool = False
    project_out: bool = False
    padding_mode: PaddingMode = "zero"


class NumberConfig(_ConditionerConfig):
    """A number, clamped to its range and embedded with learned Fourier features."""

    min_val: float = 0.0
    max_val: float = 1.0
    fourier_features_type: Literal["learned", "expo"] = "learned"

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> NumberConfig:
        if self.max_val <= self.min_val:
            raise ValueError(f"max_val must be above min_val, found {self.min_val} and {self.max_val}")
        return self


class IntConfig(_ConditionerConfig):
    """A whole number in a range, one embedding each."""

    min_val: int = 0
    max_val: int = 512


class ListConfig(_ConditionerConfig):
    """One of a list of words, one embedding each, and one for anything else."""

    options: list[str] = Field(min_length=1)


class T5GemmaConfig(_ConditionerConfig):
    """A T5Gemma encoder by Hugging Face name or local folder."""

    model_name: str = "google/t5gemma-b-b-ul2"
    max_length: int = Field(128, ge=1)
    enable_grad: bool = False
    project_out: bool = False
    padding_mode: PaddingMode = "zero"


class CLAPAudioConfig(_ConditionerConfig):
    """The audio branch of a CLAP checkpoint (Wu et al. 2023)."""

    clap_ckpt_path: str
    audio_model_type: str = "HTSAT-base"
    enable_fusion: bool = True
    project_out: bool = False
    finetune: bool = False


class CLAPTextConfig(CLAPAudioConfig):
    """The text branch of a CLAP checkpoint: one embedding, or the features of a layer."""

    use_text_features: bool = False
    feature_layer_ix: int = -1


class LUTConfig(_ConditionerConfig):
    """The tokens of a pretrained tokenizer, one learned embedding each."""

    tokenizer_name: str
    max_length: int = Field(1024, ge=1)
    use_abs_pos_emb: bool = False
    special_tokens: list[str] = []
    project_out: bool = False


class PretransformConditionerConfig(_ConditionerConfig):
    """Audio as the latents of a pretransform: the model's, or one of its own."""

    sample_rate: int = Field(ge=1)
    use_model_pretransform: bool = False
    pretransform_config: PretransformConfig | None = None
    pretransform_ckpt_path: str | None = None
    save_pretransform: bool = False
    project_out: bool = False


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


class T5GemmaConditioner(Config):
    id: str
    type: Literal["t5gemma"]
    config: T5GemmaConfig = T5GemmaConfig()


class CLAPTextConditioner(Config):
    id: str
    type: Literal["clap_text"]
    config: CLAPTextConfig


class CLAPAudioConditioner(Config):
    id: str
    type: Literal["clap_audio"]
    config: CLAPAudioConfig


class LUTConditioner(Config):
    id: str
    type: Literal["lut"]
    config: LUTConfig


class PretransformConditioner(Config):
    id: str
    type: Literal["pretransform"]
    config: PretransformConditionerConfig


ConditionerConfig = Annotated[
    T5Conditioner
    | NumberConditioner
    | IntConditioner
    | ListConditioner
    | T5GemmaConditioner
    | CLAPTextConditioner
    | CLAPAudioConditioner
    | LUTConditioner
    | PretransformConditioner,
    Field(discriminator="type"),
]


class ConditioningConfig(Config):
    """What a model can be told. A conditioning id without a conditioner must arrive as a tensor."""

    configs: list[ConditionerConfig] = []
    cond_dim: int = Field(ge=1)
    default_keys: dict[str, str] = {}
    pre_encoded_keys: list[str] = []
