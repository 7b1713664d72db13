"""Optimizers and schedules by name."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from stable_audio_tools.errors import ConfigError, UsageError
from stable_audio_tools.schema.training import (
    AutoencoderTrainingConfig,
    DiffusionTrainingConfig,
    LanguageModelTrainingConfig,
    OptimizerConfig,
    OptimizerPair,
    SchedulerConfig,
)
from stable_audio_tools.training.optimizers import InverseLR, build_optimizer, build_scheduler, optimizer_pair


@pytest.fixture
def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(3))]


def test_inverse_lr_is_its_formula(parameters):
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    scheduler = InverseLR(optimizer, inv_gamma=10.0, power=0.5, warmup=0.9, final_lr=0.01)
    for step in range(40):
        expected = max(0.01, 0.5 * (1 - 0.9 ** (step + 1)) * (1 + step / 10.0) ** -0.5)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adam", "FusedAdam"])
def test_an_optimizer_is_found_by_name_and_trains(parameters, name):
    optimizer = build_optimizer(OptimizerConfig(type=name, config={"lr": 0.1}), parameters)
    parameters[0].sum().backward()
    optimizer.step()
    assert float(parameters[0].detach().max()) < 1.0


def test_fused_adam_is_adamw_unless_told(parameters):
    adamw = build_optimizer(OptimizerConfig(type="FusedAdam", config={"lr": 0.1}), parameters)
    adam = build_optimizer(
        OptimizerConfig(type="FusedAdam", config={"lr": 0.1, "adam_w_mode": False}), parameters
    )
    assert type(adamw) is torch.optim.AdamW
    assert type(adam) is torch.optim.Adam
    assert adamw.defaults["fused"]


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_a_missing_package_is_named(parameters):
    with pytest.raises(UsageError, match="pip install bitsandbytes"):
        build_optimizer(OptimizerConfig(type="AdamW8bit", config={"lr": 0.1}), parameters)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("AdamX", {}, "unknown name 'AdamX'; did you mean 'Adam"),
        ("lr_scheduler", {}, "unknown name 'lr_scheduler'"),
        ("Optimizer", {}, "unknown name 'Optimizer'"),
        ("AdamW", {"learning_rate": 1}, r"optimizer\.config: does not fit AdamW: .*learning_rate"),
        ("AdamW", {"lr": -1.0}, r"does not fit AdamW: Invalid learning rate"),
    ],
)
def test_a_wrong_optimizer_names_its_path(parameters, name, config, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build_optimizer(OptimizerConfig(type=name, config=config), parameters)
    assert str(caught.value).startswith("training.optimizer_configs.diffusion.optimizer")


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("InverseLr", {}, "did you mean 'InverseLR'"),
        ("InverseLR", {"warmup": 1.0}, "warmup must be in"),
        ("ReduceLROnPlateau", {}, "waits for a metric"),
        ("StepLR", {}, "does not fit StepLR: .*step_size"),
    ],
)
def test_a_wrong_schedule_names_its_path(parameters, name, config, message):
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    with pytest.raises(ConfigError, match=message):
        build_scheduler(SchedulerConfig(type=name, config=config), optimizer)


def test_the_short_form_is_adamw_without_a_schedule():
    pair = optimizer_pair(DiffusionTrainingConfig(learning_rate=3e-4))
    assert (pair.optimizer.type, pair.optimizer.config, pair.scheduler) == ("AdamW", {"lr": 3e-4}, None)


def test_a_rate_of_ones_own_replaces_that_of_the_config():
    given = OptimizerPair(optimizer=OptimizerConfig(type="SGD", config={"lr": 1.0, "momentum": 0.9}))
    pair = optimizer_pair(DiffusionTrainingConfig(optimizer_configs={"diffusion": given}), learning_rate=0.5)
    assert pair.optimizer.config == {"lr": 0.5, "momentum": 0.9}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DiffusionTrainingConfig(), "no optimizer: give optimizer_configs"),
        (
            DiffusionTrainingConfig(
                optimizer_configs={"autoencoder": OptimizerPair(optimizer=OptimizerConfig(type="SGD"))}
            ),
            "expected an entry 'diffusion', found autoencoder",
        ),
    ],
)
def test_no_optimizer_is_an_error(config, message):
    with pytest.raises(ConfigError, match=message):
        optimizer_pair(config)


@pytest.mark.parametrize(
    ("config", "role", "arguments"),
    [
        (AutoencoderTrainingConfig(learning_rate=1e-4), "discriminator", {"betas": (0.8, 0.99)}),
        (
            LanguageModelTrainingConfig(learning_rate=1e-4),
            "lm",
            {"betas": (0.9, 0.95), "weight_decay": 0.1},
        ),
    ],
)
def test_the_short_form_of_other_models_has_the_public_arguments(config, role, arguments):
    pair = optimizer_pair(config, role=role)
    assert (pair.optimizer.type, pair.optimizer.config) == ("AdamW", {"lr": 1e-4, **arguments})


def test_a_mistake_is_named_with_its_role(parameters):
    with pytest.raises(ConfigError, match=r"^training\.optimizer_configs\.discriminator\.optimizer\.type"):
        build_optimizer(OptimizerConfig(type="AdamX"), parameters, "discriminator")
