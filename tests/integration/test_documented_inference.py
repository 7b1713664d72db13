"""The minimal inference script of the public guide, with nothing but its import and its save replaced.

``GUIDE`` is that script in our own words, on the documented names and arguments. As it stands it needs
torchaudio; ``OURS`` is what a user without torchaudio writes. What differs is one import and one call.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from stable_audio_tools.models.checkpoints import save_checkpoint
from stable_audio_tools.models.factory import create_model_from_config

SCRIPT = """
import json

import torch
{import_of_the_writer}
from einops import rearrange

from stable_audio_tools.inference.generation import generate_diffusion_cond
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.utils import load_ckpt_state_dict

device = "cuda" if torch.cuda.is_available() else "cpu"

with open("model_config.json") as config_file:
    model_config = json.load(config_file)

model = create_model_from_config(model_config)
model.load_state_dict(load_ckpt_state_dict("unwrapped.ckpt"))
model = model.to(device)

output = generate_diffusion_cond(
    model,
    steps=100,
    cfg_scale=7,
    conditioning=[{{"prompt": "A calm song with piano", "seconds_start": 0, "seconds_total": 47}}],
    sample_size=model_config["sample_size"],
    sigma_min=0.3,
    sigma_max=500,
    sampler_type="dpmpp-3m-sde",
    device=device,
    seed=1234,
)

output = rearrange(output, "b d n -> d (b n)")
output = output.to(torch.float32).div(torch.max(torch.abs(output)))
output = output.clamp(-1, 1).mul(32767).to(torch.int16).cpu()
{writer}("output.wav", output, model_config["sample_rate"])
"""
GUIDE = SCRIPT.format(import_of_the_writer="import torchaudio", writer="torchaudio.save")
OURS = SCRIPT.format(
    import_of_the_writer="from stable_audio_tools.audio.files import save_audio", writer="save_audio"
)
DOCUMENTED_STEPS, STEPS = "steps=100", "steps=8"


@pytest.fixture
def folder(tmp_path: Path, tiny_diffusion_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model config and its unwrapped checkpoint, as the guide leaves the user in."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_model_from_config(tiny_diffusion_config)
    save_checkpoint(tmp_path / "unwrapped.ckpt", model.state_dict())
    (tmp_path / "model_config.json").write_text(json.dumps(tiny_diffusion_config), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(script: str) -> dict[str, Any]:
    """Run a script in the working folder; returns its names."""
    names: dict[str, Any] = {}
    with torch.random.fork_rng():
        exec(compile(script, "inference.py", "exec"), names)
    return names


def read(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="int16")[0]


def test_the_script_writes_the_clip(folder: Path, tiny_diffusion_config: dict[str, Any]) -> None:
    names = run(OURS.replace(DOCUMENTED_STEPS, STEPS))
    info = soundfile.info(folder / "output.wav")
    assert (info.samplerate, info.subtype) == (tiny_diffusion_config["sample_rate"], "PCM_16")
    samples = read(folder / "output.wav")
    assert samples.shape == (tiny_diffusion_config["sample_size"], 2)
    np.testing.assert_array_equal(samples.T, names["output"].numpy())
    assert np.abs(samples.astype(int)).max() in (32766, 32767), "normalised to its peak"
    assert len(np.unique(samples)) > 1000, "sound, not a constant"


def test_the_seed_decides_the_clip(folder: Path) -> None:
    script = OURS.replace(DOCUMENTED_STEPS, STEPS)
    run(script)
    first = read(folder / "output.wav")
    torch.randn(17)  # whatever was drawn before
    run(script)
    np.testing.assert_array_equal(first, read(folder / "output.wav"))
    run(script.replace("seed=1234", "seed=1235"))
    assert not np.array_equal(first, read(folder / "output.wav"))


def test_the_script_as_documented_runs_where_there_is_a_torchaudio(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchaudio is never installed by us; a stand-in with its ``save`` shows that nothing else is needed."""
    saved: dict[str, Any] = {}
    torchaudio = ModuleType("torchaudio")
    torchaudio.save = lambda uri, src, sample_rate: saved.update(uri=uri, src=src, rate=sample_rate)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchaudio", torchaudio)
    run(GUIDE.replace(DOCUMENTED_STEPS, STEPS))
    run(OURS.replace(DOCUMENTED_STEPS, STEPS))
    assert saved["src"].dtype == torch.int16
    np.testing.assert_array_equal(saved["src"].numpy().T, read(folder / "output.wav"))
    assert saved["rate"] == soundfile.info(folder / "output.wav").samplerate


def test_one_import_and_one_call_are_all_that_differs() -> None:
    guide, ours = (ast.parse(script).body for script in (GUIDE, OURS))
    differing = [(a, b) for a, b in zip(guide, ours, strict=True) if ast.dump(a) != ast.dump(b)]
    assert [tuple(ast.unparse(node) for node in pair) for pair in differing] == [
        ("import torchaudio", "from stable_audio_tools.audio.files import save_audio"),
        (
            "torchaudio.save('output.wav', output, model_config['sample_rate'])",
            "save_audio('output.wav', output, model_config['sample_rate'])",
        ),
    ]
