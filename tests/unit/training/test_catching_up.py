"""A run that ends behind a checkpoint, before what else was due at its step, does that when it goes on."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from interrupting import interrupted
from metrics_table import learned_rows, read_table
from run_folders import assert_same_weights, load

from stable_audio_tools.training import demos, diffusion
from stable_audio_tools.training.run import train

DEMO = {
    "demo_every": 2,
    "demo_steps": 2,
    "num_demos": 1,
    "demo_cond": [{"prompt": "rock", "seconds_start": 0, "seconds_total": 1}],
    "demo_cfg_scales": [2],
}
OWED = "not done before the run ended, so first: the demo, the validation"
PLACES = {
    "demo": (demos, "generate_diffusion_cond"),
    "validation": (diffusion.DiffusionCondTrainer, "validation_step"),
}


@pytest.fixture
def settings_with_jobs(make_settings, tmp_path, tiny_diffusion_config):
    """Settings of a run that validates and makes demos at steps 2 and 4, both of which it saves."""
    tiny_diffusion_config["training"]["demo"] = dict(DEMO)

    def make(**changes):
        return make_settings(val_dataset_config=str(tmp_path / "data.json"), val_every=2, **changes)

    return make


def stop_after(settings, step, monkeypatch):
    """A run that is stopped by a signal once ``step`` is saved."""
    end = interrupted(settings, monkeypatch, "on_train_batch_start", signal.SIGTERM, step - 1)
    assert end == 128 + signal.SIGTERM


def cut_short(settings, place, monkeypatch):
    """A run that is stopped by a signal in the first demo or validation."""

    def and_stop(work):
        def working(*args, **options):
            os.kill(os.getpid(), signal.SIGTERM)
            return work(*args, **options)

        return working

    owner, name = PLACES[place]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, and_stop(getattr(owner, name)))
        with pytest.raises(SystemExit) as end:
            train(settings)
    assert end.value.code == 128 + signal.SIGTERM


def files(run: Path) -> dict[str, bytes]:
    """The clips of a run, and what it says of its best checkpoint."""
    found = [*(run / "demos").rglob("*.wav"), run / "checkpoints" / "best.json"]
    return {str(path.relative_to(run)): path.read_bytes() for path in found}


@pytest.mark.parametrize("from_batch", [False, True])
@pytest.mark.parametrize("step", [2, 4])
def test_a_run_owes_nothing_in_the_end(
    settings_with_jobs, tiny_diffusion_config, monkeypatch, capsys, step, from_batch
):
    """At the last step too, behind which no batch comes."""
    tiny_diffusion_config["training"]["demo"]["demo_cond_from_batch"] = from_batch
    stop_after(settings_with_jobs(), step, monkeypatch)
    (run,) = Path(settings_with_jobs().save_dir, "tiny").iterdir()
    assert not read_table(run / "metrics.csv")[-1].get("val/loss"), "it ended before"
    assert train(settings_with_jobs(recover=True)) == run
    assert f"step {step}: {OWED}" in capsys.readouterr().err
    whole = train(settings_with_jobs(name="whole"))
    assert learned_rows(run / "metrics.csv") == learned_rows(whole / "metrics.csv")
    if from_batch:  # that batch is gone; the next one has prompts too
        assert files(run).keys() == files(whole).keys()
    else:
        assert files(run) == files(whole)


@pytest.mark.parametrize("place", ["demo", "validation"])
def test_a_signal_cuts_short_what_can_be_done_again(settings_with_jobs, monkeypatch, capsys, place):
    cut_short(settings_with_jobs(checkpoint_every=100), place, monkeypatch)
    (run,) = Path(settings_with_jobs().save_dir, "tiny").iterdir()
    assert [path.name for path in (run / "checkpoints").glob("*.ckpt")] == ["step=00000002.ckpt"]
    assert not read_table(run / "metrics.csv")[-1].get("val/loss")
    made = [path.parent.name for path in (run / "demos").rglob("*.wav")]
    assert made == ([] if place == "demo" else ["step=00000002"])
    said = capsys.readouterr().err
    assert ("step 2: the demo is left to the run that goes on" in said) == (place == "demo")
    assert train(settings_with_jobs(checkpoint_every=100, recover=True)) == run
    owed = OWED if place == "demo" else OWED.replace("the demo, ", "")
    assert f"step 2: {owed}\n" in capsys.readouterr().err
    whole = train(settings_with_jobs(checkpoint_every=100, name="whole"))
    assert learned_rows(run / "metrics.csv") == learned_rows(whole / "metrics.csv")
    assert files(run) == files(whole)
    assert_same_weights(load(run, 4), load(whole, 4))


def test_what_is_cut_short_again_is_still_owed(settings_with_jobs, monkeypatch, capsys):
    stop_after(settings_with_jobs(), 2, monkeypatch)
    cut_short(settings_with_jobs(recover=True), "demo", monkeypatch)
    capsys.readouterr()
    run = train(settings_with_jobs(recover=True))
    assert "step 3: not done before the run ended, so first: the demo\n" in capsys.readouterr().err
    assert sorted(path.name for path in (run / "demos").glob("step=*")) == ["step=00000003", "step=00000004"]


def test_a_better_checkpoint_of_before_is_not_replaced(settings_with_jobs, monkeypatch):
    stop_after(settings_with_jobs(), 4, monkeypatch)
    (run,) = Path(settings_with_jobs().save_dir, "tiny").iterdir()
    record = {"step": 2, "val_loss": 0.0}
    (run / "checkpoints" / "best.json").write_text(json.dumps(record))
    train(settings_with_jobs(recover=True))
    assert json.loads((run / "checkpoints" / "best.json").read_text()) == record


def test_what_is_done_is_not_done_again(settings_with_jobs, capsys):
    run = train(settings_with_jobs(max_steps=2))
    train(settings_with_jobs(recover=True))
    (run / "jobs.json").unlink()  # a run of before there was such a record
    train(settings_with_jobs(recover=True))
    train(settings_with_jobs(name="new", ckpt_path=str(run / "checkpoints" / "step=00000002.ckpt")))
    assert "so first" not in capsys.readouterr().err


def test_what_ends_a_run_is_tried_once_more_only(settings_with_jobs, monkeypatch, capsys):
    class Killed(BaseException):
        """What no one catches."""

    def kill(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(demos, "generate_diffusion_cond", kill)
        for _ in range(2):
            with pytest.raises(Killed):
                train(settings_with_jobs(recover=True))
    assert f"step 2: {OWED}" in capsys.readouterr().err
    run = train(settings_with_jobs(recover=True))
    assert "so first" not in capsys.readouterr().err
    assert [path.name for path in (run / "demos").glob("step=*")] == ["step=00000004"]
