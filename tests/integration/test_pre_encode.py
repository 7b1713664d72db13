"""From recordings to stored latents, and from those to training, validation and attribution as from audio."""

from __future__ import annotations

import copy
import csv
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from workshop import Workshop, flags, run_sat

from stable_audio_tools.attribution.features.store import FeatureStore
from stable_audio_tools.audio.files import read_audio, save_audio
from stable_audio_tools.data.dataset import create_dataloader_from_config
from stable_audio_tools.models.checkpoints import load_checkpoint, save_checkpoint
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.schema.reader import read_dataset_config
from stable_audio_tools.training.draws import Key
from stable_audio_tools.training.factory import create_training_wrapper_from_config

RATE, RATIO = 16000, 128
SIZE = 8192
TRACKS = 8


def command(shop: Workshop, output: Path | str, *more: str, **changes: str) -> list[str]:
    """Store the latents of the workshop's music, fixed crops of half a second."""
    named = {
        "model-config": shop / "model.json",
        "ckpt-path": shop / "base.ckpt",
        "dataset-config": shop.dataset("fixed.json", shop.music, random_crop=False),
        "output-path": str(output),
        "num-workers": "0",
        "batch-size": "3",
        "device": "cpu",
    }
    return ["pre-encode", *flags(named, changes), *more]


def contents(folder: Path) -> dict[str, bytes]:
    """Every latent and its JSON, by name without the rank."""
    return {path.name[3:]: path.read_bytes() for path in folder.rglob("*") if path.parent.name.isdigit()}


def arrays(folder: Path) -> list[np.ndarray]:
    """The latents in the order of their rows and crops."""
    return [np.load(path) for path in sorted(folder.glob("*/*.npy"), key=lambda path: path.name[3:])]


def latents_config(shop: Workshop, name: str, folder: Path, **keys: Any) -> str:
    """A dataset config of stored latents, as a file."""
    entry = {"id": "stored", "path": str(folder)}
    return shop.write(name, json.dumps({"dataset_type": "pre_encoded", "datasets": [entry], **keys}))


def test_nothing_is_lost_and_everything_is_known(shop: Workshop, tmp_path: Path) -> None:
    assert run_sat(command(shop, tmp_path / "lat")) == 0
    names = {path.relative_to(tmp_path / "lat").as_posix() for path in (tmp_path / "lat").rglob("*.*")}
    expected = {f"0/000{row:06d}0000.{kind}" for row in range(TRACKS) for kind in ("npy", "json")}
    assert names == expected | {"details.json", "tracks.jsonl"}, "8 tracks, batches of 3: the last one too"
    assert all(latents.shape == (4, SIZE // RATIO) for latents in arrays(tmp_path / "lat"))
    loader = create_dataloader_from_config(
        read_dataset_config(shop / "fixed.json"), TRACKS, SIZE, RATE, num_workers=0, shuffle=False
    )
    for row, info in enumerate(next(iter(loader))[1]):
        record = json.loads((tmp_path / "lat" / "0" / f"000{row:06d}0000.json").read_text())
        mask = info.pop("padding_mask")
        assert record["padding_mask"] == mask[::RATIO].int().tolist()
        assert {key: record[key] for key in info} == {**info, "timestamps": list(info["timestamps"])}
        assert len(record["source_sha256"]) == len(record["latents_sha256"]) == 64
    details = json.loads((tmp_path / "lat" / "details.json").read_text())
    assert {"model_config", "dataset_config", "sample_size", "args"} <= details.keys(), "as publicly"
    assert details["sample_size"] == SIZE
    assert details["latents"]["downsampling_ratio"] == RATIO
    lines = (tmp_path / "lat" / "tracks.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == list(range(TRACKS))


def test_shards_give_the_latents_of_the_folder_that_they_were_packed_from(
    shop: Workshop, tmp_path: Path
) -> None:
    files = sorted(path for path in Path(shop.music).rglob("*.wav"))
    assert len(files) == TRACKS
    (tmp_path / "shards").mkdir()
    for number in range(2):
        with tarfile.open(tmp_path / f"shards/{number}.tar", "w") as tar:
            for path in files[number * TRACKS // 2 : (number + 1) * TRACKS // 2]:
                tar.add(path, path.relative_to(shop.music))
    config = {
        "dataset_type": "wds",
        "datasets": [{"id": "packed", "path": str(tmp_path / "shards")}],
        "index_dir": str(tmp_path / "tables"),
        "random_crop": False,
    }
    named = {"dataset_config": shop.write("packed.json", json.dumps(config))}
    assert run_sat(command(shop, tmp_path / "files", "--posterior")) == 0
    assert run_sat(command(shop, tmp_path / "packed", "--posterior", **named)) == 0
    for file, member in zip(arrays(tmp_path / "files"), arrays(tmp_path / "packed"), strict=True):
        np.testing.assert_array_equal(file, member)
    records = [
        json.loads((tmp_path / name / "0/0000000000000.json").read_text()) for name in ("files", "packed")
    ]
    assert records[0]["source_sha256"] == records[1]["source_sha256"]
    assert records[1]["sample_id"].startswith("packed/0.tar/")
    assert run_sat(command(shop, tmp_path / "whole", "--posterior", sample_size="0", **named)) == 0
    assert len(arrays(tmp_path / "whole")) == TRACKS


def test_batches_workers_order_and_devices_change_nothing(shop: Workshop, tmp_path: Path) -> None:
    assert run_sat(command(shop, tmp_path / "plain")) == 0
    assert run_sat(command(shop, tmp_path / "one", "--shuffle", batch_size="1", num_workers="2")) == 0
    assert run_sat(command(shop, tmp_path / "two", num_gpus="2", batch_size="8")) == 0
    ranks = [sorted(path.name for path in (tmp_path / "two" / r).glob("*.npy")) for r in "01"]
    assert [name[3:9] for name in ranks[0]] == ["000000", "000002", "000004", "000006"]
    assert [name[3:9] for name in ranks[1]] == ["000001", "000003", "000005", "000007"]
    assert all(name.startswith("001") for name in ranks[1])
    for other in ("one", "two"):
        for plain, again in zip(arrays(tmp_path / "plain"), arrays(tmp_path / other), strict=True):
            np.testing.assert_allclose(plain, again, atol=1e-5)
    assert arrays(tmp_path / "plain")[0].std() > 0.1


def test_limit_batches_is_kept_and_the_next_run_does_the_rest(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_sat(command(shop, tmp_path / "part", limit_batches="2")) == 0
    assert len(arrays(tmp_path / "part")) == 6
    assert "6 of 8 crops of 8 tracks are stored; the same command goes on" in capsys.readouterr().err
    before = contents(tmp_path / "part")
    assert run_sat(command(shop, tmp_path / "part")) == 0
    after = contents(tmp_path / "part")
    assert len(after) == 2 * TRACKS
    assert {name: after[name] for name in before} == before
    assert "8 of 8 crops" in capsys.readouterr().err


def test_killed_and_continued_equals_one_pass(shop: Workshop, tmp_path: Path) -> None:
    for number in range(40):
        noise = torch.rand(2, 3 * RATE, generator=torch.Generator().manual_seed(number)) - 0.5
        save_audio(tmp_path / "music" / f"{number}.wav", noise, RATE)
    dataset = shop.dataset("many.json", tmp_path / "music", random_crop=True)
    changes = {"dataset_config": dataset, "crops": "3", "batch_size": "4"}
    arguments = command(shop, tmp_path / "killed", "--posterior", **changes)
    code = f"from stable_audio_tools.cli.main import main; main({arguments!r})"
    for least in (5, 40):
        process = subprocess.Popen(
            [sys.executable, "-c", code], stderr=subprocess.PIPE, start_new_session=True
        )
        deadline = time.monotonic() + 120
        while len(list((tmp_path / "killed").glob("0/*.json"))) < least:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert len(list((tmp_path / "killed").glob("0/*.json"))) < 120, "it ended before it could be killed"
    assert run_sat(arguments) == 0
    assert run_sat(command(shop, tmp_path / "unbroken", "--posterior", **changes)) == 0
    killed, unbroken = contents(tmp_path / "killed"), contents(tmp_path / "unbroken")
    assert {name: killed[name] for name in unbroken} == unbroken
    assert len(unbroken) == 2 * 40 * 3


def test_damaged_latents_are_found_and_encoded_again(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_sat(command(shop, tmp_path / "lat")) == 0
    before = contents(tmp_path / "lat")
    damaged = tmp_path / "lat" / "0" / "0000000040000.npy"
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"abcd")
    capsys.readouterr()
    assert run_sat(command(shop, tmp_path / "lat")) == 0
    assert "encoding" not in capsys.readouterr().err, "there is nothing to do"
    assert run_sat(command(shop, tmp_path / "lat", "--verify")) == 0
    assert contents(tmp_path / "lat") == before


def test_what_a_kill_left_of_another_rank_is_cleared_away(shop: Workshop, tmp_path: Path) -> None:
    assert run_sat(command(shop, tmp_path / "lat")) == 0
    before = contents(tmp_path / "lat")
    (tmp_path / "lat" / "3").mkdir()
    for number in (2, 5):  # rank 3 of another run wrote these, and was killed before the JSON of one
        for kind in ("npy", "json"):
            old = tmp_path / "lat" / "0" / f"000{number:06d}0000.{kind}"
            old.rename(tmp_path / "lat" / "3" / f"003{number:06d}0000.{kind}")
    (tmp_path / "lat" / "3" / "0030000020000.json").unlink()
    assert run_sat(command(shop, tmp_path / "lat")) == 0
    assert contents(tmp_path / "lat") == before
    assert sorted(path.name for path in (tmp_path / "lat" / "3").iterdir()) == [
        "0030000050000.json",
        "0030000050000.npy",
    ]


def test_a_folder_of_another_run_is_refused(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_sat(command(shop, tmp_path / "lat", limit_batches="1")) == 0
    for change, named in (
        ({"sample_size": "4096"}, "sample_size"),
        ({"seed": "1"}, "seed"),
        ({"ckpt_path": shop / "vae.ckpt"}, "checkpoint"),
        ({"dataset_config": shop.dataset("loud.json", shop.music, volume_norm=True)}, "dataset_config"),
    ):
        assert run_sat(command(shop, tmp_path / "lat", **change)) == 2
        assert f"holds latents of another run, {named} differ" in capsys.readouterr().err
    assert run_sat(command(shop, tmp_path / "lat", batch_size="1", num_gpus="0")) == 0, "these do not matter"
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "details.json").write_text("{}")
    assert run_sat(command(shop, tmp_path / "theirs")) == 2
    assert "is that of another program" in capsys.readouterr().err


def test_flags_that_do_not_fit_are_said(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "lat"
    named = ["--dataset-config", shop / "fixed.json", "--output-path", str(folder)]
    for arguments, message in (
        (command(shop, folder, crops="2"), "random_crop is false, so --crops 2 would store one crop"),
        (command(shop, folder, crops="2", sample_size="0"), "a whole track is one crop"),
        (command(shop, folder, "--is-discrete"), "codes need a bottleneck that quantises"),
        (command(shop, folder, "--is-discrete", "--posterior"), "--is-discrete stores codes"),
        (command(shop, folder, batch_size="0"), "--batch-size: expected 1 or more, found 0"),
        (command(shop, folder, num_nodes="2"), "NODE_RANK is not set, expected 0 to 1"),
        (command(shop, folder, pretrained_name="x"), "give either --model-config"),
        (command(shop, folder, dataset_config=latents_config(shop, "l.json", folder)), "pre_encoded"),
        (command(shop, shop / "a-file"), "a-file is a file, expected a folder"),
        (["pre-encode", *named, "--model-config", shop / "model.json"], "--ckpt-path: not given"),
        (["pre-encode", *named], "give either --model-config with --ckpt-path"),
    ):
        assert run_sat(arguments) == 2, arguments
        assert message in capsys.readouterr().err
        assert not folder.exists()


def test_a_launcher_gives_each_process_its_rank(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run_sat(command(shop, tmp_path / "lat", num_gpus="2")) == 0
    assert [path.name[:9] for path in sorted((tmp_path / "lat").glob("*/*.npy"))] == [
        f"001{row:06d}" for row in (1, 3, 5, 7)
    ]
    assert run_sat(command(shop, tmp_path / "lat")) == 2
    assert "2 processes were started (WORLD_SIZE), expected 1" in capsys.readouterr().err


def test_an_error_in_another_process_arrives_as_one_line(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "c"):
        save_audio(tmp_path / "music" / f"{name}.wav", torch.zeros(1, RATE), RATE)
    broken = tmp_path / "music" / "b.wav"
    broken.write_bytes(broken.read_bytes()[:5000])
    dataset = shop.dataset("broken.json", tmp_path / "music")
    assert run_sat(command(shop, tmp_path / "lat", dataset_config=dataset, num_gpus="2")) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "b.wav: truncated" in last
    assert len(arrays(tmp_path / "lat")) == 2, "what the first process did is kept"


def test_what_cannot_be_read_is_listed_and_leaves_no_hole_in_the_rows(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "c"):
        save_audio(tmp_path / "music" / f"{name}.wav", torch.zeros(1, RATE), RATE)
    broken = tmp_path / "music" / "b.wav"
    whole = broken.read_bytes()
    broken.write_bytes(b"")
    dataset = shop.dataset("broken.json", tmp_path / "music", on_error="skip")
    assert run_sat(command(shop, tmp_path / "lat", dataset_config=dataset)) == 0
    said = capsys.readouterr().err
    assert "left out: " in said
    assert "failed_files-0.json" in said
    [failure] = json.loads((tmp_path / "lat" / "failed_files-0.json").read_text())
    assert failure == {"path": str(broken), "error": f"{broken}: the file is empty"}
    assert [path.name[3:9] for path in sorted((tmp_path / "lat").glob("0/*.npy"))] == ["000000", "000002"]
    broken.write_bytes(whole)
    assert run_sat(command(shop, tmp_path / "lat", dataset_config=dataset)) == 2, "the tracks are others now"
    assert "tracks differ" in capsys.readouterr().err


def test_crops_are_those_of_training_on_the_recordings(shop: Workshop, tmp_path: Path) -> None:
    dataset = shop.dataset("random.json", shop.music, random_crop=True)
    assert run_sat(command(shop, tmp_path / "lat", dataset_config=dataset, crops="3", seed="7")) == 0
    stored = latents_config(shop, "random-latents.json", tmp_path / "lat")

    def places(path: str, epochs: int) -> list[Any]:
        value = read_dataset_config(path)
        loader = create_dataloader_from_config(value, 4, SIZE, RATE, num_workers=0, seed=7)
        keys = ("index", "sample_id", "seconds_start", "seconds_total", "offset_seconds", "prompt")
        batches = [batch for _ in range(epochs) for batch in loader]
        return [[{key: info[key] for key in keys} for info in infos] for _, infos in batches]

    assert places(stored, 3) == places(dataset, 3)
    assert places(stored, 6)[6:] != places(stored, 6)[:6], "the order goes on; the crops come again"


def test_whole_tracks_and_their_random_crops(shop: Workshop, tmp_path: Path) -> None:
    assert run_sat(command(shop, tmp_path / "lat", "--float16", "--posterior", sample_size="0")) == 0
    seconds = [1.0 + 0.1 * row for row in range(TRACKS)]
    frames = [-(-round(s * RATE) // RATIO) for s in seconds]
    assert sorted(latents.shape[1] for latents in arrays(tmp_path / "lat")) == sorted(frames)
    assert {latents.dtype.name for latents in arrays(tmp_path / "lat")} == {"float16"}
    path = latents_config(shop, "whole.json", tmp_path / "lat", random_crop=True)
    loader = create_dataloader_from_config(read_dataset_config(path), 8, SIZE, RATE, num_workers=0)
    model = create_model_from_config(shop.model_config)
    load_checkpoint(model, shop / "base.ckpt")
    for latents, infos in loader:
        assert latents.shape == (8, 8, SIZE // RATIO)
        assert sum(info["latent_crop_start"] > 0 for info in infos) > 4
        for stored, info in zip(latents, infos, strict=True):
            audio, _ = read_audio(
                info["path"], offset_seconds=info["offset_seconds"], duration_seconds=SIZE / RATE
            )
            alone = model.pretransform.store(audio[None], posterior=True)[0]
            inner = slice(
                16, -16
            )  # at its edges a crop of audio hears silence, that of a track what is there
            torch.testing.assert_close(stored[:, inner], alone[:, inner], rtol=2e-3, atol=2e-3)


@pytest.fixture(scope="module")
def both(shop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same fixed crops, padded some of them, as recordings and as posteriors; configs of both."""
    folder = tmp_path_factory.mktemp("both")
    audio = shop.dataset("as-audio.json", shop.music, random_crop=False)
    size = "20480"

    def long_window(config: dict[str, Any]) -> None:
        config["sample_size"] = int(size)
        config["model"]["pretransform"]["scale"] = 0.7
        config["training"].update(mask_padding=True, cfg_dropout_prob=0.2)

    model = shop.config("long.json", long_window)
    stored = shop.config(
        "long-stored.json", lambda c: [long_window(c), c["training"].update(pre_encoded=True)]
    )
    arguments = {"model_config": model, "dataset_config": audio, "sample_size": size, "batch_size": "8"}
    assert run_sat(command(shop, folder / "lat", "--posterior", **arguments)) == 0
    latents = latents_config(shop, "as-latents.json", folder / "lat")
    return {"audio": audio, "latents": latents, "model": model, "stored model": stored}


def trainer(config: dict[str, Any], checkpoint: str) -> Any:
    model = create_model_from_config(config)
    load_checkpoint(model, checkpoint)
    return create_training_wrapper_from_config(config, model)


def test_the_loss_from_latents_is_the_loss_from_audio(shop: Workshop, both: dict[str, str]) -> None:
    modules, loaders = [], []
    for model, data in (("model", "audio"), ("stored model", "latents")):
        config = json.loads(Path(both[model]).read_text())
        modules.append(trainer(config, shop / "base.ckpt"))
        value = read_dataset_config(both[data])
        loaders.append(create_dataloader_from_config(value, 4, 20480, RATE, num_workers=0))
    padded = 0
    for number, (heard, stored) in enumerate(zip(*loaders, strict=True)):
        losses = [
            module.training_step(batch, number)
            for module, batch in zip(modules, (heard, stored), strict=True)
        ]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
        latents = [
            module.encode(batch[0], Key(1, 0)) for module, batch in zip(modules, (heard, stored), strict=True)
        ]
        torch.testing.assert_close(latents[0], latents[1], rtol=1e-4, atol=1e-5)
        gradients = [torch.autograd.grad(loss, module.diffusion.model.parameters(), allow_unused=True)
                     for loss, module in zip(losses, modules, strict=True)]  # fmt: skip
        for one, other in zip(*gradients, strict=True):
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
        padded += sum(info["padding_mask"].min() == 0 for info in stored[1])
        for module, batch in zip(modules, (heard, stored), strict=True):
            module.validation_step(batch, number)
    assert padded > 2
    first, second = (list(module._validation) for module in modules)
    for (one, _), (other, _) in zip(first, second, strict=True):
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-6)


def logged(run: Path) -> list[dict[str, float]]:
    [table] = run.glob("*/metrics.csv")
    rows = list(csv.DictReader(table.open()))
    return [{key: float(value) for key, value in row.items() if value and "loss" in key} for row in rows]


def test_a_run_on_latents_is_a_run_on_audio(shop: Workshop, both: dict[str, str], tmp_path: Path) -> None:
    for name, model, data in (("a", "model", "audio"), ("b", "stored model", "latents")):
        arguments = shop.train(
            name=name, model_config=both[model], dataset_config=both[data], save_dir=str(tmp_path),
            max_steps="6", log_every="1", val_dataset_config=both[data], val_every="3",
        )  # fmt: skip
        assert run_sat(arguments) == 0
    first, second = logged(tmp_path / "a"), logged(tmp_path / "b")
    assert any("val/loss" in row for row in first)
    for one, other in zip(first, second, strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    weights = [
        torch.load(next((tmp_path / name).rglob("*.ckpt")), weights_only=True)["state_dict"] for name in "ab"
    ]
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=1e-2, atol=2e-3)


def test_recordings_and_latents_are_not_taken_for_each_other(
    shop: Workshop, both: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for model, data, message in (
        ("model", "latents", "holds stored latents, but training.pre_encoded of the model is false"),
        ("stored model", "audio", "holds recordings, but training.pre_encoded of the model is true"),
    ):
        arguments = shop.train(name="wrong", model_config=both[model], dataset_config=both[data])
        assert run_sat(arguments) == 2
        assert message in capsys.readouterr().err
    assert not Path(shop / "runs/wrong").exists()


def test_attribution_from_latents_is_attribution_from_audio(
    shop: Workshop, both: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {
        "K": "2",
        "batch_size": "4",
        "output_dir": str(tmp_path / "audio"),
        "model_config": both["model"],
    }
    assert run_sat(shop.attribute(train_dataset_config=both["audio"], **named)) == 0
    named["output_dir"] = str(tmp_path / "latents")
    arguments = shop.attribute(train_dataset_config=both["latents"], **named)
    assert run_sat([*arguments, "--pre-encoded"]) == 0
    stores = [FeatureStore.open(tmp_path / name / "train_features") for name in ("audio", "latents")]
    assert stores[0].sample_ids == stores[1].sample_ids
    rows = [store.features() for store in stores]
    scale = rows[0].abs().amax(dim=1, keepdim=True)
    assert (scale > 0).all()
    torch.testing.assert_close(rows[0] / scale, rows[1] / scale, rtol=0, atol=1e-4)
    scores = [np.load(tmp_path / name / "scores.npy") for name in ("audio", "latents")]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-2, atol=1e-3 * np.abs(scores[0]).max())
    wrong = shop.attribute(train_dataset_config=both["audio"], **named)
    assert run_sat([*wrong, "--pre-encoded"]) == 2
    assert "is of type 'audio_dir', expected 'pre_encoded'" in capsys.readouterr().err


def test_latents_without_a_draw_give_the_loss_of_audio_too(shop: Workshop, tmp_path: Path) -> None:
    """An autoencoder that draws nothing: plain latents, in the public layout, are all there is to know."""
    config = copy.deepcopy(shop.model_config)
    autoencoder = config["model"]["pretransform"]["config"]
    autoencoder["bottleneck"] = {"type": "tanh"}
    autoencoder["encoder"]["config"]["latent_dim"] = 4
    config["model"]["pretransform"]["scale"] = 0.5
    path = shop.write("tanh.json", json.dumps(config))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        save_checkpoint(tmp_path / "tanh.ckpt", create_model_from_config(config).state_dict(), config)
    weights = str(tmp_path / "tanh.ckpt")
    assert run_sat(command(shop, tmp_path / "lat", model_config=path, ckpt_path=weights)) == 0
    stored_config = {**config, "training": {**config["training"], "pre_encoded": True}}
    losses = []
    for value, data in (
        (config, shop / "fixed.json"),
        (stored_config, latents_config(shop, "tanh-latents.json", tmp_path / "lat")),
    ):
        module = trainer(value, weights)
        loader = create_dataloader_from_config(read_dataset_config(data), 8, SIZE, RATE, num_workers=0)
        losses.append(module.training_step(next(iter(loader)), 0))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)


def test_an_autoencoder_alone_encodes_as_it_does_in_front_of_a_model(shop: Workshop, tmp_path: Path) -> None:
    def alone(config: dict[str, Any]) -> None:
        inner = config["model"]["pretransform"]["config"]
        config.update(model_type="autoencoder", model=inner)
        del config["training"]

    path = shop.config("vae.json", alone)
    inside = {"sample_size": str(SIZE)}
    assert run_sat(command(shop, tmp_path / "inside", **inside)) == 0
    assert (
        run_sat(command(shop, tmp_path / "alone", model_config=path, ckpt_path=shop / "vae.ckpt", **inside))
        == 0
    )
    for one, other in zip(arrays(tmp_path / "inside"), arrays(tmp_path / "alone"), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_codes_are_stored_for_language_models(shop: Workshop, tmp_path: Path) -> None:
    config = copy.deepcopy(shop.model_config)
    inner = config["model"]["pretransform"]["config"]
    inner["bottleneck"] = {"type": "rvq", "config": {"dim": 4, "codebook_size": 16, "num_quantizers": 3}}
    inner["encoder"]["config"]["latent_dim"] = 4
    value = {key: config[key] for key in ("sample_size", "sample_rate", "audio_channels")}
    value |= {"model_type": "autoencoder", "model": inner}
    path = shop.write("codec.json", json.dumps(value))
    model = create_model_from_config(value).eval()
    model.tokenize(torch.randn(1, 2, SIZE))  # codebooks are made of what they first hear
    save_checkpoint(tmp_path / "codec.ckpt", model.state_dict(), value)
    arguments = {"model_config": path, "ckpt_path": str(tmp_path / "codec.ckpt"), "sample_size": str(SIZE)}
    assert run_sat(command(shop, tmp_path / "codes", "--is-discrete", **arguments)) == 0
    assert {codes.dtype.name for codes in arrays(tmp_path / "codes")} == {"int16"}
    value = read_dataset_config(latents_config(shop, "codes.json", tmp_path / "codes", latent_crop_length=80))
    codes, infos = next(
        iter(create_dataloader_from_config(value, 4, SIZE, RATE, num_workers=0, shuffle=False))
    )
    audio, _ = next(
        iter(create_dataloader_from_config(
            read_dataset_config(shop / "fixed.json"), 4, SIZE, RATE, num_workers=0, shuffle=False
        ))
    )  # fmt: skip
    assert codes.dtype == torch.int64
    assert codes[..., :64].equal(model.tokenize(audio))
    assert codes[..., 64:].eq(codes[:, :, 64:65]).all(), "padded with the codes of silence"
    assert infos[0]["padding_mask"].tolist() == [1] * 64 + [0] * 16
