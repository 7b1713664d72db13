"""What this version reads and what it builds: the refusal of the difference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar, get_args

from stable_audio_tools.errors import ConfigError
from stable_audio_tools.schema.base import Config

T = TypeVar("T")


def builder(makers: Mapping[type[Config], T], config: Config, where: str, key: str = "type") -> T:
    """What makes ``config``, of the ``makers`` by config class.

    Args:
        where: the path of ``config`` in its JSON, empty for the top.
        key: the JSON key that names the type.

    Raises:
        ConfigError: none does.
    """
    try:
        return makers[type(config)]
    except KeyError:
        raise not_built(config, makers, where, key) from None


def only(config: Config, key: str, expected: object, where: str = "") -> None:
    """Refuse a setting that can be read but not built.

    Raises:
        ConfigError: ``config`` has another value than ``expected`` under ``key``.
    """
    found = getattr(config, key)
    if found != expected:
        path = f"{where}.{key}" if where else key
        raise ConfigError(
            f"{path}: {found!r} can be read but not built by this version; it builds: {expected!r}"
        )


@contextmanager
def inside(where: str) -> Iterator[None]:
    """Put the path of a config before the errors of what is built of it."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}") from error


def not_built(config: Config, built: Iterable[type[Config]], where: str, key: str = "type") -> ConfigError:
    """The error for a config of a type that is read, so that its file can be checked, but not built."""
    path = f"{where}.{key}" if where else key
    known = ", ".join(name for kind in built for name in get_args(kind.model_fields[key].annotation))
    return ConfigError(
        f"{path}: {getattr(config, key)!r} can be read but not built by this version; it builds: {known}"
    )
