"""Language models over the tokens of a discrete pretransform."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import Field, model_validator

from stable_audio_tools.schema.autoencoder import PretransformConfig
from stable_audio_tools.schema.base import Config
from stable_audio_tools.schema.conditioning import ConditioningConfig, check_audio_conditioners
from stable_audio_tools.schema.networks import (
    AttentionConfig,
    FeedForwardConfig,
    NormConfig,
    NormType,
    Window,
)

PatternName: TypeAlias = Literal["parallel", "delay", "unroll", "valle", "musiclm"]


class CodebookPatternConfig(Config):
    """What may be set of a codebook pattern; the public configs set nothing."""

    delays: tuple[int, ...] | None = None
    """Steps that a codebook runs behind: of all for ``delay`` (default 0, 1, 2...) and ``unroll`` (default
    0), of all but the first for ``valle`` (default 0). They may not fall."""
    flattening: tuple[int, ...] | None = None
    """For ``unroll``: the step within its frame of each codebook (default 0, 1, 2...). They may not fall."""
    group_by: int = Field(2, ge=1)
    """For ``musiclm``: how many codebooks are written out together."""

    def misfit(self, pattern: PatternName, num_codebooks: int | None) -> str | None:
        """What does not fit the pattern, or None.

        Args:
            num_codebooks: codes per frame, or None where it is not known yet.
        """
        users = {"delays": ("delay", "unroll", "valle"), "flattening": ("unroll",), "group_by": ("musiclm",)}
        for key, patterns in users.items():
            changed = getattr(self, key) != type(self).model_fields[key].default
            if changed and pattern not in patterns:
                return f"{key} is of {' and '.join(patterns)}, but codebook_pattern is {pattern!r}"
        for key in ("delays", "flattening"):
            values = getattr(self, key)
            if values is None:
                continue
            if any(value < 0 for value in values) or list(values) != sorted(values):
                return f"{key}: found {list(values)}, expected numbers from 0 that do not fall"
            if num_codebooks is not None:
                expected = num_codebooks - 1 if pattern == "valle" else num_codebooks
                if len(values) != expected:
                    return f"{key}: found {len(values)}, expected {expected} for {num_codebooks} codebooks"
        return self._misfit_of_groups()

    def _misfit_of_groups(self) -> str | None:
        if self.delays is None or self.flattening is None:
            return None
        of_group: dict[int, int] = {}
        for group, delay in zip(self.flattening, self.delays, strict=False):
            if of_group.setdefault(group, delay) != delay:
                return f"delays: codebooks that share flattening {group} must share their delay"
        return None


class TransformerBackboneConfig(Config):
    """A causal transformer over embedded tokens."""

    embed_dim: int = Field(ge=1)
    depth: int = Field(ge=1)
    dim_heads: int = Field(64, ge=1)
    """Width of a head; a narrower ``embed_dim`` is one head."""
    cross_attn_cond_dim: int = Field(0, ge=0)
    prepend_cond_dim: int = Field(0, ge=0)
    global_cond_dim: int | None = Field(None, ge=1)
    """Width of the global conditioning, which scales, shifts and gates every layer (adaLN); None is none."""
    project_cross_attn_cond: bool = False
    rotary_pos_emb: bool = True
    zero_init_branch_outputs: bool = True
    conformer: bool = False
    layer_scale: bool = False
    remove_norms: bool = False
    """The older way to write ``norm_type`` ``dyt``."""
    norm_type: NormType = "layer_norm"
    final_cross_attn_ix: int = Field(-1, ge=-1)
    """Index of the last block with cross-attention; -1 is every block."""
    use_sinusoidal_emb: bool = False
    use_abs_pos_emb: bool = False
    abs_pos_emb_max_length: int = Field(10000, ge=1)
    num_memory_tokens: int = Field(0, ge=0)
    sliding_window: Window | None = None
    """Tokens before and after that self-attention sees; -1 is no limit. None after are seen in any case."""
    attn_kwargs: AttentionConfig = AttentionConfig()
    ff_kwargs: FeedForwardConfig = FeedForwardConfig()
    norm_kwargs: NormConfig = NormConfig()

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return min(self.dim_heads, self.embed_dim)

    @property
    def branch_norm(self) -> NormType:
        """The norm in front of each branch."""
        return "dyt" if self.remove_norms else self.norm_type

    @property
    def context_dim(self) -> int | None:
        """Width of what cross-attention attends to, or None without it."""
        if not self.cross_attn_cond_dim:
            return None
        return self.embed_dim if self.project_cross_attn_cond else self.cross_attn_cond_dim

    @model_validator(mode="after")
    def _heads_divide(self) -> TransformerBackboneConfig:
        if self.embed_dim % self.head_dim:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of dim_heads {self.head_dim}")
        if self.rotary_pos_emb and self.head_dim % 2:
            raise ValueError(f"rotary_pos_emb takes heads of an even width, found {self.head_dim}")
        width = self.context_dim
        if width is None:
            return self
        if width % self.head_dim:
            raise ValueError(f"cross-attention width {width} is not a multiple of dim_heads {self.head_dim}")
        heads, shared = self.embed_dim // self.head_dim, width // self.head_dim
        if heads % shared:
            raise ValueError(f"{heads} heads cannot share {shared} cross-attention heads: not a multiple")
        return self

    @model_validator(mode="after")
    def _nothing_looks_ahead(self) -> TransformerBackboneConfig:
        looking = {
            "conformer": self.conformer,
            "attn_kwargs.feat_scale": self.attn_kwargs.feat_scale,
            "ff_kwargs.use_conv": self.ff_kwargs.use_conv,
        }
        for key, is_on in looking.items():
            if is_on:
                raise ValueError(
                    f"{key} looks at later tokens, which a language model must not; leave it out"
                )
        return self


class TransformerLanguageModel(Config):
    """The network, and how its tokens and its conditioning are laid out."""

    type: Literal["continuous_transformer"]
    config: TransformerBackboneConfig
    codebook_pattern: PatternName = "delay"
    """How the tokens of one frame are spread over steps (Copet et al. 2023)."""
    codebook_pattern_config: CodebookPatternConfig = CodebookPatternConfig()
    cross_attention_cond_ids: list[str] = []
    prepend_cond_ids: list[str] = []
    global_cond_ids: list[str] = []

    @model_validator(mode="after")
    def _ids_have_a_place(self) -> TransformerLanguageModel:
        for ids, key in (
            ("cross_attention_cond_ids", "cross_attn_cond_dim"),
            ("prepend_cond_ids", "prepend_cond_dim"),
            ("global_cond_ids", "global_cond_dim"),
        ):
            if getattr(self, ids) and not getattr(self.config, key):
                raise ValueError(f"{ids} has {getattr(self, ids)}, but config.{key} is not set")
        return self


class LanguageModelConfig(Config):
    """Tokens, what they are conditioned on, and the network that continues them."""

    pretransform: PretransformConfig
    conditioning: ConditioningConfig | None = None
    lm: TransformerLanguageModel

    @model_validator(mode="after")
    def _tokens_exist(self) -> LanguageModelConfig:
        books = self.pretransform.num_quantizers
        if books == 0:
            raise ValueError(
                f"a language model continues codes, but the pretransform {self.pretransform.type!r} has none;"
                " expected an autoencoder with a bottleneck that quantises, dac_pretrained or"
                " audiocraft_pretrained"
            )
        problem = self.lm.codebook_pattern_config.misfit(self.lm.codebook_pattern, books)
        if problem is not None:
            raise ValueError(f"lm.codebook_pattern_config.{problem}")
        return self

    @model_validator(mode="after")
    def _widths_fit(self) -> LanguageModelConfig:
        conditioning, lm = self.conditioning, self.lm
        if conditioning is None:
            return self
        tokens = (*lm.cross_attention_cond_ids, *lm.prepend_cond_ids, *lm.global_cond_ids)
        check_audio_conditioners(conditioning, tokens, has_pretransform=True)
        widths = {
            entry.id: entry.config.output_dim or conditioning.cond_dim for entry in conditioning.configs
        }
        # An id without a conditioner arrives as a tensor, whose width is not known here.
        for ids, key in (
            ("cross_attention_cond_ids", "cross_attn_cond_dim"),
            ("prepend_cond_ids", "prepend_cond_dim"),
        ):
            for name in getattr(lm, ids):
                if name in widths and widths[name] != getattr(lm.config, key):
                    raise ValueError(
                        f"conditioner {name!r} makes {widths[name]} channels,"
                        f" but lm.config.{key} is {getattr(lm.config, key)}"
                    )
        if lm.global_cond_ids and all(name in widths for name in lm.global_cond_ids):
            total = sum(widths[name] for name in lm.global_cond_ids)
            if total != lm.config.global_cond_dim:
                raise ValueError(
                    f"global_cond_ids make {total} channels, but lm.config.global_cond_dim is"
                    f" {lm.config.global_cond_dim}"
                )
        return self
