"""Demos are made from the average, shown on a page, and never harm the run."""

from __future__ import annotations

import pytest
import torch

from stable_audio_tools.audio.files import probe
from stable_audio_tools.training import demos
from stable_audio_tools.training.run import train

CONDITIONS = [{"prompt": "rock <b>music</b>", "seconds_start": 0, "seconds_total": 1}]
DEMO = {
    "demo_every": 2,
    "demo_steps": 2,
    "num_demos": 2,
    "demo_cond": CONDITIONS,
    "demo_cfg_scales": [1, 4.5],
}


def weights(run):
    return torch.load(run / "checkpoints/step=00000004.ckpt", weights_only=True)["state_dict"]


def test_demos_are_clips_pictures_and_a_page(make_settings, tiny_diffusion_config):
    tiny_diffusion_config["training"]["demo"] = DEMO
    run = train(make_settings())
    folder = run / "demos" / "step=00000002"
    clips = sorted(path.name for path in folder.glob("*.wav"))
    assert clips == ["00_cfg1.wav", "00_cfg4.5.wav", "01_cfg1.wav", "01_cfg4.5.wav"]
    info = probe(folder / clips[0])
    assert (info.sample_rate, info.channels, info.num_frames) == (16000, 2, 8192)
    page = (run / "demos" / "index.html").read_text(encoding="utf-8")
    assert "Step 4" in page
    assert "&lt;b&gt;" in page
    assert "<b>music" not in page


def test_prompts_can_come_from_the_batch(make_settings, tiny_diffusion_config):
    tiny_diffusion_config["training"]["demo"] = {**DEMO, "demo_cond_from_batch": True, "demo_cfg_scales": [1]}
    run = train(make_settings(max_steps=2))
    prompts = [path.read_text() for path in sorted((run / "demos" / "step=00000002").glob("*.txt"))]
    assert len(prompts) == 2
    assert all(prompt.endswith(".wav") for prompt in prompts), "the prompts of the training batch"


def test_demos_do_not_change_what_is_trained(make_settings, tiny_diffusion_config):
    plain = train(make_settings())
    tiny_diffusion_config["training"]["demo"] = DEMO
    shown = train(make_settings())
    first, second = weights(plain), weights(shown)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_average_is_what_is_heard(make_settings, tiny_diffusion_config, monkeypatch):
    heard = []

    def listen(model, **_):
        heard.append(model.model)
        return torch.zeros(2, 2, 100)

    monkeypatch.setattr(demos, "generate_diffusion_cond", listen)
    averages = []
    work = demos.Demos.work

    def watch(self, model, module, step):
        averages.append(module.diffusion_ema.ema_model)
        return work(self, model, module, step)

    monkeypatch.setattr(demos.Demos, "work", watch)
    tiny_diffusion_config["training"]["demo"] = DEMO
    train(make_settings(max_steps=2))
    assert heard
    assert all(network is averages[0] for network in heard)


def test_a_failing_demo_is_said_and_survived(make_settings, tiny_diffusion_config, monkeypatch, capsys):
    def fail(*_, **__):
        raise ValueError("no such\nsound")

    monkeypatch.setattr(demos, "generate_diffusion_cond", fail)
    tiny_diffusion_config["training"]["demo"] = DEMO
    run = train(make_settings())
    assert (run / "checkpoints" / "step=00000004.ckpt").is_file()
    assert "step 2: the demo failed and training goes on: no such sound" in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{"num_demos": 0}, {"demo_cond": []}])
def test_nothing_to_show_is_no_error(make_settings, tiny_diffusion_config, changes, capsys):
    tiny_diffusion_config["training"]["demo"] = {**DEMO, **changes}
    run = train(make_settings(max_steps=2))
    assert not (run / "demos").exists()
    assert "failed" not in capsys.readouterr().err
