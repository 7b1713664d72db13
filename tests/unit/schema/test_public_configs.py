"""Every type that the public configs know is read, strictly, or refused with the reason why not."""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stable_audio_tools.data.dataset import create_dataloader_from_config
from stable_audio_tools.data.index import TrackIndex
from stable_audio_tools.errors import ConfigError, DataError
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.schema.reader import parse_dataset_config, parse_model_config

PARITY = sorted((Path(__file__).parents[3] / "../shared/parity").glob("*/case.json"))

OOBLECK = {"channels": 4, "c_mults": [1, 2], "strides": [2, 4], "latent_dim": 6}
DAU1D = {"io_channels": 6, "depth": 3, "n_attn_layers": 1, "channels": [8, 8, 16], "strides": [2, 2]}
DIT = {"io_channels": 6, "embed_dim": 16, "depth": 1, "num_heads": 2}
DEMO = {"demo_every": 7, "demo_steps": 3}

# Encoder config, decoder config: both fold 8 samples into 6 channels.
CODECS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "oobleck": (OOBLECK, OOBLECK),
    "dac": (
        {"in_channels": 2, "latent_dim": 6, "d_model": 4, "strides": [2, 4]},
        {"out_channels": 2, "latent_dim": 6, "channels": 16, "rates": [4, 2]},
    ),
    "seanet": (
        {"channels": 2, "dimension": 6, "n_filters": 4, "ratios": [2, 4], "norm": "none", "lstm": 0},
        {"channels": 2, "dimension": 6, "n_filters": 4, "ratios": [4, 2], "dilation_base": 3},
    ),
    "taae": (OOBLECK | {"transformer_depths": [1, 1]}, OOBLECK | {"transformer_depths": [1, 1]}),
}
BOTTLENECKS: dict[str, dict[str, Any]] = {
    "tanh": {"scale": 2.0},
    "l2_norm": {},
    "wasserstein": {"noise_augment_dim": 3},
    "softnorm": {"dim": 6, "auto_scale": True},
    "rvq": {"num_quantizers": 2, "codebook_size": 16, "dim": 6, "decay": 0.9},
    "dac_rvq": {"input_dim": 6, "n_codebooks": 2, "codebook_dim": 3, "quantizer_dropout": 0.5},
    "fsq": {"levels": [5, 5], "num_codebooks": 3},
    "dithered_fsq": {"dim": 2, "levels": 5, "num_codebooks": 3, "noise_dropout": 0.1},
}
PRETRANSFORMS: dict[str, dict[str, Any]] = {
    "wavelet": {"channels": 2, "levels": 2, "wavelet": "bior4.4"},
    "patched": {"channels": 2, "patch_size": 4},
    "dac_pretrained": {"model_bitrate": "16kbps", "model_name": "somewhere/dac", "quantize_on_decode": True},
    "audiocraft_pretrained": {"model_type": "somewhere/codec", "scale": 2.0},
}
CONDITIONERS: dict[str, dict[str, Any]] = {
    "t5gemma": {"model_name": "some/encoder", "max_length": 9},
    "clap_text": {"clap_ckpt_path": "clap.pt", "use_text_features": True, "feature_layer_ix": -2},
    "clap_audio": {"clap_ckpt_path": "clap.pt", "audio_model_type": "HTSAT-tiny", "enable_fusion": False},
    "lut": {"tokenizer_name": "some/words", "use_abs_pos_emb": True},
    "pretransform": {"sample_rate": 8000, "use_model_pretransform": True},
}


def top(model_type: str, model: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model_type": model_type, "sample_size": 64, "sample_rate": 8000, "model": model, **more}


def autoencoder(codec: str = "oobleck", bottleneck: str | None = None, **more: Any) -> dict[str, Any]:
    encoder, decoder = CODECS[codec]
    model = {
        "encoder": {"type": codec, "config": encoder, "requires_grad": False},
        "decoder": {"type": codec, "config": decoder},
        "latent_dim": 6,
        "downsampling_ratio": 8,
        "io_channels": 2,
        **more,
    }
    if bottleneck is not None:
        model["bottleneck"] = {"type": bottleneck, "config": BOTTLENECKS[bottleneck]}
        noise = BOTTLENECKS[bottleneck].get("noise_augment_dim", 0)
        model["decoder"]["config"] = decoder | ({"latent_dim": 6 + noise} if noise else {})
    return json.loads(json.dumps(model))  # nothing shared between encoder and decoder


def conditional(diffusion: str, config: dict[str, Any], *conditioners: str) -> dict[str, Any]:
    configs = [{"id": name, "type": name, "config": CONDITIONERS[name]} for name in conditioners]
    tokens = [name for name in conditioners if name != "pretransform"]
    beside = [name for name in conditioners if name == "pretransform"]
    widths = {"cond_token_dim": 16 * bool(tokens), "input_concat_dim": 16 * bool(beside)}
    ids = {"cross_attention_cond_ids": tokens, "input_concat_ids": beside} if conditioners else {}
    shared = {"pretransform": {"type": "patched", "config": {"channels": 2, "patch_size": 3}}}
    model = {
        **(shared if beside else {}),
        "conditioning": {"configs": configs, "cond_dim": 16},
        "diffusion": {"type": diffusion, "config": config | (widths if conditioners else {}), **ids},
        "io_channels": 6,
    }
    return top("diffusion_cond", copy.deepcopy(model))


def language_model(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    codec = {"type": "autoencoder", "config": autoencoder("dac", "dac_rvq")}
    lm = {"type": kind, "codebook_pattern": "delay", "prepend_cond_ids": [], "config": config}
    training = {"use_ema": True, "demo": {"demo_every": 7, "num_demos": 2, "demo_cfg_scales": [1]}}
    return top("lm", {"pretransform": codec, "lm": lm}, training=training)


def unconditional(kind: str, config: dict[str, Any], **more: Any) -> dict[str, Any]:
    return top("diffusion_uncond", {"type": kind, "config": copy.deepcopy(config), **more})


LOSSES = {
    "discriminator": {
        "type": "encodec",
        "config": {"filters": 4, "n_ffts": [64, 32], "hop_lengths": [16, 8], "win_lengths": [64, 32]},
        "weights": {"adversarial": 0.2, "feature_matching": 3.0},
    },
    "spectral": {
        "type": "mrstft",
        "config": {"fft_sizes": [64], "hop_sizes": [16], "win_lengths": [64], "perceptual_weighting": True},
        "weights": {"mrstft": 2.0},
    },
    "time": {"type": "l1", "weights": {"l1": 0.3}},
    "bottleneck": {"type": "kl", "weights": {"kl": 1e-5}},
}
OPTIMIZERS = {
    "autoencoder": {"optimizer": {"type": "AdamW", "config": {"lr": 1e-4}}},
    "discriminator": {
        "optimizer": {"type": "AdamW", "config": {"lr": 1e-4}},
        "scheduler": {"type": "ExponentialLR", "config": {"gamma": 0.9}},
    },
}
TRAINED = {
    "learning_rate": 1e-4,
    "warmup_steps": 5,
    "use_ema": True,
    "optimizer_configs": OPTIMIZERS,
    "loss_configs": LOSSES,
    "demo": {"demo_every": 7},
}

MODELS: dict[str, dict[str, Any]] = {
    **{f"codec {name}": top("autoencoder", autoencoder(name)) for name in CODECS},
    **{f"bottleneck {name}": top("autoencoder", autoencoder("dac", name)) for name in BOTTLENECKS},
    **{
        f"pretransform {name}": unconditional(
            "DAU1d", DAU1D | {"io_channels": 8}, pretransform={"type": name, "config": config}
        )
        for name, config in PRETRANSFORMS.items()
    },
    **{f"conditioner {name}": conditional("dit", DIT, name) for name in CONDITIONERS},
    "trained autoencoder": top("autoencoder", autoencoder("dac"), training=TRAINED),
    "autoencoder on patches": top(
        "autoencoder",
        autoencoder(
            pretransform={"type": "patched", "config": PRETRANSFORMS["patched"]}, downsampling_ratio=32
        ),
    ),
    "conditional dit": conditional("dit", DIT),
    "conditional DAU1d": conditional("DAU1d", DAU1D),
    "unconditional default": top(
        "diffusion_uncond",
        {"type": "DAU1d", "config": {"n_attn_layers": 5}},
        training={"learning_rate": 1e-4, "demo": DEMO},
    ),
    "unconditional dit": unconditional("dit", DIT),
    "latent unconditional": unconditional(
        "DAU1d", DAU1D, pretransform={"type": "autoencoder", "scale": 0.1, "config": autoencoder("seanet")}
    ),
    "diffusion autoencoder": top(
        "diffusion_autoencoder",
        {
            **autoencoder("seanet", "tanh"),
            "diffusion": {"type": "DAU1d", "config": DAU1D | {"io_channels": 2, "cond_dim": 2}},
        },
    ),
    "lm transformer": language_model("continuous_transformer", {"embed_dim": 16, "depth": 1}),
}
DATASETS: dict[str, dict[str, Any]] = {
    "pre_encoded": {
        "datasets": [{"id": "a", "path": "latents", "latent_crop_length": 5}],
        "random_crop": True,
    },
    "wds": {"datasets": [{"id": "a", "path": "shards"}], "epoch_steps": 9},
    "s3": {"datasets": [{"id": "a", "s3_path": "s3://bucket/shards", "profile": "me"}], "random_crop": True},
}


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_reads_and_reads_again_from_its_dump(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parsed = parse_model_config(MODELS[name])
        assert parse_model_config(json.loads(parsed.model_dump_json())) == parsed


FREE = re.compile(r"optimizer_configs\.|bottleneck\.weights|^model\.lm\.")


def _objects(value: Any, path: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Every object in a JSON value with its path, but for the free arguments of optimizers and libraries."""
    if isinstance(value, list):
        return [found for row, item in enumerate(value) for found in _objects(item, f"{path}[{row}]")]
    if not isinstance(value, dict) or FREE.search(path):
        return []
    inner = [found for key, item in value.items() for found in _objects(item, f"{path}.{key}".lstrip("."))]
    return inner if path.endswith("optimizer_configs") else [(path, value), *inner]


@pytest.mark.parametrize("name", MODELS)
def test_a_typo_at_any_depth_names_its_path_and_the_nearest_key(name: str) -> None:
    places = [path for path, value in _objects(MODELS[name]) if value]
    for place in places:
        broken = copy.deepcopy(MODELS[name])
        target = dict(_objects(broken))[place]
        key = max((key for key in target if key != "type"), key=len)
        target[f"{key}x"] = target.pop(key)
        with pytest.raises(ConfigError) as error:
            parse_model_config(broken, source="m.json")
        expected = f"m.json: {place or 'top level'}: unknown key '{key}x'; did you mean '{key}'?"
        assert str(error.value).startswith(expected)


@pytest.mark.parametrize("kind", DATASETS)
def test_every_kind_of_dataset_reads_strictly_and_is_looked_for_where_it_should_be(kind: str) -> None:
    value = {"dataset_type": kind, **DATASETS[kind]}
    config = parse_dataset_config(value)
    refusal = f"^dataset_type: '{kind}' can be read but not built by this version; it builds: audio_dir"
    with pytest.raises(ConfigError, match=f"{refusal}$"):
        TrackIndex.from_config(config)
    absent = {"s3": "profile \\(me\\) could not be found|need boto3"}.get(kind, "does not exist")
    with pytest.raises(DataError, match=absent):
        create_dataloader_from_config(value, 1, 64, 8000)
    broken = copy.deepcopy(value)
    broken["datasets"][0]["idd"] = broken["datasets"][0].pop("id")
    with pytest.raises(ConfigError, match=r"datasets\[0\]: unknown key 'idd'; did you mean 'id'\?"):
        parse_dataset_config(broken)


def test_shards_are_in_one_place() -> None:
    with pytest.raises(ConfigError, match=r"datasets\[0\]: expected either path or s3_path"):
        parse_dataset_config({"dataset_type": "wds", "datasets": [{"id": "a"}]})


def test_an_older_dataset_names_its_metadata_module_once() -> None:
    folders = [{"id": "a", "path": "x"}, {"id": "b", "path": "y", "custom_metadata_module": "own.py"}]
    value = {"dataset_type": "audio_dir", "datasets": folders, "custom_metadata_module": "all.py"}
    config = parse_dataset_config(value)
    assert [entry.custom_metadata_module for entry in config.datasets] == ["all.py", "own.py"]
    assert "custom_metadata_module" in value
    assert len(folders[0]) == 2


def test_demo_keys_of_older_configs_are_ignored_aloud() -> None:
    value = unconditional("DAU1d", DAU1D) | {"training": {"learning_rate": 1e-4, "demo_every": 9}}
    with pytest.warns(UserWarning, match="'demo_every' is ignored: it belongs in the 'demo' block"):
        parse_model_config(value)


def _conditioned_on(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    value = conditional("dit", DIT)
    value["model"]["conditioning"]["configs"] = [{"id": "a", "type": kind, "config": config}]
    return value


def test_a_conditioner_can_have_a_width_of_its_own() -> None:
    model = create_model_from_config(_conditioned_on("number", {"output_dim": 12}))
    embedding, _ = model.conditioner([{"a": 0.5}], "cpu")["a"]
    assert embedding.shape == (1, 1, 12)


def test_soft_clip_stands_in_the_decoder_of_public_configs() -> None:
    decoder = {"type": "oobleck", "config": OOBLECK | {"final_tanh": False}, "soft_clip": True}
    model = create_model_from_config(top("autoencoder", autoencoder(decoder=decoder)))
    assert model.decode(1e6 * torch.ones(1, 6, 4)).abs().max() <= 1


@pytest.mark.parametrize(
    ("config", "where"),
    [
        (unconditional("adp_uncond_1d", {}), "model.type: 'adp_uncond_1d'"),
        (conditional("adp_cfg_1d", {}), "model.diffusion.type: 'adp_cfg_1d'"),
        (conditional("dit", DIT | {"transformer_type": "x-transformers"}), "model.diffusion.config"),
        (_conditioned_on("phoneme", {}), "model.conditioning.configs[0].type: 'phoneme'"),
        (language_model("mamba", {}), "model.lm.type: 'mamba'"),
        (
            unconditional("DAU1d", DAU1D, pretransform={"type": "pqmf"}),
            "model.pretransform.type: 'pqmf'",
        ),
    ],
)
def test_what_is_left_out_is_refused_with_its_reason_in_one_line(config: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_model_config(config, source="m.json")
    assert str(error.value).startswith(f"m.json: {where}")
    assert "is left out on purpose: " in str(error.value)
    assert "; known: " in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("codec dac", lambda m: m["decoder"]["config"].update(rates=[2]), "decoder strides multiply to 2"),
        (
            "codec seanet",
            lambda m: m["encoder"]["config"].update(dimension=5),
            "latent_dim must be 6",
        ),
        ("latent unconditional", lambda m: m["config"].update(io_channels=5), "the pretransform makes 6"),
        ("conditional DAU1d", lambda m: m.update(io_channels=5), "diffusion.config.io_channels is 6"),
    ],
)
def test_parts_that_do_not_fit_are_refused_where_they_are_read(
    name: str, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    broken = copy.deepcopy(MODELS[name])
    change(broken["model"])
    with pytest.raises(ConfigError, match=message):
        parse_model_config(broken)


@pytest.mark.skipif(not PARITY, reason="the parity cases are not beside this checkout")
@pytest.mark.parametrize("case", PARITY, ids=lambda path: path.parent.name)
def test_the_parity_configs_read(case: Path) -> None:
    parse_model_config(json.loads(case.read_text())["config"])
