"""The pieces that the training script of the tiny models is made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stable_audio_tools.demo.artists import DEMO_ARTISTS
from stable_audio_tools.demo.configs import base_config, vae_config
from stable_audio_tools.demo.pieces import compose
from stable_audio_tools.demo.pretraining import losses, t5
from stable_audio_tools.demo.pretraining.clap import ClapMel, upsample
from stable_audio_tools.demo.pretraining.fitting import FitSettings, fit
from stable_audio_tools.demo.pretraining.world import World
from stable_audio_tools.demo.train_assets import train_assets
from stable_audio_tools.errors import CheckpointError, TrainingError, UsageError
from stable_audio_tools.schema.reader import parse_model_config


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seconds", [4.0, 6.144, 10.0])
def test_mel_is_that_of_the_feature_extractor(seconds: float) -> None:
    from transformers import ClapFeatureExtractor

    extractor = ClapFeatureExtractor(truncation="rand_trunc", padding="repeatpad", frequency_min=50)
    audio = _noise(1, round(16_000 * seconds))
    theirs = extractor(
        upsample(audio, 3)[0].numpy(), sampling_rate=48_000, return_tensors="pt"
    ).input_features
    ours = ClapMel(extractor, torch.device("cpu"))(audio)
    assert ours.shape == theirs.shape == (1, 1, 1001, 64)
    audible = theirs > -40
    assert (ours - theirs)[audible].abs().max() < 0.05


def test_upsampling_keeps_the_samples_it_had() -> None:
    audio = _noise(2, 900)
    assert torch.allclose(upsample(audio, 3)[:, ::3], audio, atol=1e-5)


def test_corruption_moves_every_token_behind_its_sentinel() -> None:
    sequences = [[*range(20, 60), 1], [*range(100, 130), 1]]
    batch = t5.corrupt(sequences, torch.Generator().manual_seed(3), torch.device("cpu"))
    sentinels = range(3, 11)
    for row, sequence in enumerate(sequences):
        kept = [i for i in batch["input_ids"][row].tolist() if i != 0]
        cut = [i for i in batch["labels"][row].tolist() if i != -100]
        spans: dict[int, list[int]] = {}
        for token in cut[:-1]:
            if token in sentinels:
                spans[token] = current = []
            else:
                current.append(token)
        rebuilt = [t for token in kept for t in (spans[token] if token in sentinels else [token])]
        assert spans
        assert rebuilt == sequence


def test_losses_are_zero_only_for_a_perfect_copy() -> None:
    audio = _noise(2, 2, 8192)
    same, _ = losses.reconstruction_loss(audio, audio)
    other, values = losses.reconstruction_loss(_noise(2, 2, 8192, seed=1), audio)
    assert float(same) == 0
    assert float(other) > 0.5
    assert set(values) == {"stft", "l1"}
    assert losses.log_spectral_distance(audio, audio) == 0


def test_the_stereo_image_is_part_of_the_loss() -> None:
    left = _noise(1, 1, 8192)
    wide = torch.cat([left, -left], dim=1)
    narrow = torch.cat([left, left], dim=1)
    assert (
        losses.reconstruction_loss(narrow, wide)[0] > losses.reconstruction_loss(wide * 0.98, wide)[0] + 0.5
    )


def test_si_sdr_ignores_gain_and_counts_noise_in_db() -> None:
    audio, noise = _noise(1, 1, 100_000), _noise(1, 1, 100_000, seed=1)
    assert losses.si_sdr(0.3 * (audio + 0.1 * noise), audio).item() == pytest.approx(20, abs=0.3)


def test_fit_finds_the_minimum_and_keeps_the_average() -> None:
    model, target = nn.Linear(3, 1, bias=False), torch.tensor([[1.0, -2.0, 0.5]])
    draw = torch.Generator().manual_seed(0)

    def step(_: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        x = torch.randn(32, 3, generator=draw)
        return (model(x) - x @ target.T).square().mean(), {}

    history = fit("line", model, step, FitSettings(400, 0.05, 0.0, ema_decay=0.9))
    assert history.steps == 400
    assert len(history.curves["loss"]) == 20
    assert history.curves["loss"][-1] < 1e-3 < history.curves["loss"][0]
    assert torch.allclose(model.weight, target, atol=0.02)


def test_fit_stops_at_its_time_limit_and_at_a_loss_that_is_not_finite() -> None:
    model = nn.Linear(1, 1)
    history = fit("late", model, lambda _: (model.weight.sum(), {}), FitSettings(10**6, limit_seconds=0.2))
    assert 0 < history.steps < 10**6
    with pytest.raises(TrainingError, match="the loss is nan"):
        fit("bad", model, lambda _: (model.weight.sum() * float("nan"), {}), FitSettings(20))


def test_crops_lie_inside_their_piece() -> None:
    pieces = compose(DEMO_ARTISTS[:3], 1, world="a", first_id=1)
    lengths = torch.tensor([100, 70, 130])
    audio = torch.cat(
        [torch.full((2, int(n)), i + 1, dtype=torch.int16) for i, n in enumerate(lengths)], dim=1
    )
    world = World(pieces, audio, lengths.cumsum(0) - lengths, lengths)
    crops, indices = world.crops(200, 60, torch.Generator().manual_seed(0))
    assert crops.shape == (200, 2, 60)
    assert torch.equal(crops * 32768, (indices + 1).float()[:, None, None].expand(200, 2, 60))
    assert set(indices.tolist()) == {0, 1, 2}
    assert np.array_equal(world.whole(1).numpy() * 32768, np.full((2, 70), 2.0))


def test_configs_are_valid() -> None:
    assert parse_model_config(vae_config()).model_type == "autoencoder"
    assert parse_model_config(base_config("t5-base", 1.0)).model_type == "diffusion_cond"


def test_unknown_stage_and_missing_models_are_named(tmp_path: Path) -> None:
    from stable_audio_tools.demo.assets import asset

    with pytest.raises(UsageError, match=r"'vea'.*vae"):
        train_assets(tmp_path, work=tmp_path, only=["vea"])
    with pytest.raises(CheckpointError, match=r"'dac' is missing.*train_assets"):
        asset("dac", tmp_path)
