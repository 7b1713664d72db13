"""Generation: what a seed, a length, init audio and a mask mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stable_audio_tools.diffusion.samplers import SAMPLERS
from stable_audio_tools.errors import UsageError
from stable_audio_tools.inference.generation import generate_diffusion_cond, generate_diffusion_cond_inpaint
from stable_audio_tools.models.factory import create_model_from_config

PROMPT = {"prompt": "calm piano", "seconds_start": 0, "seconds_total": 1}


def randomised(model: Any) -> Any:
    """Fresh branches answer 0; give every weight of the network a value."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    return model.eval()


@pytest.fixture
def model(tiny_diffusion_config: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return randomised(create_model_from_config(tiny_diffusion_config))


@pytest.fixture
def flow_model(tiny_diffusion_config: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    tiny_diffusion_config["model"]["diffusion"]["diffusion_objective"] = "rectified_flow"
    tiny_diffusion_config["model"]["diffusion"]["distribution_shift_options"] = {
        "min_length": 8,
        "max_length": 64,
    }
    return randomised(create_model_from_config(tiny_diffusion_config))


def generate(model: Any, **options: Any) -> Tensor:
    defaults = {
        "steps": 3,
        "cfg_scale": 3,
        "conditioning": PROMPT,
        "sample_size": 8192,
        "seed": 1,
        "device": "cpu",
    }
    return generate_diffusion_cond(model, **{**defaults, **options})


@pytest.mark.parametrize("sample_size", [8192, 4096, 1000, 1])
def test_the_length_is_the_one_asked_for(model: Any, sample_size: int) -> None:
    audio = generate(model, sample_size=sample_size)
    assert audio.shape == (1, 2, sample_size)
    assert audio.dtype == torch.float32
    latents = generate(model, sample_size=sample_size, return_latents=True)
    assert latents.shape == (1, 4, -(-sample_size // 128))


@pytest.mark.parametrize("seed", [0, 2**31 + 1, 2**32, 2**63 - 1])
def test_a_seed_gives_the_same_clip_and_another_seed_another(model: Any, seed: int) -> None:
    first = generate(model, seed=seed)
    assert torch.equal(first, generate(model, seed=seed))
    assert not torch.equal(first, generate(model, seed=seed // 2 + 7))


def test_noise_is_drawn_first_after_seeding(model: Any) -> None:
    starts: list[Tensor] = []
    generate(
        model,
        seed=5,
        sampler_type="v-ddim",
        callback=lambda info: starts.append(info["x"]),
        init_audio=None,
    )
    torch.manual_seed(5)
    torch.testing.assert_close(starts[0], torch.randn(1, 4, 64))


def test_a_random_seed_is_said_and_can_be_used_again(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    first = generate(model, seed=-1)
    said = capsys.readouterr().err
    assert "seed: " in said
    assert torch.equal(first, generate(model, seed=int(said.split("seed: ")[1].split()[0])))


def test_one_metadata_dict_serves_the_whole_batch(model: Any) -> None:
    both = generate(model, batch_size=2, conditioning=[PROMPT])
    listed = generate(model, batch_size=2, conditioning=[PROMPT, PROMPT])
    torch.testing.assert_close(both, listed)


@pytest.mark.parametrize("shape", [(8192,), (1, 8192), (2, 8192), (2, 2, 8192), (2, 1, 3000), (2, 20_000)])
def test_init_audio_of_any_shape(model: Any, shape: tuple[int, ...]) -> None:
    init = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.1
    options = {"batch_size": 2, "sampler_type": "dpmpp-2m", "sigma_min": 0.1, "init_noise_level": 2.0}
    audio = generate(model, init_audio=(16000, init), **options)
    assert audio.shape == (2, 2, 8192)
    assert not torch.equal(audio, generate(model, init_audio=(16000, init * 0), **options))


def test_mono_init_audio_is_the_same_as_its_stereo_copy_and_is_resampled(model: Any) -> None:
    mono = torch.sin(torch.arange(8192) * 0.05)
    options = {"sampler_type": "dpmpp-2m", "sigma_min": 0.1, "init_noise_level": 1.0}
    found = generate(model, init_audio=(16000, mono), **options)
    torch.testing.assert_close(found, generate(model, init_audio=(16000, mono.expand(2, -1)), **options))
    faster = generate(model, init_audio=(32000, torch.sin(torch.arange(16384) * 0.025)), **options)
    assert float((faster - found).abs().mean()) < 0.1 * float(found.abs().mean())


def test_a_half_precision_network_takes_float32_init_audio(model: Any) -> None:
    model.model.bfloat16()
    audio = generate(model, init_audio=(16000, torch.zeros(2, 8192)), init_noise_level=2.0, sigma_min=0.1)
    assert audio.dtype == torch.float32
    assert torch.isfinite(audio).all()


def test_a_quieter_init_noise_level_stays_closer_to_the_init_audio(flow_model: Any) -> None:
    init = torch.randn(2, 8192, generator=torch.Generator().manual_seed(0)) * 0.3
    torch.manual_seed(1)
    torch.randn(1, 4, 64)  # the starting noise, after which the VAE draws its own
    reference = flow_model.pretransform.encode(init[None])

    def distance(level: float) -> float:
        found = generate(flow_model, init_audio=(16000, init), init_noise_level=level, return_latents=True)
        return float((found - reference).square().mean())

    distances = [distance(level) for level in (0.05, 0.4, 1.0)]
    assert distances == sorted(distances)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp", "pingpong", "rk4"])
def test_the_schedule_trained_with_is_the_schedule_sampled_with(flow_model: Any, sampler: str) -> None:
    def levels(**options: Any) -> list[float]:
        seen: list[float] = []
        callback = lambda info: seen.append(float(info["t"]))  # noqa: E731
        generate(flow_model, steps=4, sampler_type=sampler, callback=callback, **options)
        return seen

    shifted, public = levels(), levels(dist_shift=False)
    assert shifted[0] == public[0] == 1
    expected = flow_model.dist_shift.shift(torch.tensor(public), 64)
    assert shifted == pytest.approx(expected.tolist(), abs=1e-5)
    assert shifted[2] > public[2]


def test_a_negative_prompt_changes_the_clip(model: Any) -> None:
    negative = {**PROMPT, "prompt": "loud drums"}
    assert not torch.equal(generate(model), generate(model, negative_conditioning=negative))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conditioning": None}, "give conditioning"),
        ({"conditioning": [PROMPT] * 3, "batch_size": 2}, "found 3 items, expected 1 or batch_size, 2"),
        ({"seed": -2}, "seed -2"),
        ({"seed": 2**63}, "seed 9223372036854775808"),
        ({"sampler_type": "euler"}, "'euler' does not fit a model of objective 'v'"),
        ({"sampler": "dpmpp-2m"}, "unknown sampler option 'sampler'; did you mean 'sampler_type'"),
        ({"batch_size": 0}, "expected at least 1"),
        (
            {"init_audio": (16000, torch.zeros(3, 2, 100))},
            "init_audio: found 3 clips, expected 1 or batch_size",
        ),
        ({"init_audio": (16000, torch.zeros(1, 1, 1, 5))}, "init_audio: found shape"),
        ({"device": "cuda:99"}, "cuda:99"),
    ],
)
def test_arguments_that_do_not_fit_are_named(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        generate(model, **options)


@pytest.fixture
def inpaint_model(tiny_diffusion_config: dict[str, Any]) -> Any:
    tiny_diffusion_config["model_type"] = "diffusion_cond_inpaint"
    diffusion = tiny_diffusion_config["model"]["diffusion"]
    diffusion["input_concat_ids"] = ["inpaint_mask", "inpaint_masked_input"]
    diffusion["config"]["input_concat_dim"] = 5
    diffusion["diffusion_objective"] = "rectified_flow"
    torch.manual_seed(0)
    return randomised(create_model_from_config(tiny_diffusion_config))


def inpaint(model: Any, **options: Any) -> Tensor:
    defaults = {
        "steps": 3,
        "conditioning": PROMPT,
        "sample_size": 8192,
        "seed": 1,
        "device": "cpu",
        "batch_size": 2,
    }
    return generate_diffusion_cond_inpaint(model, **{**defaults, **options})


def test_one_mask_serves_a_batch(inpaint_model: Any) -> None:
    audio = (16000, torch.randn(2, 8192, generator=torch.Generator().manual_seed(0)) * 0.2)
    mask = (torch.arange(8192) < 4000).float()
    found = inpaint(inpaint_model, inpaint_audio=audio, inpaint_mask=mask)
    for same in (mask[None], mask.expand(2, -1)):
        torch.testing.assert_close(inpaint(inpaint_model, inpaint_audio=audio, inpaint_mask=same), found)
    negative = {**PROMPT, "prompt": "loud"}
    inpaint(inpaint_model, inpaint_audio=audio, inpaint_mask=mask, negative_conditioning=negative)


def test_masked_out_audio_has_no_influence(inpaint_model: Any) -> None:
    audio = torch.randn(2, 8192, generator=torch.Generator().manual_seed(0)) * 0.2
    mask = torch.zeros(8192)
    found = inpaint(inpaint_model, inpaint_audio=(16000, audio), inpaint_mask=mask)
    torch.testing.assert_close(
        inpaint(inpaint_model, inpaint_audio=(16000, -audio), inpaint_mask=mask), found
    )
    torch.testing.assert_close(inpaint(inpaint_model), found)
    kept = inpaint(inpaint_model, inpaint_audio=(16000, audio), inpaint_mask=mask + 1)
    assert not torch.allclose(kept, found)


def test_an_inpainting_model_generates_from_scratch(inpaint_model: Any) -> None:
    found = generate(inpaint_model, batch_size=2, cfg_scale=6, negative_conditioning={**PROMPT, "prompt": ""})
    again = inpaint(inpaint_model, negative_conditioning={**PROMPT, "prompt": ""})
    torch.testing.assert_close(found, again)


@pytest.mark.parametrize("sampler", ["dpmpp-2m-sde", "k-dpm-fast", "v-ddim-cfgpp", "euler", "pingpong"])
def test_an_ordinary_model_is_led_around_what_is_kept(request: Any, sampler: str) -> None:
    flow = sampler in SAMPLERS["rectified_flow"]
    model = request.getfixturevalue("flow_model" if flow else "model")
    audio = torch.randn(2, 2, 8192, generator=torch.Generator().manual_seed(0)) * 0.2
    options = {"inpaint_audio": (16000, audio), "sampler_type": sampler, "return_latents": True}
    torch.manual_seed(1)
    torch.randn(2, 4, 64)  # the starting noise, after which the VAE draws its own
    known = model.pretransform.encode(audio)
    found = inpaint(model, inpaint_regions=[(0.1, 0.2), (0.3, 0.35)], **options)
    kept = torch.ones(64, dtype=torch.bool)
    for start, end in ((0.1, 0.2), (0.3, 0.35)):
        kept[round(start * 125) : round(end * 125)] = False  # 125 frames a second
    assert torch.equal(found[..., kept], known[..., kept])
    assert not torch.isclose(found, known)[..., ~kept].any(dim=1).all()
    mask = torch.ones(8192)
    mask[1600:3200] = mask[4800:5600] = 0
    by_mask = inpaint(model, inpaint_mask=mask, **options)
    assert torch.equal(by_mask[..., ~kept] != known[..., ~kept], found[..., ~kept] != known[..., ~kept])


def test_masks_without_audio_and_two_kinds_of_mask_are_refused(model: Any, inpaint_model: Any) -> None:
    with pytest.raises(UsageError, match="there is no inpaint_audio to keep parts of"):
        inpaint(model, inpaint_regions=[(0.1, 0.2)])
    with pytest.raises(UsageError, match="inpaint_mask or inpaint_regions; found both"):
        inpaint(inpaint_model, inpaint_regions=[(0.1, 0.2)], inpaint_mask=torch.ones(8192))
    assert inpaint(model).shape == (2, 2, 8192)  # nothing is kept: plain generation


def test_regions_are_the_mask_of_an_inpainting_model(inpaint_model: Any) -> None:
    audio = (16000, torch.randn(1, 8192, generator=torch.Generator().manual_seed(0)) * 0.2)
    mask = torch.ones(8192)
    mask[1600:3200] = 0
    torch.testing.assert_close(
        inpaint(inpaint_model, inpaint_audio=audio, inpaint_regions=[(0.1, 0.2)]),
        inpaint(inpaint_model, inpaint_audio=audio, inpaint_mask=mask),
    )


def test_a_model_may_take_the_mask_as_added_conditioning(tiny_diffusion_config: dict[str, Any]) -> None:
    diffusion = tiny_diffusion_config["model"]["diffusion"]
    diffusion["local_add_cond_ids"] = ["inpaint_mask", "inpaint_masked_input"]
    diffusion["config"]["local_add_cond_dim"] = 5
    torch.manual_seed(0)
    model = randomised(create_model_from_config(tiny_diffusion_config))
    audio = (16000, torch.randn(1, 8192, generator=torch.Generator().manual_seed(0)) * 0.2)
    assert not torch.equal(inpaint(model, inpaint_audio=audio, inpaint_regions=[(0.1, 0.2)]), inpaint(model))


@pytest.mark.parametrize(
    ("family", "sampler"),
    [(family, name) for family in SAMPLERS for name in SAMPLERS[family] if name != "k-dpm-adaptive"],
)
def test_negative_prompts_and_guidance_options_work_with_every_sampler(
    request: Any, family: str, sampler: str
) -> None:
    chosen = request.getfixturevalue("model" if family == "v" else "flow_model")
    options = {"sampler_type": sampler, "batch_size": 2, "scale_phi": 0.5, "cfg_interval": (0.0, 0.95)}
    negatives = [{**PROMPT, "prompt": "loud drums"}, {**PROMPT, "prompt": "hiss"}]
    found = generate(chosen, negative_conditioning=negatives, **options)
    assert torch.isfinite(found).all()
    assert not torch.equal(found, generate(chosen, **options))
    for more in ({"apg_scale": 1.0}, {"cfg_norm_threshold": 1e-6}):
        assert not torch.equal(found, generate(chosen, negative_conditioning=negatives, **options, **more))


def test_a_mask_of_the_wrong_batch_is_named(inpaint_model: Any) -> None:
    with pytest.raises(UsageError, match=r"inpaint_mask: found shape \(3, 8192\)"):
        inpaint(inpaint_model, inpaint_mask=torch.zeros(3, 8192))
