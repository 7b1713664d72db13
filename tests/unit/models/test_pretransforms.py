"""What stands between audio and a model: wavelets, patches, published codecs, autoencoders with codes."""

from __future__ import annotations

import json
import math
import pickle
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from stable_audio_tools.errors import CheckpointError, ConfigError, UsageError
from stable_audio_tools.models.pretransforms.base import Pretransform
from stable_audio_tools.models.pretransforms.registry import PRETRANSFORMS, create_pretransform
from stable_audio_tools.models.pretransforms.wavelet import filter_bank
from stable_audio_tools.schema.autoencoder import PretransformConfig
from stable_audio_tools.schema.codecs import DACS, ENCODECS
from stable_audio_tools.schema.reader import parse_model_config, read_model_json

RATE = 16000
WAVELETS = ["bior2.2", "bior2.4", "bior2.6", "bior2.8", "bior4.4", "bior6.8"]
_ADAPTER: TypeAdapter[Any] = TypeAdapter(PretransformConfig)


@pytest.fixture(scope="module")
def dac_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random mono DAC of ratio 32 with three codebooks."""
    from transformers import DacConfig, DacModel

    folder = tmp_path_factory.mktemp("tiny-dac")
    config = DacConfig(
        encoder_hidden_size=4, downsampling_ratios=[4, 8], decoder_hidden_size=16, n_codebooks=3,
        codebook_size=16, codebook_dim=4, sampling_rate=RATE,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built: Any = DacModel(config)
        for name, parameter in built.quantizer.named_parameters():
            if not name.endswith("bias"):
                torch.nn.init.normal_(parameter)
        built.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encodec_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random stereo EnCodec of ratio 8 with two codebooks, which hold latents of noise."""
    folder = tmp_path_factory.mktemp("tiny-encodec")
    model, config = _encodec()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        built = model(config).eval()
        frames = built.encoder(0.3 * torch.randn(1, 2, 8 * 32))[0].T
        for share, layer, part in zip((1.0, 0.3), built.quantizer.layers, frames.split(16), strict=True):
            layer.codebook.embed.copy_(share * part)
        built.save_pretrained(folder)
    return folder


def _encodec(**changes: Any) -> tuple[Any, Any]:
    from transformers import EncodecConfig, EncodecModel

    sizes: dict[str, Any] = {
        "sampling_rate": RATE, "audio_channels": 2, "num_filters": 2, "upsampling_ratios": [4, 2],
        "hidden_size": 8, "num_lstm_layers": 1, "codebook_size": 16, "target_bandwidths": [16.0],
    }  # fmt: skip
    return EncodecModel, EncodecConfig(**{**sizes, **changes})


def build(kind: str, sample_rate: int = RATE, **config: Any) -> Any:
    return create_pretransform(_ADAPTER.validate_python({"type": kind, "config": config}), sample_rate)


def audio(channels: int = 1, length: int = 700, batch: int = 2, seed: int = 3) -> Tensor:
    return 0.3 * torch.randn(batch, channels, length, generator=torch.Generator().manual_seed(seed))


def oobleck(bottleneck: dict[str, Any] | None = None) -> dict[str, Any]:
    sizes = {"channels": 4, "c_mults": [1], "strides": [4], "latent_dim": 6}
    return {
        "encoder": {"type": "oobleck", "config": {"in_channels": 1, **sizes}},
        "decoder": {"type": "oobleck", "config": {"out_channels": 1, **sizes}},
        "bottleneck": bottleneck, "latent_dim": 6, "downsampling_ratio": 4, "io_channels": 1,
    }  # fmt: skip


def test_every_config_has_a_pretransform(dac_folder: Path, encodec_folder: Path) -> None:
    built: list[Pretransform] = [
        build("autoencoder", **oobleck()),
        build("wavelet", channels=2, levels=2, wavelet="bior4.4"),
        build("patched", channels=2, patch_size=4),
        build("dac_pretrained", model_name=str(dac_folder)),
        build("audiocraft_pretrained", model_type=str(encodec_folder)),
    ]
    assert {type(each) for each in built} == set(PRETRANSFORMS.values())
    for each in built:
        x = audio(each.io_channels, 701)
        latents = each.encode(x)
        frames = -(-701 // each.downsampling_ratio)
        assert latents.shape == (2, each.encoded_channels, frames)
        assert each.decode(latents).shape == (2, each.io_channels, frames * each.downsampling_ratio)
        assert latents.dtype == each.decode(latents).dtype == torch.float32
        assert not each.training
        assert not any(parameter.requires_grad for parameter in each.parameters())
        torch.testing.assert_close(each.encode(x[1:]), latents[1:], rtol=1e-4, atol=1e-5)
        for copy in (deepcopy(each), pickle.loads(pickle.dumps(each))):
            torch.testing.assert_close(copy.encode(x), latents)
        with pytest.raises(
            UsageError, match=f"audio must have the shape \\(batch, {each.io_channels}, length"
        ):
            each.encode(audio(3))
        with pytest.raises(UsageError, match="must have the shape"):
            each.decode(latents[:, 1:])


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"type": "wavelet", "config": {"channels": 2, "levels": 3, "wavelet": "bior2.2"}}, (16, 2, 8, 0, 0)),
        ({"type": "patched", "config": {"channels": 2, "patch_size": 256}}, (512, 2, 256, 0, 0)),
        ({"type": "dac_pretrained"}, (1024, 1, 512, 9, 1024)),
        ({"type": "dac_pretrained", "config": {"model_name": "somewhere"}}, (None,) * 5),
        ({"type": "audiocraft_pretrained"}, (128, 1, 640, 4, 2048)),
        ({"type": "audiocraft_pretrained", "config": {"model_type": "somewhere"}}, (None,) * 5),
        ({"type": "autoencoder", "config": oobleck()}, (6, 1, 4, 0, 0)),
        (
            {
                "type": "autoencoder",
                "config": oobleck({"type": "fsq", "config": {"levels": [3, 3], "dim": 6}}),
            },
            (6, 1, 4, 1, 9),
        ),
    ],
)
def test_a_config_tells_what_it_makes(value: dict[str, Any], told: tuple[int | None, ...]) -> None:
    config = _ADAPTER.validate_python(value)
    found = (
        config.channels,
        config.audio_channels,
        config.ratio,
        config.num_quantizers,
        config.codebook_size,
    )
    assert found == told


# ---- wavelets ----


def test_filters_are_the_published_ones() -> None:
    bank = filter_bank("bior4.4")  # JPEG 2000 part 1, table F.4, times the root of 2 (and over it)
    assert bank.analysis_low[4:] / math.sqrt(2) == pytest.approx(
        [
            0.6029490182363579,
            0.2668641184428723,
            -0.07822326652898785,
            -0.01686411844287495,
            0.02674875741080976,
        ]
    )
    assert bank.synthesis_low[3:7] * math.sqrt(2) == pytest.approx(
        [1.115087052456994, 0.5912717631142470, -0.05754352622849957, -0.09127176311424948]
    )
    bank = filter_bank("bior2.2")
    assert bank.analysis_low / math.sqrt(2) == pytest.approx([-0.125, 0.25, 0.75, 0.25, -0.125])
    assert bank.analysis_high / math.sqrt(2) == pytest.approx([0.25, -0.5, 0.25, 0, 0])
    bank = filter_bank("bior6.8")  # as PyWavelets prints it
    assert bank.synthesis_low[2:8] == pytest.approx(
        [0.014426282505624435, 0.014467504896790148, -0.07872200106262882, -0.04036797903033992,
         0.41784910915027457, 0.7589077294536541]
    )  # fmt: skip
    assert bank.synthesis_high[:3] == pytest.approx(
        [-0.0019088317364812906, -0.0019142861290887667, 0.016990639867602342]
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("levels", [1, 2, 4])
@pytest.mark.parametrize("wavelet", WAVELETS)
def test_wavelets_reconstruct(wavelet: str, levels: int, channels: int) -> None:
    transform = build("wavelet", channels=channels, levels=levels, wavelet=wavelet)
    for frames in (transform.min_frames, transform.min_frames + 5):
        x = audio(channels, frames * 2**levels)
        torch.testing.assert_close(transform.decode(transform.encode(x)), x, rtol=0, atol=3e-6)


@pytest.mark.parametrize("wavelet", WAVELETS)
def test_high_pass_filters_are_blind_to_polynomials(wavelet: str) -> None:
    bank = filter_bank(wavelet)
    at_reconstruction, at_decomposition = int(wavelet[4]), int(wavelet[6])
    time = torch.linspace(-1, 1, len(bank.analysis_low), dtype=torch.float64).numpy()
    for taps, moments in ((bank.analysis_high, at_reconstruction), (bank.synthesis_high, at_decomposition)):
        sums = [abs(float(taps @ time**power)) for power in range(moments + 1)]
        assert max(sums[:-1]) < 1e-9
        assert sums[-1] > 1e-4


def test_wavelet_bands_of_stereo_do_not_mix_and_lie_band_by_band() -> None:
    stereo = build("wavelet", channels=2, levels=3, wavelet="bior4.4")
    mono = build("wavelet", channels=1, levels=3, wavelet="bior4.4")
    x = audio(2, 256)
    bands = stereo.encode(x)
    for channel in range(2):
        torch.testing.assert_close(bands[:, channel::2], mono.encode(x[:, channel : channel + 1]))
    tone = torch.cos(math.pi * torch.arange(256.0))[None, None]  # the highest frequency there is
    energy = mono.encode(tone).square().mean(dim=(0, 2))
    assert energy[:4].max() < 1e-6 < energy[4:].min()


def test_wavelet_filters_are_saved_under_the_public_keys() -> None:
    state = build("wavelet", channels=2, levels=1, wavelet="bior2.2").state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        "encoder.kernel": (4, 2, 5),
        "decoder.kernel": (4, 2, 5),
    }


def test_audio_too_short_for_a_wavelet_is_refused() -> None:
    transform = build("wavelet", channels=1, levels=2, wavelet="bior6.8")
    with pytest.raises(UsageError, match="at least 6 frames of 4 samples, found 5"):
        transform.encode(audio(1, 20))


# ---- patches ----


def test_patches_lie_channel_by_channel_and_come_back() -> None:
    transform = build("patched", channels=2, patch_size=3)
    x = torch.arange(14.0).view(1, 2, 7)
    patches = transform.encode(x)
    assert patches[0, :, 0].tolist() == [0, 1, 2, 7, 8, 9]
    assert patches[0, :, 2].tolist() == [6, 0, 0, 13, 0, 0]
    assert torch.equal(transform.decode(patches)[..., :7], x)
    assert transform.state_dict() == {}


# ---- published codecs ----


def test_published_codecs_are_built_without_fetching_them() -> None:
    for name, facts in DACS.items():
        built = build("dac_pretrained", facts.sample_rate, model_type=name.removeprefix("descript/dac_"))
        assert (built.encoded_channels, built.num_quantizers) == (1024, facts.num_quantizers)
        assert built.state_dict() == {}
        assert built.is_discrete
    with torch.device("meta"):
        built = build("audiocraft_pretrained", 32000)
    facts = ENCODECS["facebook/encodec_32khz"]
    assert (built.downsampling_ratio, built.codebook_size) == (640, facts.codebook_size)


def test_dac_is_that_of_transformers(dac_folder: Path) -> None:
    from transformers import DacModel

    theirs: Any = DacModel.from_pretrained(dac_folder).eval()
    x = audio(1, 640)
    early = build("dac_pretrained", model_name=str(dac_folder), quantize_on_decode=False)
    late = build("dac_pretrained", model_name=str(dac_folder), scale=2.0)
    with torch.no_grad():
        z, codes = theirs.encode(x)[1:3]
        decoded = theirs.decode(z).audio_values[:, None]
        raw = theirs.encoder(x)
    assert len(codes.unique()) > 4
    torch.testing.assert_close(early.encode(x), z)
    torch.testing.assert_close(early.decode(z), decoded)
    torch.testing.assert_close(late.encode(x), raw / 2)
    torch.testing.assert_close(late.decode(raw / 2), decoded)
    for built in (early, late):
        assert torch.equal(built.tokenize(x), codes)
        torch.testing.assert_close(built.decode_tokens(codes), decoded)
        assert built.state_dict() == {}
        assert list(built.parameters()) == []
    with pytest.raises(UsageError, match="codes must have the shape"):
        early.decode_tokens(codes[:, :2])


def test_dac_in_chunks_is_dac_at_once(dac_folder: Path) -> None:
    codec = build("dac_pretrained", model_name=str(dac_folder), quantize_on_decode=False)
    assert codec.chunked
    x = audio(1, 32 * 300 + 5, batch=1)
    raw = build("dac_pretrained", model_name=str(dac_folder), chunked=False)
    torch.testing.assert_close(raw.encode(x, chunked=True), raw.encode(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(codec.tokenize(x), raw.tokenize(x))
    latents = codec.encode(x)
    torch.testing.assert_close(
        codec.decode(latents), codec.decode(latents, chunked=False), rtol=1e-4, atol=1e-5
    )


def test_gradients_pass_through_a_frozen_codec(dac_folder: Path) -> None:
    codec = build("dac_pretrained", model_name=str(dac_folder), quantize_on_decode=False)
    latents = torch.randn(1, codec.encoded_channels, 4).requires_grad_()
    codec.decode(latents).sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().sum() > 0


def test_the_first_use_of_a_codec_may_be_in_inference_mode(dac_folder: Path) -> None:
    codec = build("dac_pretrained", model_name=str(dac_folder), quantize_on_decode=False)
    with torch.inference_mode():
        codec.encode(audio(1, 64))
    latents = torch.randn(1, codec.encoded_channels, 2).requires_grad_()
    codec.decode(latents).sum().backward()
    assert latents.grad is not None


def test_encodec_is_that_of_transformers(encodec_folder: Path) -> None:
    from transformers import EncodecModel

    theirs: Any = EncodecModel.from_pretrained(encodec_folder).eval()
    x = audio(2, 701)
    early = build(
        "audiocraft_pretrained", model_type=str(encodec_folder), quantize_on_decode=False, scale=0.5
    )
    late = build("audiocraft_pretrained", model_type=str(encodec_folder))
    with torch.no_grad():
        codes = theirs.encode(x, bandwidth=16.0).audio_codes[0]
        decoded = theirs.decode(codes[None], [None]).audio_values
    assert codes.shape == (2, early.num_quantizers, 88)
    assert len(codes.unique()) > 4
    for built in (early, late):
        assert torch.equal(built.tokenize(x), codes)
        torch.testing.assert_close(built.decode_tokens(codes), decoded)
        torch.testing.assert_close(built.decode(built.encode(x)), decoded)
        assert built.state_dict() == {}


def test_a_codec_for_another_rate_is_refused(dac_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"dac_44khz is made for 44100 Hz, but sample_rate is 16000; set"):
        build("dac_pretrained")
    with pytest.raises(ConfigError, match="is made for 16000 Hz"):
        build("dac_pretrained", 48000, model_name=str(dac_folder))


def test_what_is_no_such_codec_is_refused(dac_folder: Path, encodec_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no DAC model could be found .* give model_name a folder"):
        build("dac_pretrained", model_name=str(tmp_path))
    with pytest.raises(ConfigError, match="is no DAC, but 'encodec'"):
        build("dac_pretrained", model_name=str(encodec_folder))
    with pytest.raises(ConfigError, match="is no EnCodec, but 'dac'"):
        build("audiocraft_pretrained", model_type=str(dac_folder))
    for options in ({"normalize": True}, {"chunk_length_s": 1.0, "overlap": 0.01}):
        _encodec(**options)[1].save_pretrained(tmp_path)
        with pytest.raises(ConfigError, match="so codes alone cannot be decoded"):
            build("audiocraft_pretrained", model_type=str(tmp_path))


def test_a_codec_whose_weights_are_missing_is_refused_when_used(tmp_path: Path) -> None:
    _encodec()[1].save_pretrained(tmp_path)
    codec = build("audiocraft_pretrained", model_type=str(tmp_path))
    with pytest.raises(CheckpointError, match="no EnCodec model could be loaded"):
        codec.tokenize(audio(2))


def test_a_codec_that_is_not_what_its_name_promises_is_refused(
    dac_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = DACS["descript/dac_16khz"]
    monkeypatch.setitem(DACS, str(dac_folder), facts)
    codec = build("dac_pretrained", model_name=str(dac_folder))
    with pytest.raises(CheckpointError, match=r"expected a codec with .*num_quantizers=12.* found"):
        codec.tokenize(audio(1))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"type": "dac_pretrained", "enable_grad": True}, "a published codec stays as it was published"),
        ({"type": "audiocraft_pretrained", "enable_grad": True}, "a published codec stays"),
        ({"type": "dac_pretrained", "config": {"model_bitrate": "16kbps"}}, "only the '8kbps' codecs"),
        ({"type": "wavelet", "config": {"channels": 1, "levels": 1, "wavelet": "haar"}}, "bior2.2"),
        ({"type": "patched", "config": {"channels": 1, "patch_size": 0}}, "greater than or equal to 1"),
        ({"type": "autoencoder", "config": oobleck(), "scale": 0}, "greater than 0"),
    ],
)
def test_what_cannot_work_is_refused_when_read(value: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        _ADAPTER.validate_python(value)


# ---- autoencoders with codes ----


@pytest.mark.parametrize("chunked", [False, True])
def test_an_autoencoder_pretransform_tells_audio_in_codes(chunked: bool) -> None:
    value = {
        "type": "autoencoder", "chunked": chunked, "iterate_batch": chunked, "scale": 3.0,
        "config": oobleck({"type": "dithered_fsq", "config": {"dim": 3, "levels": 9, "num_codebooks": 2}}),
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transform: Any = create_pretransform(_ADAPTER.validate_python(value), RATE)
    assert (transform.num_quantizers, transform.codebook_size, transform.is_discrete) == (2, 729, True)
    x = audio(1, 4 * 200 + 1)
    codes = transform.tokenize(x)
    assert codes.shape == (2, 2, 201)
    assert codes.dtype == torch.int64
    torch.testing.assert_close(transform.decode_tokens(codes), transform.decode(transform.encode(x)))
    torch.testing.assert_close(transform.encode(x) * 3, transform.model.bottleneck.decode_codes(codes))


def test_what_has_no_codes_says_so() -> None:
    for transform in (build("patched", channels=1, patch_size=2), build("autoencoder", **oobleck())):
        assert not transform.is_discrete
        assert transform.num_quantizers == 0
        with pytest.raises(UsageError, match="codes"):
            transform.tokenize(audio())
        with pytest.raises(UsageError, match="codes"):
            transform.decode_tokens(torch.zeros(1, 1, 4, dtype=torch.int64))


# ---- beside a model ----


def _beside(pretransform: dict[str, Any], io_channels: int, **top: Any) -> Any:
    model = {"type": "DAU1d", "config": {"io_channels": io_channels}, "pretransform": pretransform}
    return parse_model_config(
        {"model_type": "diffusion_uncond", "sample_size": 64, "sample_rate": RATE, "model": model, **top}
    )


def test_audio_that_the_pretransform_cannot_take_is_refused_when_read() -> None:
    codec = {"type": "dac_pretrained", "config": {"model_type": "16khz"}}
    with pytest.raises(ConfigError, match="sample_rate is 44100, but the pretransform is made for 16000 Hz"):
        _beside(codec, 1024, sample_rate=44100)
    with pytest.raises(ConfigError, match="audio_channels is 2, but the pretransform takes 1"):
        _beside(codec, 1024, audio_channels=2)
    with pytest.raises(ConfigError, match="io_channels is 64, but the pretransform makes 1024 channels"):
        _beside(codec, 64)


def test_audio_channels_are_those_of_the_pretransform_where_the_config_does_not_say() -> None:
    read = _beside({"type": "patched", "config": {"channels": 1, "patch_size": 4}}, 4)
    assert read.audio_channels == 1
    assert parse_model_config(read.model_dump()) == read
    unknown = _beside({"type": "audiocraft_pretrained", "config": {"model_type": "somewhere"}}, 7)
    assert unknown.audio_channels == 2


def test_the_folder_of_a_codec_may_be_told_from_that_of_the_config(
    encodec_folder: Path, tmp_path: Path
) -> None:
    config = {"pretransform": {"type": "audiocraft_pretrained", "config": {"model_type": "./codec"}}}
    path = tmp_path / "model.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    found = read_model_json(path)["pretransform"]["config"]["model_type"]
    assert found == str((tmp_path / "codec").resolve())
    (tmp_path / "codec").symlink_to(encodec_folder)
    assert build("audiocraft_pretrained", model_type=found).num_quantizers == 2
