"""Adapters of other tools change the weights as their own tools would, and what is no adapter is named."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from tiny_adapters import run
from torch import nn

from stable_audio_tools.errors import CheckpointError
from stable_audio_tools.models.adapters.attach import load_adapter, load_adapters
from stable_audio_tools.models.adapters.lora import adapted_layers, merge_adapters
from stable_audio_tools.models.adapters.reading import read_adapter
from stable_audio_tools.schema.training import LoraConfig

BLOCK = "model.model.transformer.layers.0"
# a linear layer with a bias, one without, and a convolution with a kernel of 1
PATHS = [f"{BLOCK}.self_attn.to_qkv", f"{BLOCK}.ff.ff.2", "model.model.preprocess_conv"]
RANK = 3


def factors(model: nn.Module) -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Down ``(r, in k)``, up ``(out, r)`` and magnitudes ``(out,)`` of each path."""
    draws = torch.Generator().manual_seed(5)
    made = {}
    for path in PATHS:
        weight = model.get_submodule(path).weight.detach().flatten(1)
        down = 0.3 * torch.randn(RANK, weight.shape[1], generator=draws)
        up = 0.3 * torch.randn(len(weight), RANK, generator=draws)
        magnitude = weight.norm(dim=1) * (1 + 0.2 * torch.rand(len(weight), generator=draws))
        made[path] = (down, up, magnitude)
    return made


def changed_by_hand(model: nn.Module, made: dict, scale: float, dora: bool) -> torch.Tensor:
    """The output with every weight changed as the papers say; the model is put back."""
    kept = {path: model.get_submodule(path).weight.detach().clone() for path in made}
    with torch.no_grad():
        for path, (down, up, magnitude) in made.items():
            flat = kept[path].flatten(1) + scale * up @ down
            if dora:
                flat = magnitude[:, None] * flat / flat.norm(dim=1, keepdim=True)
            model.get_submodule(path).weight.copy_(flat.view_as(kept[path]))
        result = run(model)
        for path, weight in kept.items():
            model.get_submodule(path).weight.copy_(weight)
    return result


def loraw_state(model: nn.Module, made: dict, dora: bool) -> dict[str, torch.Tensor]:
    state = {}
    for path, (down, up, magnitude) in made.items():
        key, kernel = path.replace(".", "/"), model.get_submodule(path).weight.shape[2:]
        state[f"{key}/lora_down.weight"] = down.reshape(RANK, -1, *kernel)
        state[f"{key}/lora_up.weight"] = up.reshape(len(up), RANK, *(1 for _ in kernel))
        if dora:
            state[f"{key}/dora_mag.weight"] = magnitude[:, None]
            state[f"{key}/dora_mag.bias"] = torch.randn(len(up))  # LoRAW never reads it
    return state


def write_stable_audio_3(path, made: dict, dora: bool, prefix: str = "", infix: str = "", **config) -> None:
    state = {}
    for name, (down, up, magnitude) in made.items():
        key = name.removeprefix(prefix) + infix
        state[f"{key}.lora_A"], state[f"{key}.lora_B"] = down, up
        if dora:
            state[f"{key}.magnitude"] = magnitude
    about = {"adapter_type": "dora-rows" if dora else "lora", "rank": RANK, "alpha": 6, "include": ["layers"]}
    save_file(state, path, metadata={"lora_config": json.dumps({**about, **config})})


def same(model: nn.Module, expected: torch.Tensor) -> None:
    assert (run(model) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_loraw_has_its_alpha_from_the_lora_block(tmp_path, model, dora):
    made, path, before = factors(model), tmp_path / "tuned.ckpt", run(model)
    torch.save(loraw_state(model, made, dora), path)
    lora = LoraConfig(rank=RANK, alpha=6, multiplier=1.0 if dora else 0.5)
    expected = changed_by_hand(model, made, 2.0 if dora else 1.0, dora)
    assert (expected - before).abs().max() > 0.01
    assert read_adapter(path, lora).kind == "a LoRAW checkpoint"
    load_adapter(model, path, lora=lora)
    assert set(adapted_layers(model)) == set(PATHS)
    same(model, expected)
    merge_adapters(model)
    same(model, expected)


def test_loraw_without_a_lora_block_takes_alpha_for_the_rank_and_says_so(tmp_path, model, capsys):
    made, path = factors(model), tmp_path / "tuned.ckpt"
    torch.save(loraw_state(model, made, False), path)
    expected = changed_by_hand(model, made, 1.0, False)
    load_adapter(model, path)
    assert "does not say its alpha; taking alpha = rank" in capsys.readouterr().err
    same(model, expected)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize(
    ("prefix", "infix"),
    [("", ""), ("model.", ""), ("model.", ".parametrizations.weight.0")],
    ids=["whole", "network", "parametrized"],
)
def test_stable_audio_3_whatever_its_paths_are_relative_to(tmp_path, model, dora, prefix, infix):
    made, path = factors(model), tmp_path / "style.safetensors"
    write_stable_audio_3(path, made, dora, prefix, infix)
    expected = changed_by_hand(model, made, 2.0, dora)
    assert read_adapter(path).kind == "a Stable Audio 3 adapter"
    load_adapter(model, path)
    same(model, expected)
    merge_adapters(model)
    same(model, expected)


def test_a_rank_of_its_own_for_each_layer(tmp_path, model):
    made, path = factors(model), tmp_path / "mixed.safetensors"
    made[PATHS[0]] = (made[PATHS[0]][0][:1], made[PATHS[0]][1][:, :1].contiguous(), made[PATHS[0]][2])
    write_stable_audio_3(path, made, False)
    expected = changed_by_hand(model, made, 2.0, False)
    load_adapter(model, path)
    same(model, expected)


SCALES = [
    ({}, 2.0),
    ({"use_rslora": True}, 6 / RANK**0.5),
    ({"lora_alpha": 1, "alpha_pattern": {"to_qkv": 6, "2": 6}}, 2.0),
]


def test_peft_folders_of_others_with_their_kinds_of_scale(tmp_path, model):
    made = {path: values for path, values in factors(model).items() if path != PATHS[2]}
    weights = {}
    for path, (down, up, _) in made.items():
        weights[f"base_model.model.{path}.lora_A.weight"] = down
        weights[f"base_model.model.{path}.lora_B.weight"] = up
    save_file(weights, tmp_path / "adapter_model.safetensors")
    for extra, scale in SCALES:
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "target_modules": "all-linear", **extra}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        expected = changed_by_hand(model, made, scale, False)
        kept = {path: model.get_submodule(path).weight.detach().clone() for path in made}
        load_adapters(model, tmp_path)
        same(model, expected)
        merge_adapters(model)
        with torch.no_grad():
            for path, weight in kept.items():
                model.get_submodule(path).weight.copy_(weight)


def test_convolutions_under_weight_norm_are_refused_by_name(tmp_path, model):
    name = next(path for path, module in model.named_modules() if type(module).__name__ == "WNConv1d")
    state = {f"{name}.lora_A": torch.zeros(2, 4), f"{name}.lora_B": torch.zeros(4, 2)}
    save_file(state, tmp_path / "vae.safetensors", metadata={"lora_config": '{"adapter_type": "lora"}'})
    with pytest.raises(CheckpointError, match=f"weight-normalised convolution '{name}'"):
        load_adapter(model, tmp_path / "vae.safetensors")


def pair(name: str = PATHS[0]) -> dict[str, torch.Tensor]:
    return {f"{name}.lora_A": torch.zeros(2, 64), f"{name}.lora_B": torch.zeros(192, 2)}


BAD = {
    "unknown key": ({**pair(), "x.alpha": torch.ones(1)}, {}, r"'x\.alpha': not weights of an adapter"),
    "half a pair": ({f"{PATHS[0]}.lora_A": torch.zeros(2, 64)}, {}, "to_qkv' has no 'up' factor"),
    "no such layer": (pair("transformer.layers.99.to_q"), {}, r"adapts 'transformer\.layers\.99\.to_q'"),
    "another width": ({**pair(), f"{PATHS[0]}.lora_B": torch.zeros(7, 2)}, {}, r"change of shape \(7, 64\)"),
    "another type": (pair(), {"adapter_type": "bora"}, "adapter_type is 'bora', expected one of lora, dora"),
    "no magnitude": (pair(), {"adapter_type": "dora"}, "to_qkv' has no magnitude"),
    "columns": (
        {**pair(), f"{PATHS[0]}.magnitude": torch.ones(1, 64)},
        {"adapter_type": "dora"},
        "has 64 magnitudes, expected 192",
    ),
    "a model": ({"model.weight": torch.ones(1)}, {}, r"found 1 tensors, first 'model\.weight'"),
    "bare peft": ({"m.lora_A.weight": torch.ones(1, 1)}, {}, r"no adapter_config\.json beside them"),
    "our checkpoint": (
        {"diffusion.m.lora_A.default.weight": torch.ones(1, 1)},
        {},
        r"give the \.adapter folder beside it",
    ),
    "ranks": ({**pair(), f"{PATHS[0]}.lora_B": torch.zeros(192, 3)}, {}, "of different ranks, 2 and 3"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named(tmp_path, model, case):
    state, config, message = BAD[case]
    path = tmp_path / "bad.safetensors"
    save_file(state, path, metadata={"lora_config": json.dumps({"rank": 2, **config})})
    with pytest.raises(CheckpointError, match=message):
        load_adapter(model, path)
    assert not adapted_layers(model), "the model is as it was"


def test_files_that_are_no_adapters(tmp_path, model):
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(CheckpointError, match="not a readable adapter"):
        load_adapter(model, damaged)
    pickled = tmp_path / "objects.ckpt"
    torch.save({"a": model}, pickled)
    with pytest.raises(CheckpointError, match="holds Python objects besides tensors"):
        load_adapter(model, pickled)
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json"):
        load_adapter(model, tmp_path)
