"""However a run ends, its last whole step or last good checkpoint is there, and it goes on bit for bit."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest
import torch
from interrupting import interrupted
from run_folders import assert_same_weights, load, names

from stable_audio_tools.errors import CheckpointError, TrainingError
from stable_audio_tools.training import checkpoints, diffusion
from stable_audio_tools.training.run import train


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("SIGTERM", "on_train_batch_start"),
        ("SIGTERM", "on_train_batch_end"),
        ("SIGUSR1", "on_train_batch_start"),
        ("SIGUSR2", "on_train_batch_start"),
        ("SIGINT", "on_train_batch_start"),
    ],
)
def test_a_signal_saves_the_step_and_recover_equals_one_pass(make_settings, monkeypatch, capsys, hook, name):
    """The second hook comes after the step's own look for a signal, as a signal may."""
    number = getattr(signal, name)
    before = signal.getsignal(number)
    end = interrupted(make_settings(checkpoint_every=100), monkeypatch, hook, number, step=2)
    assert end == (KeyboardInterrupt if number == signal.SIGINT else 128 + number)
    assert signal.getsignal(number) is before
    assert f"stopped by {name} after step 3, which is saved" in capsys.readouterr().err
    run = train(make_settings(checkpoint_every=100, recover=True))
    assert names(run / "checkpoints") == ["step=00000003.ckpt", "step=00000004.ckpt"]
    if name == "SIGTERM":
        whole = train(make_settings(name="whole", checkpoint_every=100))
        assert_same_weights(load(whole, 4), load(run, 4))


@pytest.mark.parametrize("batch", [0, 1, 2])
def test_a_stop_between_the_batches_of_a_step_goes_back_to_the_last_whole_one(
    make_settings, monkeypatch, batch
):
    sizes = {"batch_size": 2, "accum_batches": 3, "checkpoint_every": 100}
    whole = train(make_settings(name="whole", **sizes))
    end = interrupted(make_settings(**sizes), monkeypatch, "on_train_batch_start", signal.SIGTERM, 2, batch)
    assert end == 128 + signal.SIGTERM
    run = train(make_settings(recover=True, **sizes))
    saved = 3 if batch == 2 else 2
    assert names(run / "checkpoints") == [f"step={saved:08d}.ckpt", "step=00000004.ckpt"]
    assert load(run, saved)["position"] == {"steps": saved, "batches": 3 * saved}
    assert_same_weights(load(whole, 4), load(run, 4))
    assert load(run, 4)["position"] == load(whole, 4)["position"]


def test_a_second_interrupt_does_not_wait(make_settings, monkeypatch):
    def press_twice(*_):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    settings = make_settings()
    monkeypatch.setattr(diffusion.DiffusionCondTrainer, "on_train_batch_start", press_twice)
    with pytest.raises(KeyboardInterrupt):
        train(settings)
    (run,) = Path(settings.save_dir, "tiny").iterdir()
    assert names(run / "checkpoints") == []


def test_a_full_disk_leaves_the_checkpoint_before_and_says_so(make_settings, monkeypatch):
    settings, save = make_settings(), torch.save

    def fill(value, path, *rest):
        if "00000004" not in str(path):
            return save(value, path, *rest)
        Path(path).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fill)
        with pytest.raises(TrainingError, match=r"step=00000004\.ckpt: not written, the disk is full: .* MB"):
            train(settings)
    (run,) = Path(settings.save_dir, "tiny").iterdir()
    assert os.listdir(run / "checkpoints") == ["step=00000002.ckpt"]
    assert train(make_settings(recover=True)) == run
    assert load(run, 4)["position"]["steps"] == 4


def test_other_errors_of_the_writer_are_not_taken_for_a_full_disk(make_settings, monkeypatch):
    def fail(*_):
        raise RuntimeError("a bug")

    settings = make_settings()
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        train(settings)


def test_little_space_is_said_before_the_run_starts(make_settings, monkeypatch, capsys):
    run = train(make_settings(max_steps=1))
    assert "are free" not in capsys.readouterr().err
    size = (run / "checkpoints" / "step=00000001.ckpt").stat().st_size
    for free, warned in ((size, True), (3 * size, False)):
        monkeypatch.setattr(checkpoints, "free_space", lambda path, free=free: free)
        train(make_settings(max_steps=1))
        assert ("make room for two" in capsys.readouterr().err) == warned


@pytest.mark.parametrize("harm", ["cut", "bit"])
def test_recover_passes_over_a_damaged_checkpoint(make_settings, capsys, harm):
    run = train(make_settings())
    newest = run / "checkpoints" / "step=00000004.ckpt"
    whole, content = load(run, 4), bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content[: len(content) // 2] if harm == "cut" else content)
    assert train(make_settings(recover=True, save_top_k=1)) == run
    words = capsys.readouterr().err
    assert "step=00000004.ckpt: damaged" in words
    assert "continuing from step 2" in words
    assert names(run / "checkpoints") == ["step=00000004.ckpt", "step=00000004.ckpt.damaged"]
    assert_same_weights(whole, load(run, 4))


def test_recover_with_nothing_but_damage_is_an_error(make_settings):
    run = train(make_settings(max_steps=1))
    (run / "checkpoints" / "step=00000001.ckpt").write_bytes(b"PK nothing")
    with pytest.raises(CheckpointError, match="all 1 checkpoints are damaged"):
        train(make_settings(recover=True))
