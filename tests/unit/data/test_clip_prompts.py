"""A generated clip knows its prompt: from its sidecar, its tag, or the table in its folder, in this order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stable_audio_tools.audio.files import save_audio
from stable_audio_tools.data.prompts import prompt_for_clip
from stable_audio_tools.data.sidecars import read_sidecar, sidecar_path, sidecar_tag, write_sidecar
from stable_audio_tools.errors import DataError
from stable_audio_tools.schema.generation import ClipSidecar


def _sidecar(**changes: Any) -> ClipSidecar:
    values = {
        "file": "a.wav",
        "prompt": "über-loud 🎸",
        "conditioning": {"bpm": 120},
        "seconds_start": 0.0,
        "seconds_total": 5.0,
        "duration_seconds": 1.0,
        "sample_rate": 8000,
        "seed": 2**40,
        "steps": 10,
        "cfg_scale": 7.0,
        "sampler": "dpmpp-3m-sde",
        "objective": "v",
        "created": "2026-01-01T00:00:00+00:00",
        "render_seconds": 0.5,
    }
    return ClipSidecar(**{**values, **changes})


def _clip(path: Path, **tags: str) -> Path:
    return save_audio(path, torch.zeros(1, 8000), 8000, tags=tags)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_sidecar_and_tag_come_back_whole(tmp_path: Path, suffix: str) -> None:
    tagged = _clip(tmp_path / f"tagged{suffix}", comment=sidecar_tag(_sidecar()))
    assert read_sidecar(tagged) == _sidecar()
    plain = _clip(tmp_path / f"plain{suffix}", comment="ripped by hand")
    assert read_sidecar(plain) is None
    write_sidecar(plain, _sidecar(seed=3))
    assert sidecar_path(plain) == tmp_path / "plain.json"
    assert read_sidecar(plain) == _sidecar(seed=3)


def test_the_sidecar_goes_before_the_tag_and_the_tag_before_the_table(tmp_path: Path) -> None:
    clip = _clip(tmp_path / "a.wav", comment=sidecar_tag(_sidecar(prompt="from tag")))
    (tmp_path / "prompts.csv").write_text("file,prompt\na.wav,from table\nb.wav,second\n")
    assert prompt_for_clip(clip)["prompt"] == "from tag"
    write_sidecar(clip, _sidecar(prompt="from sidecar"))
    found = prompt_for_clip(clip)
    assert found == {"prompt": "from sidecar", "seconds_start": 0.0, "seconds_total": 5.0, "bpm": 120}
    assert prompt_for_clip(_clip(tmp_path / "b.wav")) == {"prompt": "second"}


def test_json_of_another_program_is_not_a_sidecar_and_a_broken_one_is_an_error(tmp_path: Path) -> None:
    clip = _clip(tmp_path / "a.wav")
    sidecar_path(clip).write_text('{"bpm": 120}')
    assert read_sidecar(clip) is None
    sidecar_path(clip).write_text("{")
    with pytest.raises(DataError, match=r"a\.json: cannot be read as the sidecar"):
        read_sidecar(clip)
    value = json.loads(sidecar_tag(_sidecar()))
    sidecar_path(clip).write_text(json.dumps({**value, "steps": "many"}))
    with pytest.raises(DataError, match=r"a\.json: not a sidecar of a clip: steps: "):
        read_sidecar(clip)


def test_the_table_may_give_seconds_and_is_read_again_when_edited(tmp_path: Path) -> None:
    clip = _clip(tmp_path / "a.wav")
    table = tmp_path / "prompts.csv"
    table.write_text(
        'file,prompt,seconds_start,seconds_total\n./a.wav,"calm, slow",2.5,\n', encoding="utf-8-sig"
    )
    assert prompt_for_clip(clip) == {"prompt": "calm, slow", "seconds_start": 2.5}
    table.write_text("file,prompt\na.wav,something else\n")
    assert prompt_for_clip(clip) == {"prompt": "something else"}


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (None, r"a\.wav: its prompt is not known: no sidecar a\.json"),
        ("file,prompt\nb.wav,x\n", r"a\.wav: .*prompts\.csv has no line for it"),
        ("name,prompt\na.wav,x\n", r"prompts\.csv: lacks the column 'file'"),
        ("file,prompt\na.wav,\n", r"prompts\.csv:2: file or prompt is empty"),
        ("file,prompt\na.wav,x\na.wav,y\n", r"prompts\.csv:3: a\.wav is listed a second time"),
        ("file,prompt,seconds_total\na.wav,x,long\n", r"prompts\.csv:2: .*'long', expected seconds"),
    ],
)
def test_a_clip_without_prompt_is_named(tmp_path: Path, table: str | None, reason: str) -> None:
    clip = _clip(tmp_path / "a.wav")
    if table is not None:
        (tmp_path / "prompts.csv").write_text(table)
    with pytest.raises(DataError, match=reason):
        prompt_for_clip(clip)
