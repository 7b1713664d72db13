"""JSON in, frozen config objects out, or one line that says where the mistake is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from stable_audio_tools.errors import ConfigError
from stable_audio_tools.schema.base import nearest
from stable_audio_tools.schema.conditioning import ConditioningConfig
from stable_audio_tools.schema.dataset import DatasetConfig
from stable_audio_tools.schema.left_out import LEFT_OUT
from stable_audio_tools.schema.model import ModelConfig

T = TypeVar("T")

_MODEL: TypeAdapter[ModelConfig] = TypeAdapter(ModelConfig)
_DATASET: TypeAdapter[DatasetConfig] = TypeAdapter(DatasetConfig)
_CONDITIONING: TypeAdapter[ConditioningConfig] = TypeAdapter(ConditioningConfig)
_PRETRAINED_KEYS = (
    "t5_model_name",
    "model_name",
    "model_type",  # of audiocraft_pretrained, a name or a folder
    "clap_ckpt_path",
    "tokenizer_name",
    "pretransform_ckpt_path",
)


def read_json(path: str | Path) -> Any:
    """The value in a JSON file.

    Raises:
        ConfigError: the file is missing, unreadable, or not JSON (with line and column).
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path}: not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error


def read_model_json(path: str | Path) -> Any:
    """The JSON value of the model config at ``path``, with the pretrained models that it names in place.

    A ``t5_model_name`` (or other name of one) that starts with a dot, such as ``../t5``, is relative to the
    config's own folder, so that a model and its text encoder can be moved together; here it becomes an
    absolute path.
    """
    return _with_absolute_encoders(read_json(path), Path(path).parent)


def _with_absolute_encoders(value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return [_with_absolute_encoders(item, folder) for item in value]
    if not isinstance(value, dict):
        return value
    result = {key: _with_absolute_encoders(item, folder) for key, item in value.items()}
    for key in _PRETRAINED_KEYS:
        place = result.get(key)
        if isinstance(place, str) and place.startswith("."):
            result[key] = str((folder / place).resolve())
    return result


def read_model_config(path: str | Path) -> ModelConfig:
    """The model config in the JSON file at ``path``; see :func:`read_model_json`."""
    return parse_model_config(read_model_json(path), source=str(path))


def read_dataset_config(path: str | Path) -> DatasetConfig:
    """The dataset config in the JSON file at ``path``."""
    return parse_dataset_config(read_json(path), source=str(path))


def parse_model_config(value: Any, source: str = "model config") -> ModelConfig:
    """A model config from its JSON value; ``source`` is what error messages call it."""
    return _parse(_MODEL, value, source)


def parse_dataset_config(value: Any, source: str = "dataset config") -> DatasetConfig:
    """A dataset config from its JSON value; ``source`` is what error messages call it."""
    return _parse(_DATASET, value, source)


def parse_conditioning_config(value: Any, source: str = "conditioning config") -> ConditioningConfig:
    """A ``conditioning`` block from its JSON value; ``source`` is what error messages call it."""
    return _parse(_CONDITIONING, value, source)


def json_schema(kind: str) -> dict[str, Any]:
    """The JSON Schema of ``model`` or ``dataset`` configs, for editors."""
    adapters: dict[str, TypeAdapter[Any]] = {"model": _MODEL, "dataset": _DATASET}
    schema = adapters[kind].json_schema()
    about = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"{kind} config"}
    return {**about, **schema, **about}


def _parse(adapter: TypeAdapter[T], value: Any, source: str) -> T:
    if isinstance(value, dict):
        try:
            return adapter.validate_python(value)
        except ValidationError as error:
            raise ConfigError(_first_problem(error, value, source)) from error
    raise ConfigError(f"{source}: expected a JSON object, found {type(value).__name__}")


def _first_problem(error: ValidationError, value: Any, source: str) -> str:
    """One line for the first mistake, with how many more there are."""
    problems = error.errors(include_url=False)
    first = problems[0]
    where = _json_path(first["loc"], value)
    context = first.get("ctx", {})
    if first["type"] == "union_tag_invalid":
        tag_key = str(context["discriminator"]).strip("'")
        found, known = str(context["tag"]), str(context["expected_tags"]).replace("'", "").split(", ")
        where, what = _join(where, tag_key), _unknown_type(found, known)
    elif first["type"] == "union_tag_not_found":
        where, what = _join(where, str(context["discriminator"]).strip("'")), "missing"
    elif first["type"] == "missing":
        what = "missing"
    elif first["type"] in ("unknown_key", "value_error"):
        what = first["msg"].removeprefix("Value error, ")
    elif first["type"] == "literal_error" and str(first["input"]) in LEFT_OUT:
        what = _unknown_type(str(first["input"]), str(context["expected"]).replace("'", "").split(", "))
    else:
        found = json.dumps(first.get("input"), default=str)
        what = f"{first['msg']}, found {found if len(found) < 80 else found[:77] + '...'}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{source}: {where or 'top level'}: {what}{more}"


def _unknown_type(found: str, known: list[str]) -> str:
    listed = f"known: {', '.join(known)}"
    if found in LEFT_OUT:
        return f"{found!r} is left out on purpose: {LEFT_OUT[found]}; {listed}"
    guess = nearest(found, known)
    hint = f"did you mean {guess!r}? " if guess else ""
    return f"unknown type {found!r}; {hint}{listed}"


def _json_path(location: tuple[int | str, ...], value: Any) -> str:
    """The location as a path in the JSON, without the union tags that pydantic puts between its steps."""
    path = ""
    for position, step in enumerate(location):
        inside = (isinstance(value, dict) and step in value) or (
            isinstance(value, list) and isinstance(step, int) and step < len(value)
        )
        if inside:
            value = value[step]
            path = _join(path, step)
        elif position == len(location) - 1 and isinstance(value, dict) and step not in value.values():
            path = _join(path, step)
    return path


def _join(path: str, step: int | str) -> str:
    if isinstance(step, int):
        return f"{path}[{step}]"
    return f"{path}.{step}" if path else step
