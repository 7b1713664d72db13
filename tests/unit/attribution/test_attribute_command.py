"""``sat attribute`` as a user types it."""

from __future__ import annotations

import csv

import pytest

from stable_audio_tools.cli.main import main

SMALL = ["--K", "1", "--proj-rank", "2", "--num-workers", "0", "--device", "cpu"]


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(["attribute", *map(str, arguments)])
    return ended.value.code or 0


@pytest.fixture
def in_one_command(tiny_files, train_config, clips):
    return [
        *("run", "--checkpoint", tiny_files.ckpt_path, "--train-dataset", train_config, "--queries", clips),
        *SMALL,
    ]


def read(path):
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_the_config_is_taken_from_the_checkpoint(in_one_command, tmp_path):
    assert run(*in_one_command, "--output-dir", tmp_path / "out") == 0
    assert (tmp_path / "out" / "model_config.json").exists()
    assert len(read(tmp_path / "out" / "ranking.csv")) == 2 * 8


def test_parts_of_a_run_end_with_the_tables(in_one_command, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [*in_one_command, "--output-dir", out, "--batch-size", 1]
    assert run(*arguments, "--shard", "0/2") == 0
    assert "the last one makes the tables" in " ".join(capsys.readouterr().err.split())
    assert not (out / "ranking.csv").exists()
    assert run(*arguments, "--shard", "1/2") == 0
    assert len(read(out / "ranking.csv")) == 2 * 8


@pytest.mark.parametrize("shard", [[], ["--shard", "0/2"]])
@pytest.mark.parametrize("flags", [["--method", "trak"], ["--mode", "dense", "--used-dim", "8"]])
def test_scores_that_features_cannot_give_are_refused_before_the_work(
    in_one_command, tmp_path, capsys, flags, shard
):
    arguments = [flag for flag in in_one_command if flag not in ("--proj-rank", "2")]
    assert run(*arguments, *flags, *shard, "--output-dir", tmp_path / "out") == 2
    assert "this run has 'mean-squared-l2-norm+loss'" in " ".join(capsys.readouterr().err.split())
    assert not list((tmp_path / "out").rglob("features.npy"))


def test_every_documented_flag_of_the_dense_mode(in_one_command, tmp_path):
    flags = [
        *("--mode", "dense", "--proj-dim", "24", "--used-dim", "12", "--lambda-reg", "100", "--f", "l2-norm"),
        *("--t-strategy", "cumulative", "--num-train-steps", "500", "--seed", "1", "--e-seed", "2"),
        *("--cfg-dropout-prob", "0.1", "--max-examples", "4", "--disable-random-crop"),
        *("--param-regex", "self_attn"),
    ]
    arguments = [flag for flag in in_one_command if flag not in ("--proj-rank", "2")]
    assert run(*arguments, *flags, "--output-dir", tmp_path / "out") == 0
    assert len(read(tmp_path / "out" / "ranking.csv")) == 2 * 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--proj-dim", "16"], "--proj-dim belongs to --mode dense, and the mode is hooked"),
        (["--mode", "dense"], "--proj-rank belongs to --mode hooked, and the mode is dense"),
        (["--shard", "2/2"], "expected i/n with i from 0 to n - 1"),
        (["--pre-encoded"], "is of type 'audio_dir', expected 'pre_encoded'"),
        (["--random-crop", "--disable-random-crop"], "exclude each other"),
    ],
)
def test_what_does_not_go_together_is_refused(in_one_command, tmp_path, capsys, flags, message):
    assert run(*in_one_command, *flags, "--output-dir", tmp_path / "out") == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_an_ensemble_needs_as_many_stores_of_each(in_one_command, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(*in_one_command, "--output-dir", out) == 0
    train, clips = out / "train_features", out / "query_features"
    pair = ["score", "--train-features", train, "--query-features", clips]
    assert run(*pair, *pair[1:], "--output-dir", tmp_path / "two") == 0
    assert (tmp_path / "two" / "ranking.csv").read_text() == (out / "ranking.csv").read_text()
    assert run(*pair, "--query-features", clips, "--output-dir", tmp_path / "x") == 2
    assert "an ensemble needs as many of each" in " ".join(capsys.readouterr().err.split())
