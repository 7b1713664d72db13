"""What this version reads and what it builds: the refusal of the difference."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

from stable_audio_tools.errors import ConfigError
from stable_audio_tools.schema.base import Config


def not_built(config: Config, built: Iterable[type[Config]], where: str, key: str = "type") -> ConfigError:
    """The error for a config of a type that is read, so that its file can be checked, but not built."""
    path = f"{where}.{key}" if where else key
    known = ", ".join(name for kind in built for name in get_args(kind.model_fields[key].annotation))
    return ConfigError(
        f"{path}: {getattr(config, key)!r} can be read but not built by this version; it builds: {known}"
    )
