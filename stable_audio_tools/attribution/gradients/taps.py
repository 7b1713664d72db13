"""Per-sample gradients without hooks, so that blocks of the network can be compiled around them.

A linear layer y = W x could have a correction per sample, y = W x + P_out Z_b P_in^T x, with Z_b (o, i) = 0.
Its gradient with respect to Z_b is P_out^T G_b P_in, the projected per-sample gradient itself (the shape of
LoRA, Hu et al. 2022). A tap is that correction without its cost: it hands the output on as it is, and only
its backward pass knows the slot Z. No hook is involved, so ``torch.compile`` sees plain tensor code and fuses
norms, gates and casts with it.

Shapes: ``B`` samples, ``S`` positions, ``o`` and ``i`` projected widths, ``r`` rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stable_audio_tools.attribution.gradients.layers import (
    LayerSketch,
    LinearSketch,
    NormSketch,
    bias_gradient,
    gain_gradient,
    layer_norm,
    multiply,
    positions,
    rms_norm,
)
from stable_audio_tools.nn import norms
from stable_audio_tools.nn.linear import products_of_parts
from stable_audio_tools.nn.transformer import TransformerBlock


class _LinearTap(torch.autograd.Function):
    """The outputs as they are; the gradient of ``slot`` (B, o i) is the layer's projected gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        slot: Tensor,
        captured: Tensor,
        out_projection: Tensor,
        bias_row: Tensor | None,
        *outputs: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(captured, out_projection, bias_row)
        return tuple(output.view_as(output) for output in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        captured, out_projection, bias_row = ctx.saved_tensors
        matrices = out_projection.split([gradient.shape[-1] for gradient in gradients])
        parts = [
            positions(gradient) @ matrix.to(gradient.dtype)
            for gradient, matrix in zip(gradients, matrices, strict=True)
        ]
        product = multiply(sum(parts[1:], parts[0]), captured, bias_row)
        return product, None, None, None, *gradients


class _NormTap(torch.autograd.Function):
    """The output as it is; the gradient of ``slot`` (B, D) is that of the norm's gain, sample by sample.

    Where the norm's bias is selected too, the slot is (B, 2 D) and the bias comes first.
    """

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, slot: Tensor, inputs: Tensor, eps: float, is_rms: bool, has_bias: bool
    ) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.eps, ctx.is_rms, ctx.has_bias = eps, is_rms, has_bias
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        (inputs,) = ctx.saved_tensors
        gradient = gradients[0]
        vector = gain_gradient(rms_norm if ctx.is_rms else layer_norm, inputs, gradient, ctx.eps)
        if ctx.has_bias:
            vector = torch.cat([bias_gradient(gradient), vector], dim=1)
        return gradient, vector, None, None, None, None


class _Tapped(nn.Module):
    """What a module is for as long as it is tapped: its own class, and these attributes."""

    slot: Tensor


class _TappedLinear(nn.Linear, _Tapped):
    in_projection: Tensor
    out_projection: Tensor
    bias_row: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        return self._tapped(input, F.linear(input, self.weight, self.bias))[0]

    def parts(self, input: Tensor, count: int) -> tuple[Tensor, ...]:
        """The output in parts; see :func:`~stable_audio_tools.nn.linear.linear_parts`."""
        return self._tapped(input, *products_of_parts(self, input, count))

    def _tapped(self, input: Tensor, *outputs: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            captured = positions(input).to(self.in_projection.dtype) @ self.in_projection
        tapped = _LinearTap.apply(self.slot, captured, self.out_projection, self.bias_row, *outputs)
        return cast("tuple[Tensor, ...]", tapped)


class _TappedNorm(_Tapped):
    is_rms = False
    eps: float
    has_bias: bool

    def forward(self, x: Tensor) -> Tensor:
        output = super().forward(x)
        tapped = _NormTap.apply(output, self.slot, x.detach(), self.eps, self.is_rms, self.has_bias)
        return cast("Tensor", tapped)


class _TappedLayerNorm(_TappedNorm, norms.LayerNorm):
    pass


class _TappedTorchLayerNorm(_TappedNorm, nn.LayerNorm):
    pass


class _TappedRMSNorm(_TappedNorm, norms.RMSNorm):
    is_rms = True


_TAPPED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: _TappedLinear,
    nn.LayerNorm: _TappedTorchLayerNorm,
    norms.LayerNorm: _TappedLayerNorm,
    norms.RMSNorm: _TappedRMSNorm,
}


def is_compiler_error(error: RuntimeError) -> bool:
    """Whether ``torch.compile`` failed, and not what it compiled."""
    from torch._dynamo.exc import TorchDynamoException  # imported only where something is compiled

    return isinstance(error, TorchDynamoException)


def keeping_buffers() -> AbstractContextManager[Any]:
    """Let compiled backward passes leave what the forward pass kept, so that another can follow."""
    import torch._functorch.config as config

    return cast("AbstractContextManager[Any]", config.patch(donated_buffer=False))


def can_tap(layer: LayerSketch) -> bool:
    """Whether there is a tap for what is selected of this layer."""
    if isinstance(layer, LinearSketch):
        return layer.has_weight
    return isinstance(layer, NormSketch) and layer.gain in layer.parameters and type(layer.module) in _TAPPED


class TappedBlocks:
    """The blocks of a network, compiled with taps in place of hooks.

    A block is taken if it has a tap for all that is selected in it; the rest of the network stays as it is.
    All blocks share the code of one.

    Args:
        network: where the blocks are.
        layers: the selected layers.
        kinds: classes of blocks.
        backend: of ``torch.compile``.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[LayerSketch],
        kinds: tuple[type[nn.Module], ...] = (TransformerBlock,),
        backend: str = "inductor",
    ) -> None:
        by_module = {layer.module: layer for layer in layers}
        self.blocks: list[nn.Module] = []
        self.layers: list[LayerSketch] = []
        for block in network.modules():
            inside = [by_module[module] for module in block.modules() if module in by_module]
            if isinstance(block, kinds) and all(can_tap(layer) for layer in inside):
                self.blocks.append(block)
                self.layers += inside
        self._compiled = [
            torch.compile(block._call_impl, backend=backend, dynamic=False) for block in self.blocks
        ]

    @contextmanager
    def active(
        self, size: int, dtypes: Mapping[str, tuple[torch.dtype, torch.dtype]], measurements: int = 1
    ) -> Iterator[TapSlots]:
        """The blocks run compiled, for batches of ``size``, while the block lasts.

        Args:
            dtypes: what each layer's inputs and output gradients are multiplied in, by name.
            measurements: how many backward passes go through one forward pass.
        """
        slots = TapSlots(self.layers, size, measurements)
        with keeping_buffers() if measurements > 1 else nullcontext():
            try:
                for layer in self.layers:
                    module: Any = layer.module
                    if isinstance(layer, LinearSketch):
                        in_dtype, out_dtype = dtypes.get(layer.name, (torch.float32, torch.float32))
                        module.in_projection = layer.input_projection(in_dtype)
                        module.out_projection = layer.projection("out", out_dtype)
                        module.bias_row = layer.bias_row
                    else:
                        module.has_bias = len(layer.parameters) == 2
                    module.__class__ = _TAPPED[type(module)]
                for block, compiled in zip(self.blocks, self._compiled, strict=True):
                    block._compiled_call_impl = compiled
                yield slots
            finally:
                for block in self.blocks:
                    block.__dict__.pop("_compiled_call_impl", None)
                for layer in self.layers:
                    _untap(layer.module)


class TapSlots:
    """Where the taps of one batch leave their gradients."""

    def __init__(self, layers: Sequence[LayerSketch], size: int, measurements: int = 1) -> None:
        self._layers = layers
        self._widths = [
            layer.dim if isinstance(layer, LinearSketch) else sum(map(len, layer.projections.values()))
            for layer in layers
        ]
        device = next(iter(layers[0].projections.values())).device
        self._leaf = torch.zeros(size, sum(self._widths), device=device, requires_grad=True)
        self._sums = torch.zeros(measurements, *self._leaf.shape, device=device)

    def arm(self) -> None:
        """Give every tap its slot for one forward pass."""
        for layer, slot in zip(self._layers, self._leaf.split(self._widths, dim=1), strict=True):
            cast("Any", layer.module).slot = slot

    def aim(self, measurement: int) -> None:
        """Let the next backward pass add to the gradients of this measurement."""
        self._leaf.grad = self._sums[measurement]

    def gradients(self) -> Iterator[tuple[LayerSketch, Tensor]]:
        """Each layer with its projected gradients (M, B, dim), summed over the passes."""
        for layer, rows in zip(self._layers, self._sums.split(self._widths, dim=2), strict=True):
            if isinstance(layer, NormSketch):
                rows = layer.project_vectors(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
            yield layer, rows


def _untap(module: Any) -> None:
    """Make a module what it was."""
    if type(module) in _TAPPED.values():
        module.__class__ = next(kind for kind, tapped in _TAPPED.items() if type(module) is tapped)
    for name in ("slot", "in_projection", "out_projection", "bias_row", "has_bias"):
        module.__dict__.pop(name, None)
