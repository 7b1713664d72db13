"""The files of stored latents: whole or absent, by their names, held to their hashes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stable_audio_tools.data.latent_files import (
    Crop,
    crop_of,
    latent_name,
    read_latents,
    read_record,
    stored_crops,
    write_latents,
)
from stable_audio_tools.errors import DataError

LATENTS = np.arange(12, dtype=np.float32).reshape(2, 6)


@pytest.mark.parametrize("crop", [Crop(0, 0), Crop(17, 2), Crop(999_999, 9_999), Crop(1_234_567, 3)])
@pytest.mark.parametrize("rank", [0, 7, 999])
def test_a_name_says_rank_row_and_crop(rank: int, crop: Crop) -> None:
    name = latent_name(rank, crop)
    assert len(name) >= 13
    assert crop_of(Path(f"{name}.npy")) == crop
    assert int(name[:3]) == rank


@pytest.mark.parametrize("name", ["song.npy", "123.npy", "00000000000x0.npy", "٣" * 13 + ".npy"])
def test_other_names_say_nothing(name: str) -> None:
    assert crop_of(Path(name)) is None


def test_what_is_written_is_read_and_only_as_much_as_is_asked_for(tmp_path: Path) -> None:
    info = {
        "prompt": 'a "song"\n🎷',
        "padding_mask": torch.tensor([1, 1, 0]),
        "level": np.float32(0.5),
        "tags": ("rock", None),
        "where": Path("/music"),
        "more": {"a": np.arange(2)},
    }
    write_latents(tmp_path, 3, Crop(5, 1), LATENTS[:, ::-1], info)
    path = tmp_path / "3" / "0030000050001.npy"
    assert read_latents(path).equal(torch.from_numpy(LATENTS[:, ::-1].copy()))
    assert read_latents(path, 2, 3).equal(torch.from_numpy(LATENTS[:, ::-1][:, 2:5].copy()))
    assert read_latents(path, 4, 9).shape == (2, 2)
    assert read_record(path) == {
        **{"prompt": 'a "song"\n🎷', "padding_mask": [1, 1, 0], "level": 0.5, "tags": ["rock", None]},
        **{"where": "/music", "more": {"a": [0, 1]}, "crop": 1},
        "latents_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    assert not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes"])
def test_what_json_cannot_hold_is_an_error_and_nothing_is_written(tmp_path: Path, value: Any) -> None:
    with pytest.raises(DataError, match=r"x\.wav: its metadata 'odd' is a \w+, which cannot be stored"):
        write_latents(tmp_path, 0, Crop(0, 0), LATENTS, {"path": "x.wav", "odd": [value]})
    assert not list(tmp_path.rglob("*.*"))


def test_a_crop_is_there_once_its_json_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for row in range(4):
        write_latents(tmp_path, row % 2, Crop(row, 0), LATENTS, {})
    everything = {Crop(row, 0) for row in range(4)}
    assert stored_crops(tmp_path) == stored_crops(tmp_path, verify=True) == everything
    (tmp_path / "0" / "0000000000000.json").unlink()  # killed before it was written
    (tmp_path / "1" / ".tmp-1-0010000090000.npy").write_bytes(b"")
    assert stored_crops(tmp_path) == everything - {Crop(0, 0)}
    damaged = tmp_path / "1" / "0010000030000.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    (tmp_path / "0" / "0000000020000.json").write_text("{")
    assert stored_crops(tmp_path, verify=True) == {Crop(1, 0)}
    assert "0010000030000.npy: does not match its hash" in capsys.readouterr().err
    assert stored_crops(tmp_path / "gone") == set()


def test_the_record_is_public_json(tmp_path: Path) -> None:
    write_latents(tmp_path, 0, Crop(0, 0), LATENTS, {"padding_mask": torch.ones(6).int()})
    text = (tmp_path / "0" / "0000000000000.json").read_text(encoding="ascii")
    assert json.loads(text)["padding_mask"] == [1] * 6
    assert np.load(tmp_path / "0" / "0000000000000.npy").dtype == np.float32
