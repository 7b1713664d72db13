"""Stable Audio Open 1.0 has exactly the state-dict keys and shapes of the published checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from stable_audio_tools.models.factory import create_model_from_config

PARITY = Path(__file__).parents[2] / "../shared/parity"
pytestmark = pytest.mark.skipif(not PARITY.is_dir(), reason="the golden cases are not beside this checkout")


def test_stable_audio_open_has_the_published_keys_and_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedModel

    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail("building the model must not read the text encoder")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)
    config = json.loads((PARITY / "stable_audio_open_1_0.model.json").read_text())
    with torch.device("meta"):
        model = create_model_from_config(config)
    expected = json.loads((PARITY / "stable_audio_open_1_0.keys.json").read_text())["keys"]
    found = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert found == expected
    assert len(found) == 745


def test_stable_audio_open_has_the_published_size() -> None:
    config = json.loads((PARITY / "stable_audio_open_1_0.model.json").read_text())
    with torch.device("meta"):
        model = create_model_from_config(config)
    assert round(sum(p.numel() for p in model.model.parameters()) / 1e6, 1) == 1056.8
    assert round(sum(p.numel() for p in model.pretransform.parameters()) / 1e6, 1) == 156.1
