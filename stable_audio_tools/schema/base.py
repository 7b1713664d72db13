"""The frozen, strict base of every config object."""

from __future__ import annotations

import difflib
import warnings
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError


def nearest(name: str, known: list[str]) -> str | None:
    """The known name that ``name`` was probably meant to be, if any is close."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return close[0] if close else None


class Config(BaseModel):
    """A frozen JSON object.

    An unknown key is an error that names the nearest valid one; a retired key warns if it was on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), populate_by_name=True)

    retired: ClassVar[dict[str, str]] = {}
    """Keys of older public configs that no longer do anything, each with the reason shown to the user."""

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known = [field.alias or name for name, field in cls.model_fields.items()]
        allowed = {*known, *cls.model_fields}
        kept = {}
        for key, value in data.items():
            if key in allowed:
                kept[key] = value
            elif key in cls.retired:
                if value in (None, False):  # it asked for nothing, so nothing is lost
                    continue
                warnings.warn(f"config key {key!r} is ignored: {cls.retired[key]}", UserWarning, stacklevel=2)
            else:
                guess = nearest(str(key), known)
                hint = f"did you mean {guess!r}?" if guess else f"valid keys: {', '.join(sorted(known))}"
                raise PydanticCustomError(
                    "unknown_key", "unknown key {key}; {hint}", {"key": repr(key), "hint": hint}
                )
        return kept
