"""Extraction and the whole run on a tiny model: what rows may depend on, and what they may not."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_datasets import write_dataset

from stable_audio_tools.attribution.features import extract as extract_module
from stable_audio_tools.attribution.features.store import FeatureStore
from stable_audio_tools.attribution.run import extract, run_attribution, score_stores
from stable_audio_tools.attribution.scoring.scores import ScoreSettings
from stable_audio_tools.attribution.settings import FeatureSettings
from stable_audio_tools.data.sidecars import write_sidecar
from stable_audio_tools.errors import DataError, StoreError, UsageError
from stable_audio_tools.schema.generation import ClipSidecar

SMALL = FeatureSettings(K=2, proj_rank=4)


def rows_of(files, config, folder, settings=SMALL, **options):
    options = {"batch_size": 3, "num_workers": 0, "device": "cpu", **options}
    return extract(files, folder, settings, dataset_config=config, **options).features()


def assert_same_rows(found, expected):
    scale = expected.abs().max(dim=1, keepdim=True).values
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.fixture
def reference(tiny_files, train_config, tmp_path):
    return rows_of(tiny_files, train_config, tmp_path / "reference")


def test_rows_do_not_depend_on_batch_size_or_workers(tiny_files, train_config, tmp_path, reference):
    assert (reference != 0).any(dim=1).all()
    assert_same_rows(rows_of(tiny_files, train_config, tmp_path / "one", batch_size=1), reference)
    assert_same_rows(
        rows_of(tiny_files, train_config, tmp_path / "all", batch_size=8, num_workers=2), reference
    )


def test_rows_do_not_depend_on_what_else_is_in_the_training_set(
    tiny_files, tiny_audio_folder, tmp_path, reference
):
    half = tmp_path / "half"
    for number in (1000305, 1000204):
        [source] = (tiny_audio_folder / "audio").rglob(f"{number}.wav")
        target = half / source.relative_to(tiny_audio_folder / "audio")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    rows = rows_of(tiny_files, write_dataset(tmp_path / "data", half), tmp_path / "some")
    ids = FeatureStore.open(tmp_path / "reference").sample_ids
    some = FeatureStore.open(tmp_path / "some").sample_ids
    assert_same_rows(rows, reference[[ids.index(name) for name in some]])


@pytest.mark.parametrize("mode", ["hooked", "dense"])
def test_a_run_that_was_killed_continues_bit_for_bit(tiny_files, train_config, tmp_path, monkeypatch, mode):
    settings = replace(SMALL, mode=mode, proj_dim=32)
    whole = rows_of(tiny_files, train_config, tmp_path / "whole", settings)

    class Killed(BaseException):
        pass

    mark, calls = FeatureStore._mark, []

    def killing_mark(store, rows):
        calls.append(rows)
        if len(calls) == 2:  # dies after the data has reached the disk and before it is marked
            raise Killed
        mark(store, rows)

    monkeypatch.setattr(FeatureStore, "_mark", killing_mark)
    with pytest.raises(Killed):
        rows_of(tiny_files, train_config, tmp_path / "cut", settings)
    with pytest.raises(StoreError, match="5 of 8 rows are missing"):
        FeatureStore.open(tmp_path / "cut")
    continued = rows_of(tiny_files, train_config, tmp_path / "cut", settings)
    assert calls[2:] == [[3, 4, 5], [6, 7]]
    assert torch.equal(continued, whole)
    for name in ("features.npy", "latents.npy", "tracks.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_store_of_another_run_is_refused(tiny_files, train_config, tmp_path, reference):
    with pytest.raises(StoreError, match=r"settings\.e_seed differs"):
        rows_of(tiny_files, train_config, tmp_path / "reference", replace(SMALL, e_seed=1))
    with pytest.raises(StoreError, match=r"max_examples differs|index differs"):
        rows_of(tiny_files, train_config, tmp_path / "reference", replace(SMALL, max_examples=4))


@pytest.mark.parametrize(
    "changes",
    [
        {"f": "mean-squared-l2-norm+mean"},
        {"f": "loss+mean-squared-l2-norm"},
        {"e_seed": 1},
        {"noise": "per-track"},
        {"t_strategy": "cumulative"},
        {"cfg_dropout_prob": 1.0},
        {"seed": 1},
    ],
)
def test_settings_change_the_rows(tiny_files, train_config, tmp_path, reference, changes):
    rows = rows_of(tiny_files, train_config, tmp_path / "other", replace(SMALL, **changes))
    assert not torch.allclose(rows, reference, rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    "changes", [{"noise": "per-track"}, {"cfg_dropout_prob": 0.5}, {"random_crop": True}]
)
def test_per_track_draws_do_not_depend_on_the_batch(tiny_files, train_config, tmp_path, changes):
    settings = replace(SMALL, **changes)
    whole = rows_of(tiny_files, train_config, tmp_path / "three", settings)
    assert_same_rows(rows_of(tiny_files, train_config, tmp_path / "one", settings, batch_size=1), whole)


def test_hooked_rows_reproduce_dense_inner_products(tiny_files, train_config, tmp_path):
    """Unprojected, over the same parameters, both modes have the same kernel."""
    regex = r"transformer\.layers\.1\.(self_attn|ff)\."
    kernels = []
    for settings in (
        replace(SMALL, proj_rank=0, param_regex=regex, max_examples=3),
        replace(SMALL, mode="dense", proj_dim=0, param_regex=regex, max_examples=3),
    ):
        rows = rows_of(tiny_files, train_config, tmp_path / settings.mode, settings)
        kernels.append(rows @ rows.T)
    torch.testing.assert_close(kernels[0], kernels[1], rtol=1e-4, atol=1e-8)


def test_a_track_the_metadata_rejects_has_a_zero_row_and_no_rank(
    tiny_files, tiny_audio_folder, clips, tmp_path
):
    config = write_dataset(tmp_path / "data", tiny_audio_folder / "audio", rejected=1000203)
    files = run_attribution(
        tiny_files, config, clips, tmp_path / "out", SMALL, batch_size=3, num_workers=0, device="cpu"
    )
    train = FeatureStore.open(tmp_path / "out" / "train_features")
    row = next(i for i, name in enumerate(train.sample_ids) if "1000203" in name)
    assert "rejected by its metadata module" in train.records()[row]["left_out"]
    assert (train.features()[row] == 0).all()
    assert files.scores[:, row].abs().max() < 1e-12
    assert not any("1000203" in line for line in files.ranking.read_text().splitlines())


def read(path):
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("f", ["mean-squared-l2-norm", "loss"])
def test_copies_of_training_tracks_find_their_originals(tiny_files, train_config, clips, tmp_path, f):
    files = run_attribution(
        tiny_files,
        train_config,
        clips,
        tmp_path / "out",
        replace(SMALL, f=f),
        batch_size=4,
        num_workers=0,
        device="cpu",
    )
    first = {row["query"]: row for row in read(files.ranking) if row["rank"] == "1"}
    assert {query: row["sample_id"] for query, row in first.items()} == {
        "clips/clip_2.wav": "train/03/1000203.wav",
        "clips/clip_7.wav": "train/08/1000408.wav",
    }
    assert first["clips/clip_2.wav"]["query_prompt"] == "rock 3 guitar"
    assert first["clips/clip_2.wav"]["artist"] == "Artist 2"
    assert len(read(files.ranking)) == 2 * 8
    assert np.load(tmp_path / "out" / "scores.npy").shape == (2, 8)
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["settings"]["rank_by"] == ("score" if f == "loss" else "score_squared")


def test_a_clip_is_a_track_row_when_audio_and_conditioning_are_the_same(
    tiny_files, train_config, clips, tmp_path
):
    """Noise is shared and the projection is the same, so the same music gives nearly the same row."""
    run_attribution(tiny_files, train_config, clips, tmp_path / "out", SMALL, num_workers=0, device="cpu")
    train, found = (FeatureStore.open(tmp_path / "out" / f"{name}_features") for name in ("train", "query"))
    row = next(i for i, name in enumerate(train.sample_ids) if "1000203" in name)
    cosine = torch.nn.functional.cosine_similarity(train.features()[row], found.features()[0], dim=0)
    assert cosine > 0.99


def test_scoring_needs_nothing_but_the_stores(tiny_files, train_config, clips, tmp_path):
    for name, source in (("train", {"dataset_config": train_config}), ("query", {"queries": clips})):
        extract(tiny_files, tmp_path / f"{name}.npy", SMALL, num_workers=0, device="cpu", **source)
        assert (tmp_path / f"{name}.ids.txt").exists()
        assert (tmp_path / f"{name}.meta.json").exists()
    files = score_stores(
        tmp_path / "train.npy",
        tmp_path / "query.npy",
        tmp_path / "out",
        ScoreSettings(method="gradcos"),
        top_k=3,
    )
    assert len(read(files.ranking)) == 2 * 3


def test_a_clip_without_a_prompt_is_named_before_any_work(
    tiny_files, train_config, clips, tmp_path, monkeypatch
):
    (clips / "prompts.csv").unlink()
    monkeypatch.setattr(extract_module, "extract_features", lambda *_, **__: pytest.fail("started to work"))
    with pytest.raises(DataError, match=r"clip_2\.wav: its prompt is not known"):
        run_attribution(tiny_files, train_config, clips, tmp_path / "out", SMALL, num_workers=0, device="cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"f": "l3-norm"}, "unknown f 'l3-norm'; known: loss, mean-squared"),
        ({"K": 0}, "K must be between 1 and"),
        ({"t_strategy": "sobol"}, "known: uniform, cumulative"),
        ({"param_regex": "("}, "is not a regular expression"),
        ({"max_examples": 0}, "max_examples must be at least 1"),
        ({"cfg_dropout_prob": 2}, "between 0 and 1"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(UsageError, match=message):
        FeatureSettings(**changes)


@pytest.mark.parametrize(("device", "knows", "expected"), [
    ("cuda", True, "bfloat16"),
    ("cuda", False, "float32"),
    ("cpu", True, "float32"),
])  # fmt: skip
def test_half_precision_is_the_default_where_a_gpu_has_it(monkeypatch, device, knows, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: knows)
    assert FeatureSettings().on(torch.device(device)).precision == expected
    assert FeatureSettings(precision="float32").on(torch.device(device)).precision == "float32"


def test_an_unreadable_track_is_an_error_or_a_zero_row_as_in_training(
    tiny_files, tiny_audio_folder, tmp_path
):
    audio = tmp_path / "audio"
    shutil.copytree(tiny_audio_folder / "audio", audio)
    (audio / "04" / "1000204.wav").write_bytes(b"RIFF")
    config = write_dataset(tmp_path / "data", audio)
    with pytest.raises(DataError, match=r"1000204\.wav"):
        rows_of(tiny_files, config, tmp_path / "raise")
    value = json.loads(config.read_text())
    config.write_text(json.dumps({**value, "on_error": "skip"}))
    zero = (rows_of(tiny_files, config, tmp_path / "skip") == 0).all(dim=1)
    assert zero.tolist() == [row == 3 for row in range(8)]


def test_sidecars_say_what_clips_were_made_from(tiny_files, train_config, clips, tmp_path):
    """Also where the config has a metadata module of its own, which cannot know generated clips."""
    (clips / "prompts.csv").unlink()
    for name in ("clip_2", "clip_7"):
        sidecar = ClipSidecar(
            file=f"{name}.wav",
            prompt="sad piano",
            seconds_start=3,
            seconds_total=9,
            duration_seconds=1.0,
            sample_rate=16000,
            seed=0,
            steps=1,
            cfg_scale=1,
            sampler="x",
            objective="v",
            created="now",
            render_seconds=0,
        )
        write_sidecar(clips / f"{name}.wav", sidecar)
    for source in (clips, write_dataset(tmp_path / "queries", clips, "queries")):
        out = tmp_path / f"store-{source.stem}"
        store = extract(tiny_files, out, SMALL, queries=source, num_workers=0, device="cpu")
        for record in store.records():
            assert (record["prompt"], record["seconds_start"], record["seconds_total"]) == ("sad piano", 3, 9)


def test_a_finished_store_is_used_again(tiny_files, train_config, clips, tmp_path, monkeypatch):
    first = run_attribution(
        tiny_files, train_config, clips, tmp_path / "out", SMALL, num_workers=0, device="cpu"
    )
    monkeypatch.setattr(FeatureStore, "write", lambda *_: pytest.fail("wrote a row again"))
    again = run_attribution(
        tiny_files, train_config, clips, tmp_path / "out", SMALL, num_workers=0, device="cpu"
    )
    assert torch.equal(first.scores, again.scores)
