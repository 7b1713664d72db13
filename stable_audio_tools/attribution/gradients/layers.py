"""How each kind of layer turns its inputs and output gradients into a projected per-sample gradient.

For a linear map the gradient of one sample is G = sum_s g_s a_s^T over its positions s, with output
gradients g and inputs a. Then P_out^T G P_in = sum_s (P_out^T g_s)(P_in^T a_s)^T, so both sides can be
projected first and the (out, in) matrix is never made (the two-sided projection of LoGra, Choe et al. 2024).
A bias is one more column of G with input 1; a convolution is a linear map at every output position; an
embedding has one-hot inputs. The gains and biases of norms are vectors, whose gradients are small enough to
be made and then projected.

Shapes: ``B`` samples, ``S`` positions of a sample (time, groups or heads), ``r`` projected width of a side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stable_audio_tools.attribution.gradients.projection import side_projection
from stable_audio_tools.nn import norms


class LayerSketch(ABC):
    """The projected gradients of the selected parameters of one module.

    Args:
        name: dotted path of the module, which also keys its projections.
        module: the module.
        parameters: names of its selected parameters.
        rank: width of a side after projection; 0 keeps sides whole.
        seed: seed of the projections.
    """

    dim: int
    """Numbers per sample."""

    def __init__(
        self, name: str, module: nn.Module, parameters: frozenset[str], rank: int, seed: int
    ) -> None:
        self.name = name
        self.module = module
        self.parameters = parameters
        self.rank = rank
        self.seed = seed
        self.projections: dict[str, Tensor] = {}
        self._copies: dict[tuple[str, torch.dtype], Tensor] = {}

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        """Why this module cannot be handled although its class can, or None."""
        return None

    @abstractmethod
    def capture(self, inputs: Tensor) -> Tensor:
        """What must be kept of the module's input (B, ...) until the gradient of its output is known."""

    @abstractmethod
    def contribute(self, captured: Tensor, gradient: Tensor) -> Tensor:
        """The projected gradient (B, dim) in float32, from what was kept and the gradient of the output."""

    def to(self, device: torch.device) -> None:
        """Move the projections to ``device``."""
        if any(matrix.device != device for matrix in self.projections.values()):
            self.projections = {side: matrix.to(device) for side, matrix in self.projections.items()}
            self._copies.clear()

    def projection(self, side: str, dtype: torch.dtype) -> Tensor:
        """The matrix of a side in ``dtype``; copies are kept, since a cast per call costs a kernel."""
        matrix = self.projections[side]
        if matrix.dtype == dtype:
            return matrix
        if (side, dtype) not in self._copies:
            self._copies[side, dtype] = matrix.to(dtype)
        return self._copies[side, dtype]

    def _add_projection(self, side: str, size: int, rank: int) -> int:
        matrix = side_projection(size, rank, "attribution-projection", self.seed, self.name, side)
        self.projections[side] = matrix
        return matrix.shape[1]


class MatrixSketch(LayerSketch):
    """A weight matrix (out, in) and, as one more input column, its bias.

    Attributes:
        shape: widths of the two sides after projection, (out, in).
    """

    def __init__(
        self, name: str, module: nn.Module, parameters: frozenset[str], rank: int, seed: int
    ) -> None:
        super().__init__(name, module, parameters, rank, seed)
        out_size, in_size = self.sizes()
        self.has_weight, self.has_bias = "weight" in parameters, "bias" in parameters
        self._in_size = in_size if self.has_weight else 0
        out_rank = self._add_projection("out", out_size, rank)
        self.shape = out_rank, self._add_projection("in", self._in_size + self.has_bias, rank)
        self.dim = self.shape[0] * self.shape[1]

    @abstractmethod
    def sizes(self) -> tuple[int, int]:
        """Rows and columns of the weight as a matrix."""

    @abstractmethod
    def project_inputs(self, inputs: Tensor, matrix: Tensor) -> Tensor:
        """Inputs (B, ...) times ``matrix`` (in, r) at every position: (B, S, r)."""

    @abstractmethod
    def project_gradient(self, gradient: Tensor, matrix: Tensor) -> Tensor:
        """The output gradient (B, ...) times ``matrix`` (out, r) at every position: (B, S, r)."""

    @property
    def bias_row(self) -> Tensor | None:
        """What the input 1 of the bias becomes, (r,) float32, or None where the bias is not selected."""
        return self.projections["in"][-1] if self.has_bias else None

    def input_projection(self, dtype: torch.dtype) -> Tensor:
        """The rows of the input's matrix that belong to the weight, (in, r)."""
        return self.projection("in", dtype)[: self._in_size]

    def capture(self, inputs: Tensor) -> Tensor:
        """The projected inputs (B, S, r), without the row of the bias."""
        return self.project_inputs(inputs, self.input_projection(compute_dtype(inputs)))

    def project(self, gradient: Tensor) -> Tensor:
        """The projected output gradient (B, S, r)."""
        return self.project_gradient(gradient, self.projection("out", gradient.dtype))

    def contribute(self, captured: Tensor, gradient: Tensor) -> Tensor:
        return multiply(self.project(gradient), captured, self.bias_row)


def multiply(gradients: Tensor, inputs: Tensor, bias_row: Tensor | None = None) -> Tensor:
    """Sums over positions of outer products: (M, S, o) and (M, S, i) give (M, o i) in float32.

    ``bias_row`` (i,) or (M, 1, i) is added to every input.
    """
    with torch.autocast(gradients.device.type, enabled=False):  # a compiled backward pass has the forward's
        if _SUMS_IN_FLOAT32 and gradients.is_cuda and gradients.dtype == inputs.dtype:
            products = torch.bmm(gradients.mT, inputs, out_dtype=torch.float32)
        else:
            products = torch.bmm(gradients.float().mT, inputs.float())
    if bias_row is not None:
        products = products + gradients.float().sum(1).unsqueeze(2) * bias_row
    return products.flatten(1)


_SUMS_IN_FLOAT32 = "dtype" in torch.ops.aten.bmm.overloads()
"""Whether torch (2.8 and up) can multiply in half precision, exactly, and add up in float32."""


def compute_dtype(inputs: Tensor) -> torch.dtype:
    """What autocast would multiply ``inputs`` in, or their own dtype."""
    device = inputs.device.type
    if inputs.is_floating_point() and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return inputs.dtype if inputs.is_floating_point() else torch.float32


class LinearSketch(MatrixSketch):
    """``nn.Linear`` on (B, in) or (B, ..., in)."""

    module: nn.Linear

    def sizes(self) -> tuple[int, int]:
        return self.module.out_features, self.module.in_features

    def project_inputs(self, inputs: Tensor, matrix: Tensor) -> Tensor:
        rows = positions(inputs)
        if not self.has_weight:
            return matrix.new_zeros(*rows.shape[:2], matrix.shape[1])
        return rows.to(matrix.dtype) @ matrix

    def project_gradient(self, gradient: Tensor, matrix: Tensor) -> Tensor:
        return positions(gradient) @ matrix


class Conv1dSketch(MatrixSketch):
    """``nn.Conv1d`` with any kernel, stride, dilation and groups, zero-padded."""

    module: nn.Conv1d

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        mode = getattr(module, "padding_mode", "zeros")
        return None if mode == "zeros" else f"padding_mode {mode!r} (only 'zeros' is handled)"

    def sizes(self) -> tuple[int, int]:
        out_size, in_per_group, kernel = self.module.weight.shape
        return out_size, in_per_group * kernel

    def project_inputs(self, inputs: Tensor, matrix: Tensor) -> Tensor:
        conv, groups = self.module, self.module.groups
        per_group = inputs.to(matrix.dtype).unflatten(1, (groups, -1)).flatten(0, 1)
        width = matrix.shape[1]
        if self.has_weight:
            kernels = matrix.T.reshape(width, -1, conv.kernel_size[0])
        else:  # only how many positions there are matters
            kernels = matrix.new_zeros(width, per_group.shape[1], conv.kernel_size[0])
        projected = F.conv1d(
            per_group, kernels, None, conv.stride, conv.padding, conv.dilation
        )  # (B*groups, r, L)
        return projected.transpose(1, 2).reshape(inputs.shape[0], -1, width)

    def project_gradient(self, gradient: Tensor, matrix: Tensor) -> Tensor:
        grouped = gradient.unflatten(1, (self.module.groups, -1))  # (B, groups, out/groups, L)
        rows = matrix.unflatten(0, (self.module.groups, -1))  # (groups, out/groups, r)
        return torch.einsum("bgol,gor->bglr", grouped, rows).flatten(1, 2)


class EmbeddingSketch(MatrixSketch):
    """``nn.Embedding`` on indices (B,) or (B, ...): a linear map of one-hot inputs."""

    module: nn.Embedding

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        scaled = getattr(module, "scale_grad_by_freq", False) or getattr(module, "max_norm", None) is not None
        return "scale_grad_by_freq or max_norm" if scaled else None

    def sizes(self) -> tuple[int, int]:
        return self.module.embedding_dim, self.module.num_embeddings

    def project_inputs(self, inputs: Tensor, matrix: Tensor) -> Tensor:
        indices = inputs.flatten(1) if inputs.ndim > 1 else inputs[:, None]
        is_padding = indices == (-1 if self.module.padding_idx is None else self.module.padding_idx)
        return matrix[indices].masked_fill(is_padding[..., None], 0)

    def project_gradient(self, gradient: Tensor, matrix: Tensor) -> Tensor:
        return positions(gradient) @ matrix


class NormSketch(LayerSketch):
    """Gain and bias of a norm over the last axis; each vector is projected to rank^2 numbers."""

    gain = "gamma"

    def __init__(
        self, name: str, module: nn.Module, parameters: frozenset[str], rank: int, seed: int
    ) -> None:
        super().__init__(name, module, parameters, rank, seed)
        sizes = [(side, getattr(module, side).numel()) for side in sorted(parameters)]
        self.dim = sum(self._add_projection(side, size, rank**2) for side, size in sizes)

    normalize: staticmethod[[Tensor, float], Tensor]
    """(inputs, eps) to the module's output before gain and bias, over the last axis."""

    @property
    def eps(self) -> float:
        """What the module adds to the variance."""
        return self.module.eps  # type: ignore[return-value]

    def capture(self, inputs: Tensor) -> Tensor:
        """The inputs as they are: the network keeps them too, and normalised ones would be memory on top."""
        if self.gain not in self.parameters:  # the gradient of the bias needs no inputs
            return inputs.new_empty(0)
        return inputs

    def contribute(self, captured: Tensor, gradient: Tensor) -> Tensor:
        vectors = [
            _gain_gradient(gradient)(self.normalize, captured, gradient, self.eps)
            if side == self.gain
            else bias_gradient(gradient)
            for side in self.projections
        ]
        return self.project_vectors(torch.cat(vectors, dim=1))

    def project_vectors(self, vectors: Tensor) -> Tensor:
        """The gradients of bias and gain beside each other (B, D or 2 D), each projected: (B, dim)."""
        matrices = self.projections.values()
        parts = vectors.split([len(matrix) for matrix in matrices], dim=1)
        return torch.cat([part @ matrix for part, matrix in zip(parts, matrices, strict=True)], dim=1)


def bias_gradient(gradient: Tensor) -> Tensor:
    """The gradient of a bias over the last axis, (B, D) float32: output gradients (B, ..., D), summed."""
    return positions(gradient).float().sum(1)


def gain_gradient(
    normalize: Callable[[Tensor, float], Tensor], inputs: Tensor, gradient: Tensor, eps: float
) -> Tensor:
    """The gradient of a norm's gain, (B, D) float32: output gradients times normalised inputs, summed."""
    return positions(normalize(inputs.float(), eps) * gradient.float()).sum(1)


def _gain_gradient(like: Tensor) -> Callable[..., Tensor]:
    """:func:`gain_gradient`, as one fused kernel where there is a compiler for it.

    Written out it moves 0.6 GB for 16 clips of 1,024 latents and width 1,536; fused, 0.15 GB.
    """
    return _fused_gain_gradient() if like.is_cuda and has_triton() else gain_gradient


@cache
def _fused_gain_gradient() -> Callable[..., Tensor]:
    return cast("Callable[..., Tensor]", torch.compile(gain_gradient))


@cache
def has_triton() -> bool:
    """Whether torch can compile for this machine's GPU."""
    return torch.cuda.is_available() and find_spec("triton") is not None


def layer_norm(inputs: Tensor, eps: float) -> Tensor:
    return F.layer_norm(inputs, inputs.shape[-1:], eps=eps)


def rms_norm(inputs: Tensor, eps: float) -> Tensor:
    return F.rms_norm(inputs, inputs.shape[-1:], eps=eps)


class LayerNormSketch(NormSketch):
    """``nn.norms.LayerNorm``: ``gamma`` and, where it is learned, ``beta``."""

    normalize = staticmethod(layer_norm)


class TorchLayerNormSketch(LayerNormSketch):
    """``torch.nn.LayerNorm`` over the last axis."""

    gain = "weight"

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        shape = getattr(module, "normalized_shape", ())
        return None if len(shape) == 1 else f"normalized_shape {tuple(shape)} (only the last axis is handled)"


class RMSNormSketch(NormSketch):
    """``nn.norms.RMSNorm``."""

    normalize = staticmethod(rms_norm)


def positions(values: Tensor) -> Tensor:
    """(B, ..., D) as (B, S, D), and (B, D) as one position."""
    return values.flatten(1, -2) if values.ndim > 2 else values[:, None]


SKETCHES: dict[type[nn.Module], type[LayerSketch]] = {
    nn.Linear: LinearSketch,
    nn.Conv1d: Conv1dSketch,
    nn.Embedding: EmbeddingSketch,
    nn.LayerNorm: TorchLayerNormSketch,
    norms.LayerNorm: LayerNormSketch,
    norms.RMSNorm: RMSNormSketch,
}
"""What handles a module of exactly this class."""
