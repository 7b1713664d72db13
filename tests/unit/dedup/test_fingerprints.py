"""DAC histograms: counts, padding, batches over tracks, modes and the cache."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dedup_music import RATE, compose

from stable_audio_tools.dedup.fingerprints import (
    DacFingerprinter,
    histogram,
    load_codes,
    read_for_codes,
    save_codes,
)
from stable_audio_tools.errors import AudioError, CheckpointError, UsageError

HOP = 64


@pytest.fixture(scope="module")
def codec(tiny_dac_folder: Path) -> DacFingerprinter:
    return DacFingerprinter(tiny_dac_folder, device="cpu")


def coder(folder: Path, **settings: Any) -> DacFingerprinter:
    return DacFingerprinter(folder, device="cpu", **settings)


@pytest.mark.parametrize("samples", [1, HOP, HOP + 1, 5 * RATE, 5 * RATE + 13])
def test_every_frame_of_audio_is_counted_once_and_padding_never(
    codec: DacFingerprinter, samples: int
) -> None:
    (counts,) = codec.count_codes([torch.from_numpy(compose(1)[:samples])])
    assert counts.shape == (4, 64)
    assert counts.sum(1).tolist() == [-(-samples // HOP)] * 4


def test_one_chunk_counts_what_the_model_codes(codec: DacFingerprinter, tiny_dac_folder: Path) -> None:
    from transformers import DacModel

    audio = torch.from_numpy(compose(1)[: 10 * RATE])
    with torch.inference_mode():
        codes = DacModel.from_pretrained(tiny_dac_folder).eval().encode(audio[None, None]).audio_codes[0]
    expected = np.stack([np.bincount(book.numpy(), minlength=64) for book in codes])
    np.testing.assert_array_equal(codec.count_codes([audio])[0], expected)


def test_the_batch_size_does_not_matter(tiny_dac_folder: Path) -> None:
    audio = torch.from_numpy(compose(2))
    one, many = (coder(tiny_dac_folder, chunk_seconds=1.0, batch_size=n) for n in (1, 5))
    np.testing.assert_array_equal(one.count_codes([audio])[0], many.count_codes([audio])[0])
    assert one.stamp == many.stamp


def test_tracks_that_share_a_batch_are_counted_as_if_alone(tiny_dac_folder: Path) -> None:
    tracks = [
        torch.from_numpy(compose(seed)[:samples]) for seed, samples in ((1, 40_000), (2, 999), (3, 70_001))
    ]
    codec = coder(tiny_dac_folder, chunk_seconds=1.0, batch_size=3)
    for audio, counts in zip(tracks, codec.count_codes(tracks), strict=True):
        np.testing.assert_array_equal(counts, codec.count_codes([audio])[0])


def test_chunks_change_few_codes(tiny_dac_folder: Path) -> None:
    audio = torch.from_numpy(compose(2))
    whole, chunks = (
        histogram(coder(tiny_dac_folder, chunk_seconds=s).count_codes([audio])[0]) for s in (12.0, 2.0)
    )
    assert whole @ chunks > 0.999


def test_histograms_have_length_one_and_ignore_duration(codec: DacFingerprinter) -> None:
    (counts,) = codec.count_codes([torch.from_numpy(compose(1))])
    for mode, width in (("per-codebook", 4 * 64), ("global", 64)):
        vector = histogram(counts, mode)
        assert vector.shape == (width,)
        assert vector @ vector == pytest.approx(1.0, abs=1e-6)
        np.testing.assert_allclose(histogram(3 * counts, mode), vector, atol=1e-7)


def test_per_codebook_cosine_is_the_mean_over_codebooks() -> None:
    random = np.random.default_rng(0)
    a, b = random.integers(0, 50, (2, 3, 16)).astype(np.int32)
    cosines = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a * 1.0, b * 1.0, strict=True)]
    assert histogram(a) @ histogram(b) == pytest.approx(np.mean(cosines), abs=1e-6)


def test_no_codes_give_zeros_not_nan() -> None:
    assert not histogram(np.zeros((3, 8), np.int32)).any()


def test_an_unknown_mode_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="per-codebook, global"):
        histogram(np.ones((1, 2), np.int32), "per-frame")


def test_only_the_start_is_heard_and_loudness_is_not(music_folder: Path) -> None:
    loud = read_for_codes(music_folder / "original.wav", RATE, 3.0)
    soft = read_for_codes(music_folder / "a" / "quieter.wav", RATE, 3.0)
    assert loud.shape == (3 * RATE,)
    torch.testing.assert_close(loud, soft, atol=1e-3, rtol=0)


def test_a_broken_file_is_named(music_folder: Path) -> None:
    with pytest.raises(AudioError, match=r"broken\.mp3"):
        read_for_codes(music_folder / "broken.mp3", RATE, None)


def test_stored_codes_come_back_and_stale_or_damaged_ones_do_not(tmp_path: Path) -> None:
    counts = np.arange(8, dtype=np.int32).reshape(2, 4)
    path = tmp_path / "c.npz"
    assert load_codes(path, "stamp") is None
    save_codes(path, counts, "stamp")
    np.testing.assert_array_equal(load_codes(path, "stamp"), counts)
    assert load_codes(path, "another stamp") is None
    path.write_bytes(path.read_bytes()[:100])
    assert load_codes(path, "stamp") is None


def test_settings_and_weights_change_the_stamp(tiny_dac_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    stamps = {coder(tiny_dac_folder, max_audio_seconds=s).stamp for s in (None, 30.0, 120.0)}
    other = tmp_path / "dac"
    shutil.copytree(tiny_dac_folder, other)
    weights = load_file(other / "model.safetensors")
    weights["encoder.conv1.weight"] = weights["encoder.conv1.weight"] + 0.1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    assert len(stamps | {coder(other).stamp}) == 4


def test_what_is_no_dac_is_refused(tiny_dac_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(CheckpointError, match="no DAC model"):
        DacFingerprinter(tmp_path / "nowhere", device="cpu")
    partial = tmp_path / "partial"
    shutil.copytree(tiny_dac_folder, partial)
    weights = load_file(partial / "model.safetensors")
    del weights["encoder.conv1.weight"]
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"encoder\.conv1\.weight"):
        DacFingerprinter(partial, device="cpu")
