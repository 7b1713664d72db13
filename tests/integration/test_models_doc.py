"""``docs/models.md`` names every type and option of a model config, and all of its JSON can be built."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import pytest
import torch
from pydantic import TypeAdapter

from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.schema import autoencoder, bottlenecks, conditioning, encoders
from stable_audio_tools.schema.base import Config
from stable_audio_tools.schema.left_out import LEFT_OUT
from stable_audio_tools.schema.model import ModelConfig

PAGE = Path(__file__).parents[2] / "docs/models.md"
JSON_BLOCK = re.compile(r"(?:<!-- block: (?P<kind>\w+) -->\s*\n)?^```json\n(?P<json>.*?)^```$", re.M | re.S)
FENCE = re.compile(r"^```.*?^```$", re.M | re.S)
WORD = re.compile(r"[\w.+-]*\w")
WIDTH = 8
Json = dict[str, Any]


class Block(NamedTuple):
    """A JSON example of the page: what it is a block of, or ``model`` for a whole config, and where it is."""

    kind: str
    value: Json
    line: int


def blocks() -> Iterator[Block]:
    text = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    for match in JSON_BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("json")) + 1
        yield Block(match["kind"] or "model", json.loads(match["json"]), line)


def whole(kind: str, model: Json, sample_rate: int | None = None) -> Json:
    top = {"model_type": kind, "sample_size": 65536, "sample_rate": sample_rate or 44100}
    return {**top, "model": model}


def oobleck(latents: int, ratio: int, channels: int = 2) -> Json:
    sides = {"in_channels": channels, "out_channels": channels}
    shape = {"channels": 4, "c_mults": [1], "strides": [ratio], "latent_dim": latents}
    return {"type": "oobleck", "config": {**sides, **shape}}


def coder(encoder: Json, decoder: Json, latents: int, ratio: int, bottleneck: Json | None = None) -> Json:
    sizes = {"latent_dim": latents, "downsampling_ratio": ratio, "io_channels": 2}
    return {"encoder": encoder, "decoder": decoder, "bottleneck": bottleneck, **sizes}


def in_autoencoder(block: Json, side: str) -> Json:
    """An encoder or a decoder, with a plain one on the other side."""
    union = encoders.EncoderConfig if side == "encoder" else encoders.DecoderConfig
    options = TypeAdapter(union).validate_python(block).config
    latents, ratio = options.latent_dim, options.ratio
    parts = {"encoder": oobleck(latents, ratio), "decoder": oobleck(latents, ratio)}
    return whole("autoencoder", coder(**{**parts, side: block}, latents=latents, ratio=ratio))


def with_bottleneck(block: Json) -> Json:
    shape = TypeAdapter(bottlenecks.BottleneckConfig).validate_python(block).shape
    latents = shape.latent_channels or WIDTH
    encoder = oobleck(latents * shape.encoder_factor, 4)
    decoder = oobleck(latents + shape.noise_channels, 4)
    return whole("autoencoder", coder(encoder, decoder, latents, 4, block))


def behind_pretransform(block: Json) -> Json:
    options = TypeAdapter(autoencoder.PretransformConfig).validate_python(block)
    network = {"io_channels": options.channels or WIDTH, "embed_dim": 64, "depth": 1, "num_heads": 2}
    model = {"type": "dit", "config": network, "pretransform": block}
    return whole("diffusion_uncond", model, options.sample_rate)


def with_conditioner(block: Json) -> Json:
    options = TypeAdapter(conditioning.ConditionerConfig).validate_python(block)
    width = options.config.output_dim or 64
    network = {"io_channels": WIDTH, "embed_dim": 64, "depth": 1, "num_heads": 2, "cond_token_dim": width}
    model = {
        "pretransform": {
            "type": "autoencoder",
            "config": coder(oobleck(WIDTH, 4), oobleck(WIDTH, 4), WIDTH, 4),
        },
        "conditioning": {"configs": [block], "cond_dim": 64},
        "diffusion": {"type": "dit", "cross_attention_cond_ids": [options.id], "config": network},
        "io_channels": WIDTH,
    }
    return whole("diffusion_cond", model)


def with_network(block: Json) -> Json:
    """Its conditioning arrives as tensors, whose widths no config tells."""
    model = {
        "conditioning": {"cond_dim": 64},
        "diffusion": block,
        "io_channels": block["config"]["io_channels"],
    }
    return whole("diffusion_cond", model)


def with_language_model(block: Json) -> Json:
    quantizer = {"type": "dac_rvq", "config": {"input_dim": WIDTH, "n_codebooks": 4, "codebook_size": 16}}
    codec = coder(oobleck(WIDTH, 4), oobleck(WIDTH, 4), WIDTH, 4, quantizer)
    return whole("lm", {"pretransform": {"type": "autoencoder", "config": codec}, "lm": block})


WHOLE: dict[str, Callable[[Json], Json]] = {
    "model": lambda block: block,
    "encoder": lambda block: in_autoencoder(block, "encoder"),
    "decoder": lambda block: in_autoencoder(block, "decoder"),
    "bottleneck": with_bottleneck,
    "pretransform": behind_pretransform,
    "conditioner": with_conditioner,
    "diffusion": with_network,
    "lm": with_language_model,
}


def test_the_page_has_examples_of_every_kind() -> None:
    assert {block.kind for block in blocks()} >= set(WHOLE) - {"encoder", "decoder"}
    assert {block.value["model_type"] for block in blocks() if block.kind == "model"} >= set(model_types())


@pytest.mark.parametrize("block", list(blocks()), ids=lambda block: f"line-{block.line}-{block.kind}")
def test_every_example_builds(block: Block) -> None:
    with torch.device("meta"):
        model = create_model_from_config(WHOLE[block.kind](block.value))
    assert all(tensor.is_meta for tensor in model.state_dict().values())


def model_types() -> list[str]:
    return [name for kind in get_args(get_args(ModelConfig)[0]) for name in literals(kind, "model_type")]


def literals(kind: type[Config], key: str) -> tuple[str, ...]:
    annotation = kind.model_fields[key].annotation
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def config_classes(annotation: Any, seen: set[type[Config]]) -> set[type[Config]]:
    """Every class of the schema that a model config can hold, in whatever depth."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        if annotation not in seen:
            seen.add(annotation)
            for field in annotation.model_fields.values():
                config_classes(field.annotation, seen)
    elif get_origin(annotation) in (Annotated, Union, types.UnionType, list, dict, tuple):
        for part in get_args(annotation):
            config_classes(part, seen)
    return seen


CLASSES = sorted(config_classes(ModelConfig, set()), key=lambda kind: kind.__name__)


def told() -> set[str]:
    """Every word in ``code`` on the page, outside of its examples."""
    spans = re.findall(r"`([^`\n]+)`", FENCE.sub("", PAGE.read_text(encoding="utf-8")))
    words = {word for span in spans for word in WORD.findall(span)}
    return words | {part for word in words for part in word.split(".")}


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_option_is_told(kind: type[Config]) -> None:
    assert sorted({field.alias or name for name, field in kind.model_fields.items()} - told()) == []


def test_every_type_is_told() -> None:
    names = {name for kind in CLASSES if "type" in kind.model_fields for name in literals(kind, "type")}
    assert {"oobleck", "vae", "wavelet", "clap_audio", "DAU1d", "continuous_transformer"} <= names
    assert sorted((names | set(model_types())) - told()) == []


def test_what_is_left_out_is_told() -> None:
    assert sorted(set(LEFT_OUT) - told()) == []
