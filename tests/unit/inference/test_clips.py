"""Clips on disk: names, sidecars, resuming, and independence of the batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stable_audio_tools.audio.files import read_audio
from stable_audio_tools.data.sidecars import read_sidecar
from stable_audio_tools.errors import AudioError, UsageError
from stable_audio_tools.inference.clips import ClipRequest, generate_clips
from stable_audio_tools.inference.generation import generate_diffusion_cond
from stable_audio_tools.models.factory import create_model_from_config

REQUESTS = [
    ClipRequest("calm piano", seconds_total=0.25),
    ClipRequest("fast drums", seconds_total=0.5),
    ClipRequest("loud guitar", seconds_total=0.5, seconds_start=0.25, seed=7),
    ClipRequest("calm piano", seconds_total=0.25, negative_prompt="loud"),
]


@pytest.fixture
def model(tiny_diffusion_config: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    model = create_model_from_config(tiny_diffusion_config)
    for parameter in model.model.parameters():
        parameter.data = torch.randn(parameter.shape) * 0.05
    return model


def render(model: Any, folder: Path, requests: list[ClipRequest] = REQUESTS, **options: Any) -> list[Path]:
    return generate_clips(model, requests, folder, **{"steps": 3, "cfg_scale": 3.0, **options})


def test_each_clip_has_its_length_and_says_how_it_was_made(model: Any, tmp_path: Path) -> None:
    paths = render(model, tmp_path, checkpoint="model.ckpt", model_sha256="abc")
    assert [path.name for path in paths] == [
        "0000_calm_piano.wav",
        "0001_fast_drums.wav",
        "0002_loud_guitar.wav",
        "0003_calm_piano.wav",
    ]
    for position, (path, request) in enumerate(zip(paths, REQUESTS, strict=True)):
        audio, rate = read_audio(path)
        assert audio.shape[1] == round((request.seconds_total - request.seconds_start) * 16000)
        assert float(audio.abs().max()) == pytest.approx(1, abs=1e-3)
        sidecar = read_sidecar(path)
        assert sidecar is not None
        assert (sidecar.file, sidecar.prompt, sidecar.negative_prompt) == (
            path.name,
            request.prompt,
            request.negative_prompt,
        )
        assert sidecar.seed == (42 + position if request.seed is None else request.seed)
        assert (sidecar.sample_rate, sidecar.sampler, sidecar.objective) == (rate, "dpmpp-2m-sde", "v")
        assert (sidecar.checkpoint, sidecar.model_sha256) == ("model.ckpt", "abc")
        assert sidecar.sampler_options["sigma_max"] == 100.0  # the default, written down
        path.with_suffix(".json").unlink()
        assert read_sidecar(path) == sidecar  # from the tag


@pytest.mark.parametrize("sampler", ["dpmpp-3m-sde", "k-dpm-adaptive"])
def test_a_clip_is_the_same_alone_in_a_batch_and_from_the_documented_function(
    model: Any, tmp_path: Path, sampler: str
) -> None:
    options = {"sampler": sampler, "sampler_options": {"sigma_min": 0.3, "sigma_max": 50}, "normalize": False}
    alone = render(model, tmp_path / "one", batch_size=1, **options)
    together = render(model, tmp_path / "many", batch_size=4, **options)
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(read_audio(a)[0], read_audio(b)[0], atol=1e-4, rtol=0)
    documented = generate_diffusion_cond(
        model,
        steps=3,
        cfg_scale=3.0,
        conditioning={"prompt": "fast drums", "seconds_start": 0, "seconds_total": 0.5},
        sample_size=8000,
        seed=43,
        device="cpu",
        sampler_type=sampler,
        sigma_min=0.3,
        sigma_max=50,
    )
    torch.testing.assert_close(documented[0].clamp(-1, 1), read_audio(alone[1])[0], atol=1e-4, rtol=0)


def test_a_second_run_renders_only_what_is_missing_or_changed(model: Any, tmp_path: Path) -> None:
    paths = render(model, tmp_path, model_sha256="abc")
    stamps = [path.stat().st_mtime_ns for path in paths]
    paths[1].unlink()
    paths[2].with_suffix(".json").write_text("{", encoding="utf-8")
    assert render(model, tmp_path, model_sha256="abc") == paths
    again = [path.stat().st_mtime_ns for path in paths]
    assert [a == b for a, b in zip(stamps, again, strict=True)] == [True, False, False, True]


@pytest.mark.parametrize(
    "change", [{"cfg_scale": 4.0}, {"seed": 1}, {"model_sha256": "def"}, {"model_sha256": None}]
)
def test_clips_of_other_settings_or_weights_are_not_kept(
    model: Any, tmp_path: Path, change: dict[str, Any]
) -> None:
    (path,) = render(model, tmp_path, REQUESTS[:1], model_sha256="abc")
    stamp = path.stat().st_mtime_ns
    render(model, tmp_path, REQUESTS[:1], **{"model_sha256": "abc", **change})
    assert path.stat().st_mtime_ns != stamp


def test_names_are_safe_and_unique(model: Any, tmp_path: Path) -> None:
    nasty = "$(touch x); ../../etc/passwd"
    requests = [
        ClipRequest(nasty, 0.1, name=nasty),
        ClipRequest("a", 0.1, name="Take"),
        ClipRequest("b", 0.1, name="take"),
    ]
    paths = render(model, tmp_path, requests)
    assert all(path.parent == tmp_path for path in paths)
    assert [path.name for path in paths] == ["touch_x_etc_passwd.wav", "Take.wav", "take-2.wav"]
    assert json.loads(paths[0].with_suffix(".json").read_text())["prompt"] == nasty


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
@pytest.mark.parametrize("prompt", ["", "calm " * 1000], ids=["none", "long"])
def test_any_prompt_comes_back_from_the_tag_alone(
    model: Any, tmp_path: Path, prompt: str, suffix: str
) -> None:
    (path,) = render(model, tmp_path, [ClipRequest(prompt, 0.25)], suffix=suffix)
    path.with_suffix(".json").unlink()
    sidecar = read_sidecar(path)
    assert sidecar is not None
    assert sidecar.prompt == prompt


def test_silence_stays_silence(model: Any, tmp_path: Path) -> None:
    *_, last = (layer for layer in model.pretransform.model.decoder.modules() if hasattr(layer, "weight_g"))
    last.weight_g.data.zero_()
    (path,) = render(model, tmp_path, REQUESTS[:1])
    assert not read_audio(path)[0].any()


def test_a_broken_model_is_named_by_its_clip_and_leaves_nothing(model: Any, tmp_path: Path) -> None:
    model.model.model.postprocess_conv.weight.data.fill_(float("nan"))
    with pytest.raises(AudioError, match=r"0000_calm_piano\.wav: the model made NaN .*'calm piano'"):
        render(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_full_window_is_rendered_on_request(model: Any, tmp_path: Path) -> None:
    (short,) = render(model, tmp_path / "short", REQUESTS[:1])
    (cut,) = render(model, tmp_path / "window", REQUESTS[:1], full_window=True)
    assert read_audio(short)[0].shape == read_audio(cut)[0].shape
    assert not torch.allclose(read_audio(short)[0], read_audio(cut)[0])


def test_clips_longer_than_the_window_are_cut_with_a_warning(
    model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = render(model, tmp_path, [ClipRequest("calm", 30.0)])
    assert read_audio(path)[0].shape[1] == 8192
    assert "1 clips are cut to 0.5 s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("request_", "options", "message"),
    [
        (
            ClipRequest("x", 1.0, seconds_start=1.0),
            {},
            "clip 0: seconds_total 1.0 must be above seconds_start 1.0",
        ),
        (ClipRequest("x", float("nan")), {}, "clip 0: seconds_total nan must be above"),
        (ClipRequest("x", float("inf")), {}, "clip 0: seconds_total inf must be above"),
        (ClipRequest("x", 1.0, seed=-1), {}, "clip 0: seed -1"),
        (ClipRequest("x", 1.0), {"sampler": "ddim"}, "unknown sampler 'ddim'"),
        (ClipRequest("x", 1.0), {"batch_size": 0}, "batch_size must be at least 1"),
        (ClipRequest("x", 1.0), {"sampler_options": {"sigmamax": 3}}, "did you mean 'sigma_max'"),
    ],
)
def test_arguments_that_do_not_fit_are_named(
    model: Any, tmp_path: Path, request_: ClipRequest, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        render(model, tmp_path, [request_], **options)
