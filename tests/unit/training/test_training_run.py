"""A run from settings to a folder: what it writes, keeps and refuses, and that it can be continued."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from metrics_table import learned_rows, read_table
from pytorch_lightning.strategies import SingleDeviceStrategy
from run_folders import assert_same_weights, load, names

from stable_audio_tools.errors import CheckpointError, ConfigError, DataError, TrainingError, UsageError
from stable_audio_tools.models.checkpoints import load_checkpoint
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.unwrap import unwrap_checkpoint
from stable_audio_tools.schema.reader import parse_model_config
from stable_audio_tools.training import diffusion
from stable_audio_tools.training.diffusion import DiffusionCondTrainer
from stable_audio_tools.training.draws import Key
from stable_audio_tools.training.run import train


def rows(run: Path) -> list[dict[str, str]]:
    return read_table(run / "metrics.csv")


def test_a_run_folder_is_complete_and_says_what_was_run(
    make_settings, tmp_path, tiny_diffusion_config, capsys
):
    run = train(make_settings())
    assert run.parent == tmp_path / "runs" / "tiny"
    assert names(run / "checkpoints") == ["step=00000002.ckpt", "step=00000004.ckpt"]
    expected = {
        "checkpoints",
        "manifest.json",
        "model_config.json",
        "dataset_config.json",
        "tracks.jsonl",
        "jobs.json",
        "metrics.csv",
        "index.html",
    }
    assert set(names(run)) == expected
    written = parse_model_config(json.loads((run / "model_config.json").read_text()))
    assert written == parse_model_config(tiny_diffusion_config)
    assert json.loads((run / "manifest.json").read_text())["settings"]["batch_size"] == 4
    assert len((run / "tracks.jsonl").read_text().splitlines()) == 8
    assert [row["step"] for row in rows(run)] == ["1", "2", "3", "4"]
    assert all(float(row["train/loss"]) > 0 and float(row["train/lr"]) > 0 for row in rows(run))
    errors = capsys.readouterr().err
    assert "the VAE has random weights" in errors
    assert "step 4/4" in errors


def test_a_checkpoint_has_the_public_keys_and_unwraps_to_its_ema(
    make_settings, tmp_path, tiny_diffusion_config
):
    run = train(make_settings())
    checkpoint = load(run, 4)
    model = create_model_from_config(tiny_diffusion_config)
    keys = {f"diffusion.{key}" for key in model.state_dict()}
    keys |= {f"diffusion_ema.ema_model.{key}" for key in model.model.state_dict()}
    assert set(checkpoint["state_dict"]) == keys | {"diffusion_ema.initted", "diffusion_ema.step"}
    assert int(checkpoint["state_dict"]["diffusion_ema.step"]) == 4
    assert parse_model_config(checkpoint["model_config"]) == parse_model_config(tiny_diffusion_config)
    assert (checkpoint["seed"], checkpoint["position"]) == (42, {"steps": 4, "batches": 4})

    unwrapped = unwrap_checkpoint(run / "checkpoints" / "step=00000004.ckpt", None, tmp_path / "model")
    load_checkpoint(model, unwrapped)
    state = checkpoint["state_dict"]
    moved = 0
    for key, value in model.model.state_dict().items():
        assert torch.equal(value, state[f"diffusion_ema.ema_model.{key}"])
        moved += not torch.equal(value, state[f"diffusion.model.{key}"])
    assert moved, "the average differs from the online weights"


@pytest.mark.parametrize("accum_batches", [1, 3])
def test_resuming_with_ckpt_path_equals_one_pass(make_settings, accum_batches):
    whole = train(make_settings(accum_batches=accum_batches))
    half = train(make_settings(accum_batches=accum_batches, max_steps=2))
    again = train(
        make_settings(accum_batches=accum_batches, ckpt_path=str(half / "checkpoints/step=00000002.ckpt"))
    )
    assert again != half
    assert_same_weights(load(whole, 4), load(again, 4))


def test_two_runs_are_equal_and_another_seed_is_not(make_settings):
    first, second, other = (train(make_settings(max_steps=1, seed=seed)) for seed in (1, 1, 2))
    assert_same_weights(load(first, 1), load(second, 1))
    key = "diffusion_ema.ema_model.model.transformer.layers.0.ff.ff.0.proj.weight"
    assert not torch.equal(load(first, 1)["state_dict"][key], load(other, 1)["state_dict"][key])


def test_accumulation_over_two_halves_is_one_step(make_settings):
    run = train(make_settings(batch_size=2, accum_batches=2, max_steps=3, checkpoint_every=1))
    checkpoint = load(run, 3)
    assert checkpoint["position"] == {"steps": 3, "batches": 6}
    assert checkpoint["global_step"] == 3
    assert int(checkpoint["state_dict"]["diffusion_ema.step"]) == 3, "the average moves once a step"


def test_recover_goes_on_in_its_folder_with_the_rows_it_had(make_settings):
    whole = train(make_settings(name="whole"))
    run = train(make_settings(max_steps=3))
    (run / "checkpoints" / "step=00000003.ckpt").unlink()  # as if it was killed in step 3
    assert train(make_settings(recover=True)) == run
    assert learned_rows(run / "metrics.csv") == learned_rows(whole / "metrics.csv")
    assert_same_weights(load(run, 4), load(whole, 4))
    assert "manifest-step=00000002.json" in names(run)


def test_recover_without_a_run_starts_one(make_settings, capsys):
    train(make_settings(recover=True, max_steps=1))
    assert "no checkpoint under" in capsys.readouterr().err


def test_only_the_newest_checkpoints_are_kept(make_settings):
    run = train(make_settings(max_steps=5, checkpoint_every=1, save_top_k=2))
    assert names(run / "checkpoints") == ["step=00000004.ckpt", "step=00000005.ckpt"]


def test_validation_repeats_itself_and_the_best_is_kept(make_settings, tmp_path, tiny_diffusion_config):
    tiny_diffusion_config["training"]["optimizer_configs"]["diffusion"]["optimizer"]["config"] = {"lr": 1e-30}
    run = train(make_settings(val_dataset_config=str(tmp_path / "data.json"), val_every=1, max_steps=3))
    losses = [row["val/loss"] for row in rows(run)]
    assert len(set(losses)) == 1, "the same weights have the same validation loss"
    assert float(rows(run)[0]["val/loss_t0.10"]) > 0
    best = json.loads((run / "checkpoints/best.json").read_text())
    assert best["step"] == 1, "an equal loss is no better one"
    assert float(losses[0]) == pytest.approx(best["val_loss"], rel=1e-4)


def test_the_best_checkpoint_can_be_continued(make_settings, tmp_path):
    validation = {"val_dataset_config": str(tmp_path / "data.json"), "val_every": 2}
    whole = train(make_settings(**validation))
    half = train(make_settings(**validation, max_steps=2))
    again = train(make_settings(**validation, ckpt_path=str(half / "checkpoints" / "best.ckpt")))
    assert_same_weights(load(whole, 4), load(again, 4))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_tracks(make_settings, monkeypatch):
    draw = Key.normal

    def broken(key, *what):
        return draw(key, *what) * (float("nan") if key.step == 3 else 1.0)

    monkeypatch.setattr(Key, "normal", broken)
    settings = make_settings()
    with pytest.raises(TrainingError, match=r"step 4: the loss is nan, .*tiny/0\d/\d+\.wav.*learning rate"):
        train(settings)
    (run,) = Path(settings.save_dir, "tiny").iterdir()
    assert names(run / "checkpoints") == ["step=00000002.ckpt"], (
        "what was good is kept, what was not is not written"
    )
    report = json.loads((run / "nan_batch.json").read_text())
    assert report["step"] == 4
    assert len(report["items"]) == 4
    assert all(bool(torch.isfinite(value).all()) for value in load(run, 2)["state_dict"].values())


def test_weights_that_a_gradient_spoiled_are_not_saved(make_settings, monkeypatch):
    step = DiffusionCondTrainer.optimizer_step

    def spoil(self, *args, **kwargs):
        step(self, *args, **kwargs)
        if self.steps_done == 2:  # counted before the step is taken
            with torch.no_grad():
                next(self.online_network.parameters()).view(-1)[0] = float("inf")

    monkeypatch.setattr(DiffusionCondTrainer, "optimizer_step", spoil)
    settings = make_settings(checkpoint_every=1)
    with pytest.raises(TrainingError, match=r"step 2: not saved, since weights are no finite numbers"):
        train(settings)
    (run,) = Path(settings.save_dir, "tiny").iterdir()
    assert names(run / "checkpoints") == ["step=00000001.ckpt"]


def test_what_another_rank_spoiled_is_not_saved(make_settings, monkeypatch):
    monkeypatch.setattr(DiffusionCondTrainer, "_world_size", 2)
    monkeypatch.setattr(SingleDeviceStrategy, "reduce", lambda self, tensor, **_: torch.ones_like(tensor))
    with pytest.raises(TrainingError, match=r"step 2: not saved, since the loss of another rank"):
        train(make_settings())


def test_mask_padding_and_a_shifted_schedule_train(make_settings, tiny_diffusion_config):
    tiny_diffusion_config["sample_size"] = 32768  # longer than every track
    tiny_diffusion_config["training"] |= {"mask_padding": True, "mask_padding_dropout": 0.5}
    tiny_diffusion_config["training"] |= {"timestep_sampler": "log_snr", "use_ema": False}
    tiny_diffusion_config["model"]["diffusion"] |= {
        "diffusion_objective": "rf_denoiser",
        "distribution_shift_options": {},
    }
    run = train(make_settings(max_steps=2))
    assert not any(key.startswith("diffusion_ema") for key in load(run, 2)["state_dict"])


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
@pytest.mark.parametrize("fused", [False, True])
def test_the_gradient_is_clipped(make_settings, tiny_diffusion_config, precision, fused):
    """Fused, as on a GPU, too: Lightning takes such gradients under autocast for scaled ones."""
    optimizer = {"type": "SGD", "config": {"lr": 1.0, "fused": fused}}
    tiny_diffusion_config["training"]["optimizer_configs"] = {"diffusion": {"optimizer": optimizer}}
    start = create_start(make_settings)
    settings = {"max_steps": 1, "precision": precision}
    free, clipped = (
        load(train(make_settings(**settings, gradient_clip_val=value)), 1)["state_dict"]
        for value in (0.0, 0.01)
    )
    moved = [
        torch.stack([(state[key] - start[key]).norm() for key in start if key in state]).norm()
        for state in (free, clipped)
    ]
    assert moved[0] > 0.02
    assert float(moved[1]) == pytest.approx(0.01, rel=1e-2)


def create_start(make_settings) -> dict[str, torch.Tensor]:
    """The weights that a run with these settings starts from."""
    from stable_audio_tools.schema.reader import read_model_config
    from stable_audio_tools.training.start import prepare_model

    settings = make_settings()
    model = prepare_model(read_model_config(settings.model_config), settings, lora=False)
    return {f"diffusion.{key}": value for key, value in model.state_dict().items()}


def test_precision_is_what_was_asked_for(make_settings, monkeypatch):
    seen = []
    plain = diffusion.diffusion_loss

    def watch(*args, **kwargs):
        seen.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return plain(*args, **kwargs)

    monkeypatch.setattr(diffusion, "diffusion_loss", watch)
    train(make_settings(max_steps=1, precision="bf16-mixed"))
    train(make_settings(max_steps=1, precision="32"))
    assert seen[0] == (True, torch.bfloat16)
    assert seen[1][0] is False


def test_weights_in_bfloat16_leave_draws_and_average_in_float32(make_settings, tmp_path):
    whole, half = (
        train(make_settings(precision="bf16-true")),
        train(make_settings(precision="bf16-true", max_steps=2)),
    )
    state = load(whole, 4)["state_dict"]
    moved = 0
    for key, value in state.items():
        if key.startswith("diffusion.model.") and value.is_floating_point():
            mean = state[key.replace("diffusion.model", "diffusion_ema.ema_model")]
            assert (value.dtype, mean.dtype) == (torch.bfloat16, torch.float32)
            moved += not torch.equal(mean, mean.bfloat16().float())
    assert moved > 10, "the average is finer than bfloat16"
    assert state["diffusion.pretransform.model.encoder.layers.0.weight_v"].dtype == torch.float32
    assert float(rows(whole)[0]["train/loss"]) == pytest.approx(
        float(rows(train(make_settings(precision="bf16-mixed")))[0]["train/loss"]), rel=0.02
    )
    again = train(
        make_settings(precision="bf16-true", ckpt_path=str(half / "checkpoints/step=00000002.ckpt"))
    )
    assert_same_weights(load(whole, 4), load(again, 4))
    unwrap_checkpoint(whole / "checkpoints" / "step=00000004.ckpt", None, tmp_path / "model")


def test_half_precision_on_a_cpu_falls_back_and_says_so(make_settings, capsys):
    train(make_settings(max_steps=1, precision="16-mixed"))
    assert "precision 16-mixed needs a GPU; computing in float32" in capsys.readouterr().err


def test_no_logger_leaves_no_metrics(make_settings):
    assert "metrics.csv" not in names(train(make_settings(max_steps=1, logger="none")))


def test_tensorboard_is_written_beside_the_table(make_settings):
    pytest.importorskip("tensorboard")
    run = train(make_settings(max_steps=1, logger="tensorboard"))
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    assert len(rows(run)) == 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"batch_size": 9}, DataError, "8 tracks, too few for one batch of 9"),
        ({"model_config": "absent.json"}, ConfigError, r"absent\.json: no such file"),
        ({"pretrained_ckpt_path": "absent.ckpt"}, CheckpointError, r"absent\.ckpt: no such"),
        ({"ckpt_path": "absent.ckpt"}, CheckpointError, r"--ckpt-path: absent\.ckpt: no such file"),
        ({"num_gpus": 64, "device": "auto"}, UsageError, "--num-gpus: 64"),
        ({"lora_ckpt_path": "adapter"}, UsageError, "only train_lora"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(make_settings, changes, error, message):
    settings = make_settings(**changes)
    with pytest.raises(error, match=message):
        train(settings)
    assert not Path(settings.save_dir).exists()


def test_plain_weights_are_not_a_run_to_continue(make_settings, tmp_path):
    run = train(make_settings(max_steps=1))
    plain = unwrap_checkpoint(run / "checkpoints" / "step=00000001.ckpt", None, tmp_path / "model")
    with pytest.raises(CheckpointError, match="use --pretrained-ckpt-path"):
        train(make_settings(ckpt_path=str(plain)))


def test_a_run_shorter_than_its_log_interval_has_its_numbers(make_settings, capsys):
    run = train(make_settings(max_steps=3, log_every=50))
    assert [row["step"] for row in rows(run)] == ["3"]
    assert float(rows(run)[0]["train/loss"]) > 0
    assert "loss -" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("strategy", "words"),
    [("dpp", "did you mean 'ddp'"), ("luck", "known: auto, ddp"), ("fsdp", "over GPUs")],
)
def test_a_strategy_that_cannot_be_had_is_refused_before_the_folder_is_made(
    make_settings, tmp_path, strategy, words
):
    with pytest.raises(UsageError, match=words):
        train(make_settings(strategy=strategy))
    assert not (tmp_path / "runs").exists()


def test_a_checkpoint_of_another_model_is_refused_before_the_folder_is_made(
    make_settings, tiny_diffusion_config
):
    run = train(make_settings(max_steps=1))
    tiny_diffusion_config["model"]["diffusion"]["config"]["depth"] = 3
    settings = make_settings(
        model=tiny_diffusion_config, ckpt_path=str(run / "checkpoints/step=00000001.ckpt")
    )
    with pytest.raises(
        CheckpointError, match=r"step=00000001.ckpt: is not a checkpoint of this model: 30 missing"
    ):
        train(settings)
    assert names(run.parent) == [run.name]


def test_an_optimizer_that_cannot_be_built_is_refused_before_the_folder_is_made(
    make_settings, tmp_path, tiny_diffusion_config
):
    tiny_diffusion_config["training"]["optimizer_configs"]["diffusion"]["optimizer"]["type"] = "AdamX"
    with pytest.raises(ConfigError, match="did you mean 'Adam'"):
        train(make_settings(model=tiny_diffusion_config))
    assert not (tmp_path / "runs").exists()
