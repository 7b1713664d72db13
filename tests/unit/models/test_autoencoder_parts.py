"""What goes into an autoencoder: pretransforms, codes, clips of any kind, widths that meet."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from tiny_autoencoder import RATIO, autoencoder_config, build, noise, seeded

from stable_audio_tools.errors import ConfigError, UsageError
from stable_audio_tools.models.autoencoders.autoencoder import AudioAutoencoder
from stable_audio_tools.schema import encoders
from stable_audio_tools.schema.autoencoder import AutoencoderConfig


@pytest.fixture(scope="module")
def model() -> AudioAutoencoder:
    return build()


PATCHED = {"type": "patched", "config": {"channels": 2, "patch_size": 4}}
WAVELET = {"type": "wavelet", "config": {"channels": 2, "levels": 2, "wavelet": "bior4.4"}}


def behind(outside: dict[str, Any], **changes: Any) -> AudioAutoencoder:
    """An autoencoder of ratio 16 on what ``outside`` makes of 4 samples of 2 channels: 8 channels."""
    value = autoencoder_config(pretransform=outside, downsampling_ratio=64, **changes)
    value["encoder"]["config"]["in_channels"] = 8
    value["decoder"]["config"]["out_channels"] = 8
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AudioAutoencoder(AutoencoderConfig.model_validate(value), 16000)
    return model.eval()


@pytest.mark.parametrize("outside", [PATCHED, WAVELET], ids=["patched", "wavelet"])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 1000])
@pytest.mark.parametrize("chunked", [False, True])
def test_behind_a_pretransform_the_ratio_is_the_whole(
    outside: dict[str, Any], length: int, chunked: bool
) -> None:
    model = behind(outside)
    latents = model.encode(noise(1, 2, length), chunked=chunked)
    assert latents.shape == (1, 3, -(-length // 64))
    assert model.decode(latents, chunked=chunked).shape == (1, 2, latents.shape[-1] * 64)


def test_a_pretransform_comes_first_in_and_last_out() -> None:
    model = behind(PATCHED, soft_clip=True)
    assert model.pretransform is not None
    audio = noise(1, 2, 640)
    _, info = model.encode(audio, return_info=True)
    torch.testing.assert_close(
        info["pre_bottleneck_latents"], model.encoder(model.pretransform.encode(audio))
    )
    latents = noise(1, 3, 10)
    inner = model.decoder(latents)
    torch.testing.assert_close(model.decode(latents), torch.tanh(model.pretransform.decode(inner)))


@pytest.mark.parametrize("outside", [PATCHED, WAVELET], ids=["patched", "wavelet"])
def test_chunks_behind_a_pretransform_agree_with_the_whole(outside: dict[str, Any]) -> None:
    model = behind(outside).requires_grad_(False)
    latents, audio = noise(1, 3, 300), noise(1, 2, 300 * 64)
    torch.testing.assert_close(model.decode(latents, chunked=True), model.decode(latents), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        model.encode(audio, chunked=True, generator=seeded()),
        model.encode(audio, generator=seeded()),
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.parametrize("outside", [PATCHED, WAVELET], ids=["patched", "wavelet"])
def test_a_frozen_pretransform_lets_gradients_pass_to_the_decoder(outside: dict[str, Any]) -> None:
    model = behind(outside)
    model(noise(1, 2, 64)).square().sum().backward()
    for part in (model.encoder, model.decoder):
        assert all(parameter.grad is not None for parameter in part.parameters())


def test_an_autoencoder_behind_an_autoencoder() -> None:
    """Audio to 3 channels at ratio 16, then to 3 at ratio 256 in all; both draw from the same generator."""
    value = autoencoder_config(
        pretransform={"type": "autoencoder", "config": autoencoder_config(), "scale": 2.0},
        downsampling_ratio=256,
    )
    value["encoder"]["config"]["in_channels"] = 3
    value["decoder"]["config"]["out_channels"] = 3
    model = AudioAutoencoder(AutoencoderConfig.model_validate(value), 16000).eval().requires_grad_(False)
    audio = noise(2, 2, 1000)
    latents = model.encode(audio, generator=seeded())
    assert latents.shape == (2, 3, 4)
    assert torch.equal(latents, model.encode(audio, generator=seeded()))
    assert model.decode(latents).shape == (2, 2, 1024)
    assert any(key.startswith("pretransform.model.encoder.layers.0.") for key in model.state_dict())


def test_a_codec_whose_ratio_shows_only_when_built_is_checked_then(monkeypatch: pytest.MonkeyPatch) -> None:
    from stable_audio_tools.models.pretransforms import registry
    from stable_audio_tools.models.pretransforms.base import Pretransform

    def codec(config: Any, sample_rate: int) -> Pretransform:
        return Pretransform(sample_rate=sample_rate, io_channels=2, encoded_channels=2, downsampling_ratio=3)

    monkeypatch.setattr(registry, "create_pretransform", codec)
    outside = {"type": "audiocraft_pretrained", "config": {"model_type": "somewhere/codec"}}
    for ratio, fits in ((48, True), (32, False)):
        value = autoencoder_config(pretransform=outside, downsampling_ratio=ratio)
        parsed = AutoencoderConfig.model_validate(value)
        if fits:
            assert AudioAutoencoder(parsed, 16000).downsampling_ratio == 48
        else:
            with pytest.raises(ConfigError, match=r"frame of 3 samples .* 48 samples in all, found 32"):
                AudioAutoencoder(parsed, 16000)


DISCRETE: dict[str, dict[str, Any]] = {
    "rvq": {"dim": 3, "num_quantizers": 2, "codebook_size": 16, "kmeans_init": False},
    "dac_rvq": {"input_dim": 3, "n_codebooks": 2, "codebook_size": 16, "codebook_dim": 2},
    "fsq": {"levels": [5, 5, 5]},
    "dithered_fsq": {"dim": 3, "levels": 5},
}


def quantised(kind: str, **changes: Any) -> AudioAutoencoder:
    value = autoencoder_config(bottleneck={"type": kind, "config": DISCRETE[kind] | changes})
    value["encoder"]["config"]["latent_dim"] = 3
    value["decoder"]["config"]["latent_dim"] = 3 + changes.get("noise_augment_dim", 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AudioAutoencoder(AutoencoderConfig.model_validate(value), 16000)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("kind", DISCRETE)
@pytest.mark.parametrize("length", [1, 16, 1000])
def test_codes_stand_for_the_latents(kind: str, length: int) -> None:
    model = quantised(kind)
    assert model.is_discrete
    audio = noise(2, 2, length)
    latents, info = model.encode(audio, return_info=True)
    codes = model.tokenize(audio)
    assert codes.dtype == torch.int64
    assert codes.shape == (2, model.bottleneck.num_quantizers, -(-length // RATIO))
    assert torch.equal(codes, model.bottleneck.codes(info))
    assert 0 <= codes.min() <= codes.max() < model.bottleneck.codebook_size
    torch.testing.assert_close(model.decode_tokens(codes), model.decode(latents), atol=1e-5, rtol=1e-4)
    chunked = model.tokenize(audio, chunked=True, iterate_batch=True)
    assert (chunked == codes).float().mean() > 0.99


@pytest.mark.parametrize("kind", ["dac_rvq", "fsq"])
def test_noise_beside_the_codes_comes_from_the_generator(kind: str) -> None:
    model = quantised(kind, noise_augment_dim=2)
    codes = model.tokenize(noise(1, 2, 320))
    first = model.decode_tokens(codes, seeded())
    assert torch.equal(first, model.decode_tokens(codes, seeded()))
    assert not torch.equal(first, model.decode_tokens(codes, seeded(8)))
    latents = model.encode(noise(1, 2, 320))
    assert torch.equal(model.decode(latents, generator=seeded()), model.decode(latents, generator=seeded()))
    torch.testing.assert_close(
        model.decode(latents, generator=seeded(), chunked=True, iterate_batch=True),
        model.decode(latents, generator=seeded()),
        atol=1e-5,
        rtol=1e-5,
    )


def test_codes_need_a_bottleneck_that_has_them(model: AudioAutoencoder) -> None:
    assert not model.is_discrete
    with pytest.raises(UsageError, match="bottleneck that quantises; this autoencoder has 'vae'"):
        model.tokenize(noise(1, 2, 64))
    with pytest.raises(UsageError, match="bottleneck that quantises"):
        model.decode_tokens(torch.zeros(1, 1, 4, dtype=torch.int64))


def test_skipping_the_bottleneck(model: AudioAutoencoder) -> None:
    audio = noise(1, 2, 320)
    raw, info = model.encode(audio, return_info=True, skip_bottleneck=True)
    assert torch.equal(raw, model.encoder(audio))
    assert set(info) == {"pre_bottleneck_latents"}
    latents = noise(1, 3, 20)
    assert torch.equal(model.decode(latents, skip_bottleneck=True), model.decoder(latents))


def test_audio_in_and_out_may_differ_in_channels() -> None:
    value = autoencoder_config(in_channels=1)
    value["encoder"]["config"].pop("in_channels")
    mono = AudioAutoencoder(AutoencoderConfig.model_validate(value), 16000)
    assert mono(noise(1, 1, 320)).shape == (1, 2, 320)
    assert (mono.in_channels, mono.out_channels) == (1, 2)
    with pytest.raises(UsageError, match=r"\(batch, 1, length\)"):
        mono.encode(noise(1, 2, 320))


def test_public_argument_order(model: AudioAutoencoder) -> None:
    audio, latents = noise(1, 2, 100 * RATIO), noise(1, 3, 100)
    torch.testing.assert_close(
        model.encode_audio(audio, True, 8, 32, generator=seeded()),
        model.encode(audio, chunked=True, overlap=8, chunk_size=32, generator=seeded()),
    )
    found = model.decode_audio(latents, True, 2, 16, iterate_batch=True)
    torch.testing.assert_close(found, model.decode(latents, chunked=True, overlap=2, chunk_size=16))
    assert not torch.equal(found, model.decode(latents))


def test_clips_of_any_kind_become_one_batch(model: AudioAutoencoder) -> None:
    """16 kHz stereo in latents of 16 samples; the longest clip has 100 samples at 8 kHz, 200 here."""
    clips = [noise(2, 70), noise(100), noise(1, 1, 33), noise(6, 40)]
    batch = model.preprocess_audio_list_for_encoder(clips, [16000, 8000, 16000, 16000])
    assert batch.shape == (4, 2, 208)
    torch.testing.assert_close(batch[0, :, :70], clips[0])
    assert not batch[0, :, 70:].any()
    assert torch.equal(batch[1, 0], batch[1, 1])  # mono on both sides
    torch.testing.assert_close(batch[2, 1, :33], clips[2][0, 0])
    torch.testing.assert_close(batch[3, :, :40], clips[3][:2])
    assert model.encode_audio(batch).shape == (4, 3, 13)

    one = model.preprocess_audio_for_encoder(clips[0], 16000)
    assert one.shape == (1, 2, 80)
    torch.testing.assert_close(one[0], batch[0, :, :80])
    assert model.preprocess_audio_list_for_encoder(clips[:1], 16000).shape == (1, 2, 80)
    assert model.preprocess_audio_for_encoder(noise(2, 0), 16000).shape == (1, 2, 16)


def test_clips_that_cannot_be_a_batch_are_refused(model: AudioAutoencoder) -> None:
    with pytest.raises(UsageError, match="1 sample rates were given for 2 clips"):
        model.preprocess_audio_list_for_encoder([noise(2, 8), noise(2, 8)], [16000])
    with pytest.raises(UsageError, match=r"\(channels, length\), found \(2, 2, 8\)"):
        model.preprocess_audio_for_encoder(noise(2, 2, 8), 16000)
    with pytest.raises(UsageError, match="at least one clip"):
        model.preprocess_audio_list_for_encoder([], 16000)


WIDTHS: list[tuple[dict[str, Any] | None, int, int]] = [  # bottleneck, encoder width, decoder width
    (None, 3, 3),
    ({"type": "vae"}, 6, 3),
    ({"type": "tanh"}, 3, 3),
    ({"type": "l2_norm"}, 3, 3),
    ({"type": "wasserstein", "config": {"noise_augment_dim": 2}}, 3, 5),
    ({"type": "softnorm", "config": {"dim": 3, "noise_augment_dim": 1}}, 3, 4),
    ({"type": "rvq", "config": DISCRETE["rvq"]}, 3, 3),
    ({"type": "dac_rvq", "config": DISCRETE["dac_rvq"] | {"noise_augment_dim": 2}}, 3, 5),
    ({"type": "fsq", "config": DISCRETE["fsq"] | {"noise_augment_dim": 2}}, 3, 5),
    ({"type": "fsq", "config": {"levels": [5, 5], "dim": 3}}, 3, 3),
    ({"type": "dithered_fsq", "config": DISCRETE["dithered_fsq"]}, 3, 3),
]


@pytest.mark.parametrize(("bottleneck", "encoder", "decoder"), WIDTHS)
def test_widths_that_meet_run_and_others_are_refused(
    bottleneck: dict[str, Any] | None, encoder: int, decoder: int
) -> None:
    def read(encoder: int, decoder: int) -> AutoencoderConfig:
        value = autoencoder_config(bottleneck=bottleneck)
        value["encoder"]["config"]["latent_dim"] = encoder
        value["decoder"]["config"]["latent_dim"] = decoder
        return AutoencoderConfig.model_validate(value)

    model = AudioAutoencoder(read(encoder, decoder), 16000).eval()
    assert model(noise(1, 2, 100)).shape == (1, 2, 100)
    with pytest.raises(ValidationError, match=f"encoder latent_dim must be {encoder} .* found {encoder + 1}"):
        read(encoder + 1, decoder)
    with pytest.raises(ValidationError, match=f"decoder latent_dim must be {decoder} .* found {decoder + 1}"):
        read(encoder, decoder + 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"downsampling_ratio": 8}, "encoder strides multiply to 16, but downsampling_ratio is 8"),
        ({"pretransform": PATCHED}, "16 and the pretransform's ratio is 4, 64 in all"),
        ({"io_channels": 1}, "encoder input channels must be 1"),
        ({"in_channels": 1}, "encoder input channels must be 1"),
        ({"out_channels": 1}, "decoder output channels must be 1"),
        (
            {"pretransform": PATCHED, "downsampling_ratio": 64},
            "encoder input channels must be 8 .* found 2",
        ),
        (
            {"pretransform": PATCHED, "downsampling_ratio": 64, "io_channels": 1},
            "pretransform audio channels must be 1",
        ),
        (
            {"bottleneck": {"type": "softnorm", "config": {"dim": 4}}},
            "bottleneck channels must be 3 .* found 4",
        ),
        ({"bottleneck": {"type": "rvq"}}, "bottleneck channels must be 3 .* found 128"),
        ({"bottleneck": {"type": "fsq", "config": {"levels": [5]}}}, "bottleneck channels must be 3"),
    ],
)
def test_parts_that_do_not_fit_are_refused_when_read(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AutoencoderConfig.model_validate(autoencoder_config(**changes))


@pytest.mark.parametrize("kind", ["oobleck", "dac", "seanet", "taae"])
def test_every_encoder_and_decoder_has_a_builder(kind: str) -> None:
    from stable_audio_tools.models.autoencoders.registry import DECODERS, ENCODERS

    for registry, union in ((ENCODERS, encoders.EncoderConfig), (DECODERS, encoders.DecoderConfig)):
        listed = get_args(get_args(union)[0])
        assert set(registry) == set(listed)
        assert kind in {get_args(item.model_fields["type"].annotation)[0] for item in listed}
