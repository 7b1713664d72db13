"""Scores while training: prompts of a stored set, numbers in the log, and a run that survives failure."""

from __future__ import annotations

import csv
import json
from contextlib import nullcontext
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from stable_audio_tools.evaluation.reference import ReferenceSet
from stable_audio_tools.schema.training import SongDescriberEvalConfig
from stable_audio_tools.training import song_describer
from stable_audio_tools.training.run import train
from stable_audio_tools.training.song_describer import SongDescriberScores


class Clap:
    """Stands for a CLAP that is there; the scores themselves are the evaluation's tests."""

    weights_sha256 = "0" * 64

    loaded: ClassVar[list[str]] = []

    def __init__(self, name, device, batch_size):
        self.name = name
        self.loaded.append(name)
        self.places = [str(device)]

    def to(self, device):
        self.places.append(str(device))


@pytest.fixture
def reference(tmp_path):
    rows = np.eye(3, 4, dtype=np.float32)
    prompts = ("rock music", "jazz piano", "folk song")
    return ReferenceSet(rows, rows, prompts, ("1", "2", "3"), "some/clap", Clap.weights_sha256).save(
        tmp_path / "set.npz"
    )


@pytest.fixture
def scored(monkeypatch):
    calls = []
    Clap.loaded.clear()

    def score(clips, prompts, reference, clap):
        calls.append(([clip.name for clip in clips], list(prompts.values()), clap.name))
        return {"fad": 1.5, "alignment": 0.25}

    monkeypatch.setattr(song_describer, "ClapEmbedder", Clap)
    monkeypatch.setattr(song_describer, "score_clips", score)
    return calls


def test_prompts_are_rendered_scored_and_logged(make_settings, tiny_diffusion_config, reference, scored):
    block = {
        "precomputed_embeddings_path": str(reference),
        "eval_every": 2,
        "num_prompts": 2,
        "eval_steps": 2,
    }
    tiny_diffusion_config["training"]["song_describer_eval"] = block
    run = train(make_settings(max_steps=2))
    assert scored == [(["1.wav", "2.wav"], ["rock music", "jazz piano"], "some/clap")]
    assert json.loads((run / "evals/step=00000002/results.json").read_text())["fad"] == 1.5
    with (run / "metrics.csv").open(newline="") as stream:
        last = list(csv.DictReader(stream))[-1]
    assert (last["step"], last["eval/fad"], last["eval/alignment"]) == ("2", "1.5", "0.25")


def test_another_clap_is_survived(
    make_settings, tiny_diffusion_config, reference, scored, monkeypatch, capsys
):
    monkeypatch.setattr(Clap, "weights_sha256", "1" * 64)
    block = {
        "precomputed_embeddings_path": str(reference),
        "eval_every": 1,
        "num_prompts": 1,
        "eval_steps": 1,
    }
    tiny_diffusion_config["training"]["song_describer_eval"] = block
    run = train(make_settings(max_steps=1))
    assert (run / "checkpoints/step=00000001.ckpt").is_file()
    assert scored == []
    assert (
        "the Song Describer evaluation failed and training goes on: the reference was"
        in capsys.readouterr().err
    )


def test_missing_embeddings_are_left_out_with_the_command_that_makes_them(
    make_settings, tiny_diffusion_config, capsys
):
    tiny_diffusion_config["training"]["song_describer_eval"] = {"precomputed_embeddings_path": "absent.npz"}
    train(make_settings(max_steps=1))
    assert "precompute_song_describer_clap_embeddings.py" in capsys.readouterr().err


def shares(config, reference, world_size, monkeypatch):
    """What each of ``world_size`` ranks renders, as name and seed, and with which options."""
    made = []

    def render(model, requests, folder, **options):
        made.append(([(request.name, request.seed) for request in requests], options))

    monkeypatch.setattr(song_describer, "generate_clips", render)
    module = SimpleNamespace(config=SimpleNamespace(duration_seconds=1.0), device="cpu")
    for rank in range(world_size):
        job = SongDescriberScores(config, reference.parent, seed=42)
        job.rank, job.world_size = rank, world_size
        job._reference = ReferenceSet.load(reference)
        job._render(None, module, 2)
    return made


def test_ranks_share_the_prompts_and_make_the_clips_of_one(reference, monkeypatch):
    config = SongDescriberEvalConfig(num_prompts=3)
    [(alone, _)] = shares(config, reference, 1, monkeypatch)
    (first, _), (second, _) = shares(config, reference, 2, monkeypatch)
    assert alone == [("1", 42), ("2", 43), ("3", 44)], "the seeds of sat generate"
    assert first == [alone[0], alone[2]]
    assert second == [alone[1]]


@pytest.mark.parametrize("others", [0, 1])
def test_what_is_cut_short_on_one_rank_is_not_done(tmp_path, monkeypatch, others):
    monkeypatch.setattr(song_describer, "whole_networks", lambda trainer: nullcontext())
    job = SongDescriberScores(SongDescriberEvalConfig(), tmp_path, seed=42)
    job._evaluate = lambda *_: None  # this rank had all the time it needed
    job.world_size = 2
    strategy = SimpleNamespace(root_device="cpu", reduce=lambda cut, reduce_op: cut + others)
    job.do(SimpleNamespace(strategy=strategy), None, 2)
    assert job.cut_short == bool(others)


def test_the_sampler_and_its_schedule_are_those_of_generation(reference, monkeypatch):
    """Nothing is said of them, so they are the defaults of ``generate_clips``, which ``sat generate`` has."""
    config = SongDescriberEvalConfig(num_prompts=2, eval_steps=7, eval_cfg_scale=3.5, gen_batch_size=2)
    [(_, options)] = shares(config, reference, 1, monkeypatch)
    assert options == {"batch_size": 2, "steps": 7, "cfg_scale": 3.5, "device": "cpu"}


def test_the_clap_is_loaded_once_and_waits_on_the_cpu(
    make_settings, tiny_diffusion_config, reference, scored, monkeypatch
):
    kept = []
    first = Clap.__init__

    def remember(self, *args, **options):
        first(self, *args, **options)
        kept.append(self)

    monkeypatch.setattr(Clap, "__init__", remember)
    block = {"precomputed_embeddings_path": str(reference), "eval_every": 1, "eval_steps": 1}
    tiny_diffusion_config["training"]["song_describer_eval"] = {**block, "num_prompts": 2}
    run = train(make_settings(max_steps=2))
    assert len(scored) == 2
    [clap] = kept
    assert clap.places == ["cpu", "cpu", "cpu", "cpu", "cpu"], "made there, and home again after each use"
    assert not (run / "evals/step=00000001/clips").exists(), "clips of the newest only"
    assert len(list((run / "evals/step=00000002/clips").glob("*.wav"))) == 2
