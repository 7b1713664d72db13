"""``model_config_freeze_vae.json``: the VAE comes from its own file, computes in half and stays as it is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from stable_audio_tools.models.checkpoints import read_state_dict, save_checkpoint
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.unwrap import unwrap_checkpoint
from stable_audio_tools.schema.reader import read_model_config
from stable_audio_tools.training.diffusion import DiffusionCondTrainer
from stable_audio_tools.training.run import train

REPOSITORY = Path(__file__).parents[3]
VAE = "pretransform.model."


@pytest.fixture
def half_config(tiny_diffusion_config: dict[str, Any]) -> dict[str, Any]:
    config = copy.deepcopy(tiny_diffusion_config)
    config["model"]["pretransform"]["model_half"] = True
    return config


@pytest.fixture
def vae(tiny_diffusion_config: dict[str, Any], tmp_path: Path) -> Path:
    """The autoencoder of another model, in a file of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        state = create_model_from_config(tiny_diffusion_config).state_dict()
    own = {key.removeprefix(VAE): value for key, value in state.items() if key.startswith(VAE)}
    return save_checkpoint(tmp_path / "vae.ckpt", own)


def part(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def test_the_vae_is_that_of_its_checkpoint_before_and_after_training(
    make_settings, half_config, vae, tmp_path, monkeypatch
) -> None:
    seen: list[tuple[bool, bool, bool]] = []
    encode = DiffusionCondTrainer.encode

    def watched(self, audio, key):
        latents = encode(self, audio, key)
        parameters = list(self.diffusion.pretransform.parameters())
        trained = any(parameter.requires_grad or parameter.grad is not None for parameter in parameters)
        seen.append((self.diffusion.pretransform.training, trained, latents.requires_grad))
        return latents

    monkeypatch.setattr(DiffusionCondTrainer, "encode", watched)
    folder = train(make_settings(model=half_config, pretransform_ckpt_path=str(vae)))
    assert seen == [(False, False, False)] * 4, "evaluation mode, no gradients, in every step"
    expected = read_state_dict(vae)
    checkpoint = folder / "checkpoints" / "step=00000004.ckpt"
    stored = torch.load(checkpoint, weights_only=True)
    assert not any("pretransform" in key for key in stored["state_dict"] if key.startswith("diffusion_ema"))
    for state, prefix in (
        (stored["state_dict"], f"diffusion.{VAE}"),
        (read_state_dict(unwrap_checkpoint(checkpoint, None, tmp_path / "out")), VAE),
    ):
        found = part(state, prefix)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        assert all(found[key].dtype == torch.float32 for key in found), "nothing is lost on the way"


def test_the_vae_computes_in_half_on_a_gpu_and_answers_in_float32(half_config) -> None:
    # no weights are needed to see which types are computed in; the device only must not be the CPU
    with torch.device("meta"):
        pretransform = create_model_from_config(half_config).pretransform
        audio = torch.empty(1, 2, half_config["sample_size"])
    seen = []
    for module in (pretransform.model.encoder, pretransform.model.decoder):
        module.register_forward_hook(lambda _, args, out: seen.append((args[0].dtype, out.dtype)))
    latents = pretransform.encode(audio)
    assert pretransform.decode(latents).dtype == latents.dtype == torch.float32
    assert seen == [(torch.float16, torch.float16)] * 2


def test_the_shipped_config_freezes_its_vae_in_half() -> None:
    config = read_model_config(REPOSITORY / "model_config_freeze_vae.json")
    pretransform = config.model.pretransform
    assert (pretransform.model_half, pretransform.enable_grad) == (True, False)
