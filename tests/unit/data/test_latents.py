"""Stored latents as samples: padded, cropped where they say they are, and the same everywhere."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stable_audio_tools.data.dataset import create_dataloader_from_config
from stable_audio_tools.data.latent_files import Crop, write_latents
from stable_audio_tools.data.latents import LatentDataset, fit_to_model, latent_index
from stable_audio_tools.data.sample import SampleKey
from stable_audio_tools.errors import ConfigError, DataError
from stable_audio_tools.schema.reader import parse_dataset_config

RATE, RATIO = 8000, 100
SILENCE = [7.0, -7.0]


def counting(frames: int) -> np.ndarray:
    """Latents ``(2, frames)`` whose values are their places: a crop says where it is from."""
    return np.stack([np.arange(frames), -np.arange(frames)]).astype(np.float32)


def store(
    folder: Path,
    row: int,
    *,
    frames: int = 40,
    real: int | None = None,
    offset: int = 0,
    total: int | None = None,
    crop: int = 0,
    rank: int = 0,
    latents: np.ndarray | None = None,
    **more: Any,
) -> None:
    """One crop as :mod:`pre_encode` writes it: ``frames`` latents, of which ``real`` are not padding."""
    real = frames if real is None else real
    total = offset + real * RATIO if total is None else total
    info = {
        "index": row,
        "sample_id": f"music/{row}.wav",
        "dataset_id": "music",
        "path": f"/music/{row}.wav",
        "seconds_start": offset // RATE,
        "offset_seconds": offset / RATE,
        "seconds_total": -(-total // RATE),
        "duration_seconds": total / RATE,
        "sample_rate": RATE,
        "padding_mask": torch.tensor([1] * real + [0] * (frames - real)),
        "timestamps": (offset / total, 1.0),
    }
    values = counting(frames) if latents is None else latents
    write_latents(folder, rank, Crop(row, crop), values, info | more)
    details = {"latents": {"downsampling_ratio": RATIO, "silence": SILENCE}}
    (folder / "details.json").write_text(json.dumps(details))


def config(folder: Path, entry: dict[str, Any] | None = None, **keys: Any) -> Any:
    entries = [{"id": "a", "path": str(folder), **(entry or {})}]
    return parse_dataset_config({"dataset_type": "pre_encoded", "datasets": entries, **keys})


def dataset(folder: Path, entry: dict[str, Any] | None = None, seed: int = 42, **keys: Any) -> LatentDataset:
    value = config(folder, entry, **keys)
    options = {"random_crop": value.random_crop, "on_error": value.on_error, "seed": seed}
    index = fit_to_model(latent_index(value), sample_size=10 * RATIO, sample_rate=RATE)
    return LatentDataset(index, **options)


@pytest.mark.parametrize("random_crop", [False, True])
def test_short_latents_are_padded_with_silence_and_a_mask(tmp_path: Path, random_crop: bool) -> None:
    store(tmp_path, 0, frames=6, real=5)
    latents, info = dataset(tmp_path, {"latent_crop_length": 9}, random_crop=random_crop)[0]
    assert latents.shape == (2, 9)
    assert latents[:, :6].equal(torch.from_numpy(counting(6)))
    assert latents[:, 6:].equal(torch.tensor(SILENCE)[:, None].expand(2, 3))
    assert info["padding_mask"].tolist() == [1] * 5 + [0] * 4
    assert info["seconds_start"] == 0


@pytest.mark.parametrize("offset", [0, 799, 123_456])
def test_a_random_crop_is_where_its_conditioning_says(tmp_path: Path, offset: int) -> None:
    store(tmp_path, 0, frames=500, real=450, offset=offset, total=offset + 45_000)
    samples = dataset(tmp_path, latent_crop_length=64, random_crop=True)
    starts = set()
    for epoch in range(60):
        latents, info = samples[SampleKey(0, epoch)]
        start = int(latents[0, 0])
        starts.add(start)
        assert latents.equal(torch.from_numpy(counting(500)[:, start : start + 64]))
        assert info["padding_mask"].tolist() == [1] * 64, "a crop takes no padding while there is enough else"
        assert info["latent_crop_start"] == start
        assert info["latent_crop_length"] == 64
        first = offset + start * RATIO
        assert info["seconds_start"] == first // RATE
        assert info["offset_seconds"] == pytest.approx(first / RATE, abs=1e-9)
        duration = offset + 45_000
        assert info["timestamps"] == pytest.approx((first / duration, (first + 6400) / duration))
        assert info["seconds_total"] == -(-duration // RATE)
    assert len(starts) > 30
    assert max(starts) <= 450 - 64
    assert {int(dataset(tmp_path, latent_crop_length=64)[SampleKey(0, e)][0][0, 0]) for e in range(9)} == {0}


def test_a_folder_says_its_own_crop_length_and_goes_before_the_config(tmp_path: Path) -> None:
    for name in ("one", "two"):
        store(tmp_path / name, 0)
    entries = [
        {"id": "one", "path": str(tmp_path / "one"), "latent_crop_length": 5},
        {"id": "two", "path": str(tmp_path / "two")},
    ]
    value = {"dataset_type": "pre_encoded", "datasets": entries, "latent_crop_length": 8}
    index = latent_index(parse_dataset_config(value))
    samples = LatentDataset(index)
    assert [samples[row][0].shape[-1] for row in range(2)] == [5, 8]


def test_several_crops_of_a_track_are_one_row_and_epochs_take_turns(tmp_path: Path) -> None:
    for row, crop in itertools.product(range(3), range(2)):
        store(tmp_path, row, crop=crop, rank=row % 2, offset=RATE * crop, total=RATE * 9)
    samples = dataset(tmp_path)
    assert [track.sample_id for track in samples.index] == ["music/0.wav", "music/1.wav", "music/2.wav"]
    assert [track.index for track in samples.index] == [0, 1, 2]
    for row, epoch in itertools.product(range(3), range(5)):
        _, info = samples[SampleKey(row, epoch)]
        assert (info["index"], info["seconds_start"], info["crop"]) == (row, epoch % 2, epoch % 2)
    store(tmp_path, 12, rank=0)
    store(tmp_path, 3, rank=1)
    ids = [track.sample_id for track in latent_index(config(tmp_path))]
    assert ids[3:] == ["music/3.wav", "music/12.wav"], "rows are those that were encoded, whatever the rank"


def test_workers_and_restarts_change_nothing(tmp_path: Path) -> None:
    for row in range(7):
        store(tmp_path, row, frames=90)
    value = config(tmp_path, latent_crop_length=16, random_crop=True)

    def take(count: int, **options: Any) -> list[Any]:
        loader = create_dataloader_from_config(value, 2, 1600, RATE, infinite=True, **options)
        return list(itertools.islice(loader, count))

    straight = take(8, num_workers=0)
    for other in (take(8, num_workers=2), [None] * 5 + take(3, num_workers=0, start_batch=5)):
        for (latents, infos), again in zip(straight, other, strict=True):
            if again is not None:
                assert latents.equal(again[0])
                assert [info["latent_crop_start"] for info in infos] == [
                    info["latent_crop_start"] for info in again[1]
                ]
    assert straight[0][0].shape == (2, 2, 16)
    assert len({float(batch[0, 0, 0]) for batch, _ in straight}) > 3
    assert torch.cat([batch for batch, _ in straight])[:, 0].min() >= 0, "the sign is never flipped"


def test_lengths_that_differ_are_cut_to_the_window_of_the_model(tmp_path: Path) -> None:
    store(tmp_path, 0, frames=30)
    store(tmp_path, 1, frames=7)
    assert [latents.shape[-1] for latents, _ in map(dataset(tmp_path).__getitem__, range(2))] == [10, 10]
    (tmp_path / "details.json").unlink()
    with pytest.raises(ConfigError, match=r"latent_crop_length: missing; .* are 7 to 30 long"):
        dataset(tmp_path)


def test_what_is_too_short_or_too_long_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for row, seconds in enumerate((2, 5, 9)):
        store(tmp_path, row, total=seconds * RATE)
    samples = dataset(tmp_path, min_length_sec=3, max_length_sec=5)
    assert [track.sample_id for track in samples.index] == ["music/1.wav"]
    assert "2 tracks are shorter or longer" in capsys.readouterr().err
    with pytest.raises(DataError, match="leave out all 3 tracks"):
        dataset(tmp_path, min_length_sec=100)


class TestFoldersOfThePublicPackage:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Two ranks of a batch each; 40 latents of 4,000 samples; no word of how long a latent is."""
        for rank, place in itertools.product(range(2), range(2)):
            path = tmp_path / str(rank) / f"{rank:03d}{0:06d}{place:04d}.npy"
            path.parent.mkdir(exist_ok=True)
            np.save(path, counting(40))
            info = {
                "path": f"/music/{rank}{place}.wav",
                "seconds_start": 3,
                "seconds_total": 60,
                "sample_rate": RATE,
                "padding_mask": [1] * 35 + [0] * 5,
                "prompt": "a song",
            }
            path.with_suffix(".json").write_text(json.dumps(info))
        (tmp_path / "details.json").write_text(json.dumps({"sample_size": 4000, "args": {}}))
        return tmp_path

    def test_every_file_is_a_row_and_crops_are_placed(self, folder: Path) -> None:
        samples = dataset(folder, latent_crop_length=12, random_crop=True)
        assert len(samples) == 4
        assert len({track.sample_id for track in samples.index}) == 4
        for row, epoch in itertools.product(range(4), range(9)):
            latents, info = samples[SampleKey(row, epoch)]
            start = int(latents[0, 0])
            assert info["seconds_start"] == (3 * RATE + start * RATIO) // RATE
            assert info["prompt"] == "a song"
            assert start <= 35 - 12
        assert samples[0][1]["latent_filename"] == str(folder / "0" / "0000000000000.npy")

    def test_without_details_a_random_crop_cannot_be_placed(self, folder: Path) -> None:
        (folder / "details.json").unlink()
        assert dataset(folder)[0][1]["seconds_start"] == 3
        samples = dataset(folder, latent_crop_length=12, random_crop=True)
        with pytest.raises(DataError, match=r"cannot be placed in seconds.* set random_crop to false"):
            [samples[SampleKey(0, epoch)] for epoch in range(9)]

    def test_the_folder_of_a_rank_or_a_file_list_can_be_named(self, folder: Path) -> None:
        assert len(dataset(folder / "1")) == 2
        (folder / "filelist.txt").write_text("1/0010000000001.npy\n0/0000000000000.npy\n")
        assert len(dataset(folder)) == 2
        (folder / "filelist.txt").write_text("1/gone.npy\n")
        with pytest.raises(DataError, match="1 of 1 files are not in this folder"):
            dataset(folder)

    def test_another_extension_is_read(self, folder: Path) -> None:
        for path in folder.rglob("*.npy"):
            path.rename(path.with_suffix(".lat"))
        with pytest.raises(DataError, match=r"no latents in .*; expected \.npy"):
            dataset(folder)
        assert len(dataset(folder, latent_extension=".lat")) == len(dataset(folder, latent_extension="lat"))


MODULE = "def get_custom_metadata(info, audio):\n    assert audio is None\n    return "


@pytest.mark.parametrize(
    ("returned", "error"),
    [
        ("{'prompt': str(info['latent_crop_start'])}", None),
        ("{'__audio__': audio}", "return __replace__ with latents"),
        ("{'__replace__': 3}", r"__replace__ for .* is int, expected latents of the shape \(2, 8\)"),
        ("{'__reject__': True}", "get_custom_metadata rejects each"),
        ("{'sample_id': 'x'}", r"may not set \['sample_id'\]"),
    ],
)
def test_a_metadata_function_is_asked_without_audio(tmp_path: Path, returned: str, error: str | None) -> None:
    store(tmp_path, 0)
    (tmp_path / "module.py").write_text(MODULE + returned)
    samples = dataset(tmp_path, {"custom_metadata_module": str(tmp_path / "module.py")}, latent_crop_length=8)
    if error is None:
        assert samples[0][1]["prompt"] == "0"
    else:
        with pytest.raises(DataError, match=error):
            samples[0]


def test_a_metadata_function_may_replace_the_latents(tmp_path: Path) -> None:
    store(tmp_path, 0)
    body = "import torch\n" + MODULE + "{'__replace__': torch.full((2, 8), 5.0)}"
    (tmp_path / "module.py").write_text(body)
    entry = {"custom_metadata_module": str(tmp_path / "module.py")}
    latents, info = dataset(tmp_path, entry, latent_crop_length=8)[0]
    assert latents.eq(5).all()
    assert "__replace__" not in info


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _wrong_shape(path: Path) -> None:
    np.save(path, np.zeros((2, 3, 4)))


def _wrong_mask(path: Path) -> None:
    beside = path.with_suffix(".json")
    beside.write_text(json.dumps({**json.loads(beside.read_text()), "padding_mask": [1] * 39}))


def _pickled(path: Path) -> None:
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (_cut, "not a whole array of numbers.*encode it again"),
        (_wrong_shape, r"found float64 \(2, 3, 4\), expected latents or codes \(channels, length\)"),
        (_wrong_mask, "its padding_mask of 39 does not fit"),
        (_pickled, "not a whole array"),
        (Path.unlink, "No such file"),
    ],
)
def test_a_damaged_file_stops_or_gives_way_by_choice(tmp_path: Path, damage: Any, error: str) -> None:
    for row in range(3):
        store(tmp_path, row)
    samples = dataset(tmp_path, latent_crop_length=40)
    skipping = dataset(tmp_path, latent_crop_length=40, on_error="skip")
    damage(tmp_path / "0" / "0000000010000.npy")
    if damage is _wrong_mask:
        samples, skipping = (
            dataset(tmp_path, latent_crop_length=40, on_error=how) for how in ("raise", "skip")
        )
    assert samples[0][1]["index"] == 0
    with pytest.raises(DataError, match=rf"0000000010000\.npy: .*{error}"):
        samples[1]
    assert skipping[1][1]["replaced"] == "music/1.wav"
    assert skipping[1][1]["index"] == 2


def test_json_that_is_missing_or_broken_is_found_before_training(tmp_path: Path) -> None:
    store(tmp_path, 0)
    beside = tmp_path / "0" / "0000000000000.json"
    beside.write_text("{")
    with pytest.raises(DataError, match=r"0000000000000\.json: cannot be read as JSON"):
        dataset(tmp_path)
    beside.unlink()
    with pytest.raises(DataError, match=r"0000000000000\.json is not beside it"):
        dataset(tmp_path)


def test_another_sample_rate_is_refused(tmp_path: Path) -> None:
    store(tmp_path, 0)
    with pytest.raises(DataError, match="latents of audio at 8000 Hz, but the model is for 44100 Hz"):
        create_dataloader_from_config(config(tmp_path), 1, 1000, 44100)


def test_a_folder_that_is_not_there_or_is_unfinished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match=r"path '.*gone' does not exist"):
        dataset(tmp_path / "gone")
    store(tmp_path, 0)
    (tmp_path / "details.json").write_text(json.dumps({"latents": {"count": 4, "downsampling_ratio": 100}}))
    assert len(dataset(tmp_path)) == 1
    assert "1 of 4 crops are stored" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stored", "read"), [(np.float16, torch.float32), (np.float64, torch.float32), (np.int16, torch.int64)]
)
def test_numbers_come_as_training_takes_them(tmp_path: Path, stored: Any, read: torch.dtype) -> None:
    store(tmp_path, 0, latents=counting(40).astype(stored))
    latents, _ = dataset(tmp_path, latent_crop_length=45)[0]
    assert latents.dtype == read
    assert latents[:, :40].float().equal(torch.from_numpy(counting(40)))
    assert latents[:, 40:].float().equal(torch.tensor(SILENCE)[:, None].expand(2, 5))
