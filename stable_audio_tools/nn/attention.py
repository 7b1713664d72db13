"""Multi-head attention with the options of the diffusion transformer.

Shapes: B batch, H heads, N queries, M keys, D width, E = D / H width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stable_audio_tools.nn.embeddings import apply_rotary
from stable_audio_tools.nn.norms import make_qk_norm
from stable_audio_tools.schema.networks import AttentionConfig


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
        self.q_norm = make_qk_norm(config.qk_norm, head_dim)
        self.k_norm = make_qk_norm(config.qk_norm, head_dim)
        self.feat_scale = config.feat_scale
        if config.feat_scale:
            self.lambda_dc = nn.Parameter(torch.zeros(dim))
            self.lambda_hf = nn.Parameter(torch.zeros(dim))

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        rotary_angles: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from ``x (B, N, D)`` to itself or to ``context (B, M, dim_context)``.

        Args:
            rotary_angles: ``(N, R)``, of self-attention only.
            mask: ``(N, M)`` or broadcastable to ``(B, H, N, M)``, True where a query may look at a key.
                It stands in place of the causal mask.
        """
        queries, keys, v = self._project(x, context)
        pairs = [
            (self._norm(self.q_norm, q), self._norm(self.k_norm, k))
            for q, k in zip(queries, keys, strict=True)
        ]
        if rotary_angles is not None and not self.is_cross:
            pairs = [(apply_rotary(q, rotary_angles), apply_rotary(k, rotary_angles)) for q, k in pairs]
        maps = [self._attend(q, k, v, mask) for q, k in pairs]
        out = maps[0] - maps[1] if self.differential else maps[0]
        out = self.to_out(out.transpose(1, 2).flatten(2))
        if self.feat_scale:
            mean = out.mean(dim=1, keepdim=True)
            out = out + self.lambda_dc * mean + self.lambda_hf * (out - mean)
        return out

    def _project(self, x: Tensor, context: Tensor | None) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Queries and keys of each map, and the values, all ``(B, heads, tokens, E)``."""
        if self.is_cross:
            if context is None:
                raise ValueError("cross-attention needs a context")
            queries = list(self.to_q(x).chunk(2 if self.differential else 1, dim=-1))
            *keys, v = self.to_kv(context).chunk(3 if self.differential else 2, dim=-1)
        elif self.differential:
            q, k, v, q_2, k_2 = self.to_qkv(x).chunk(5, dim=-1)
            queries, keys = [q, q_2], [k, k_2]
        else:
            q, k, v = self.to_qkv(x).chunk(3, dim=-1)
            queries, keys = [q], [k]
        return [self._split(q) for q in queries], [self._split(k) for k in keys], self._split(v)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    @staticmethod
    def _norm(norm: nn.Module | None, x: Tensor) -> Tensor:
        # A norm may answer in float32 under autocast; attention needs q, k and v of one type.
        return x if norm is None else norm(x).to(x.dtype)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if q.shape[1] != k.shape[1]:
            group = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        causal = self.causal and mask is None and q.shape[2] > 1
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


def window_mask(
    length: int, window: tuple[int, int], causal: bool = False, device: torch.device | str | None = None
) -> Tensor:
    """Mask ``(N, N)`` of local attention: query i sees keys ``i - window[0]`` to ``i + window[1]``.

    -1 is no limit on that side.
    """
    positions = torch.arange(length, device=device)
    distance = positions[None, :] - positions[:, None]
    before, after = window
    mask = torch.ones(length, length, dtype=torch.bool, device=device)
    if before >= 0:
        mask &= distance >= -before
    if after >= 0:
        mask &= distance <= after
    if causal:
        mask &= distance <= 0
    return mask
