"""Language models over the tokens of a discrete pretransform."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stable_audio_tools.schema.autoencoder import PretransformConfig
from stable_audio_tools.schema.base import Config
from stable_audio_tools.schema.conditioning import ConditioningConfig
from stable_audio_tools.schema.networks import AttentionConfig, FeedForwardConfig, NormConfig


class TransformerBackboneConfig(Config):
    """A causal transformer over embedded tokens."""

    embed_dim: int = Field(ge=1)
    depth: int = Field(ge=1)
    dim_heads: int = Field(64, ge=1)
    cross_attn_cond_dim: int = Field(0, ge=0)
    prepend_cond_dim: int = Field(0, ge=0)
    project_cross_attn_cond: bool = False
    rotary_pos_emb: bool = True
    zero_init_branch_outputs: bool = True
    conformer: bool = False
    use_sinusoidal_emb: bool = False
    use_abs_pos_emb: bool = False
    abs_pos_emb_max_length: int = Field(10000, ge=1)
    num_memory_tokens: int = Field(0, ge=0)
    sliding_window: tuple[int, int] | None = None
    attn_kwargs: AttentionConfig = AttentionConfig()
    ff_kwargs: FeedForwardConfig = FeedForwardConfig()
    norm_kwargs: NormConfig = NormConfig()


class TransformerLanguageModel(Config):
    """The network, and how its tokens and its conditioning are laid out."""

    type: Literal["continuous_transformer"]
    config: TransformerBackboneConfig
    codebook_pattern: Literal["parallel", "delay", "unroll", "valle", "musiclm"] = "delay"
    """How the tokens of one frame are spread over steps (Copet et al. 2023)."""
    cross_attention_cond_ids: list[str] = []
    prepend_cond_ids: list[str] = []
    global_cond_ids: list[str] = []


class LanguageModelConfig(Config):
    """Tokens, what they are conditioned on, and the network that continues them."""

    pretransform: PretransformConfig
    conditioning: ConditioningConfig | None = None
    lm: TransformerLanguageModel
