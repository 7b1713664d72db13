"""Starting from a checkpoint whose config has changed since: what fits is taken, the rest is told."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stable_audio_tools.errors import CheckpointError, UsageError
from stable_audio_tools.models.checkpoints import load_checkpoint, save_checkpoint
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.schema.reader import parse_model_config
from stable_audio_tools.training.settings import TrainSettings
from stable_audio_tools.training.start import prepare_model, write_load_reports

Config = dict[str, Any]


def build(config: Config, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create_model_from_config(config).requires_grad_(False)


def deeper(config: Config) -> None:
    config["model"]["diffusion"]["config"]["depth"] = 3


def with_memory(config: Config) -> None:
    config["model"]["diffusion"]["config"]["num_memory_tokens"] = 4


def wider_input(config: Config) -> None:
    config["model"]["diffusion"]["config"]["input_concat_dim"] = 5
    config["model"]["diffusion"]["input_concat_ids"] = ["beside"]


def other_number(config: Config) -> None:
    config["model"]["conditioning"]["configs"][1]["id"] = "bpm"
    ids = config["model"]["diffusion"]
    for key in ("cross_attention_cond_ids", "global_cond_ids"):
        ids[key] = ["bpm" if name == "seconds_start" else name for name in ids[key]]


# What changes, and the modules that are missing, unexpected and of another shape then.
CHANGES: dict[Callable[[Config], None], tuple[set[str], set[str], set[str]]] = {
    deeper: ({"model.model.transformer"}, set(), set()),
    with_memory: ({"model.model.transformer"}, set(), set()),
    wider_input: (set(), set(), {"model.model.preprocess_conv", "model.model.transformer"}),
    other_number: ({"conditioner.conditioners.bpm"}, {"conditioner.conditioners.seconds_start"}, set()),
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_config_takes_what_fits_and_tells_the_rest(
    tiny_diffusion_config: Config, tmp_path: Path, change: Callable[[Config], None]
) -> None:
    trained = build(tiny_diffusion_config, 1)
    path = save_checkpoint(tmp_path / "base.ckpt", trained.state_dict())
    change(tiny_diffusion_config)
    model = build(tiny_diffusion_config, 2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="--load-partial"):
        load_checkpoint(model, path)

    report = load_checkpoint(model, path, strict=False)
    fresh = {*report.missing, *report.mismatched}
    assert report.loaded == len(report.fitting) == len(before) - len(fresh)
    for key, value in model.state_dict().items():
        source: dict[str, Tensor] = before if key in fresh else trained.state_dict()
        assert torch.equal(value, source[key]), key

    told = report.as_dict()["modules"]
    for what, expected in zip(("missing", "unexpected", "mismatched"), CHANGES[change], strict=True):
        assert {module for module, counts in told.items() if counts[what]} == expected, what
    assert sum(counts["loaded"] for counts in told.values()) == report.loaded
    for expected in CHANGES[change]:
        assert all(module in report.summary() for module in expected)
    assert len(report.summary().splitlines()) <= 4


def test_the_written_report_has_every_key_and_both_shapes(
    tiny_diffusion_config: Config, tmp_path: Path
) -> None:
    path = save_checkpoint(tmp_path / "base.ckpt", build(tiny_diffusion_config, 1).state_dict())
    wider_input(tiny_diffusion_config)
    report = load_checkpoint(build(tiny_diffusion_config, 2), path, strict=False)
    report.write(tmp_path / "report.json")
    told = json.loads((tmp_path / "report.json").read_text())
    assert (told["checkpoint"], told["kind"], told["weights"]) == (str(path), "a diffusion model", "stored")
    assert told["loaded"] == report.loaded
    shapes = {entry["key"]: (entry["found"], entry["expected"]) for entry in told["mismatched"]}
    assert shapes["model.model.preprocess_conv.weight"] == ([4, 4, 1], [9, 9, 1])
    assert set(shapes) == set(report.mismatched)


def test_another_kind_is_refused_also_in_part(tiny_diffusion_config: Config, tmp_path: Path) -> None:
    trained = build(tiny_diffusion_config, 1)
    path = save_checkpoint(tmp_path / "vae.ckpt", trained.pretransform.model.state_dict())
    with pytest.raises(CheckpointError, match="found an autoencoder, expected a diffusion model"):
        load_checkpoint(trained, path, strict=False)


def settings(path: Path, **changes: Any) -> TrainSettings:
    given = {"model_config": "m.json", "dataset_config": "d.json", "pretrained_ckpt_path": str(path)}
    return TrainSettings(**{**given, **changes})


def test_training_starts_from_part_of_a_checkpoint_and_keeps_the_report(
    tiny_diffusion_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = build(tiny_diffusion_config, 1)
    path = save_checkpoint(tmp_path / "base.ckpt", trained.state_dict())
    deeper(tiny_diffusion_config)
    config = parse_model_config(tiny_diffusion_config)
    with pytest.raises(CheckpointError, match="does not fit"):
        prepare_model(config, settings(path), lora=False)
    reports: list[Any] = []
    model = prepare_model(config, settings(path, load_partial=True), lora=False, reports=reports)
    assert torch.equal(
        model.model.state_dict()["model.preprocess_conv.weight"],
        trained.model.state_dict()["model.preprocess_conv.weight"],
    )
    assert "missing: " in capsys.readouterr().err
    write_load_reports(tmp_path, reports)
    (told,) = json.loads((tmp_path / "load_report.json").read_text())
    assert told["missing"]
    assert all(key.startswith("model.model.transformer.layers.2.") for key in told["missing"])


def test_a_whole_checkpoint_leaves_no_report(tiny_diffusion_config: Config, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "base.ckpt", build(tiny_diffusion_config, 1).state_dict())
    reports: list[Any] = []
    config = parse_model_config(tiny_diffusion_config)
    prepare_model(config, settings(path, load_partial=True), lora=False, reports=reports)
    assert len(reports) == 1
    write_load_reports(tmp_path, reports)
    assert not (tmp_path / "load_report.json").exists()


def test_a_vae_on_its_own_is_no_gap_in_the_report(tiny_diffusion_config: Config, tmp_path: Path) -> None:
    trained = build(tiny_diffusion_config, 1)
    state = {key: value for key, value in trained.state_dict().items() if not key.startswith("pretransform.")}
    path = save_checkpoint(tmp_path / "base.ckpt", state)
    vae = save_checkpoint(tmp_path / "vae.ckpt", trained.pretransform.model.state_dict())
    reports: list[Any] = []
    flags = settings(path, load_partial=True, pretransform_ckpt_path=str(vae))
    model = prepare_model(parse_model_config(tiny_diffusion_config), flags, lora=False, reports=reports)
    assert [report.problems() for report in reports] == ["", ""]
    assert model.state_dict().keys() == trained.state_dict().keys()
    assert all(torch.equal(value, trained.state_dict()[key]) for key, value in model.state_dict().items())


def test_the_flag_needs_a_checkpoint_and_no_adapters(tiny_diffusion_config: Config, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--load-partial"):
        TrainSettings(model_config="m.json", dataset_config="d.json", load_partial=True)
    path = save_checkpoint(tmp_path / "base.ckpt", build(tiny_diffusion_config, 1).state_dict())
    with pytest.raises(UsageError, match="--load-partial"):
        prepare_model(parse_model_config(tiny_diffusion_config), settings(path, load_partial=True), lora=True)


@pytest.mark.parametrize("moment", ["pre_load", "post_load"])
@pytest.mark.parametrize("stored", ["weight_g", "parametrizations", "fused"])
@pytest.mark.parametrize("source", ["whole", "vae"])
def test_the_norm_goes_before_or_after_loading_with_the_same_audio(
    tiny_diffusion_config: Config, tmp_path: Path, moment: str, stored: str, source: str
) -> None:
    trained = build(tiny_diffusion_config, 1).eval()
    latents = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0))
    expected = trained.pretransform.decode(latents)
    state = spelled(trained, stored, trained.state_dict())
    path = save_checkpoint(tmp_path / "base.ckpt", state)
    flags: dict[str, Any] = {"remove_pretransform_weight_norm": moment}
    if source == "vae":
        prefix = "pretransform.model."
        only = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        flags["pretransform_ckpt_path"] = str(save_checkpoint(tmp_path / "vae.ckpt", only))
    model = prepare_model(parse_model_config(tiny_diffusion_config), settings(path, **flags), lora=False)
    assert not [key for key in model.state_dict() if key.endswith(("weight_g", "weight_v", "original0"))]
    torch.testing.assert_close(model.pretransform.decode(latents), expected)


def spelled(model: Any, spelling: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with the weight norm in another public spelling, made without our own layers."""
    if spelling == "weight_g":
        return state
    result = copy.copy(state)
    for key in [key for key in state if key.endswith("weight_v")]:
        stem = key.removesuffix("weight_v")
        g, v = result.pop(f"{stem}weight_g"), result.pop(key)
        if spelling == "fused":
            result[f"{stem}weight"] = torch._weight_norm(v, g, 0)
        else:
            result[f"{stem}parametrizations.weight.original0"] = g
            result[f"{stem}parametrizations.weight.original1"] = v
    return result
