"""The whole proof on a tiny world: stages go on where they stopped, shards share the work."""

from __future__ import annotations

import json

import pytest
import torch

from stable_audio_tools.attribution.proof.experiment import (
    COPY,
    GENERATED,
    HELD_OUT,
    Experiment,
    ProofData,
    ProofSettings,
)
from stable_audio_tools.attribution.proof.kernels import FeaturePlan, Kernels, taken
from stable_audio_tools.attribution.proof.methods import Method
from stable_audio_tools.attribution.proof.report import proof_report, report_text, write_report
from stable_audio_tools.attribution.proof.retrain import RetrainSettings
from stable_audio_tools.attribution.settings import FeatureSettings
from stable_audio_tools.errors import StoreError, UsageError

SETTINGS = ProofSettings(
    subsets=8, seeds=2, full=2, generated=4, at_once=8, measure_draws=1, removal_queries=1, groups_left_out=3,
    steps=2, feature_batch=8,
)  # fmt: skip
METHODS = [Method("squared", ("msq",), square=True), Method("trak", ("loss",))]


@pytest.fixture
def make(tmp_path, model, tracks):
    def made(name="run", **options):
        rows, held = tracks(model, 16, "t", 0), tracks(model, 4, "h", 1)
        data = ProofData(
            rows, [f"artist {i // 4}" for i in range(16)], held, [f"artist {i}" for i in range(4)],
            taken(rows, [3, 9]), [3, 9], ["same", "same"],
        )  # fmt: skip
        plans = [FeaturePlan(n, FeatureSettings(f=f, K=2)) for n, f in
                 (("msq", "mean-squared-l2-norm"), ("loss", "loss"))]  # fmt: skip
        retrain = options.pop("retrain", RetrainSettings(steps=3, batch_size=4, precision="float32"))
        return Experiment(
            tmp_path / name, model, data, retrain, options.pop("settings", SETTINGS), plans, METHODS[:1],
            torch.device("cpu"), **options,
        )  # fmt: skip

    return made


def test_shards_together_are_one_run_and_the_report_says_it_all(make, tmp_path):
    one = make("one")
    for stage in (one.full, one.train, one.features, one.removal):
        stage()
    shards = [make("two", shard=(number, 2)) for number in range(2)]
    shards[0].full()
    for stage in ("train", "features", "removal"):
        for shard in shards:
            assert getattr(shard, stage)()
    found, expected = shards[0].results.read(), one.results.read()
    assert set(found) == set(expected)
    for key, values in expected.items():
        torch.testing.assert_close(found[key], values, rtol=1e-4, atol=1e-5)
    for plan in one.plans:
        both = [Kernels.load(e.folder / "kernels" / f"{plan.name}.npz") for e in (one, shards[0])]
        torch.testing.assert_close(both[0].cross, both[1].cross, rtol=1e-4, atol=1e-6)

    report = proof_report(
        one, METHODS, default="squared", baseline="trak", pairs=[("trak", "squared")], draws=50
    )
    for kind in (GENERATED, HELD_OUT):
        names = {line["method"] for line in report[kind]["lds"]}
        assert {"squared", "trak", "random", "latent-cosine", "artist alone"} <= names
        alone = next(line for line in report[kind]["lds"] if line["method"] == "artist alone")
        assert alone["lds"] == {"value": 0.0, "low": 0.0, "high": 0.0}
        assert report[kind]["subsets"] == [4, 4]
    assert {line["method"] for line in report["removal, generated"]} == {
        "squared",
        "latent-cosine",
        "at random",
    }
    assert report["without an artist"][0]["groups"] == 3
    # a copy of a track is nearest to it, and the same to the gradients
    first = {(line["method"], line["kind"]): line["first"] for line in report["copies"]}
    assert first["aligned-cosine", "same"] == first["trak", "same"] == 1.0
    text = report_text(report)
    assert "2 queries, 4 subsets, 2 seeds; square brackets" in text
    paths = write_report(tmp_path / "report", report, {"steps": 3}, "Title")
    assert json.loads(paths[0].read_text())["models"] == len(expected)
    assert "Altered copies" in paths[1].read_text()


def test_a_finished_stage_does_nothing_more(make):
    first = make()
    first.full()
    first.train()
    before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*.npz")}
    again = make()
    again._trainer = None  # would fail if anything were trained
    again.full()
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*.npz")} == before
    assert not again.results.missing(again.subset_jobs())


def test_generated_clips_ask_with_their_prompts(make):
    run = make()
    run.full()
    queries = run.queries()
    assert [len(run.rows_of(kind)) for kind in (GENERATED, HELD_OUT, COPY)] == [4, 4, 2]
    assert len(queries) == 10
    held = run.data.held_out
    for row, prompt in zip(run.rows_of(GENERATED), run.prompts(), strict=True):
        assert torch.equal(queries.conditioning["style"][0][row], held.conditioning["style"][0][prompt])
    assert run.groups_of_queries()[-2:] == ["artist 0", "artist 2"]


def test_other_training_is_refused(make):
    make()
    with pytest.raises(StoreError, match="other settings or tracks"):
        make(retrain=RetrainSettings(steps=4, batch_size=4, precision="float32"))


def test_a_stage_too_early_says_what_is_missing(make):
    with pytest.raises(StoreError, match=r"generated\.npz: not there; run the stage that makes it first"):
        make().features()


def test_gradients_are_dealt_out_once(make):
    shards = [make(shard=(number, 3)) for number in range(3)]
    dealt = [plan.name for shard in shards for plan in shard._own_plans()]
    assert sorted(dealt) == ["loss", "msq"]


def test_sizes_that_make_no_sense_are_named():
    with pytest.raises(UsageError, match="subsets must be at least 4, found 3"):
        ProofSettings(subsets=3)
