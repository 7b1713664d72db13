"""Hooked gradients against autograd, layer kind by layer kind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stable_audio_tools.attribution.gradients.rows import RANKS, DenseGradients, HookedGradients
from stable_audio_tools.errors import UsageError


class Mixed(nn.Module):
    """Every handled layer kind, on a sequence, on a vector, and one layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6, padding_idx=0)
        self.conv = nn.Conv1d(6, 12, 5, padding=4, dilation=2)
        self.depthwise = nn.Conv1d(12, 12, 3, stride=2, padding=1, groups=12)
        self.grouped = nn.Conv1d(12, 8, 1, groups=2, bias=False)
        self.norm = nn.LayerNorm(8)
        self.twice = nn.Linear(8, 8)
        self.vector = nn.Linear(3, 8, bias=False)
        self.head = nn.Linear(8, 4)
        self.scale = nn.Parameter(torch.full((4,), 1.5))

    def forward(self, tokens: Tensor, vector: Tensor) -> Tensor:
        x = self.conv(self.words(tokens).transpose(1, 2))
        x = self.grouped(torch.tanh(self.depthwise(x))).transpose(1, 2)
        x = self.norm(x)
        x = x + self.twice(torch.sin(self.twice(x))) * self.vector(vector)[:, None]
        return self.head(x) * self.scale


Samples = list[tuple[Tensor, Tensor]]


def samples(count: int, seed: int = 1) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randint(0, 11, (10,), generator=generator), torch.randn(3, generator=generator))
        for _ in range(count)
    ]


def passes(network: nn.Module, count: int = 2):
    """Measurements that differ by pass: the squared output norm at different input scales."""

    def measured(scale: float):
        def run(batch: Samples) -> Tensor:
            tokens, vectors = torch.stack([s[0] for s in batch]), torch.stack([s[1] for s in batch])
            return (network(tokens, vectors * scale) ** 2).flatten(1).sum(1)

        return run

    return [measured(1.0 + k) for k in range(count)]


@pytest.fixture
def network() -> Mixed:
    torch.manual_seed(0)
    return Mixed()


def autograd_gradient(network: Mixed, sample: tuple[Tensor, Tensor], names: list[str]) -> dict[str, Tensor]:
    parameters = dict(network.named_parameters())
    total = sum(run([sample]).sum() for run in passes(network))
    grads = torch.autograd.grad(total, [parameters[name] for name in names])
    return dict(zip(names, grads, strict=True))


def test_unprojected_rows_are_the_gradients_of_autograd(network):
    hooked = HookedGradients(network, rank=0)
    batch = samples(3)
    rows = hooked(batch, passes(network))
    assert hooked.left_out == ["scale"]
    for row, sample in zip(rows, batch, strict=True):
        expected = autograd_gradient(
            network, sample, [n for n, _ in network.named_parameters() if n != "scale"]
        )
        for name, span in hooked.spans.items():
            weight, bias = expected[f"{name}.weight"], expected.get(f"{name}.bias")
            if name == "words":
                matrix = weight.T
            elif name == "norm":
                matrix = torch.cat([bias, weight])
            else:
                matrix = weight.flatten(1)
                matrix = matrix if bias is None else torch.cat([matrix, bias[:, None]], dim=1)
            torch.testing.assert_close(
                row[span], matrix.flatten(), rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_projected_rows_are_the_two_sided_projection_of_the_gradients(network):
    exact, projected = HookedGradients(network, rank=0), HookedGradients(network, rank=3, seed=5)
    batch = samples(4)
    whole, small = exact(batch, passes(network)), projected(batch, passes(network))
    for full_layer, layer in zip(exact.layers, projected.layers, strict=True):
        if "in" not in layer.projections:
            continue
        left, right = layer.projections["out"], layer.projections["in"]
        gradient = whole[:, exact.spans[layer.name]].unflatten(1, (left.shape[0], right.shape[0]))
        expected = torch.einsum("or,boi,is->brs", left, gradient, right).flatten(1)
        torch.testing.assert_close(small[:, projected.spans[layer.name]], expected, rtol=1e-3, atol=1e-4)
        assert full_layer.dim >= layer.dim


def test_dense_rows_are_the_gradients_of_autograd(network):
    batch = samples(2)
    dense = DenseGradients(network, dim=0)
    rows = dense(batch, passes(network))
    names = list(dense.parameters)
    assert "scale" in names
    for row, sample in zip(rows, batch, strict=True):
        expected = torch.cat([g.flatten() for g in autograd_gradient(network, sample, names).values()])
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [HookedGradients, DenseGradients])
def test_rows_of_several_measurements_lie_beside_each_other(network, kind):
    def both(run):
        return lambda batch: torch.stack([run(batch), 3 * run(batch) ** 0.5], dim=1)

    def second(run):
        return lambda batch: 3 * run(batch) ** 0.5

    batch, runs = samples(3), passes(network)
    size = {"rank": 3} if kind is HookedGradients else {"dim": 50}
    found = kind(network, measurements=2, **size)(batch, [both(run) for run in runs])
    alone = kind(network, **size)
    expected = torch.cat([alone(batch, runs), alone(batch, [second(run) for run in runs])], dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_small_network_gets_a_higher_rank(network):
    assert {layer.rank for layer in HookedGradients(network).layers} == {RANKS[-1]}
    wide = nn.Sequential(*(nn.Linear(40, 40) for _ in range(60)))
    assert HookedGradients(wide).dim == 60 * 32 * 32
    assert HookedGradients(nn.Sequential(*wide, *wide, *wide, *wide)).dim == 240 * 16 * 16


@pytest.mark.parametrize("mode", ["hooked", "dense"])
def test_inner_products_agree_within_the_projection_bound(mode):
    """Both projections are unbiased, and spread over seeds as a JL projection of their dimension."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 30))
    batch = torch.randn(2, 5, 24)

    def run(x: Tensor) -> Tensor:
        return (network(x) ** 2).flatten(1).sum(1)

    whole = HookedGradients(network, rank=0)(batch, [run]).double()
    exact = whole[0] @ whole[1]
    scale = whole[0].norm() * whole[1].norm()
    products = []
    for seed in range(60):
        if mode == "hooked":
            rows = HookedGradients(network, rank=12, seed=seed)(batch, [run]).double()
        else:
            rows = DenseGradients(network, dim=144, seed=seed)(batch, [run]).double()
        products.append(rows[0] @ rows[1])
    errors = (torch.stack(products) - exact) / scale
    # Dense: the variance is at most 2/m. Two-sided: (1 + 2/r)^2 - 1 for the worst (rank-one) gradient.
    bound = ((1 + 2 / 12) ** 2 - 1) ** 0.5 if mode == "hooked" else (2 / 144) ** 0.5
    assert errors.std() < bound
    assert errors.mean().abs() < 3 * bound / 60**0.5


def test_rows_do_not_depend_on_the_batch(network):
    hooked = HookedGradients(network, rank=4)
    batch = samples(5)
    together = hooked(batch, passes(network))
    order = [3, 0, 4, 1, 2]
    shuffled = hooked([batch[i] for i in order], passes(network))
    alone = torch.cat([hooked([sample], passes(network)) for sample in batch])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5 * together.abs().max().item())
    torch.testing.assert_close(together[order], shuffled, rtol=1e-5, atol=1e-5 * together.abs().max().item())


def test_passes_are_summed_exactly(network):
    hooked, batch = HookedGradients(network, rank=4), samples(2)
    both = hooked(batch, passes(network, 2))
    one_by_one = sum(hooked(batch, [run]) for run in passes(network, 2))
    torch.testing.assert_close(both, one_by_one, rtol=1e-5, atol=1e-4)


def test_layer_projection_does_not_depend_on_the_selection(network):
    batch = samples(2)
    everything, head = (
        HookedGradients(network, rank=3),
        HookedGradients(network, rank=3, param_regex=r"^head\."),
    )
    assert list(head.spans) == ["head"]
    torch.testing.assert_close(
        everything(batch, passes(network))[:, everything.spans["head"]], head(batch, passes(network))
    )


def test_bias_alone_can_be_selected(network):
    hooked = HookedGradients(network, rank=0, param_regex=r"bias$")
    batch = samples(2)
    rows = hooked(batch, passes(network))
    for row, sample in zip(rows, batch, strict=True):
        expected = autograd_gradient(network, sample, [f"{name}.bias" for name in hooked.spans])
        torch.testing.assert_close(row, torch.cat(list(expected.values())), rtol=1e-4, atol=1e-5)


def test_parameters_are_left_as_they_were(network):
    network.vector.weight.requires_grad_(False)
    HookedGradients(network, rank=4)(samples(2), passes(network))
    assert not network.vector.weight.requires_grad
    assert network.head.weight.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


def test_unhandled_parameters_are_refused_by_name(network):
    with pytest.raises(UsageError, match=r"selects scale, a parameter of Mixed"):
        HookedGradients(network, param_regex="scale|head")
    with pytest.raises(UsageError, match="matches no parameter; they are called scale"):
        HookedGradients(network, param_regex="nothing here")


def test_a_layer_that_folds_the_batch_away_is_refused():
    class Folding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    network = Folding()
    with pytest.raises(UsageError, match="layer inner sees 6 rows for 2 samples"):
        HookedGradients(network)(torch.randn(2, 3, 4), [lambda x: network(x).flatten(1).sum(1)])
