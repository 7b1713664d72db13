"""The inverted index against comparing all tracks with all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stable_audio_tools.dedup.inverted import POSTING_BYTES, LandmarkSearch

TICK = 10  # frames


def tracks(
    count: int, seed: int = 0, values: int = 60, size: int = 80
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Hashes in ascending order with their frames, on whole ticks, so that nothing is rounded."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        hashes = np.sort(random.integers(0, values, size).astype(np.uint32))
        made.append((hashes, (TICK * random.integers(0, 200, size)).astype(np.float32)))
    return made


def slow_votes(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> int:
    """Most equal hashes within two neighbouring seconds of offset."""
    seconds: dict[int, int] = {}
    for hash_a, frame_a in zip(*a, strict=True):
        for hash_b, frame_b in zip(*b, strict=True):
            if hash_a == hash_b:
                second = int((frame_b - frame_a) // (4 * TICK))
                seconds[second] = seconds.get(second, 0) + 1
    return max((n + seconds.get(s + 1, 0) for s, n in seconds.items()), default=0)


def search(
    made: list[tuple[np.ndarray, np.ndarray]], min_votes: int, most: int | None = None, **settings: int
) -> dict[tuple[int, int], int]:
    with LandmarkSearch(**settings) as found:
        for hashes, frames in made:
            found.add_hashes(hashes, frames)
        votes = found.pairs(min_votes, most)
    return dict(
        zip(zip(votes.first.tolist(), votes.second.tolist(), strict=True), votes.votes.tolist(), strict=True)
    )


@pytest.mark.parametrize("min_votes", [1, 4, 6])
def test_it_finds_what_a_comparison_of_all_with_all_finds(min_votes: int) -> None:
    made = tracks(12)
    expected = {
        (i, j): votes
        for j in range(12)
        for i in range(j)
        if (votes := slow_votes(made[i], made[j])) >= min_votes
    }
    assert expected
    assert search(made, min_votes) == expected


def test_a_shifted_copy_has_all_votes_and_scrambled_moments_have_few() -> None:
    ((hashes, frames),) = tracks(1, values=10**6)
    scrambled = np.random.default_rng(1).permutation(frames) + 7 * TICK
    found = search([(hashes, frames), (hashes, frames + 400), (hashes, scrambled.astype(np.float32))], 1)
    assert found[0, 1] == len(hashes)
    assert found[0, 2] < 10


def test_each_track_keeps_its_best_partners() -> None:
    made = tracks(12)
    everything = search(made, 1)
    few = search(made, 1, most=3)
    for j in range(1, 12):
        mine = sorted((votes for (_, b), votes in everything.items() if b == j), reverse=True)
        assert sorted((votes for (_, b), votes in few.items() if b == j), reverse=True) == mine[:3]


def test_what_is_everywhere_is_passed_over_when_there_is_no_time_for_it() -> None:
    common = np.zeros(5, np.uint32)
    rare = np.arange(1, 7, dtype=np.uint32)
    made = [(np.concatenate([common, rare + 10 * (i // 2)]), np.zeros(11, np.float32)) for i in range(6)]
    assert set(search(made, 5, max_hits=20)) == {(0, 1), (2, 3), (4, 5)}
    assert len(search(made, 5)) == 15


def test_the_index_keeps_to_its_memory_and_copies_still_meet() -> None:
    made = tracks(40, values=800, size=200)
    made += [(hashes, frames + 80) for hashes, frames in made[:10]]
    limit = 50 * 200 * POSTING_BYTES // 3
    with LandmarkSearch(max_index_bytes=limit) as found:
        for hashes, frames in made:
            found.add_hashes(hashes, frames)
        assert not found.dropped
        votes = found.pairs(20, None)
        assert 0 < found.postings * POSTING_BYTES <= limit
        assert found.offered == 50 * 200
        assert "passed over" in found.dropped
    assert {(i, 40 + i) for i in range(10)} <= set(
        zip(votes.first.tolist(), votes.second.tolist(), strict=True)
    )
    assert len(votes.first) < 20


def test_long_tracks_need_more_than_what_chance_gives() -> None:
    random = np.random.default_rng(0)
    frames = np.zeros(2000, np.float32)
    first, second = (np.sort(random.choice(10**6, 2000, replace=False)).astype(np.uint32) for _ in range(2))
    for common, found in ((15, False), (25, True)):
        third = np.sort(np.concatenate([first[:common], second[common:]])).astype(np.uint32)
        assert ((0, 1) in search([(first, frames), (third, frames)], 8)) is found


def test_nothing_in_nothing_out(tmp_path: Path) -> None:
    empty = (np.zeros(0, np.uint32), np.zeros(0, np.float32))
    assert search([], 1) == {}
    assert search([empty, empty, *tracks(1)], 1) == {}
    with LandmarkSearch(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
