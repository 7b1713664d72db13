"""The catalogue on disk: its layout, its planted copies, and that it can be written again and again."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stable_audio_tools.demo.catalogue import CatalogueSettings, write_catalogue
from stable_audio_tools.errors import UsageError
from stable_audio_tools.runtime.files import sha256_file

SETTINGS = CatalogueSettings(
    tracks_per_artist=1, planted=4, evaluation_tracks_per_artist=1, seconds=(3.0, 4.0)
)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_catalogue(tmp_path_factory.mktemp("catalogue"), SETTINGS, num_workers=0)


def _rows(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text().splitlines()[1:]]


def test_tables_and_files_agree(catalogue: Path) -> None:
    tags, meta = _rows(catalogue / "raw_30s.tsv"), _rows(catalogue / "raw.meta.tsv")
    assert len(tags) == len(meta) == 8 + 4
    assert [row[:3] for row in tags] == [row[:3] for row in meta]
    for row in tags:
        path = catalogue / "audio" / row[3]
        assert int(path.parent.name) == int(path.stem) % 100
        assert soundfile.info(str(path)).duration == pytest.approx(float(row[4]), abs=0.15)
        assert all(tag.split("---")[0] in ("genre", "instrument", "mood/theme") for tag in row[5:])
        assert len(row) > 5
    listed = {row[3] for row in tags}
    assert listed == {
        p.relative_to(catalogue / "audio").as_posix() for p in (catalogue / "audio").rglob("*.*")
    }


def _aligned_correlation(one: np.ndarray, two: np.ndarray) -> tuple[float, int]:
    """Largest correlation over all shifts, 1 for a copy, and by how many samples ``two`` is early."""
    size = 1 << (len(one) + len(two)).bit_length()
    product = np.fft.irfft(np.fft.rfft(one, size) * np.conj(np.fft.rfft(two, size)), size)
    return float(product.max() / (np.linalg.norm(one) * np.linalg.norm(two))), int(product.argmax())


def test_planted_copies_are_what_the_truth_says(catalogue: Path) -> None:
    truth = json.loads((catalogue / "planted.json").read_text())
    assert [entry["kind"] for entry in truth] == ["copy", "re-encoded", "softer", "trimmed"]
    for entry in truth:
        one, _ = soundfile.read(catalogue / "audio" / entry["original"])
        two, _ = soundfile.read(catalogue / "audio" / entry["duplicate"])
        likeness, shift = _aligned_correlation(one.mean(1), two.mean(1))
        assert likeness > (0.85 if entry["kind"] == "trimmed" else 0.97)
        level = 20 * np.log10(two.std() / one.std())
        assert level == pytest.approx(-6.0 if entry["kind"] == "softer" else 0.0, abs=0.6)
        expected = 12_000 if entry["kind"] == "trimmed" else 0
        assert abs(shift - expected) < 2500  # encoders add a delay of their own
        if entry["kind"] == "copy":
            assert sha256_file(catalogue / "audio" / entry["original"]) == sha256_file(
                catalogue / "audio" / entry["duplicate"]
            )


def test_no_other_track_is_a_copy(catalogue: Path) -> None:
    copies = {entry["duplicate"] for entry in json.loads((catalogue / "planted.json").read_text())}
    sounds = [
        soundfile.read(catalogue / "audio" / row[3])[0].mean(1)
        for row in _rows(catalogue / "raw_30s.tsv")
        if row[3] not in copies
    ]
    assert max(_aligned_correlation(a, b)[0] for i, a in enumerate(sounds) for b in sounds[:i]) < 0.8


def test_evaluation_set_has_the_public_columns_and_its_files(catalogue: Path) -> None:
    folder = catalogue / "song_describer"
    with open(folder / "song_describer.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 8
    assert list(rows[0]) == [
        "caption_id", "track_id", "caption", "is_valid_subset", "familiarity", "artist_id", "album_id",
        "path", "duration",
    ]  # fmt: skip
    for row in rows:
        assert (folder / "audio" / row["path"].replace(".mp3", ".2min.mp3")).exists()
        assert row["caption"]


def test_an_interrupted_catalogue_is_completed(catalogue: Path) -> None:
    files = sorted((catalogue / "audio").rglob("*.*"))
    before = {path: sha256_file(path) for path in files}
    stamps = {path: path.stat().st_mtime_ns for path in files}
    files[0].unlink()
    (catalogue / "catalogue.json").unlink()
    write_catalogue(catalogue, SETTINGS, num_workers=0)
    assert files[0].suffix == ".mp3"  # an ogg stream has a random serial number
    assert {path: sha256_file(path) for path in files} == before
    copied = {
        catalogue / "audio" / entry["duplicate"]
        for entry in json.loads((catalogue / "planted.json").read_text())
        if entry["kind"] == "copy"
    }
    assert all(path.stat().st_mtime_ns == stamps[path] for path in files[1:] if path not in copied)
    assert not list(catalogue.rglob(".tmp-*"))


def test_a_folder_of_other_settings_is_refused(catalogue: Path) -> None:
    with pytest.raises(UsageError, match="other settings"):
        write_catalogue(catalogue, CatalogueSettings(), num_workers=0)


def test_more_copies_than_tracks_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only 8 tracks"):
        write_catalogue(tmp_path, CatalogueSettings(tracks_per_artist=1, planted=9), num_workers=0)
    assert not list(tmp_path.iterdir())
