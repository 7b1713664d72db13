"""One store filled by several processes, some of them killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from stable_audio_tools.attribution.features.store import FeatureStore
from stable_audio_tools.attribution.run import extract
from stable_audio_tools.attribution.settings import FeatureSettings
from stable_audio_tools.attribution.sharing import ALONE, share_of
from stable_audio_tools.errors import StoreError, UsageError
from stable_audio_tools.inference.shares import Share

ROOT = Path(__file__).parents[3]
SETTINGS = FeatureSettings(K=2, proj_rank=3)
FILES = ("features.npy", "latents.npy", "scales.npy", "done.npy", "tracks.jsonl")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def one_pass(tiny_files, train_config, tmp_path):
    fill(tiny_files, train_config, tmp_path / "once")
    return tmp_path / "once"


def fill(files, config, folder, shard=None):
    options = {"batch_size": 1, "num_workers": 0, "device": "cpu", "shard": shard}
    return extract(files, folder, SETTINGS, dataset_config=config, **options)


def assert_same_bytes(found, expected):
    for name in FILES:
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    assert sorted(path.name for path in found.iterdir()) == sorted(path.name for path in expected.iterdir())


def start(files, config, folder, environment):
    flags = ["--K", "2", "--proj-rank", "3", "--batch-size", "1", "--num-workers", "0", "--device", "cpu"]
    command = [
        *(sys.executable, str(ROOT / "scripts" / "dtrak_extract_features.py"), *flags),
        *("--model-config", str(files.model_config), "--checkpoint", str(files.ckpt_path)),
        *("--train-dataset", str(config), "--output", str(folder)),
    ]
    threads = str(torch.get_num_threads())  # sums of floats depend on it
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads, **environment}
    return subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True)


def rank_of(rank, size):
    return {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}


def done_rows(folder):
    try:
        return int(np.load(folder / "done.npy").sum())
    except (OSError, ValueError):
        return 0


def test_two_processes_of_which_one_is_killed_and_then_another_number_make_the_same_store(
    tiny_files, train_config, one_pass, tmp_path
):
    folder = tmp_path / "shared"
    processes = [start(tiny_files, train_config, folder, rank_of(rank, 2)) for rank in range(2)]
    while done_rows(folder) < 2 and any(process.poll() is None for process in processes):
        time.sleep(0.002)
    processes[1].send_signal(signal.SIGKILL)
    for process in processes:
        process.communicate(timeout=300)
    assert processes[0].returncode == 0
    rows = done_rows(folder)
    assert 4 <= rows < 8, "the second process ended before it could be killed"
    with pytest.raises(StoreError, match="rows are missing"):
        FeatureStore.open(folder)

    last = [start(tiny_files, train_config, folder, rank_of(rank, 3)) for rank in range(3)]
    for process in last:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert_same_bytes(folder, one_pass)


def test_parts_done_one_after_the_other_make_the_same_store(tiny_files, train_config, one_pass, tmp_path):
    folder = tmp_path / "parts"
    for number in (2, 0):
        store = fill(tiny_files, train_config, folder, f"{number}/3")
        assert store.missing()
    assert [path.name for path in sorted(folder.glob("tracks*"))] == [
        "tracks-00000-of-00003.jsonl",
        "tracks-00002-of-00003.jsonl",
    ]
    assert store.missing() == [1, 4, 7]
    assert not fill(tiny_files, train_config, folder, "1/3").missing()
    assert_same_bytes(folder, one_pass)


def test_processes_of_another_run_are_refused(tiny_files, train_config, one_pass):
    with pytest.raises(StoreError, match=r"settings\.e_seed differs"):
        extract(
            tiny_files,
            one_pass,
            FeatureSettings(K=2, proj_rank=3, e_seed=9),
            dataset_config=train_config,
            num_workers=0,
            device="cpu",
            shard="1/2",
        )


def test_a_folder_of_other_files_is_not_made_a_store(tiny_files, train_config, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("x")
    with pytest.raises(StoreError, match="holds files but no feature store"):
        fill(tiny_files, train_config, tmp_path / "notes")
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["todo.txt"]


def test_records_survive_a_merge_that_another_process_does_at_the_same_time(tmp_path):
    make = {"sample_ids": ["a", "b"], "dim": 1, "latent_dim": 1, "stamp": {"settings": {}}}
    stores = [FeatureStore.create(tmp_path / "s", **make, part=(rank, 2)) for rank in range(2)]
    for row, store in enumerate(stores):
        store.write([row], torch.ones(1, 1), torch.ones(1, 1), [{"title": f"t{row}"}])
    assert all(store.finish() for store in stores)
    lines = (tmp_path / "s" / "tracks.jsonl").read_text().splitlines()
    assert [json.loads(line)["title"] for line in lines] == ["t0", "t1"]


def test_a_share_is_what_the_launcher_or_the_flag_says(monkeypatch):
    assert share_of() == ALONE
    assert share_of("2/5") == Share(2, 5)
    for name, value in rank_of(1, 4).items():
        monkeypatch.setenv(name, value)
    assert share_of() == Share(1, 4, 1)
    assert share_of("2/5") == Share(2 * 4 + 1, 20, 1)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name)
    for name, value in (("SLURM_PROCID", "3"), ("SLURM_STEP_NUM_TASKS", "8"), ("SLURM_LOCALID", "1")):
        monkeypatch.setenv(name, value)
    assert share_of() == Share(3, 8, 1)


@pytest.mark.parametrize("shard", ["5/5", "1", "-1/2", "a/b", "0/0"])
def test_a_shard_that_is_none_is_refused(shard):
    with pytest.raises(UsageError, match="expected i/n"):
        share_of(shard)
