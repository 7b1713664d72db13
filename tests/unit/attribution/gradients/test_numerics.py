"""What is promised of the bits."""

from __future__ import annotations

import pytest
import torch

from stable_audio_tools.attribution.gradients.numerics import repeatable
from stable_audio_tools.errors import UsageError


def test_an_operation_without_a_fixed_order_is_named():
    with pytest.raises(UsageError, match="--device cpu: cumsum_cuda"), repeatable(torch.device("cuda")):
        raise RuntimeError("cumsum_cuda does not have a deterministic implementation\nmore")
    with pytest.raises(RuntimeError, match="out of memory"), repeatable(torch.device("cuda")):
        raise RuntimeError("out of memory")
    assert not torch.are_deterministic_algorithms_enabled()
