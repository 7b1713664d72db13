"""Fixtures that several rooms share: a tiny model config, a tiny T5, a tiny folder of music."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

SHARED = Path(__file__).parents[1] / "../shared"
TINY_SAMPLE_RATE = 16000
TINY_SAMPLE_SIZE = 8192

_VOCABULARY = (
    "a bass beat bell calm drum drums electronic energetic fast folk for genre guitar happy instrument jazz"
    " loud mood music of orchestra piano pop quiet relaxing rock sad slow song synth techno the voice with"
)

_TRACKS = [  # track id, artist, album, base frequency in Hz, tags
    (1000101, 900001, 800001, 110.0, ("genre---rock", "instrument---guitar", "mood/theme---energetic")),
    (1000102, 900001, 800001, 147.0, ("genre---rock", "instrument---drums", "mood/theme---fast")),
    (1000203, 900002, 800002, 220.0, ("genre---jazz", "instrument---piano", "mood/theme---relaxing")),
    (1000204, 900002, 800003, 262.0, ("genre---jazz", "instrument---bass")),
    (1000305, 900003, 800004, 330.0, ("genre---folk", "instrument---voice", "mood/theme---happy")),
    (1000306, 900003, 800004, 392.0, ("genre---folk", "instrument---guitar", "mood/theme---calm")),
    (1000407, 900004, 800005, 440.0, ("genre---techno", "instrument---synth", "mood/theme---loud")),
    (1000408, 900004, 800005, 523.0, ("genre---electronic", "instrument---synth")),
]


@pytest.fixture(scope="session")
def tiny_t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random T5 of width 32 and its word tokenizer, in the Hugging Face format; seeded."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    folder = tmp_path_factory.mktemp("tiny-t5")
    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *_VOCABULARY.split()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=128,
    ).save_pretrained(folder)
    config = T5Config(
        vocab_size=len(vocabulary),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        T5EncoderModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def _tiny_diffusion_config(tiny_t5_folder: Path) -> dict[str, Any]:
    oobleck = {"channels": 8, "c_mults": [1, 2, 4], "strides": [4, 4, 8], "use_snake": True}
    seconds = {"type": "number", "config": {"min_val": 0, "max_val": 512}}
    return {
        "model_type": "diffusion_cond",
        "sample_size": TINY_SAMPLE_SIZE,
        "sample_rate": TINY_SAMPLE_RATE,
        "audio_channels": 2,
        "model": {
            "pretransform": {
                "type": "autoencoder",
                "iterate_batch": True,
                "config": {
                    "encoder": {"type": "oobleck", "config": {"in_channels": 2, "latent_dim": 8, **oobleck}},
                    "decoder": {
                        "type": "oobleck",
                        "config": {"out_channels": 2, "latent_dim": 4, "final_tanh": False, **oobleck},
                    },
                    "bottleneck": {"type": "vae"},
                    "latent_dim": 4,
                    "downsampling_ratio": 128,
                    "io_channels": 2,
                },
            },
            "conditioning": {
                "configs": [
                    {
                        "id": "prompt",
                        "type": "t5",
                        "config": {"t5_model_name": str(tiny_t5_folder), "max_length": 16},
                    },
                    {"id": "seconds_start", **seconds},
                    {"id": "seconds_total", **seconds},
                ],
                "cond_dim": 32,
            },
            "diffusion": {
                "type": "dit",
                "cross_attention_cond_ids": ["prompt", "seconds_start", "seconds_total"],
                "global_cond_ids": ["seconds_start", "seconds_total"],
                "config": {
                    "io_channels": 4,
                    "embed_dim": 64,
                    "depth": 2,
                    "num_heads": 2,
                    "cond_token_dim": 32,
                    "global_cond_dim": 64,
                    "project_cond_tokens": False,
                },
            },
            "io_channels": 4,
        },
        "training": {
            "use_ema": True,
            "optimizer_configs": {
                "diffusion": {
                    "optimizer": {"type": "AdamW", "config": {"lr": 1e-3, "weight_decay": 1e-3}},
                    "scheduler": {
                        "type": "InverseLR",
                        "config": {"inv_gamma": 1e6, "power": 0.5, "warmup": 0.9},
                    },
                }
            },
        },
    }


@pytest.fixture
def tiny_diffusion_config(_tiny_diffusion_config: dict[str, Any]) -> dict[str, Any]:
    """A whole ``diffusion_cond`` config of about 0.2 M parameters: 0.5 s stereo at 16 kHz, latents (4, 64).

    A fresh copy each time: a test may change it.
    """
    return copy.deepcopy(_tiny_diffusion_config)


@pytest.fixture(scope="session")
def tiny_audio_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight synthesised stereo wavs, 1 to 1.7 s at 16 kHz, in MTG-Jamendo layout: ``audio/`` and tables."""
    import soundfile

    root = tmp_path_factory.mktemp("tiny-jamendo")
    rows = ["TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS"]
    names = ["TRACK_ID\tARTIST_ID\tALBUM_ID\tTRACK_NAME\tARTIST_NAME\tALBUM_NAME\tRELEASEDATE\tURL"]
    for position, (track, artist, album, frequency, tags) in enumerate(_TRACKS):
        seconds = 1.0 + 0.1 * position
        time = np.arange(round(seconds * TINY_SAMPLE_RATE)) / TINY_SAMPLE_RATE
        tone = sum(np.sin(2 * math.pi * frequency * k * time) / k for k in (1, 2, 3)) * np.exp(
            -3 * (time % 0.25)
        )
        audio = 0.3 * np.stack([tone, np.roll(tone, 40 + 10 * position)], axis=1)
        relative = f"{track % 100:02d}/{track}.wav"
        path = root / "audio" / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, audio.astype(np.float32), TINY_SAMPLE_RATE, subtype="PCM_16")
        keys = (f"track_{track}", f"artist_{artist}", f"album_{album}")
        rows.append("\t".join([*keys, relative, f"{seconds:.1f}", *tags]))
        titles = (f"Song {position}", f"Artist {artist % 10}", f"Album {album % 10}")
        names.append("\t".join([*keys, *titles, "2020-01-01", f"https://example.org/{track}"]))
    (root / "raw_30s.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (root / "raw.meta.tsv").write_text("\n".join(names) + "\n", encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def jamendo_mini() -> Path:
    """Six real recordings in MTG-Jamendo layout, where this machine has them."""
    folder = SHARED / "data" / "jamendo-mini"
    if not folder.is_dir():
        pytest.skip("shared/data/jamendo-mini is not on this machine")
    return folder.resolve()
