"""The dedup job on synthesised music: what it finds, what it leaves alone, and what it writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from stable_audio_tools.audio.files import AudioInfo
from stable_audio_tools.data.index import TrackIndex
from stable_audio_tools.data.paths import read_path_list
from stable_audio_tools.dedup import hearing
from stable_audio_tools.dedup.outputs import DedupSummary
from stable_audio_tools.dedup.run import run_dedup
from stable_audio_tools.dedup.settings import DedupSettings
from stable_audio_tools.errors import CheckpointError, DataError, UsageError
from stable_audio_tools.schema.reader import parse_dataset_config

COPIES = {"original.wav", "a/exact.wav", "a/quieter.wav", "a/trimmed.wav", "a/reencoded.mp3"}


def index_of(*folders: Path, exclude: Path | None = None, apply: bool = False) -> TrackIndex:
    config = parse_dataset_config(
        {
            "dataset_type": "audio_dir",
            "datasets": [{"id": f"d{i}", "path": str(folder)} for i, folder in enumerate(folders)],
            "exclude_paths_file": str(exclude) if exclude else None,
        }
    )
    return TrackIndex.from_config(config, apply_excludes=apply)


def dedup(index: TrackIndex, output: Path, model: Path | None, **settings: Any) -> DedupSummary:
    defaults = {"device": "cpu", "similarity_threshold": 0.8, "num_workers": 2}
    chosen = DedupSettings(model_path=str(model) if model else None, **{**defaults, **settings})
    return run_dedup(index, output, chosen)


@pytest.fixture(scope="module")
def result(
    music_folder: Path, tiny_dac_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DedupSummary, Path]:
    output = tmp_path_factory.mktemp("dedup")
    return dedup(index_of(music_folder), output, tiny_dac_folder), output


def records(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "similar_pairs.jsonl").read_text().splitlines()]


def test_altered_copies_are_one_group_and_other_tracks_in_none(result: tuple[DedupSummary, Path]) -> None:
    summary, _ = result
    assert [set(group) for group in summary.groups] == [{f"d0/{name}" for name in COPIES}]


def test_of_a_group_one_full_length_track_stays(result: tuple[DedupSummary, Path]) -> None:
    summary, output = result
    # the same length and bit rate: the smallest name of the three full-length wavs
    assert set(read_path_list(output / "exclude_paths.txt")) == COPIES - {"a/exact.wav"}
    assert set(summary.excluded) == {f"d0/{name}" for name in COPIES - {"a/exact.wav"}}


def test_the_histogram_alone_would_merge_tracks_of_the_same_notes(
    music_folder: Path, tiny_dac_folder: Path, tmp_path: Path
) -> None:
    blind = dedup(index_of(music_folder), tmp_path, tiny_dac_folder, verify=False)
    pair = {"d0/same_notes_1.wav", "d0/same_notes_2.wav"}
    assert any(pair <= set(group) for group in blind.groups)
    assert not any("alignment" in record or "correlation" in record for record in records(tmp_path))


def test_every_pair_carries_its_evidence(result: tuple[DedupSummary, Path]) -> None:
    summary, output = result
    pairs = {frozenset((record["a"], record["b"])): record for record in records(output)}
    assert len(pairs) == summary.candidates
    exact = pairs[frozenset({"d0/original.wav", "d0/a/exact.wav"})]
    assert (exact["identical_bytes"], exact["identical_audio"]) == (True, True)
    trimmed = pairs[frozenset({"d0/a/exact.wav", "d0/a/trimmed.wav"})]
    assert trimmed["duplicate"] is True
    assert abs(trimmed["offset_seconds"]) == pytest.approx(0.5, abs=0.05)
    assert trimmed["correlation"] > 0.9
    assert trimmed["agreement"] > 0.7
    assert trimmed["similarity"] > 0.8
    assert trimmed["votes"] > 20
    assert trimmed["kept"] == "d0/a/exact.wav"
    rejected = pairs[frozenset({"d0/same_notes_1.wav", "d0/same_notes_2.wav"})]
    assert rejected["duplicate"] is False
    assert rejected["agreement"] < 0.4


def test_what_has_nothing_to_compare_is_flagged_and_never_merged(result: tuple[DedupSummary, Path]) -> None:
    summary, output = result
    assert summary.flagged == {
        "d0/silent_1.wav": "silent",
        "d0/silent_2.wav": "silent",
        "d0/constant.wav": "constant",
        "d0/anti_phase.wav": "anti-phase",
    }
    named = {name for record in records(output) for name in (record["a"], record["b"])}
    assert not named & set(summary.flagged)


def test_unreadable_files_are_listed(result: tuple[DedupSummary, Path], music_folder: Path) -> None:
    _, output = result
    (failure,) = json.loads((output / "failed_files.json").read_text())
    assert failure["file"] == str(music_folder / "broken.mp3")
    assert "broken.mp3" in failure["error"]


def test_the_summary_says_how_it_was_made(result: tuple[DedupSummary, Path]) -> None:
    summary, output = result
    written = json.loads((output / "summary.json").read_text())
    assert written["tracks"] == summary.tracks == 13
    assert written["settings"]["similarity_threshold"] == 0.8
    assert len(written["settings"]["model_sha256"]) == 64
    assert len(written["content_sha256"]) == 64
    assert written["versions"]["torch"]


def test_training_leaves_out_what_the_list_names(
    result: tuple[DedupSummary, Path], music_folder: Path
) -> None:
    summary, output = result
    index = index_of(music_folder, exclude=output / "exclude_paths.txt", apply=True)
    assert index.excluded == 4
    assert not {track.sample_id for track in index} & set(summary.excluded)


def test_a_run_goes_on_from_stored_fingerprints(
    result: tuple[DedupSummary, Path],
    music_folder: Path,
    tiny_dac_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    summary, output = result
    for name in ("fingerprints", "codes"):
        shutil.copytree(output / name, tmp_path / name)
    next((tmp_path / "fingerprints").glob("*/*.npz")).unlink()  # as after a kill: all but one are done
    decoded: list[str] = []
    listen = hearing.listen

    def spy(file: AudioInfo) -> Any:
        decoded.append(file.path.name)
        return listen(file)

    monkeypatch.setattr(hearing, "listen", spy)
    again = dedup(index_of(music_folder), tmp_path, tiny_dac_folder)
    assert (again.groups, again.excluded, again.flagged) == (
        summary.groups,
        summary.excluded,
        summary.flagged,
    )
    assert 0 < len(set(decoded) - {"broken.mp3"}) <= 2  # two names may share one content
    assert (tmp_path / "similar_pairs.jsonl").read_text() == (output / "similar_pairs.jsonl").read_text()


def test_one_name_in_two_folders_is_excluded_from_one(
    music_folder: Path, tiny_dac_folder: Path, tmp_path: Path
) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
        shutil.copy(music_folder / "original.wav", folder / "song.wav")
    output = tmp_path / "out"
    summary = dedup(index_of(*folders), output, tiny_dac_folder)
    assert summary.excluded == ["d1/song.wav"]
    left = index_of(*folders, exclude=output / "exclude_paths.txt", apply=True)
    assert [track.sample_id for track in left] == ["d0/song.wav"]


def test_odd_names_come_through(music_folder: Path, tiny_dac_folder: Path, tmp_path: Path) -> None:
    name = "#1 hit\n\U0001f3b5.wav"
    folder = tmp_path / "odd"
    folder.mkdir()
    shutil.copy(music_folder / "original.wav", folder / "!first.wav")
    shutil.copy(music_folder / "original.wav", folder / name)
    output = tmp_path / "out"
    assert dedup(index_of(folder), output, tiny_dac_folder).excluded == [f"d0/{name}"]
    left = index_of(folder, exclude=output / "exclude_paths.txt", apply=True)
    assert [track.relpath for track in left] == ["!first.wav"]
    assert json.loads((output / "summary.json").read_text())["excluded"] == [f"d0/{name}"]


def test_a_folder_without_duplicates_has_an_empty_list(
    music_folder: Path, tiny_dac_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    shutil.copy(music_folder / "other.wav", folder)
    assert dedup(index_of(folder), tmp_path / "out", tiny_dac_folder).groups == []
    assert read_path_list(tmp_path / "out" / "exclude_paths.txt") == []
    assert records(tmp_path / "out") == []


def test_when_nothing_can_be_read_it_says_why(
    music_folder: Path, tiny_dac_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    shutil.copy(music_folder / "broken.mp3", folder)
    with pytest.raises(DataError, match=r"none of the 1 tracks .*broken\.mp3"):
        dedup(index_of(folder), tmp_path / "out", tiny_dac_folder)


@pytest.mark.parametrize(
    "setting",
    [
        {"similarity_threshold": 1.5},
        {"histogram_mode": "local"},
        {"min_correlation": 0.0},
        {"min_agreement": 1.5},
        {"min_overlap": float("nan")},
        {"max_candidates": 0},
        {"max_index_gib": 0.0},
        {"batch_size": 0},
        {"chunk_seconds": 0.0},
        {"num_workers": 0},
        {"similarity_device": "abacus"},
        {"max_audio_seconds": -1.0},
    ],
)
def test_a_bad_setting_is_refused_before_any_work(
    music_folder: Path, tiny_dac_folder: Path, tmp_path: Path, setting: dict[str, Any]
) -> None:
    with pytest.raises(UsageError):
        dedup(index_of(music_folder), tmp_path / "out", tiny_dac_folder, **setting)
    assert not (tmp_path / "out").exists()


def test_a_missing_model_is_named(music_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        dedup(index_of(music_folder), tmp_path / "out", tmp_path / "nowhere")


def test_a_missing_device_is_named_before_any_work(
    music_folder: Path, tiny_dac_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="abacus"):
        dedup(index_of(music_folder), tmp_path / "out", tiny_dac_folder, similarity_device="abacus")


def test_landmarks_alone_find_the_same_groups(
    result: tuple[DedupSummary, Path], music_folder: Path, tmp_path: Path
) -> None:
    summary, _ = result
    alone = dedup(index_of(music_folder), tmp_path / "out", None)
    assert (alone.groups, alone.excluded, alone.flagged) == (
        summary.groups,
        summary.excluded,
        summary.flagged,
    )
    assert not (tmp_path / "out" / "codes").exists()
    assert all(record["similarity"] is None for record in records(tmp_path / "out"))


def test_without_a_model_there_is_nothing_that_could_go_unverified() -> None:
    with pytest.raises(UsageError, match="landmarks"):
        DedupSettings(model_path=None, verify=False)


def test_the_order_of_the_tracks_changes_nothing(
    result: tuple[DedupSummary, Path], music_folder: Path, tiny_dac_folder: Path, tmp_path: Path
) -> None:
    summary, output = result
    backwards = TrackIndex(list(index_of(music_folder))[::-1])
    again = dedup(backwards, tmp_path / "out", tiny_dac_folder)  # type: ignore[arg-type]
    assert set(again.excluded) == set(summary.excluded)
    assert [set(group) for group in again.groups] == [set(group) for group in summary.groups]
    evidence = [
        {frozenset((r["a"], r["b"])): r["duplicate"] for r in records(o)} for o in (output, tmp_path / "out")
    ]
    assert evidence[0] == evidence[1]


def test_training_tracks_that_the_evaluation_hears_are_all_excluded(
    music_folder: Path, tmp_path: Path
) -> None:
    held_out = tmp_path / "held out"
    held_out.mkdir()
    shutil.copy(music_folder / "a" / "reencoded.mp3", held_out / "clip.mp3")
    shutil.copy(music_folder / "other.wav", held_out / "lone.wav")
    (held_out / "lone.wav").rename(held_out / "silent.wav")
    shutil.copy(music_folder / "silent_1.wav", held_out / "silent.wav")
    index, evaluation = index_of(music_folder), index_of(held_out)
    output = tmp_path / "out"
    summary = run_dedup(index, output, DedupSettings(model_path=None), evaluation=evaluation)
    assert set(summary.excluded) == {f"d0/{name}" for name in COPIES}
    assert summary.evaluation_twins == dict.fromkeys(summary.excluded, "evaluation: d0/clip.mp3")
    assert summary.tracks == 13
    assert set(read_path_list(output / "exclude_paths.txt")) == COPIES
    assert "evaluation: d0/silent.wav" in summary.flagged


def test_of_copies_as_good_the_licence_decides(music_folder: Path, tmp_path: Path) -> None:
    index = index_of(music_folder)
    codes = {"d0/original.wav": "by", "d0/a/exact.wav": "by-nc-nd", "d0/a/quieter.wav": "by-nc"}
    summary = run_dedup(index, tmp_path / "out", DedupSettings(model_path=None), licenses=codes)
    assert set(summary.excluded) == {f"d0/{name}" for name in COPIES - {"original.wav"}}


def test_the_page_has_a_player_for_both_of_every_pair(result: tuple[DedupSummary, Path]) -> None:
    _, output = result
    page = (output / "pairs.html").read_text(encoding="utf-8")
    shown = [record for record in records(output) if "correlation" in record]
    assert page.count("<audio") == 2 * len(shown)
    assert "landmarks that agree" in page
    assert "anti-phase" in page
    assert "://" not in page.split("<body>")[1], "readable without a network"


def test_a_damaged_list_of_hashes_is_mended(music_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    first = dedup(index_of(music_folder), output, None)
    listed = output / "files.jsonl"
    listed.write_bytes(listed.read_bytes()[:-40])  # a kill in the middle of a line
    assert dedup(index_of(music_folder), output, None).groups == first.groups
    whole = [line for line in listed.read_text().splitlines() if line.endswith('"]')]
    assert len(whole) == 13 + 0
