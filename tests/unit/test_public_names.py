"""The documented imports work, and importing the package stays cheap."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import stable_audio_tools

DOCUMENTED = [
    ("stable_audio_tools", "get_pretrained_model"),
    ("stable_audio_tools", "create_model_from_config"),
    ("stable_audio_tools", "create_model_from_config_path"),
    ("stable_audio_tools", "generate_diffusion_cond"),
    ("stable_audio_tools", "generate_diffusion_uncond"),
    ("stable_audio_tools.models.factory", "create_model_from_config"),
    ("stable_audio_tools.models.factory", "create_model_from_config_path"),
    ("stable_audio_tools.models.pretrained", "get_pretrained_model"),
    ("stable_audio_tools.models.utils", "load_ckpt_state_dict"),
    ("stable_audio_tools.models.utils", "copy_state_dict"),
    ("stable_audio_tools.models.utils", "remove_weight_norm_from_model"),
    ("stable_audio_tools.inference.generation", "generate_diffusion_cond"),
    ("stable_audio_tools.inference.generation", "generate_diffusion_cond_inpaint"),
    ("stable_audio_tools.inference.generation", "generate_diffusion_uncond"),
    ("stable_audio_tools.data.dataset", "create_dataloader_from_config"),
    ("stable_audio_tools.training", "create_training_wrapper_from_config"),
    ("stable_audio_tools.training.factory", "create_training_wrapper_from_config"),
]


@pytest.mark.parametrize(("module", "name"), DOCUMENTED)
def test_a_documented_name_can_be_imported(module: str, name: str) -> None:
    assert callable(getattr(import_module(module), name))


def test_a_name_from_the_root_is_the_one_of_its_module() -> None:
    for name in stable_audio_tools.__all__:
        assert name in dir(stable_audio_tools)
        found = getattr(stable_audio_tools, name)
        assert found is getattr(import_module(found.__module__), name)


@pytest.mark.parametrize("module", ["stable_audio_tools", "stable_audio_tools.training"])
def test_a_name_that_is_not_there_is_said(module: str) -> None:
    with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'pretrained_model'"):
        _ = import_module(module).pretrained_model


def test_importing_the_package_imports_no_library_that_is_slow() -> None:
    code = (
        "import sys, stable_audio_tools, stable_audio_tools.training;"
        "print([m for m in ('torch', 'transformers', 'pytorch_lightning') if m in sys.modules]);"
        "from stable_audio_tools import get_pretrained_model;"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "True"]
