"""Licences of tracks: every record, told apart by what they forbid; a malformed one is named by its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from stable_audio_tools.data.licenses import read_licenses
from stable_audio_tools.errors import DataError

CC = "http://creativecommons.org/licenses"


def _record(track: int, url: str, name: str = "a Creative Commons Attribution license") -> list[str]:
    return [
        f"{track % 100:02d}/{track}.mp3",
        f"Stand by me by The by-standers from Jamendo: http://www.jamendo.com/track/{track}",
        f"Available under {name}: {url}",
    ]


@pytest.mark.parametrize("end", ["", "--"])
def test_records_of_both_data_sets_are_read_whole(tmp_path: Path, end: str) -> None:
    lines = [*_record(214, f"{CC}/by-nc-nd/3.0/"), end, *_record(1000203, f"{CC}/by/2.5/fr/"), end]
    (tmp_path / "l.txt").write_text("\r\n".join(lines) + "\r\n", newline="")
    first, second = read_licenses(tmp_path / "l.txt").values()
    assert (first.track_id, first.path, first.short) == (214, "14/214.mp3", "CC BY-NC-ND 3.0")
    assert first.attribution == "Stand by me by The by-standers"
    assert first.page == "http://www.jamendo.com/track/214"
    assert first.name == "Creative Commons Attribution"
    assert (second.track_id, second.short, second.url) == (1000203, "CC BY 2.5", f"{CC}/by/2.5/fr/")


@pytest.mark.parametrize(
    ("url", "code", "commercial", "derivatives"),
    [
        (f"{CC}/by/3.0/", "by", True, True),
        (f"{CC}/by-sa/3.0/", "by-sa", True, True),
        (f"{CC}/by-nd/3.0/", "by-nd", True, False),
        (f"{CC}/by-nc/3.0/", "by-nc", False, True),
        (f"{CC}/by-nc-sa/2.0/es/", "by-nc-sa", False, True),
        (f"{CC}/by-nc-nd/3.0/", "by-nc-nd", False, False),
        ("http://artlibre.org/licence/lal", "lal", True, True),
        ("http://example.org/ours", "other", False, False),
    ],
)
def test_what_a_licence_forbids_is_seen(
    tmp_path: Path, url: str, code: str, commercial: bool, derivatives: bool
) -> None:
    (tmp_path / "l.txt").write_text("\n".join(_record(7, url, "the licence of us")))
    (found,) = read_licenses(tmp_path / "l.txt").values()
    assert (found.code, found.commercial_use, found.derivatives) == (code, commercial, derivatives)


@pytest.mark.parametrize(
    ("line", "text", "reason"),
    [
        (0, "song.mp3", "expected a path NN/id"),
        (1, "Somebody", "expected '<title> by <artist> from Jamendo"),
        (2, "All rights reserved", "expected 'Available under"),
        (2, "", "expected 'Available under"),
    ],
)
def test_a_malformed_record_is_named_by_its_line(tmp_path: Path, line: int, text: str, reason: str) -> None:
    good, bad = _record(1, f"{CC}/by/3.0/"), _record(2, f"{CC}/by/3.0/")
    bad[line] = text
    (tmp_path / "l.txt").write_text("\n".join([*good, "", *bad, "", *_record(3, f"{CC}/by/3.0/")]))
    with pytest.raises(DataError, match=rf"l\.txt:{5 + line}: .*{reason}"):
        read_licenses(tmp_path / "l.txt")


def test_a_cut_off_file_and_a_repeated_track_are_errors(tmp_path: Path) -> None:
    record = _record(1, f"{CC}/by/3.0/")
    (tmp_path / "l.txt").write_text("\n".join([*record, "", *record[:2]]))
    with pytest.raises(DataError, match=r"l\.txt:7: '', expected 'Available"):
        read_licenses(tmp_path / "l.txt")
    (tmp_path / "l.txt").write_text("\n".join([*record, "", *record]))
    with pytest.raises(DataError, match=r"l\.txt:5: track 1 is listed a second time"):
        read_licenses(tmp_path / "l.txt")
    (tmp_path / "l.txt").write_text("\n")
    with pytest.raises(DataError, match="holds no licences"):
        read_licenses(tmp_path / "l.txt")
