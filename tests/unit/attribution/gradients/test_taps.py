"""Compiled blocks with taps against hooks, which are the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stable_audio_tools.attribution.gradients.rows import HookedGradients
from stable_audio_tools.models.dit import DiffusionTransformer
from stable_audio_tools.nn import attention, feedforward
from stable_audio_tools.schema.networks import DiTConfig

PLAIN: dict[str, Any] = {
    "io_channels": 4,
    "embed_dim": 32,
    "depth": 3,
    "num_heads": 4,
    "cond_token_dim": 16,
    "global_cond_dim": 8,
    "project_cond_tokens": False,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "open-1.0": {},
    "adaLN": {"global_cond_type": "adaLN"},
    "layer norms of queries, with bias": {"attn_kwargs": {"qk_norm": "ln"}},
    "RMS norms, differential": {
        "norm_type": "rms_norm",
        "attn_kwargs": {"qk_norm": "rms", "differential": True},
    },
}


class Latents:
    def __init__(self, x: Tensor, t: Tensor, tokens: Tensor, total: Tensor) -> None:
        self.parts = x, t, tokens, total

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, index: slice) -> Latents:
        return Latents(*(part[index] for part in self.parts))


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def build(**options: Any) -> tuple[DiffusionTransformer, Latents]:
    torch.manual_seed(3)
    network = DiffusionTransformer(DiTConfig(**{**PLAIN, **options})).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    inputs = torch.randn(3, 4, 10), torch.rand(3), torch.randn(3, 5, 16), torch.randn(3, 8)
    return network, Latents(*inputs)


def passes(network: DiffusionTransformer, precision: str = "float32"):
    def measured(scale: float):
        def run(batch: Latents) -> Tensor:
            x, t, tokens, total = batch.parts
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                output = network(x, t * scale, cross_attn_cond=tokens, global_embed=total)
            return (output.float() ** 2).flatten(1).mean(1)

        return run

    return [measured(1.0), measured(0.5)]


def assert_same(found: Tensor, expected: Tensor, spans: dict[str, slice], tolerance: float = 1e-5) -> None:
    for name, span in spans.items():
        scale = expected[:, span].norm(dim=1).clamp(min=1e-12)
        assert ((found - expected)[:, span].norm(dim=1) / scale).max() < tolerance, name


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("rank", [0, 4])
def test_taps_give_the_rows_of_hooks(variant, rank):
    network, batch = build(**VARIANTS[variant])
    hooked = HookedGradients(network, rank=rank)
    tapped = HookedGradients(network, rank=rank, compiled_batch=3, backend="aot_eager")
    assert len(tapped._blocks.blocks) == 3
    assert len(tapped._blocks.layers) > len(tapped.layers) / 2
    rows = tapped(batch, passes(network))
    assert_same(rows, hooked(batch, passes(network)), hooked.spans)
    assert torch.equal(tapped(batch, passes(network)), rows)


@pytest.mark.parametrize(("apart", "tolerance"), [(False, 1e-5), (True, 0.02)])
def test_taps_give_the_rows_of_hooks_under_autocast(monkeypatch, apart, tolerance):
    """Parts of one projection, made apart, are rounded apart; all else is as it is with hooks."""
    for module in () if apart else (attention, feedforward):
        monkeypatch.setattr(module, "linear_parts", lambda linear, x, count: linear(x).chunk(count, -1))
    network, batch = build()
    hooked = HookedGradients(network, rank=4)
    tapped = HookedGradients(network, rank=4, compiled_batch=3, backend="aot_eager")
    expected, found = (g(batch, passes(network, "bfloat16")) for g in (hooked, tapped))
    assert_same(found, expected, hooked.spans, tolerance)
    exact = hooked(batch, passes(network))
    assert ((expected - exact).norm() / exact.norm()) < 0.1


def test_all_blocks_share_one_compiled_graph():
    network, batch = build(depth=5)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    tapped = HookedGradients(network, rank=4, compiled_batch=3, backend=backend)
    for _ in range(2):
        tapped(batch, passes(network))
    assert len(graphs) == 1


def test_other_batch_sizes_run_as_they_are_and_the_network_is_left_as_it_was():
    network, batch = build()
    kinds = [type(module) for module in network.modules()]
    attributes = [set(module.__dict__) for module in network.modules()]
    tapped = HookedGradients(network, rank=4, compiled_batch=3, backend="aot_eager")
    whole = tapped(batch, passes(network))
    assert_same(tapped(batch[:2], passes(network)), whole[:2], tapped.spans)
    assert [type(module) for module in network.modules()] == kinds
    assert [set(module.__dict__) for module in network.modules()] == attributes
    assert all(module._compiled_call_impl is None for module in network.modules())


def test_a_network_that_cannot_be_compiled_runs_without(capsys):
    network, batch = build()

    def broken(graph, inputs):
        raise RuntimeError("no compiler on this machine")

    tapped = HookedGradients(network, rank=4, compiled_batch=3, backend=broken)
    expected = HookedGradients(network, rank=4)(batch, passes(network))
    assert torch.equal(tapped(batch, passes(network)), expected)
    assert "cannot be compiled here, going on without" in capsys.readouterr().err
    assert torch.equal(tapped(batch, passes(network)), expected)


def test_selected_layers_outside_and_inside_blocks_go_together():
    network, batch = build()
    regex = r"layers\.1\.(ff|self_attn)\.|to_cond_embed|preprocess_conv"
    hooked = HookedGradients(network, rank=4, param_regex=regex)
    tapped = HookedGradients(network, rank=4, param_regex=regex, compiled_batch=3, backend="aot_eager")
    assert 0 < len(tapped._blocks.layers) < len(tapped.layers)
    assert_same(tapped(batch, passes(network)), hooked(batch, passes(network)), hooked.spans)


def both(run):
    def numbers(batch):
        norm = run(batch)
        return torch.stack([norm, norm**0.5], dim=1)

    return numbers


def test_several_measurements_go_back_through_one_compiled_pass():
    network, batch = build()
    runs = [both(run) for run in passes(network)]
    hooked = HookedGradients(network, rank=4, measurements=2)
    tapped = HookedGradients(network, rank=4, measurements=2, compiled_batch=3, backend="aot_eager")
    expected, found = hooked(batch, runs), tapped(batch, runs)
    assert tapped._blocks is not None
    for one, other in zip(found.chunk(2, dim=1), expected.chunk(2, dim=1), strict=True):
        assert_same(one, other, hooked.spans)


@pytest.mark.parametrize("measurements", [1, 2])
def test_only_a_single_backward_pass_may_reuse_memory(measurements):
    network, batch = build()
    may_reuse = []

    def backend(graph, inputs):
        may_reuse.append(torch._functorch.config.donated_buffer)
        return graph.forward

    runs = [run if measurements == 1 else both(run) for run in passes(network)]
    HookedGradients(network, rank=4, measurements=measurements, compiled_batch=3, backend=backend)(
        batch, runs
    )
    assert may_reuse == [measurements == 1]
