"""Checkpoints: every kind is recognised, loaded whole or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from stable_audio_tools.errors import CheckpointError, UsageError
from stable_audio_tools.models.checkpoints import (
    Kind,
    checkpoint_kind,
    load_checkpoint,
    load_pretransform,
    model_sha256,
    read_checkpoint,
    read_state_dict,
    save_checkpoint,
    unwrap_state_dict,
)
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.unwrap import unwrap_checkpoint
from stable_audio_tools.models.utils import (
    copy_state_dict,
    load_ckpt_state_dict,
    remove_weight_norm_from_model,
)

State = dict[str, Tensor]


def build(config: dict[str, Any], seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create_model_from_config(config).eval().requires_grad_(False)


def autoencoder_of(config: dict[str, Any]) -> dict[str, Any]:
    top = {key: config[key] for key in ("sample_size", "sample_rate", "audio_channels")}
    return {"model_type": "autoencoder", "model": config["model"]["pretransform"]["config"], **top}


def wrapped(model: nn.Module, name: str = "diffusion", ema: State | None = None) -> State:
    """What a training run stores: the model under ``name``, an average of the network beside it."""
    state = {f"{name}.{key}": value.clone() for key, value in model.state_dict().items()}
    if ema is not None:
        state.update({f"{name}_ema.ema_model.{key}": value for key, value in ema.items()})
        state[f"{name}_ema.initted"] = torch.tensor(True)
        state[f"{name}_ema.step"] = torch.tensor(3)
    return state


def same(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.fixture
def config(tiny_diffusion_config: dict[str, Any]) -> dict[str, Any]:
    return tiny_diffusion_config


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_saved_model_comes_back_bit_for_bit(config: dict[str, Any], tmp_path: Path, suffix: str) -> None:
    trained, fresh = build(config, 1), build(config, 2)
    path = save_checkpoint(tmp_path / f"model{suffix}", trained.state_dict(), config)
    report = load_checkpoint(fresh, path)
    assert same(fresh.state_dict(), trained.state_dict())
    assert (report.kind, report.weights, report.loaded) == (
        Kind.DIFFUSION,
        "stored",
        len(trained.state_dict()),
    )
    assert read_checkpoint(path).model_config == config
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_safetensors_metadata_holds_the_config(config: dict[str, Any], tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "m.safetensors", build(config).state_dict(), config)
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["model_config"]) == config


def test_tied_tensors_can_be_saved_as_safetensors(tmp_path: Path) -> None:
    weight = torch.arange(6.0).view(2, 3)
    state = {"encoder.a": weight, "encoder.b": weight, "encoder.c": weight.T}
    path = save_checkpoint(tmp_path / "tied.safetensors", state)
    assert same(read_state_dict(path), state)


def test_kinds_are_told_from_keys(config: dict[str, Any]) -> None:
    diffusion, autoencoder = build(config), build(autoencoder_of(config))
    assert checkpoint_kind(diffusion.state_dict()) is Kind.DIFFUSION
    assert checkpoint_kind(autoencoder.state_dict()) is Kind.AUTOENCODER
    assert checkpoint_kind(wrapped(diffusion)) is Kind.WRAPPED_DIFFUSION
    assert checkpoint_kind(wrapped(autoencoder, "autoencoder")) is Kind.WRAPPED_AUTOENCODER
    assert (
        checkpoint_kind(["model.model.transformer.layers.0.self_attn.to_qkv.lora_A.weight"]) is Kind.ADAPTER
    )
    assert checkpoint_kind(["some.weight"]) is Kind.UNKNOWN
    assert checkpoint_kind([]) is Kind.UNKNOWN


def test_unwrapping_takes_the_network_from_the_average_and_the_rest_online(config: dict[str, Any]) -> None:
    online, average = build(config, 1), build(config, 2)
    state, weights = unwrap_state_dict(wrapped(online, ema=average.model.state_dict()))
    assert weights == "EMA"
    assert state.keys() == online.state_dict().keys()
    for key, value in state.items():
        source = average if key.startswith("model.") else online
        assert torch.equal(value, source.state_dict()[key]), key


def test_a_run_without_ema_exports_what_was_trained(config: dict[str, Any]) -> None:
    online = build(config, 1)
    state, weights = unwrap_state_dict(wrapped(online))
    assert weights == "online"
    assert same(state, online.state_dict())


def test_a_wrapped_autoencoder_is_averaged_whole(config: dict[str, Any]) -> None:
    online, average = build(autoencoder_of(config), 1), build(autoencoder_of(config), 2)
    state, weights = unwrap_state_dict(wrapped(online, "autoencoder", average.state_dict()))
    assert weights == "EMA"
    assert same(state, average.state_dict())


def test_a_wrapped_checkpoint_is_unwrapped_while_loading_and_this_is_said(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    online, average, fresh = build(config, 1), build(config, 2), build(config, 3)
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": wrapped(online, ema=average.model.state_dict()), "global_step": 3}, path)
    report = load_checkpoint(fresh, path)
    assert (report.kind, report.weights) == (Kind.WRAPPED_DIFFUSION, "EMA")
    assert same(fresh.model.state_dict(), average.model.state_dict())
    assert same(fresh.conditioner.state_dict(), online.conditioner.state_dict())
    assert "using its EMA weights" in capsys.readouterr().err
    fresh.load_state_dict(load_ckpt_state_dict(path))
    assert "using its EMA weights" in capsys.readouterr().err


def test_an_autoencoder_given_as_a_diffusion_model_is_named(config: dict[str, Any], tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "vae.ckpt", build(autoencoder_of(config)).state_dict())
    with pytest.raises(CheckpointError, match="found an autoencoder, expected a diffusion model") as caught:
        load_checkpoint(build(config), path)
    message = str(caught.value)
    assert "--pretransform-ckpt-path" in message
    assert "\n" not in message


def test_a_diffusion_model_given_as_an_autoencoder_is_named(config: dict[str, Any], tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "model.ckpt", build(config).state_dict())
    with pytest.raises(CheckpointError, match="found a diffusion model, expected an autoencoder"):
        load_checkpoint(build(autoencoder_of(config)), path)


def test_missing_unexpected_and_mismatched_keys_are_named_and_nothing_is_loaded(
    config: dict[str, Any], tmp_path: Path
) -> None:
    state = build(config, 1).state_dict()
    first, second, *_ = [key for key in state if key.startswith("model.model.transformer.layers")]
    del state[first]
    state[second] = state[second][:1]
    state["model.model.surprise"] = torch.zeros(1)
    path = save_checkpoint(tmp_path / "odd.ckpt", state)
    model = build(config, 2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, path)
    for part in (f"1 missing: {first}", "1 unexpected: model.model.surprise", f"of another shape: {second}"):
        assert part in str(caught.value)
    assert same(model.state_dict(), before)


def test_a_lenient_load_warns_but_never_loads_nothing(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained, model = build(config, 1), build(config, 2)
    state = {key: value for key, value in trained.state_dict().items() if not key.startswith("conditioner.")}
    report = load_checkpoint(model, save_checkpoint(tmp_path / "part.ckpt", state), strict=False)
    assert report.missing
    assert all(key.startswith("conditioner.") for key in report.missing)
    assert same(model.model.state_dict(), trained.model.state_dict())
    assert "missing" in capsys.readouterr().err
    path = save_checkpoint(tmp_path / "none.ckpt", {"model.model.other": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="not one key fits"):
        load_checkpoint(model, path, strict=False)


def test_a_pretransform_may_come_on_its_own(config: dict[str, Any], tmp_path: Path) -> None:
    trained, model = build(config, 1), build(config, 2)
    state = {key: value for key, value in trained.state_dict().items() if not key.startswith("pretransform.")}
    path = save_checkpoint(tmp_path / "model.ckpt", state)
    with pytest.raises(CheckpointError, match="--pretransform-ckpt-path"):
        load_checkpoint(model, path)
    load_checkpoint(model, path, allow_missing=["pretransform."])
    vae = save_checkpoint(tmp_path / "vae.safetensors", trained.pretransform.model.state_dict())
    load_pretransform(model, vae)
    assert same(model.state_dict(), trained.state_dict())


@pytest.mark.parametrize("kind", ["autoencoder", "wrapped autoencoder", "diffusion", "wrapped diffusion"])
def test_a_pretransform_is_found_in_every_kind(config: dict[str, Any], tmp_path: Path, kind: str) -> None:
    trained, model = build(config, 1), build(config, 2)
    state = {
        "autoencoder": trained.pretransform.model.state_dict(),
        "wrapped autoencoder": wrapped(trained.pretransform.model, "autoencoder"),
        "diffusion": trained.state_dict(),
        "wrapped diffusion": wrapped(trained),
    }[kind]
    load_pretransform(model, save_checkpoint(tmp_path / "vae.ckpt", state))
    assert same(model.pretransform.state_dict(), trained.pretransform.state_dict())
    assert not same(model.model.state_dict(), trained.model.state_dict())


def test_a_pretransform_needs_a_place_and_an_autoencoder(config: dict[str, Any], tmp_path: Path) -> None:
    model = build(config)
    path = save_checkpoint(tmp_path / "half.ckpt", {"model.model.x": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="without an autoencoder"):
        load_pretransform(model, path)
    del config["model"]["pretransform"]
    with pytest.raises(UsageError, match="no pretransform"):
        load_pretransform(build(config), path)


def test_fused_checkpoints_load_into_plain_models_and_back(config: dict[str, Any], tmp_path: Path) -> None:
    trained, fused, fresh = build(config, 1), build(config, 1), build(config, 2)
    remove_weight_norm_from_model(fused.pretransform)
    assert any(key.endswith("layers.0.weight") for key in fused.pretransform.state_dict())
    latents = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0))
    expected = trained.pretransform.decode(latents)

    load_checkpoint(fresh, save_checkpoint(tmp_path / "fused.ckpt", fused.state_dict()))
    torch.testing.assert_close(fresh.pretransform.decode(latents), expected)
    assert fresh.state_dict().keys() == trained.state_dict().keys()

    other = build(config, 2)
    remove_weight_norm_from_model(other.pretransform)
    load_checkpoint(other, save_checkpoint(tmp_path / "plain.ckpt", trained.state_dict()))
    torch.testing.assert_close(other.pretransform.decode(latents), expected)


def test_copying_a_state_dict_returns_what_does_not_fit(config: dict[str, Any]) -> None:
    trained, model = build(config, 1), build(config, 2)
    state = {**trained.state_dict(), "extra": torch.zeros(1)}
    state["model.model.preprocess_conv.weight"] = torch.zeros(1)
    assert set(copy_state_dict(model, state)) == {"extra", "model.model.preprocess_conv.weight"}
    assert same(model.conditioner.state_dict(), trained.conditioner.state_dict())
    with pytest.raises(CheckpointError, match="not one of the 1 keys"):
        copy_state_dict(model, {"extra": torch.zeros(1)})


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemError('code of a checkpoint was run')",)


@pytest.mark.parametrize(
    "name", ["empty.ckpt", "text.ckpt", "cut.ckpt", "cut.safetensors", "evil.ckpt", "list.ckpt", "none.ckpt"]
)
def test_what_cannot_be_read_gets_one_line(config: dict[str, Any], tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "empty.ckpt":
        path.write_bytes(b"")
    elif name == "text.ckpt":
        path.write_text("<html>not found</html>")
    elif name == "evil.ckpt":
        torch.save({"state_dict": {"encoder.x": torch.zeros(1)}, "more": Evil()}, path)
    elif name == "list.ckpt":
        torch.save([1, 2], path)
    elif name == "none.ckpt":
        torch.save({"state_dict": {}}, path)
    else:
        save_checkpoint(path, build(config).state_dict())
        path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(build(config), path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 400


def test_a_missing_file_is_named(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        load_checkpoint(build(config), tmp_path / "absent.ckpt")
    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        model_sha256(tmp_path / "absent.ckpt")


def test_files_of_the_old_torch_format_are_read(tmp_path: Path) -> None:
    state = {"encoder.x": torch.arange(3.0)}
    torch.save(state, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert same(read_state_dict(tmp_path / "old.ckpt"), state)


@pytest.mark.parametrize(("safetensors", "suffix"), [(False, ".ckpt"), (True, ".safetensors")])
def test_unwrapping_writes_a_file_that_loads(
    config: dict[str, Any], tmp_path: Path, safetensors: bool, suffix: str
) -> None:
    online, average, fresh = build(config, 1), build(config, 2), build(config, 3)
    source = tmp_path / "last.ckpt"
    torch.save(
        {"state_dict": wrapped(online, ema=average.model.state_dict()), "model_config": config}, source
    )
    path = unwrap_checkpoint(source, None, tmp_path / "my.model", use_safetensors=safetensors)
    assert path.name == f"my.model{suffix}"
    assert read_checkpoint(path).model_config == config
    fresh.load_state_dict(load_ckpt_state_dict(path), strict=True)
    assert same(fresh.model.state_dict(), average.model.state_dict())
    config_path = tmp_path / "config.json"
    config_path.write_text(json.dumps(config))
    again = unwrap_checkpoint(source, config_path, tmp_path / "again.ckpt")
    assert again == tmp_path / "again.ckpt"


def test_unwrapping_restores_the_public_spelling(config: dict[str, Any], tmp_path: Path) -> None:
    online = build(config, 1)
    keys = online.state_dict().keys()
    remove_weight_norm_from_model(online.pretransform)
    torch.save({"state_dict": wrapped(online)}, tmp_path / "last.ckpt")
    path = unwrap_checkpoint(tmp_path / "last.ckpt", config, tmp_path / "out")
    assert read_state_dict(path).keys() == keys


def test_unwrapping_says_which_weights(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": wrapped(build(config))}, tmp_path / "last.ckpt")
    unwrap_checkpoint(tmp_path / "last.ckpt", config, tmp_path / "out")
    assert "online weights (this run kept no EMA)" in capsys.readouterr().err


def test_unwrapping_refuses_what_is_not_wrapped_or_does_not_fit(
    config: dict[str, Any], tmp_path: Path
) -> None:
    model = build(config)
    plain = save_checkpoint(tmp_path / "plain.ckpt", model.state_dict())
    with pytest.raises(CheckpointError, match=r"plain\.ckpt: .*nothing to unwrap"):
        unwrap_checkpoint(plain, config, tmp_path / "out")
    torch.save({"state_dict": wrapped(model)}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="--model-config"):
        unwrap_checkpoint(tmp_path / "last.ckpt", None, tmp_path / "out")
    config["model"]["diffusion"]["config"]["depth"] = 3
    with pytest.raises(
        CheckpointError, match=r"does not fit .*missing: model\.model\.transformer\.layers\.2"
    ):
        unwrap_checkpoint(tmp_path / "last.ckpt", config, tmp_path / "out")
    assert not (tmp_path / "out.ckpt").exists()


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_the_same_weights_make_the_same_file(tmp_path: Path, suffix: str) -> None:
    state = {"model.model.weight": torch.arange(6.0), "model.model.bias": torch.ones(2)}
    first = save_checkpoint(tmp_path / f"first{suffix}", state, {"model_type": "diffusion_cond"})
    for number in range(8):
        name = f"another_name_{number}{suffix}"
        other = save_checkpoint(tmp_path / name, state, {"model_type": "diffusion_cond"})
        assert first.read_bytes() == other.read_bytes()
