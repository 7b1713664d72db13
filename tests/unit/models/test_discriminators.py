"""Adversaries: their public layout, their losses by definition, and what must hold of them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from stable_audio_tools.errors import ConfigError
from stable_audio_tools.models.discriminators import Discriminator, create_discriminator, fold
from stable_audio_tools.nn.convs import fuse_weight_norm_
from stable_audio_tools.schema.losses import STFTDiscriminator, WaveDiscriminator

SIZES = {"filters": 4, "n_ffts": [64, 32], "hop_lengths": [16, 8], "win_lengths": [64, 32]}
CONFIGS = {
    "encodec": STFTDiscriminator(type="encodec", config=SIZES),
    "encodec, as published": STFTDiscriminator(type="encodec", config={**SIZES, "stride": (1, 2)}),
    "encodec, quiet bins": STFTDiscriminator(type="encodec", config={**SIZES, "spec_scale_pow": -0.5}),
    "oobleck": WaveDiscriminator(type="oobleck"),
}


def build(name: str, channels: int = 2) -> Discriminator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_discriminator(CONFIGS[name], channels)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_keys_of_the_stft_networks_are_the_public_ones() -> None:
    state = build("encodec").state_dict()
    expected = {}
    for index, window in enumerate((64, 32)):
        prefix = f"discriminators.discriminators.{index}."
        expected[prefix + "spec_transform.window"] = (window,)
        widths = [(4, 4, 3, 9)] * 4 + [(4, 4, 3, 3)]  # real and imaginary part of 2 channels, then 4 filters
        for layer, shape in [
            *((f"convs.{i}", shape) for i, shape in enumerate(widths)),
            ("conv_post", (1, 4, 3, 3)),
        ]:
            expected[f"{prefix}{layer}.conv.bias"] = shape[:1]
            expected[f"{prefix}{layer}.conv.weight_g"] = (shape[0], 1, 1, 1)
            expected[f"{prefix}{layer}.conv.weight_v"] = shape
    assert {key: tuple(value.shape) for key, value in state.items()} == expected


def test_the_keys_of_the_wave_networks_are_the_public_ones() -> None:
    state = build("oobleck").state_dict()
    widths = [2, 32, 64, 128, 256]
    expected = {}
    for group, (count, axes) in enumerate(((3, 1), (5, 2))):
        for network in range(count):
            prefix = f"multi_discriminator.discriminators.{group}.layers.{network}.net."
            for layer in range(4):
                expected[f"{prefix}{2 * layer}.bias"] = (widths[layer + 1],)
                expected[f"{prefix}{2 * layer}.weight_g"] = (widths[layer + 1], *[1] * (axes + 1))
                shape = (widths[layer + 1], widths[layer], *[15] * axes)
                expected[f"{prefix}{2 * layer}.weight_v"] = shape
            expected[f"{prefix}8.weight"] = (1, 256, *[1] * axes)
            expected[f"{prefix}8.bias"] = (1,)
    assert {key: tuple(value.shape) for key, value in state.items()} == expected


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_of_torch_s_own_layers_give_the_same_answers(name: str) -> None:
    """Each convolution is taken out and replaced by torch's, under torch's own weight norm."""
    network = build(name)
    other = copy.deepcopy(network)
    for path, layer in list(other.named_modules()):
        if type(layer).__name__ not in ("WNConv1d", "WNConv2d"):
            continue
        plain: nn.Module
        shape = layer.weight_v.shape
        kind = nn.Conv1d if len(shape) == 3 else nn.Conv2d
        plain = kind(shape[1], shape[0], shape[2:], layer.stride, layer.padding, layer.dilation)
        plain = torch.nn.utils.parametrizations.weight_norm(plain)
        plain.parametrizations.weight.original0.data = layer.weight_g.data
        plain.parametrizations.weight.original1.data = layer.weight_v.data
        plain.bias.data = layer.bias.data
        parent, _, child = path.rpartition(".")
        setattr(other.get_submodule(parent), child, plain)
    real, fake = draw(2, 2, 400), draw(2, 2, 400, seed=1)
    for found, expected in zip(network(real, fake), other(real, fake), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_hinge_and_feature_matching_are_their_definitions(name: str) -> None:
    network = build(name)
    real, fake = draw(2, 2, 400), draw(2, 2, 400, seed=1)
    (real_scores, real_features), (fake_scores, fake_features) = network.judge(real), network.judge(fake)
    discriminator = adversarial = matching = 0.0
    for real_score, fake_score in zip(real_scores, fake_scores, strict=True):
        discriminator += float((1 - real_score).clamp_min(0).mean() + (1 + fake_score).clamp_min(0).mean())
        adversarial -= float(fake_score.mean())
    for real_layers, fake_layers in zip(real_features, fake_features, strict=True):
        gaps = [
            float((one - other).abs().mean()) for one, other in zip(real_layers, fake_layers, strict=True)
        ]
        matching += sum(gaps) if name == "oobleck" else sum(gaps) / len(gaps) / len(real_features)
    found = network.loss(real, fake)
    assert float(found.discriminator) == pytest.approx(discriminator / len(real_scores), rel=1e-5)
    assert float(found.adversarial) == pytest.approx(adversarial / len(real_scores), rel=1e-4, abs=1e-6)
    assert float(found.feature_matching) == pytest.approx(matching, rel=1e-5)


def test_relativistic_losses_mirror_each_other() -> None:
    config = STFTDiscriminator(type="encodec", config={**SIZES, "loss_type": "rpgan"})
    network = create_discriminator(config, 2)
    real, fake = draw(2, 2, 400), draw(2, 2, 400, seed=1)
    one, other = network.loss(real, fake), network.loss(fake, real)
    torch.testing.assert_close(one.discriminator, other.adversarial)
    assert float(network.loss(real, real).discriminator) == pytest.approx(0.6931, abs=1e-3)


def test_normalised_features_do_not_mind_their_size() -> None:
    """All of a layer's features twice as large: the plain distance doubles, the normalised one stays."""
    plain = build("encodec")
    relative = build("encodec")
    relative.normalize_losses = True
    features = draw(2, 4, 8, 8), draw(2, 4, 8, 8, seed=1)
    doubled = [2 * each for each in features]
    assert float(plain._distance(*doubled)) == pytest.approx(2 * float(plain._distance(*features)))
    assert float(relative._distance(*doubled)) == pytest.approx(
        float(relative._distance(*features)), rel=1e-2
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_a_score_does_not_depend_on_the_batch(name: str) -> None:
    network, audio = build(name), draw(3, 2, 400)
    together, alone = network.judge(audio)[0], network.judge(audio[1:2])[0]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one[1:2], other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("channels", [1, 2])
def test_the_shortest_audio_and_awkward_lengths_are_judged(name: str, channels: int) -> None:
    network = build(name, channels)
    for length in (network.min_length, 331):
        audio = draw(1, channels, length)
        assert all(bool(torch.isfinite(loss)) for loss in network(audio, audio))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_weight_is_told_how_to_change(name: str) -> None:
    network = build(name)
    network(draw(1, 2, 200), draw(1, 2, 200, seed=1)).adversarial.backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert bool(torch.isfinite(parameter.grad).all()), key
        assert bool(parameter.grad.abs().max() > 0), key


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "oobleck"])  # it has 48 M weights
def test_it_learns_to_tell_two_signals_apart(name: str) -> None:
    network = build(name)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    real, fake = draw(2, 2, 200), 0.2 * draw(2, 2, 200, seed=1).cumsum(-1)
    first = network(real, fake).discriminator.item()
    for _ in range(15):
        optimizer.zero_grad()
        network(real, fake).discriminator.backward()
        optimizer.step()
    assert network(real, fake).discriminator.item() < 0.9 * first


@pytest.mark.parametrize("name", CONFIGS)
def test_copies_pickles_and_fused_weights_answer_alike(name: str) -> None:
    network, audio = build(name), draw(1, 2, 400)
    fused = copy.deepcopy(network)
    fuse_weight_norm_(fused)
    expected = network.judge(audio)[0]
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), fused):
        for one, wanted in zip(other.judge(audio)[0], expected, strict=True):
            torch.testing.assert_close(one, wanted, atol=1e-5, rtol=1e-4)


def test_folding_lays_periods_side_by_side() -> None:
    rows = fold(torch.arange(7.0)[None, None], 3)[0, 0]
    assert rows.tolist() == [[0, 1, 2], [3, 4, 5], [6, 0, 0]]


def test_other_channels_than_the_autoencoder_s_are_refused() -> None:
    config = WaveDiscriminator(type="oobleck", config={"in_channels": 1})
    assert create_discriminator(config, 1) is not None
    with pytest.raises(ConfigError, match=r"in_channels: found 1, but the autoencoder makes 2 channels"):
        create_discriminator(config, 2)
