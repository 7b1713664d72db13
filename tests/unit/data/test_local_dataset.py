"""Crops: a function of (seed, epoch, row), described as they are, and a file that cannot be used is named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from stable_audio_tools.audio.files import read_audio, save_audio
from stable_audio_tools.data.index import TrackIndex
from stable_audio_tools.data.local import LocalDataset
from stable_audio_tools.data.sample import SampleKey, collate
from stable_audio_tools.errors import AudioError, DataError
from stable_audio_tools.schema.reader import parse_dataset_config

RATE = 8000
FUNCTION = "def get_custom_metadata(info, audio):\n    "
LENGTHS = [4000, 20000, 30001, 50000]


@pytest.fixture
def music(tmp_path: Path) -> Path:
    """Four recordings; each sample of recording i at time t is one of a kind."""
    for number, length in enumerate(LENGTHS):
        noise = torch.rand(2, length, generator=torch.Generator().manual_seed(number)) - 0.5
        save_audio(tmp_path / "music" / f"{number}.wav", noise, RATE)
    return tmp_path / "music"


def _dataset(root: Path, module: str | None = None, **options: Any) -> LocalDataset:
    entry: dict[str, Any] = {"id": "m", "path": str(root)}
    if module is not None:
        file = root.parent / f"module_{abs(hash(module))}.py"
        file.write_text(module)
        entry["custom_metadata_module"] = str(file)
    config = parse_dataset_config({"dataset_type": "audio_dir", "datasets": [entry]})
    defaults = {"sample_size": 8000, "sample_rate": RATE, "audio_channels": 2, "random_crop": True, "seed": 7}
    return LocalDataset(TrackIndex.from_config(config), **{**defaults, **options})


def test_the_same_key_is_the_same_crop_in_any_order_and_another_epoch_is_another(music: Path) -> None:
    one, other = _dataset(music), _dataset(music)
    forward = [one[SampleKey(row, 3)] for row in range(4)]
    for row in (2, 0, 3, 1):
        audio, info = other[SampleKey(row, 3)]
        assert torch.equal(audio, forward[row][0])
        assert info["offset_seconds"] == forward[row][1]["offset_seconds"]
    offsets = {one[SampleKey(3, epoch)][1]["offset_seconds"] for epoch in range(8)}
    assert len(offsets) == 8
    assert one[3][1]["offset_seconds"] == one[SampleKey(3, 0)][1]["offset_seconds"]
    assert _dataset(music, seed=8)[3][1]["offset_seconds"] != one[3][1]["offset_seconds"]


def test_a_crop_is_what_its_info_says(music: Path) -> None:
    dataset = _dataset(music)
    for row, length in enumerate(LENGTHS):
        for epoch in range(5):
            audio, info = dataset[SampleKey(row, epoch)]
            assert audio.shape == (2, 8000)
            start = round(info["offset_seconds"] * RATE)
            kept = min(8000, length)
            assert 0 <= start <= max(0, length - 8000)
            whole, _ = read_audio(info["path"])
            assert torch.equal(audio[:, :kept], whole[:, start : start + kept])
            assert info["seconds_start"] == math.floor(start / RATE)
            assert info["seconds_total"] == math.ceil(length / RATE)
            assert info["duration_seconds"] == length / RATE
            assert info["padding_mask"].tolist() == [1.0] * kept + [0.0] * (8000 - kept)
            assert info["timestamps"] == (start / length, min(1.0, (start + 8000) / length))
            assert (info["index"], info["sample_id"]) == (row, f"m/{row}.wav")
            assert info["sample_rate"] == RATE
            assert not audio[:, kept:].any()


def test_random_crops_reach_both_ends(music: Path) -> None:
    dataset = _dataset(music, sample_size=19998)
    offsets = {round(dataset[SampleKey(1, epoch)][1]["offset_seconds"] * RATE) for epoch in range(40)}
    assert offsets == {0, 1, 2}


def test_fixed_crops_start_at_the_start(music: Path) -> None:
    dataset = _dataset(music, random_crop=False)
    assert [dataset[SampleKey(row, row)][1]["offset_seconds"] for row in range(4)] == [0.0] * 4


def test_rate_and_channels_are_those_asked_for(music: Path) -> None:
    audio, info = _dataset(music, sample_rate=12000, audio_channels=1)[3]
    assert audio.shape == (1, 8000)
    assert info["seconds_total"] == math.ceil(50000 / RATE)
    assert info["sample_rate"] == 12000


def test_augmentations_are_off_until_switched_on(music: Path) -> None:
    plain, flipped = _dataset(music), _dataset(music, augment_polarity=True)
    signs = []
    for epoch in range(30):
        before, after = plain[SampleKey(3, epoch)][0], flipped[SampleKey(3, epoch)][0]
        assert torch.equal(before.abs(), after.abs())
        signs.append(bool(torch.equal(before, after)))
    assert 5 < sum(signs) < 25
    level = _dataset(music, volume_norm=True)[3][0].square().mean().sqrt()
    assert 20 * math.log10(level) == pytest.approx(-16, abs=0.01)


def test_metadata_reaches_the_sample(music: Path) -> None:
    module = (
        "def get_custom_metadata(info, audio):\n"
        "    assert audio.shape == (2, 8000)\n"
        "    return {'prompt': 'song ' + info['relpath'], 'seconds_total': 99}\n"
    )
    info = _dataset(music, module)[1][1]
    assert info["prompt"] == "song 1.wav"
    assert info["seconds_total"] == 99


def test_a_failing_metadata_function_is_named_with_its_track(music: Path) -> None:
    module = FUNCTION + "return {'prompt': {}['no\\nsuch']}\n"
    with pytest.raises(
        DataError, match=r"module_\d+\.py: get_custom_metadata failed on .*1\.wav: KeyError"
    ) as caught:
        _dataset(music, module)[1]
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"returned NoneType for .*0\.wav, expected a dict"):
        _dataset(music, FUNCTION + "pass\n")[0]
    with pytest.raises(DataError, match=r"may not set \['index'\]"):
        _dataset(music, FUNCTION + "return {'index': 3}\n")[0]


def test_a_rejected_track_is_replaced_by_the_next_and_said(music: Path) -> None:
    module = FUNCTION + "return {'__reject__': info['index'] in (1, 2)}\n"
    dataset = _dataset(music, module)
    _, info = dataset[1]
    assert (info["sample_id"], info["replaced"]) == ("m/3.wav", "m/1.wav")
    assert "__reject__" not in info
    assert "replaced" not in dataset[3][1]
    with pytest.raises(
        DataError, match=r"none of 4 tracks from m/2\.wav on can be used; get_custom_metadata rejects"
    ):
        _dataset(music, FUNCTION + "return {'__reject__': True}\n")[2]


def test_replacement_audio_is_fitted_and_masked(music: Path) -> None:
    module = "import torch\n" + FUNCTION + "return {'__audio__': torch.full((1, 100), 0.5)}\n"
    audio, info = _dataset(music, module)[2]
    assert audio.shape == (2, 8000)
    assert audio[:, :100].eq(0.5).all()
    assert info["padding_mask"].sum() == 100
    assert "__audio__" not in info
    with pytest.raises(DataError, match=r"__audio__ for .* is str"):
        _dataset(music, FUNCTION + "return {'__audio__': 'x'}\n")[0]


def test_an_unreadable_file_stops_or_is_replaced_by_choice(
    music: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (music / "1.wav").write_bytes((music / "1.wav").read_bytes()[:5000])
    with pytest.raises(AudioError, match=r"1\.wav: truncated"):
        _dataset(music)[1]
    patient = _dataset(music, on_error="skip")
    for epoch in range(3):
        _, info = patient[SampleKey(1, epoch)]
        assert (info["sample_id"], info["replaced"]) == ("m/2.wav", "m/1.wav")
    warnings = capfd.readouterr().err
    assert warnings.count("warning:") == 1
    assert "1.wav: truncated" in warnings.replace("\n", " ")
    assert patient[0][1]["index"] == 0


def test_when_nothing_can_be_read_it_ends(music: Path) -> None:
    for path in music.iterdir():
        path.write_text("noise")
    with pytest.raises(
        DataError, match=r"none of 4 tracks from m/3\.wav on can be used; the last one: .*2\.wav"
    ):
        _dataset(music, on_error="skip")[3]


def test_collate_stacks_audio_and_keeps_infos_apart(music: Path) -> None:
    dataset = _dataset(music)
    audio, infos = collate([dataset[0], dataset[3]])
    assert audio.shape == (2, 2, 8000)
    assert isinstance(infos, tuple)
    assert [info["index"] for info in infos] == [0, 3]
