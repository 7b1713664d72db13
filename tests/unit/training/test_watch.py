"""A loss that is no number is found, told with its tracks, and never saved."""

from __future__ import annotations

import pytest
import torch

from stable_audio_tools.errors import TrainingError
from stable_audio_tools.training.watch import LossWatch

INFOS = [{"sample_id": "a", "offset_seconds": 1.5}, {"sample_id": "b"}]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_bad_loss_stops_with_its_tracks(value):
    watch = LossWatch()
    with pytest.raises(TrainingError, match=r"step 7: the loss is .*a, b"):
        watch.look(torch.tensor(value), INFOS, torch.tensor([0.5, value]), step=7)
    assert watch.bad_batch["items"] == [
        {"track": "a", "loss": "0.5", "offset_seconds": 1.5},
        {"track": "b", "loss": str(value), "offset_seconds": None},
    ]


def test_a_good_loss_is_no_news():
    watch = LossWatch()
    for step in range(3):
        watch.look(torch.tensor(1.0), INFOS, step=step)
    watch.settle()
    assert watch.bad_batch is None
