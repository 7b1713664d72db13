"""Every model config in the repository builds at full size, and at toy size it trains a step and is heard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from shrinking import ROOT, SHIPPED, shrink
from torch import Tensor, nn
from torch.utils.data import DataLoader

from stable_audio_tools import generate_diffusion_cond, generate_diffusion_uncond
from stable_audio_tools.models.checkpoints import load_checkpoint
from stable_audio_tools.models.factory import create_model_from_config, create_model_from_config_path
from stable_audio_tools.models.unwrap import unwrap_checkpoint
from stable_audio_tools.schema.reader import parse_model_config, read_model_config
from stable_audio_tools.training.factory import create_training_wrapper_from_config

Sizes = Mapping[str, float]
STABLE_AUDIO_2 = {"model": 1056.8, "conditioner": 0.4, "pretransform": 156.1}
DANCE_DIFFUSION = {"model": 221.4}
# Millions of parameters by part. Published: 1,056.8 M and 156.1 M of Stable Audio Open 1.0, 341 M of the
# transformer of Open Small (Novack et al. 2025), 222 M of Dance Diffusion. The others are what these give.
SIZES: dict[str, Sizes] = {
    "model_config": STABLE_AUDIO_2,
    "model_config_freeze_vae": STABLE_AUDIO_2,
    "model_config_lora": STABLE_AUDIO_2,
    "txt2audio/stable_audio_2_0": STABLE_AUDIO_2,
    "txt2audio/stable_audio_open_1_0": STABLE_AUDIO_2,
    "txt2audio/stable_audio_open_small": {"model": 340.9, "conditioner": 0.2, "pretransform": 156.1},
    "autoencoders/stable_audio_1_0_vae": {"encoder": 89.6, "decoder": 43.9},
    "autoencoders/stable_audio_2_0_vae": {"encoder": 78.0, "decoder": 78.1},
    "autoencoders/dac_2048_32_vae": {"encoder": 90.5, "decoder": 44.1},
    "autoencoders/encodec_musicgen_rvq": {"encoder": 28.8, "decoder": 24.5},
    "dance_diffusion/dance_diffusion_base": DANCE_DIFFUSION,
    "dance_diffusion/dance_diffusion_base_16k": DANCE_DIFFUSION,
    "dance_diffusion/dance_diffusion_base_44k": DANCE_DIFFUSION,
    "dance_diffusion/dance_diffusion_large": DANCE_DIFFUSION,
    "diffusion_autoencoders/seanet_32_32_diffae": {"encoder": 25.0, "decoder": 23.0, "diffusion": 54.2},
    "language_models/dac_rvq_lm": {"lm": 157.0, "pretransform": 77.7},
    "unconditional/latent_dit": {"model": 114.2, "pretransform": 156.1},
}
OPEN = "txt2audio/stable_audio_open_1_0"
PARITY = ROOT / "../shared/parity/stable_audio_open_1_0.model.json"
PROMPT = {"prompt": "calm piano", "seconds_start": 0, "seconds_total": 2}


def path_of(name: str) -> Path:
    return (SHIPPED if "/" in name else ROOT) / f"{name}.json"


@pytest.fixture
def tiny(request: pytest.FixtureRequest, tiny_t5_folder: Path) -> dict[str, Any]:
    return shrink(json.loads(path_of(request.param).read_text()), tiny_t5_folder)


def build(config: dict[str, Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_model_from_config(config)


def music(config: dict[str, Any], batch: int) -> Tensor:
    """Decaying chords ``(B, C, T)``, a little different from item to item and left to right."""
    time = torch.arange(config["sample_size"]) / config["sample_rate"]
    pitch = 110 * (1 + torch.arange(batch).view(-1, 1, 1)) + torch.arange(config["audio_channels"]).view(
        -1, 1
    )
    chord = sum(torch.sin(2 * torch.pi * pitch * harmonic * time) / harmonic for harmonic in (1, 2, 3))
    return 0.3 * chord * torch.exp(-4 * (time % 0.25))


def test_every_config_is_in_the_table() -> None:
    found = {path.relative_to(SHIPPED).with_suffix("").as_posix() for path in SHIPPED.rglob("*.json")}
    found |= {path.stem for path in ROOT.glob("model_config*.json")}
    assert found == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_it_builds_at_full_size_without_a_warning(name: str, recwarn: pytest.WarningsRecorder) -> None:
    with torch.device("meta"):
        model = create_model_from_config_path(path_of(name))
    parts = {part: sum(p.numel() for p in child.parameters()) / 1e6 for part, child in model.named_children()}
    assert {part: round(size, 1) for part, size in parts.items() if size > 0.05} == SIZES[name]
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert not [str(warning.message) for warning in recwarn if issubclass(warning.category, UserWarning)]


@pytest.mark.parametrize(
    "name", [name for name, sizes in SIZES.items() if sizes.get("pretransform") == 156.1]
)
def test_the_autoencoder_in_front_is_the_one_that_is_shipped(name: str) -> None:
    vae = json.loads(path_of("autoencoders/stable_audio_2_0_vae").read_text())
    assert json.loads(path_of(name).read_text())["model"]["pretransform"]["config"] == vae["model"]


@pytest.mark.skipif(not PARITY.is_file(), reason="the published config is not beside this checkout")
@pytest.mark.parametrize("name", [name for name in SIZES if name.startswith("model_config")] + [OPEN])
def test_stable_audio_open_is_the_published_model(name: str) -> None:
    published = json.loads(PARITY.read_text())
    shipped = json.loads(path_of(name).read_text())
    shipped["model"]["pretransform"].pop("model_half", None)  # how it computes, not what
    for key in ("model_type", "sample_size", "sample_rate", "audio_channels", "model"):
        assert shipped[key] == published[key], key


@pytest.mark.filterwarnings(
    "ignore::UserWarning:pytorch_lightning", "ignore::FutureWarning:pytorch_lightning"
)
@pytest.mark.parametrize("tiny", SIZES, indirect=True, ids=str)
def test_it_trains_one_step_whose_checkpoint_becomes_a_model(tiny: dict[str, Any], tmp_path: Path) -> None:
    model = build(tiny)
    module = create_training_wrapper_from_config(tiny, model, seed=1)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    infos = [
        {**PROMPT, "sample_id": str(item), "padding_mask": torch.ones(tiny["sample_size"])} for item in (0, 1)
    ]
    loader: Any = DataLoader([0], batch_size=1, collate_fn=lambda _: (music(tiny, 2), infos))
    trainer = pl.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(tmp_path),
    )
    trainer.fit(module, loader)
    assert trainer.global_step == 1
    after = dict(model.named_parameters())
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved
    assert not [name for name in moved if name.startswith("pretransform.")], "the codec is frozen"
    assert all(value.isfinite().all() for value in after.values())

    trainer.save_checkpoint(tmp_path / "step=1.ckpt")
    fresh = build(tiny)
    load_checkpoint(fresh, unwrap_checkpoint(tmp_path / "step=1.ckpt", None, tmp_path / "model"))
    with module.averaged() as averaged:
        trained = averaged.state_dict()
        assert all(torch.equal(value, trained[key]) for key, value in fresh.state_dict().items())


@pytest.mark.parametrize("tiny", SIZES, indirect=True, ids=str)
@torch.no_grad()
def test_it_can_be_heard(tiny: dict[str, Any]) -> None:
    model = build(tiny).eval()
    size = tiny["sample_size"]
    first, again = heard(model, tiny, seed=5), heard(model, tiny, seed=5)
    assert first.shape == (1, tiny["audio_channels"], size)
    assert first.isfinite().all()
    assert torch.equal(first, again)
    assert first.std() > 0


def heard(model: nn.Module, config: dict[str, Any], seed: int) -> Tensor:
    """One clip from whatever the model needs: a prompt, noise, or audio to go through it."""
    kind, size = config["model_type"], config["sample_size"]
    if kind == "autoencoder":
        generator = torch.Generator().manual_seed(seed)
        audio: Tensor = model.decode(model.encode(music(config, 1), generator=generator))
    elif kind == "diffusion_autoencoder":
        audio = model.reconstruct(music(config, 1), steps=2, seed=seed)
    elif kind == "lm":
        frames = size // model.pretransform.downsampling_ratio
        audio = model.generate_audio(
            batch_size=1, max_gen_len=frames, conditioning=[PROMPT], cfg_scale=2.0, seed=seed
        )
    elif kind == "diffusion_uncond":
        audio = generate_diffusion_uncond(model, steps=2, sample_size=size, seed=seed, device="cpu")
    else:
        audio = generate_diffusion_cond(
            model, steps=2, cfg_scale=3, conditioning=[PROMPT], sample_size=size, seed=seed, device="cpu"
        )
    return audio[..., :size]


@pytest.mark.parametrize("name", SIZES)
def test_demos_are_told_all_that_the_model_asks_for(name: str) -> None:
    config = read_model_config(path_of(name))
    assert config.training is not None
    demo = config.training.demo
    assert demo is not None
    conditioning = getattr(config.model, "conditioning", None)
    if conditioning is None:
        assert not demo.demo_cond
    else:
        assert len(demo.demo_cond) == demo.num_demos
        assert all(set(told) == {entry.id for entry in conditioning.configs} for told in demo.demo_cond)


@pytest.mark.parametrize("name", SIZES)
def test_what_a_run_writes_down_of_it_reads_as_the_same(name: str) -> None:
    config = read_model_config(path_of(name))
    assert parse_model_config(config.model_dump(mode="json")) == config
