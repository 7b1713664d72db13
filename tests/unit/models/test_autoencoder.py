"""The autoencoder and the pretransform around it."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from tiny_autoencoder import RATIO, autoencoder_config, build, noise, seeded
from torch import Tensor, nn

from stable_audio_tools.errors import UsageError
from stable_audio_tools.models.autoencoders.autoencoder import AudioAutoencoder
from stable_audio_tools.models.autoencoders.chunking import apply_in_chunks
from stable_audio_tools.models.bottlenecks.base import draw_noise
from stable_audio_tools.models.bottlenecks.vae import VAEBottleneck
from stable_audio_tools.models.pretransforms.autoencoder import AutoencoderPretransform
from stable_audio_tools.schema.autoencoder import AutoencoderConfig, AutoencoderPretransformConfig
from stable_audio_tools.schema.bottlenecks import VAEConfig


def pretransform(**changes: Any) -> AutoencoderPretransform:
    value = {"type": "autoencoder", "config": autoencoder_config(), **changes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoencoderPretransform(AutoencoderPretransformConfig.model_validate(value), 16000)


@pytest.fixture(scope="module")
def model() -> AudioAutoencoder:
    return build()


@pytest.mark.parametrize("length", [1, 15, 16, 17, 100, 16 * 128, 16 * 129 + 3, 16 * 300 - 1])
@pytest.mark.parametrize("chunked", [False, True])
def test_any_length_makes_whole_latents_and_comes_back(
    model: AudioAutoencoder, length: int, chunked: bool
) -> None:
    latents = model.encode(noise(1, 2, length), chunked=chunked)
    assert latents.shape == (1, 3, -(-length // RATIO))
    assert model.decode(latents, chunked=chunked).shape == (1, 2, latents.shape[-1] * RATIO)
    assert model(noise(1, 2, length)).shape == (1, 2, length)


@pytest.mark.parametrize("frames", [1, 5, 100, 127, 128])
def test_chunks_up_to_one_window_are_the_whole(model: AudioAutoencoder, frames: int) -> None:
    latents = noise(2, 3, frames)
    torch.testing.assert_close(model.decode(latents, chunked=True), model.decode(latents), rtol=0, atol=0)


def test_chunks_agree_with_the_whole_away_from_their_edges(model: AudioAutoencoder) -> None:
    """This tiny network sees fewer than 16 latents to each side, which half the overlap covers."""
    latents = noise(1, 3, 500)
    torch.testing.assert_close(model.decode(latents, chunked=True), model.decode(latents), atol=1e-5, rtol=0)
    audio = noise(1, 2, 500 * RATIO)
    torch.testing.assert_close(
        model.encode(audio, chunked=True, generator=seeded()),
        model.encode(audio, generator=seeded()),
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.parametrize("frames", [8, 9, 13, 14, 15, 40])
@pytest.mark.parametrize("overlap", [0, 2, 3, 7])
def test_windows_cover_every_frame_once(frames: int, overlap: int) -> None:
    x = torch.arange(float(frames * 3)).view(1, 1, -1)

    def every_third(piece: Tensor) -> Tensor:  # 3 values in, 1 out
        return piece[..., ::3]

    found = apply_in_chunks(every_third, x, chunk_size=8, overlap=overlap, in_step=3, out_step=1)
    torch.testing.assert_close(found, every_third(x))


def test_half_of_the_overlap_is_dropped_at_inner_edges() -> None:
    windows: list[int] = []

    def numbered(piece: Tensor) -> Tensor:
        windows.append(int(piece[0, 0, 0]))
        return torch.full_like(piece, len(windows))

    x = torch.arange(21.0).view(1, 1, -1)
    found = apply_in_chunks(numbered, x, chunk_size=8, overlap=4, in_step=1, out_step=1)
    assert windows == [0, 4, 8, 12, 13]
    assert found.flatten().tolist() == [1] * 6 + [2] * 4 + [3] * 4 + [4] * 1 + [5] * 6


@pytest.mark.parametrize(("chunk_size", "overlap"), [(8, 8), (8, 9), (8, -1), (0, 0)])
def test_an_overlap_that_does_not_fit_is_refused(chunk_size: int, overlap: int) -> None:
    with pytest.raises(UsageError, match="overlap"):
        apply_in_chunks(
            lambda x: x, noise(1, 1, 99), chunk_size=chunk_size, overlap=overlap, in_step=1, out_step=1
        )


@pytest.mark.parametrize("chunked", [False, True])
def test_odd_strides_lose_a_few_samples_as_the_public_code_does(chunked: bool) -> None:
    model = build(strides=(3, 5))
    assert model.encode(noise(1, 2, 15 * 200), chunked=chunked).shape[-1] == 200
    whole = model.decode(noise(1, 3, 200))
    assert whole.shape[-1] == 3 * (5 * 200 - 1) - 1
    torch.testing.assert_close(model.decode(noise(1, 3, 200), chunked=chunked), whole, atol=1e-5, rtol=0)


def test_nearest_upsampling_keeps_odd_strides_exact() -> None:
    model = build(strides=(3, 5), decoder={"use_nearest_upsample": True})
    assert model.decode(noise(1, 3, 20)).shape[-1] == 300
    assert "decoder.layers.1.layers.1.1.weight_g" in model.state_dict()


def test_elu_without_snake() -> None:
    model = build(decoder={"use_snake": False})
    kinds = {type(module) for module in model.decoder.modules()}
    assert nn.ELU in kinds
    assert not any(key.endswith("alpha") for key in model.decoder.state_dict())


def test_outputs_are_bounded_where_the_config_says_so() -> None:
    latents = noise(1, 3, 8) * 100
    for bounded in (build(soft_clip=True), build(decoder={"final_tanh": True})):
        assert bounded.decode(latents).abs().max() <= 1
    assert build().decode(latents).abs().max() > 1


def test_parts_can_be_frozen_by_config() -> None:
    value = autoencoder_config()
    value["encoder"]["requires_grad"] = False
    frozen = AudioAutoencoder(AutoencoderConfig.model_validate(value))
    assert not any(parameter.requires_grad for parameter in frozen.encoder.parameters())
    assert all(parameter.requires_grad for parameter in frozen.decoder.parameters())


def test_an_item_does_not_depend_on_its_batch(model: AudioAutoencoder) -> None:
    audio = noise(3, 2, 320)
    together = model.encode(audio, generator=[seeded(i) for i in range(3)])
    for index in range(3):
        alone = model.encode(audio[index : index + 1], generator=[seeded(index)])
        torch.testing.assert_close(alone[0], together[index], atol=1e-6, rtol=1e-5)
        decoded = model.decode(together)[index]
        torch.testing.assert_close(model.decode(alone)[0], decoded, atol=1e-5, rtol=1e-5)


def test_iterating_the_batch_changes_nothing(model: AudioAutoencoder) -> None:
    audio = noise(3, 2, 320)
    one_by_one = model.encode(audio, iterate_batch=True, generator=seeded())
    torch.testing.assert_close(one_by_one, model.encode(audio, generator=seeded()), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        model.decode(one_by_one, iterate_batch=True), model.decode(one_by_one), atol=1e-5, rtol=1e-5
    )


def test_a_generator_leaves_the_global_one_alone(model: AudioAutoencoder) -> None:
    before = torch.get_rng_state()
    first = model.encode(noise(1, 2, 320), generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, model.encode(noise(1, 2, 320), generator=seeded()))
    assert not torch.equal(first, model.encode(noise(1, 2, 320), generator=seeded(8)))


def test_info_has_the_posterior_and_its_divergence() -> None:
    raw = noise(2, 6, 5)
    latents, info = VAEBottleneck(VAEConfig()).encode(raw, seeded())
    torch.testing.assert_close(info["mean"], raw[:, :3])
    torch.testing.assert_close(latents, info["mean"] + info["stdev"] * draw_noise(latents, seeded()))
    posterior = torch.distributions.Normal(info["mean"], info["stdev"])
    divergence = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(info["kl"], 2 * divergence.sum(dim=1).mean())


def test_wrong_shapes_are_named(model: AudioAutoencoder) -> None:
    with pytest.raises(
        UsageError, match=r"audio must have the shape \(batch, 2, length\), found \(1, 1, 64\)"
    ):
        model.encode(noise(1, 1, 64))
    with pytest.raises(UsageError, match=r"latents .* found \(3, 64\)"):
        model.decode(noise(3, 64))
    with pytest.raises(UsageError, match=r"2 generators .* batch of 3"):
        model.encode(noise(3, 2, 64), generator=[seeded(), seeded()])


def test_pretransform_is_frozen_and_stays_in_evaluation_mode() -> None:
    parent = nn.ModuleDict({"pretransform": pretransform()})
    parent.train()
    assert not any(module.training for module in parent["pretransform"].modules())
    assert not any(parameter.requires_grad for parameter in parent.parameters())

    trained = nn.ModuleDict({"pretransform": pretransform(enable_grad=True)})
    trained.train()
    assert all(module.training for module in trained["pretransform"].modules())
    assert all(parameter.requires_grad for parameter in trained.parameters())


def test_pretransform_scales_on_the_way_in_and_back_on_the_way_out() -> None:
    plain, scaled = pretransform(), pretransform(scale=2.5)
    audio = noise(1, 2, 320)
    latents = plain.encode(audio, generator=seeded())
    torch.testing.assert_close(scaled.encode(audio, generator=seeded()), latents / 2.5)
    torch.testing.assert_close(scaled.decode(latents / 2.5), plain.decode(latents), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_pretransform_takes_any_float_and_returns_float32(dtype: torch.dtype) -> None:
    module = pretransform(model_half=True, iterate_batch=True, chunked=True)
    latents = module.encode(noise(2, 2, 320).to(dtype))
    assert latents.dtype == torch.float32
    assert module.decode(latents.to(dtype)).dtype == torch.float32
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


def test_a_half_precision_model_takes_float32_audio() -> None:
    module = pretransform().half()
    latents = module.encode(noise(1, 2, 320), generator=seeded())
    torch.testing.assert_close(
        latents, pretransform().encode(noise(1, 2, 320), generator=seeded()), atol=0.02, rtol=0.02
    )


def test_keys_start_with_model_and_copies_are_their_own() -> None:
    module = pretransform()
    assert all(key.startswith("model.") for key in module.state_dict())
    copy = deepcopy(module)
    with torch.no_grad():
        next(copy.parameters()).add_(1)
    assert not torch.equal(next(copy.parameters()), next(module.parameters()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_half_precision_on_the_gpu_is_close_to_float32_on_the_cpu() -> None:
    audio = noise(2, 2, 3200)
    expected = pretransform().encode(audio, generator=seeded())
    found = pretransform(model_half=True).cuda().encode(audio.cuda(), generator=seeded()).cpu()
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)
