"""Our training loss gives loss and gradients of the public package for a tiny seeded model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.training.loss import diffusion_loss

CASE = Path(__file__).parents[2] / "../shared/parity/training_loss"
pytestmark = pytest.mark.skipif(not CASE.is_dir(), reason="shared/parity is not on this machine")


@pytest.fixture(scope="module")
def case():
    tensors = load_file(CASE / "tensors.safetensors")
    model = create_model_from_config(json.loads((CASE / "case.json").read_text())["config"])
    model.load_state_dict({key[2:]: value for key, value in tensors.items() if key.startswith("w/")})
    return model, tensors


def test_loss_and_gradients_agree(case):
    model, tensors = case
    conditions = model.conditioner([{"seconds_start": 0.0, "seconds_total": 47.0}] * 2, "cpu")
    conditions["prompt"] = (tensors["in/prompt"], tensors.get("in/prompt_mask"))
    model.zero_grad()
    loss = diffusion_loss(
        model.model,
        tensors["in/z"],
        tensors["in/noise"],
        tensors["in/t"],
        model.get_conditioning_inputs(conditions),
        model.diffusion_objective,
    ).mean
    loss.backward()
    torch.testing.assert_close(loss, tensors["out/loss"], rtol=0, atol=1e-4)
    gradients = dict(model.model.named_parameters())
    expected = {
        key.removeprefix("out/grad/"): value for key, value in tensors.items() if key.startswith("out/grad/")
    }
    assert expected
    for name, value in expected.items():
        torch.testing.assert_close(gradients[name].grad, value, rtol=0, atol=1e-4, msg=name)
