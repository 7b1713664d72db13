"""Multi-head attention with the options of the diffusion transformer.

Shapes: B batch, H heads, N queries, M keys, D width, E = D / H width of a head.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stable_audio_tools.nn.cache import KeyValues
from stable_audio_tools.nn.embeddings import apply_rotary
from stable_audio_tools.nn.linear import linear_parts
from stable_audio_tools.nn.norms import make_qk_norm
from stable_audio_tools.schema.networks import AttentionConfig

Window: TypeAlias = tuple[int, int]
"""Tokens before and after a query that it sees; -1 is no limit."""
CHUNK = 512
"""Queries of one chunk of windowed attention."""


class Attention(nn.Module):
    """Self-attention, or cross-attention where ``dim_context`` is given (Vaswani et al. 2017).

    Cross-attention has ``dim_context / head_dim`` key and value heads, each shared by a group of query heads
    (Ainslie et al. 2023). With ``differential``, a second pair of queries and keys makes a second map whose
    result is subtracted (after Ye et al. 2024, with a weight of one).
    """

    def __init__(
        self,
        dim: int,
        head_dim: int,
        config: AttentionConfig,
        *,
        dim_context: int | None = None,
        causal: bool = False,
        zero_init_output: bool = True,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.causal = causal
        self.differential = config.differential
        self.is_cross = dim_context is not None
        maps = 2 if config.differential else 1
        if dim_context is not None:
            self.to_q = nn.Linear(dim, dim * maps, bias=False)
            self.to_kv = nn.Linear(dim_context, dim_context * (maps + 1), bias=False)
        else:
            self.to_qkv = nn.Linear(dim, dim * (2 * maps + 1), bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)
        if zero_init_output:
            nn.init.zeros_(self.to_out.weight)
        self.q_norm = make_qk_norm(config, head_dim)
        self.k_norm = make_qk_norm(config, head_dim)
        self.feat_scale = config.feat_scale
        if config.feat_scale:
            self.lambda_dc = nn.Parameter(torch.zeros(dim))
            self.lambda_hf = nn.Parameter(torch.zeros(dim))

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        rotary_turns: Tensor | None = None,
        window: Window | None = None,
        padding_mask: Tensor | None = None,
        cache: KeyValues | None = None,
    ) -> Tensor:
        """Attend from ``x (B, N, D)`` to itself or to ``context (B, M, dim_context)``.

        Args:
            rotary_turns: ``(2, N, R / 2)``, of self-attention only.
            window: tokens before and after a query that it sees, of self-attention only; -1 is no limit.
            padding_mask: ``(B, N)``, False where a token of ``x`` is padding: nothing looks at it.
            cache: what earlier calls have seen. Self-attention adds the keys and values of ``x`` and looks at
                all of them; cross-attention projects ``context`` once.
        """
        queries, keys, v = self._project(x, context, rotary_turns, cache)
        if self.is_cross:
            maps = [_grouped_attention(q, k, v, self.causal) for q, k in zip(queries, keys, strict=True)]
        else:
            maps = [
                local_attention(q, k, v, window, self.causal, padding_mask)
                for q, k in zip(queries, keys, strict=True)
            ]
        out = maps[0] - maps[1] if self.differential else maps[0]
        out = self.to_out(out.transpose(1, 2).flatten(2))
        return self._scale_features(out, padding_mask) if self.feat_scale else out

    def _project(
        self, x: Tensor, context: Tensor | None, turns: Tensor | None, cache: KeyValues | None
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Queries and keys of each map, normalised and rotated, and the values; ``(B, heads, tokens, E)``."""
        maps = 2 if self.differential else 1
        if self.is_cross:
            queries = list(self.to_q(x).chunk(maps, dim=-1))
            if cache is not None and cache.length:
                *known, v = cache.get()
                return [self._norm(self.q_norm, self._split(q)) for q in queries], known, v
            if context is None:
                raise ValueError("cross-attention needs a context")
            *keys, value = self.to_kv(context).chunk(maps + 1, dim=-1)
            turns = None
        else:
            q, k, value, *more = linear_parts(self.to_qkv, x, 2 * maps + 1)
            queries, keys = [q, *more[:1]], [k, *more[1:]]
        queries = [self._norm(self.q_norm, self._split(q)) for q in queries]
        keys = [self._norm(self.k_norm, self._split(k)) for k in keys]
        if turns is not None:
            queries = [apply_rotary(q, turns) for q in queries]
            keys = [apply_rotary(k, turns) for k in keys]
        v = self._split(value)
        if cache is not None:
            *keys, v = cache.append(*keys, v)
        return queries, keys, v

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    @staticmethod
    def _norm(norm: nn.Module | None, x: Tensor) -> Tensor:
        # A norm may answer in float32 under autocast; attention needs q, k and v of one type.
        return x if norm is None else norm(x).to(x.dtype)

    def _scale_features(self, out: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Weigh the mean over time and the rest of each channel apart (Wang et al. 2022, FeatScale)."""
        if padding_mask is None:
            mean = out.mean(dim=1, keepdim=True)
        else:
            weight = padding_mask.unsqueeze(-1).to(out.dtype)
            mean = (out * weight).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True).clamp_min(1)
        return out + self.lambda_dc * mean + self.lambda_hf * (out - mean)


def local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: Window | None = None,
    causal: bool = False,
    padding_mask: Tensor | None = None,
) -> Tensor:
    """Attention of ``q (B, H, N, E)``, the last N of the M tokens of ``k`` and ``v``, limited to a window.

    With limits on both sides it runs over chunks of queries with the keys around them, so that memory grows
    with N and not with its square.

    Args:
        window: tokens before and after a query that it sees; -1 is no limit.
        causal: nothing after.
        padding_mask: ``(B, M)``, False where a key is padding.
    """
    queries, keys = q.shape[2], k.shape[2]
    before, after = window or (-1, -1)
    if causal:
        after = 0
    if before < 0 and padding_mask is None and (after < 0 or (after == 0 and keys == queries)):
        return _grouped_attention(q, k, v, causal)
    real = None
    if padding_mask is not None:
        # A row that sees nothing would be NaN: a clip of padding sees all of it, a padded query itself.
        real = (padding_mask | ~padding_mask.any(dim=1, keepdim=True))[:, None, None, :]
    chunk = CHUNK if before >= 0 and after >= 0 else queries
    outputs = []
    for start in range(0, queries, chunk):
        end = min(start + chunk, queries)
        first, last = start + keys - queries, end + keys - queries  # the same tokens among the keys
        low = 0 if before < 0 else max(0, first - before)
        high = keys if after < 0 else min(keys, last + after)
        distance = (
            torch.arange(low, high, device=q.device) - torch.arange(first, last, device=q.device)[:, None]
        )
        mask = torch.ones_like(distance, dtype=torch.bool)
        if before >= 0:
            mask &= distance >= -before
        if after >= 0:
            mask &= distance <= after
        if real is not None:
            mask = (mask & real[..., low:high]) | (distance == 0)
        outputs.append(
            F.scaled_dot_product_attention(
                q[:, :, start:end], k[:, :, low:high], v[:, :, low:high], attn_mask=mask
            )
        )
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def _grouped_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Attention whose key and value heads are each shared by a group of query heads."""
    if q.shape[1] != k.shape[1]:
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal and q.shape[2] > 1)
