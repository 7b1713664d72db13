"""A tiny random DAC, and short synthesised pieces of music with their altered copies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from dedup_music import RATE, compose


@pytest.fixture(scope="session")
def tiny_dac_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random DAC of 4 codebooks x 64 codes at 16 kHz, hop 64, in the Hugging Face format."""
    from transformers import DacConfig, DacModel

    folder = tmp_path_factory.mktemp("tiny-dac")
    config = DacConfig(
        encoder_hidden_size=8,
        downsampling_ratios=[2, 4, 8],
        decoder_hidden_size=32,
        n_codebooks=4,
        codebook_size=64,
        codebook_dim=4,
        sampling_rate=RATE,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        DacModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def music_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pieces (two of the same notes), altered copies of the first, and files with nothing to compare."""
    import soundfile

    folder = tmp_path_factory.mktemp("music")
    original = compose(1)
    same_notes = (220.0, 261.6, 329.6, 392.0)
    pieces = {
        "original.wav": original,
        "a/exact.wav": original,
        "a/quieter.wav": 0.5 * original,
        "a/trimmed.wav": original[RATE // 2 :],
        "a/reencoded.mp3": original,
        "other.wav": compose(2),
        "same_notes_1.wav": compose(3, notes=same_notes),
        "same_notes_2.wav": compose(4, notes=same_notes),
        "silent_1.wav": np.zeros(2 * RATE, dtype=np.float32),
        "silent_2.wav": np.zeros(2 * RATE, dtype=np.float32),
        "constant.wav": np.full(2 * RATE, 0.25, dtype=np.float32),
        "anti_phase.wav": np.stack([original, -original], axis=1),
    }
    for name, audio in pieces.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        subtype = "MPEG_LAYER_III" if path.suffix == ".mp3" else "PCM_16"
        soundfile.write(path, audio, RATE, subtype=subtype)
    (folder / "broken.mp3").write_bytes(b"this is no audio")
    return folder
