"""Manifests: every row reaches its recording, nothing is lost, and a mistake is named by its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stable_audio_tools.audio.files import save_audio
from stable_audio_tools.data.index import Track, TrackIndex
from stable_audio_tools.data.manifests import read_manifest
from stable_audio_tools.errors import ConfigError, DataError
from stable_audio_tools.schema.reader import parse_dataset_config


def _read(folder: Path, text: str, name: str = "m.csv") -> dict[str, dict[str, Any]]:
    (folder / name).write_text(text, encoding="utf-8", newline="")
    return read_manifest(folder / name, folder)


def _index(root: Path, base_dir: Path | None = None, on_error: str = "raise", **entry: Any) -> TrackIndex:
    config = {"dataset_type": "audio_dir", "datasets": [{"id": "m", "path": str(root), **entry}]}
    return TrackIndex.from_config(parse_dataset_config({**config, "on_error": on_error}), base_dir=base_dir)


def _described(track: Track) -> dict[str, Any]:
    """What is known of a track without a metadata module, with the prompt that stays."""
    known = track.description.known(track.path, track.relpath)
    return {**known, **track.description.prompt(known, track.path, track.relpath)}


def _touch(root: Path, *names: str) -> None:
    for name in names:
        save_audio(root / name, torch.zeros(1, 800), 8000)


def test_columns_have_their_kinds_and_unknown_ones_are_kept(tmp_path: Path) -> None:
    rows = _read(
        tmp_path,
        "Path,Caption,TAGS,Genre,BPM,key,artist,album,title,Energy,index,Empty\r\n"
        'a.wav,"slow, ""sad""\nsong","jazz; night ;jazz","R&B, soul",90.5,C#m,A,B,007,0.5,7,\r\n'
        f"{tmp_path}/sub/../b.wav,,x|y,,,,,,,,,\r\n",
    )
    assert rows == {
        "a.wav": {
            "prompt": 'slow, "sad" song',
            "tags": ["jazz", "night"],
            "genre": ["R&B", "soul"],
            "bpm": 90.5,
            "key": "C#m",
            "artist": "A",
            "album": "B",
            "title": "007",
            "Energy": "0.5",
            "metadata_index": "7",
        },
        "b.wav": {"tags": ["x", "y"]},
    }


def test_the_same_rows_in_any_format_are_the_same(tmp_path: Path) -> None:
    row = {"path": "a.wav", "prompt": "calm", "tags": "x;y", "bpm": "90", "mine": "1"}
    header, cells = ",".join(row), ",".join(row.values())
    expected = {"a.wav": {"prompt": "calm", "tags": ["x", "y"], "bpm": 90.0, "mine": "1"}}
    assert _read(tmp_path, f"\ufeff{header}\n\n{cells}\n") == expected
    assert _read(tmp_path, f"{header}\n{cells}".replace(",", "\t"), "m.tsv") == expected
    cells_quoted = cells.replace("x;y", '"x;y"').replace(",", ";")
    assert _read(tmp_path, f"{header.replace(',', ';')}\n{cells_quoted}\n") == expected
    lines = json.dumps({**row, "tags": ["x", "y"], "bpm": 90})
    assert _read(tmp_path, f"\n{lines}\n", "m.jsonl") == expected


def test_the_first_column_that_pandas_writes_and_quotes_in_a_tsv_do_no_harm(tmp_path: Path) -> None:
    assert _read(tmp_path, ",file_name,text\n0,a.wav,x\n") == {"a.wav": {"prompt": "x"}}
    assert _read(tmp_path, 'file\ttitle\na.wav\t"Heroes\n', "m.tsv") == {"a.wav": {"title": '"Heroes'}}


def test_names_with_anything_in_them_are_found(tmp_path: Path) -> None:
    name = 'new\nline, "quoted" 🎷.wav'
    assert list(_read(tmp_path, json.dumps({"path": name}), "m.jsonl")) == [name]
    quoted = '"' + name.replace('"', '""') + '"'
    assert list(_read(tmp_path, f"path,prompt\n{quoted},x\n")) == [name]


def test_a_recording_may_have_several_captions_but_one_of_all_else(tmp_path: Path) -> None:
    rows = _read(tmp_path, "path,prompt,artist\na.wav,one,A\nb.wav,b,\na.wav,two,\na.wav,one,A\n")
    assert rows == {"a.wav": {"prompt": ["one", "two"], "artist": "A"}, "b.wav": {"prompt": "b"}}
    with pytest.raises(DataError, match=r"m\.csv:3: artist is 'B', but line 2 says 'A' of the same file"):
        _read(tmp_path, "path,prompt,artist\na.wav,one,A\n./a.wav,two,B\n")
    listed = _read(tmp_path, '{"path": "a.wav", "prompt": ["one", " ", "two"]}', "m.jsonl")
    assert listed == {"a.wav": {"prompt": ["one", "two"]}}


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("m.csv", "prompt\nx\n", r"m\.csv:2: has no column of paths; expected one called path, file"),
        ("m.csv", "path,prompt\na.wav\n", r"m\.csv:2: 1 cells, expected 2"),
        ("m.csv", 'path,prompt\n"a\nb.wav",x\nc.wav,x,y\n', r"m\.csv:4: 3 cells, expected 2"),
        ("m.csv", "path,prompt\n,x\n", r"m\.csv:2: path is ''"),
        ("m.csv", "path,prompt\n../a.wav,x\n", r"m\.csv:2: '\.\./a\.wav' is outside the dataset's folder"),
        ("m.csv", "path,bpm\na.wav,fast\n", r"m\.csv:2: bpm: 'fast' is not a tempo"),
        ("m.csv", "path,tempo\na.wav,0\n", r"m\.csv:2: tempo: '0' is not a tempo"),
        ("m.csv", "path,x,x\na.wav,1,2\n", r"m\.csv:1: column 'x' is there twice"),
        ("m.csv", 'path,prompt\na.wav,"x\n', r"m\.csv:2: not a table"),
        ("m.csv", "path\n", "lists no tracks"),
        ("m.jsonl", '{"path": "a.wav"}\n{"path"', r"m\.jsonl:2: not JSON: .* column 8"),
        ("m.jsonl", '["a.wav"]', r"m\.jsonl:1: \['a\.wav'\] is not an object"),
        ("m.jsonl", '{"path": "a.wav", "prompt": 3}', r"m\.jsonl:1: prompt: 3 is not a text"),
        ("m.jsonl", '{"path": "a.wav", "tags": {"a": 1}}', r"m\.jsonl:1: tags: .* is not a list of texts"),
        ("m.jsonl", '{"path": "a.wav", "bpm": true}', r"m\.jsonl:1: bpm: True is not a tempo"),
        ("m.jsonl", '{"path": 3}', r"m\.jsonl:1: path is 3, expected the path"),
        ("m.xlsx", "path", r"m\.xlsx: not a manifest; expected a file that ends in \.csv"),
    ],
)
def test_a_mistake_is_named_by_its_line(tmp_path: Path, name: str, text: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        _read(tmp_path, text, name)
    assert "\n" not in str(caught.value)


def test_a_manifest_that_is_not_text_or_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes("path,prompt\na.wav,café\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"m\.csv: not UTF-8 text"):
        read_manifest(tmp_path / "m.csv", tmp_path)
    with pytest.raises(DataError, match=rf"manifest 'none\.csv' is no file; looked for {tmp_path}/none\.csv"):
        _index(tmp_path, manifest="none.csv")


def test_the_manifest_is_the_list_of_tracks_in_the_order_of_the_index(tmp_path: Path) -> None:
    _touch(tmp_path, "b.wav", "a.wav", "unlisted.wav")
    (tmp_path / "m.csv").write_text("path,prompt\nb.wav,bee\na.wav,ay\n")
    index = _index(tmp_path, manifest="m.csv")
    assert [(track.index, track.relpath) for track in index] == [(0, "a.wav"), (1, "b.wav")]
    assert [_described(track)["prompt"] for track in index] == ["ay", "bee"]
    (tmp_path / "filelist.txt").write_text("unlisted.wav\nb.wav\n")
    narrowed = _index(tmp_path, manifest="m.csv")
    assert [track.relpath for track in narrowed] == ["b.wav", "unlisted.wav"]
    assert [_described(track).get("prompt") for track in narrowed] == ["bee", None]


def test_a_listed_file_that_is_missing_stops_or_stays_to_be_skipped(tmp_path: Path) -> None:
    _touch(tmp_path, "a.wav")
    (tmp_path / "m.csv").write_text("path\na.wav\ngone.wav\n")
    with pytest.raises(DataError, match=r"m\.csv: 1 of 2 files do not exist, the first is 'gone\.wav'"):
        _index(tmp_path, manifest="m.csv")
    assert len(_index(tmp_path, manifest="m.csv", on_error="skip")) == 2


def test_a_manifest_is_looked_for_in_the_folder_then_beside_the_config(tmp_path: Path) -> None:
    _touch(tmp_path / "music", "a.wav")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/m.csv").write_text("path,prompt\na.wav,config\n")
    found = _index(tmp_path / "music", tmp_path / "configs", manifest="m.csv")
    assert _described(found[0])["prompt"] == "config"
    (tmp_path / "music/m.csv").write_text("path,prompt\na.wav,folder\n")
    found = _index(tmp_path / "music", tmp_path / "configs", manifest="m.csv")
    assert _described(found[0])["prompt"] == "folder"


def test_a_source_without_what_it_needs_is_refused_when_the_config_is_read() -> None:
    entry = {"id": "m", "path": "p", "metadata_sources": ["manifest"]}
    with pytest.raises(ConfigError, match=r"datasets\[0\]: .*there is no key 'manifest'"):
        parse_dataset_config({"dataset_type": "audio_dir", "datasets": [entry]})
    entry = {"id": "m", "path": "p", "metadata_sources": ["text", "text"]}
    with pytest.raises(ConfigError, match=r"names one twice"):
        parse_dataset_config({"dataset_type": "audio_dir", "datasets": [entry]})
    entry = {"id": "m", "path": "p", "metadata_sources": ["txt"]}
    with pytest.raises(ConfigError, match=r"datasets\[0\]\.metadata_sources\[0\]: .*'text'"):
        parse_dataset_config({"dataset_type": "audio_dir", "datasets": [entry]})
