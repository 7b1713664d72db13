"""Batches: a function of seed and batch number, whatever the workers, ranks and restarts."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest
import torch

from stable_audio_tools.audio.files import save_audio
from stable_audio_tools.data.dataset import KeyedBatchSampler, create_dataloader_from_config
from stable_audio_tools.data.sample import SampleKey
from stable_audio_tools.errors import AudioError, ConfigError, DataError


@pytest.fixture(autouse=True)
def _quiet_torch() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        yield


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    for number in range(7):
        noise = torch.rand(1, 3000 + 500 * number, generator=torch.Generator().manual_seed(number)) - 0.5
        save_audio(tmp_path / "music" / f"{number}.wav", noise, 8000)
    (tmp_path / "module.py").write_text(
        "def get_custom_metadata(info, audio):\n    return {'prompt': info['relpath']}\n"
    )
    entry = {
        "id": "m",
        "path": str(tmp_path / "music"),
        "custom_metadata_module": str(tmp_path / "module.py"),
    }
    return {"dataset_type": "audio_dir", "datasets": [entry]}


def _loader(config: dict[str, Any], **options: Any) -> Any:
    defaults = {
        "batch_size": 2,
        "sample_size": 2000,
        "sample_rate": 8000,
        "audio_channels": 1,
        "num_workers": 0,
    }
    return create_dataloader_from_config(config, **{**defaults, **options})


def _assert_same(one: list[Any], other: list[Any]) -> None:
    assert len(one) == len(other)
    for (audio, infos), (other_audio, other_infos) in zip(one, other, strict=True):
        assert torch.equal(audio, other_audio)
        for info, other_info in zip(infos, other_infos, strict=True):
            assert info["prompt"] == f"{info['index']}.wav"
            assert torch.equal(info.pop("padding_mask"), other_info.pop("padding_mask"))
            assert info == other_info


def test_batches_are_audio_and_a_tuple_of_infos(config: dict[str, Any]) -> None:
    batches = list(_loader(config))
    assert len(batches) == 3
    for audio, infos in batches:
        assert audio.shape == (2, 1, 2000)
        assert audio.dtype == torch.float32
        assert isinstance(infos, tuple)
        assert len(infos) == 2
    rows = [info["index"] for _, infos in batches for info in infos]
    assert len(set(rows)) == 6


@pytest.mark.parametrize(("workers", "context"), [(2, None), (1, "spawn")])
def test_workers_change_nothing(config: dict[str, Any], workers: int, context: str | None) -> None:
    def take(**options: Any) -> list[Any]:
        return list(itertools.islice(_loader(config, infinite=True, **options), 5))

    _assert_same(take(), take(num_workers=workers, multiprocessing_context=context))


def test_starting_at_a_batch_is_having_read_so_far(config: dict[str, Any]) -> None:
    straight = list(itertools.islice(_loader(config, infinite=True), 10))
    for start in (1, 3, 4, 8):
        resumed = _loader(config, infinite=True, start_batch=start)
        _assert_same(
            list(itertools.islice(resumed, 2)), [_copy(batch) for batch in straight[start : start + 2]]
        )


def _copy(batch: Any) -> Any:
    return batch[0], tuple(dict(info) for info in batch[1])


def test_each_iteration_of_a_finite_loader_is_the_next_epoch(config: dict[str, Any]) -> None:
    loader, endless = _loader(config, batch_size=7), _loader(config, batch_size=7, infinite=True)
    _assert_same([*loader, *loader], list(itertools.islice(endless, 2)))
    assert len(loader) == 1
    assert len(_loader(config)) == 3
    with pytest.raises(TypeError, match="infinite"):
        len(endless)


def _keys(count: int, batch_size: int, batches: int, **options: Any) -> list[list[SampleKey]]:
    return list(itertools.islice(KeyedBatchSampler(count, batch_size, **options), batches))


def test_ranks_share_each_batch_and_the_number_of_them_does_not_matter() -> None:
    alone = _keys(50, 8, 15, infinite=True)
    for world_size in (2, 4, 8):
        ranks = [
            _keys(50, 8 // world_size, 15, infinite=True, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        assert [[*itertools.chain(*parts)] for parts in zip(*ranks, strict=True)] == alone


def test_an_endless_order_does_not_depend_on_the_batch_size_and_leaves_nothing_out() -> None:
    alone = [key for batch in _keys(13, 1, 39, infinite=True) for key in batch]
    for start in range(3):
        assert sorted(key.index for key in alone[start * 13 : (start + 1) * 13]) == list(range(13))
    for size in (2, 5, 8):
        batches = _keys(13, size, 4, infinite=True)
        assert [key for batch in batches for key in batch] == alone[: 4 * size]
        assert _keys(13, size, 2, infinite=True, start_batch=2) == batches[2:]


def test_an_epoch_holds_each_track_once_and_epochs_differ() -> None:
    batches = _keys(20, 4, 10, infinite=True, seed=3)
    first, second = ([key for batch in part for key in batch] for part in (batches[:5], batches[5:]))
    assert sorted(key.index for key in first) == list(range(20))
    assert {key.epoch for key in first} == {0}
    assert {key.epoch for key in second} == {1}
    assert [key.index for key in first] != [key.index for key in second]
    assert [key.index for key in first] != [key.index for batch in _keys(20, 4, 5, seed=4) for key in batch]
    plain = [key.index for batch in _keys(20, 4, 5, shuffle=False) for key in batch]
    assert plain == list(range(20))


def test_without_drop_last_nothing_is_lost_and_ranks_stay_in_step() -> None:
    lengths = [len(batch) for batch in _keys(7, 3, 9, drop_last=False)]
    assert lengths == [3, 3, 1]
    ranks = [_keys(9, 2, 9, drop_last=False, rank=rank, world_size=4, shuffle=False) for rank in range(4)]
    assert [[len(batch) for batch in batches] for batches in ranks] == [[2, 1]] * 4
    assert {key.index for batches in ranks for batch in batches for key in batch} == set(range(9))
    assert [len(batch) for batch in _keys(1, 4, 9, drop_last=False, rank=3, world_size=4)] == [1]


def test_a_batch_larger_than_the_dataset_is_an_error_before_anything_runs(config: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"has 7 tracks, too few for one batch of 8 .*lower --batch-size"):
        _loader(config, batch_size=8)
    with pytest.raises(DataError, match=r"batch of 8 \(batch size 4 x 2 GPUs\)"):
        _loader(config, batch_size=4, world_size=2)
    with pytest.raises(DataError, match="too few"):
        _loader(config, batch_size=8, infinite=True)
    (audio, infos), *rest = list(_loader(config, batch_size=8, drop_last=False))
    assert audio.shape[0] == len(infos) == 7
    assert not rest


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_arrives_as_one_line(config: dict[str, Any], workers: int) -> None:
    broken = Path(config["datasets"][0]["path"]) / "3.wav"
    broken.write_bytes(broken.read_bytes()[:3000])
    with pytest.raises(AudioError, match=r"3\.wav: truncated") as caught:
        list(_loader(config, num_workers=workers))
    assert "\n" not in str(caught.value)
    rows = [info["index"] for _, infos in _loader({**config, "on_error": "skip"}) for info in infos]
    assert 3 not in rows


def test_a_config_error_is_a_config_error(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="random_crop"):
        _loader({**config, "random_corp": True})


@pytest.mark.parametrize("headers", ["1", "0"])
def test_mp3s_are_the_same_whatever_the_workers_and_the_start(tmp_path: Path, headers: str) -> None:
    """Each worker has scanned other files before; a crop must not depend on that."""
    for number in range(3):
        noise = torch.rand(2, 60_000, generator=torch.Generator().manual_seed(number)) - 0.5
        with av.open(str(tmp_path / f"{number}.mp3"), "w", options={"write_xing": headers}) as container:
            stream: Any = container.add_stream("libmp3lame", rate=16000, layout="stereo")
            stream.codec_context.qscale = True
            stream.codec_context.global_quality = 4 * 118
            for begin in range(0, 60_000, 4000):
                block = noise[:, begin : begin + 4000].contiguous().numpy()
                frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
                frame.sample_rate, frame.pts = 16000, begin
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    config = {"dataset_type": "audio_dir", "datasets": [{"id": "m", "path": str(tmp_path)}]}

    def take(count: int, **options: Any) -> list[torch.Tensor]:
        loader = _loader(config, sample_rate=22050, audio_channels=2, batch_size=1, infinite=True, **options)
        return [audio for audio, _ in itertools.islice(loader, count)]

    straight = take(8)
    assert len({audio.sum().item() for audio in straight}) == 8
    for other in (take(8, num_workers=2), take(8, num_workers=3)):
        assert all(map(torch.equal, straight, other))
    assert all(map(torch.equal, straight[5:], take(3, start_batch=5, num_workers=1)))
