"""Shards on S3: listed in pages, read by range, asked for again when an answer breaks off."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from s3_server import ACCESS_KEY, Bucket, s3_server
from workshop import run_sat

from stable_audio_tools.data import shard_stores
from stable_audio_tools.data.dataset import create_dataloader_from_config
from stable_audio_tools.data.paths import read_path_list
from stable_audio_tools.data.shard_stores import S3Shards
from stable_audio_tools.data.webdataset import ShardIndex
from stable_audio_tools.errors import DataError
from stable_audio_tools.schema.reader import parse_dataset_config

pytest.importorskip("boto3", reason="reading from S3 needs boto3 (the extra 's3')")

RATE = 8000


def _shard(first: int, count: int) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for number in range(first, first + count):
            noise = torch.rand(12_000, generator=torch.Generator().manual_seed(number)) - 0.5
            audio = io.BytesIO()
            soundfile.write(audio, noise.numpy(), RATE, format="WAV")
            said = json.dumps({"prompt": f"song {number}"}).encode()
            for name, body in [(f"{number}.wav", audio.getvalue()), (f"{number}.json", said)]:
                entry = tarfile.TarInfo(name)
                entry.size = len(body)
                tar.addfile(entry, io.BytesIO(body))
    return content.getvalue()


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Credentials of the test alone, no proxies, and pauses that nobody has to wait for."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws" / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws" / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(shard_stores, "_FIRST_PAUSE_SECONDS", 0.01)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        yield


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    objects = {f"sets/drums/{shard:03d}.tar": _shard(shard * 3, 3) for shard in range(5)}
    objects |= {
        "sets/drums2/000.tar": _shard(90, 1),
        "sets/drums/readme.md": b"text",
        "top.tar": _shard(50, 2),
    }
    bucket = Bucket(objects)
    with s3_server(bucket) as url:
        bucket.url = url
        yield bucket


def _config(
    bucket: Bucket, tmp_path: Path, entry: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    place = {"s3_path": "s3://music/sets/drums", "endpoint_url": bucket.url}
    return {
        "dataset_type": "s3",
        "datasets": [{"id": "d", **place, **(entry or {})}],
        "index_dir": str(tmp_path / "tables"),
        "epoch_steps": 6,
        **more,
    }


def _loader(config: dict[str, Any], **options: Any) -> Any:
    defaults = {
        "batch_size": 2,
        "sample_size": 4000,
        "sample_rate": RATE,
        "audio_channels": 1,
        "num_workers": 0,
    }
    return create_dataloader_from_config(config, **{**defaults, **options})


def _take(config: dict[str, Any], count: int, **options: Any) -> list[tuple[torch.Tensor, list[Any]]]:
    loader = _loader(config, infinite=True, **options)
    return [
        (audio, [(info["sample_id"], info["prompt"], info["offset_seconds"]) for info in infos])
        for audio, infos in itertools.islice(loader, count)
    ]


def _assert_same(one: list[Any], other: list[Any]) -> None:
    assert [infos for _, infos in one] == [infos for _, infos in other]
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(one, other, strict=True))


def _index(config: dict[str, Any]) -> ShardIndex:
    return ShardIndex.from_shards(parse_dataset_config(config))  # type: ignore[arg-type]


def test_a_bucket_reads_as_the_same_shards_on_disk(bucket: Bucket, tmp_path: Path) -> None:
    for key, content in bucket.objects.items():
        if key.startswith("sets/drums/"):
            (tmp_path / "disk").mkdir(exist_ok=True)
            (tmp_path / "disk" / Path(key).name).write_bytes(content)
    on_disk = _config(bucket, tmp_path)
    on_disk["datasets"] = [{"id": "d", "path": str(tmp_path / "disk")}]
    _assert_same(_take(_config(bucket, tmp_path), 8), _take(on_disk, 8))
    index = _index(_config(bucket, tmp_path))
    assert len(index) == 15
    assert index[0].place == "s3://music/sets/drums/000.tar/0.wav"
    assert index.hash == _index(on_disk).hash


def test_workers_restarts_and_ranks_change_nothing(bucket: Bucket, tmp_path: Path) -> None:
    config = _config(bucket, tmp_path)
    straight = _take(config, 8)
    _assert_same(_take(config, 8, num_workers=2), straight)
    _assert_same(_take(config, 3, start_batch=5), straight[5:])
    ranks = [_take(config, 4, batch_size=1, rank=rank, world_size=2) for rank in range(2)]
    joined = [one[1] + other[1] for one, other in zip(*ranks, strict=True)]
    assert joined == [infos for _, infos in straight[:4]]


def test_only_what_is_asked_for_is_read(bucket: Bucket, tmp_path: Path) -> None:
    config = _config(bucket, tmp_path)
    loader = _loader(config)
    assert not any("drums2" in request for request in bucket.requests)
    before, sent = len(bucket.requests), bucket.sent_bytes
    loader.dataset.dataset[4]
    assert len(bucket.requests) == before + 1  # recording and JSON lie beside each other
    assert bucket.sent_bytes - sent < 0.4 * len(bucket.objects["sets/drums/001.tar"])
    bucket.requests.clear()
    _index(config)
    assert len(bucket.requests) == 3  # the pages of the list; the tables are kept


@pytest.mark.parametrize("path", ["s3://music/top.tar", "s3://music/sets/drums/", "s3://music"])
def test_a_prefix_is_a_shard_a_folder_or_a_whole_bucket(bucket: Bucket, tmp_path: Path, path: str) -> None:
    expected = {"s3://music/top.tar": 2, "s3://music/sets/drums/": 15, "s3://music": 18}[path]
    assert len(_index(_config(bucket, tmp_path, {"s3_path": path}))) == expected


def test_answers_that_break_off_are_gone_on_with(bucket: Bucket, tmp_path: Path) -> None:
    config = _config(bucket, tmp_path)
    calm = _take(config, 4)
    bucket.broken_answers, bucket.busy_answers = 3, 2
    bucket.requests.clear()
    _assert_same(_take(config, 4), calm)
    assert (bucket.broken_answers, bucket.busy_answers) == (0, 0)
    starts = [
        int(request.split("bytes=")[1].split("-")[0]) for request in bucket.requests if "bytes=" in request
    ]
    assert len(starts) > len(set(starts)) > 4


def test_a_server_that_stays_away_is_named(bucket: Bucket, tmp_path: Path) -> None:
    config = _config(bucket, tmp_path)
    loader = _loader(config)
    bucket.busy_answers = 10_000
    with pytest.raises(DataError, match=r"s3://music/sets/drums/\d+\.tar: .*SlowDown"):
        loader.dataset.dataset[0]
    bucket.busy_answers, bucket.broken_answers = 0, 10_000
    with pytest.raises(DataError, match=r"s3://music/sets/drums/000\.tar: ") as caught:
        loader.dataset.dataset[0]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"s3_path": "s3://music/nothing/here"}, "no .tar files in s3://music/nothing/here"),
        ({"s3_path": "s3://elsewhere/sets"}, "s3://elsewhere/sets: does not exist"),
        ({"s3_path": "music/sets"}, "s3_path 'music/sets': expected s3://bucket/prefix"),
        ({"profile": "nobody"}, r"The config profile \(nobody\) could not be found"),
        ({"anonymous": True}, "access is refused; check the profile"),
        ({"endpoint_url": "http://127.0.0.1:9"}, "Could not connect.*check endpoint_url"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    bucket: Bucket, tmp_path: Path, entry: dict[str, Any], reason: str
) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        _index(_config(bucket, tmp_path, entry))
    assert "\n" not in str(caught.value)


def test_without_credentials_it_says_so_and_a_public_bucket_needs_none(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(DataError, match="Unable to locate credentials; set AWS_ACCESS_KEY_ID"):
        _index(_config(bucket, tmp_path))
    bucket.public = True
    assert len(_index(_config(bucket, tmp_path, {"anonymous": True}))) == 15


def test_profile_and_endpoint_are_found_the_aws_way(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (tmp_path / "aws").mkdir()
    (tmp_path / "aws" / "credentials").write_text(
        f"[studio]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = secret\n"
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.url)
    config = _config(bucket, tmp_path, {"profile": "studio", "endpoint_url": None})
    assert len(_index(config)) == 15


def test_a_shard_that_is_replaced_while_it_is_in_use_is_named(bucket: Bucket, tmp_path: Path) -> None:
    loader = _loader(_config(bucket, tmp_path))
    bucket.objects["sets/drums/000.tar"] = _shard(70, 3)
    with pytest.raises(DataError, match=r"drums/000\.tar: has changed while it was in use; start again"):
        loader.dataset.dataset[0]
    assert [track.audio.name for track in _index(_config(bucket, tmp_path))[:3]] == [  # type: ignore[attr-defined]
        "70.wav",
        "71.wav",
        "72.wav",
    ]


def test_a_server_without_ranges_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    bucket.ignores_ranges = True
    with pytest.raises(DataError, match="does not know the Range header"):
        _index(_config(bucket, tmp_path))


def test_the_store_can_be_sent_to_another_process(bucket: Bucket) -> None:
    import pickle

    store = S3Shards("s3://music/sets/drums", endpoint_url=bucket.url)
    first = store.shards()[0]
    copy = pickle.loads(pickle.dumps(store))
    assert copy.read(first, 0, 512) == store.read(first, 0, 512) == bucket.objects["sets/drums/000.tar"][:512]


def test_a_bucket_is_checked_searched_for_copies_and_cleaned_by_a_list(
    bucket: Bucket, tmp_path: Path
) -> None:
    bucket.objects["sets/drums/005.tar"] = bucket.objects["sets/drums/001.tar"]  # all of it again
    bucket.objects["sets/drums/006.tar"] = bucket.objects["sets/drums/002.tar"][:-20_000]
    excludes = tmp_path / "exclude.txt"
    config = _config(bucket, tmp_path, exclude_paths_file=str(excludes), on_error="skip")
    (tmp_path / "s3.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    flags = ["--output-dir", str(out), "--fix", str(excludes), "--duplicates", "--num-workers", "2"]
    assert run_sat(["data", "check", str(tmp_path / "s3.json"), *flags]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["tracks"], summary["readable"], summary["with_prompt"]) == (20, 20, 20)
    names = [item["name"] for item in summary["problems"] if item["kind"] == "duplicate"]
    assert names == [
        "d/005.tar/3.wav",
        "d/005.tar/4.wav",
        "d/005.tar/5.wav",
        "d/006.tar/6.wav",
        "d/006.tar/7.wav",
    ]
    broken = [item["name"] for item in summary["problems"] if item["kind"] == "broken-shard"]
    assert broken == ["s3://music/sets/drums/006.tar"]
    assert read_path_list(excludes) == names
    assert len(ShardIndex.from_shards(parse_dataset_config(config))) == 15  # type: ignore[arg-type]
    places = [json.loads(line)["path"] for line in (out / "files.jsonl").read_text().splitlines()]
    assert places[0] == "s3://music/sets/drums/000.tar/0.wav"
