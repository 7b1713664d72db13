"""Generation without prompts: seeds, lengths, init audio, clips on disk and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stable_audio_tools.audio.files import read_audio
from stable_audio_tools.cli.main import main
from stable_audio_tools.data.sidecars import read_sidecar
from stable_audio_tools.diffusion.samplers import SAMPLERS
from stable_audio_tools.errors import UsageError
from stable_audio_tools.inference.clips import ClipRequest, generate_clips
from stable_audio_tools.inference.unconditional import generate_diffusion_uncond
from stable_audio_tools.models.checkpoints import save_checkpoint
from stable_audio_tools.models.factory import create_model_from_config

RATE = 16000
CONFIG: dict[str, Any] = {
    "model_type": "diffusion_uncond",
    "sample_size": 4096,
    "sample_rate": RATE,
    "model": {
        "type": "DAU1d",
        "config": {"depth": 3, "n_attn_layers": 1, "channels": [8, 8, 16], "strides": [2, 2]},
    },
}
OOBLECK = {"channels": 4, "c_mults": [1, 2], "strides": [2, 4]}
LATENT: dict[str, Any] = {
    **CONFIG,
    "model": {
        "type": "dit",
        "config": {"io_channels": 6, "embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 2},
        "pretransform": {
            "type": "autoencoder",
            "config": {
                "encoder": {"type": "oobleck", "config": {"in_channels": 2, "latent_dim": 12, **OOBLECK}},
                "decoder": {"type": "oobleck", "config": {"out_channels": 2, "latent_dim": 6, **OOBLECK}},
                "bottleneck": {"type": "vae"},
                "latent_dim": 6,
                "downsampling_ratio": 8,
                "io_channels": 2,
            },
        },
    },
}


def build(config: dict[str, Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model_from_config(config)
        for parameter in model.model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture(scope="module", params=["audio", "latents"])
def model(request: pytest.FixtureRequest) -> Any:
    return build({"audio": CONFIG, "latents": LATENT}[request.param])


def generate(model: Any, **options: Any) -> Tensor:
    given = {"steps": 3, "sample_size": 1024, "seed": 1, "device": "cpu", **options}
    return generate_diffusion_uncond(model, **given)


@pytest.mark.parametrize("sample_size", [1024, 1000, 333, 17, 1])
def test_the_length_is_the_one_asked_for(model: Any, sample_size: int) -> None:
    audio = generate(model, sample_size=sample_size, batch_size=2)
    assert audio.shape == (2, 2, sample_size)
    assert audio.dtype == torch.float32
    assert torch.isfinite(audio).all()


def test_the_network_sees_only_lengths_that_need_no_padding() -> None:
    model = build(CONFIG)
    for sample_size, rendered in ((1024, 1024), (1001, 1004), (5, 12)):
        assert generate(model, sample_size=sample_size, return_latents=True).shape == (1, 2, rendered)


@pytest.mark.parametrize("seed", [0, 2**31 + 1, 2**63 - 1])
def test_a_seed_gives_the_same_clip_and_another_seed_another(model: Any, seed: int) -> None:
    first = generate(model, seed=seed)
    assert torch.equal(first, generate(model, seed=seed))
    assert not torch.allclose(first, generate(model, seed=seed // 2 + 7))


def test_noise_is_drawn_first_after_seeding(model: Any) -> None:
    starts: list[Tensor] = []
    generate(model, seed=5, sampler_type="v-ddim", callback=lambda info: starts.append(info["x"]))
    torch.manual_seed(5)
    assert torch.equal(starts[0], torch.randn(starts[0].shape))


def test_a_random_seed_is_said(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    generate(model, seed=-1)
    assert "seed: " in capsys.readouterr().err


@pytest.mark.parametrize("sampler", SAMPLERS["v"])
def test_every_v_sampler_samples_it(sampler: str) -> None:
    assert torch.isfinite(generate(build(CONFIG), sampler_type=sampler, sample_size=64)).all()


def test_without_guidance_cfgpp_is_ddim(model: Any) -> None:
    plain = generate(model, sampler_type="v-ddim")
    torch.testing.assert_close(generate(model, sampler_type="v-ddim-cfgpp"), plain)


@pytest.mark.parametrize("shape", [(500,), (1, 1024), (2, 3000), (2, 2, 1024)])
def test_init_audio_of_any_shape_is_varied(model: Any, shape: tuple[int, ...]) -> None:
    audio = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.2
    found = generate(model, batch_size=2, init_audio=(8000, audio), init_noise_level=0.5)
    assert found.shape == (2, 2, 1024)
    assert not torch.allclose(found, generate(model, batch_size=2))


def test_with_little_noise_a_variation_stays_close() -> None:
    model = build(CONFIG)
    audio = torch.randn(2, 1024, generator=torch.Generator().manual_seed(0)) * 0.2
    options = {"init_audio": (RATE, audio), "sampler_type": "v-ddim"}
    near, far = (generate(model, **options, init_noise_level=level)[0] for level in (0.01, 0.9))
    assert (near - audio).abs().max() < 0.1 < (far - audio).abs().max()


@pytest.mark.parametrize("config", [CONFIG, LATENT])
def test_a_half_precision_network_takes_float32_init_audio(config: dict[str, Any]) -> None:
    model = build(config)
    model.model.bfloat16()
    found = generate(model, init_audio=(RATE, torch.zeros(2, 1024)), init_noise_level=2.0, sigma_min=0.1)
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cfg_scale": 3.0}, "unknown sampler option 'cfg_scale'"),
        ({"scale_phi": 0.5}, "scale_phi: an unconditional model has no guidance"),
        ({"sampler_type": "euler"}, "does not fit a model of objective 'v'"),
        ({"batch_size": 0}, "expected at least 1"),
        ({"seed": -2}, "seed -2"),
        ({"init_audio": (RATE, torch.zeros(3, 2, 100))}, "init_audio: found 3 clips"),
    ],
)
def test_arguments_that_do_not_fit_are_named(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        generate(model, **options)


def test_a_model_that_needs_more_than_noise_is_refused_before_any_work() -> None:
    network = {**CONFIG["model"]["config"], "cond_dim": 3}
    model = build({**CONFIG, "model": {"type": "DAU1d", "config": network}})
    with pytest.raises(UsageError, match="takes 3 channels beside its input"):
        generate(model)


def test_clips_on_disk_are_those_of_the_function_whatever_the_batch(model: Any, tmp_path: Path) -> None:
    requests = [ClipRequest("", seconds_total=seconds) for seconds in (0.1, 0.05, 0.1)]
    options = {"steps": 3, "normalize": False, "cfg_scale": 5.0}
    paths = generate_clips(model, requests, tmp_path / "two", batch_size=2, **options)
    again = generate_clips(model, requests, tmp_path / "one", batch_size=1, **options)
    assert [path.name for path in paths] == ["0000.wav", "0001.wav", "0002.wav"]
    for position, (path, twin) in enumerate(zip(paths, again, strict=True)):
        audio, rate = read_audio(path)
        assert rate == RATE
        torch.testing.assert_close(audio, read_audio(twin)[0], atol=1e-4, rtol=0)
        expected = generate(model, sample_size=audio.shape[1], seed=42 + position)[0]
        torch.testing.assert_close(audio, expected.clamp(-1, 1), atol=1e-4, rtol=0)
        sidecar = read_sidecar(path)
        assert sidecar is not None
        assert (sidecar.prompt, sidecar.cfg_scale, sidecar.seed) == ("", 1.0, 42 + position)
        assert sidecar.duration_seconds == audio.shape[1] / RATE


def test_a_prompt_for_a_model_that_takes_none_is_refused(model: Any, tmp_path: Path) -> None:
    for request in (ClipRequest("piano", 0.1), ClipRequest("", 0.1, negative_prompt="loud")):
        with pytest.raises(UsageError, match="clip 0: found a prompt, but this model takes none"):
            generate_clips(model, [request], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = build(CONFIG)
    (tmp_path / "model_config.json").write_text(json.dumps(CONFIG))
    save_checkpoint(tmp_path / "model.safetensors", model.state_dict(), CONFIG)
    return tmp_path


def sat(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_the_command_makes_as_many_clips_as_it_is_told(folder: Path) -> None:
    fast = ["--pretrained-name", folder, "--steps", 2, "--device", "cpu", "--seconds", "0.05"]
    assert sat("generate", *fast, "--num-clips", 3, "--output-dir", folder / "three") == 0
    assert sat("generate", *fast, "--output-dir", folder / "one", "--seed", 43) == 0
    three, one = (sorted((folder / name).glob("*.wav")) for name in ("three", "one"))
    assert [len(three), len(one)] == [3, 1]
    first, second, alone = (read_audio(path)[0] for path in (*three[:2], one[0]))
    torch.testing.assert_close(second, alone, atol=1e-4, rtol=0)
    assert (first - second).abs().max() > 0.1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--prompt", "piano"], "--prompt: this model takes none; give --num-clips"),
        (["--negative-prompt", "piano"], "this model takes none"),
        (["--num-clips", "0"], "num-clips"),
    ],
)
def test_a_prompt_on_the_command_line_is_one_line_before_any_work(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    assert sat("generate", "--pretrained-name", folder, *arguments, "--output-dir", folder / "out") == 2
    assert complaint in capsys.readouterr().err
    assert not (folder / "out").exists()
