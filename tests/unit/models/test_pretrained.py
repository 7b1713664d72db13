"""Published models, from a folder or from the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stable_audio_tools.errors import CheckpointError, ConfigError
from stable_audio_tools.models.checkpoints import save_checkpoint
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.pretrained import get_pretrained_model


@pytest.fixture
def folder(tiny_diffusion_config: dict[str, Any], tmp_path: Path) -> Path:
    (tmp_path / "model_config.json").write_text(json.dumps(tiny_diffusion_config))
    return tmp_path


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt"])
def test_a_folder_gives_model_and_config(
    folder: Path, tiny_diffusion_config: dict[str, Any], name: str
) -> None:
    trained = create_model_from_config(tiny_diffusion_config)
    save_checkpoint(folder / name, trained.state_dict())
    model, config = get_pretrained_model(folder)
    assert config == tiny_diffusion_config
    assert not model.training
    for key, value in trained.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)


def test_a_folder_without_its_files_is_named(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors or model\.ckpt"):
        get_pretrained_model(folder)
    (folder / "model_config.json").unlink()
    save_checkpoint(folder / "model.ckpt", {"encoder.x": torch.zeros(1)})
    with pytest.raises(ConfigError, match=r"model_config\.json: no such file"):
        get_pretrained_model(folder)


@pytest.mark.parametrize("missing", [(), ("model.safetensors",)])
def test_the_hub_is_asked_for_safetensors_first(
    folder: Path,
    tiny_diffusion_config: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    missing: tuple[str, ...],
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    weights = create_model_from_config(tiny_diffusion_config).state_dict()
    for name in {"model.safetensors", "model.ckpt"} - set(missing):
        save_checkpoint(folder / name, weights)
    asked: list[str] = []

    def fetch(repository: str, name: str) -> str:
        asked.append(f"{repository}/{name}")
        if name in missing:
            raise LocalEntryNotFoundError("not there")
        return str(folder / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    _, config = get_pretrained_model("someone/tiny-model")
    assert config == tiny_diffusion_config
    expected = ["model_config.json", "model.safetensors", "model.ckpt"][: 2 + len(missing)]
    assert asked == [f"someone/tiny-model/{name}" for name in expected]


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(repository: str, name: str) -> str:
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(CheckpointError, match="someone/tiny-model: not a folder here") as caught:
        get_pretrained_model("someone/tiny-model")
    assert "\n" not in str(caught.value)
