"""What must stay out of training: by number, byte for byte, by its sound, by its artist."""

from __future__ import annotations

from pathlib import Path

import pytest

from stable_audio_tools.data.check.table import check_table, write_table_exclude_list
from stable_audio_tools.data.leakage import (
    Identity,
    Leak,
    artists_near,
    find_leaks,
    fold_artist,
    identity_of,
    jamendo_number,
    read_checksums,
    read_table,
    twins,
)
from stable_audio_tools.data.paths import read_path_list
from stable_audio_tools.errors import DataError, UsageError

SHARED = Path(__file__).parents[3] / "../shared/data"


@pytest.fixture(scope="module")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("shared/data is not on this machine")
    return SHARED


def checksums_of(shared: Path) -> dict[str, frozenset[str]]:
    return read_checksums([shared / "mtg-jamendo/autotagging_moodtheme_audio_sha256_tracks.txt"])


def test_the_manifest_of_mtg_has_117_groups_of_243_tracks(shared: Path) -> None:
    groups = twins(checksums_of(shared))
    assert (len(groups), sum(map(len, groups))) == (117, 243)
    assert ["17155", "24837"] in groups


def test_track_24837_of_song_describer_has_its_twin_17155_in_the_training_split(shared: Path) -> None:
    checksums = checksums_of(shared)
    training = read_table(shared / "mtg-jamendo/autotagging_moodtheme.tsv", checksums)
    evaluation = read_table(shared / "song-describer/song_describer.csv", checksums)
    assert (len(training), len(evaluation)) == (18486, 706)
    leaks = find_leaks(training, evaluation)
    twin = [leak for leak in leaks if training[leak.row].track_id == "17155"]
    digest = "3495eae116d624fe30bc112c5d2acdbf04193575eabfe1988a0a345c4b6a8871"
    assert twin == [Leak(twin[0].row, "bytes", "37/24837.mp3", digest)]
    by_rule = {
        rule: {leak.row for leak in leaks if leak.rule == rule} for rule in ("track", "bytes", "artist")
    }
    assert {rule: len(rows) for rule, rows in by_rule.items()} == {"track": 299, "bytes": 302, "artist": 2696}
    only_twins = {training[row].track_id for row in by_rule["bytes"] - by_rule["track"]}
    assert only_twins == {"17155", "482263", "1097944"}
    # without the checksums nothing tells that the two are one file
    plain = find_leaks(
        read_table(shared / "mtg-jamendo/autotagging_moodtheme.tsv"),
        read_table(shared / "song-describer/song_describer.csv"),
    )
    assert "17155" not in {training[leak.row].track_id for leak in plain}


def test_the_list_made_of_a_table_names_the_twin_in_both_encodings(shared: Path, tmp_path: Path) -> None:
    checksums = checksums_of(shared)
    evaluation = read_table(shared / "song-describer/song_describer.csv", checksums)
    table = shared / "mtg-jamendo/autotagging_moodtheme.tsv"
    report = check_table(table, evaluation, ["track", "bytes"], checksums)
    assert len(report.twins) == 117
    write_table_exclude_list(report, tmp_path / "exclude.txt")
    names = read_path_list(tmp_path / "exclude.txt")
    assert {"55/17155.mp3", "55/17155.low.mp3", "37/24837.mp3"} <= set(names)
    assert len(names) == 2 * len(report.excluded)
    # 302 leak; of 117 groups those without a leak keep one track
    leaking = sum(any(row in report.leaking for row in rows) for rows in report.twins)
    kept = 117 - leaking
    members = sum(len(rows) for rows in report.twins if not any(row in report.leaking for row in rows))
    assert list(report.excluded.values()).count("duplicate") == members - kept


def known(name: str, **marks: object) -> Identity:
    return Identity(name, **marks)  # type: ignore[arg-type]


def test_each_rule_finds_its_own_and_nothing_else() -> None:
    evaluation = [
        known(
            "e", track_id="7", artists=frozenset({"id 1", "bo"}), sha256=frozenset({"aa"}), audio_sha256="ff"
        )
    ]
    training = [
        known("number", track_id="7"),
        known("bytes", track_id="8", sha256=frozenset({"aa", "bb"})),
        known("audio", audio_sha256="ff"),
        known("artist", artists=frozenset({"bo", "al"})),
        known(
            "nothing", track_id="aa", artists=frozenset({"7"}), sha256=frozenset({"ff"}), audio_sha256="aa"
        ),
        known("unknown"),
    ]
    leaks = find_leaks(training, evaluation)
    assert [(training[leak.row].name, leak.rule) for leak in leaks] == [
        ("number", "track"),
        ("bytes", "bytes"),
        ("audio", "audio"),
        ("artist", "artist"),
    ]
    assert [leak.rule for leak in find_leaks(training, evaluation, ["artist"])] == ["artist"]
    assert find_leaks(training, []) == []
    with pytest.raises(UsageError, match="unknown leakage rule 'album': expected track, bytes"):
        find_leaks(training, evaluation, ["album"])


def test_a_track_that_several_rules_meet_has_a_leak_for_each() -> None:
    both = known("x", track_id="7", artists=frozenset({"bo"}))
    assert [leak.rule for leak in find_leaks([both], [both])] == ["track", "artist"]


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("audio/37/24837.mp3", "24837"),
        ("37/24837.low.mp3", "24837"),
        ("37/24837.2min.mp3", "24837"),
        ("00/1234500.flac", "1234500"),
        ("37/24838.mp3", None),
        ("02/02.mp3", None),
        ("24837.mp3", None),
        ("37/24837 live.mp3", None),
        ("137/24837.mp3", None),
    ],
)
def test_a_number_is_of_jamendo_only_in_its_folder(path: str, number: str | None) -> None:
    assert jamendo_number(path) == number


def test_artists_are_compared_without_case_width_and_spaces_and_nobody_is_nobody() -> None:
    assert fold_artist("  Kevin   MacLEOD ") == fold_artist("kevin macleod") == "kevin macleod"
    assert fold_artist("\uff21bba") == "abba"
    for nobody in ("", " ", "Unknown Artist", "VARIOUS artists", "n/a"):
        assert fold_artist(nobody) == ""


def test_an_identity_is_of_all_that_is_known() -> None:
    found = identity_of(
        "d/37/24837.mp3",
        "37/24837.mp3",
        {"artist": "Bo", "prompt": "x"},
        sha256="aa",
        audio_sha256="ff",
        manifest={"24837": frozenset({"bb"})},
        artist_ids={"24837": 2534},
    )
    assert found == Identity(
        "d/37/24837.mp3", "24837", frozenset({"bo", "id 2534"}), frozenset({"aa", "bb"}), "ff"
    )
    assert identity_of("x", "a/b.mp3", {"track_id": 5, "artist_id": 6}) == Identity(
        "x", "5", frozenset({"id 6"})
    )
    assert identity_of("x", "a/b.mp3", {"artist": "Various Artists"}) == Identity("x")


def test_a_csv_of_ones_own_is_an_evaluation_set(tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    table.write_text("Path,Artist,SHA256\na/b.mp3,Bo,AA\nc.mp3,,\n")
    assert read_table(table) == [
        Identity("a/b.mp3", None, frozenset({"bo"}), frozenset({"aa"})),
        Identity("c.mp3"),
    ]
    table.write_text("name,year\nx,1\n")
    with pytest.raises(DataError, match="has the columns name, year; expected one of path"):
        read_table(table)
    with pytest.raises(DataError, match=r"none\.csv: cannot be read: No such file"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(DataError, match=r"expected \.csv or \.tsv"):
        read_table(tmp_path / "none.txt")


def test_checksums_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "sums.txt"
    path.write_text(f"{'a' * 64}  37/24837.mp3\n{'B' * 64} *38/24838.mp3\n\n")
    assert read_checksums([path]) == {"24837": frozenset({"a" * 64}), "24838": frozenset({"b" * 64})}
    path.write_text(f"{'a' * 64}  37/24837.mp3\nabc 38/24838.mp3\n")
    with pytest.raises(DataError, match=r"sums\.txt:2: 'abc 38/24838\.mp3' is not a SHA-256 and a name"):
        read_checksums([path])
    path.write_text(f"{'a' * 64}  raw_30s_audio-00.tar\n")
    with pytest.raises(DataError, match="expected the checksums of tracks, not tars"):
        read_checksums([path])


def test_the_artists_of_tables_near_the_audio_are_found(tiny_audio_folder: Path, tmp_path: Path) -> None:
    assert artists_near(tiny_audio_folder / "audio")["1000101"] == 900001
    assert artists_near(tmp_path) == {}
