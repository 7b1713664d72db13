"""Convolutions: weight-normalised ones (Salimans and Kingma 2016) that are ordinary modules, and plain ones.

The weight is ``g * v / ||v||``, the norm taken over all but the first axis, also for the transposed one. The
parameters are called ``weight_g`` and ``weight_v`` as in the public checkpoints, but nothing is hooked or
re-parametrised, so the layers can be deep-copied, pickled and compiled.

Parameters stay in the precision they are stored in; the weight is computed there and then takes the dtype of
the input, so half-precision audio can go through float32 layers without a second copy of them.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _norm(v: Tensor) -> Tensor:
    """L2 norm over all axes but the first, which is kept: ``(a, b, k) -> (a, 1, 1)``."""
    return torch.linalg.vector_norm(v, dim=tuple(range(1, v.ndim)), keepdim=True)


def _normalised(g: Tensor, v: Tensor) -> Tensor:
    return g * (v / _norm(v))


class _WeightNorm(nn.Module):
    """The weight of both layers: normalised, or one plain ``weight`` parameter once :meth:`fuse_` was called.

    ``load_state_dict`` takes a weight in any of its spellings, whatever the layer holds itself: ``weight_g``
    and ``weight_v``, torch's ``parametrizations.weight.original0`` and ``original1``, or a plain ``weight``.
    """

    def __init__(self, weight_shape: tuple[int, ...], fan_in: int, bias_size: int | None) -> None:
        super().__init__()
        bound = fan_in**-0.5  # the default of torch's own convolutions
        v = torch.empty(weight_shape).uniform_(-bound, bound)
        self.weight_g = nn.Parameter(_norm(v))
        self.weight_v = nn.Parameter(v)
        self.bias = (
            None if bias_size is None else nn.Parameter(torch.empty(bias_size).uniform_(-bound, bound))
        )

    @property
    def fused(self) -> bool:
        """Whether the norm has been multiplied into one plain ``weight``."""
        return "weight" in self._parameters

    def weight_like(self, x: Tensor) -> Tensor:
        """The convolution weight in the dtype of ``x``."""
        weight = self.get_parameter("weight") if self.fused else _normalised(self.weight_g, self.weight_v)
        return weight.to(x.dtype)

    def bias_like(self, x: Tensor) -> Tensor | None:
        """The bias in the dtype of ``x``."""
        return None if self.bias is None else self.bias.to(x.dtype)

    @torch.no_grad()
    def fuse_(self) -> None:
        """Replace ``weight_g`` and ``weight_v`` by the plain ``weight`` that they make."""
        if self.fused:
            return
        weight = _normalised(self.weight_g, self.weight_v)
        requires_grad = self.weight_v.requires_grad
        del self.weight_g, self.weight_v
        self.weight = nn.Parameter(weight, requires_grad=requires_grad)

    def respell_(self, state: dict[str, Any], prefix: str) -> None:
        """Rewrite this layer's entries in ``state``, under ``prefix``, to the spelling that it holds."""
        for index, name in enumerate(("weight_g", "weight_v")):
            torch_name = f"{prefix}parametrizations.weight.original{index}"
            if torch_name in state:
                state[prefix + name] = state.pop(torch_name)
        plain, g, v = (prefix + name for name in ("weight", "weight_g", "weight_v"))
        if not self.fused and plain in state:
            weight = state.pop(plain)
            exact = torch.promote_types(weight.dtype, torch.float32)
            state[g], state[v] = _norm(weight.to(exact)).to(weight.dtype), weight
        elif self.fused and g in state and v in state:
            state[plain] = _normalised(state.pop(g), state.pop(v))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.respell_(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


class WNConv1d(_WeightNorm):
    """A 1-d convolution under weight norm: ``(B, in, T) -> (B, out, T')``.

    Args:
        padding: zeros on each side, or ``"same"`` to keep the length at stride 1 (an odd one goes right).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | Literal["same"] = 0,
        dilation: int = 1,
        bias: bool = True,
    ) -> None:
        shape = (out_channels, in_channels, kernel_size)
        super().__init__(shape, in_channels * kernel_size, out_channels if bias else None)
        reach = dilation * (kernel_size - 1)
        self.padding = reach // 2 if padding == "same" else padding
        self.extra = reach % 2 if padding == "same" else 0
        self.stride, self.dilation = stride, dilation

    def forward(self, x: Tensor) -> Tensor:
        if self.extra:
            x = F.pad(x, (0, self.extra))
        return F.conv1d(x, self.weight_like(x), self.bias_like(x), self.stride, self.padding, self.dilation)


class WNConv2d(_WeightNorm):
    """A 2-d convolution under weight norm: ``(B, in, H, W) -> (B, out, H', W')``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
    ) -> None:
        shape = (out_channels, in_channels, *kernel_size)
        super().__init__(shape, in_channels * kernel_size[0] * kernel_size[1], out_channels)
        self.stride, self.padding, self.dilation = stride, padding, dilation

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight_like(x), self.bias_like(x)
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation)


class WNConvTranspose1d(_WeightNorm):
    """A transposed 1-d convolution under weight norm.

    ``(B, in, L) -> (B, out, (L - 1) stride - 2 padding + kernel + output_padding)``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        output_padding: int = 0,
        bias: bool = True,
    ) -> None:
        shape = (in_channels, out_channels, kernel_size)
        super().__init__(shape, out_channels * kernel_size, out_channels if bias else None)
        self.stride, self.padding, self.output_padding = stride, padding, output_padding

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight_like(x), self.bias_like(x)
        return F.conv_transpose1d(x, weight, bias, self.stride, self.padding, self.output_padding)


class Conv1d(nn.Conv1d):
    """torch's convolution, with its parameters taken to the dtype of the input as in the layers above."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return self._conv_forward(x, self.weight.to(x.dtype), bias)


class ConvTranspose1d(nn.ConvTranspose1d):
    """torch's transposed convolution, with its parameters taken to the dtype of the input."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        weight = self.weight.to(x.dtype)
        padding = cast("tuple[int, ...]", self.padding)  # a word is for the other convolution
        return F.conv_transpose1d(x, weight, bias, self.stride, padding, self.output_padding, self.groups)


def fuse_weight_norm_(module: nn.Module) -> int:
    """Fuse every weight-normalised convolution inside ``module``; returns how many there were."""
    layers = [layer for layer in module.modules() if isinstance(layer, _WeightNorm) and not layer.fused]
    for layer in layers:
        layer.fuse_()
    return len(layers)


def respell_weight_norm(state: dict[str, Any], module: nn.Module) -> dict[str, Any]:
    """A copy of ``state`` in which every convolution weight has the spelling that ``module`` holds."""
    state = dict(state)
    for path, layer in module.named_modules():
        if isinstance(layer, _WeightNorm):
            layer.respell_(state, f"{path}." if path else "")
    return state
