"""The manifest of a run: what was run, with which settings, versions and code, to run it again."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from stable_audio_tools.runtime.files import write_json

_PACKAGES = (
    "stable-audio-tools",
    "torch",
    "numpy",
    "pytorch-lightning",
    "transformers",
    "peft",
    "soundfile",
    "soxr",
    "av",
)


def installed_versions() -> dict[str, str]:
    """Version by name of the packages a result can depend on; absent ones are left out."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git_state() -> dict[str, Any] | None:
    """Commit of the code in use and whether it was changed since, or None outside a checkout."""
    here = Path(__file__).parent

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", *args], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def write_manifest(folder: str | Path, name: str, settings: dict[str, Any]) -> Path:
    """Write ``<folder>/<name>.json`` with ``settings`` and the state of the machine; returns its path."""
    path = Path(folder) / f"{name}.json"
    write_json(
        path,
        {
            "command": sys.argv,
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "settings": settings,
            "versions": installed_versions(),
            "git": git_state(),
        },
    )
    return path
