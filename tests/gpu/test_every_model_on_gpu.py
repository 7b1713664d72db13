"""Every shipped config, at toy size, makes on a GPU what it makes on a CPU, and trains there."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from shrinking import SHIPPED, shrink
from torch import Tensor
from torch.utils.data import DataLoader

from stable_audio_tools import generate_diffusion_cond, generate_diffusion_uncond
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.runtime.device import resolve_device
from stable_audio_tools.training.factory import create_training_wrapper_from_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU"),
    pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning", "ignore::FutureWarning"),
]
NAMES = sorted(path.relative_to(SHIPPED).with_suffix("").as_posix() for path in SHIPPED.rglob("*.json"))
PROMPT = {"prompt": "calm piano", "seconds_start": 0, "seconds_total": 2}


@pytest.fixture(autouse=True)
def whole_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TF32, which cuDNN uses for convolutions by default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def tiny(request: pytest.FixtureRequest, tiny_t5_folder: Path) -> dict[str, Any]:
    return shrink(json.loads((SHIPPED / f"{request.param}.json").read_text()), tiny_t5_folder)


def build(config: dict[str, Any]) -> Any:
    """With weights that let every path through, which fresh ones do not."""
    torch.manual_seed(0)
    model = create_model_from_config(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and not parameter.any():
            parameter.data = torch.randn_like(parameter) / math.sqrt(parameter[0].numel())
        assert parameter.isfinite().all(), name
    return model


def music(config: dict[str, Any], batch: int) -> Tensor:
    time = torch.arange(config["sample_size"]) / config["sample_rate"]
    pitch = 110 * (1 + torch.arange(batch * config["audio_channels"])).view(batch, -1, 1)
    return 0.3 * torch.sin(2 * torch.pi * pitch * time)


@torch.no_grad()
def made(model: Any, config: dict[str, Any], device: str) -> Tensor:
    """What the model makes of a prompt, of noise or of audio."""
    kind, size = config["model_type"], config["sample_size"]
    audio = music(config, 2).to(device)
    common = {"steps": 3, "batch_size": 2, "sample_size": size, "device": device, "return_latents": True}
    if kind == "autoencoder":
        generators = [torch.Generator().manual_seed(i) for i in range(2)]
        return model.decode(model.encode(audio, generator=generators))
    if kind == "diffusion_autoencoder":
        return model.reconstruct(audio, steps=2, seed=3)
    if kind == "lm":
        codes = torch.arange(2 * model.num_quantizers * 9).view(2, -1, 9).to(device) % model.codebook_size
        return model.compute_logits(codes, model.conditioner([PROMPT] * 2, device)).logits.nan_to_num()
    # The starting noise is that of the device; init audio at almost no noise leaves little of it.
    init = {"init_audio": (config["sample_rate"], audio.cpu())}
    noise = torch.randn(2, model.io_channels, 64, generator=torch.Generator().manual_seed(1)).to(device)
    time = torch.tensor([0.3, 0.8], device=device)
    if kind == "diffusion_uncond":
        assert generate_diffusion_uncond(model, seed=1, **init, **common).isfinite().all()
        return model.model(noise, time)
    clip = generate_diffusion_cond(model, seed=1, cfg_scale=2, conditioning=PROMPT, **init, **common)
    assert clip.isfinite().all()
    inputs = model.get_conditioning_inputs(model.conditioner([PROMPT] * 2, device))
    return model.model(noise, time, **inputs, cfg_scale=2)


@pytest.mark.parametrize("tiny", NAMES, indirect=True, ids=str)
def test_it_makes_the_same(tiny: dict[str, Any]) -> None:
    model = build(tiny)
    expected = made(model, tiny, "cpu")
    found = made(model.to("cuda"), tiny, "cuda").cpu()
    # A text encoder computes in float16 on a GPU.
    tolerance = 3e-2 if "t5" in json.dumps(tiny) else 1e-3
    assert (found - expected).abs().max() <= tolerance * expected.abs().max().clamp_min(1)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("tiny", NAMES, indirect=True, ids=str)
def test_it_trains(tiny: dict[str, Any], precision: Any, tmp_path: Path) -> None:
    model = build(tiny)
    module = create_training_wrapper_from_config(tiny, model, seed=1)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    infos = [
        {**PROMPT, "sample_id": str(item), "padding_mask": torch.ones(tiny["sample_size"])} for item in (0, 1)
    ]
    # In float16 the first steps are left out, until the scale of the loss is low enough.
    steps = 24 if precision == "16-mixed" else 3
    loader: Any = DataLoader(list(range(steps)), batch_size=1, collate_fn=lambda _: (music(tiny, 2), infos))
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="gpu",
        devices=[resolve_device("cuda").index or 0],
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(tmp_path),
    )
    trainer.fit(module, loader)
    after = {name: value.detach().cpu() for name, value in model.named_parameters()}
    assert any(not torch.equal(value, after[name]) for name, value in before.items())
    assert all(value.isfinite().all() for value in after.values())
