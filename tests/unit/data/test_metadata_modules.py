"""The user's Python file: found where the guide says, run once, and blamed by name."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from stable_audio_tools.data.metadata import load_metadata_function, resolve_module_path
from stable_audio_tools.errors import DataError


def test_a_module_is_found_here_then_beside_the_config_then_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = "stable_audio_tools/configs/dataset_configs/custom_metadata/custom_md_fma.py"
    monkeypatch.chdir(tmp_path)
    assert resolve_module_path(shipped, None).read_text().startswith('"""Prompts')
    beside = tmp_path / "configs"
    beside.mkdir()
    (beside / "mine.py").touch()
    assert resolve_module_path("mine.py", beside) == beside / "mine.py"
    (tmp_path / "mine.py").touch()
    assert resolve_module_path("mine.py", beside) == tmp_path / "mine.py"
    with pytest.raises(
        DataError, match=rf"'none\.py' does not exist; looked for {tmp_path}/none\.py, {beside}"
    ):
        resolve_module_path("none.py", beside)


def test_the_file_runs_once_and_again_after_pickling_it_is_the_same(tmp_path: Path) -> None:
    module = tmp_path / "counted.py"
    module.write_text(
        "from pathlib import Path\n"
        "from dataclasses import dataclass\n"
        "with open(Path(__file__).with_name('runs'), 'a') as runs:\n    runs.write('x')\n"
        "@dataclass\nclass Row:\n    name: str\n"
        "def get_custom_metadata(info, audio):\n    return vars(Row(info['path']))\n"
    )
    one = load_metadata_function(module)
    other = pickle.loads(pickle.dumps(one))
    assert one({"path": "a"}, None) == other({"path": "a"}, None) == {"name": "a"}
    assert (tmp_path / "runs").read_text() == "x"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def broken(:", "SyntaxError"),
        ("import no_such_module_of_ours", "ModuleNotFoundError"),
        ("x = 1", "defines no function get_custom_metadata"),
    ],
)
def test_a_broken_module_is_named_when_it_is_loaded(tmp_path: Path, text: str, reason: str) -> None:
    module = tmp_path / "bad.py"
    module.write_text(text)
    with pytest.raises(DataError, match=rf"bad\.py: .*{reason}"):
        load_metadata_function(module)
