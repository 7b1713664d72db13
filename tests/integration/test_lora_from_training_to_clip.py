"""Adapters, as the user has them: trained with ``train_lora.py``, put on the base, or merged into it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from workshop import Workshop, run_sat

from stable_audio_tools.audio.files import read_audio
from stable_audio_tools.data.sidecars import read_sidecar
from stable_audio_tools.models.checkpoints import read_state_dict
from stable_audio_tools.runtime.files import sha256_file

REPOSITORY = Path(__file__).parents[2]
LORA = {"component_whitelist": ["transformer"], "rank": 4, "alpha": 4, "lr": 0.1}


@dataclass(frozen=True)
class LoraRun:
    """The run folder of three steps, its last adapter, and the config that they were trained with."""

    folder: Path
    adapter: Path
    model_config: str


@pytest.fixture(scope="module")
def lora_run(shop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> LoraRun:
    model_config = shop.config("lora.json", lambda config: config.update(lora=LORA))
    save_dir = tmp_path_factory.mktemp("lora")
    _, *flags = shop.train(model_config=model_config, max_steps="3", name="tiny", save_dir=str(save_dir))
    command = [sys.executable, str(REPOSITORY / "train_lora.py"), *flags, "--checkpoint-every", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (folder,) = (save_dir / "tiny").iterdir()
    return LoraRun(folder, folder / "checkpoints" / "step=00000003.adapter", model_config)


def clip(shop: Workshop, folder: Path, **changes: str) -> torch.Tensor:
    """The clip that ``sat generate`` writes into ``folder``."""
    assert run_sat(shop.generate(output_dir=str(folder), **changes)) == 0
    (path,) = folder.glob("*.wav")
    return read_audio(path)[0]


def test_an_adapter_folder_lies_beside_every_checkpoint(shop: Workshop, lora_run: LoraRun) -> None:
    names = sorted(path.name for path in (lora_run.folder / "checkpoints").iterdir())
    assert names == [f"step=0000000{step}.{kind}" for step in (2, 3) for kind in ("adapter", "ckpt")]
    weights = load_file(lora_run.adapter / "adapter_model.safetensors")
    assert all(".lora_" in name for name in weights)
    assert all(bool(value.isfinite().all()) for value in weights.values())
    assert all(value.abs().max() > 0 for name, value in weights.items() if ".lora_B" in name)
    config = json.loads((lora_run.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["lora_alpha"]) == (4, 4)
    assert sha256_file(shop / "base.ckpt") in json.dumps(config), "the base it belongs to"


def test_the_adapter_changes_the_clip_and_the_sidecar_names_it(
    shop: Workshop, lora_run: LoraRun, tmp_path: Path
) -> None:
    without = clip(shop, tmp_path / "without")
    adapted = clip(shop, tmp_path / "with", lora_ckpt_path=str(lora_run.adapter))
    assert without.shape == adapted.shape
    assert (without - adapted).abs().max() > 0.05
    plain, named = (read_sidecar(next((tmp_path / name).glob("*.wav"))) for name in ("without", "with"))
    assert plain is not None
    assert named is not None
    assert plain.seed == named.seed
    assert str(lora_run.adapter) in str(named.checkpoint)
    assert plain.model_sha256 != named.model_sha256


def test_the_merged_model_makes_the_clip_of_base_and_adapter(
    shop: Workshop, lora_run: LoraRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    merge = ["--ckpt-path", shop / "base.ckpt", "--lora-ckpt-path", str(lora_run.adapter), "--name", "merged"]
    assert run_sat(["unwrap", "--model-config", shop / "model.json", *merge]) == 0
    base, merged = read_state_dict(shop / "base.ckpt"), read_state_dict("merged.ckpt")
    assert merged.keys() == base.keys(), "the public names, with no trace of adapters"
    adapted = clip(shop, tmp_path / "adapter", lora_ckpt_path=str(lora_run.adapter))
    alone = clip(shop, tmp_path / "merged", ckpt_path="merged.ckpt")
    torch.testing.assert_close(adapted, alone, atol=1e-3, rtol=0)


def test_strengths_and_several_adapters_from_the_command_line(
    shop: Workshop, lora_run: LoraRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = load_file(lora_run.adapter / "adapter_model.safetensors")
    loraw = {}
    for key, value in weights.items():
        path, _, name = key.removeprefix("base_model.model.").partition(".lora_")
        part = {"A.weight": "lora_down", "B.weight": "lora_up"}[name]
        loraw[f"{path.replace('.', '/')}/{part}.weight"] = value
    torch.save(loraw, "tuned.ckpt")
    config = {"model_config": lora_run.model_config}
    plain = clip(shop, tmp_path / "plain")
    whole = clip(shop, tmp_path / "whole", lora_ckpt_path=str(lora_run.adapter))
    off = clip(shop, tmp_path / "off", lora_ckpt_path=f"{lora_run.adapter}:0")
    assert torch.equal(off, plain)
    halves = ["--lora-ckpt-path", f"{lora_run.adapter}:0.5", "--lora-ckpt-path", "tuned.ckpt:0.5"]
    assert run_sat([*shop.generate(output_dir="both", **config), *halves]) == 0
    (made,) = Path("both").glob("*.wav")
    torch.testing.assert_close(read_audio(made)[0], whole, atol=1e-3, rtol=0)
    sidecar = read_sidecar(made)
    assert sidecar is not None
    assert str(sidecar.checkpoint).endswith(f" + {lora_run.adapter}:0.5 + tuned.ckpt:0.5")
    merge = ["unwrap", "--ckpt-path", shop / "base.ckpt", "--model-config", lora_run.model_config]
    assert run_sat([*merge, *halves, "--name", "merged"]) == 0
    torch.testing.assert_close(clip(shop, tmp_path / "m", ckpt_path="merged.ckpt"), whole, atol=1e-3, rtol=0)


def test_training_goes_on_from_an_adapter(shop: Workshop, lora_run: LoraRun, tmp_path: Path) -> None:
    command = shop.train("train-lora", model_config=lora_run.model_config, save_dir=str(tmp_path))
    assert run_sat([*command, "--lora-ckpt-path", str(lora_run.adapter)]) == 0
    (longer,) = tmp_path.glob("run/*/checkpoints/*.adapter")
    before, after = (load_file(path / "adapter_model.safetensors") for path in (lora_run.adapter, longer))
    assert before.keys() == after.keys()
    distance, length = (
        sum(float((after[name] - sign * before[name]).square().sum()) for name in before) for sign in (1, 0)
    )
    assert 0 < distance < 0.1 * length, "a step away from where it started"


def test_clips_are_attributed_through_the_adapter(shop: Workshop, lora_run: LoraRun, tmp_path: Path) -> None:
    command = shop.attribute(output_dir=str(tmp_path), lora_ckpt_path=str(lora_run.adapter))
    assert run_sat(command) == 0
    rows = (tmp_path / "ranking.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + 8
