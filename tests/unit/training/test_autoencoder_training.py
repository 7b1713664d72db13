"""Training an autoencoder: whose turn it is, what each side is told, and that it learns."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from stable_audio_tools.errors import ConfigError, TrainingError
from stable_audio_tools.models.bottlenecks.losses import LOSSES as REPORTED
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.schema.losses import BottleneckWeights, default_losses
from stable_audio_tools.schema.reader import parse_model_config
from stable_audio_tools.training.autoencoder import AutoencoderTrainer
from stable_audio_tools.training.draws import Key
from stable_audio_tools.training.factory import create_training_wrapper_from_config, trains_by_turns

OOBLECK = {"channels": 4, "c_mults": [1, 2], "strides": [2, 4]}
SIZES = {"fft_sizes": [64, 32], "hop_sizes": [16, 8], "win_lengths": [64, 32]}
STFT = {"filters": 4, "n_ffts": [64], "hop_lengths": [16], "win_lengths": [64]}
BOTTLENECKS: dict[str, tuple[dict[str, Any] | None, int, set[str]]] = {  # config, encoder width, its losses
    "none": (None, 4, set()),
    "vae": ({"type": "vae"}, 8, {"kl_loss"}),
    "tanh": ({"type": "tanh"}, 4, set()),
    "l2_norm": ({"type": "l2_norm"}, 4, set()),
    "wasserstein": ({"type": "wasserstein"}, 4, {"mmd_loss"}),
    "softnorm": ({"type": "softnorm", "config": {"dim": 4}}, 4, {"softnorm_loss"}),
    "rvq": (
        {"type": "rvq", "config": {"dim": 4, "num_quantizers": 2, "codebook_size": 8, "kmeans_init": False}},
        4,
        {"quantizer_loss"},
    ),
    "dac_rvq": (
        {"type": "dac_rvq", "config": {"input_dim": 4, "n_codebooks": 2, "codebook_size": 8}},
        4,
        {"codebook_loss", "commitment_loss"},
    ),
    "fsq": ({"type": "fsq", "config": {"levels": [4, 4, 4, 4]}}, 4, set()),
    "dithered_fsq": ({"type": "dithered_fsq", "config": {"dim": 4, "levels": 4}}, 4, set()),
}


def whole(bottleneck: str = "vae", channels: int = 2, **training: Any) -> dict[str, Any]:
    between, width, _ = BOTTLENECKS[bottleneck]
    model = {
        "encoder": {"type": "oobleck", "config": {"in_channels": channels, "latent_dim": width, **OOBLECK}},
        "decoder": {"type": "oobleck", "config": {"out_channels": channels, "latent_dim": 4, **OOBLECK}},
        "bottleneck": between,
        "latent_dim": 4,
        "downsampling_ratio": 8,
        "io_channels": channels,
    }
    losses = {
        "spectral": {"config": SIZES},
        "discriminator": {"type": "encodec", "config": STFT},
        "bottleneck": {"weights": {"kl": 1e-3}},
    }
    return {
        "model_type": "autoencoder",
        "sample_size": 512,
        "sample_rate": 16000,
        "audio_channels": channels,
        "model": {key: value for key, value in copy.deepcopy(model).items() if value is not None},
        "training": copy.deepcopy({"learning_rate": 2e-3, "loss_configs": losses, **training}),
    }


def build(config: dict[str, Any], **options: Any) -> AutoencoderTrainer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model_from_config(config)
    module: AutoencoderTrainer = create_training_wrapper_from_config(config, model, **options)
    return module


def batch(channels: int = 2, size: int = 512) -> tuple[Tensor, list[dict[str, Any]]]:
    time = torch.arange(size) / 16000
    tones = [torch.sin(2 * torch.pi * hz * time) for hz in (220, 330, 440, 550)]
    audio = 0.4 * torch.stack(tones)[:, None].repeat(1, channels, 1)
    return audio, [{"sample_id": str(i)} for i in range(len(audio))]


def fit(module: AutoencoderTrainer, steps: int, channels: int = 2, **options: Any) -> AutoencoderTrainer:
    loader: Any = DataLoader([batch(channels)] * 10_000, batch_size=None)
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, loader)
    return module


def own_loss(module: AutoencoderTrainer) -> float:
    with torch.no_grad():
        made = module.autoencoder(batch()[0])
        return float(sum(module.reconstruction(made, batch()[0]).values()))


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_every_bottleneck_trains_with_the_losses_it_reports(bottleneck: str) -> None:
    module = build(whole(bottleneck))
    losses = module._own_losses(batch()[0], module.key())
    spectral = {"mrstft_loss", "stft_loss_left", "stft_loss_right"}
    assert set(losses) == spectral | {"loss_adv", "feature_matching"} | BOTTLENECKS[bottleneck][2]
    module = fit(module, 2)
    assert module.steps_done == 2


def test_the_losses_that_bottlenecks_report_all_have_a_weight() -> None:
    assert set(REPORTED.values()) == set(BottleneckWeights.model_fields)


def test_it_learns_and_the_average_follows() -> None:
    config = whole(use_ema=True)
    del config["training"]["loss_configs"]["discriminator"]
    module = build(config)
    before = own_loss(module)
    fit(module, 40)
    assert own_loss(module) < 0.8 * before
    assert module.autoencoder_ema is not None
    assert int(module.autoencoder_ema.step) == 40


def test_sides_take_turns() -> None:
    module = build(whole())
    before = {key: value.clone() for key, value in module.state_dict().items()}
    fit(module, 1)
    after = module.state_dict()
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"autoencoder"}
    before = {key: value.clone() for key, value in after.items()}
    module.steps_done = 1
    loader: Any = DataLoader([batch()] * 3, batch_size=None)
    trainer = pl.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(module, loader)
    after = module.state_dict()
    assert {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])} == {
        "discriminator"
    }


@pytest.mark.parametrize(
    ("mode", "turns"),
    [("adv", [False, True, False, True, False, True]), ("full", [False, False, False, True, False, True])],
)
def test_the_warm_up_keeps_the_adversary_out(mode: str, turns: list[bool]) -> None:
    module = build(whole(warmup_steps=3, warmup_mode=mode))
    found = []
    for step in range(6):
        module.steps_done = step
        found.append(module.adversary_s_turn)
        meets = "loss_adv" in module._own_losses(batch()[0], module.key())
        assert meets == (step >= 3)
    assert found == turns


def test_the_encoder_stands_still_after_the_warm_up() -> None:
    module = build(whole(warmup_steps=2, encoder_freeze_on_warmup=True))
    for step, trained in ((0, True), (2, False)):
        module.steps_done = step
        module.zero_grad()
        loss = sum(module._own_losses(batch()[0], module.key()).values())
        assert isinstance(loss, Tensor)
        loss.backward()
        encoder = [parameter.grad for parameter in module.autoencoder.encoder.parameters()]
        assert all((grad is not None and bool(grad.any())) == trained for grad in encoder)
        assert any(parameter.grad is not None for parameter in module.autoencoder.decoder.parameters())


def test_the_autoencoder_s_turn_leaves_no_gradient_in_the_adversary() -> None:
    module = build(whole())
    assert module.discriminator is not None
    sum(module._own_losses(batch()[0], module.key()).values()).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is None for parameter in module.discriminator.parameters())
    assert all(parameter.requires_grad for parameter in module.discriminator.parameters())
    module.zero_grad(set_to_none=True)
    module._adversary_losses(batch()[0], module.key())["discriminator_loss"].backward()
    assert all(parameter.grad is None for parameter in module.autoencoder.parameters())


def test_masked_latents_are_zero_in_the_share_that_is_asked_for_and_keyed() -> None:
    module = build(whole(latent_mask_ratio=0.3))
    latents = torch.ones(4, 8, 500)
    masked = module._masked(latents, Key(1, 2))
    assert float((masked == 0).float().mean()) == pytest.approx(0.3, abs=0.02)
    torch.manual_seed(9)
    assert torch.equal(masked, module._masked(latents, Key(1, 2)))
    assert not torch.equal(masked, module._masked(latents, Key(1, 3)))


def test_weights_with_a_decay_fade_by_the_steps_of_the_autoencoder() -> None:
    config = whole()
    config["training"]["loss_configs"]["spectral"]["decay"] = 0.5
    module = build(config)
    values = []
    for step in (0, 2, 4):
        module.steps_done = step
        losses = module._own_losses(batch()[0], Key(1, 1))  # the same draws
        values.append(losses["mrstft_loss"].item())
    assert values[1] == pytest.approx(values[0] / 2, rel=1e-5)
    assert values[2] == pytest.approx(values[0] / 4, rel=1e-5)


def test_a_mono_encoder_hears_the_mean_of_the_channels() -> None:
    config = whole(force_input_mono=True)
    config["model"]["in_channels"] = 1
    config["model"]["encoder"]["config"]["in_channels"] = 1
    module = build(config)
    audio = torch.randn(2, 2, 512)
    assert torch.equal(module.heard(audio), audio.mean(dim=1, keepdim=True))
    assert "mrstft_loss" in module._own_losses(audio, module.key())


def test_mono_audio_has_no_sides() -> None:
    module = build(whole(channels=1))
    losses = module._own_losses(batch(channels=1)[0], module.key())
    assert {"mrstft_loss", "kl_loss", "loss_adv", "feature_matching"} == set(losses)


@pytest.mark.parametrize("limits", [{"clip_grad_norm": 0.01}, {}])
def test_gradients_are_clipped_by_config_or_flag(limits: dict[str, float]) -> None:
    config = whole(**limits)
    for role in ("autoencoder", "discriminator"):
        pair = {"optimizer": {"type": "SGD", "config": {"lr": 1.0}}}
        config["training"].setdefault("optimizer_configs", {})[role] = pair
    module = build(config, gradient_clip_val=0.0 if limits else 0.01)

    def weights() -> Tensor:
        return torch.nn.utils.parameters_to_vector(module.autoencoder.parameters()).detach().clone()

    before = weights()
    fit(module, 1)
    assert float((weights() - before).norm()) == pytest.approx(0.01, rel=1e-2)


def test_half_batches_accumulate_to_the_step_of_a_whole_one() -> None:
    """Without noise and adversary two equal halves have the gradient of one."""
    states = []
    for accum_batches in (1, 2):
        config = whole("tanh")
        del config["training"]["loss_configs"]["discriminator"]
        module = fit(build(config, accum_batches=accum_batches), 2)
        assert (module.steps_done, module.batches_done) == (2, 2 * accum_batches)
        states.append(module.autoencoder.state_dict())
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], atol=1e-5, rtol=1e-4)


def test_a_loss_that_is_not_finite_stops_the_run_before_a_weight_is_touched() -> None:
    module = build(whole())
    audio, infos = batch()
    with pytest.raises(TrainingError, match=r"step 1: the loss is nan, .*tracks of this batch: 0, 1, 2, 3"):
        module.training_step((audio * float("nan"), infos), 0)
    assert module.watch.bad_batch is not None
    assert [item["track"] for item in module.watch.bad_batch["items"]] == ["0", "1", "2", "3"]


def test_without_losses_the_public_ones_are_used() -> None:
    config = whole()
    del config["training"]["loss_configs"]
    losses = parse_model_config(config).training.loss_configs  # type: ignore[union-attr]
    assert losses == default_losses()
    assert losses.discriminator is not None
    assert losses.discriminator.config.n_ffts == [2048, 1024, 512, 256, 128, 64, 32]  # type: ignore[union-attr]
    assert losses.spectral is not None
    assert losses.spectral.config.perceptual_weighting
    weights = losses.discriminator.weights
    assert (weights.adversarial, weights.feature_matching) == (0.1, 5.0)


def test_turns_are_known_from_the_config() -> None:
    config = whole()
    assert trains_by_turns(parse_model_config(config))
    del config["training"]["loss_configs"]["discriminator"]
    assert not trains_by_turns(parse_model_config(config))
    assert build(config).discriminator is None


def refused(change: Any) -> str:
    config = whole()
    change(config["training"])
    with pytest.raises(ConfigError) as caught:
        build(config)
    return str(caught.value)


def test_what_cannot_be_trained_is_refused_by_its_path() -> None:
    losses = "training.loss_configs"
    sizes = {"fft_sizes": [2048, 64], "win_lengths": [64, 32]}
    found = refused(lambda t: t["loss_configs"]["spectral"]["config"].update(sizes))
    assert found.startswith(f"{losses}.spectral.config.fft_sizes: needs 1025 audio samples, but sample_size")
    found = refused(lambda t: t["loss_configs"].update(discriminator={"type": "encodec"}))
    assert f"{losses}.discriminator.config: needs 2048 audio samples" in found
    found = refused(lambda t: t["loss_configs"].update(discriminator={"type": "dac"}))
    assert "loss_configs.discriminator.type: unknown type 'dac'" in found
    assert "known: encodec, oobleck" in found
    found = refused(lambda t: t["loss_configs"].update(spectral=None))
    assert "no reconstruction loss" in found
    found = refused(lambda t: t["loss_configs"]["spectral"]["config"].update(hop_sizes=[16]))
    assert "must be equally long, found [2, 1, 2]" in found
    found = refused(lambda t: t["loss_configs"]["spectral"]["config"].update(win_lengths=[128, 32]))
    assert "win_lengths 128 is longer than its fft_sizes 64" in found
    found = refused(lambda t: t.update(teacher_model={"model_type": "autoencoder"}))
    assert "teacher_model is left out on purpose" in found
    found = refused(lambda t: t.update(eval_loss_configs={"pesq": {}}))
    assert "unknown key 'pesq'" in found


def test_an_adversary_needs_an_optimizer() -> None:
    config = whole(optimizer_configs={"autoencoder": {"optimizer": {"type": "SGD", "config": {"lr": 1.0}}}})
    with pytest.raises(ConfigError, match="expected an entry 'discriminator', found autoencoder"):
        build(config).configure_optimizers()
