"""A prompt of what is known of a track, by the templates of a config; drawn, or always the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch

from stable_audio_tools.schema.prompts import Known, Part, PromptConfig, PromptTemplate, parse_template

DEFAULT_PROMPTS = PromptConfig(
    templates=[
        PromptTemplate(text="{prompt}"),
        PromptTemplate(
            text="{genre:and} music[ with {instrument:and}][. Mood: {mood:and}][. {bpm} BPM][. Key: {key}]"
            "[. Title: {title}]."
        ),
        PromptTemplate(text="{tags}[, {bpm} BPM][, key of {key}]"),
        PromptTemplate(text="Music[ with {instrument:and}]. Mood: {mood:and}[. {bpm} BPM][. Key: {key}]."),
        PromptTemplate(text="Music with {instrument:and}[. {bpm} BPM][. Key: {key}]."),
        PromptTemplate(text="Music titled {title}"),
    ]
)
"""Where a config has no templates: the caption, else a sentence of tags, else the title. Never the artist."""

# What tied an optional part that is left out to the rest.
_LOOSE_START, _LOOSE_END = " ,;.:", " ,;"


def make_prompt(config: PromptConfig, fields: Mapping[str, Any], draws: torch.Generator | None) -> str | None:
    """The prompt of a track, or None where no template fits it.

    Args:
        config: the templates.
        fields: what is known of the track; names are in lower case, empty values count as unknown.
        draws: makes the choices; None takes the first template that fits, whole.
    """
    fitting = [
        (template, text) for template in config.templates if (text := _write(template, config, fields))
    ]
    if not fitting:
        return None
    if draws is None:
        return fitting[0][1]
    weights = torch.tensor([template.weight for template, _ in fitting], dtype=torch.float64)
    template, whole = fitting[int(torch.multinomial(weights, 1, generator=draws))]
    return _write(template, config, fields, draws) or whole


def needed_fields(config: PromptConfig) -> list[str]:
    """The fields that the templates cannot do without, sorted."""
    return sorted({name for template in config.templates for name in _required(_parts(template.text))})


@lru_cache(maxsize=1024)
def _parts(text: str) -> tuple[Part, ...]:
    return parse_template(text)


def _required(parts: Sequence[Part]) -> set[str]:
    return {name for part in parts if not part.optional for name in part.names}


def _write(
    template: PromptTemplate,
    config: PromptConfig,
    fields: Mapping[str, Any],
    draws: torch.Generator | None = None,
) -> str:
    """The template filled in; empty where it does not fit."""
    parts = _parts(template.text)
    if any(_is_unknown(fields.get(name)) for name in _required(parts)):
        return ""
    kept = [not part.optional or _is_kept(part, config, fields, draws) for part in parts]
    text = ""
    for part, stays in zip(parts, kept, strict=True):
        for piece in part.pieces if stays else ():
            words = (
                _value(fields[piece.name], piece, config, draws) if isinstance(piece, Known) else piece.text
            )
            text += words[1:] if text.endswith(".") and words.startswith(".") else words  # "Title: Mr.."
    text = " ".join(text.split())
    text = text if kept[0] else text.lstrip(_LOOSE_START)
    return text if kept[-1] else text.rstrip(_LOOSE_END)


def _is_kept(
    part: Part, config: PromptConfig, fields: Mapping[str, Any], draws: torch.Generator | None
) -> bool:
    if any(_is_unknown(fields.get(name)) for name in part.names):
        return False
    return draws is None or _chance(draws) >= config.drop_parts


def _value(value: Any, piece: Known, config: PromptConfig, draws: torch.Generator | None) -> str:
    if isinstance(value, (list, tuple)):
        entries = _drawn([word for entry in value if (word := _word(entry))], config, draws)
        return listing(entries) if piece.as_sentence else config.joiner.join(entries)
    if piece.name == "bpm" and isinstance(value, (int, float)):
        return str(round(value))
    return _word(value)


def _drawn(entries: list[str], config: PromptConfig, draws: torch.Generator | None) -> list[str]:
    if draws is not None and entries:
        order = list(range(len(entries)))
        if config.shuffle_tags:
            order = torch.randperm(len(entries), generator=draws).tolist()
        chances = torch.rand(len(entries), generator=draws).tolist()
        kept = [row for row in order if chances[row] >= config.drop_tags]
        # The luckiest stays where all would go: the order of the list must not choose it.
        entries = [entries[row] for row in kept or [max(order, key=chances.__getitem__)]]
    return entries[: config.max_tags]


def _chance(draws: torch.Generator) -> float:
    return float(torch.rand((), generator=draws))


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).strip()


def _is_unknown(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return not any(_word(entry) for entry in value)
    return value is None or not str(value).strip()


def listing(words: Sequence[str]) -> str:
    """``a, b and c``."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"
