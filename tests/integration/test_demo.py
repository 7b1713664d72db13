"""The demo, on a smaller catalogue and with fewer steps than ``make demo`` takes."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from stable_audio_tools.cli.main import main
from stable_audio_tools.data.sidecars import read_sidecar
from stable_audio_tools.demo.catalogue import CatalogueSettings
from stable_audio_tools.demo.result import DemoResult, DemoSettings, copies_found, planted_found, summary
from stable_audio_tools.demo.run import run_demo
from stable_audio_tools.errors import DataError

SETTINGS = DemoSettings(
    catalogue=CatalogueSettings(
        tracks_per_artist=1, planted=4, evaluation_tracks_per_artist=1, seconds=(6.0, 8.0)
    ),
    steps=4,
    batch_size=2,
    clips=2,
    sampler_steps=4,
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    return run_demo(tmp_path_factory.mktemp("demo") / "run", settings=SETTINGS)


def test_planted_copies_are_found_and_left_out_of_training(demo: DemoResult) -> None:
    assert len(demo.planted) == 4
    assert planted_found(demo) == 4
    assert demo.dedup["tracks"] == 12
    assert len(demo.dedup["excluded"]) == 4
    tracks = (demo.run_folder / "tracks.jsonl").read_text().splitlines()
    assert len(tracks) == 8


def test_every_clip_carries_how_it_was_made_and_is_ranked_against_every_track(demo: DemoResult) -> None:
    assert len(demo.clips) == 2
    for clip, asked in zip(demo.clips, demo.asked, strict=True):
        sidecar = read_sidecar(clip)
        assert sidecar is not None
        assert sidecar.prompt == asked["prompt"]
        assert sidecar.model_sha256
    with open(demo.folder / "attribution" / "ranking.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * 8
    assert len({(row["query"], row["sample_id"]) for row in rows}) == 16


def test_a_training_track_handed_in_as_a_clip_finds_itself(demo: DemoResult) -> None:
    assert demo.control[0]["path"] == demo.control_track


def test_copies_that_were_left_out_of_training_find_their_originals(demo: DemoResult) -> None:
    assert len(demo.copies) >= 1
    assert copies_found(demo) == len(demo.copies)
    assert (
        f"{len(demo.copies)} of {len(demo.copies)} rank their original first"
        in (demo.folder / "index.html").read_text()
    )


def test_the_page_is_one_file_with_players_and_pictures(demo: DemoResult) -> None:
    html = (demo.folder / "index.html").read_text()
    assert html.count("<audio") == 2 * (1 + 3)
    assert html.count("<img") >= 2 * (1 + 3)
    assert re.findall(r'(?:src|href)="(?!data:|#)([^"]*)', html) == ["attribution/report/index.html"]
    assert (demo.folder / "attribution" / "report" / "index.html").exists()
    assert [row[0] for row in summary(demo)] == [
        "catalogue", "dedup", "train", "generate", "attribute", "evaluate",
    ]  # fmt: skip


def test_a_finished_demo_is_not_done_again(demo: DemoResult) -> None:
    kept = [demo.folder / "attribution" / "train_features" / "features.npy", *demo.clips]
    kept += sorted((demo.run_folder / "checkpoints").glob("*.ckpt"))
    before = [path.stat().st_mtime_ns for path in kept]
    again = run_demo(demo.folder, settings=SETTINGS)
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert again.ranking == demo.ranking


def test_another_demo_in_the_same_folder_is_refused(demo: DemoResult) -> None:
    with pytest.raises(DataError, match="choose another --out-dir"):
        run_demo(demo.folder, settings=DemoSettings(steps=5))


@pytest.mark.parametrize("content", [None, "nothing"])
def test_a_folder_that_is_no_catalogue_is_one_line(
    tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = tmp_path / "music"
    if content is not None:
        dataset.mkdir()
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--dataset", str(dataset), "--out-dir", str(tmp_path / "out")])
    assert stopped.value.code == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("error:")
    assert "\n" not in message
    assert "MTG-Jamendo layout" in message
    assert not (tmp_path / "out").exists()
