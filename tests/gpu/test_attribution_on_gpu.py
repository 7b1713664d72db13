"""Attribution gradients on a GPU: what the CPU says, and the same bits at every run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stable_audio_tools.attribution.gradients.numerics import exact_float32, repeatable
from stable_audio_tools.attribution.gradients.rows import HookedGradients
from stable_audio_tools.models.dit import DiffusionTransformer
from stable_audio_tools.schema.networks import DiTConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU"),
]

CONFIG = DiTConfig(
    io_channels=16,
    embed_dim=256,
    depth=3,
    num_heads=4,
    cond_token_dim=64,
    global_cond_dim=32,
    project_cond_tokens=False,
)
SIZE = 4


@pytest.fixture
def network() -> DiffusionTransformer:
    torch.manual_seed(5)
    network = DiffusionTransformer(CONFIG).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return network


@pytest.fixture
def batch() -> Tensor:
    torch.manual_seed(6)
    return torch.randn(SIZE, 16, 515)


def rows(network: DiffusionTransformer, batch: Tensor, device: str, precision: str, **options) -> Tensor:
    network.to(device)
    torch.manual_seed(7)
    tokens, total = torch.randn(1, 9, 64).to(device), torch.randn(1, 32).to(device)

    def measured(x: Tensor) -> Tensor:
        conditioning = {
            "cross_attn_cond": tokens.expand(len(x), -1, -1),
            "global_embed": total.expand(len(x), -1),
        }
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            output = network(x, torch.full((len(x),), 0.4, device=device), **conditioning)
        norm = (output.float() ** 2).flatten(1).mean(1)
        return torch.stack([norm, norm.sqrt()], dim=1)

    gradients = HookedGradients(network, rank=8, measurements=2, **options)
    with exact_float32(), repeatable(torch.device(device)):
        return gradients(batch.to(device), [measured, measured]).cpu()


def distance(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())


@pytest.mark.parametrize("compiled", [None, SIZE])
def test_float32_rows_are_those_of_the_cpu(network, batch, compiled):
    expected = rows(network, batch, "cpu", "float32")
    assert distance(rows(network, batch, "cuda", "float32", compiled_batch=compiled), expected) < 1e-5


@pytest.mark.parametrize("compiled", [None, SIZE])
def test_bfloat16_rows_are_near_those_of_float32(network, batch, compiled):
    expected = rows(network, batch, "cuda", "float32")
    assert distance(rows(network, batch, "cuda", "bfloat16", compiled_batch=compiled), expected) < 0.05


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("compiled", [None, SIZE])
def test_rows_are_the_same_bits_at_every_run(network, batch, precision, compiled):
    first = rows(network, batch, "cuda", precision, compiled_batch=compiled)
    for _ in range(3):
        assert torch.equal(rows(network, batch, "cuda", precision, compiled_batch=compiled), first)
