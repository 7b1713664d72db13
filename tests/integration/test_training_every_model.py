"""Every type of model trains through the same run: its files, its public keys, exact resume, its demos."""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folders import load

from stable_audio_tools.audio.files import probe
from stable_audio_tools.errors import ConfigError
from stable_audio_tools.models.checkpoints import load_checkpoint
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.unwrap import unwrap_checkpoint
from stable_audio_tools.training.run import train
from stable_audio_tools.training.settings import TrainSettings

RATE, SIZE, CHANNELS = 16000, 2048, 2
OOBLECK = {"channels": 4, "c_mults": [1, 2], "strides": [4, 4]}
U_NET = {"depth": 3, "n_attn_layers": 1, "channels": [8, 8, 16], "strides": [2, 2]}
SECONDS = {"id": "seconds_total", "type": "number", "config": {"min_val": 0, "max_val": 8}}
LOSSES = {
    "discriminator": {
        "type": "encodec",
        "config": {"filters": 4, "n_ffts": [256, 64], "hop_lengths": [64, 16], "win_lengths": [256, 64]},
    },
    "spectral": {"config": {"fft_sizes": [256, 64], "hop_sizes": [64, 16], "win_lengths": [256, 64]}},
    "time": {"type": "l1", "weights": {"l1": 0.1}},
    "bottleneck": {"type": "kl", "weights": {"kl": 1e-4}},
}
ADAM = {"optimizer": {"type": "AdamW", "config": {"lr": 2e-3}}}
DECAYING = {**ADAM, "scheduler": {"type": "ExponentialLR", "config": {"gamma": 0.9}}}


def codec(bottleneck: dict[str, Any] | None = None, latents: int = 4) -> dict[str, Any]:
    """An oobleck autoencoder of ratio 16."""
    bottleneck = bottleneck or {"type": "vae"}
    encoded = latents * (2 if bottleneck["type"] == "vae" else 1)
    return {
        "encoder": {"type": "oobleck", "config": {"in_channels": CHANNELS, "latent_dim": encoded, **OOBLECK}},
        "decoder": {
            "type": "oobleck",
            "config": {"out_channels": CHANNELS, "latent_dim": latents, **OOBLECK},
        },
        "bottleneck": bottleneck,
        "latent_dim": latents,
        "downsampling_ratio": 16,
        "io_channels": CHANNELS,
    }


def top(model_type: str, model: dict[str, Any], **training: Any) -> dict[str, Any]:
    """A whole config with a demo every other step."""
    demo = {"demo_every": 2, "demo_steps": 2, "num_demos": 2, "demo_cfg_scales": [2.0]}
    return {
        "model_type": model_type,
        "sample_size": SIZE,
        "sample_rate": RATE,
        "audio_channels": CHANNELS,
        "model": copy.deepcopy(model),
        "training": {"learning_rate": 2e-3, "use_ema": True, "demo": demo, **training},
    }


def conditional(model_type: str, ids: list[str]) -> dict[str, Any]:
    beside = {"inpaint_mask": 1, "inpaint_masked_input": 4}
    dit = {"io_channels": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "global_cond_dim": 8}
    return {
        "pretransform": {"type": "autoencoder", "config": codec()},
        "conditioning": {"cond_dim": 8, "configs": [SECONDS]},
        "diffusion": {
            "type": "dit",
            "global_cond_ids": ["seconds_total"],
            "input_concat_ids": ids,
            "config": {**dit, "input_concat_dim": sum(beside[name] for name in ids)},
        },
        "io_channels": 4,
    }


RVQ = {
    "type": "dac_rvq",
    "config": {"input_dim": 4, "n_codebooks": 2, "codebook_size": 16, "codebook_dim": 4},
}
LM = {
    "pretransform": {"type": "autoencoder", "config": codec(RVQ)},
    "conditioning": {"cond_dim": 8, "configs": [SECONDS]},
    "lm": {
        "type": "continuous_transformer",
        "config": {"embed_dim": 16, "depth": 1, "dim_heads": 8, "cross_attn_cond_dim": 8},
        "cross_attention_cond_ids": ["seconds_total"],
    },
}
INPAINTED = ["inpaint_mask", "inpaint_masked_input"]
CONFIGS = {
    "autoencoder": top(
        "autoencoder",
        codec(),
        loss_configs=LOSSES,
        eval_loss_configs={"stft": {"fft_size": 256, "hop_size": 64, "win_length": 256}, "sisdr": {}},
        optimizer_configs={"autoencoder": DECAYING, "discriminator": DECAYING},
    ),
    "diffusion_uncond": top("diffusion_uncond", {"type": "DAU1d", "config": {**U_NET, "io_channels": 2}}),
    "diffusion_cond": top("diffusion_cond", conditional("diffusion_cond", [])),
    "diffusion_cond_inpaint": top("diffusion_cond_inpaint", conditional("diffusion_cond_inpaint", INPAINTED)),
    "diffusion_autoencoder": top(
        "diffusion_autoencoder",
        {
            "encoder": {"type": "oobleck", "config": {"latent_dim": 8, **OOBLECK}},
            "bottleneck": {"type": "vae"},
            "diffusion": {"type": "DAU1d", "config": {**U_NET, "io_channels": 2, "cond_dim": 4}},
            "latent_dim": 4,
            "downsampling_ratio": 16,
            "io_channels": 2,
        },
    ),
    "lm": top("lm", LM),
}
CONFIGS["diffusion_cond"]["training"]["demo"]["demo_cond"] = [{"seconds_total": 1}]
CONFIGS["lm"]["training"]["demo"]["demo_cond"] = [{"seconds_total": 1}]

PREFIXES = {  # the public ones: of the model, of its average, and what else a checkpoint holds
    "autoencoder": ("autoencoder.", "autoencoder_ema.ema_model.", "discriminator."),
    "diffusion_uncond": ("diffusion.", "diffusion_ema.ema_model.", None),
    "diffusion_cond": ("diffusion.", "diffusion_ema.ema_model.", None),
    "diffusion_cond_inpaint": ("diffusion.", "diffusion_ema.ema_model.", None),
    "diffusion_autoencoder": ("diffae.", "diffae_ema.ema_model.", None),
    "lm": ("model.", "model_ema.ema_model.", None),
}
WAVS = {
    "autoencoder": ["00_original", "00_reconstruction", "01_original", "01_reconstruction"],
    "diffusion_uncond": ["00_clip", "01_clip"],
    "diffusion_cond": ["00_cfg2", "01_cfg2"],
    "diffusion_cond_inpaint": ["00_inpainted_cfg2", "00_original", "01_inpainted_cfg2", "01_original"],
    "diffusion_autoencoder": ["00_original", "00_reconstruction", "01_original", "01_reconstruction"],
    "lm": ["00_cfg2", "01_cfg2"],
}
KINDS = list(CONFIGS)


@pytest.fixture
def settings_of(tmp_path: Path, tiny_audio_folder: Path) -> Callable[..., TrainSettings]:
    """Settings of four steps in float32 for a config, or for the one under a name; keywords replace some."""
    entry = {"id": "tiny", "path": str(tiny_audio_folder / "audio")}
    (tmp_path / "data.json").write_text(json.dumps({"dataset_type": "audio_dir", "datasets": [entry]}))

    def make(config: str | dict[str, Any], **changes: Any) -> TrainSettings:
        value = CONFIGS[config] if isinstance(config, str) else config
        (tmp_path / "model.json").write_text(json.dumps(value))
        values = {
            "model_config": str(tmp_path / "model.json"),
            "dataset_config": str(tmp_path / "data.json"),
            "val_dataset_config": str(tmp_path / "data.json"),
            "val_every": 4,
            "save_dir": str(tmp_path / "runs"),
            "batch_size": 4,
            "num_workers": 0,
            "precision": "32",
            "max_steps": 4,
            "checkpoint_every": 2,
            "log_every": 1,
            "device": "cpu",
        }
        return TrainSettings(**{**values, **changes})

    return make


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def assert_same(first: Any, second: Any, where: str = "") -> None:
    """Equal to the bit, through dicts and lists of tensors."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key, value in first.items():
            assert_same(value, second[key], f"{where}.{key}")
    elif isinstance(first, list | tuple):
        for index, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_same(one, other, f"{where}[{index}]")
    else:
        assert first == second, where


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_trains_validates_and_is_heard(kind, settings_of, tmp_path, capsys):
    run = train(settings_of(kind))
    assert "failed" not in capsys.readouterr().err
    found = rows(run)
    assert [row["step"] for row in found] == ["1", "2", "3", "4"]
    losses = [float(row["train/loss"]) for row in found if row["train/loss"]]
    assert losses
    assert all(value == value and abs(value) != float("inf") for value in losses)
    assert float(found[-1]["val/loss"]) > 0
    assert (run / "checkpoints" / "best.ckpt").is_file()
    demo = run / "demos" / "step=00000004"
    assert sorted(path.stem for path in demo.glob("*.wav")) == WAVS[kind]
    info = probe(demo / f"{WAVS[kind][0]}.wav")
    assert (info.sample_rate, info.channels, info.num_frames) == (RATE, CHANNELS, SIZE)
    assert "Step 4" in (run / "demos" / "index.html").read_text(encoding="utf-8")

    online, averaged, more = PREFIXES[kind]
    state = load(run, 4)["state_dict"]
    model = create_model_from_config(CONFIGS[kind])
    own = set(model.state_dict())
    assert {key.removeprefix(online) for key in state if key.startswith(online)} == own
    parts = tuple(prefix for prefix in (online, averaged.split(".")[0] + ".", more) if prefix)
    assert all(key.startswith(parts) for key in state)
    assert any(key.startswith(averaged) for key in state)

    unwrapped = unwrap_checkpoint(run / "checkpoints" / "step=00000004.ckpt", None, tmp_path / "model")
    report = load_checkpoint(model, unwrapped)
    assert report.loaded == len(own)


@pytest.mark.parametrize("accum_batches", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_resuming_equals_one_pass(kind, accum_batches, settings_of):
    options: dict[str, Any] = {"accum_batches": accum_batches, "val_dataset_config": None}
    config = copy.deepcopy(CONFIGS[kind])
    del config["training"]["demo"]
    whole = train(settings_of(config, name="whole", **options))
    half = train(settings_of(config, name="half", max_steps=2, **options))
    path = half / "checkpoints" / "step=00000002.ckpt"
    again = train(settings_of(config, name="again", ckpt_path=str(path), **options))
    first, second = load(whole, 4), load(again, 4)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "position"):
        assert_same(first[part], second[part], part)
    assert first["position"] == {"steps": 4, "batches": 4 * accum_batches}
    assert first["global_step"] == 4


@pytest.mark.parametrize("kind", KINDS)
def test_demos_and_validation_change_nothing_of_what_is_trained(kind, settings_of):
    config = copy.deepcopy(CONFIGS[kind])
    shown = train(settings_of(config, name="shown", val_every=3))
    del config["training"]["demo"]
    plain = train(settings_of(config, name="plain", val_dataset_config=None))
    assert_same(load(shown, 4)["state_dict"], load(plain, 4)["state_dict"])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "diffusion_cond"])
def test_a_run_without_ema_exports_what_it_trained(kind, settings_of, tmp_path, capsys):
    config = copy.deepcopy(CONFIGS[kind])
    config["training"]["use_ema"] = False
    run = train(settings_of(config, max_steps=2))
    assert "failed" not in capsys.readouterr().err, "demos are of the online weights then"
    state = load(run, 2)["state_dict"]
    path = unwrap_checkpoint(run / "checkpoints" / "step=00000002.ckpt", None, tmp_path / "model")
    exported = torch.load(path, weights_only=True)["state_dict"]
    for key, value in exported.items():
        assert torch.equal(value, state[PREFIXES[kind][0] + key])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("diffusion_cond")])
def test_adapters_are_refused_where_there_are_none(kind, settings_of, tmp_path):
    with pytest.raises(ConfigError, match=rf"model_type: adapters are for .*found '{kind}'"):
        train(settings_of(kind), lora=True)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_config_without_an_optimizer_is_refused_before_the_folder_is_made(kind, settings_of, tmp_path):
    config = copy.deepcopy(CONFIGS[kind])
    del config["training"]["learning_rate"]
    config["training"].pop("optimizer_configs", None)
    with pytest.raises(ConfigError, match="no optimizer: give optimizer_configs"):
        train(settings_of(config))
    assert not (tmp_path / "runs").exists()


def test_inpainting_asked_for_without_its_inputs_is_refused(settings_of):
    config = copy.deepcopy(CONFIGS["diffusion_cond"])
    config["training"]["inpainting"] = {}
    with pytest.raises(ConfigError, match="inpaint_mask and inpaint_masked_input not found"):
        train(settings_of(config))


def test_a_pretransform_of_a_trained_autoencoder_is_loaded(settings_of, tmp_path):
    first = train(settings_of("autoencoder", max_steps=2))
    vae = unwrap_checkpoint(first / "checkpoints" / "step=00000002.ckpt", None, tmp_path / "vae")
    run = train(settings_of("diffusion_cond", name="latent", max_steps=1, pretransform_ckpt_path=str(vae)))
    state, wanted = load(run, 1)["state_dict"], torch.load(vae, weights_only=True)["state_dict"]
    for key, value in wanted.items():
        assert torch.equal(state[f"diffusion.pretransform.model.{key}"], value)
