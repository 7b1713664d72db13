from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stable_audio_tools.errors import ConfigError
from stable_audio_tools.schema.reader import (
    json_schema,
    parse_dataset_config,
    parse_model_config,
    read_json,
    read_model_config,
)

ROOT = Path(__file__).parents[3]
STABLE_AUDIO_OPEN = ROOT / "model_config.json"


@pytest.fixture
def config() -> dict[str, Any]:
    return json.loads(STABLE_AUDIO_OPEN.read_text())


def test_the_stable_audio_open_config_reads_whole(config: dict[str, Any]) -> None:
    parsed = parse_model_config(config)
    assert parsed.model_type == "diffusion_cond"
    assert parsed.model.diffusion.config.depth == 24
    assert parsed.model.pretransform.config.downsampling_ratio == 2048
    assert 47 < parsed.duration_seconds < 48


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["model"]["diffusion"]["config"].update(embed_dmi=8),
            "m.json: model.diffusion.config: unknown key 'embed_dmi'; did you mean 'embed_dim'?",
        ),
        (
            lambda c: c["model"]["conditioning"]["configs"][1].update(type="numbr"),
            "m.json: model.conditioning.configs[1].type: unknown type 'numbr'; did you mean 'number'? "
            "known: t5, number, int, list",
        ),
        (
            lambda c: c["model"]["conditioning"].pop("cond_dim"),
            "m.json: model.conditioning.cond_dim: missing",
        ),
        (lambda c: c.pop("model_type"), "m.json: model_type: missing"),
        (lambda c: c.update(sample_rate="fast"), "m.json: sample_rate: Input should be a valid integer"),
        (
            lambda c: c["model"].update(io_channels=32),
            "m.json: model: io_channels is 32, but the pretransform makes 64 channels",
        ),
        (
            lambda c: c["model"]["pretransform"]["config"].update(downsampling_ratio=1024),
            "m.json: model.pretransform.config: encoder strides multiply to 2048,"
            " but downsampling_ratio is 1024",
        ),
        (
            lambda c: c["model"]["diffusion"]["config"].update(num_heads=7),
            "m.json: model.diffusion.config: embed_dim 1536 is not a multiple of num_heads 7",
        ),
    ],
)
def test_a_mistake_names_its_path_and_what_would_be_right(
    config: dict[str, Any], change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    broken = copy.deepcopy(config)
    change(broken)
    with pytest.raises(ConfigError) as error:
        parse_model_config(broken, source="m.json")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_retired_key_warns_only_if_it_was_on(config: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config["training"]["log_loss_info"] = False
        parse_model_config(config)
    config["training"]["log_loss_info"] = True
    with pytest.warns(UserWarning, match="log_loss_info"):
        parse_model_config(config)


def test_a_file_that_is_absent_or_not_json_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_model_config(tmp_path / "absent.json")
    broken = tmp_path / "broken.json"
    broken.write_text('{"a": 1,\n "b" 2}')
    with pytest.raises(ConfigError, match="line 2, column 6"):
        read_json(broken)
    broken.write_text("[1]")
    with pytest.raises(ConfigError, match="expected a JSON object, found list"):
        read_model_config(broken)


def test_configs_are_frozen(config: dict[str, Any]) -> None:
    parsed = parse_model_config(config)
    with pytest.raises(ValueError, match="frozen"):
        parsed.sample_rate = 1


def test_a_dataset_typo_names_the_nearest_key() -> None:
    entry = {"id": "a", "path": "b", "custom_metadata_modul": "c.py"}
    with pytest.raises(
        ConfigError, match=r"datasets\[0\]: unknown key .* did you mean 'custom_metadata_module'"
    ):
        parse_dataset_config({"dataset_type": "audio_dir", "datasets": [entry]})
    with pytest.raises(ConfigError, match="ids must differ"):
        parse_dataset_config({"dataset_type": "audio_dir", "datasets": [{"id": "a", "path": "b"}] * 2})


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_the_json_schema_lists_the_keys(kind: str) -> None:
    schema = json_schema(kind)
    assert schema["$schema"].startswith("https://json-schema.org/")
    text = json.dumps(schema)
    assert ("embed_dim" in text) == (kind == "model")
    assert ("exclude_paths_file" in text) == (kind == "dataset")
