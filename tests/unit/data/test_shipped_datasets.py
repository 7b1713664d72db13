"""The dataset configs in the package do what the guide says, from a working folder of the user's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


def test_configs_without_python_read_a_folder_with_captions_and_one_with_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        save_audio(tmp_path / f"dataset/mine/{name}.wav", torch.zeros(2, 8000), 8000)
        (tmp_path / f"dataset/mine/{name}.txt").write_text(f"caption of {name}")
    (tmp_path / "dataset/mine/tracks.csv").write_text("path,prompt,tags,bpm\na.wav,,x;y,90\nb.wav,bee,z,\n")

    def prompts(name: str) -> list[str]:
        config = read_dataset_config(CONFIGS / name)
        loader = create_dataloader_from_config(
            config, 1, 8000, 8000, num_workers=0, shuffle=False, drop_last=False
        )
        return [info["prompt"] for _, infos in loader for info in infos]

    assert prompts("local_training_captions.json") == ["caption of a", "caption of b"]
    assert prompts("local_training_manifest.json") == ["caption of a", "bee"]
    (tmp_path / "dataset/mine/a.txt").unlink()
    assert prompts("local_training_manifest.json") == ["x, y, 90 BPM", "bee"]


def test_song_describer_config_reads_its_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "dataset/small-700"
    save_audio(tmp_path / "34.wav", torch.zeros(2, 8000), 8000)
    (root / "audio/34").mkdir(parents=True)
    (tmp_path / "34.wav").rename(root / "audio/34/34.2min.wav")
    header = "caption_id,track_id,caption,is_valid_subset,familiarity,artist_id,album_id,path,duration\n"
    rows = ["1,34,unjudged,,0,1,2,34/34.mp3,10", "2,34,wrong,False,0,1,2,34/34.mp3,10"]
    (root / "song_describer.csv").write_text(
        header + "\n".join([*rows, "3,34,right,True,0,1,2,34/34.mp3,10"])
    )
    ids = "track_0000034\tartist_000001\talbum_000002"
    (root / "raw.tsv").write_text(f"{ids}\t34/34.mp3\t10\tgenre---rock\n")
    (root / "audio_metadata.tsv").write_text(f"{ids}\tSong\tBand\tDisc\t2010-01-01\thttp://x\n")
    config = read_dataset_config(CONFIGS / "song_describer.json")

    def infos(**options: bool) -> list[dict[str, Any]]:
        loader = create_dataloader_from_config(config, 1, 8000, 8000, num_workers=0, **options)
        return [info for _ in range(30) for _, infos in loader for info in infos]

    fixed = infos(shuffle=False)
    assert {info["prompt"] for info in fixed} == {"right"}
    assert (fixed[0]["artist"], fixed[0]["artist_id"], fixed[0]["tags"]) == ("Band", 1, ["rock"])
    assert {info["prompt"] for info in infos(shuffle=True)} == {"right", "unjudged"}


def test_the_example_module_uses_names_where_there_is_no_caption(tmp_path: Path) -> None:
    save_audio(tmp_path / "Deep_House/warm-pad.wav", torch.zeros(2, 8000), 8000)
    entry = {
        "id": "m",
        "path": str(tmp_path),
        "custom_metadata_module": "custom_metadata/custom_md_example.py",
    }

    def prompt(**more: Any) -> str:
        config = {"dataset_type": "audio_dir", "datasets": [{**entry, **more}]}
        (_, (info,)) = next(iter(create_dataloader_from_config(config, 1, 8000, 8000, num_workers=0)))
        return str(info["prompt"])

    assert prompt() == "Deep House warm pad"
    (tmp_path / "Deep_House/warm-pad.txt").write_text("a warm pad")
    assert prompt() == "Deep House warm pad"
    assert prompt(metadata_sources=["text"]) == "a warm pad"
