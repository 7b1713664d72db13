"""Shards of noise for the tests of shards."""

from __future__ import annotations

import io
import itertools
import tarfile
from pathlib import Path
from typing import Any

import soundfile
import torch

from stable_audio_tools.data.dataset import create_dataloader_from_config

RATE = 8000


def make_wav(number: int, seconds: float = 1.0, channels: int = 1) -> bytes:
    noise = torch.rand(round(seconds * RATE), channels, generator=torch.Generator().manual_seed(number)) - 0.5
    content = io.BytesIO()
    soundfile.write(content, noise.numpy(), RATE, format="WAV")
    return content.getvalue()


def make_tar(path: Path, members: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def shard_config(root: Path, entry: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    return {
        "dataset_type": "wds",
        "datasets": [{"id": "w", "path": str(root), **(entry or {})}],
        "index_dir": str(root.parent / "tables"),
        "epoch_steps": 5,
        **options,
    }


def shard_loader(config: dict[str, Any], **options: Any) -> Any:
    defaults = {
        "batch_size": 2,
        "sample_size": 4000,
        "sample_rate": RATE,
        "audio_channels": 1,
        "num_workers": 0,
    }
    return create_dataloader_from_config(config, **{**defaults, **options})


def take(config: dict[str, Any], count: int, **options: Any) -> list[Any]:
    return list(itertools.islice(shard_loader(config, infinite=True, **options), count))


def assert_same(one: list[Any], other: list[Any]) -> None:
    assert len(one) == len(other)
    for (audio, infos), (other_audio, other_infos) in zip(one, other, strict=True):
        assert torch.equal(audio, other_audio)
        for info, other_info in zip(infos, other_infos, strict=True):
            assert torch.equal(info["padding_mask"], other_info["padding_mask"])
            assert {**info, "padding_mask": 0} == {**other_info, "padding_mask": 0}
