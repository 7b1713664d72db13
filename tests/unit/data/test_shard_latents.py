"""Latents in shards: crops with their place, and what does not fit is named."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shard_maker import RATE, assert_same, make_tar, shard_config, shard_loader, take

from stable_audio_tools.errors import DataError


def _latent_shard(path: Path, lengths: list[int], details: dict[str, Any] | None) -> dict[str, torch.Tensor]:
    """Latents of 3 channels, 2 of each padded, at 100 samples a latent; as ``tar -C folder .`` names them."""
    members, stored = {}, {}
    for number, length in enumerate(lengths):
        latents = torch.randn(3, length, generator=torch.Generator().manual_seed(number))
        content = io.BytesIO()
        np.save(content, latents.numpy())
        record = {
            "prompt": f"latents {number}",
            "seconds_start": 0,
            "seconds_total": 1,
            "sample_rate": RATE,
            "padding_mask": [1] * (length - 2) + [0, 0],
        }
        members[f"./0/{number:03d}.npy"] = content.getvalue()
        members[f"./0/{number:03d}.json"] = json.dumps(record).encode()
        stored[f"0/{number:03d}.npy"] = latents
    if details is not None:
        members["./details.json"] = json.dumps(details).encode()
    make_tar(path, members)
    return stored


def test_latents_in_shards_are_crops_with_their_place(tmp_path: Path) -> None:
    details = {"latents": {"downsampling_ratio": 100}}
    stored = _latent_shard(tmp_path / "shards" / "x.tar", [100, 80, 60], details)
    config = shard_config(tmp_path / "shards", pre_encoded=True, latent_crop_length=16, epoch_steps=8)
    starts = []
    for latents, infos in shard_loader(config):
        assert latents.shape == (2, 3, 16)
        for clip, info in zip(latents, infos, strict=True):
            start = info["latent_crop_start"]
            whole = stored[info["sample_id"].removeprefix("w/x.tar/")]
            assert torch.equal(clip, whole[:, start : start + 16])
            assert start + 16 <= whole.shape[1] - 2
            assert info["offset_seconds"] == start * 100 / RATE
            assert info["padding_mask"].tolist() == [1.0] * 16
            assert info["prompt"] == f"latents {info['index']}"
            starts.append(start)
    assert len(set(starts)) > 5
    assert_same(take(config, 4), take(config, 4, num_workers=2))
    assert_same(take(config, 2, start_batch=3), take(config, 5)[3:])


def test_latents_in_shards_that_do_not_fit_are_named(tmp_path: Path) -> None:
    _latent_shard(tmp_path / "shards" / "x.tar", [50, 50, 40], None)
    config = shard_config(tmp_path / "shards", pre_encoded=True)
    with pytest.raises(DataError, match=r"x\.tar/0/002\.npy: 40 latents, others are 50; set latent_crop"):
        list(shard_loader(config, batch_size=1, shuffle=False))
    assert next(iter(shard_loader(config, shuffle=False)))[0].shape == (2, 3, 50)
    with pytest.raises(DataError, match=r"000\.npy: latents of audio at 8000 Hz, but the model is for 16000"):
        list(shard_loader(config, sample_rate=16000, shuffle=False))
    cropped = shard_config(tmp_path / "shards", pre_encoded=True, latent_crop_length=8)
    with pytest.raises(DataError, match=r"cannot be placed in seconds"):
        list(shard_loader(cropped))
    make_tar(tmp_path / "shards" / "x.tar", {"a.npy": b"no array", "a.json": b"[]"})
    with pytest.raises(DataError, match=r"x\.tar/a\.json: found list, not an object"):
        list(shard_loader(config, batch_size=1, shuffle=False))
    make_tar(tmp_path / "shards" / "x.tar", {"a.npy": b"no array"})
    with pytest.raises(DataError, match=r"x\.tar/a\.npy: there is no JSON beside it"):
        list(shard_loader(config, batch_size=1, shuffle=False))
