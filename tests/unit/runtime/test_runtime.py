from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stable_audio_tools.errors import UsageError
from stable_audio_tools.runtime.device import resolve_device
from stable_audio_tools.runtime.files import atomic_path, hash_json, safe_name, sha256_file, write_json
from stable_audio_tools.runtime.manifest import write_manifest
from stable_audio_tools.runtime.seeds import derive_seed, generator


def test_a_seed_is_the_same_everywhere_and_differs_by_any_part() -> None:
    assert derive_seed("crop", 42, 0, 7) == derive_seed("crop", 42, 0, 7) == 6563234453481278275
    seeds = {derive_seed("crop", a, b) for a in range(30) for b in range(30)}
    assert len(seeds) == 900
    assert derive_seed("a", 1) != derive_seed("a", "1")
    assert derive_seed("ab", "c") != derive_seed("a", "bc")
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_leave_the_global_one_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first = torch.rand(3, generator=generator("x", 1))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first, torch.rand(3, generator=generator("x", 1)))


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"

    def fail() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(target.parent.iterdir()) == []
    with atomic_path(target) as temporary:
        assert temporary.suffix == ".txt"
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert sha256_file(target) == "5d5766cf2d78701614200418ee1450690d9af12c84d52545e4802f001ad53099"


def test_json_hash_ignores_key_order() -> None:
    assert hash_json({"a": 1, "b": [1, 2]}) == hash_json({"b": [1, 2], "a": 1})
    assert hash_json({"a": 1}) != hash_json({"a": 2})


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("$(touch x)", "touch_x"),
        ("../../etc/passwd", "etc_passwd"),
        ("", "untitled"),
        ("...", "untitled"),
        ("Épique, très doux", "Épique_très_doux"),
        ("a" * 500, "a" * 60),
    ],
)
def test_a_prompt_becomes_a_safe_name(text: str, name: str) -> None:
    assert safe_name(text) == name


def test_an_unknown_or_absent_device_says_what_to_do() -> None:
    with pytest.raises(UsageError, match="expected auto, cpu"):
        resolve_device("gpu!")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no CUDA GPU"):
            resolve_device("cuda")
    assert resolve_device("cpu").type == "cpu"


def test_a_manifest_holds_what_is_needed_to_run_again(tmp_path: Path) -> None:
    import json

    manifest = json.loads(write_manifest(tmp_path, "run", {"steps": 3}).read_text())
    assert manifest["settings"] == {"steps": 3}
    assert {"python", "torch"} <= set(manifest["versions"])
    write_json(tmp_path / "x.json", {"ü": Path("a")})
    assert json.loads((tmp_path / "x.json").read_text()) == {"ü": "a"}
