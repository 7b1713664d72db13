"""A LoRA-tuned model is differentiated in its adapters."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from stable_audio_tools.attribution.features import extract as extract_module
from stable_audio_tools.attribution.features.extract import ADAPTER_REGEX, NETWORK_PREFIX, gradient_features
from stable_audio_tools.attribution.features.store import FeatureStore
from stable_audio_tools.attribution.gradients.rows import HookedGradients
from stable_audio_tools.attribution.run import extract
from stable_audio_tools.attribution.settings import FeatureSettings
from stable_audio_tools.models.adapters.lora import adapted_layers, apply_lora
from stable_audio_tools.models.adapters.peft_folder import save_adapter
from stable_audio_tools.models.files import ModelFiles
from stable_audio_tools.schema.training import LoraConfig

WHOLE = FeatureSettings(K=2, proj_rank=0, max_examples=4)


@pytest.fixture(params=["lora", "dora"])
def tuned(request, tiny_files, tmp_path) -> ModelFiles:
    model = tiny_files.load("cpu")
    apply_lora(model, LoraConfig(component_whitelist=["self_attn"], rank=2, alpha=2, type=request.param))
    generator = torch.Generator().manual_seed(4)
    for layer in adapted_layers(model).values():
        for weights in layer.lora_B.parameters():
            torch.nn.init.normal_(weights, std=0.1, generator=generator)
    return replace(tiny_files, lora_ckpt_path=save_adapter(model, tmp_path / "adapter"))


def test_hooks_on_adapters_give_the_gradients_of_autograd(tuned, train_config, tmp_path):
    names = [layer.name for layer in gradient_features(tuned.load("cpu"), WHOLE).layers]
    assert len(names) == 2 * 2 * 2  # two blocks, to_qkv and to_out, A and B
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
    kernels = []
    for settings in (WHOLE, replace(WHOLE, mode="dense", proj_dim=0)):
        store = extract(
            tuned,
            tmp_path / settings.mode,
            settings,
            dataset_config=train_config,
            num_workers=0,
            device="cpu",
        )
        rows = store.features()
        kernels.append(rows @ rows.T)
    torch.testing.assert_close(kernels[0], kernels[1], rtol=1e-4, atol=1e-9)


def test_the_adapter_is_part_of_the_stamp(tuned, tiny_files, train_config, tmp_path):
    stamps = []
    for name, files in (("tuned", tuned), ("base", tiny_files)):
        extract(files, tmp_path / name, WHOLE, dataset_config=train_config, num_workers=0, device="cpu")
        stamps.append(FeatureStore.open(tmp_path / name).meta["stamp"])
    assert stamps[0]["checkpoint"] == stamps[1]["checkpoint"]
    assert stamps[0]["adapter"] != stamps[1]["adapter"] is None
    assert json.dumps(stamps[0])


def test_taps_on_adapters_give_the_rows_of_hooks(tuned, train_config, tmp_path, monkeypatch, request, capsys):
    """Compiled blocks hold the adapters' own modules; DoRA calls these for no sample, and stays as it is."""
    rows = []
    for name in ("hooked", "compiled"):
        if name == "compiled":
            monkeypatch.setattr(extract_module, "gradient_features", compiled_gradients)
        store = extract(
            tuned,
            tmp_path / name,
            replace(WHOLE, proj_rank=3),
            dataset_config=train_config,
            batch_size=4,
            num_workers=0,
            device="cpu",
            compile=name == "compiled",
        )
        rows.append(store.features())
    torch.testing.assert_close(rows[1], rows[0], rtol=1e-4, atol=1e-5 * float(rows[0].abs().max()))
    is_dora = request.node.callspec.params["tuned"] == "dora"
    assert ("blocks are not compiled" in capsys.readouterr().err) == is_dora


def compiled_gradients(model, settings, compiled_batch):
    features = HookedGradients(
        model.model,
        rank=settings.proj_rank,
        measurements=2,
        seed=settings.seed,
        param_regex=ADAPTER_REGEX,
        prefix=NETWORK_PREFIX,
        compiled_batch=compiled_batch,
        backend="aot_eager",
    )
    assert len(features._blocks.layers) == len(features.layers)
    return features
