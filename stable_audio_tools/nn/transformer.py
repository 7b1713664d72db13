"""The transformer over continuous tokens: of the diffusion model, of the language model and of autoencoders.

Shapes: B batch, N tokens, M context tokens, D width. Attribute names are those of the public checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stable_audio_tools.nn.attention import Attention, Window
from stable_audio_tools.nn.cache import BlockCache, TransformerCache
from stable_audio_tools.nn.embeddings import (
    AbsolutePositionalEmbedding,
    RotaryEmbedding,
    ScaledSinusoidalEmbedding,
    rotary_width,
)
from stable_audio_tools.nn.feedforward import ConformerModule, FeedForward
from stable_audio_tools.nn.norms import LayerScale, make_norm
from stable_audio_tools.schema.networks import AttentionConfig, FeedForwardConfig, NormConfig, NormType


@dataclass(frozen=True)
class BlockOptions:
    """What one block is made of.

    Attributes:
        dim: width D.
        head_dim: width of a head, at most D.
        context_dim: width of the tokens to attend to, or None for no cross-attention.
        causal: a token sees itself and what is before it.
        causal_context: the i-th token sees the first i context tokens only. That is what the public code
            makes of ``causal``; a language model wants all of its context, and False.
        modulated: a vector per clip scales, shifts and gates the branches (adaLN).
        local_dim: width of a conditioning per token that is added before the feed-forward, or 0.
        rotary: the block has rotary embeddings of its own, for use outside a transformer that has them.
        zero_init: branches start as zero, so that a fresh block is the identity.
        conformer: a convolution branch between attention and feed-forward.
        layer_scale: a small learned scale on each branch, in place of ``zero_init``.
        norm_type: norm in front of each branch.
    """

    dim: int
    head_dim: int = 64
    context_dim: int | None = None
    causal: bool = False
    causal_context: bool = True
    modulated: bool = False
    local_dim: int = 0
    rotary: bool = False
    zero_init: bool = True
    conformer: bool = False
    layer_scale: bool = False
    norm_type: NormType = "layer_norm"
    attention: AttentionConfig = AttentionConfig()  # noqa: RUF009 - frozen
    feed_forward: FeedForwardConfig = FeedForwardConfig()  # noqa: RUF009 - frozen
    norm: NormConfig = NormConfig()  # noqa: RUF009 - frozen


@dataclass(frozen=True)
class TransformerOptions:
    """Blocks and what is around them.

    Attributes:
        global_dim: width of the vector per clip of ``block.modulated``.
        last_cross_attention: index of the last block that attends to the context; -1 is every block.
        abs_positions: learned positions, or 0 for none; they win over ``sinusoidal``.
        sliding_window: tokens before and after that self-attention sees; -1 is no limit.
    """

    block: BlockOptions
    depth: int
    global_dim: int = 0
    last_cross_attention: int = -1
    rotary: bool = True
    sinusoidal: bool = False
    abs_positions: int = 0
    num_memory_tokens: int = 0
    sliding_window: Window | None = None


class TransformerBlock(nn.Module):
    """Pre-norm self-attention, cross-attention, optional conformer branch and feed-forward.

    With ``modulated`` a vector per clip scales, shifts and gates the self-attention and feed-forward branches
    (Peebles and Xie 2023); the gate acts as ``sigmoid(1 - gate)``, which is open when the vector is zero.
    """

    def __init__(self, options: BlockOptions) -> None:
        super().__init__()
        dim = options.dim
        head_dim = min(options.head_dim, dim)
        zero_init = options.zero_init and not options.layer_scale  # a layer scale starts near zero

        def norm() -> nn.Module:
            return make_norm(options.norm_type, dim, options.norm)

        def scale() -> nn.Module:
            return LayerScale(dim) if options.layer_scale else nn.Identity()

        def attention(context_width: int | None, causal: bool) -> Attention:
            return Attention(
                dim,
                head_dim,
                options.attention,
                dim_context=context_width,
                causal=causal,
                zero_init_output=zero_init,
            )

        self.pre_norm = norm()
        self.self_attn = attention(None, options.causal)
        self.self_attn_scale = scale()
        self.cross_attend = options.context_dim is not None
        if options.context_dim is not None:
            self.cross_attend_norm = norm()
            self.cross_attn = attention(options.context_dim, options.causal and options.causal_context)
            self.cross_attn_scale = scale()
        self.conformer: ConformerModule | None = None
        if options.conformer:
            self.conformer = ConformerModule(dim, options.norm)
            self.conformer_scale = scale()
        self.ff_norm = norm()
        self.ff = FeedForward(dim, options.feed_forward, zero_init_output=zero_init)
        self.ff_scale = scale()
        if options.modulated:
            self.to_scale_shift_gate = nn.Parameter(torch.randn(6 * dim) / dim**0.5)
        self.to_local_embed = _local_embedder(options.local_dim, dim) if options.local_dim else None
        self.rope = RotaryEmbedding(head_dim // 2) if options.rotary else None

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        global_cond: Tensor | None = None,
        rotary_turns: Tensor | None = None,
        window: Window | None = None,
        local_cond: Tensor | None = None,
        padding_mask: Tensor | None = None,
        cache: BlockCache | None = None,
    ) -> Tensor:
        """Transform ``x (B, N, D)``.

        Args:
            context: ``(B, M, context_dim)``.
            global_cond: ``(B, 6 D)``, where the block is modulated.
            rotary_turns: ``(2, N, R / 2)``; None takes the block's own, where it has them.
            window: tokens before and after that self-attention sees; -1 is no limit.
            local_cond: ``(B, N', local_dim)``; it belongs to the last N' tokens.
            padding_mask: ``(B, N)``, False where a token is padding.
            cache: of this block, in generation token by token.
        """
        modulation: list[Tensor | None] = [None] * 6
        if global_cond is not None:
            modulation = list((self.to_scale_shift_gate + global_cond).unsqueeze(1).chunk(6, dim=-1))
        scale_attn, shift_attn, gate_attn, scale_ff, shift_ff, gate_ff = modulation
        own, of_context = (None, None) if cache is None else (cache.own, cache.context)
        if rotary_turns is None and self.rope is not None:
            rotary_turns = self.rope(x.shape[1], 0 if own is None else own.length)

        hidden = _modulate(self.pre_norm(x), scale_attn, shift_attn)
        hidden = self.self_attn(
            hidden, rotary_turns=rotary_turns, window=window, padding_mask=padding_mask, cache=own
        )
        x = x + self.self_attn_scale(_gate(hidden, gate_attn))
        if context is not None and self.cross_attend:
            hidden = self.cross_attn(
                self.cross_attend_norm(x), context=context, padding_mask=padding_mask, cache=of_context
            )
            x = x + self.cross_attn_scale(hidden)
        if self.conformer is not None:
            x = x + self.conformer_scale(self.conformer(x, padding_mask))
        if local_cond is not None and self.to_local_embed is not None:
            x = x + F.pad(self.to_local_embed(local_cond), (0, 0, x.shape[1] - local_cond.shape[1], 0))
        hidden = self.ff(_modulate(self.ff_norm(x), scale_ff, shift_ff), padding_mask)
        return x + self.ff_scale(_gate(hidden, gate_ff))


class ContinuousTransformer(nn.Module):
    """Project in, add positions, run the blocks, project out.

    Memory tokens (Burtsev et al. 2020) go in front of everything and are dropped before the output.
    Set ``gradient_checkpointing`` to recompute blocks in the backward pass: less memory, a third more time
    for all of them; ``checkpoint_every = 2`` takes every second one.

    Args:
        options: blocks and what is around them.
        dim_in: width of the tokens that come in, or None where it is D.
        dim_out: width of those that go out, or None where it is D.
    """

    def __init__(self, options: TransformerOptions, dim_in: int | None, dim_out: int | None) -> None:
        super().__init__()
        block = options.block
        dim = block.dim
        self.gradient_checkpointing = False
        self.checkpoint_every = 1
        self.options = options
        self.project_in = nn.Identity() if dim_in is None else nn.Linear(dim_in, dim, bias=False)
        self.project_out = nn.Identity() if dim_out is None else nn.Linear(dim, dim_out, bias=False)
        head_dim = min(block.head_dim, dim)
        self.rotary_pos_emb = RotaryEmbedding(rotary_width(head_dim)) if options.rotary else None
        self.num_memory_tokens = options.num_memory_tokens
        if options.num_memory_tokens:
            self.memory_tokens = nn.Parameter(torch.randn(options.num_memory_tokens, dim))
        self.pos_emb: AbsolutePositionalEmbedding | ScaledSinusoidalEmbedding | None = None
        if options.abs_positions:
            self.pos_emb = AbsolutePositionalEmbedding(dim, options.abs_positions + options.num_memory_tokens)
        elif options.sinusoidal:
            self.pos_emb = ScaledSinusoidalEmbedding(dim)
        self.global_cond_embedder: nn.Sequential | None = None
        if block.modulated:
            self.global_cond_embedder = nn.Sequential(
                nn.Linear(options.global_dim, dim), nn.SiLU(), nn.Linear(dim, dim * 6)
            )
        last = options.last_cross_attention
        alone = replace(block, context_dim=None)
        self.layers = nn.ModuleList(
            TransformerBlock(block if last == -1 or index <= last else alone)
            for index in range(options.depth)
        )

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        prepend_embeds: Tensor | None = None,
        global_cond: Tensor | None = None,
        local_cond: Tensor | None = None,
        padding_mask: Tensor | None = None,
        cache: TransformerCache | None = None,
    ) -> Tensor:
        """Transform tokens ``(B, N, dim_in)`` to ``(B, N, dim_out)``.

        Args:
            context: ``(B, M, context_dim)``, for cross-attention.
            prepend_embeds: ``(B, P, D)``, put in front of the tokens and dropped from the output.
            global_cond: ``(B, global_dim)``, where blocks are modulated.
            local_cond: ``(B, N, local_dim)``, added to the tokens in each block.
            padding_mask: ``(B, N)``, False where a token is padding: no other token is changed by it.
            cache: of a causal transformer. Then ``x`` are the tokens that follow those seen so far;
                memory and prepended tokens go in with the first ones only.

        Raises:
            ValueError: a cache, but tokens are not independent of those to come.
        """
        x = self.project_in(x)
        first = cache is None or cache.length == 0
        extra = 0
        if prepend_embeds is not None and first:
            x = torch.cat([prepend_embeds.to(x.dtype), x], dim=1)
            extra += prepend_embeds.shape[1]
        if self.num_memory_tokens and first:
            x = torch.cat([self.memory_tokens.expand(len(x), -1, -1).to(x.dtype), x], dim=1)
            extra += self.num_memory_tokens
        if padding_mask is not None:
            padding_mask = F.pad(padding_mask.bool(), (extra, 0), value=True)

        start = self._start(cache, padding_mask)
        length = x.shape[1]
        turns = self.rotary_pos_emb(length, start) if self.rotary_pos_emb is not None else None
        if self.pos_emb is not None:
            x = x + self.pos_emb(length, start).to(x.dtype)
        if self.global_cond_embedder is not None and global_cond is not None:
            global_cond = self.global_cond_embedder(global_cond)
        else:
            global_cond = None

        recompute = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        for index, layer in enumerate(self.layers):
            inputs = (context, global_cond, turns, self.options.sliding_window, local_cond, padding_mask)
            if recompute and index % self.checkpoint_every == 0:
                x = checkpoint(layer, x, *inputs, use_reentrant=False)
            else:
                x = layer(x, *inputs, cache=None if cache is None else cache.blocks[index])
        if cache is not None:
            cache.length += length
        return self.project_out(x[:, extra:])

    def _start(self, cache: TransformerCache | None, padding_mask: Tensor | None) -> int:
        """Position of the first token of this call."""
        if cache is None:
            return 0
        block = self.options.block
        convolves = block.conformer or block.feed_forward.use_conv
        if not block.causal or convolves or block.attention.feat_scale or padding_mask is not None:
            raise ValueError(
                "a cache needs a causal transformer without conformer, use_conv, feat_scale and padding"
            )
        return cache.length


def _local_embedder(width: int, dim: int) -> nn.Sequential:
    """Projects the conditioning of each token; it starts as zero."""
    last = nn.Linear(dim, dim)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(width, dim), nn.SiLU(), last)


def _modulate(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    return x if scale is None or shift is None else x * (1 + scale) + shift


def _gate(x: Tensor, gate: Tensor | None) -> Tensor:
    return x if gate is None else x * torch.sigmoid(1 - gate)
