"""Conditioning against numbers of the public package: number conditioners and how ids are joined."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from stable_audio_tools.models.conditioned import ConditionedDiffusionModelWrapper
from stable_audio_tools.models.factory import create_model_from_config

PARITY = Path(__file__).parents[2] / "../shared/parity"
pytestmark = pytest.mark.skipif(not PARITY.is_dir(), reason="the golden cases are not beside this checkout")


class Case(NamedTuple):
    model: ConditionedDiffusionModelWrapper
    tensors: dict[str, Tensor]
    metadata: list[dict[str, Any]]


@pytest.fixture(scope="module", params=["dit_v_prepend", "dit_rf_adaln"])
def case(request: pytest.FixtureRequest) -> Case:
    folder = PARITY / request.param
    content = json.loads((folder / "case.json").read_text())
    tensors = load_file(folder / "tensors.safetensors")
    model = create_model_from_config(content["config"])
    model.load_state_dict(
        {key[2:]: value for key, value in tensors.items() if key.startswith("w/")}, strict=True
    )
    return Case(model.eval().requires_grad_(False), tensors, content["notes"]["metadata"])


def agrees(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_number_embeddings(case: Case) -> None:
    conditions = case.model.conditioner(case.metadata, "cpu")
    for key in ("seconds_start", "seconds_total"):
        agrees(conditions[key][0], case.tensors[f"out/{key}_embed"])


def test_ids_are_joined_along_sequence_and_channels(case: Case) -> None:
    conditions = case.model.conditioner(case.metadata, "cpu")
    conditions["prompt"] = (case.tensors["in/prompt"], case.tensors["in/prompt_mask"])
    inputs = case.model.get_conditioning_inputs(conditions)
    agrees(inputs["cross_attn_cond"], case.tensors["out/cross_attn_cond"])
    agrees(inputs["global_cond"], case.tensors["out/global_cond"])
    assert inputs["cross_attn_mask"].shape == inputs["cross_attn_cond"].shape[:2]


def test_the_network_answers_as_the_public_one_does(case: Case) -> None:
    conditions = case.model.conditioner(case.metadata, "cpu")
    conditions["prompt"] = (case.tensors["in/prompt"], case.tensors["in/prompt_mask"])
    found = case.model(case.tensors["in/x"], case.tensors["in/t"], conditions)
    torch.testing.assert_close(found, case.tensors["out/forward"], atol=1e-4, rtol=0)
