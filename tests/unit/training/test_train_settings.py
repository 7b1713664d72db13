"""Flags win over defaults.ini, which wins over the built-in defaults; mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from stable_audio_tools.errors import ConfigError, UsageError
from stable_audio_tools.training.settings import TrainSettings, load_defaults

CONFIGS = {"model_config": "m.json", "dataset_config": "d.json"}
REPOSITORY = Path(__file__).parents[3]


def write_ini(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.ini"
    path.write_text(f"[DEFAULTS]\n{text}\n", encoding="utf-8")
    return path


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = write_ini(tmp_path, "batch_size = 3\nseed = 7\nname = 'quoted'\nrecover = true\nsave_dir =")
    settings = TrainSettings.from_flags({**CONFIGS, "seed": 9, "batch_size": None}, path)
    assert (settings.batch_size, settings.seed, settings.name) == (3, 9, "quoted")
    assert settings.recover is True
    assert settings.save_dir == "runs", "an empty value is no value"


def test_the_documented_defaults_hold_with_and_without_the_shipped_file(tmp_path, monkeypatch):
    shipped = TrainSettings.from_flags(CONFIGS, REPOSITORY / "defaults.ini")
    monkeypatch.chdir(tmp_path)
    built_in = TrainSettings.from_flags(CONFIGS, "defaults.ini")
    assert shipped == built_in
    assert (shipped.batch_size, shipped.checkpoint_every, shipped.num_gpus, shipped.num_nodes) == (
        8,
        10_000,
        1,
        1,
    )
    assert (shipped.precision, shipped.seed, shipped.name) == ("16-mixed", 42, "stable_audio_tools")


def test_defaults_in_the_working_folder_are_read(tmp_path, monkeypatch):
    write_ini(tmp_path, "batch_size = 5").rename(tmp_path / "defaults.ini")
    monkeypatch.chdir(tmp_path)
    assert TrainSettings.from_flags(CONFIGS).batch_size == 5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("batchsize = 3", "unknown key 'batchsize'; did you mean 'batch_size'"),
        ("batch_size = many", "batch_size: expected int, found 'many'"),
        ("recover = perhaps", "recover: expected true or false, found 'perhaps'"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path, line, message):
    with pytest.raises(ConfigError, match=message):
        load_defaults(write_ini(tmp_path, line))


def test_a_named_file_must_exist(tmp_path):
    with pytest.raises(UsageError, match=r"--config-file: .*absent\.ini: no such file"):
        load_defaults(tmp_path / "absent.ini")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "--batch-size: expected 1 or more, found 0"),
        ({"save_top_k": 0}, "--save-top-k: expected 1 or more, or -1"),
        ({"precision": "8"}, "--precision: unknown value '8'; known: 16-mixed"),
        ({"logger": "paper"}, "--logger: unknown value 'paper'; known: csv"),
        ({"remove_pretransform_weight_norm": "later"}, "known: pre_load, post_load"),
        ({"recover": True, "ckpt_path": "x.ckpt"}, "exclude each other"),
        ({"dataset_config": ""}, "--dataset-config: not given"),
        ({"learning_rat": 1}, "unknown training flag 'learning_rat'"),
    ],
)
def test_values_that_do_not_fit_are_named_by_their_flag(tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        TrainSettings.from_flags({**CONFIGS, **changes})


def test_short_precisions_are_understood():
    assert TrainSettings(**CONFIGS, precision="bf16").precision == "bf16-mixed"
    assert TrainSettings(**CONFIGS, precision="32").precision == "32-true"
