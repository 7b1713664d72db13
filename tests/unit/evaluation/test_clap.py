"""CLAP embeddings are a function of the clip alone."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from stable_audio_tools.errors import CheckpointError, DataError
from stable_audio_tools.evaluation.clap import ClapEmbedder
from stable_audio_tools.runtime.seeds import generator

RATE = 16000
LENGTHS = (RATE // 3, RATE, RATE + 80, 2 * RATE, 3 * RATE + 777)  # the tiny model hears one second


def clip(length: int, channels: int = 1) -> torch.Tensor:
    """Decaying notes, different for every length."""
    time = torch.arange(length) / RATE
    pitch = 200 + 50 * torch.rand(1, generator=generator("pitch", length))
    tone = torch.sin(2 * math.pi * pitch * (1 + time.floor()) * time) * torch.exp(-4 * (time % 0.25))
    return 0.3 * tone.expand(channels, -1)


@pytest.fixture(params=["fusion", "no fusion"])
def clap(request: pytest.FixtureRequest) -> ClapEmbedder:
    name = "tiny_clap_folder" if request.param == "fusion" else "tiny_clap_without_fusion"
    return ClapEmbedder(request.getfixturevalue(name), device="cpu", batch_size=3)


def test_embeddings_have_length_one(clap: ClapEmbedder) -> None:
    audio = clap.embed_audio([clip(n) for n in LENGTHS], RATE)
    text = clap.embed_text(["a calm song", "fast rock with drums"])
    assert audio.shape == (len(LENGTHS), 16)
    assert text.shape == (2, 16)
    for rows in (audio, text):
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))


def test_different_clips_and_texts_differ(clap: ClapEmbedder) -> None:
    audio = clap.embed_audio([clip(n) for n in LENGTHS], RATE)
    text = clap.embed_text(["a calm song", "fast rock with drums"])
    assert torch.pdist(audio).min() > 1e-3
    assert torch.pdist(text).min() > 1e-2


def test_the_batch_does_not_matter(clap: ClapEmbedder) -> None:
    clips = [clip(n) for n in LENGTHS]
    together = clap.embed_audio(clips, RATE)
    alone = torch.cat([clap.embed_audio([one], RATE) for one in clips])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    texts = ["a calm song", "rock", "quiet piano and guitar with drums"]
    torch.testing.assert_close(
        clap.embed_text(texts), torch.cat([clap.embed_text([t]) for t in texts]), atol=1e-5, rtol=0
    )


def test_the_global_generators_do_not_matter(clap: ClapEmbedder) -> None:
    clips = [clip(n) for n in LENGTHS]
    np.random.seed(1)
    first = clap.embed_audio(clips, RATE)
    np.random.seed(2)
    torch.testing.assert_close(clap.embed_audio(clips, RATE), first, atol=0, rtol=0)


def test_short_audio_embeds_as_the_model_itself_does(clap: ClapEmbedder) -> None:
    audio = clip(RATE // 2)
    features = clap._clap.extractor(audio[0].numpy(), sampling_rate=RATE, return_tensors="pt")
    features["is_longer"] = torch.tensor([[False]])
    with torch.inference_mode():
        found = clap._clap.model.get_audio_features(**features)
    expected = found if isinstance(found, torch.Tensor) else found.pooler_output
    torch.testing.assert_close(clap.embed_audio([audio], RATE), expected, atol=1e-5, rtol=0)


def test_all_of_a_long_clip_is_heard(clap: ClapEmbedder) -> None:
    audio = clip(5 * RATE)
    changed = audio.clone()
    changed[:, -RATE // 4 :] = torch.randn(1, RATE // 4, generator=generator("end"))
    difference = clap.embed_audio([audio], RATE) - clap.embed_audio([changed], RATE)
    assert difference.abs().max() > 1e-4


def test_stereo_is_mixed_and_other_rates_are_resampled(clap: ClapEmbedder) -> None:
    mono = clip(RATE)
    stereo = torch.cat([1.5 * mono, 0.5 * mono])
    torch.testing.assert_close(
        clap.embed_audio(stereo[None], RATE), clap.embed_audio([mono], RATE), atol=1e-4, rtol=0
    )
    time = torch.arange(RATE) / RATE
    tone = {rate: torch.sin(2 * math.pi * 440 * torch.arange(rate) / rate)[None] for rate in (RATE, 2 * RATE)}
    assert time.shape == (RATE,)
    cosine = clap.embed_audio([tone[RATE]], RATE) @ clap.embed_audio([tone[2 * RATE]], 2 * RATE).T
    assert cosine.item() > 0.99


def test_nothing_gives_no_rows(clap: ClapEmbedder) -> None:
    assert clap.embed_audio([], RATE).shape == (0, 16)
    assert clap.embed_text([]).shape == (0, 16)


@pytest.mark.parametrize("bad", [torch.zeros(1, 0), torch.full((1, 100), float("nan")), torch.zeros(100)])
def test_a_clip_that_cannot_be_heard_is_named(clap: ClapEmbedder, bad: torch.Tensor) -> None:
    with pytest.raises(DataError, match="clip 1"):
        clap.embed_audio([clip(RATE), bad], RATE)


def test_what_is_no_clap_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no CLAP model"):
        ClapEmbedder(tmp_path / "nowhere", device="cpu")
