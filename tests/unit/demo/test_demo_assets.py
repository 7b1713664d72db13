"""The committed tiny models: they load as the real ones do, and they have learned something."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stable_audio_tools.demo.artists import DEMO_ARTISTS
from stable_audio_tools.demo.assets import ASSETS, asset, write_starting_point
from stable_audio_tools.demo.pieces import Piece, compose
from stable_audio_tools.demo.pretraining.losses import log_spectral_distance
from stable_audio_tools.demo.pretraining.stage import save_half

needs_assets = pytest.mark.skipif(
    not (ASSETS / "base" / "model.safetensors").exists(), reason="the demo's tiny models are not trained yet"
)


@pytest.fixture(scope="module")
def pieces() -> list[Piece]:
    """Music that no tiny model was trained on."""
    return compose(DEMO_ARTISTS, 1, world="test", first_id=1, seconds=(6.0, 7.0))


def test_half_precision_files_load_as_float32(tmp_path: Path) -> None:
    from transformers import T5Config, T5EncoderModel

    model = T5EncoderModel(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    save_half(model, tmp_path)
    loaded = T5EncoderModel.from_pretrained(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float())


@needs_assets
def test_base_model_and_vae_load_strictly_and_reconstruct(tmp_path: Path, pieces: list[Piece]) -> None:
    from stable_audio_tools.models.checkpoints import load_checkpoint, load_pretransform
    from stable_audio_tools.models.factory import create_model_from_config_path

    config, base, vae = write_starting_point(tmp_path)
    model = create_model_from_config_path(config)
    load_checkpoint(model, base)
    load_pretransform(model, vae)
    model.eval()
    for piece in pieces[::3]:
        audio = torch.from_numpy(piece.play())[None, :, : 512 * 150]
        with torch.no_grad():
            latents = model.pretransform.encode(audio, generator=torch.Generator().manual_seed(0))
            again = model.pretransform.decode(latents)
        assert 0.5 < float(latents.std()) < 2.0
        assert log_spectral_distance(again, audio) < 5.0


@needs_assets
def test_text_encoder_tells_prompts_apart() -> None:
    from transformers import AutoTokenizer, T5EncoderModel

    tokenizer, model = AutoTokenizer.from_pretrained(asset("t5")), T5EncoderModel.from_pretrained(asset("t5"))
    batch = tokenizer(["slow ambient pad", "fast chiptune", "Größe? 日本"], padding=True, return_tensors="pt")
    assert tokenizer.unk_token_id not in batch["input_ids"]
    hidden = model(**batch).last_hidden_state
    assert hidden.shape[-1] == 128
    means = torch.nn.functional.normalize(hidden.mean(1), dim=-1)
    assert (means @ means.T).fill_diagonal_(0).max() < 0.98


@needs_assets
def test_clap_knows_the_styles(pieces: list[Piece]) -> None:
    from transformers import ClapModel, ClapProcessor

    from stable_audio_tools.demo.pretraining.clap import upsample

    model, processor = (
        ClapModel.from_pretrained(asset("clap")).eval(),
        ClapProcessor.from_pretrained(asset("clap")),
    )
    sounds = [upsample(torch.from_numpy(p.play()).mean(0)[None, : 6 * 16_000], 3)[0].numpy() for p in pieces]
    inputs = processor.feature_extractor(sounds, sampling_rate=48_000, return_tensors="pt")
    text = processor.tokenizer([p.caption for p in pieces], padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model(
            input_ids=text["input_ids"],
            attention_mask=text["attention_mask"],
            input_features=inputs["input_features"],
        )
    similarity = found.audio_embeds @ found.text_embeds.T
    assert (similarity.argmax(1) == torch.arange(len(pieces))).float().mean() >= 0.6  # chance is 1 in 8
    assert similarity.diagonal().mean() > similarity.mean() + 0.2


@needs_assets
def test_codec_reconstructs_and_uses_its_codes(pieces: list[Piece]) -> None:
    from transformers import DacModel

    model = DacModel.from_pretrained(asset("dac")).eval()
    assert model.config.sampling_rate == 16_000
    used: list[torch.Tensor] = []
    for piece in pieces[::2]:
        mono = torch.from_numpy(piece.play()).mean(0)[None, None, : 320 * 200]
        with torch.no_grad():
            found = model(mono)
        used.append(found.audio_codes[0, 0])
        assert log_spectral_distance(found.audio_values.unsqueeze(1), mono) < 6.0
    assert len(torch.cat(used).unique()) > 40  # of 256 in the first codebook
