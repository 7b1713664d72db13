"""Scores of a folder of clips."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from stable_audio_tools.errors import DataError
from stable_audio_tools.evaluation.clap import ClapEmbedder
from stable_audio_tools.evaluation.reference import reference_from_folder
from stable_audio_tools.evaluation.run import evaluate_folder


@pytest.fixture
def clips(tiny_audio_folder: Path, tmp_path: Path) -> Path:
    """Four clips, three of which have prompts."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for number, source in enumerate(sorted((tiny_audio_folder / "audio").rglob("*.wav"))[:4]):
        shutil.copy(source, folder / f"{number}.wav")
    (folder / "prompts.csv").write_text("file,prompt\n0.wav,a calm song\n1.wav,fast rock\n2.wav,jazz piano\n")
    return folder


def test_a_folder_against_itself_has_no_distance(clips: Path, tiny_clap_folder: Path) -> None:
    scores = evaluate_folder(clips, clips, clap=tiny_clap_folder, device="cpu")
    assert scores["fad"] == pytest.approx(0.0, abs=1e-6)
    assert scores["clips"] == scores["reference_recordings"] == 4


def test_other_music_is_further_away(clips: Path, tiny_audio_folder: Path, tiny_clap_folder: Path) -> None:
    scores = evaluate_folder(clips, tiny_audio_folder / "audio", clap=tiny_clap_folder, device="cpu")
    assert scores["fad"] > 1e-6
    assert any("biased upwards" in note for note in scores["notes"])


def test_prompts_are_scored_where_they_are_known(clips: Path, tiny_clap_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "scores.json"
    scores = evaluate_folder(clips, clips, clap=tiny_clap_folder, device="cpu", output_path=output)
    assert scores["clips_with_prompt"] == 3
    assert -1 <= scores["alignment"] <= 1
    own = [clip["alignment"] for clip in scores["per_clip"]]
    assert own[3] is None
    assert scores["alignment"] == pytest.approx(sum(own[:3]) / 3)
    assert any("1 of 4 clips have no known prompt" in note for note in scores["notes"])
    assert json.loads(output.read_text()) == scores


def test_clips_without_any_prompt_still_have_a_distance(clips: Path, tiny_clap_folder: Path) -> None:
    (clips / "prompts.csv").unlink()
    scores = evaluate_folder(clips, clips, clap=tiny_clap_folder, device="cpu")
    assert scores["alignment"] is None
    assert scores["fad"] is not None


def test_one_clip_has_alignment_but_no_distance(clips: Path, tiny_clap_folder: Path) -> None:
    for number in (1, 2, 3):
        (clips / f"{number}.wav").unlink()
    scores = evaluate_folder(clips, clips, clap=tiny_clap_folder, device="cpu")
    assert scores["fad"] is None
    assert scores["alignment"] is not None
    assert scores["alignment_mismatched"] is None
    assert any("no FAD" in note for note in scores["notes"])


def test_a_stored_reference_brings_its_model(
    clips: Path, tiny_clap_folder: Path, tiny_clap_without_fusion: Path, tmp_path: Path
) -> None:
    clap = ClapEmbedder(tiny_clap_folder, "cpu")
    stored = reference_from_folder(clips, clap).save(tmp_path / "reference.npz")
    assert evaluate_folder(clips, stored, device="cpu")["clap"] == str(tiny_clap_folder)
    with pytest.raises(DataError, match="use one model for both"):
        evaluate_folder(clips, stored, clap=tiny_clap_without_fusion, device="cpu")


def test_an_empty_folder_is_an_error(tiny_clap_folder: Path, clips: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        evaluate_folder(tmp_path / "empty", clips, clap=tiny_clap_folder, device="cpu")
