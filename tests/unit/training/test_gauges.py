"""What is measured of a run: its rate without what is not training, waiting, gradients; and what is said."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from stable_audio_tools.training import gauges as room
from stable_audio_tools.training.gauges import WINDOW, Gauges, gradient_norm, loader_advice, peak_memory
from stable_audio_tools.training.module import ModelTrainer

CPU = torch.device("cpu")


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(room, "time", clock)
    return clock


@pytest.fixture
def module():
    class Module(ModelTrainer):
        holder, role = "net", "net"

        def __init__(self):
            self.micro_batch, self.steps_done = 0, 0

        device = CPU

        def training_step(self, batch, batch_idx):
            """Not called."""

    return Module()


def play(gauges, module, clock, batches, wait, work, aside=0.0):
    """Batches of four clips: waited for, worked on, and then other callbacks take their time."""
    trainer = SimpleNamespace(world_size=2)
    gauges.on_train_start(trainer, module)
    for _ in range(batches):
        clock.now += wait
        gauges.on_train_batch_start(trainer, module, (None, [{}] * 4), 0)
        clock.now += work
        gauges.on_train_batch_end(trainer, module)
        clock.now += aside
        gauges.last.on_train_batch_end(trainer, module)


def test_the_rate_is_of_training_alone_and_over_all_ranks(clock, module):
    gauges = Gauges(10, -1, "do something")
    play(gauges, module, clock, batches=11, wait=0.1, work=0.4, aside=60.0)
    found = gauges.take(11, CPU)
    assert found["speed/steps_per_second"] == pytest.approx(2.0)
    assert found["speed/clips_per_second"] == pytest.approx(2.0 * 4 * 2)
    assert found["speed/waiting_for_data"] == pytest.approx(0.2)
    play(gauges, module, clock, batches=4, wait=0.0, work=0.25)
    assert gauges.take(15, CPU)["speed/steps_per_second"] == pytest.approx(4.0), "since the last call"


def test_the_first_batch_does_not_count_but_is_better_than_nothing(clock, module):
    gauges = Gauges(10, -1, "")
    play(gauges, module, clock, batches=1, wait=30.0, work=10.0)
    assert gauges.take(1, CPU)["speed/steps_per_second"] == pytest.approx(0.1)
    gauges = Gauges(10, -1, "")
    play(gauges, module, clock, batches=1, wait=30.0, work=10.0)
    play(gauges, module, clock, batches=2, wait=0.0, work=1.0)
    assert gauges.take(3, CPU)["speed/steps_per_second"] == pytest.approx(1.0)


def test_validation_is_no_waiting(clock, module):
    gauges = Gauges(10, -1, "")
    play(gauges, module, clock, batches=3, wait=0.0, work=1.0)
    clock.now += 500.0
    gauges.last.on_validation_end(SimpleNamespace(), module)
    play(gauges, module, clock, batches=1, wait=0.5, work=1.0)
    assert gauges.take(4, CPU)["speed/waiting_for_data"] == pytest.approx(0.5 / 3.5)


def test_a_slow_loader_is_named_once_with_what_to_do(clock, module, capsys):
    gauges = Gauges(10, -1, loader_advice(3, stored=False))
    play(gauges, module, clock, batches=WINDOW, wait=3.0, work=1.0)
    gauges.take(WINDOW, CPU)
    assert capsys.readouterr().err == "", "not enough batches yet"
    play(gauges, module, clock, batches=WINDOW, wait=3.0, work=1.0)
    gauges.take(2 * WINDOW, CPU)
    said = capsys.readouterr().err
    assert f"step {2 * WINDOW}: 75% of the last {WINDOW} batches was spent waiting for data" in said
    assert "--num-workers, now 3" in said
    assert "sat pre-encode" in said
    play(gauges, module, clock, batches=WINDOW, wait=3.0, work=1.0)
    gauges.take(3 * WINDOW, CPU)
    assert capsys.readouterr().err == ""


def test_a_quick_loader_is_not_named(clock, module, capsys):
    gauges = Gauges(10, -1, "do something")
    play(gauges, module, clock, batches=3 * WINDOW, wait=0.2, work=1.0)
    gauges.take(3 * WINDOW, CPU)
    assert capsys.readouterr().err == ""


def test_stored_latents_are_not_advised_to_who_has_them():
    assert "pre-encode" not in loader_advice(4, stored=True)


def test_the_norm_is_that_of_all_gradients():
    first, second = torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": [second]}], lr=1.0)
    assert gradient_norm(optimizer) is None
    first.grad, second.grad = torch.full((2, 3), 2.0), torch.full((4,), -3.0)
    found = gradient_norm(optimizer)
    assert found is not None
    assert float(found) == pytest.approx(math.sqrt(6 * 4 + 4 * 9))


def test_the_memory_of_this_process_is_known():
    peak = peak_memory(CPU)
    assert peak is not None
    assert 50e6 < peak < 1e12
