"""A page that is one file: text, tables, pictures and players, readable without a network.

Blocks are HTML fragments. Functions here make them from plain values and escape everything they are given;
:class:`Page` puts them in order.
"""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import jinja2
from markupsafe import Markup

from stable_audio_tools.runtime.files import write_text

Cell = str | int | float | Markup | None


class Card(NamedTuple):
    """A titled group of blocks with a line of small print, for comparing things side by side."""

    title: str
    blocks: Sequence[Markup]
    note: str = ""


def text(content: str) -> Markup:
    """A paragraph."""
    return Markup("<p>{}</p>").format(content)


def image(png: bytes, alt: str) -> Markup:
    """A PNG, kept inside the page."""
    encoded = base64.b64encode(png).decode()
    return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(alt, encoded)


def player(audio: bytes | str | Path, label: str, mime: str | None = None) -> Markup:
    """An audio player, the sound kept inside the page. ``audio`` is a file or its bytes (WAV unless said)."""
    if isinstance(audio, bytes):
        data, kind = audio, mime or "audio/wav"
    else:
        data, kind = Path(audio).read_bytes(), mime or mimetypes.guess_type(str(audio))[0] or "audio/mpeg"
    encoded = base64.b64encode(data).decode()
    return Markup('<audio controls preload="none" aria-label="{}" src="data:{};base64,{}"></audio>').format(
        label, kind, encoded
    )


def link(path: str, label: str) -> Markup:
    """A link to a file beside the page, or below it."""
    return Markup('<a href="{}">{}</a>').format(quote(path), label)


def linked_image(path: str, alt: str) -> Markup:
    """A picture that stays in its file; ``path`` is relative to the page."""
    return Markup('<img alt="{}" loading="lazy" src="{}">').format(alt, quote(path))


def linked_player(path: str, label: str) -> Markup:
    """A player of audio that stays in its file: for pages that are written often, of long clips."""
    return Markup('<audio controls preload="none" aria-label="{}" src="{}"></audio>').format(
        label, quote(path)
    )


def web_link(url: str, label: str) -> Markup:
    """A link to a place on the web (http, https); of any other scheme only the label is shown."""
    if urlsplit(url).scheme in ("http", "https"):
        return Markup('<a href="{}">{}</a>').format(url, label)
    return Markup("{}").format(label)


def warning(content: str) -> Markup:
    """A paragraph that should not be passed over."""
    return Markup('<p class="warning">{}</p>').format(content)


def code(content: str) -> Markup:
    """Text to copy, as it is."""
    return Markup("<pre><code>{}</code></pre>").format(content)


def strip(values: Sequence[float], labels: Sequence[str], title: str) -> Markup:
    """A row of cells, darker for larger values in [-1, 1], hatched for negative ones; labels on hover."""
    cells = Markup("").join(
        Markup('<i class="{}" style="opacity:{}" title="{}: {}"></i>').format(
            "against" if value < 0 else "for",
            f"{max(0.06, min(1.0, abs(value))):.2f}",
            label,
            f"{value:+.2f}",
        )
        for value, label in zip(values, labels, strict=True)
    )
    return Markup('<div class="strip" role="img" aria-label="{}">{}</div>').format(title, cells)


def table(headers: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Markup:
    """A table; numbers are set right, floats to four significant digits."""
    numeric = [bool(rows) and isinstance(cell, int | float) for cell in (rows[0] if rows else headers)]
    head = Markup("").join(
        Markup('<th class="number">{}</th>' if right else "<th>{}</th>").format(name)
        for name, right in zip(headers, numeric, strict=True)
    )
    body = Markup("").join(Markup("<tr>{}</tr>").format(Markup("").join(map(_cell, row))) for row in rows)
    return Markup(
        '<div class="scroll"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    ).format(head, body)


def side_by_side(blocks: Sequence[Markup]) -> Markup:
    """Pictures in as many columns as there is room for."""
    return Markup('<div class="pictures">{}</div>').format(
        Markup("").join(Markup("<div>{}</div>").format(block) for block in blocks)
    )


def cards(items: Sequence[Card]) -> Markup:
    """Cards in a row that wraps."""
    rendered = (
        Markup('<div class="card"><h3>{}</h3>{}{}</div>').format(
            card.title,
            Markup("").join(card.blocks),
            Markup('<p class="note">{}</p>').format(card.note) if card.note else "",
        )
        for card in items
    )
    return Markup('<div class="cards">{}</div>').format(Markup("").join(rendered))


def _cell(value: Cell) -> Markup:
    if isinstance(value, bool) or value is None or isinstance(value, str | Markup):
        return Markup("<td>{}</td>").format("" if value is None else value)
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return Markup('<td class="number">{}</td>').format(shown)


class Page:
    """Sections in order, with a table of contents; :meth:`write` makes one self-contained file."""

    def __init__(self, title: str, lead: str = "") -> None:
        self.title = title
        self.lead = lead
        self._sections: list[tuple[str, list[Markup]]] = []

    def section(self, title: str, *blocks: Markup) -> None:
        """Add a section with its blocks."""
        self._sections.append((title, list(blocks)))

    def html(self) -> str:
        """The whole page."""
        return _template().render(title=self.title, lead=self.lead, sections=self._sections)

    def write(self, path: str | Path) -> Path:
        """Write the page in one step; returns its path."""
        write_text(path, self.html())
        return Path(path)


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    source = resources.files("stable_audio_tools.report").joinpath("page.html").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
