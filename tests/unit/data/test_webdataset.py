"""Shards: every recording once, the same order whatever the workers, and damage that is named."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from shard_maker import RATE, assert_same, make_tar, make_wav, shard_config, shard_loader, take

from stable_audio_tools.audio.files import read_audio
from stable_audio_tools.audio.transforms import shorten_silences
from stable_audio_tools.data import shards as shards_module
from stable_audio_tools.data.shard_order import ShardOrder
from stable_audio_tools.data.shard_stores import LocalShards
from stable_audio_tools.data.shards import Member, read_contents, samples_of
from stable_audio_tools.data.webdataset import ShardDataset, ShardIndex
from stable_audio_tools.errors import AudioError, ConfigError, DataError
from stable_audio_tools.schema.reader import parse_dataset_config

PER_SHARD = [4, 3, 5]


@pytest.fixture(autouse=True)
def _quiet_torch() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        yield


@pytest.fixture
def root(tmp_path: Path) -> Path:
    number = 0
    for shard, count in enumerate(PER_SHARD):
        members = {}
        for _ in range(count):
            members[f"{number:02d}.wav"] = make_wav(number, 1.0 + number / 10)
            members[f"{number:02d}.json"] = json.dumps({"prompt": f"song {number}", "bpm": 90}).encode()
            number += 1
        make_tar(tmp_path / "shards" / f"part-{shard}.tar", members)
    return tmp_path / "shards"


def _index(config: dict[str, Any]) -> ShardIndex:
    return ShardIndex.from_shards(parse_dataset_config(config))  # type: ignore[arg-type]


def test_the_rows_are_the_recordings_in_the_order_of_shards_and_members(root: Path) -> None:
    index = _index(shard_config(root))
    assert [track.relpath for track in index[:5]] == [
        *(f"part-0.tar/0{number}.wav" for number in range(4)),
        "part-1.tar/04.wav",
    ]
    assert [track.index for track in index] == list(range(12))
    assert [list(rows) for rows in index.shard_rows] == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9, 10, 11]]
    assert index[4].sample_id == "w/part-1.tar/04.wav"
    assert index[4].place == f"{root}/part-1.tar/04.wav"
    assert index.hash == _index(shard_config(root)).hash
    make_tar(root / "part-1.tar", {"04.wav": make_wav(4, 2.0)})
    assert index.hash != _index(shard_config(root)).hash


def test_a_sample_is_a_crop_of_its_recording_with_what_its_json_says(root: Path) -> None:
    loader = shard_loader(shard_config(root, resampled_shards=False), shuffle=False, drop_last=False)
    infos = []
    for audio, some in loader:
        for clip, info in zip(audio, some, strict=True):
            number = info["index"]
            content = io.BytesIO(make_wav(number, 1.0 + number / 10))
            whole = torch.from_numpy(soundfile.read(content, dtype="float32")[0])
            start = round(info["offset_seconds"] * RATE)
            assert torch.equal(clip[0], whole[start : start + 4000])
            assert (info["prompt"], info["bpm"]) == (f"song {number}", 90.0)
            assert info["path"] == f"{root}/{info['relpath']}"
            infos.append(info)
    assert [info["index"] for info in infos] == list(range(12))


@pytest.mark.parametrize(
    ("resampled", "workers", "context"),
    [(False, 2, None), (False, 3, None), (True, 2, None), (True, 3, None), (True, 1, "spawn")],
)
def test_workers_change_nothing(root: Path, resampled: bool, workers: int, context: str | None) -> None:
    config = shard_config(root, resampled_shards=resampled, shuffle_buffer=4)
    assert_same(take(config, 7), take(config, 7, num_workers=workers, multiprocessing_context=context))


@pytest.mark.parametrize("resampled", [False, True])
def test_starting_at_a_batch_is_having_read_so_far(root: Path, resampled: bool) -> None:
    config = shard_config(root, resampled_shards=resampled, shuffle_buffer=3)
    straight = take(config, 14)
    for start in (1, 4, 5, 6, 11):
        assert_same(take(config, 3, start_batch=start), straight[start : start + 3])


@pytest.mark.parametrize("resampled", [False, True])
def test_ranks_share_each_batch_without_overlap(root: Path, resampled: bool) -> None:
    config = shard_config(root, resampled_shards=resampled)
    alone = take(config, 6, batch_size=4)
    ranks = [take(config, 6, batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    joined = [(torch.cat([one[0], other[0]]), one[1] + other[1]) for one, other in zip(*ranks, strict=True)]
    assert_same(joined, alone)


def test_without_drawing_shards_an_epoch_is_every_recording_once(root: Path) -> None:
    config = shard_config(root, resampled_shards=False, shuffle_buffer=5)
    loader = shard_loader(config)
    epochs = [[info["index"] for _, infos in loader for info in infos] for _ in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 3
    assert epochs[0] != epochs[1] != epochs[2]
    assert len(loader) == 6


def test_drawn_shards_fill_the_epoch_and_come_again_with_other_crops(root: Path) -> None:
    loader = shard_loader(shard_config(root, epoch_steps=30))
    assert len(loader) == 30
    infos = [info for _, infos in loader for info in infos]
    counts = Counter(info["index"] for info in infos)
    assert set(counts) == set(range(12))
    often = max(counts, key=lambda row: counts[row])
    offsets = {info["offset_seconds"] for info in infos if info["index"] == often}
    assert len(offsets) == counts[often] > 2


def test_the_buffer_mixes_and_loses_nothing() -> None:
    rows = [range(0, 50), range(50, 80), range(80, 100)]

    def order(buffer: int, seed: int = 1, epoch: int = 0) -> list[int]:
        return [key.index for key in ShardOrder(rows, seed=seed, num_samples=None, buffer=buffer)(epoch)]

    assert all(sorted(order(buffer)) == list(range(100)) for buffer in (0, 1, 7, 100, 1000))
    unmixed = order(0)
    assert [row for row in unmixed if row < 50] == list(range(50))
    assert order(10) != unmixed
    # a recording leaves the buffer of 10 at the earliest 10 places before its own
    assert all(place > unmixed.index(row) - 10 for place, row in enumerate(order(10)))
    assert order(10) == order(10)
    assert order(10) != order(10, epoch=1)
    assert order(10) != order(10, seed=2)


def test_more_samples_than_there_are_recordings_is_no_error_when_shards_are_drawn(root: Path) -> None:
    (audio, _), *_ = take(shard_config(root), 1, batch_size=20)
    assert audio.shape[0] == 20
    with pytest.raises(DataError, match="12 tracks, too few for one batch of 20"):
        shard_loader(shard_config(root, resampled_shards=False), batch_size=20)


def test_captions_modules_and_prompts_are_as_for_a_folder(tmp_path: Path) -> None:
    members = {
        "a.wav": make_wav(0),
        "a.txt": b" a  caption\n",
        "b.wav": make_wav(1),
        "b.json": json.dumps({"caption": "told", "genre": ["dub"], "seconds_total": 1e9}).encode(),
        "b.txt": b"unused",
        "c.wav": make_wav(2),
    }
    root = make_tar(tmp_path / "shards" / "x.tar", members).parent
    plain = [
        info
        for _, infos in shard_loader(shard_config(root), shuffle=False, drop_last=False)
        for info in infos
    ]
    assert [info.get("prompt") for info in plain] == ["a caption", "told", None]
    assert plain[1]["caption"] == "told"
    assert (plain[1]["seconds_total"], plain[1]["metadata_seconds_total"]) == (1, 1e9)

    (tmp_path / "module.py").write_text(
        "def get_custom_metadata(info, audio):\n"
        "    if info['relpath'].endswith('a.wav'): return {'__reject__': True}\n"
        "    return {'prompt': 'by module ' + info.get('caption', '-')}\n"
    )
    config = shard_config(root, {"custom_metadata_module": str(tmp_path / "module.py")})
    infos = [info for _, infos in shard_loader(config, shuffle=False, drop_last=False) for info in infos]
    assert [info["prompt"] for info in infos] == ["by module told", "by module told", "by module -"]
    assert infos[0]["replaced"] == "w/x.tar/a.wav"

    config = shard_config(root, {"prompts": {"templates": ["A {genre} song", "{filename}"]}})
    infos = [info for _, infos in shard_loader(config, shuffle=False, drop_last=False) for info in infos]
    assert [info["prompt"] for info in infos] == ["a", "A dub song", "c"]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_every_kind_with_long_names_and_folders(tmp_path: Path, form: int) -> None:
    deep = "/".join(["a long folder name"] * 6)
    members = {f"{deep}/{number}.wav": make_wav(number) for number in range(2)}
    members |= {"._hidden.wav": b"x", "notes.md": b"text"}
    root = make_tar(tmp_path / "shards" / "inner" / "x.tar", members, form).parent.parent
    make_tar(root / ".tmp-1-y.tar", {"z.wav": make_wav(0)})
    make_tar(root / "empty.tar", {})
    index = _index(shard_config(root))
    assert [track.relpath for track in index] == [f"inner/x.tar/{deep}/{number}.wav" for number in range(2)]


def test_one_tar_may_be_the_path_and_hard_links_are_recordings(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "one.tar", {"a.wav": make_wav(0)})
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("b.wav")
        link.type, link.linkname = tarfile.LNKTYPE, "a.wav"
        tar.addfile(link)
    make_tar(tmp_path / "two.tar", {"c.wav": make_wav(1)})
    index = _index(shard_config(path))
    assert [track.relpath for track in index] == ["one.tar/a.wav", "one.tar/b.wav"]
    (audio, _), *_ = shard_loader(shard_config(path, random_crop=False), shuffle=False)
    assert torch.equal(audio[0], audio[1])


def test_members_are_samples_by_name_also_where_names_have_dots() -> None:
    def samples(*names: str) -> dict[str, list[str]]:
        members = [Member(name, number, 1) for number, name in enumerate(names)]
        return {key: [member.name for member in group] for key, group in samples_of(members).items()}

    assert samples("1/a.mp3", "1/a.json", "2/a.mp3") == {"1/a": ["1/a.mp3", "1/a.json"], "2/a": ["2/a.mp3"]}
    assert samples("7.2min.mp3", "7.json") == {"7": ["7.2min.mp3", "7.json"]}
    dotted = samples("Mr. A - x.mp3", "Mr. A - x.json", "Mr. A - y.mp3", "Mr. A - y.json")
    assert list(dotted) == ["Mr. A - x", "Mr. A - y"]
    assert all(len(group) == 2 for group in dotted.values())
    assert samples("a.mp3", "b.mp3", "a.mp3") == {"a": ["a.mp3"], "b": ["b.mp3"]}


def test_tables_are_kept_and_made_again_when_a_shard_changes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned: list[str] = []
    real = shards_module.scan_tar
    monkeypatch.setattr(
        shards_module, "scan_tar", lambda store, shard: (scanned.append(shard.name), real(store, shard))[1]
    )
    _index(shard_config(root))
    assert sorted(scanned) == ["part-0.tar", "part-1.tar", "part-2.tar"]
    _index(shard_config(root))
    assert len(scanned) == 3
    make_tar(root / "part-1.tar", {"new.wav": make_wav(9)})
    assert [track.relpath for track in _index(shard_config(root))][4] == "part-1.tar/new.wav"
    assert scanned[3:] == ["part-1.tar"]
    for table in (root.parent / "tables").rglob("*.json"):
        table.write_text(table.read_text()[:40])  # as of a full disk
    assert len(_index(shard_config(root))) == 10
    assert len(scanned) == 7


def test_damage_is_named_or_what_is_before_it_is_used(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = root / "part-2.tar"
    whole = path.read_bytes()
    store = LocalShards(root)
    members = read_contents(store, store.shards(), root.parent / "other")[2].members
    third = members[4].offset - 512
    for content, what in [
        (whole[: members[4].offset + 700], r"is cut off in '09\.wav'"),
        (
            whole[:third] + b"\xff" * 512 + whole[third + 512 :],
            f"is damaged: at byte {third} there is no header",
        ),
    ]:
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"part-2\.tar: {what}.*; 4 members are before that"):
            _index(shard_config(root))
        index = _index(shard_config(root, on_error="skip"))
        assert [track.relpath for track in index][7:] == ["part-2.tar/07.wav", "part-2.tar/08.wav"]
        assert "part-2.tar" in capfd.readouterr().err
    path.write_bytes(whole.rstrip(b"\0"))  # no end marks, as some writers leave it
    assert len(_index(shard_config(root))) == 12
    path.write_bytes(b"this is no tar " * 100)
    with pytest.raises(DataError, match=r"part-2\.tar: not a tar file"):
        _index(shard_config(root))


def test_an_unreadable_recording_is_named_by_shard_and_member(tmp_path: Path) -> None:
    members = {"a.wav": make_wav(0), "b.wav": make_wav(1)[:3000], "c.wav": b"", "d.wav": make_wav(3)}
    root = make_tar(tmp_path / "shards" / "x.tar", members).parent
    with pytest.raises(AudioError, match=r"x\.tar/b\.wav: truncated"):
        list(shard_loader(shard_config(root), shuffle=False))
    config = shard_config(root, on_error="skip")
    infos = [info for _, infos in shard_loader(config, shuffle=False) for info in infos]
    assert [info["sample_id"][-5:] for info in infos] == ["a.wav", "d.wav", "d.wav", "d.wav"]
    assert infos[1]["replaced"] == "w/x.tar/b.wav"


def test_a_shard_that_changes_while_it_is_read_is_named(root: Path) -> None:
    config = parse_dataset_config(shard_config(root))
    dataset = ShardDataset(_index(shard_config(root)), config, sample_size=4000, sample_rate=RATE)  # type: ignore[arg-type]
    make_tar(root / "part-0.tar", {"0.wav": b""})
    with pytest.raises(DataError, match=r"part-0\.tar: ends before byte \d+; it has changed"):
        dataset[3]


def test_nothing_to_read_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="path 'nowhere' does not exist; looked for"):
        _index({**shard_config(tmp_path / "x"), "datasets": [{"id": "w", "path": "nowhere"}]})
    (tmp_path / "shards").mkdir()
    with pytest.raises(DataError, match=r"no \.tar files in .*shards"):
        _index(shard_config(tmp_path / "shards"))
    make_tar(tmp_path / "shards" / "a.tar", {"a.txt": b"words", "b.json": b"{}"})
    with pytest.raises(DataError, match="no recordings in the shards of"):
        _index(shard_config(tmp_path / "shards"))
    assert "2 samples hold no recording" in capfd.readouterr().err.replace("\n", " ")
    with pytest.raises(ConfigError, match="endpoint_url and anonymous are for s3_path"):
        _index(shard_config(tmp_path, {"anonymous": True}))


def test_a_dataset_can_be_sent_to_another_process(root: Path) -> None:
    config = parse_dataset_config(shard_config(root))
    dataset = ShardDataset(_index(shard_config(root)), config, sample_size=4000, sample_rate=RATE)  # type: ignore[arg-type]
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(dataset[5][0], copy[5][0])


def test_silences_are_shortened_in_mono(tmp_path: Path) -> None:
    loud, quiet = torch.full((1, 3000), 0.5), torch.zeros(1, 9000)
    audio = torch.cat([loud, quiet, loud, quiet[:, :2000], loud], dim=1)
    assert torch.equal(
        shorten_silences(audio, level=0.01, longest=4000, kept=1000),
        torch.cat([loud, quiet[:, :1000], loud, quiet[:, :2000], loud], dim=1),
    )
    assert shorten_silences(quiet, level=0.01, longest=10, kept=0).shape == (1, 0)
    content = io.BytesIO()
    soundfile.write(content, audio.T.numpy(), RATE, format="WAV")
    root = make_tar(tmp_path / "shards" / "x.tar", {"a.wav": content.getvalue()}).parent
    options = {"random_crop": False, "silence_threshold": (0.01, 0.125), "max_silence_duration": 0.5}
    loader = shard_loader(
        shard_config(root, remove_silence=True, **options), batch_size=1, sample_size=12000, shuffle=False
    )
    ((clip, _),) = list(loader)
    expected = torch.cat([loud, quiet[:, :1000], loud, quiet[:, :2000], loud], dim=1)
    torch.testing.assert_close(clip[0], expected, atol=1e-4, rtol=0)


def test_levels_are_drawn_in_their_range(root: Path) -> None:
    config = shard_config(root, volume_norm=True, volume_norm_param=(-20, 3), epoch_steps=12)
    levels = [
        20 * torch.log10(clip.square().mean().sqrt()).item()
        for audio, _ in shard_loader(config)
        for clip in audio
    ]
    assert -23 <= min(levels) < -21 < -19 < max(levels) <= -17


def test_real_recordings_in_shards_are_those_of_the_folder(jamendo_mini: Path, tmp_path: Path) -> None:
    files = sorted(jamendo_mini.glob("audio/*/*.mp3"))
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "all.tar", "w") as tar:
        for file in files:
            tar.add(file, f"{file.parent.name}/{file.name}")
    loader = shard_loader(
        shard_config(tmp_path / "shards"), sample_rate=44100, audio_channels=2, shuffle=False
    )
    for audio, infos in loader:
        for clip, info in zip(audio, infos, strict=True):
            file = jamendo_mini / "audio" / info["relpath"].removeprefix("all.tar/")
            part, _ = read_audio(file, offset_seconds=info["offset_seconds"], duration_seconds=4000 / 44100)
            assert torch.equal(clip, part)
