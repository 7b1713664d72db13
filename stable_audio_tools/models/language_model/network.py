"""The language model proper: embeddings of codes, a causal transformer, and one output head per codebook.

Shapes: B batch, Q codebooks, T frames, S steps of the pattern, D width. Attribute names are those of the
public checkpoints.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from stable_audio_tools.errors import UsageError
from stable_audio_tools.models.language_model.patterns import PatternProvider
from stable_audio_tools.nn.cache import TransformerCache
from stable_audio_tools.nn.transformer import BlockOptions, ContinuousTransformer, TransformerOptions
from stable_audio_tools.schema.language_model import TransformerBackboneConfig, TransformerLanguageModel


class LMOutput(NamedTuple):
    """Logits ``(B, Q, T, card)`` that stand where the codes they predict stand, and a mask ``(B, Q, T)``.

    Where the mask is False the pattern leaves a code untrained, and the logits are NaN.
    """

    logits: Tensor
    mask: Tensor


class TransformerBackbone(nn.Module):
    """A causal transformer from embedded tokens to hidden states (Vaswani et al. 2017).

    A token sees those before it, and all of the context. The public code, which never ran, masks the context
    causally too; then the first tokens would not know the prompt, and a cache would change the result.
    """

    def __init__(self, config: TransformerBackboneConfig) -> None:
        super().__init__()
        self.embed_dim = config.embed_dim
        self.depth = config.depth
        self.model = ContinuousTransformer(_options(config), config.embed_dim, config.embed_dim)
        if config.prepend_cond_dim:
            self.to_prepend_embed = _two_layers(config.prepend_cond_dim, config.embed_dim)
        self.to_cross_attn_embed: nn.Module = nn.Identity()
        if config.cross_attn_cond_dim and config.project_cross_attn_cond:
            self.to_cross_attn_embed = _two_layers(config.cross_attn_cond_dim, config.embed_dim)

    def new_cache(self) -> TransformerCache:
        """What :meth:`forward` keeps of the tokens of one sequence."""
        return TransformerCache(self.depth)

    def forward(
        self,
        x: Tensor,
        cross_attn_cond: Tensor | None = None,
        prepend_cond: Tensor | None = None,
        global_cond: Tensor | None = None,
        cache: TransformerCache | None = None,
    ) -> Tensor:
        """Hidden states ``(B, S, D)`` of tokens ``(B, S, D)``.

        Args:
            cross_attn_cond: ``(B, M, C)``, attended to.
            prepend_cond: ``(B, P, C)``, put in front of the tokens.
            global_cond: ``(B, C)``.
            cache: of the tokens before these; conditioning is given with every call.
        """
        if cache is None or cache.length == 0:  # later calls find both in the cache
            if cross_attn_cond is not None:
                cross_attn_cond = self.to_cross_attn_embed(cross_attn_cond)
            if prepend_cond is not None:
                prepend_cond = self.to_prepend_embed(prepend_cond)
        return self.model(
            x,
            context=cross_attn_cond,
            prepend_embeds=prepend_cond,
            global_cond=global_cond,
            cache=cache,
        )


class AudioLanguageModel(nn.Module):
    """Codes in a pattern to logits of the codes in the next step (Copet et al. 2023).

    The embeddings of all codebooks in a step are summed; each codebook has a head of its own. The token after
    the last code, ``masked_token_id``, stands where a step has no code of a codebook.

    Args:
        config: network, pattern and conditioning ids.
        num_quantizers: codes per frame, Q.
        codebook_size: how many values a code has.
    """

    def __init__(self, config: TransformerLanguageModel, num_quantizers: int, codebook_size: int) -> None:
        super().__init__()
        self.num_quantizers = num_quantizers
        self.codebook_size = codebook_size
        self.masked_token_id = codebook_size
        self.patterns = PatternProvider(
            config.codebook_pattern, config.codebook_pattern_config, num_quantizers
        )
        self.backbone = TransformerBackbone(config.config)
        width = config.config.embed_dim
        self.embeds = nn.ModuleList(nn.Embedding(codebook_size + 1, width) for _ in range(num_quantizers))
        self.quantizer_heads = nn.ModuleList(nn.Linear(width, codebook_size) for _ in range(num_quantizers))

    def forward(
        self,
        sequence: Tensor,
        cross_attn_cond: Tensor | None = None,
        prepend_cond: Tensor | None = None,
        prepend_cond_mask: Tensor | None = None,
        global_cond: Tensor | None = None,
        cache: TransformerCache | None = None,
    ) -> Tensor:
        """Logits ``(B, Q, S, card)``: what is answered in a step is the prediction of the next one.

        Args:
            sequence: tokens in the steps of the pattern, ``(B, Q, S)``.
            cross_attn_cond: ``(B, M, C)``.
            prepend_cond: ``(B, P, C)``.
            prepend_cond_mask: not used, as in the public code: padding is zeroed by the conditioner.
            global_cond: ``(B, C)``.
            cache: see :meth:`TransformerBackbone.forward`.
        """
        if sequence.ndim != 3 or sequence.shape[1] != self.num_quantizers:
            raise UsageError(
                f"codes: found shape {tuple(sequence.shape)}, expected (batch, {self.num_quantizers}, length)"
            )
        embedded = [embed(sequence[:, book]) for book, embed in enumerate(self.embeds)]
        x = torch.stack(embedded).sum(dim=0)
        hidden = self.backbone(
            x,
            cross_attn_cond=None if cross_attn_cond is None else cross_attn_cond.to(x.dtype),
            prepend_cond=None if prepend_cond is None else prepend_cond.to(x.dtype),
            global_cond=None if global_cond is None else global_cond.to(x.dtype),
            cache=cache,
        )
        return torch.stack([head(hidden) for head in self.quantizer_heads], dim=1)

    def compute_logits(
        self,
        codes: Tensor,
        cross_attn_cond: Tensor | None = None,
        prepend_cond: Tensor | None = None,
        prepend_cond_mask: Tensor | None = None,
        global_cond: Tensor | None = None,
    ) -> LMOutput:
        """Logits of all ``codes (B, Q, T)`` given those before them; conditioning as in :meth:`forward`."""
        if codes.ndim != 3 or codes.shape[2] < 1:
            raise UsageError(
                f"codes: found shape {tuple(codes.shape)}, expected (batch, {self.num_quantizers}, 1 or more)"
            )
        pattern = self.patterns.get_pattern(codes.shape[2], codes.device)
        sequence = pattern.build_sequence(codes, self.masked_token_id, valid_only=True)
        answers = self(sequence, cross_attn_cond, prepend_cond, prepend_cond_mask, global_cond)
        logits, mask = pattern.revert_logits(answers)
        return LMOutput(logits, mask.expand(len(codes), -1, -1))


def _options(config: TransformerBackboneConfig) -> TransformerOptions:
    block = BlockOptions(
        dim=config.embed_dim,
        head_dim=config.head_dim,
        context_dim=config.context_dim,
        causal=True,
        causal_context=False,
        modulated=config.global_cond_dim is not None,
        zero_init=config.zero_init_branch_outputs,
        layer_scale=config.layer_scale,
        norm_type=config.branch_norm,
        attention=config.attn_kwargs,
        feed_forward=config.ff_kwargs,
        norm=config.norm_kwargs,
    )
    return TransformerOptions(
        block,
        depth=config.depth,
        global_dim=config.global_cond_dim or 0,
        last_cross_attention=config.final_cross_attn_ix,
        rotary=config.rotary_pos_emb,
        sinusoidal=config.use_sinusoidal_emb,
        abs_positions=config.abs_pos_emb_max_length if config.use_abs_pos_emb else 0,
        num_memory_tokens=config.num_memory_tokens,
        sliding_window=config.sliding_window,
    )


def _two_layers(width_in: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width_in, width_out, bias=False), nn.SiLU(), nn.Linear(width_out, width_out, bias=False)
    )
