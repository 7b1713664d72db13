"""Ids and widths of a conditional model that cannot work together are refused when the config is read."""

from __future__ import annotations

from typing import Any

import pytest

from stable_audio_tools.errors import ConfigError
from stable_audio_tools.schema.reader import parse_model_config

INPAINT = ["inpaint_mask", "inpaint_masked_input"]


def change(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``config`` with values set at dotted paths within ``model.diffusion``."""
    for path, value in changes.items():
        *folders, key = path.split(".")
        block = config["model"]["diffusion"]
        for folder in folders:
            block = block[folder]
        block[key] = value
    return config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config.cond_token_dim": 0}, r"cross_attention_cond_ids are .* but config.cond_token_dim is 0"),
        ({"config.cond_token_dim": 64}, r"'prompt' makes 32 channels .*cond_token_dim is 64"),
        ({"config.global_cond_dim": 0}, r"global_cond_ids are .* but config.global_cond_dim is 0"),
        (
            {"config.global_cond_dim": 65},
            r"make 64 channels \(32 of 'seconds_start' .*global_cond_dim is 65",
        ),
        ({"prepend_cond_ids": ["prompt"]}, r"prepend_cond_ids are .* but config.prepend_cond_dim is 0"),
        ({"prepend_cond_ids": ["prompt"], "config.prepend_cond_dim": 8}, r"'prompt' makes 32 .* is 8"),
        (
            {"input_concat_ids": INPAINT, "config.input_concat_dim": 4},
            r"make 5 channels .*input_concat_dim is 4",
        ),
        ({"config.input_concat_dim": 5}, r"input_concat_dim is 5, but input_concat_ids is empty"),
        ({"local_add_cond_ids": INPAINT}, r"local_add_cond_ids are .*local_add_cond_dim is 0"),
        ({"config.local_add_cond_dim": 5}, r"local_add_cond_dim is 5, but local_add_cond_ids is empty"),
        (
            {"input_concat_ids": ["tensor", *INPAINT], "config.input_concat_dim": 5},
            r"make 5 channels .* and 1 more to come in as tensors, but .* is 5",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    tiny_diffusion_config: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_model_config(change(tiny_diffusion_config, changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"input_concat_ids": INPAINT, "config.input_concat_dim": 5},
        {"local_add_cond_ids": INPAINT, "config.local_add_cond_dim": 5},
        {"input_concat_ids": ["tensor", *INPAINT], "config.input_concat_dim": 7},
        {"global_cond_ids": ["seconds_start", "tensor"]},
        {"cross_attention_cond_ids": ["prompt", "tensor"]},
        {"global_cond_ids": []},
    ],
)
def test_ids_without_a_conditioner_come_in_as_tensors(
    tiny_diffusion_config: dict[str, Any], changes: dict[str, Any]
) -> None:
    parse_model_config(change(tiny_diffusion_config, changes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_shif": 1.0}, "did you mean 'base_shift'"),
        ({"type": "fluks"}, "distribution_shift_options.type: .*fluks"),
        ({"min_length": 5000}, "min_length 5000 must be below max_length 4096"),
        ({"type": "flux", "alpha_min": 0}, "distribution_shift_options.*alpha_min"),
    ],
)
@pytest.mark.parametrize("key", ["distribution_shift_options", "sampling_distribution_shift_options"])
def test_shifts_that_make_no_sense_are_refused(
    tiny_diffusion_config: dict[str, Any], key: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_model_config(change(tiny_diffusion_config, {key: options}))
