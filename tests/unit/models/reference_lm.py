"""A slow language model that reads the public state-dict keys, and has none of our layers."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from tiny_lm import BOOKS, DIM
from torch import Tensor


class Reference:
    """The public model from its state dict, position by position and without any of our layers."""

    def __init__(self, state: dict[str, Tensor], options: dict[str, Any]) -> None:
        self.state, self.options = state, options
        self.attention = options.get("attn_kwargs", {})
        self.head = min(options.get("dim_heads", 4), DIM)

    def __call__(self, sequence: Tensor, **cond: Tensor) -> Tensor:
        weights, model = self.state, "backbone.model."
        x = sum(weights[f"embeds.{q}.weight"][sequence[:, q]] for q in range(BOOKS))
        x = x @ weights[model + "project_in.weight"].T
        extra = 0
        if "prepend_cond" in cond:
            x = torch.cat([self.mlp("backbone.to_prepend_embed", cond["prepend_cond"]), x], dim=1)
            extra += cond["prepend_cond"].shape[1]
        if model + "memory_tokens" in weights:
            memory = weights[model + "memory_tokens"]
            x = torch.cat([memory.expand(len(x), -1, -1), x], dim=1)
            extra += len(memory)
        x = x + self.positions(x.shape[1])
        context = cond.get("cross_attn_cond")
        if context is not None and "backbone.to_cross_attn_embed.0.weight" in weights:
            context = self.mlp("backbone.to_cross_attn_embed", context)
        modulation = None
        if "global_cond" in cond:
            modulation = self.mlp(model + "global_cond_embedder", cond["global_cond"])
        for index in range(2):
            x = self.block(f"{model}layers.{index}.", x, context, modulation)
        hidden = (x @ weights[model + "project_out.weight"].T)[:, extra:]
        heads = [
            hidden @ weights[f"quantizer_heads.{q}.weight"].T + weights[f"quantizer_heads.{q}.bias"]
            for q in range(BOOKS)
        ]
        return torch.stack(heads, dim=1)

    def mlp(self, name: str, x: Tensor) -> Tensor:
        def bias(layer: int) -> Tensor | float:
            return self.state.get(f"{name}.{layer}.bias", 0.0)

        hidden = F.silu(x @ self.state[f"{name}.0.weight"].T + bias(0))
        return hidden @ self.state[f"{name}.2.weight"].T + bias(2)

    def positions(self, length: int) -> Tensor | float:
        if self.options.get("use_abs_pos_emb"):
            return self.state["backbone.model.pos_emb.emb.weight"][:length] / math.sqrt(DIM)
        if self.options.get("use_sinusoidal_emb"):
            rates = 10000.0 ** -(torch.arange(DIM // 2).float() / (DIM // 2))
            angles = torch.arange(length)[:, None] * rates
            waves = torch.cat([angles.sin(), angles.cos()], dim=1)
            return waves.double() * self.state["backbone.model.pos_emb.scale"]
        return 0.0

    def norm(self, name: str, x: Tensor) -> Tensor:
        gamma, beta = self.state[f"{name}.gamma"], self.state.get(f"{name}.beta", 0.0)
        if self.options.get("remove_norms"):
            return gamma * torch.tanh(self.state[f"{name}.alpha"] * x) + beta
        if self.options.get("norm_type") == "rms_norm":
            return gamma * x / (x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
        x = x - x.mean(dim=-1, keepdim=True)
        return gamma * x / (x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() + beta

    def block(self, at: str, x: Tensor, context: Tensor | None, modulation: Tensor | None) -> Tensor:
        parts: Any = [None] * 6
        if modulation is not None:
            parts = (self.state[at + "to_scale_shift_gate"] + modulation)[:, None].chunk(6, dim=-1)
        hidden = self.modulated(self.norm(at + "pre_norm", x), parts[0], parts[1])
        x = x + self.branch(at + "self_attn", self.attend(at + "self_attn.", hidden, None), parts[2])
        if context is not None and at + "cross_attn.to_q.weight" in self.state:
            hidden = self.attend(at + "cross_attn.", self.norm(at + "cross_attend_norm", x), context)
            x = x + self.branch(at + "cross_attn", hidden, None)
        hidden = self.feed_forward(
            at + "ff.ff.", self.modulated(self.norm(at + "ff_norm", x), parts[3], parts[4])
        )
        return x + self.branch(at + "ff", hidden, parts[5])

    def modulated(self, x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
        return x if scale is None else x * (1 + scale) + shift

    def branch(self, name: str, x: Tensor, gate: Tensor | None) -> Tensor:
        x = x if gate is None else x * torch.sigmoid(1 - gate)
        return x * self.state.get(f"{name}_scale.scale", 1.0)

    def feed_forward(self, at: str, x: Tensor) -> Tensor:
        if at + "0.proj.weight" in self.state:
            value, gate = (x @ self.state[at + "0.proj.weight"].T + self.state[at + "0.proj.bias"]).chunk(
                2, -1
            )
            x = value * F.silu(gate)
        else:
            x = F.silu(x @ self.state[at + "0.1.weight"].T + self.state[at + "0.1.bias"])
        return x @ self.state[at + "2.weight"].T + self.state[at + "2.bias"]

    def attend(self, at: str, x: Tensor, context: Tensor | None) -> Tensor:
        twice = self.attention.get("differential", False)
        if context is None:
            q, k, v, *second = (x @ self.state[at + "to_qkv.weight"].T).chunk(5 if twice else 3, dim=-1)
            q_second, k_second = second or (None, None)
        else:
            q, *more = (x @ self.state[at + "to_q.weight"].T).chunk(2 if twice else 1, dim=-1)
            k, *rest = (context @ self.state[at + "to_kv.weight"].T).chunk(3 if twice else 2, dim=-1)
            q_second, k_second, v = (*more, *rest) if twice else (None, None, *rest)
        out = self.softmax(at, q, k, v, context is None)
        if twice:
            assert q_second is not None
            assert k_second is not None
            out = out - self.softmax(at, q_second, k_second, v, context is None)
        return out @ self.state[at + "to_out.weight"].T

    def softmax(self, at: str, q: Tensor, k: Tensor, v: Tensor, own: bool) -> Tensor:
        heads = DIM // self.head
        shared = heads // (k.shape[-1] // self.head)
        outputs = []
        for head in range(heads):
            mine = slice(head * self.head, (head + 1) * self.head)
            theirs = slice(head // shared * self.head, (head // shared + 1) * self.head)
            queries, keys = self.unit(at + "q_norm", q[..., mine]), self.unit(at + "k_norm", k[..., theirs])
            if own and self.options.get("rotary_pos_emb", True):
                queries, keys = self.rotate(queries), self.rotate(keys)
            scores = queries @ keys.transpose(1, 2) / math.sqrt(self.head)
            if own:
                scores = scores.masked_fill(~self.visible(q.shape[1]), -math.inf)
            outputs.append(scores.softmax(dim=-1) @ v[..., theirs])
        return torch.cat(outputs, dim=-1)

    def unit(self, name: str, x: Tensor) -> Tensor:
        kind = self.attention.get("qk_norm")
        if kind == "l2":
            return x / x.norm(dim=-1, keepdim=True)
        if kind == "ln":
            x = x - x.mean(dim=-1, keepdim=True)
            x = x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
            return x * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]
        return x

    def rotate(self, x: Tensor) -> Tensor:
        rates = self.state["backbone.model.rotary_pos_emb.inv_freq"]
        turned = x.clone()
        for position in range(x.shape[1]):
            for pair, rate in enumerate(rates.tolist()):
                if pair + len(rates) >= x.shape[-1]:
                    continue
                angle = position * rate
                first, second = x[:, position, pair], x[:, position, pair + len(rates)]
                turned[:, position, pair] = first * math.cos(angle) - second * math.sin(angle)
                turned[:, position, pair + len(rates)] = second * math.cos(angle) + first * math.sin(angle)
        return turned

    def visible(self, length: int) -> Tensor:
        before = (self.options.get("sliding_window") or [-1, -1])[0]
        back = torch.arange(length)[:, None] - torch.arange(length)
        return (back >= 0) & ((back <= before) if before >= 0 else torch.tensor(True))
