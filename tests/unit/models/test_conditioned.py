"""The conditional diffusion model as a whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stable_audio_tools.errors import ConfigError, DataError
from stable_audio_tools.models.conditioned import ConditionedDiffusionModelWrapper
from stable_audio_tools.models.factory import create_model_from_config

METADATA = [
    {"prompt": "calm piano", "seconds_start": 0, "seconds_total": 30},
    {"prompt": "loud drums", "seconds_start": 5, "seconds_total": 60},
]


@pytest.fixture
def model(tiny_diffusion_config: dict[str, Any]) -> ConditionedDiffusionModelWrapper:
    """Fresh branches end in zeros, so conditioning would have no effect: scramble them."""
    model = create_model_from_config(tiny_diffusion_config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.model.parameters():
        parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def test_metadata_in_prediction_out(model: ConditionedDiffusionModelWrapper) -> None:
    cond = model.conditioner(METADATA, "cpu")
    inputs = model.get_conditioning_inputs(cond)
    assert inputs["cross_attn_cond"].shape == (2, 18, 32)
    assert inputs["cross_attn_mask"].shape == (2, 18)
    assert inputs["global_cond"].shape == (2, 64)
    x, t = torch.randn(2, 4, 64), torch.tensor([0.2, 0.8])
    output = model(x, t, cond)
    assert output.shape == x.shape
    torch.testing.assert_close(output, model.model(x, t, **inputs))
    other = model.conditioner(METADATA[::-1], "cpu")
    assert not torch.allclose(model(x, t, other), output, atol=1e-4)


def test_a_clip_does_not_depend_on_its_batch(model: ConditionedDiffusionModelWrapper) -> None:
    x, t = torch.randn(2, 4, 64), torch.tensor([0.2, 0.8])
    together = model(x, t, model.conditioner(METADATA, "cpu"))
    alone = model(x[1:], t[1:], model.conditioner(METADATA[1:], "cpu"))
    torch.testing.assert_close(alone[0], together[1], atol=1e-5, rtol=1e-4)


def test_negative_conditioning_has_its_own_names(model: ConditionedDiffusionModelWrapper) -> None:
    cond = model.conditioner(METADATA, "cpu")
    inputs = model.get_conditioning_inputs(cond)
    negative = model.get_conditioning_inputs(cond, negative=True)
    assert set(negative) == {
        "negative_cross_attn_cond",
        "negative_cross_attn_mask",
        "negative_global_cond",
        "negative_input_concat_cond",
    }
    torch.testing.assert_close(negative["negative_cross_attn_cond"], inputs["cross_attn_cond"])
    x, t = torch.randn(2, 4, 64), torch.tensor([0.2, 0.8])
    guided = model.model(x, t, **inputs, **negative, cfg_scale=5.0)
    plain = model.model(x, t, **inputs)
    torch.testing.assert_close(guided, plain, atol=1e-4, rtol=1e-3)  # away from itself is nowhere


def test_attributes_follow_the_config(tiny_diffusion_config: dict[str, Any]) -> None:
    diffusion = tiny_diffusion_config["model"]["diffusion"]
    diffusion["diffusion_objective"] = "rectified_flow"
    diffusion["distribution_shift_options"] = {"min_length": 16}
    diffusion["config"]["patch_size"] = 2
    model = create_model_from_config(tiny_diffusion_config)
    assert model.diffusion_objective == "rectified_flow"
    assert model.dist_shift.config.min_length == 16
    assert model.min_input_length == 256
    assert model.io_channels == 4
    assert model.sample_rate == 16000
    assert model.pretransform.downsampling_ratio == 128
    tiny_diffusion_config["model"]["min_input_length"] = 1024
    assert create_model_from_config(tiny_diffusion_config).min_input_length == 1024


def test_an_inpainting_model_takes_mask_and_masked_latents(tiny_diffusion_config: dict[str, Any]) -> None:
    tiny_diffusion_config["model_type"] = "diffusion_cond_inpaint"
    diffusion = tiny_diffusion_config["model"]["diffusion"]
    diffusion["input_concat_ids"] = ["inpaint_mask", "inpaint_masked_input"]
    diffusion["config"]["input_concat_dim"] = 5
    model = create_model_from_config(tiny_diffusion_config).eval()
    cond = model.conditioner(METADATA, "cpu")
    x, t = torch.randn(2, 4, 64), torch.tensor([0.2, 0.8])
    with pytest.raises(DataError, match=r"'inpaint_mask' is missing.*prompt, seconds_start, seconds_total"):
        model(x, t, cond)
    mask = torch.ones(2, 1, 64)
    cond.update(inpaint_mask=[mask], inpaint_masked_input=[x * mask])
    assert model.get_conditioning_inputs(cond)["input_concat_cond"].shape == (2, 5, 64)
    assert model(x, t, cond).shape == x.shape


def test_conditioning_without_a_mask_counts_everywhere(model: ConditionedDiffusionModelWrapper) -> None:
    cond: dict[str, Any] = dict(model.conditioner(METADATA, "cpu"))
    cond["prompt"] = [torch.randn(2, 7, 32), None]
    inputs = model.get_conditioning_inputs(cond)
    assert inputs["cross_attn_cond"].shape == (2, 9, 32)
    assert inputs["cross_attn_mask"].all()


def test_a_model_without_pretransform_works_on_audio(tiny_diffusion_config: dict[str, Any]) -> None:
    del tiny_diffusion_config["model"]["pretransform"]
    model = create_model_from_config(tiny_diffusion_config)
    assert model.pretransform is None
    assert model.min_input_length == 1


def test_the_config_is_checked_and_the_type_must_be_known(tiny_diffusion_config: dict[str, Any]) -> None:
    tiny_diffusion_config["model_type"] = "difusion_cond"
    with pytest.raises(ConfigError, match="did you mean 'diffusion_cond'"):
        create_model_from_config(tiny_diffusion_config)
