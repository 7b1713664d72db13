"""Conditioners: what turns a prompt, a number or a choice into vectors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, model_validator

from stable_audio_tools.schema.autoencoder import PretransformConfig
from stable_audio_tools.schema.base import Config

PaddingMode = Literal["zero", "none", "learned"]
"""What stands where a prompt is only padding: zeros, what the encoder makes of it, or a learned vector."""


class _ConditionerConfig(Config):
    output_dim: int | None = Field(None, ge=1)
    """Width of the embeddings in place of the model's ``cond_dim``."""


class _TextEncoderConfig(_ConditionerConfig):
    max_length: int = Field(128, ge=1)
    """Tokens a prompt is cut or padded to."""
    enable_grad: bool = False
    """Train the encoder with the model, and save it with the model."""
    project_out: bool = False
    """Put a linear layer behind the encoder even where the widths agree."""
    padding_mode: PaddingMode = "zero"


class T5Config(_TextEncoderConfig):
    """A T5 encoder (Raffel et al. 2020), or one like it, by Hugging Face name or local folder."""

    t5_model_name: str = "t5-base"

    @property
    def name(self) -> str:
        """The encoder's name or folder."""
        return self.t5_model_name


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

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> IntConfig:
        if self.max_val < self.min_val:
            raise ValueError(f"max_val must not be below min_val, found {self.min_val} and {self.max_val}")
        return self


class ListConfig(_ConditionerConfig):
    """One of a list of words, one embedding each, and one for anything else."""

    options: list[str] = Field(min_length=1)


class T5GemmaConfig(_TextEncoderConfig):
    """A T5Gemma encoder (Zhang et al. 2025) by Hugging Face name or local folder."""

    model_name: str = "google/t5gemma-b-b-ul2"

    @property
    def name(self) -> str:
        """The encoder's name or folder."""
        return self.model_name


class _CLAPConfig(_ConditionerConfig):
    """A CLAP (Wu et al. 2023): a Hugging Face name or folder, or a ``.pt`` file of LAION."""

    clap_ckpt_path: str
    audio_model_type: str = "HTSAT-base"
    """Read and not used: the checkpoint itself tells the size of its audio network."""
    enable_fusion: bool = True
    """Read and not used: the checkpoint itself tells whether it has feature fusion."""
    project_out: bool = False
    finetune: bool = False
    """Train the branch with the model, and save it with the model."""


class CLAPAudioConfig(_CLAPConfig):
    """The audio branch of a CLAP: one embedding."""


class CLAPTextConfig(_CLAPConfig):
    """The text branch of a CLAP: one embedding, or the features of a layer."""

    use_text_features: bool = False
    feature_layer_ix: int = -1
    """Which hidden state: 0 is the token embeddings, -1 the last layer."""
    padding_mode: PaddingMode = "none"
    """What stands at the padding of text features."""


class LUTConfig(_ConditionerConfig):
    """The tokens of a pretrained tokenizer, one learned embedding each."""

    tokenizer_name: str
    max_length: int = Field(1024, ge=1)
    use_abs_pos_emb: bool = False
    """Add a learned vector for each position, padding too."""
    special_tokens: list[str] = []
    """Words that stay one token, added to the vocabulary."""
    project_out: bool = False


class PretransformConditionerConfig(_ConditionerConfig):
    """Audio as the latents of a pretransform: the model's, or one of its own."""

    sample_rate: int = Field(ge=1)
    """Of the audio that it is given, in Hz."""
    use_model_pretransform: bool = False
    pretransform_config: PretransformConfig | None = None
    pretransform_ckpt_path: str | None = None
    save_pretransform: bool = False
    """Keep the weights of the pretransform among those of the conditioner, too."""
    project_out: bool = False

    @model_validator(mode="after")
    def _there_is_one_pretransform(self) -> PretransformConditionerConfig:
        if self.use_model_pretransform == (self.pretransform_config is not None):
            found = "both" if self.use_model_pretransform else "neither"
            raise ValueError(
                f"either use_model_pretransform or pretransform_config is needed, found {found};"
                " set use_model_pretransform to share the model's, or describe one of its own"
            )
        return self


class _Conditioner(Config):
    id: str = Field(min_length=1)
    """The metadata key that it reads, and the name of what it makes."""


class T5Conditioner(_Conditioner):
    type: Literal["t5"]
    config: T5Config = T5Config()


class NumberConditioner(_Conditioner):
    type: Literal["number"]
    config: NumberConfig = NumberConfig()


class IntConditioner(_Conditioner):
    type: Literal["int"]
    config: IntConfig = IntConfig()


class ListConditioner(_Conditioner):
    type: Literal["list"]
    config: ListConfig


class T5GemmaConditioner(_Conditioner):
    type: Literal["t5gemma"]
    config: T5GemmaConfig = T5GemmaConfig()


class CLAPTextConditioner(_Conditioner):
    type: Literal["clap_text"]
    config: CLAPTextConfig


class CLAPAudioConditioner(_Conditioner):
    type: Literal["clap_audio"]
    config: CLAPAudioConfig


class LUTConditioner(_Conditioner):
    type: Literal["lut"]
    config: LUTConfig


class PretransformConditioner(_Conditioner):
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
    """By id: the metadata key to read in an item that lacks the id itself."""
    pre_encoded_keys: list[str] = []
    """Ids whose metadata already are embeddings."""

    @model_validator(mode="after")
    def _ids_fit(self) -> ConditioningConfig:
        ids = [entry.id for entry in self.configs]
        for key in ids:
            if ids.count(key) > 1:
                raise ValueError(f"the id {key!r} is given to {ids.count(key)} conditioners; ids must differ")
            if "." in key:
                raise ValueError(f"the id {key!r} has a dot, which state-dict keys cannot hold; take it out")
        for name, keys in (("default_keys", self.default_keys), ("pre_encoded_keys", self.pre_encoded_keys)):
            for key in keys:
                if key not in ids:
                    known = ", ".join(map(repr, ids)) or "none"
                    raise ValueError(f"{name} names {key!r}, but the ids of the conditioners are: {known}")
        return self


def check_audio_conditioners(
    conditioning: ConditioningConfig, token_ids: Iterable[str], has_pretransform: bool
) -> None:
    """Refuse ``pretransform`` conditioners that have no pretransform, or whose latents are taken for tokens.

    Args:
        token_ids: the ids that a network takes as tokens or as one vector.
        has_pretransform: whether the model has one to share.

    Raises:
        ValueError: the message says which id, and what was expected.
    """
    taken = set(token_ids)
    for row, entry in enumerate(conditioning.configs):
        if not isinstance(entry, PretransformConditioner):
            continue
        where = f"conditioning.configs[{row}]"
        if entry.config.use_model_pretransform and not has_pretransform:
            raise ValueError(
                f"{where}.config.use_model_pretransform is set, but the model has no pretransform;"
                " describe one of its own with pretransform_config"
            )
        if entry.id in taken:
            raise ValueError(
                f"{where}: {entry.id!r} makes latents (channels, frames), which are no tokens;"
                " a diffusion network takes it by input_concat_ids"
            )
