"""A run on shards is a run: resumed it takes the data that was next, and its tracks are written down."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import torch
from workshop import Workshop, run_sat


def _shards(shop: Workshop) -> str:
    files = sorted(path for path in Path(shop.music).rglob("*") if path.is_file())
    (shop.root / "shards").mkdir(exist_ok=True)
    for number in range(2):
        with tarfile.open(shop.root / "shards" / f"{number}.tar", "w") as tar:
            for file in files[number::2]:
                tar.add(file, file.name)
    entry = {"id": "s", "path": shop / "shards", "custom_metadata_module": shop / "metadata.py"}
    config = {
        "dataset_type": "wds",
        "datasets": [entry],
        "index_dir": shop / "tables",
        "epoch_steps": 2,
        "shuffle_buffer": 3,
    }
    return shop.write("shards.json", json.dumps(config))


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    (checkpoint,) = folder.glob("*/checkpoints/step=00000004.ckpt")
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def test_a_resumed_run_on_shards_is_the_unbroken_one(shop: Workshop) -> None:
    shards = _shards(shop)
    options = {"dataset_config": shards, "save_dir": shop / "shard-runs", "checkpoint_every": "1"}
    assert run_sat(shop.train(name="unbroken", max_steps="4", **options)) == 0
    assert run_sat(shop.train(name="broken", max_steps="1", **options)) == 0
    assert run_sat([*shop.train(name="broken", max_steps="4", **options), "--recover"]) == 0
    runs = shop.root / "shard-runs"
    unbroken, resumed = _weights(runs / "unbroken"), _weights(runs / "broken")
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)
    rows = next(runs.glob("unbroken/*/tracks.jsonl")).read_text().splitlines()
    assert [json.loads(row)["index"] for row in rows] == list(range(len(rows)))
    assert all(".tar/" in json.loads(row)["sample_id"] for row in rows)
