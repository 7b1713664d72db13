"""A model that comes in evaluation mode is trained in training mode, but for what is frozen in it."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.training.factory import create_training_wrapper_from_config


@pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning", "ignore::FutureWarning")
def test_a_published_model_trains_in_training_mode(tiny_diffusion_config: dict[str, Any], tmp_path) -> None:
    model = create_model_from_config(tiny_diffusion_config).eval()
    module = create_training_wrapper_from_config(tiny_diffusion_config, model)
    seen: list[tuple[bool, bool]] = []
    model.model.register_forward_hook(
        lambda network, *_: seen.append((network.training, model.pretransform.training))
    )
    size = tiny_diffusion_config["sample_size"]
    info = {"prompt": "jazz", "seconds_start": 0, "seconds_total": 1, "padding_mask": torch.ones(size)}
    batch = (torch.randn(2, tiny_diffusion_config["audio_channels"], size), [info, info])
    loader: Any = DataLoader([0], batch_size=1, collate_fn=lambda _: batch)
    pl.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(tmp_path),
    ).fit(module, loader)
    assert seen == [(True, False)]
