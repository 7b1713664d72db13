"""The v loss, its gradients, and the timestep shift."""

from __future__ import annotations

import pytest
from golden_case import METADATA, GoldenCase, assert_agrees

from stable_audio_tools.diffusion.objectives import get_objective
from stable_audio_tools.diffusion.timesteps import DistributionShift
from stable_audio_tools.schema.shifts import DistributionShiftConfig
from stable_audio_tools.training.loss import diffusion_loss

CASE = GoldenCase("training_loss")


def test_loss_output_and_gradients() -> None:
    objective = get_objective("v")
    z, noise, t = CASE["in/z"], CASE["in/noise"], CASE["in/t"]
    inputs = CASE.model.get_conditioning_inputs(CASE.conditioning(metadata=METADATA[:1] * 2))
    output = CASE.model.model(objective.add_noise(z, noise, t), t, **inputs)
    loss = diffusion_loss(CASE.model.model, z, noise, t, inputs, "v").mean
    assert_agrees(output, CASE["out/output"])
    assert_agrees(loss, CASE["out/loss"])
    CASE.model.model.zero_grad()
    loss.backward()
    parameters = dict(CASE.model.model.named_parameters())
    names = CASE.names("out/grad/")
    assert names
    for name in names:
        assert_agrees(parameters[name].grad, CASE[f"out/grad/{name}"])


@pytest.mark.parametrize(
    ("key", "length", "sine"), [("dist_shift_1024", 1024, False), ("dist_shift_sine_300", 300, True)]
)
def test_distribution_shift(key: str, length: int, sine: bool) -> None:
    shift = DistributionShift(DistributionShiftConfig(use_sine=sine))
    assert_agrees(shift.shift(CASE["in/tt"], length), CASE[f"out/{key}"])
