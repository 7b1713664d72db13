"""The shell script, killed in the middle and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from stable_audio_tools.attribution.run import run_attribution
from stable_audio_tools.attribution.settings import FeatureSettings

ROOT = Path(__file__).parents[3]
FLAGS = ["--K", "4", "--proj-rank", "3"]


def start(files, train_config, clips, output):
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "MODEL_CONFIG": str(files.model_config),
        "CKPT_PATH": str(files.ckpt_path),
        "TRAIN_DATASET_CONFIG": str(train_config),
        "QUERIES": str(clips),
        "OUTPUT_DIR": str(output),
        "BATCH_SIZE": "1",
        "NUM_WORKERS": "0",
        "DEVICE": "cpu",
        "SCORE_FLAGS": "--top-k 5",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # sums of floats depend on it
    }
    script = ROOT / "scripts" / "run_dtrak_attribution.sh"
    return subprocess.Popen(
        ["bash", str(script), *FLAGS],
        env=environment,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )


def done_rows(folder):
    try:
        return int(np.load(folder / "done.npy").sum())
    except (OSError, ValueError):
        return 0


def test_killed_and_continued_is_bit_identical_to_one_pass(tiny_files, train_config, clips, tmp_path):
    output = tmp_path / "out"
    process = start(tiny_files, train_config, clips, output)
    while process.poll() is None and done_rows(output / "train_features") < 2:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    rows = done_rows(output / "train_features")
    assert 2 <= rows < 8, "the run ended before it could be killed"
    assert not (output / "ranking.csv").exists()

    process = start(tiny_files, train_config, clips, output)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "of 8 rows are there, going on" in errors

    settings = FeatureSettings(K=4, proj_rank=3)
    run_attribution(
        tiny_files,
        train_config,
        clips,
        tmp_path / "once",
        settings,
        batch_size=1,
        num_workers=0,
        device="cpu",
        top_k=5,
    )
    for name in ("train_features/features.npy", "train_features/tracks.jsonl", "query_features/features.npy"):
        assert (output / name).read_bytes() == (tmp_path / "once" / name).read_bytes(), name
    assert (output / "ranking.csv").read_text() == (tmp_path / "once" / "ranking.csv").read_text()


def test_two_parts_of_which_the_last_one_scores(tiny_files, train_config, clips, tmp_path, monkeypatch):
    output = tmp_path / "out"
    for number, is_last in ((1, False), (0, True)):
        monkeypatch.setenv("SHARD", f"{number}/2")
        process = start(tiny_files, train_config, clips, output)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert (output / "ranking.csv").exists() == is_last
        assert ("the last one makes the tables" in errors) != is_last
