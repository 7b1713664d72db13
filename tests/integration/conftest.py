"""Fixtures of the tests that drive whole commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from workshop import Workshop, build_workshop


@pytest.fixture(scope="session")
def shop(
    tmp_path_factory: pytest.TempPathFactory, _tiny_diffusion_config: dict[str, Any], tiny_audio_folder: Path
) -> Workshop:
    """One of everything that works; a test may add files under new names, and changes none that are there."""
    music = tiny_audio_folder / "audio"
    return build_workshop(tmp_path_factory.mktemp("workshop"), music, _tiny_diffusion_config)
