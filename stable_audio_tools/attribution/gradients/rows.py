"""Per-sample gradients of a network, projected as they are made, or whole as a reference.

Both are called with a batch and a list of measured passes, and return one feature row per sample (B, D):
the sum over the passes of that sample's projected gradient. Where a pass measures several numbers, each has
a backward pass of its own through the same forward pass, and a row holds their gradients beside each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from stable_audio_tools.attribution.gradients.layers import (
    SKETCHES,
    LayerSketch,
    LinearSketch,
    MatrixSketch,
    compute_dtype,
)
from stable_audio_tools.attribution.gradients.products import PendingProducts
from stable_audio_tools.attribution.gradients.projection import BlockProjection
from stable_audio_tools.attribution.gradients.taps import TappedBlocks, is_compiler_error
from stable_audio_tools.errors import UsageError
from stable_audio_tools.runtime.progress import warn


class Batch(Protocol):
    """Samples that can be counted and cut into single ones."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice) -> Any: ...


B = TypeVar("B", bound=Batch)

MeasuredPass = Callable[[B], Tensor]
"""One forward pass of a batch, measured: (B,) or (B, M) numbers, each depending on its own sample only."""

RANKS = (16, 32, 64)
ENOUGH = 50_000
"""Numbers of a gradient from which inner products are as good as those of whole ones, as far as retrained
models can tell (docs/results.md); the smallest of the ranks that gives as many is taken."""


class GradientFeatures(Protocol):
    """Turns measured passes into feature rows."""

    dim: int
    left_out: list[str]
    """Selected parameters that cannot be handled and are therefore not part of the features."""

    def __call__(self, batch: Any, passes: Sequence[MeasuredPass[Any]]) -> Tensor:
        """One row per sample, (B, dim) float32."""
        ...


class HookedGradients:
    """Gradients projected layer by layer inside the backward pass.

    Forward hooks keep each layer's projected inputs; hooks on its outputs multiply them with the projected
    output gradients. No parameter gradient is computed at all, and the backward pass stops at the first
    selected layer.

    Args:
        network: where the layers are.
        rank: each side of a layer's gradient is projected to this width; 0 keeps gradients whole, None takes
            the smallest of :data:`RANKS` that gives :data:`ENOUGH` numbers.
        measurements: how many numbers a pass measures.
        seed: seed of the projections.
        param_regex: searched in parameter names; None takes every parameter of a layer kind that is handled.
        prefix: put before the names inside ``network``, so that they read as keys of the whole state dict.
        compiled_batch: batches of exactly this size run the network's blocks compiled, with taps in place of
            hooks (:mod:`~stable_audio_tools.attribution.gradients.taps`); the first one costs a minute. None
            compiles nothing.
        backend: of ``torch.compile``.

    Raises:
        UsageError: nothing is selected, or ``param_regex`` names a parameter that no layer kind handles.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        rank: int | None = None,
        measurements: int = 1,
        seed: int = 0,
        param_regex: str | None = None,
        prefix: str = "",
        compiled_batch: int | None = None,
        backend: str = "inductor",
    ) -> None:
        self.network = network
        selected, self.left_out = _select_by_module(network, param_regex, prefix)
        self.layers = _sketches(selected, rank, seed)
        self.measurements = measurements
        ends = torch.tensor([layer.dim for layer in self.layers]).cumsum(0).tolist()
        self.spans = {
            layer.name: slice(end - layer.dim, end) for layer, end in zip(self.layers, ends, strict=True)
        }
        self.dim: int = measurements * ends[-1]
        self._explicit = param_regex is not None
        self._dtypes: dict[str, tuple[torch.dtype, torch.dtype]] = {}
        self._odd: set[str] = set()
        self._places: dict[tuple[str, ...], Tensor] = {}
        self._reported = False
        self._compiled_batch = compiled_batch
        self._blocks: TappedBlocks | None = None
        if compiled_batch is not None:
            blocks = TappedBlocks(network, self.layers, backend=backend)
            self._blocks = blocks if blocks.layers else None

    def __call__(self, batch: B, passes: Sequence[MeasuredPass[B]]) -> Tensor:
        device = next(self.network.parameters()).device
        for layer in self.layers:
            layer.to(device)
        if self._blocks is not None and len(batch) == self._compiled_batch:
            if not self._reported:  # hooks see what compiled code does not: folded batches and silent layers
                self._run(batch[:1], passes[:1], None)
            if self._odd & {layer.name for layer in self._blocks.layers}:
                name = min(self._odd)
                warn(f"the network's blocks are not compiled: {name} is also called for what is no sample")
                self._blocks = None
        if self._blocks is not None and len(batch) == self._compiled_batch:
            try:
                return self._run(batch, passes, self._blocks)
            except RuntimeError as error:
                if not is_compiler_error(error):
                    raise
                reason = str(error).strip().splitlines()[0]
                warn(f"the network's blocks cannot be compiled here, going on without: {reason}")
                self._blocks = None
        return self._run(batch, passes, None)

    def _run(self, batch: Any, passes: Sequence[MeasuredPass[Any]], blocks: TappedBlocks | None) -> Tensor:
        shape = self.measurements, len(batch), self.dim // self.measurements
        features = torch.zeros(shape, device=next(self.network.parameters()).device)
        pending = PendingProducts(self.spans, self._places)
        tapped = set() if blocks is None else {layer.name for layer in blocks.layers}
        hooks = _Hooks(len(batch), self.spans, pending, self._dtypes, self._odd)
        with _frozen(self.network), torch.enable_grad(), ExitStack() as stack:
            for layer in self.layers:
                if layer.name not in tapped:
                    stack.callback(layer.module.register_forward_pre_hook(hooks.cast_once(layer)).remove)
                    stack.callback(layer.module.register_forward_hook(hooks.forward(layer)).remove)
            slots = None
            if blocks is not None:
                slots = stack.enter_context(blocks.active(len(batch), self._dtypes, self.measurements))
            for measured in passes:
                if slots is not None:
                    slots.arm()
                numbers = measured(batch).reshape(len(batch), self.measurements).sum(0)
                for m, number in enumerate(numbers):
                    pending.features = features[m]
                    if slots is not None:
                        slots.aim(m)
                    number.backward(retain_graph=m + 1 < self.measurements)
                    pending.flush()
        if slots is not None:
            for layer, rows in slots.gradients():
                features[..., self.spans[layer.name]] += rows
        self._report_silent_layers()
        return features.transpose(0, 1).flatten(1)

    def _report_silent_layers(self) -> None:
        """Layers never called: unused, or their weight is read past the module, which no hook sees."""
        if self._reported:
            return
        self._reported = True
        silent = [layer.name for layer in self.layers if layer.name not in self._dtypes]
        if not silent:
            return
        names = ", ".join(silent[:5])
        text = f"{len(silent)} selected layers are never called, so hooks see nothing of them: {names}"
        if self._explicit:
            raise UsageError(f"{text}; narrow param_regex or use the dense mode")
        warn(f"{text}; their features are zero")


class _Hooks:
    """The hooks of one batch of ``size`` samples, whose gradients go where those of ``pending`` do."""

    def __init__(
        self,
        size: int,
        spans: dict[str, slice],
        pending: PendingProducts,
        dtypes: dict[str, tuple[torch.dtype, torch.dtype]],
        odd: set[str],
    ) -> None:
        self.odd = odd
        self.size = size
        self.spans = spans
        self.pending = pending
        self.dtypes = dtypes

    def cast_once(self, layer: LayerSketch) -> Callable[..., Any]:
        """A hook that casts a linear layer's input as autocast will, so that layer and sketch share it."""

        def pre_hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if not isinstance(layer, LinearSketch) or not args[0].is_cuda:
                return None
            return (args[0].to(compute_dtype(args[0])), *args[1:])

        return pre_hook

    def forward(self, layer: LayerSketch) -> Callable[..., None]:
        """A hook that keeps the projected input and puts a hook on the output."""
        size, span = self.size, self.spans[layer.name]

        def forward_hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            rows = output.shape[0]
            with torch.no_grad():
                captured = layer.capture(args[0].detach()) if rows == size else None
            if captured is None:  # DoRA asks its adapters for their whole matrix, without a gradient
                self.odd.add(layer.name)
            self.dtypes[layer.name] = (torch.float32 if captured is None else captured.dtype, output.dtype)

            def output_hook(gradient: Tensor) -> None:
                if captured is None:
                    raise UsageError(
                        f"layer {layer.name} sees {rows} rows for {size} samples, so its gradient"
                        " cannot be told apart by sample; leave it out with param_regex"
                    )
                if isinstance(layer, MatrixSketch):
                    self.pending.add(layer, captured, layer.project(gradient))
                else:
                    self.pending.features[:, span].add_(layer.contribute(captured, gradient))

            # A layer with nothing trainable before it starts the graph here.
            if not output.requires_grad:
                output.requires_grad_()
            output.register_hook(output_hook)

        return forward_hook


class DenseGradients:
    """The reference: the whole gradient of one sample at a time, then one random projection of it.

    Args:
        network: where the parameters are.
        dim: length of a gradient in a feature row; 0 keeps it whole.
        measurements: how many numbers a pass measures.
        seed: seed of the projection.
        param_regex: searched in parameter names; None takes every trainable parameter.
        prefix: put before the names inside ``network``.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        dim: int = 16384,
        measurements: int = 1,
        seed: int = 0,
        param_regex: str | None = None,
        prefix: str = "",
    ) -> None:
        self.network = network
        self.parameters = dict(_matching(network, param_regex, prefix))
        self.left_out: list[str] = []
        size = sum(parameter.numel() for parameter in self.parameters.values())
        self.projection = BlockProjection(size, dim, "attribution-dense-projection", seed)
        self.measurements = measurements
        self.dim = measurements * self.projection.dim

    def __call__(self, batch: B, passes: Sequence[MeasuredPass[B]]) -> Tensor:
        parameters = list(self.parameters.values())
        rows = []
        with _frozen(self.network), torch.enable_grad():
            for parameter in parameters:
                parameter.requires_grad_(True)
            for i in range(len(batch)):
                sample = batch[i : i + 1]
                row = torch.zeros(self.measurements, self.projection.size, device=parameters[0].device)
                for measured in passes:
                    for m, number in enumerate(measured(sample).reshape(self.measurements)):
                        more = m + 1 < self.measurements
                        grads = torch.autograd.grad(
                            number, parameters, retain_graph=more, materialize_grads=True
                        )
                        row[m] += torch.cat([grad.flatten().float() for grad in grads])
                rows.append(row)
        projected = self.projection(torch.cat(rows))  # once a batch: its matrix is made anew in each call
        return projected.unflatten(0, (len(batch), self.measurements)).flatten(1)


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Take gradients from all parameters of ``network``, and give them back."""
    before = {parameter: parameter.requires_grad for parameter in network.parameters()}
    network.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)


def _sketches(
    selected: Sequence[tuple[str, nn.Module, set[str]]], rank: int | None, seed: int
) -> list[LayerSketch]:
    """The selected layers at ``rank``, or at the smallest rank that is enough."""
    for tried in RANKS if rank is None else (rank,):
        layers: list[LayerSketch] = [
            SKETCHES[type(module)](name, module, frozenset(parameters), tried, seed)
            for name, module, parameters in selected
        ]
        if sum(layer.dim for layer in layers) >= ENOUGH:
            break
    return layers


def _matching(network: nn.Module, param_regex: str | None, prefix: str) -> list[tuple[str, nn.Parameter]]:
    pattern = re.compile(param_regex or "")
    found = [
        (prefix + name, parameter)
        for name, parameter in network.named_parameters()
        if parameter.is_floating_point() and pattern.search(prefix + name)
    ]
    if not found:
        raise UsageError(
            f"param_regex {param_regex!r} matches no parameter; they are called {_few_names(network, prefix)}"
        )
    return found


def _select_by_module(
    network: nn.Module, param_regex: str | None, prefix: str
) -> tuple[list[tuple[str, nn.Module, set[str]]], list[str]]:
    """Modules with their selected parameters, in the network's order, and the parameters left out."""
    modules = {prefix + name: module for name, module in network.named_modules()}
    handled: dict[str, set[str]] = {}
    refused: dict[str, str] = {}
    for name, _ in _matching(network, param_regex, prefix):
        path, _, leaf = name.rpartition(".")
        module = modules[path] if path in modules else modules[path + "."]
        sketch = SKETCHES.get(type(module))
        reason = f"a parameter of {type(module).__name__}" if sketch is None else sketch.refusal(module)
        if reason is None:
            handled.setdefault(path, set()).add(leaf)
        else:
            refused[name] = reason
    if refused and param_regex is not None:
        name, reason = next(iter(refused.items()))
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise UsageError(
            f"param_regex {param_regex!r} selects {name}, {reason}{more}, which hooks do not handle;"
            " narrow the expression or use the dense mode"
        )
    if not handled:
        raise UsageError(
            f"no parameter of {type(network).__name__} is in a layer that hooks handle; use the dense mode"
        )
    return [(path, modules[path], leaves) for path, leaves in handled.items()], list(refused)


def _few_names(network: nn.Module, prefix: str, count: int = 3) -> str:
    names = [prefix + name for name, _ in network.named_parameters()]
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
