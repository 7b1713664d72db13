"""Verdicts counted on music whose artists are known."""

from __future__ import annotations

import torch

from stable_audio_tools.attribution.proof.kernels import Kernels
from stable_audio_tools.attribution.proof.standing import standing_table


def test_artists_stand_out_until_they_are_taken_out():
    draw = torch.Generator().manual_seed(3)
    habits = 0.5 * torch.randn(10, 600, generator=draw)
    tracks = habits.repeat_interleave(20, dim=0) + 3 * torch.randn(200, 600, generator=draw)
    pieces = habits + torch.randn(10, 600, generator=draw)
    strange = 3 * torch.randn(40, 600, generator=draw)
    artists = [f"artist {n // 20}" for n in range(200)]
    theirs = [*(f"artist {n}" for n in range(10)), *[None] * 40]
    rows = standing_table(
        Kernels.of(tracks, torch.cat([pieces, strange])),
        3.0,
        "score_squared",
        artists,
        {"held-out": range(10), "strange": range(10, 50)},
        theirs,
        "held-out",
    )
    found = {(row["what"], row["queries"]): row for row in rows}
    assert found["an artist", "held-out"]["right"] == found["an artist", "held-out"]["stand_out"] == 10
    assert found["an artist", "held-out, without their artists"]["stand_out"] <= 2
    assert found["an artist", "strange"]["stand_out"] <= 6
    assert found["a track", "held-out"]["stand_out"] <= 5
    assert "right" not in found["a track", "held-out"]


def test_what_is_left_after_an_artist_is_that_of_a_world_without(monkeypatch):
    """The scores without an artist are those of a kernel that never held its tracks."""
    from stable_audio_tools.attribution.proof import standing

    draw = torch.Generator().manual_seed(4)
    tracks, clips = torch.randn(12, 50, generator=draw), torch.randn(2, 50, generator=draw)
    seen = []
    judge = standing.standouts

    def record(scores, *rest):
        seen.append(scores)
        return judge(scores, *rest)

    monkeypatch.setattr(standing, "standouts", record)
    artists = [f"artist {n // 3}" for n in range(12)]
    kernels = Kernels.of(tracks, clips)
    standing_table(kernels, 1.0, "score", artists, {"held-out": [0, 1]}, ["artist 2", None], "held-out")
    regularisation = standing.regularisation(torch.linalg.eigvalsh(kernels.tracks), 1.0)
    kept = [n for n in range(12) if artists[n] != "artist 2"]
    kernel = kernels.tracks[kept][:, kept] + regularisation * torch.eye(9, dtype=torch.float64)
    torch.testing.assert_close(seen[1][0], torch.linalg.solve(kernel, kernels.cross[0, kept]))
    assert seen[2].shape == (1, 12)


def test_tracks_without_artists_are_judged_one_by_one():
    draw = torch.Generator().manual_seed(5)
    kernels = Kernels.of(torch.randn(30, 50, generator=draw), torch.randn(4, 50, generator=draw))
    rows = standing_table(kernels, 1.0, "score", [None] * 30, {"held-out": range(4)}, [None] * 4, "held-out")
    assert [row["what"] for row in rows] == ["a track", "a track"]
    assert rows[0]["stand_out"] == rows[1]["stand_out"]
    some = ["artist 1", *[None] * 29]
    rows = standing_table(kernels, 1.0, "score", some, {"held-out": range(4)}, [None] * 4, "held-out")
    assert [row["count"] for row in rows] == [4] * 4
