"""Clips reach the trackers that can play them, each in its own words."""

from __future__ import annotations

import pytest
import torch
from pytorch_lightning.loggers import CometLogger, TensorBoardLogger, WandbLogger

from stable_audio_tools.audio.files import save_audio
from stable_audio_tools.audio.plots import spectrogram_png
from stable_audio_tools.training.media import ShownClip, show_clip
from stable_audio_tools.training.trackers import CsvLogger


@pytest.fixture
def clip(tmp_path):
    audio = torch.rand(2, 4000, generator=torch.Generator().manual_seed(0)) - 0.5
    wav, png = tmp_path / "00_cfg3.wav", tmp_path / "00_cfg3.png"
    save_audio(wav, audio, 16000)
    png.write_bytes(spectrogram_png(audio, 16000))
    return ShownClip("00_cfg3", "slow <b>jazz</b>", audio, 16000, wav, png)


class Calls:
    """Writes down what is called."""

    def __init__(self):
        self.made = []

    def __getattr__(self, name):
        return lambda *args, **named: self.made.append((name, args, named))


def test_tensorboard_has_sound_picture_and_prompt(tmp_path, clip):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoardLogger(tmp_path, name="tensorboard", version="")
    show_clip([CsvLogger(tmp_path / "metrics.csv"), board], clip, 40)
    board.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"audio": 0, "images": 0})
    events.Reload()
    assert events.Tags()["audio"] == ["demo/00_cfg3"]
    assert events.Tags()["images"] == ["demo/00_cfg3/spectrogram"]
    [sound] = events.Audio("demo/00_cfg3")
    assert (sound.step, sound.sample_rate) == (40, 16000)
    assert events.Tags()["tensors"] == ["demo/00_cfg3/prompt/text_summary"]
    assert not (tmp_path / "metrics.csv").exists()


def test_weights_and_biases_gets_files_with_captions(monkeypatch, clip):
    calls = Calls()
    board = WandbLogger.__new__(WandbLogger)
    monkeypatch.setattr(WandbLogger, "log_audio", lambda _, *args, **named: calls.log_audio(*args, **named))
    monkeypatch.setattr(WandbLogger, "log_image", lambda _, *args, **named: calls.log_image(*args, **named))
    show_clip([board], clip, 40)
    (first, args, named), (second, picture, _) = calls.made
    assert (first, second) == ("log_audio", "log_image")
    assert args == ("demo/00_cfg3", [str(clip.wav)])
    assert named == {"step": 40, "caption": ["slow <b>jazz</b>"]}
    assert picture == ("demo/00_cfg3/spectrogram", [str(clip.png)])


def test_comet_gets_files_with_the_prompt(monkeypatch, clip):
    calls = Calls()
    board = CometLogger.__new__(CometLogger)
    monkeypatch.setattr(CometLogger, "experiment", calls)
    show_clip([board], clip, 40)
    (first, args, named), (second, _, picture) = calls.made
    assert (first, second) == ("log_audio", "log_image")
    assert args == (str(clip.wav),)
    assert named["metadata"] == {"prompt": "slow <b>jazz</b>"}
    assert named["step"] == picture["step"] == 40
