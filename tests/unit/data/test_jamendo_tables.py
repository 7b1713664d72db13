"""The MTG-Jamendo tables: every line, every tag, and a malformed line is named."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from stable_audio_tools.data.jamendo import JamendoFolder, prompt_from_tags, read_raw_30s, read_raw_meta
from stable_audio_tools.errors import DataError

SHARED = Path(__file__).parents[3] / "../shared/data"
TRACKS = "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS\n"
NAMES = "TRACK_ID\tARTIST_ID\tALBUM_ID\tTRACK_NAME\tARTIST_NAME\tALBUM_NAME\tRELEASEDATE\tURL\n"
LINE = "track_0000948\tartist_000087\talbum_000149\t48/948.mp3\t212.7"


def test_tags_of_any_number_are_kept_by_category_and_in_order(tmp_path: Path) -> None:
    tags = [f"instrument---i{number}" for number in range(30)] + [
        "genre---rock",
        "mood/theme---sad",
        "genre---pop",
    ]
    (tmp_path / "t.tsv").write_text(TRACKS + LINE + "\t" + "\t".join(tags) + "\r\n")
    (track,) = read_raw_30s(tmp_path / "t.tsv").values()
    assert (track.track_id, track.artist_id, track.album_id) == (948, 87, 149)
    assert (track.path, track.duration_seconds) == ("48/948.mp3", 212.7)
    assert track.tags["genre"] == ("rock", "pop")
    assert track.tags["mood/theme"] == ("sad",)
    assert track.tags["instrument"] == tuple(f"i{number}" for number in range(30))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("948\tartist_1\talbum_1\tp\t1", r"'948' is not a track id"),
        ("track_1\tartist_x\talbum_1\tp\t1", r"'artist_x' is not a artist id"),
        ("track_1\tartist_1\talbum_1\tp\tlong", r"'long' is not a duration"),
        ("track_1\tartist_1\talbum_1\tp\tnan", r"'nan' is not a duration"),
        ("track_1\tartist_1\talbum_1\tp", r"4 columns, expected at least 5"),
        ("track_1\tartist_1\talbum_1\tp\t1\tjazz", r"'jazz' is not a tag"),
        (LINE, r"track 948 is listed a second time"),
    ],
)
def test_a_malformed_line_is_named_by_its_number(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "t.tsv").write_text(TRACKS + LINE + "\n\n" + line + "\n")
    with pytest.raises(DataError, match=rf"t\.tsv:4: {reason}"):
        read_raw_30s(tmp_path / "t.tsv")


def test_another_table_is_not_taken_for_this_one(tmp_path: Path) -> None:
    (tmp_path / "meta.tsv").write_text(NAMES)
    with pytest.raises(DataError, match=r"header is .* expected 'TRACK_ID ARTIST_ID ALBUM_ID PATH"):
        read_raw_30s(tmp_path / "meta.tsv")
    with pytest.raises(DataError, match=r"none\.tsv: cannot be read"):
        read_raw_30s(tmp_path / "none.tsv")
    (tmp_path / "latin.tsv").write_bytes(TRACKS.encode() + b"\xe9\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read_raw_30s(tmp_path / "latin.tsv")


def test_names_may_hold_quotes_and_unicode_line_signs(tmp_path: Path) -> None:
    title = 'Say "hi" to\u2028the\x85band'
    row = f"track_0000948\tartist_000087\talbum_000149\t{title}\t'A\t\"B\t2004-01-01\thttp://x"
    (tmp_path / "meta.tsv").write_text(NAMES + row + "\n", encoding="utf-8")
    (names,) = read_raw_meta(tmp_path / "meta.tsv").values()
    assert (names.title, names.artist, names.album) == (title, "'A", '"B')
    (tmp_path / "meta.tsv").write_text(NAMES + row + "\textra\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"meta\.tsv:2: 9 columns, expected 8"):
        read_raw_meta(tmp_path / "meta.tsv")


def test_a_title_that_ends_in_a_tab_makes_an_empty_fifth_cell(tmp_path: Path) -> None:
    row = "track_0000948\tartist_000087\talbum_000149\tTitle\t\tArtist\tAlbum\t2004-01-01\thttp://x"
    (tmp_path / "meta.tsv").write_text(NAMES + row + "\n")
    (names,) = read_raw_meta(tmp_path / "meta.tsv").values()
    assert (names.title, names.artist, names.album, names.url) == ("Title", "Artist", "Album", "http://x")
    (tmp_path / "meta.tsv").write_text(NAMES + row.replace("\t\t", "\tx\t") + "\n")
    with pytest.raises(DataError, match=r"meta\.tsv:2: 9 columns"):
        read_raw_meta(tmp_path / "meta.tsv")


def test_the_tables_of_song_describer_have_no_header(tmp_path: Path) -> None:
    (tmp_path / "raw.tsv").write_text(LINE + "\tgenre---rock\n" + LINE.replace("948", "949") + "\n")
    assert list(read_raw_30s(tmp_path / "raw.tsv")) == [948, 949]
    (tmp_path / "raw.tsv").write_text(LINE + "\n" + LINE + "\n")
    with pytest.raises(DataError, match=r"raw\.tsv:2: track 948"):
        read_raw_30s(tmp_path / "raw.tsv")


def test_a_symbolic_link_that_was_downloaded_as_text_is_followed_or_named(tmp_path: Path) -> None:
    stub = tmp_path / "autotagging.tsv"
    stub.write_text("raw_30s_cleantags_50artists.tsv")
    assert stub.stat().st_size == 31
    with pytest.raises(DataError, match=r"autotagging\.tsv: is a symbolic link that was downloaded as text"):
        read_raw_30s(stub)
    (tmp_path / "raw_30s_cleantags_50artists.tsv").write_text(TRACKS + LINE + "\n")
    assert list(read_raw_30s(stub)) == [948]


def test_prompts_read_as_sentences() -> None:
    tags = {
        "genre": ("jazz", "hiphop"),
        "instrument": ("piano", "drummachine", "voice"),
        "mood/theme": ("sad",),
    }
    assert prompt_from_tags(tags, "Ace") == (
        "Jazz and hip hop music with piano, drum machine and voice. Mood: sad. Title: Ace."
    )
    assert prompt_from_tags({"genre": ("rnb",)}) == "R&B music."
    assert prompt_from_tags({"instrument": ("bass",)}, " ") == "Music with bass."
    assert prompt_from_tags({}) == "Music."


def test_a_recording_finds_the_tables_above_it(tiny_audio_folder: Path) -> None:
    folder = JamendoFolder()
    info = folder.metadata(tiny_audio_folder / "audio/03/1000203.wav")
    assert info == {
        "prompt": "Jazz music with piano. Mood: relaxing. Title: Song 2.",
        "track_id": 1000203,
        "artist_id": 900002,
        "artist": "Artist 2",
        "album_id": 800002,
        "album": "Album 2",
        "title": "Song 2",
        "tags": ["genre---jazz", "instrument---piano", "mood/theme---relaxing"],
    }
    assert folder.metadata(tiny_audio_folder / "audio/03/1000203.low.mp3") == info
    with pytest.raises(DataError, match=r"99\.wav: .*raw_30s\.tsv has no line for track 99"):
        folder.metadata(tiny_audio_folder / "audio/99/99.wav")
    with pytest.raises(DataError, match="starts with the track's number"):
        folder.metadata(tiny_audio_folder / "audio/song.wav")


def test_missing_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nor one above it has raw_30s\.tsv"):
        JamendoFolder().metadata(tmp_path / "audio/1.mp3")
    (tmp_path / "raw_30s.tsv").write_text(TRACKS)
    with pytest.raises(DataError, match=r"has raw_30s\.tsv but not raw\.meta\.tsv"):
        JamendoFolder().metadata(tmp_path / "audio/1.mp3")


def test_the_real_mood_table_is_read_whole() -> None:
    table = SHARED / "mtg-jamendo/autotagging_moodtheme.tsv"
    if not table.is_file():
        pytest.skip("shared/data/mtg-jamendo is not on this machine")
    tracks = read_raw_30s(table)
    assert len(tracks) == 18486
    counts = Counter(sum(len(tags) for tags in track.tags.values()) for track in tracks.values())
    assert counts == {1: 9947, 2: 5118, 3: 1996, 4: 941, 5: 338, 6: 123, 7: 20, 8: 3}
    assert all(track.path == f"{number % 100:02d}/{number}.mp3" for number, track in tracks.items())
    assert {category for track in tracks.values() for category in track.tags} == {"mood/theme"}


def test_the_real_recordings_have_prompts(jamendo_mini: Path) -> None:
    folder = JamendoFolder()
    prompts = {path.stem: folder.metadata(path)["prompt"] for path in jamendo_mini.glob("audio/*/*.mp3")}
    assert len(set(prompts.values())) == 6
    assert prompts["1000101"] == (
        "Jazz and lounge music with piano, vibraphone and drums. Mood: relaxing. Title: Vibe Ace."
    )
