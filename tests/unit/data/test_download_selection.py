"""Which tracks are taken: the same by the same seed, fair or balanced, and only what was asked for."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from stable_audio_tools.data.download.selection import (
    choose,
    seeded_order,
    tags_of,
    with_license,
    with_tags,
)
from stable_audio_tools.data.jamendo import JamendoTrack, read_raw_30s
from stable_audio_tools.data.licenses import TrackLicense
from stable_audio_tools.errors import UsageError

MOODTHEME = Path(__file__).parents[3] / "../shared/data/mtg-jamendo/autotagging_moodtheme.tsv"


def track(number: int, *tags: str) -> JamendoTrack:
    by_category: dict[str, tuple[str, ...]] = {}
    for tag in tags:
        category, _, name = tag.partition("---")
        by_category[category] = (*by_category.get(category, ()), name)
    return JamendoTrack(number, 1, 1, f"{number % 100:02d}/{number}.mp3", 100.0, by_category)


def catalogue(count: int, seed: int = 0) -> dict[int, JamendoTrack]:
    """Tags with odds of 1/1, 1/2, 1/3 and so on, and some tracks without any."""
    draw = random.Random(seed)
    names = [f"genre---{letter}" for letter in "abcdefgh"]
    return {
        number: track(number, *(tag for rank, tag in enumerate(names, 1) if draw.random() < 0.5 / rank))
        for number in range(count)
    }


def license_(number: int, code: str) -> TrackLicense:
    return TrackLicense(number, "", "", "", code, "", code, "3.0")


@pytest.mark.parametrize("kind", ["plain", "balanced"])
@pytest.mark.parametrize("count", [1, 17, 200, 300, 999])
def test_as_many_as_asked_each_once_and_the_same_again(kind: str, count: int) -> None:
    tracks = catalogue(300)
    chosen = choose(tracks, count, 5, kind)
    assert len(chosen) == len(set(chosen)) == min(count, 300)
    assert set(chosen) <= set(tracks)
    assert chosen == choose(dict(reversed(tracks.items())), count, 5, kind)
    if count < 200:
        assert chosen != choose(tracks, count, 6, kind)


@pytest.mark.parametrize("kind", ["plain", "balanced"])
def test_more_tracks_of_a_seed_hold_the_fewer(kind: str) -> None:
    tracks = catalogue(300)
    few, more = choose(tracks, 40, 1, kind), choose(tracks, 90, 1, kind)
    assert more[:40] == few


def test_leaving_a_track_out_moves_no_other() -> None:
    order = seeded_order(range(100), 3)
    assert seeded_order([n for n in range(100) if n != order[10]], 3) == order[:10] + order[11:]


def test_balanced_takes_the_rare_tags_first_and_evens_them_out() -> None:
    tracks = catalogue(2000)
    counts = {
        kind: Counter(tag for number in choose(tracks, 200, 0, kind) for tag in tags_of(tracks[number]))
        for kind in ("plain", "balanced")
    }
    rarest = "genre---h"
    assert counts["balanced"][rarest] > 2 * counts["plain"][rarest]
    spread = {kind: max(found.values()) / min(found.values()) for kind, found in counts.items()}
    assert 2 * spread["balanced"] < spread["plain"]


def test_balanced_exhausts_a_tag_that_is_too_rare_and_goes_on() -> None:
    tracks = {n: track(n, "genre---common") for n in range(50)} | {99: track(99, "genre---lone")}
    tracks |= {n: track(n) for n in range(200, 210)}
    chosen = choose(tracks, 55, 0, "balanced")
    assert chosen[0] == 99
    assert set(chosen[51:]) <= set(range(200, 210))  # tracks without a tag come last
    assert len(chosen) == 55


def test_plain_is_fair() -> None:
    taken = Counter(n for seed in range(400) for n in choose({n: track(n) for n in range(20)}, 5, seed))
    assert all(60 <= taken[n] <= 140 for n in range(20))  # 100 each, standard deviation 8.7


def test_tags_are_found_with_and_without_their_category() -> None:
    tracks = {1: track(1, "genre---pop"), 2: track(2, "mood/theme---pop"), 3: track(3, "genre---rock")}
    assert set(with_tags(tracks, ["pop"])) == {1, 2}
    assert set(with_tags(tracks, ["genre---pop", "rock"])) == {1, 3}


def test_a_tag_that_is_not_there_is_refused_with_what_is_near() -> None:
    with pytest.raises(UsageError, match=r"no track of this table has the tag 'jaz'; near are .*jazz"):
        with_tags({1: track(1, "genre---jazz")}, ["jaz"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {1, 2, 3, 4, 5, 6}),
        (["any"], {1, 2, 3, 4, 5, 6}),
        (["no-nc"], {1, 2, 5}),
        (["no-nd"], {1, 2, 3}),
        (["no-nc", "no-nd"], {1, 2}),
        (["by", "by-nc-sa"], {1, 3}),
        (["by-nc-sa", "no-nc"], set()),
        (["other"], {6}),
    ],
)
def test_licences_narrow_the_choice(words: list[str], expected: set[int]) -> None:
    codes = {1: "by", 2: "by-sa", 3: "by-nc-sa", 4: "by-nc-nd", 5: "by-nd", 6: "other"}
    tracks = {number: track(number) for number in codes}
    licenses = {number: license_(number, code) for number, code in codes.items()}
    assert set(with_license(tracks, licenses, words)) == expected


def test_a_track_without_a_licence_is_taken_only_where_any_will_do() -> None:
    assert set(with_license({1: track(1)}, {}, ["any"])) == {1}
    assert set(with_license({1: track(1)}, {}, ["no-nc"])) == set()


def test_words_that_are_not_known_are_refused() -> None:
    with pytest.raises(UsageError, match="'cc0' is not known; expected any, no-nc"):
        with_license({}, {}, ["cc0"])
    with pytest.raises(UsageError, match="expected plain or balanced"):
        choose({}, 1, 0, "fair")


def test_the_real_table_is_balanced_in_no_time() -> None:
    if not MOODTHEME.is_file():
        pytest.skip("shared/data/mtg-jamendo is not on this machine")
    tracks = read_raw_30s(MOODTHEME)
    found = {
        kind: Counter(tag for number in choose(tracks, 3000, 42, kind) for tag in tags_of(tracks[number]))
        for kind in ("plain", "balanced")
    }
    assert len(found["balanced"]) == len({tag for one in tracks.values() for tag in tags_of(one)})
    assert min(found["balanced"].values()) > 2 * min(found["plain"].values())
