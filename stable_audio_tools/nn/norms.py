"""Normalisation layers. Attribute names are those of the public checkpoints."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stable_audio_tools.schema.networks import AttentionConfig, NormConfig, NormType

LAYER_SCALE_INITIAL = 1e-5


class LayerNorm(nn.Module):
    """Layer norm (Ba et al. 2016) with a scale ``gamma``; the shift ``beta`` is learned only with ``bias``.

    Without ``bias``, ``beta`` is a buffer of zeros: public checkpoints carry it.
    """

    def __init__(self, dim: int, config: NormConfig | None = None) -> None:
        super().__init__()
        config = config or NormConfig()
        self.eps, self.force_fp32 = config.eps, config.force_fp32
        _register(self, "gamma", torch.ones(dim), learned=not config.fix_scale)
        _register(self, "beta", torch.zeros(dim), learned=config.bias)
        self.gamma: Tensor
        self.beta: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if not self.force_fp32:
            return F.layer_norm(x, x.shape[-1:], self.gamma, self.beta, self.eps)
        out = F.layer_norm(x.float(), x.shape[-1:], self.gamma.float(), self.beta.float(), self.eps)
        return out.to(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019) with a scale ``gamma``."""

    def __init__(self, dim: int, config: NormConfig | None = None) -> None:
        super().__init__()
        config = config or NormConfig()
        self.eps, self.force_fp32 = config.eps, config.force_fp32
        _register(self, "gamma", torch.ones(dim), learned=not config.fix_scale)
        self.gamma: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if not self.force_fp32:
            return F.rms_norm(x, x.shape[-1:], self.gamma, self.eps)
        return F.rms_norm(x.float(), x.shape[-1:], self.gamma.float(), self.eps).to(x.dtype)


class DynamicTanh(nn.Module):
    """``gamma * tanh(alpha x) + beta``, in place of a norm (Zhu et al. 2025)."""

    def __init__(self, dim: int, init_alpha: float = 4.0) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), init_alpha))
        self.gamma = nn.Parameter(torch.ones(dim))
        self.beta = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * torch.tanh(self.alpha * x) + self.beta


class L2Norm(nn.Module):
    """Unit length over the channels; no parameters."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1, eps=self.eps)


class LayerScale(nn.Module):
    """A learned scale per channel on the output of a branch, small at first (Touvron et al. 2021)."""

    def __init__(self, dim: int, initial: float = LAYER_SCALE_INITIAL) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def make_norm(name: NormType, dim: int, config: NormConfig) -> nn.Module:
    """The norm of a block's branches called ``name``."""
    norms: dict[NormType, Callable[[], nn.Module]] = {
        "layer_norm": lambda: LayerNorm(dim, config),
        "rms_norm": lambda: RMSNorm(dim, config),
        "dyt": lambda: DynamicTanh(dim),
    }
    return norms[name]()


def make_qk_norm(config: AttentionConfig, head_dim: int) -> nn.Module | None:
    """The norm of queries and keys that ``config`` asks for (Henry et al. 2020), or None for none."""
    if config.qk_norm is None or config.qk_norm == "none":
        return None
    eps = config.qk_norm_eps
    norms: dict[str, Callable[[], nn.Module]] = {
        "l2": lambda: L2Norm(eps),
        "ln": lambda: nn.LayerNorm(head_dim, eps=eps),
        "rms": lambda: RMSNorm(head_dim, NormConfig(eps=eps)),
        "dyt": lambda: DynamicTanh(head_dim),
    }
    return norms[config.qk_norm]()


def _register(module: nn.Module, name: str, value: Tensor, learned: bool) -> None:
    if learned:
        module.register_parameter(name, nn.Parameter(value))
    else:
        module.register_buffer(name, value)
