"""``sat generate`` from each place a model can lie in, and ``sat unwrap`` with an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from stable_audio_tools.cli.main import main
from stable_audio_tools.models.adapters.lora import adapted_layers, apply_lora
from stable_audio_tools.models.adapters.peft_folder import save_adapter
from stable_audio_tools.models.checkpoints import model_sha256, save_checkpoint
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.schema.training import LoraConfig

FAST = ["--steps", "2", "--cfg-scale", "2", "--seconds", "0.25", "--device", "cpu"]


@pytest.fixture
def folder(tiny_diffusion_config: dict[str, Any], tmp_path: Path) -> Path:
    """A model as it is published, a wrapped one with the same weights, and an adapter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = create_model_from_config(tiny_diffusion_config)
        for parameter in model.model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    root = tmp_path / "model"
    root.mkdir()
    (root / "model_config.json").write_text(json.dumps(tiny_diffusion_config))
    state = model.state_dict()
    save_checkpoint(root / "model.ckpt", state, tiny_diffusion_config)
    save_checkpoint(root / "wrapped.ckpt", {f"diffusion.{key}": value for key, value in state.items()})
    apply_lora(model, LoraConfig(component_whitelist=["transformer"], rank=2))
    for layer in adapted_layers(model).values():
        for weights in layer.lora_B.parameters():
            torch.nn.init.constant_(weights, 0.1)
    save_adapter(model, root / "adapter", model_sha256(root / "model.ckpt"))
    return root


def sat(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def clip(folder: Path, name: str, *model: object) -> tuple[Any, dict[str, Any]]:
    output = folder.parent / name
    assert sat("generate", *model, "--prompt", "calm piano", *FAST, "--output-dir", output) == 0
    [audio], [sidecar] = output.glob("*.wav"), output.glob("*.json")
    return soundfile.read(audio)[0], json.loads(sidecar.read_text())


def test_the_same_weights_from_three_places_make_the_same_clip(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ("--model-config", folder / "model_config.json", "--ckpt-path")
    plain, sidecar = clip(folder, "plain", *config, folder / "model.ckpt")
    assert str(folder.parent / "plain") in capsys.readouterr().out
    wrapped, _ = clip(folder, "wrapped", *config, folder / "wrapped.ckpt")
    assert "wrapped training checkpoint" in capsys.readouterr().err
    named, _ = clip(folder, "named", "--pretrained-name", folder)
    assert plain.shape == (4000, 2)
    assert abs(plain).max() > 0.9  # normalised, and not silent
    assert (plain == wrapped).all()
    assert (plain == named).all()
    assert sidecar["checkpoint"] == str(folder / "model.ckpt")
    assert sidecar["model_sha256"] == model_sha256(folder / "model.ckpt")


def test_an_adapter_on_top_sounds_as_when_it_is_merged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    base, plain = clip(folder, "base", "--pretrained-name", folder)
    tuned, sidecar = clip(folder, "tuned", "--pretrained-name", folder, "--lora-ckpt-path", "adapter")
    assert abs(base - tuned).max() > 0.05
    assert sidecar["model_sha256"] != plain["model_sha256"]
    assert sidecar["checkpoint"].endswith(" + adapter")
    assert sat("unwrap", "--ckpt-path", "model.ckpt", "--lora-ckpt-path", "adapter", "--name", "merged") == 0
    merged, _ = clip(folder, "m", "--model-config", "model_config.json", "--ckpt-path", "merged.ckpt")
    assert abs(merged - tuned).max() < 2e-3


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--prompt", "x"], "give --model-config with --ckpt-path, or --pretrained-name"),
        (["--prompt", "x", "--pretrained-name", ".", "--ckpt-path", "y"], "--pretrained-name alone"),
        (["--pretrained-name", "."], "give --prompt"),
        (["--pretrained-name", ".", "--prompts-file", "absent.txt"], "absent.txt: no such file"),
        (
            ["--pretrained-name", ".", "--prompt", "x", "--num-clips", "2"],
            "--num-clips: this model takes prompts",
        ),
        (["--pretrained-name", ".", "--prompt", "x", "--format", "mp3"], "expected one of wav, flac, ogg"),
        (["--pretrained-name", ".", "--prompt", "x", "--lora-ckpt-path", "absent"], "absent"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(folder)
    assert sat("generate", *arguments, "--output-dir", "out", "--device", "cpu") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert complaint in line
    assert not (folder / "out").exists()
