"""The feature store: refuses to mix, survives being cut off."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from stable_audio_tools.attribution.features.store import FeatureStore
from stable_audio_tools.errors import DataError, StoreError

STAMP = {
    "checkpoint": "aaa",
    "model_config": "bbb",
    "adapter": None,
    "settings": {"f": "loss", "K": 4},
    "index": "ccc",
}
IDS = [f"set/{i}.wav" for i in range(6)]


def create(folder, **changes):
    arguments = {"sample_ids": IDS, "dim": 5, "latent_dim": 2, "stamp": STAMP, **changes}
    return FeatureStore.create(folder, **arguments)


def fill(store, rows):
    values = torch.arange(len(IDS) * 5, dtype=torch.float32).view(-1, 5)[rows] - 7
    store.write(rows, values, values[:, :2], [{"sample_id": IDS[row], "title": f"t{row}"} for row in rows])
    return values


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_come_back(tmp_path, dtype):
    store = create(tmp_path / "s", dtype=dtype)
    values = torch.cat([fill(store, [0, 1, 2]), fill(store, [3, 4, 5])])
    store.finish()
    read = FeatureStore.open(tmp_path / "s")
    torch.testing.assert_close(
        read.features(), values.double(), rtol=1e-3 if dtype == "float16" else 0, atol=1e-2
    )
    torch.testing.assert_close(read.features(slice(1, 3)), read.features()[:, 1:3])
    torch.testing.assert_close(read.latents(), values[:, :2].double())
    assert [record["title"] for record in read.records()] == [f"t{i}" for i in range(6)]


@pytest.mark.parametrize("size", [1e-12, 1e9])
def test_float16_rows_keep_their_size(tmp_path, size):
    store = create(tmp_path / "s", dtype="float16")
    values = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)) * size
    store.write(range(6), values, values[:, :2], [{}] * 6)
    torch.testing.assert_close(
        FeatureStore.open(tmp_path / "s").features(), values.double(), rtol=2e-3, atol=size * 1e-3
    )


def test_each_measurement_of_a_float16_row_keeps_its_size(tmp_path):
    values = torch.randn(6, 12, generator=torch.Generator().manual_seed(0))
    values *= torch.tensor([1e-9, 1e3, 1.0]).repeat_interleave(4)
    store = create(tmp_path / "s", dtype="float16", dim=12, measurements=3)
    store.write(range(6), values, values[:, :2], [{}] * 6)
    read = FeatureStore.open(tmp_path / "s")
    for part in range(3):
        own = values[:, 4 * part : 4 * part + 4]
        found = read.features()[:, 4 * part : 4 * part + 4].float()
        assert (found - own).abs().max() < 1e-3 * own.abs().max()
    for columns in (slice(2, 9), slice(5, 7), slice(4, 12), slice(0, 4)):
        torch.testing.assert_close(read.features(columns), read.features()[:, columns])
        torch.testing.assert_close(read.block(slice(1, 4), columns), read.features()[1:4, columns].float())


def test_an_unfinished_store_names_its_first_missing_row(tmp_path):
    store = create(tmp_path / "s")
    fill(store, [0, 1, 3])
    assert store.missing() == [2, 4, 5]
    with pytest.raises(StoreError, match=r"3 of 6 rows are missing, the first is set/2\.wav"):
        FeatureStore.open(tmp_path / "s")


def test_continuing_keeps_what_is_done(tmp_path):
    values = fill(create(tmp_path / "s"), [0, 1, 2])
    again = create(tmp_path / "s")
    assert again.missing() == [3, 4, 5]
    fill(again, [3, 4, 5])
    torch.testing.assert_close(FeatureStore.open(tmp_path / "s").features()[:3], values.double())


def test_a_line_cut_off_by_a_kill_does_no_harm(tmp_path):
    store = create(tmp_path / "s")
    fill(store, [0, 1, 2])
    with open(tmp_path / "s" / "tracks.jsonl", "a") as stream:
        stream.write('\n{"row": 3, "sample_id": "set/3.w')
    again = create(tmp_path / "s")
    fill(again, [3, 4, 5])
    again.finish()
    lines = (tmp_path / "s" / "tracks.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == list(range(6))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"stamp": {**STAMP, "checkpoint": "zzz"}}, "checkpoint differs"),
        ({"stamp": {**STAMP, "index": "zzz"}}, "index differs"),
        (
            {"stamp": {**STAMP, "settings": {"f": "mean", "K": 4}}},
            r"settings\.f differs .the store has loss, this run mean",
        ),
        (
            {"stamp": {**STAMP, "settings": {"f": "mean", "K": 5}}},
            r"settings\.f differs .*, settings\.K differ too",
        ),
        ({"dtype": "float16"}, r"rows\.dtype differs"),
        ({"dim": 6}, r"rows\.dim differs"),
    ],
)
def test_another_run_is_refused_by_name(tmp_path, changes, named):
    fill(create(tmp_path / "s"), [0])
    before = (tmp_path / "s" / "features.npy").read_bytes()
    with pytest.raises(StoreError, match=named):
        create(tmp_path / "s", **changes)
    assert (tmp_path / "s" / "features.npy").read_bytes() == before


def test_stores_of_two_models_are_not_compared_but_two_indexes_are(tmp_path):
    train = create(tmp_path / "train")
    train.require_comparable(create(tmp_path / "q", stamp={**STAMP, "index": "other"}))
    with pytest.raises(StoreError, match=r"cannot be scored against .*checkpoint differs"):
        train.require_comparable(create(tmp_path / "x", stamp={**STAMP, "checkpoint": "other"}))


def test_a_gradient_that_is_not_finite_is_an_error_with_the_tracks_name(tmp_path):
    store = create(tmp_path / "s")
    values = torch.ones(2, 5)
    values[1, 3] = float("nan")
    with pytest.raises(DataError, match=r"set/1\.wav: its gradient is not finite"):
        store.write([0, 1], values, values[:, :2], [{}, {}])
    assert store.missing() == list(range(6))


def test_a_folder_without_a_store_is_an_error(tmp_path):
    with pytest.raises(StoreError, match="no feature store here"):
        FeatureStore.open(tmp_path)
    (tmp_path / "meta.json").write_text("{}")
    with pytest.raises(StoreError, match="not a feature store of this version"):
        FeatureStore.open(tmp_path)


def test_export_writes_the_three_files_of_older_scripts(tmp_path):
    store = create(tmp_path / "s", dtype="float16")
    values = fill(store, list(range(6)))
    path = store.export(tmp_path / "out" / "train.npy")
    np.testing.assert_allclose(np.load(path), values, atol=1e-2)
    assert (tmp_path / "out" / "train.ids.txt").read_text().split() == IDS
    assert json.loads((tmp_path / "out" / "train.meta.json").read_text())["stamp"]["checkpoint"] == "aaa"
