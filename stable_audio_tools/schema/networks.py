"""The diffusion transformer and the options of its layers."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from stable_audio_tools.schema.base import Config

NormType = Literal["layer_norm", "rms_norm", "dyt"]
"""Layer norm, root-mean-square norm, or DynamicTanh in place of a norm."""
Window = tuple[Annotated[int, Field(ge=-1)], Annotated[int, Field(ge=-1)]]


class AttentionConfig(Config):
    """Options of every attention layer."""

    qk_norm: Literal["l2", "ln", "rms", "dyt", "none"] | None = None
    """Norm of queries and keys (Henry et al. 2020)."""
    qk_norm_eps: float = Field(1e-6, gt=0)
    differential: bool = False
    feat_scale: bool = False


class FeedForwardConfig(Config):
    """Options of every feed-forward layer."""

    mult: float = Field(4, gt=0)
    glu: bool = True
    no_bias: bool = False
    use_conv: bool = False
    conv_kernel_size: int = Field(3, ge=1)
    zero_init_output: bool = True
    sinusoidal: bool = False
    """``sin(pi x)`` in place of a SiLU."""

    @model_validator(mode="after")
    def _length_stays(self) -> FeedForwardConfig:
        if self.use_conv and self.conv_kernel_size % 2 == 0:
            raise ValueError(
                f"conv_kernel_size {self.conv_kernel_size} changes the length; with use_conv it must be odd"
            )
        return self


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
    timestep_embed_dim: int | None = Field(None, ge=1)
    """Channels of the time, where it is one of the inputs."""
    timestep_features_type: Literal["learned", "expo"] = "learned"
    """Random Fourier features that are stored, or fixed ones at frequencies spaced evenly in log."""
    timestep_features_dim: int = Field(256, ge=2, multiple_of=2)
    timestep_features_logsnr: bool = False
    """Whether the features are of the log-SNR of the straight path and not of the time."""
    local_add_cond_dim: int = Field(0, ge=0)
    """Channels of a conditioning per frame that each block adds to its tokens."""
    final_cross_attn_ix: int = Field(-1, ge=-1)
    """Index of the last block with cross-attention; -1 is every block."""
    causal: bool = False
    rotary_pos_emb: bool = True
    zero_init_branch_outputs: bool = True
    conformer: bool = False
    layer_scale: bool = False
    remove_norms: bool = False
    """The older way to write ``norm_type`` ``dyt``."""
    norm_type: NormType = "layer_norm"
    use_sinusoidal_emb: bool = False
    use_abs_pos_emb: bool = False
    abs_pos_emb_max_length: int = Field(10000, ge=1)
    num_memory_tokens: int = Field(0, ge=0)
    sliding_window: Window | None = None
    """Tokens before and after that self-attention sees; -1 is no limit."""
    attn_kwargs: AttentionConfig = AttentionConfig()
    ff_kwargs: FeedForwardConfig = FeedForwardConfig()
    norm_kwargs: NormConfig = NormConfig()

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.embed_dim // self.num_heads

    @property
    def context_dim(self) -> int | None:
        """Width of the tokens that blocks attend to, after their projection; None without any."""
        if not self.cond_token_dim:
            return None
        return self.embed_dim if self.project_cond_tokens else self.cond_token_dim

    @property
    def branch_norm(self) -> NormType:
        """The norm in front of each branch."""
        return "dyt" if self.remove_norms else self.norm_type

    @model_validator(mode="after")
    def _heads_divide(self) -> DiTConfig:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        if self.rotary_pos_emb and self.head_dim % 2:
            raise ValueError(f"rotary_pos_emb takes heads of an even width, found {self.head_dim}")
        if self.context_dim is not None:
            if self.context_dim % self.head_dim:
                raise ValueError(
                    f"cross-attention width {self.context_dim} is not a multiple of"
                    f" the head width {self.head_dim}"
                )
            if self.num_heads % (self.context_dim // self.head_dim):
                raise ValueError(
                    f"{self.num_heads} query heads cannot share {self.context_dim // self.head_dim} heads of"
                    f" cross-attention width {self.context_dim}: set project_cond_tokens"
                )
        return self

    @model_validator(mode="after")
    def _conditioning_fits(self) -> DiTConfig:
        if self.timestep_cond_type == "input_concat" and self.timestep_embed_dim is None:
            raise ValueError("timestep_cond_type 'input_concat' takes a timestep_embed_dim; found none")
        if self.global_cond_dim and not self.project_global_cond and self.global_cond_dim != self.embed_dim:
            raise ValueError(
                f"global_cond_dim is {self.global_cond_dim}, but without project_global_cond it must be"
                f" embed_dim, {self.embed_dim}"
            )
        if self.local_add_cond_dim and self.patch_size > 1:
            raise ValueError(
                f"local_add_cond_dim takes patch_size 1, since each frame is a token; found {self.patch_size}"
            )
        return self

    @model_validator(mode="after")
    def _layers_fit(self) -> DiTConfig:
        if self.final_cross_attn_ix >= self.depth:
            raise ValueError(f"final_cross_attn_ix {self.final_cross_attn_ix}: there are {self.depth} blocks")
        if self.use_sinusoidal_emb and not self.use_abs_pos_emb and self.embed_dim % 2:
            raise ValueError(f"use_sinusoidal_emb takes an even embed_dim, found {self.embed_dim}")
        if self.remove_norms and self.norm_type == "rms_norm":
            raise ValueError("remove_norms is norm_type 'dyt', but norm_type is 'rms_norm'")
        if self.branch_norm != "layer_norm" and self.norm_kwargs.bias:
            raise ValueError(
                f"norm_kwargs.bias is an option of 'layer_norm'; norm_type is {self.branch_norm!r}"
            )
        return self
