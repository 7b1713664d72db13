"""The Song Describer captions: all of them, with their three kinds of validity."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from stable_audio_tools.data.song_describer import find_recording, read_song_describer
from stable_audio_tools.errors import DataError

TABLE = Path(__file__).parents[3] / "../shared/data/song-describer/song_describer.csv"
HEADER = "caption_id,track_id,caption,is_valid_subset,familiarity,artist_id,album_id,path,duration\n"


def test_rows_keep_commas_lines_and_the_three_kinds_of_validity(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text(
        HEADER
        + '1,34,"slow, ""sad""\nsong",True,0,1,2,34/34.mp3,10.5\n'
        + "2,34,fast,False,,1,2,34/34.mp3,10.5\n"
        + "3,35,loud,,2,1,2,35/35.mp3,11\n"
    )
    captions = read_song_describer(path)
    assert [caption.is_valid_subset for caption in captions] == [True, False, None]
    assert [caption.familiarity for caption in captions] == [0, None, 2]
    assert captions[0].caption == 'slow, "sad"\nsong'
    assert captions[2].duration_seconds == 11.0


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("1,34,x,maybe,0,1,2,p,3", "malformed row: 'maybe'"),
        ("one,34,x,True,0,1,2,p,3", "malformed row"),
        ("1,34,x,True,0,1,2,p", "not as many columns"),
        ("1,34,x,True,0,1,2,p,3,4", "not as many columns"),
        ("1,34, ,True,0,1,2,p,3", "caption is empty"),
    ],
)
def test_a_malformed_row_is_named_by_its_line(tmp_path: Path, row: str, reason: str) -> None:
    (tmp_path / "s.csv").write_text(HEADER + row + "\n")
    with pytest.raises(DataError, match=rf"s\.csv:2: .*{reason}"):
        read_song_describer(tmp_path / "s.csv")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="lacks the columns caption_id"):
        read_song_describer(tmp_path / "s.csv")
    (tmp_path / "s.csv").write_text(HEADER)
    with pytest.raises(DataError, match="holds no captions"):
        read_song_describer(tmp_path / "s.csv")
    with pytest.raises(DataError, match="cannot be read"):
        read_song_describer(tmp_path / "none.csv")


def test_a_recording_is_found_by_its_two_minute_name_first(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text(HEADER + "1,34,x,True,0,1,2,34/34.mp3,3\n")
    (caption,) = read_song_describer(tmp_path / "s.csv")
    with pytest.raises(DataError, match=r"track 34: looked for .*34/34\.2min\.mp3 and .*34/34\.mp3"):
        find_recording(caption, tmp_path)
    (tmp_path / "34").mkdir()
    (tmp_path / "34/34.mp3").touch()
    assert find_recording(caption, tmp_path) == tmp_path / "34/34.mp3"
    (tmp_path / "34/34.2min.mp3").touch()
    assert find_recording(caption, tmp_path) == tmp_path / "34/34.2min.mp3"


def test_the_real_table_is_read_whole() -> None:
    if not TABLE.is_file():
        pytest.skip("shared/data/song-describer is not on this machine")
    captions = read_song_describer(TABLE)
    assert len(captions) == 1106
    assert len({caption.track_id for caption in captions}) == 706
    assert Counter(caption.is_valid_subset for caption in captions) == {True: 746, None: 332, False: 28}
    assert all(caption.path == f"{caption.track_id % 100:02d}/{caption.track_id}.mp3" for caption in captions)
