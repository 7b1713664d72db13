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
    """Against a codec with fresh weights, since single pieces differ more than codecs do.

    Over these eight pieces, one of each style and none heard in training, the distances of the trained codec
    go from 1.8 to 7.5 dB with a mean of 5.4; those of a fresh one from 3.4 to 13.3 with a mean of 9.1, which
    is that of silence.
    """
    from transformers import DacModel

    trained = DacModel.from_pretrained(asset("dac")).eval()
    assert trained.config.sampling_rate == 16_000
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = DacModel(trained.config).eval()
    used: list[torch.Tensor] = []
    distances: list[tuple[float, float]] = []
    for piece in pieces:
        mono = torch.from_numpy(piece.play()).mean(0)[None, None, : 320 * 200]
        with torch.no_grad():
            found, guessed = trained(mono), fresh(mono)
        used.append(found.audio_codes[0, 0])
        distances.append(
            (
                float(log_spectral_distance(found.audio_values.unsqueeze(1), mono)),
                float(log_spectral_distance(guessed.audio_values.unsqueeze(1), mono)),
            )
        )
    assert all(ours < theirs for ours, theirs in distances)
    assert sum(ours for ours, _ in distances) < 0.7 * sum(theirs for _, theirs in distances)
    assert len(torch.cat(used).unique()) > 100  # of 256 in the first codebook; 201 were in use
