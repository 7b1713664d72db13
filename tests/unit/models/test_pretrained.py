"""Published models, from a folder or from the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from stable_audio_tools.errors import CheckpointError, ConfigError
from stable_audio_tools.models.checkpoints import save_checkpoint
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.pretrained import find_pretrained, from_pretrained, get_pretrained_model


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
    model, config = from_pretrained(folder)
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


class Hub:
    """The hub as its client shows it: one repository of files, each with what asking for it raises."""

    def __init__(self, folder: Path, raises: dict[str, Exception] | None = None) -> None:
        self.folder, self.raises = folder, raises or {}
        self.asked: list[str] = []
        self.reachable = True

    def metadata(self, url: str, **_: Any) -> None:
        if not self.reachable:
            raise RuntimeError("httpx.ConnectError, or requests.ConnectionError in older clients")
        error = self.raises.get(url.rsplit("/", 1)[-1])
        if error is not None:
            raise error

    def fetch(self, repository: str, name: str, local_files_only: bool = False) -> str:
        self.asked.append(f"{repository}/{name}{' as fetched before' if local_files_only else ''}")
        if name in self.raises:
            raise self.raises[name]
        if not (self.folder / name).is_file():
            raise (LocalEntryNotFoundError if local_files_only else EntryNotFoundError)("not there")
        return str(self.folder / name)


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    import huggingface_hub

    hub = Hub(folder)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.fetch)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", hub.metadata)
    return hub


def refused(name: str = "someone/tiny-model") -> str:
    """The one line that the user sees."""
    with pytest.raises(CheckpointError) as caught:
        find_pretrained(name)
    message = str(caught.value)
    assert message.startswith(f"{name}: ")
    assert "\n" not in message
    return message


def answer(status: int) -> Any:
    """What the client keeps of an answer of the hub."""
    from types import SimpleNamespace

    return SimpleNamespace(status_code=status, headers={}, request=None)


@pytest.mark.parametrize("missing", [(), ("model.safetensors",)])
@pytest.mark.parametrize("reachable", [True, False])
def test_safetensors_are_asked_for_first_and_what_was_fetched_serves_offline(
    hub: Hub, tiny_diffusion_config: dict[str, Any], missing: tuple[str, ...], reachable: bool
) -> None:
    weights = create_model_from_config(tiny_diffusion_config).state_dict()
    for name in {"model.safetensors", "model.ckpt"} - set(missing):
        save_checkpoint(hub.folder / name, weights)
    hub.reachable = reachable
    _, config = get_pretrained_model("someone/tiny-model")
    assert config == tiny_diffusion_config
    how = "" if reachable else " as fetched before"
    expected = ["model_config.json", "model.safetensors", "model.ckpt"][: 2 + len(missing)]
    assert hub.asked == [f"someone/tiny-model/{name}{how}" for name in expected]


def test_a_gated_model_says_where_to_accept_its_licence(hub: Hub) -> None:
    hub.raises = {"model_config.json": GatedRepoError("403\nsecond line", response=answer(403))}
    message = refused()
    assert "https://huggingface.co/someone/tiny-model" in message
    assert "hf auth login" in message


def test_a_model_that_is_not_there_is_no_folder_either(hub: Hub) -> None:
    hub.raises = {"model_config.json": RepositoryNotFoundError("404\nsecond line", response=answer(404))}
    assert "neither a folder here nor a repository" in refused()


def test_a_repository_of_something_else_is_named(hub: Hub) -> None:
    (hub.folder / "model_config.json").unlink()
    assert "has no model_config.json" in refused()


@pytest.mark.parametrize("reachable", [True, False])
def test_a_repository_without_weights_is_named(hub: Hub, reachable: bool) -> None:
    hub.reachable = reachable
    message = refused()
    assert "neither of model.safetensors and model.ckpt" in message
    assert ("offline" in message) is not reachable


def test_a_name_that_was_never_fetched_fails_offline_at_once(hub: Hub) -> None:
    (hub.folder / "model_config.json").unlink()
    hub.reachable = False
    assert "the Hugging Face hub cannot be reached" in refused()
    assert hub.asked == ["someone/tiny-model/model_config.json as fetched before"]


@pytest.mark.parametrize("name", ["a/b/c", "some one/model", "../elsewhere"])
def test_what_cannot_be_a_name_is_not_asked_for(hub: Hub, name: str) -> None:
    assert "not a folder here" in refused(name)
    assert not hub.asked


def test_a_broken_download_is_one_line(hub: Hub) -> None:
    hub.raises = {"model.safetensors": OSError("No space left\non device")}
    assert "No space left; give a folder" in refused()


def test_nobody_waits_for_a_hub_that_is_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The real client against an address where nobody listens: it would ask six times over half a minute."""
    import time

    from huggingface_hub import constants

    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert "cannot be reached" in refused("someone/never-fetched")
    assert not waits
    assert not caplog.records
