"""Precomputed embeddings come back whole, or say what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stable_audio_tools.errors import DataError
from stable_audio_tools.evaluation.clap import ClapEmbedder
from stable_audio_tools.evaluation.reference import (
    ReferenceSet,
    embed_recordings,
    list_recordings,
    reference_from_folder,
)


def made() -> ReferenceSet:
    rows = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    return ReferenceSet(
        rows[0], rows[1], ("a song", "ein Lied \U0001f3b5", "x"), ("1", "2", "3"), "clap", "ab", {"k": 1}
    )


def test_a_set_comes_back_whole(tmp_path: Path) -> None:
    path = made().save(tmp_path / "set.npz")
    found = ReferenceSet.load(path)
    np.testing.assert_array_equal(found.audio_embeddings, made().audio_embeddings)
    np.testing.assert_array_equal(found.text_embeddings, made().text_embeddings)
    assert (found.prompts, found.track_ids, found.clap, found.clap_sha256, found.settings) == (
        made().prompts,
        made().track_ids,
        "clap",
        "ab",
        {"k": 1},
    )


def test_files_that_are_no_set_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file.*precompute"):
        ReferenceSet.load(tmp_path / "absent.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    (tmp_path / "text.npz").write_text("hello")
    whole = made().save(tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name in ("other.npz", "text.npz", "cut.npz", "array.npy"):
        with pytest.raises(DataError, match=name):
            ReferenceSet.load(tmp_path / name)


def test_broken_recordings_are_named_and_left_out(
    tiny_clap_folder: Path, tiny_audio_folder: Path, tmp_path: Path
) -> None:
    clap = ClapEmbedder(tiny_clap_folder, "cpu", batch_size=3)
    good = list_recordings(tiny_audio_folder / "audio")
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"no audio")
    rows, failed = embed_recordings([*good[:4], bad, *good[4:]], clap)
    assert list(rows) == good
    assert list(failed) == [bad]
    assert "bad.wav" in failed[bad]
    alone, _ = embed_recordings(good[5:6], clap)
    np.testing.assert_allclose(rows[good[5]], alone[good[5]], atol=1e-5)


def test_a_folder_becomes_a_set(tiny_clap_folder: Path, tiny_audio_folder: Path, tmp_path: Path) -> None:
    clap = ClapEmbedder(tiny_clap_folder, "cpu")
    found = reference_from_folder(tiny_audio_folder / "audio", clap)
    assert found.audio_embeddings.shape == (8, 16)
    assert found.text_embeddings.shape == (0, 16)
    assert found.track_ids[0] == "01/1000101.wav"
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    with pytest.raises(DataError, match=r"none of 1 recordings .*bad\.wav"):
        reference_from_folder(tmp_path, clap)
