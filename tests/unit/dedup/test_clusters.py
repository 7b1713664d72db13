"""Groups and the kept track do not depend on the order of anything."""

from __future__ import annotations

import random

from stable_audio_tools.dedup.clusters import Member, choose_kept, connected_groups


def test_chains_join_and_lone_nodes_are_left_out() -> None:
    assert connected_groups(7, [(4, 2), (0, 4), (5, 6)]) == [[0, 2, 4], [5, 6]]


def test_the_order_of_edges_does_not_matter() -> None:
    source = random.Random(0)
    edges = [(source.randrange(40), source.randrange(40)) for _ in range(25)]
    expected = connected_groups(40, edges)
    for _ in range(20):
        source.shuffle(edges)
        assert connected_groups(40, [tuple(source.sample(edge, 2)) for edge in edges]) == expected


def kept(*members: Member) -> set[str]:
    """Sample ids chosen over many orders of the members: one, if order does not matter."""
    source = random.Random(0)
    return {
        shuffled[choose_kept(shuffled)].sample_id
        for shuffled in (source.sample(members, len(members)) for _ in range(20))
    }


def test_the_longest_is_kept() -> None:
    assert kept(Member("a", 100.0, 100.0, 9_000_000), Member("b", 103.0, 103.0, 1_000_000)) == {"b"}


def test_encoder_padding_does_not_make_a_copy_the_longest() -> None:
    assert kept(Member("flac", 100.0, 100.0, 20_000_000), Member("mp3", 100.07, 100.07, 2_000_000)) == {
        "flac"
    }


def test_silence_in_front_does_not_make_a_copy_the_longest() -> None:
    assert kept(Member("flac", 100.0, 100.0, 20_000_000), Member("padded", 103.0, 100.0, 21_000_000)) == {
        "flac"
    }


def test_a_lossless_track_is_kept_over_a_lossy_one_of_more_bits() -> None:
    assert kept(Member("flac", 100.0, 100.0, 4_000_000, True), Member("mp3", 100.0, 100.0, 5_000_000)) == {
        "flac"
    }


def test_a_higher_rate_is_kept_up_to_what_can_be_heard() -> None:
    low, high = Member("a", 10.0, 10.0, 9, True, 16_000), Member("b", 10.0, 10.0, 8, False, 44_100)
    assert kept(low, high) == {"b"}
    best, lossy = Member("c", 10.0, 10.0, 9, True, 44_100), Member("d", 10.0, 10.0, 10, False, 96_000)
    assert kept(low, high, best, lossy) == {"c"}


def test_the_licence_that_allows_most_decides_between_equal_sounds() -> None:
    codes = ["", "by-nc-nd", "by-nd", "by-nc-sa", "by-nc", "by-sa", "by"]
    members = [Member(f"t{i}", 10.0, 10.0, 1000 + i, license=code) for i, code in enumerate(codes)]
    for count in range(1, len(members)):
        assert kept(*members[: count + 1]) == {f"t{count}"}


def test_a_cover_in_the_tags_is_no_quality() -> None:
    plain, tagged = (
        Member("plain", 100.0, 100.0, 2_000_000, license="by"),
        Member("tagged", 100.0, 100.0, 2_030_000),
    )
    assert kept(plain, tagged) == {"plain"}


def test_beside_an_evaluation_track_nothing_else_is_kept() -> None:
    twin = Member("eval", 5.0, 5.0, 10, evaluation=True)
    assert kept(Member("a", 100.0, 100.0, 9_000_000, True, 96_000, "by"), twin) == {"eval"}


def test_equal_tracks_are_decided_by_name() -> None:
    assert kept(Member("c", 10.0, 10.0, 5), Member("a", 10.0, 10.0, 5), Member("b", 10.0, 10.0, 5)) == {"a"}
