"""The house in order: format, lint, types, layers, and nothing that should not be there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["lint-imports"]],
    ids=lambda command: "-".join(command[:2]).rstrip("-."),
)
def test_the_tools_agree(command: list[str]) -> None:
    done = subprocess.run([str(BIN / command[0]), *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, stable_audio_tools.cli.main;"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nothing_public_is_depended_on_that_must_not_be() -> None:
    forbidden = re.compile(
        r"^\s*(?:import|from)\s+(torchaudio|laion_clap|dac|k_diffusion|descript)\b", re.MULTILINE
    )
    for path in (ROOT / "stable_audio_tools").rglob("*.py"):
        assert not forbidden.search(path.read_text()), path


def test_every_package_folder_says_what_it_is() -> None:
    for init in (ROOT / "stable_audio_tools").rglob("__init__.py"):
        assert init.read_text().lstrip().startswith('"""'), f"{init} has no docstring"


def test_every_test_that_the_decisions_name_exists() -> None:
    text = (ROOT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", text)
    assert len(named) > 30
    for path, name in named:
        assert f"def {name}(" in (ROOT / "tests" / path).read_text(encoding="utf-8"), f"{path}::{name}"
