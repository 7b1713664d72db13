"""Tiny random CLAP models, with and without fusion, in the Hugging Face format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

WORDS = ("a", "calm", "song", "with", "piano", "drums", "guitar", "fast", "rock", "jazz", "quiet", "and")
CLAP_RATE = 16000


def build_tiny_clap(folder: Path, *, fusion: bool) -> Path:
    """A CLAP that hears 1 s at 16 kHz and embeds into 16 numbers; seeded."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=24,
    ).save_pretrained(folder)
    ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=CLAP_RATE,
        hop_length=160,
        max_length_s=1,
        fft_window_size=512,
        frequency_max=8000,
        truncation="fusion" if fusion else "rand_trunc",
    ).save_pretrained(folder)
    config = ClapConfig(
        text_config={
            "vocab_size": len(vocabulary),
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 32,
        },
        audio_config={
            "spec_size": 64,
            "num_mel_bins": 16,
            "window_size": 4,
            "patch_embeds_hidden_size": 8,
            "depths": [1, 1],
            "num_attention_heads": [1, 2],
            "hidden_size": 16,
            "enable_fusion": fusion,
            "fusion_type": "aff_2d" if fusion else None,
            "aff_block_r": 2,
            "drop_path_rate": 0.0,
        },
        projection_dim=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ClapModel(config)
        for parameter in model.parameters():  # the default start is so small that all texts look alike
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_clap_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_clap(tmp_path_factory.mktemp("tiny-clap"), fusion=True)


@pytest.fixture(scope="session")
def tiny_clap_without_fusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_clap(tmp_path_factory.mktemp("tiny-clap-unfused"), fusion=False)
