"""The dataset configs in the package do what the guide says, from a working folder of the user's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import stable_audio_tools
from stable_audio_tools.audio.files import save_audio
from stable_audio_tools.data.dataset import create_dataloader_from_config
from stable_audio_tools.errors import DataError
from stable_audio_tools.schema.reader import read_dataset_config

CONFIGS = Path(stable_audio_tools.__file__).parent / "configs/dataset_configs"


def test_every_shipped_config_is_valid() -> None:
    configs = sorted(CONFIGS.glob("*.json"))
    assert {"local_training_custom.json", "dtrak_generated_queries.json"} <= {path.name for path in configs}
    for path in configs:
        read_dataset_config(path)


def test_training_config_reads_jamendo_and_leaves_duplicates_out(
    tiny_audio_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    config = read_dataset_config(CONFIGS / "local_training_custom.json")
    (tmp_path / config.datasets[0].path).parent.parent.mkdir(parents=True)
    (tmp_path / config.datasets[0].path).parent.symlink_to(tiny_audio_folder, target_is_directory=True)

    def rows() -> dict[str, str]:
        loader = create_dataloader_from_config(config, 2, 8000, 16000, num_workers=0, drop_last=False)
        return {info["relpath"]: info["prompt"] for _, infos in loader for info in infos}

    assert len(rows()) == 8
    assert "sat dedup" in capfd.readouterr().err
    assert config.exclude_paths_file is not None
    (tmp_path / config.exclude_paths_file).parent.mkdir(parents=True)
    (tmp_path / config.exclude_paths_file).write_text("# duplicates\n01/1000101.wav\n")
    left = rows()
    assert len(left) == 7
    assert left["03/1000203.wav"] == "Jazz music with piano. Mood: relaxing. Title: Song 2."
    assert capfd.readouterr().err == ""


def test_query_config_reads_prompts_of_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = json.loads((CONFIGS / "dtrak_generated_queries.json").read_text())
    folder = tmp_path / config["datasets"][0]["path"]
    for name in ("b.wav", "a.wav", "c.wav"):
        save_audio(folder / name, torch.zeros(2, 8000), 8000)
    (folder / "prompts.csv").write_text("file,prompt,seconds_total\na.wav,first,30\nb.wav,second,30\n")
    loader = create_dataloader_from_config(config, 1, 8000, 8000, num_workers=0, shuffle=False)
    batches = iter(loader)
    found = [next(batches)[1][0] for _ in range(2)]
    assert [info["prompt"] for info in found] == ["first", "second"]
    assert [(info["seconds_start"], info["seconds_total"]) for info in found] == [(0, 30.0)] * 2
    with pytest.raises(DataError, match=r"c\.wav: .*prompts\.csv has no line for it"):
        next(batches)
