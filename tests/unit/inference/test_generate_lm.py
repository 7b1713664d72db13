"""Audio from a language model, by length in samples and from recordings."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stable_audio_tools.cli.main import main
from stable_audio_tools.errors import UsageError
from stable_audio_tools.inference.language_model import generate_lm
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.language_model.wrapper import AudioLanguageModelWrapper

CODEC = {"channels": 4, "c_mults": [1, 2], "strides": [2, 4], "latent_dim": 6}
CONFIG: dict[str, Any] = {
    "model_type": "lm",
    "sample_size": 64,
    "sample_rate": 8000,
    "model": {
        "pretransform": {
            "type": "autoencoder",
            "config": {
                "encoder": {"type": "oobleck", "config": CODEC},
                "decoder": {"type": "oobleck", "config": CODEC},
                "bottleneck": {
                    "type": "dac_rvq",
                    "config": {"input_dim": 6, "n_codebooks": 2, "codebook_dim": 3, "codebook_size": 11},
                },
                "latent_dim": 6,
                "downsampling_ratio": 8,
                "io_channels": 2,
            },
        },
        "lm": {"type": "continuous_transformer", "config": {"embed_dim": 16, "depth": 1, "dim_heads": 4}},
    },
}


@pytest.fixture(scope="module")
def model() -> AudioLanguageModelWrapper:
    torch.manual_seed(0)
    return create_model_from_config(copy.deepcopy(CONFIG)).eval()


@pytest.mark.parametrize("sample_size", [1, 40, 61])
def test_clips_are_as_long_as_asked(model: AudioLanguageModelWrapper, sample_size: int) -> None:
    audio = generate_lm(model, sample_size, batch_size=2, seed=1, device="cpu")
    assert audio.shape == (2, 2, sample_size)
    frames = -(-sample_size // 8)
    whole = model.generate_audio(max_gen_len=frames, batch_size=2, seed=1)
    torch.testing.assert_close(audio, whole[..., :sample_size])


def test_a_recording_is_continued(model: AudioLanguageModelWrapper) -> None:
    recording = torch.randn(2, 27, generator=torch.Generator().manual_seed(0))  # 3 frames, and 3 samples
    audio = generate_lm(model, 64, init_audio=(8000, recording), seed=4, device="cpu")
    codes = model.pretransform.tokenize(recording[None, :, :24])
    assert codes.shape[-1] == 3
    expected = model.generate_audio(max_gen_len=8, init_data=codes, seed=4)
    torch.testing.assert_close(audio, expected)


def test_a_recording_may_be_mono_or_one_for_each_clip_and_of_another_rate(
    model: AudioLanguageModelWrapper,
) -> None:
    mono = torch.randn(32, generator=torch.Generator().manual_seed(0))
    both = mono.expand(2, 2, -1)
    one = generate_lm(model, 64, init_audio=(8000, mono), seed=4, device="cpu")
    two = generate_lm(model, 64, init_audio=(8000, both), seed=[4, 9], device="cpu")
    assert two.shape == (2, 2, 64)
    torch.testing.assert_close(two[:1], one)
    assert generate_lm(model, 64, init_audio=(4000, mono[:16]), seed=4, device="cpu").shape == (1, 2, 64)


@pytest.mark.parametrize("samples", [7, 64])
def test_a_recording_that_is_too_short_or_too_long_is_refused(
    model: AudioLanguageModelWrapper, samples: int
) -> None:
    with pytest.raises(UsageError, match=r"init_audio fills \d frames of 8 samples, expected 1 to 7"):
        generate_lm(model, 64, init_audio=(8000, torch.zeros(samples)), device="cpu")
    with pytest.raises(UsageError, match="sample_size: found 0"):
        generate_lm(model, 0, device="cpu")


def test_the_command_for_diffusion_models_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "model_config.json"
    config.write_text(json.dumps(CONFIG))
    given = [
        "generate",
        "--model-config",
        str(config),
        "--ckpt-path",
        str(tmp_path / "x.ckpt"),
        "--prompt",
        "x",
    ]
    with pytest.raises(SystemExit) as ended:
        main(given)
    assert ended.value.code == 2
    assert "model_type is 'lm'" in " ".join(capsys.readouterr().err.split())
