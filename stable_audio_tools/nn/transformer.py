"""The transformer over continuous tokens that the diffusion model is made of.

Shapes: B batch, N tokens, M context tokens, D width. Attribute names are those of the public checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stable_audio_tools.nn.attention import Attention, window_mask
from stable_audio_tools.nn.embeddings import (
    AbsolutePositionalEmbedding,
    RotaryEmbedding,
    ScaledSinusoidalEmbedding,
)
from stable_audio_tools.nn.feedforward import ConformerModule, FeedForward
from stable_audio_tools.nn.norms import LayerNorm, LayerScale
from stable_audio_tools.schema.networks import DiTConfig


class TransformerBlock(nn.Module):
    """Pre-norm self-attention, cross-attention, optional conformer branch and feed-forward.

    With ``adaLN`` a vector per clip scales, shifts and gates the self-attention and feed-forward branches
    (Peebles and Xie 2023); the gate acts as ``sigmoid(1 - gate)``, which is open when the vector is zero.
    """

    def __init__(self, config: DiTConfig, dim_context: int | None) -> None:
        super().__init__()
        dim = config.embed_dim
        zero_init = (
            config.zero_init_branch_outputs and not config.layer_scale
        )  # a layer scale starts near zero

        def norm() -> nn.Module:
            return nn.Identity() if config.remove_norms else LayerNorm(dim, config.norm_kwargs)

        def scale() -> nn.Module:
            return LayerScale(dim) if config.layer_scale else nn.Identity()

        def attention(context_width: int | None) -> Attention:
            return Attention(
                dim,
                dim // config.num_heads,
                config.attn_kwargs,
                dim_context=context_width,
                causal=config.causal,
                zero_init_output=zero_init,
            )

        self.pre_norm = norm()
        self.self_attn = attention(None)
        self.self_attn_scale = scale()
        self.cross_attend = dim_context is not None
        if dim_context is not None:
            self.cross_attend_norm = norm()
            self.cross_attn = attention(dim_context)
            self.cross_attn_scale = scale()
        self.conformer: ConformerModule | None = None
        if config.conformer:
            self.conformer = ConformerModule(dim, config.norm_kwargs)
            self.conformer_scale = scale()
        self.ff_norm = norm()
        self.ff = FeedForward(dim, config.ff_kwargs, zero_init_output=zero_init)
        self.ff_scale = scale()
        if config.global_cond_type == "adaLN":
            self.to_scale_shift_gate = nn.Parameter(torch.randn(6 * dim) / dim**0.5)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        global_cond: Tensor | None = None,
        rotary_angles: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Transform ``x (B, N, D)``; ``global_cond`` is ``(B, 6 D)`` with adaLN and None without."""
        modulation: list[Tensor | None] = [None] * 6
        if global_cond is not None:
            modulation = list((self.to_scale_shift_gate + global_cond).unsqueeze(1).chunk(6, dim=-1))
        scale_attn, shift_attn, gate_attn, scale_ff, shift_ff, gate_ff = modulation

        hidden = _modulate(self.pre_norm(x), scale_attn, shift_attn)
        hidden = self.self_attn(hidden, rotary_angles=rotary_angles, mask=mask)
        x = x + self.self_attn_scale(_gate(hidden, gate_attn))
        if context is not None and self.cross_attend:
            x = x + self.cross_attn_scale(self.cross_attn(self.cross_attend_norm(x), context=context))
        if self.conformer is not None:
            x = x + self.conformer_scale(self.conformer(x))
        hidden = self.ff(_modulate(self.ff_norm(x), scale_ff, shift_ff))
        return x + self.ff_scale(_gate(hidden, gate_ff))


class ContinuousTransformer(nn.Module):
    """Project in, add positions, run the blocks, project out.

    Memory tokens (Burtsev et al. 2020) go in front of everything and are dropped before the output.
    Set ``gradient_checkpointing`` to recompute the blocks in the backward pass: less memory, a third more
    time.
    """

    def __init__(self, config: DiTConfig, dim_in: int, dim_out: int, dim_context: int | None = None) -> None:
        super().__init__()
        dim = config.embed_dim
        self.gradient_checkpointing = False
        self.causal = config.causal
        self.sliding_window = config.sliding_window
        self.project_in = nn.Linear(dim_in, dim, bias=False)
        self.project_out = nn.Linear(dim, dim_out, bias=False)
        self.rotary_pos_emb = RotaryEmbedding(dim // config.num_heads) if config.rotary_pos_emb else None
        self.num_memory_tokens = config.num_memory_tokens
        if config.num_memory_tokens:
            self.memory_tokens = nn.Parameter(torch.randn(config.num_memory_tokens, dim))
        self.pos_emb: AbsolutePositionalEmbedding | ScaledSinusoidalEmbedding | None = None
        if config.use_abs_pos_emb:
            self.pos_emb = AbsolutePositionalEmbedding(
                dim, config.abs_pos_emb_max_length + config.num_memory_tokens
            )
        elif config.use_sinusoidal_emb:
            self.pos_emb = ScaledSinusoidalEmbedding(dim)
        self.global_cond_embedder: nn.Sequential | None = None
        if config.global_cond_type == "adaLN":
            self.global_cond_embedder = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim * 6))
        self.layers = nn.ModuleList(TransformerBlock(config, dim_context) for _ in range(config.depth))

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        prepend_embeds: Tensor | None = None,
        global_cond: Tensor | None = None,
    ) -> Tensor:
        """Transform tokens ``(B, N, dim_in)`` to ``(B, N, dim_out)``.

        Args:
            context: ``(B, M, dim_context)``, for cross-attention.
            prepend_embeds: ``(B, P, D)``, put in front of the tokens and dropped from the output.
            global_cond: ``(B, D)``, with adaLN.
        """
        x = self.project_in(x)
        if prepend_embeds is not None:
            x = torch.cat([prepend_embeds.to(x.dtype), x], dim=1)
        if self.num_memory_tokens:
            x = torch.cat([self.memory_tokens.expand(len(x), -1, -1).to(x.dtype), x], dim=1)
        length = x.shape[1]
        extra = self.num_memory_tokens + (0 if prepend_embeds is None else prepend_embeds.shape[1])

        angles = self.rotary_pos_emb(length) if self.rotary_pos_emb is not None else None
        if self.pos_emb is not None:
            x = x + self.pos_emb(length)
        if self.global_cond_embedder is not None and global_cond is not None:
            global_cond = self.global_cond_embedder(global_cond)
        else:
            global_cond = None
        mask = None
        if self.sliding_window is not None:
            mask = window_mask(length, self.sliding_window, self.causal, x.device)

        recompute = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        for layer in self.layers:
            if recompute:
                x = checkpoint(layer, x, context, global_cond, angles, mask, use_reentrant=False)
            else:
                x = layer(x, context, global_cond, angles, mask)
        return self.project_out(x[:, extra:])


def _modulate(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    return x if scale is None or shift is None else x * (1 + scale) + shift


def _gate(x: Tensor, gate: Tensor | None) -> Tensor:
    return x if gate is None else x * torch.sigmoid(1 - gate)
