"""Prompt templates: how a prompt is made of what is known of a track, as config."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import Field, field_validator

from stable_audio_tools.schema.base import Config

_LISTING = "and"
_TOKEN = re.compile(r"\{\{|\}\}|\[\[|\]\]|\{([^{}\[\]]*)\}|[{}\[\]]")


@dataclass(frozen=True)
class Words:
    """Text that stands as it is."""

    text: str


@dataclass(frozen=True)
class Known:
    """``{name}``: what is known of a track; ``{name:and}`` writes a list as ``a, b and c``."""

    name: str
    as_sentence: bool = False


@dataclass(frozen=True)
class Part:
    """Words and fields that stay or go together: ``[...]`` is optional, all else is not."""

    pieces: tuple[Words | Known, ...]
    optional: bool

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(piece.name for piece in self.pieces if isinstance(piece, Known))


def parse_template(text: str) -> tuple[Part, ...]:
    """The parts of a template.

    ``{name}`` is a field of the track and ``[...]`` an optional part, which is left out for a track that
    lacks one of its fields. ``{{``, ``}}``, ``[[`` and ``]]`` stand for the signs themselves.

    Raises:
        ValueError: a bracket is not closed, not opened or inside another, or a field has no name.
    """
    parts: list[Part] = []
    pieces: list[Words | Known] = []
    inside, position = False, 0

    def end_part(next_inside: bool) -> None:
        nonlocal inside
        if pieces:
            parts.append(Part(tuple(pieces), optional=inside))
            pieces.clear()
        inside = next_inside

    for token in _TOKEN.finditer(text):
        if token.start() > position:
            pieces.append(Words(text[position : token.start()]))
        position = token.end()
        sign = token[0]
        if token[1] is not None:
            pieces.append(_field(token[1], text))
        elif len(sign) == 2:
            pieces.append(Words(sign[0]))
        elif sign == "[" and not inside:
            end_part(True)
        elif sign == "]" and inside:
            end_part(False)
        else:
            raise ValueError(
                f"template {text!r}: {sign!r} at character {token.start() + 1} has no partner or is inside"
                f" another bracket; write {sign * 2!r} for the sign itself"
            )
    if inside:
        raise ValueError(f"template {text!r}: a '[' is not closed")
    if position < len(text):
        pieces.append(Words(text[position:]))
    end_part(False)
    return tuple(parts)


def _field(inside: str, text: str) -> Known:
    name, colon, style = inside.strip().partition(":")
    name, style = name.strip().lower(), style.strip()
    if not name:
        raise ValueError(f"template {text!r}: {{{inside}}} names no field")
    if colon and style != _LISTING:
        raise ValueError(f"template {text!r}: {{{inside}}} is unknown; expected {{{name}}} or {{{name}:and}}")
    return Known(name, bool(colon))


class PromptTemplate(Config):
    """One way to say it. In a config, a text alone is a template of weight 1."""

    text: str = Field(min_length=1)
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    """How often it is drawn, beside the other templates that fit the track."""

    @field_validator("text")
    @classmethod
    def _can_be_parsed(cls, text: str) -> str:
        if not parse_template(text):
            raise ValueError("the template is empty")
        return text


class PromptConfig(Config):
    """How prompts are made.

    A template fits a track that has every field outside its brackets. In training one of those that fit is
    drawn for each track and epoch; in validation, in attribution and wherever else prompts must stay the
    same, it is the first that fits, with all tags in their order and all optional parts.
    """

    templates: list[PromptTemplate] = Field(min_length=1)
    shuffle_tags: bool = True
    """Draw the order of tags, genres and other lists."""
    drop_tags: float = Field(0.0, ge=0, lt=1)
    """Chance that a tag is left out, each on its own; one of a list always stays."""
    max_tags: int | None = Field(None, ge=1)
    """Most entries of a list that are written."""
    drop_parts: float = Field(0.0, ge=0, lt=1)
    """Chance that an optional part is left out although the track has its fields."""
    joiner: str = ", "
    """Between the entries of a list."""

    @field_validator("templates", mode="before")
    @classmethod
    def _texts_are_templates(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list):
            return value
        return [{"text": entry} if isinstance(entry, str) else entry for entry in value]
