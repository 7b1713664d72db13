"""The diffusion transformer and the options of its layers."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from stable_audio_tools.schema.base import Config


class AttentionConfig(Config):
    """Options of every attention layer."""

    qk_norm: Literal["l2", "ln", "rms", "dyt", "none"] | None = None
    differential: bool = False
    feat_scale: bool = False


class FeedForwardConfig(Config):
    """Options of every feed-forward layer."""

    mult: int = Field(4, ge=1)
    glu: bool = True
    no_bias: bool = False
    use_conv: bool = False
    conv_kernel_size: int = Field(3, ge=1)
    zero_init_output: bool = True


class NormConfig(Config):
    """Options of every layer norm."""

    bias: bool = False
    fix_scale: bool = False
    force_fp32: bool = False
    eps: float = 1e-5


class DiTConfig(Config):
    """The diffusion transformer (Peebles and Xie 2023; Evans et al. 2024)."""

    retired: ClassVar[dict[str, str]] = {
        "diffusion_objective": "it is read from the block above, beside 'type'",
    }

    io_channels: int = Field(32, ge=1)
    patch_size: int = Field(1, ge=1)
    embed_dim: int = Field(768, ge=1)
    depth: int = Field(12, ge=1)
    num_heads: int = Field(8, ge=1)
    cond_token_dim: int = Field(0, ge=0)
    project_cond_tokens: bool = True
    global_cond_dim: int = Field(0, ge=0)
    project_global_cond: bool = True
    input_concat_dim: int = Field(0, ge=0)
    prepend_cond_dim: int = Field(0, ge=0)
    transformer_type: Literal["continuous_transformer"] = "continuous_transformer"
    global_cond_type: Literal["prepend", "adaLN"] = "prepend"
    timestep_cond_type: Literal["global", "input_concat"] = "global"
    timestep_embed_dim: int | None = None
    causal: bool = False
    rotary_pos_emb: bool = True
    zero_init_branch_outputs: bool = True
    conformer: bool = False
    layer_scale: bool = False
    remove_norms: bool = False
    use_sinusoidal_emb: bool = False
    use_abs_pos_emb: bool = False
    abs_pos_emb_max_length: int = Field(10000, ge=1)
    num_memory_tokens: int = Field(0, ge=0)
    sliding_window: tuple[int, int] | None = None
    attn_kwargs: AttentionConfig = AttentionConfig()
    ff_kwargs: FeedForwardConfig = FeedForwardConfig()
    norm_kwargs: NormConfig = NormConfig()

    @model_validator(mode="after")
    def _heads_divide(self) -> DiTConfig:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        head_dim = self.embed_dim // self.num_heads
        cond_width = self.embed_dim if self.project_cond_tokens else self.cond_token_dim
        if self.cond_token_dim and cond_width % head_dim:
            raise ValueError(
                f"cross-attention width {cond_width} is not a multiple of the head width {head_dim}"
            )
        return self
