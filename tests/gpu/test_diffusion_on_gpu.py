"""The diffusion room gives the same clips on a GPU as on a CPU."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from stable_audio_tools.diffusion.noise import PerClipNoise
from stable_audio_tools.diffusion.samplers import SAMPLERS, sample
from stable_audio_tools.models.dit import DiffusionTransformer
from stable_audio_tools.schema.networks import DiTConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU"),
]


@pytest.fixture(autouse=True)
def whole_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TF32, which cuDNN uses for convolutions by default: with it an H200 was 0.008 off.

    Products of matrices are whole float32 unless asked otherwise.
    """
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert torch.get_float32_matmul_precision() == "highest"


SAMPLER_NAMES = [(family, name) for family, samplers in SAMPLERS.items() for name in samplers]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"global_cond_type": "adaLN", "num_memory_tokens": 4, "attn_kwargs": {"qk_norm": "ln"}},
    {"attn_kwargs": {"differential": True, "qk_norm": "dyt"}, "sliding_window": (8, 8), "conformer": True},
    {"patch_size": 2, "causal": True, "layer_scale": True},
]


def network(objective: str = "v", **options: Any) -> DiffusionTransformer:
    shape = {"io_channels": 4, "embed_dim": 128, "depth": 2, "num_heads": 2, "cond_token_dim": 64}
    model = DiffusionTransformer(DiTConfig(**shape, **{"project_cond_tokens": False, **options}), objective)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter.shape[-1])
    return model.eval().requires_grad_(False)


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("options", OPTIONS)
def test_the_network_agrees_with_the_cpu(options: dict[str, Any]) -> None:
    model = network(**options)
    inputs = {"x": randn(2, 4, 32), "t": torch.tensor([0.2, 0.7]), "cross_attn_cond": randn(2, 5, 64)}
    expected = model(**inputs, cfg_scale=3.0)
    on_gpu = {key: value.cuda() for key, value in inputs.items()}
    found = model.cuda()(**on_gpu, cfg_scale=3.0)
    torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=1e-4)
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cuda", dtype):
            assert torch.isfinite(model(**on_gpu, cfg_scale=3.0)).all()
        half = model.to(dtype)(**on_gpu, cfg_scale=3.0)
        assert half.dtype == dtype
        assert float((half.float().cpu() - expected).std()) < 0.1 * float(expected.std())
        model.float()


@pytest.mark.parametrize(("family", "name"), SAMPLER_NAMES)
def test_samplers_agree_with_the_cpu(family: str, name: str) -> None:
    objective = "v" if family == "v" else "rectified_flow"

    def smooth(x: Tensor, t: Tensor, return_info: bool = False) -> Any:
        answer = torch.tanh(x) * t.view(-1, 1, 1)
        return (answer, {}) if return_info else answer

    def run(device: str) -> Tensor:
        source = PerClipNoise([5, 6])
        start = source.initial((4, 64)).to(device)
        options = {"objective": objective, "sampler": name, "steps": 6, "noise_source": source}
        return sample(smooth, start, init_data=start * 0.1, sigma_max=5.0, **options).cpu()

    torch.testing.assert_close(run("cuda"), run("cpu"), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["dpmpp-3m-sde", "v-ddim"])
def test_noise_of_the_global_generator_stays_on_the_gpu(name: str) -> None:
    start = torch.randn(2, 4, 64, device="cuda")
    found = sample(
        network().cuda(), start, sampler=name, steps=4, cross_attn_cond=randn(2, 5, 64).cuda(), cfg_scale=3.0
    )
    assert found.device.type == "cuda"
    assert torch.isfinite(found).all()
