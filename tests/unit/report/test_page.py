from __future__ import annotations

import base64
from pathlib import Path

from markupsafe import Markup

from stable_audio_tools.report.page import Card, Page, cards, image, player, table, text

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def test_everything_from_outside_is_escaped(tmp_path: Path) -> None:
    nasty = "<script>alert('x')</script>"
    page = Page(nasty, lead=nasty)
    page.section(nasty, text(nasty), table([nasty], [[nasty]]), image(PNG, nasty), player(b"RIFF", nasty))
    page.section("cards", cards([Card(nasty, [text("fine")], note=nasty)]))
    html = page.write(tmp_path / "report" / "index.html").read_text()
    assert "<script>" not in html
    assert html.count("&lt;script&gt;") >= 7


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    sound = tmp_path / "clip.wav"
    sound.write_bytes(b"RIFF0000WAVE")
    page = Page("Report")
    page.section("Clip", player(sound, "clip"), image(PNG, "picture"))
    html = page.html()
    assert "http" not in html.replace("data:", "")
    assert base64.b64encode(b"RIFF0000WAVE").decode() in html
    assert "audio/x-wav" in html or "audio/wav" in html


def test_numbers_are_set_right_and_markup_is_kept() -> None:
    html = table(["name", "score", "link"], [["a", 0.123456, Markup("<b>x</b>")], ["b", 7, None]])
    assert '<td class="number">0.1235</td>' in html
    assert '<td class="number">7</td>' in html
    assert "<b>x</b>" in html
