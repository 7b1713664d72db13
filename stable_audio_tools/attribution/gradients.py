"""Per-sample gradients of a network, projected as they are made, or whole as a reference.

Both are called with a batch and a list of measured passes, and return one feature row per sample (B, D):
the sum over the passes of that sample's projected gradient.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from stable_audio_tools.attribution.layers import SKETCHES, LayerSketch
from stable_audio_tools.attribution.projection import BlockProjection
from stable_audio_tools.errors import UsageError
from stable_audio_tools.runtime.progress import warn


class Batch(Protocol):
    """Samples that can be counted and cut into single ones."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice) -> Any: ...


B = TypeVar("B", bound=Batch)

MeasuredPass = Callable[[B], Tensor]
"""One forward pass of a batch, measured: (B,) numbers, each depending on its own sample only."""


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
        rank: each side of a layer's gradient is projected to this width; 0 keeps gradients whole.
        seed: seed of the projections.
        param_regex: searched in parameter names; None takes every parameter of a layer kind that is handled.
        prefix: put before the names inside ``network``, so that they read as keys of the whole state dict.

    Raises:
        UsageError: nothing is selected, or ``param_regex`` names a parameter that no layer kind handles.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        rank: int = 16,
        seed: int = 0,
        param_regex: str | None = None,
        prefix: str = "",
    ) -> None:
        self.network = network
        selected, self.left_out = _select_by_module(network, param_regex, prefix)
        self.layers = [
            SKETCHES[type(module)](name, module, frozenset(parameters), rank, seed)
            for name, module, parameters in selected
        ]
        ends = torch.tensor([layer.dim for layer in self.layers]).cumsum(0).tolist()
        self.spans = {
            layer.name: slice(end - layer.dim, end) for layer, end in zip(self.layers, ends, strict=True)
        }
        self.dim: int = ends[-1]
        self._explicit = param_regex is not None
        self._called: set[str] = set()
        self._reported = False

    def __call__(self, batch: B, passes: Sequence[MeasuredPass[B]]) -> Tensor:
        device = next(self.network.parameters()).device
        features = torch.zeros(len(batch), self.dim, device=device)
        for layer in self.layers:
            layer.to(device)
        with _frozen(self.network), torch.enable_grad():
            handles = [
                layer.module.register_forward_hook(
                    self._forward_hook(layer, features[:, self.spans[layer.name]])
                )
                for layer in self.layers
            ]
            try:
                for measured in passes:
                    measured(batch).sum().backward()
            finally:
                for handle in handles:
                    handle.remove()
        self._report_silent_layers()
        return features

    def _report_silent_layers(self) -> None:
        """Layers never called: unused, or their weight is read past the module, which no hook sees."""
        if self._reported:
            return
        self._reported = True
        silent = [layer.name for layer in self.layers if layer.name not in self._called]
        if not silent:
            return
        names = ", ".join(silent[:5])
        text = f"{len(silent)} selected layers are never called, so hooks see nothing of them: {names}"
        if self._explicit:
            raise UsageError(f"{text}; narrow param_regex or use the dense mode")
        warn(f"{text}; their features are zero")

    def _forward_hook(self, layer: LayerSketch, target: Tensor) -> Callable[..., None]:
        def forward_hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            self._called.add(layer.name)
            rows = output.shape[0]
            with torch.no_grad():
                captured = layer.capture(args[0].detach()) if rows == len(target) else None

            def output_hook(gradient: Tensor) -> None:
                if captured is None:
                    raise UsageError(
                        f"layer {layer.name} sees {rows} rows for {len(target)} samples, so its gradient"
                        " cannot be told apart by sample; leave it out with param_regex"
                    )
                target.add_(layer.contribute(captured, gradient))

            # A layer with nothing trainable before it starts the graph here.
            if not output.requires_grad:
                output.requires_grad_()
            output.register_hook(output_hook)

        return forward_hook


class DenseGradients:
    """The reference: the whole gradient of one sample at a time, then one random projection of it.

    Args:
        network: where the parameters are.
        dim: length of a feature row; 0 keeps the gradient whole.
        seed: seed of the projection.
        param_regex: searched in parameter names; None takes every trainable parameter.
        prefix: put before the names inside ``network``.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        dim: int = 16384,
        seed: int = 0,
        param_regex: str | None = None,
        prefix: str = "",
    ) -> None:
        self.network = network
        self.parameters = dict(_matching(network, param_regex, prefix))
        self.left_out: list[str] = []
        size = sum(parameter.numel() for parameter in self.parameters.values())
        self.projection = BlockProjection(size, dim, "attribution-dense-projection", seed)
        self.dim = self.projection.dim

    def __call__(self, batch: B, passes: Sequence[MeasuredPass[B]]) -> Tensor:
        parameters = list(self.parameters.values())
        rows = []
        with _frozen(self.network), torch.enable_grad():
            for parameter in parameters:
                parameter.requires_grad_(True)
            for i in range(len(batch)):
                sample = batch[i : i + 1]
                row = torch.zeros(self.projection.size, device=parameters[0].device)
                for measured in passes:
                    grads = torch.autograd.grad(measured(sample).sum(), parameters, materialize_grads=True)
                    row += torch.cat([grad.flatten().float() for grad in grads])
                rows.append(row)
        return self.projection(torch.stack(rows))


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
