"""Adapters by strength: nothing at 0, as trained at 1, straight between for LoRA; several add up."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_adapters import run, train_a_little
from torch import nn

from stable_audio_tools.errors import CheckpointError, UsageError
from stable_audio_tools.models.adapters.attach import load_adapter, load_adapters
from stable_audio_tools.models.adapters.lora import adapted_layers, apply_lora, merge_adapters
from stable_audio_tools.models.adapters.peft_folder import save_adapter
from stable_audio_tools.models.adapters.strength import AdapterChoice, choose_adapters
from stable_audio_tools.schema.training import LoraConfig


@pytest.fixture
def make(model, tmp_path):
    """A function that trains an adapter on a copy of the model, and saves it under a name."""

    def make(name: str, **config) -> str:
        tuned = copy.deepcopy(model)
        apply_lora(tuned, LoraConfig(**config), seed=len(name))
        train_a_little(tuned)
        return str(save_adapter(tuned, tmp_path / name))

    return make


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in merge_adapters(model).state_dict().items()}


def loaded(model: nn.Module, *adapters: str) -> nn.Module:
    tuned = copy.deepcopy(model)
    load_adapters(tuned, adapters)
    return tuned


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_strength_0_is_the_base_and_1_the_adapter_as_trained(model, make, kind):
    adapter = make("a", type=kind, rank=4)
    trained = copy.deepcopy(model)
    load_adapter(trained, adapter)
    assert torch.equal(run(loaded(model, f"{adapter}:0")), run(model))
    assert torch.equal(run(loaded(model, f"{adapter}:1")), run(trained))
    halfway = run(loaded(model, f"{adapter}:0.5"))
    assert (halfway - run(model)).abs().max() > 1e-3
    assert (halfway - run(trained)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_small_strength_changes_little(model, make, kind):
    adapter = make("a", type=kind, rank=4)
    whole = (run(loaded(model, adapter)) - run(model)).abs().max()
    assert 0 < (run(loaded(model, f"{adapter}:0.01")) - run(model)).abs().max() < 0.05 * whole


def test_the_change_of_a_lora_is_linear_in_its_strength(model, make):
    adapter = make("a", rank=4)
    base, one = weights(copy.deepcopy(model)), weights(loaded(model, adapter))
    for strength in (-0.5, 0.25, 2.0):
        found = weights(loaded(model, f"{adapter}:{strength}"))
        for name, value in found.items():
            torch.testing.assert_close(
                value, base[name] + strength * (one[name] - base[name]), rtol=0, atol=1e-6
            )


def test_several_add_up_in_any_order_on_layers_of_their_own_and_shared(model, make):
    a = make("a", rank=4, component_whitelist=["self_attn"])
    b = make("bb", rank=2, alpha=6, component_whitelist=["transformer"])
    base, one, other = (weights(loaded(model, *names)) for names in ((), (a,), (b,)))
    both = loaded(model, a, f"{b}:0.5")
    close(run(both), run(loaded(model, f"{b}:0.5", a)))
    adapted = run(both)
    merged = merge_adapters(both)
    assert list(merged.state_dict()) == list(model.state_dict())
    close(run(merged), adapted)
    for name, value in merged.state_dict().items():
        expected = base[name] + (one[name] - base[name]) + 0.5 * (other[name] - base[name])
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)


def test_a_dora_does_not_share_a_layer_but_may_have_company(model, make):
    dora = make("d", type="DoRA", component_whitelist=["self_attn"])
    shared, beside = make("s"), make("ff", component_whitelist=["ff"])
    with pytest.raises(CheckpointError, match=r"self_attn.*, and one of them is a DoRA"):
        loaded(model, dora, shared)
    tuned = loaded(model, dora, beside)
    adapted = run(tuned)
    close(run(merge_adapters(tuned)), adapted)
    assert torch.equal(run(loaded(model, dora, f"{shared}:0")), run(loaded(model, dora)))
    with pytest.raises(UsageError, match="has adapters already"):
        load_adapters(loaded(model, dora), shared)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_merged_equals_unmerged_at_any_strength(model, make, kind):
    tuned = loaded(model, f"{make('a', type=kind, rank=4)}:0.7")
    adapted = run(tuned)
    close(run(merge_adapters(tuned)), adapted)
    assert not adapted_layers(tuned)


def test_strengths_are_read_from_the_end_of_a_path(tmp_path):
    odd = tmp_path / "name:2"
    odd.mkdir()
    assert choose_adapters(None) == ()
    assert choose_adapters(str(odd)) == (AdapterChoice(odd),), "a path that exists has no strength in it"
    assert choose_adapters(f"{odd}:0.5") == (AdapterChoice(odd, 0.5),)
    assert choose_adapters(["a", "C:\\b", "c:-1"]) == (
        AdapterChoice(type(odd)("a")),
        AdapterChoice(type(odd)("C:\\b")),
        AdapterChoice(type(odd)("c"), -1.0),
    )
    assert str(AdapterChoice(odd, 0.5)) == f"{odd}:0.5"
    with pytest.raises(UsageError, match="expected a finite strength, found nan"):
        choose_adapters("a:nan")
    with pytest.raises(UsageError, match="adapter a: given twice"):
        choose_adapters(["a", "a:0.5"])
