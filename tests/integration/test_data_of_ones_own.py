"""A folder of one's own trains and is attributed to without Python: by captions, a table and templates."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from workshop import Workshop, run_sat


@pytest.fixture
def own(shop: Workshop, tmp_path: Path) -> Path:
    """Eight recordings with a caption each, in one folder."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for number, song in enumerate(sorted(shop.music.rglob("*.wav"))):
        shutil.copy(song, folder / f"{number}.wav")
        (folder / f"{number}.txt").write_text(f"song {number}")
    return folder


def _config(path: Path, folder: Path, **keys: Any) -> str:
    entry = {"id": "mine", "path": str(folder), **keys}
    path.write_text(json.dumps({"dataset_type": "audio_dir", "datasets": [entry]}))
    return str(path)


def test_a_folder_with_captions_trains_and_a_track_without_one_is_named(
    shop: Workshop, own: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = _config(tmp_path / "data.json", own)
    runs = {"dataset_config": config, "val_dataset_config": config, "save_dir": str(tmp_path / "runs")}
    assert run_sat(shop.train(name="captions", num_workers="1", **runs)) == 0
    for caption in own.glob("*.txt"):
        caption.unlink()
    capfd.readouterr()
    assert run_sat(shop.train(name="none", **runs)) == 2
    said = capfd.readouterr().err
    assert "has no 'prompt'" in said
    assert str(own) in said.replace("\n", "")
    assert "Traceback" not in said


def test_a_table_with_templates_trains_and_names_artists_in_the_attribution(
    shop: Workshop, own: Path, tmp_path: Path
) -> None:
    lines = ["path,tags,bpm,artist,album"]
    lines += [
        f"{number}.wav,piano;calm,{90 + number},Artist {number % 2},Disc {number}" for number in range(6)
    ]
    (own / "tracks.csv").write_text("\n".join(lines) + "\n")
    prompts = {"templates": ["{tags}, {bpm} BPM", "{tags:and}"], "drop_tags": 0.3}
    keys = {"manifest": "tracks.csv", "metadata_sources": ["manifest"], "prompts": prompts}
    config = _config(tmp_path / "data.json", own, **keys)
    runs = {"dataset_config": config, "save_dir": str(tmp_path / "runs")}
    assert run_sat(shop.train(name="table", **runs)) == 0
    answer = tmp_path / "attribution"
    assert run_sat(shop.attribute(train_dataset_config=config, output_dir=str(answer))) == 0
    (artists,) = answer.rglob("artists.csv")
    with open(artists, encoding="utf-8", newline="") as file:
        groups = {row["group"] for row in csv.DictReader(file)}
    assert groups == {"Artist 0", "Artist 1"}
    (table,) = answer.rglob("train_features/tracks.jsonl")
    tracks = [json.loads(line) for line in table.open(encoding="utf-8")]
    prompts_made = {track["prompt"] for track in tracks if track["dataset_id"] == "mine"}
    assert prompts_made == {f"piano, calm, {90 + number} BPM" for number in range(6)}
