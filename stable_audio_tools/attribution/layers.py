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

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stable_audio_tools.attribution.projection import side_projection
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
        self.projections = {side: matrix.to(device) for side, matrix in self.projections.items()}

    def _add_projection(self, side: str, size: int, rank: int) -> int:
        matrix = side_projection(size, rank, "attribution-projection", self.seed, self.name, side)
        self.projections[side] = matrix
        return matrix.shape[1]


class _MatrixSketch(LayerSketch):
    """A weight matrix (out, in) and, as one more input column, its bias."""

    def __init__(
        self, name: str, module: nn.Module, parameters: frozenset[str], rank: int, seed: int
    ) -> None:
        super().__init__(name, module, parameters, rank, seed)
        out_size, in_size = self.sizes()
        self._weight, self._bias = "weight" in parameters, "bias" in parameters
        self._in_size = in_size if self._weight else 0
        self.dim = self._add_projection("out", out_size, rank)
        self.dim *= self._add_projection("in", self._in_size + self._bias, rank)

    @abstractmethod
    def sizes(self) -> tuple[int, int]:
        """Rows and columns of the weight as a matrix."""

    @abstractmethod
    def project_inputs(self, inputs: Tensor, matrix: Tensor) -> Tensor:
        """Inputs (B, ...) times ``matrix`` (in, r) at every position: (B, S, r)."""

    @abstractmethod
    def project_gradient(self, gradient: Tensor, matrix: Tensor) -> Tensor:
        """The output gradient (B, ...) times ``matrix`` (out, r) at every position: (B, S, r)."""

    def capture(self, inputs: Tensor) -> Tensor:
        matrix = self.projections["in"]
        projected = self.project_inputs(inputs, matrix[: self._in_size]).float()
        return projected + matrix[-1] if self._bias else projected

    def contribute(self, captured: Tensor, gradient: Tensor) -> Tensor:
        projected = self.project_gradient(gradient, self.projections["out"]).float()
        return torch.einsum("bso,bsi->boi", projected, captured).flatten(1)


class LinearSketch(_MatrixSketch):
    """``nn.Linear`` on (B, in) or (B, ..., in)."""

    module: nn.Linear

    def sizes(self) -> tuple[int, int]:
        return self.module.out_features, self.module.in_features

    def project_inputs(self, inputs: Tensor, matrix: Tensor) -> Tensor:
        rows = _positions(inputs)
        if not self._weight:
            return rows.new_zeros(*rows.shape[:2], matrix.shape[1])
        return rows @ matrix.to(rows.dtype)

    def project_gradient(self, gradient: Tensor, matrix: Tensor) -> Tensor:
        return _positions(gradient) @ matrix.to(gradient.dtype)


class Conv1dSketch(_MatrixSketch):
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
        per_group = inputs.unflatten(1, (groups, -1)).flatten(0, 1)
        width = matrix.shape[1]
        if self._weight:
            kernels = matrix.T.reshape(width, -1, conv.kernel_size[0]).to(inputs.dtype)
        else:  # only how many positions there are matters
            kernels = inputs.new_zeros(width, per_group.shape[1], conv.kernel_size[0])
        projected = F.conv1d(
            per_group, kernels, None, conv.stride, conv.padding, conv.dilation
        )  # (B*groups, r, L)
        return projected.transpose(1, 2).reshape(inputs.shape[0], -1, width)

    def project_gradient(self, gradient: Tensor, matrix: Tensor) -> Tensor:
        grouped = gradient.unflatten(1, (self.module.groups, -1))  # (B, groups, out/groups, L)
        rows = matrix.to(gradient.dtype).unflatten(0, (self.module.groups, -1))  # (groups, out/groups, r)
        return torch.einsum("bgol,gor->bglr", grouped, rows).flatten(1, 2)


class EmbeddingSketch(_MatrixSketch):
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
        return _positions(gradient) @ matrix.to(gradient.dtype)


class NormSketch(LayerSketch):
    """Gain and bias of a norm over the last axis; each vector is projected to rank^2 numbers."""

    gain = "gamma"

    def __init__(
        self, name: str, module: nn.Module, parameters: frozenset[str], rank: int, seed: int
    ) -> None:
        super().__init__(name, module, parameters, rank, seed)
        sizes = [(side, getattr(module, side).numel()) for side in sorted(parameters)]
        self.dim = sum(self._add_projection(side, size, rank**2) for side, size in sizes)

    @abstractmethod
    def normalize(self, inputs: Tensor) -> Tensor:
        """The module's output before gain and bias, (B, ..., D) float32."""

    def capture(self, inputs: Tensor) -> Tensor:
        if self.gain not in self.parameters:  # the gradient of the bias needs no inputs
            return inputs.new_empty(0)
        return _positions(self.normalize(inputs))

    def contribute(self, captured: Tensor, gradient: Tensor) -> Tensor:
        rows = _positions(gradient).float()
        parts = []
        for side in sorted(self.parameters):
            vector = (rows * captured).sum(1) if side == self.gain else rows.sum(1)
            parts.append(vector @ self.projections[side])
        return torch.cat(parts, dim=1)


class LayerNormSketch(NormSketch):
    """``nn.norms.LayerNorm``: ``gamma`` and, where it is learned, ``beta``."""

    module: norms.LayerNorm

    def normalize(self, inputs: Tensor) -> Tensor:
        return F.layer_norm(inputs.float(), inputs.shape[-1:], eps=self.module.eps)


class TorchLayerNormSketch(LayerNormSketch):
    """``torch.nn.LayerNorm`` over the last axis."""

    gain = "weight"

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        shape = getattr(module, "normalized_shape", ())
        return None if len(shape) == 1 else f"normalized_shape {tuple(shape)} (only the last axis is handled)"


class RMSNormSketch(NormSketch):
    """``nn.norms.RMSNorm``."""

    module: norms.RMSNorm

    def normalize(self, inputs: Tensor) -> Tensor:
        return F.rms_norm(inputs.float(), inputs.shape[-1:], eps=self.module.eps)


def _positions(values: Tensor) -> Tensor:
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
