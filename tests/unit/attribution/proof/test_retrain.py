"""Many models at once are the models one by one, and a run in pieces is a run in one go."""

from __future__ import annotations

import math

import pytest
import torch

from stable_audio_tools.attribution.gradients.measurements import loss
from stable_audio_tools.attribution.gradients.task import DiffusionTask
from stable_audio_tools.attribution.proof.jobs import Results, run_jobs
from stable_audio_tools.attribution.proof.retrain import Job, NetworkData, Retrainer, RetrainSettings
from stable_audio_tools.attribution.settings import FeatureSettings
from stable_audio_tools.diffusion.noise import keyed_noise
from stable_audio_tools.errors import StoreError, TrainingError
from stable_audio_tools.runtime.seeds import generator
from stable_audio_tools.training.loss import diffusion_loss

SETTINGS = RetrainSettings(steps=6, batch_size=4, precision="float32")
TIMES = (0.2, 0.6)


@pytest.fixture
def retrainer(config, model, tracks):
    data = NetworkData.of(model, tracks(model, 15, "t", 0))
    return Retrainer(config, data, SETTINGS, torch.device("cpu"))


@pytest.fixture
def queries(model, tracks):
    return NetworkData.of(model, tracks(model, 5, "q", 1))


def jobs(count=3):
    return [Job(f"half/{i}", tuple(range(i, i + 8)), i % 2) for i in range(count)]


def test_a_stack_of_models_is_each_of_them_alone(retrainer, queries):
    together = retrainer.train(jobs())
    measured = retrainer.measure(together, queries, TIMES, draws=2)
    assert measured.shape == (3, 5, 4)
    for number, job in enumerate(jobs()):
        alone = retrainer.train([job])
        for name, values in together.items():
            torch.testing.assert_close(values[number], alone[name][0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            measured[number], retrainer.measure(alone, queries, TIMES, 2)[0], rtol=1e-5, atol=1e-5
        )


def test_one_step_is_a_step_of_adamw_on_the_training_loss(config, model, retrainer):
    """The same weights from the shipped loss, autograd and optimizer, without vmap."""
    retrainer.settings = RetrainSettings(steps=1, batch_size=4, precision="float32")
    job = jobs()[1]
    found = retrainer.train([job])
    network = type(model.model)(config.model.diffusion.config, config.model.diffusion.diffusion_objective)
    network.load_state_dict(retrainer.state_dict(retrainer._initial([job]), 0))
    rows, times, kept = (part[0] for part in retrainer._draws(job))
    batch = retrainer.data.rows(rows)
    inputs = {**batch.inputs, "cross_attn_cond": batch.inputs["cross_attn_cond"] * kept[:, None, None]}
    noise = torch.randn(batch.latents.shape, generator=generator("proof-noise", job.seed, job.name))
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=SETTINGS.learning_rate,
        betas=SETTINGS.betas,
        weight_decay=SETTINGS.weight_decay,
    )
    diffusion_loss(network, batch.latents, noise, times, inputs, "v", batch.mask).mean.backward()
    optimizer.step()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(found[name][0], parameter.detach(), rtol=1e-5, atol=1e-6)


def test_draws_come_from_the_job_alone(retrainer):
    rows, times, kept = retrainer._draws(jobs()[2])
    assert rows.shape == times.shape == kept.shape == (6, 4)
    assert set(rows.flatten().tolist()) == set(range(2, 10))
    counts = rows.flatten().bincount(minlength=15)[2:10]
    assert counts.min() == counts.max() == 3
    other = retrainer._draws(Job("half/2", jobs()[2].rows, 1))
    assert not torch.equal(times, other[1])


def test_measuring_does_not_depend_on_how_many_queries_go_at_once(retrainer, queries):
    weights = retrainer._initial(jobs())
    torch.testing.assert_close(
        retrainer.measure(weights, queries, TIMES, at_once=2),
        retrainer.measure(weights, queries, TIMES, at_once=5),
    )


def test_training_learns(config, model, tracks):
    """The loss on the tracks themselves falls."""
    data = NetworkData.of(model, tracks(model, 4, "t", 0))
    data.latents[:] = torch.tensor([2.0, -2.0, 1.0, 0.0])[:, None]
    settings = RetrainSettings(steps=80, batch_size=4, precision="float32", learning_rate=5e-3)
    trainer = Retrainer(config, data, settings, torch.device("cpu"))
    job = Job("all", (0, 1, 2, 3), 0)
    before = trainer.measure(trainer._initial([job]), data, TIMES).mean()
    after = trainer.measure(trainer.train([job]), data, TIMES).mean()
    assert after < 0.6 * before


def test_a_start_is_where_all_models_start(config, model, queries, tracks):
    data = NetworkData.of(model, tracks(model, 12, "t", 0))
    trainer = Retrainer(config, data, SETTINGS, torch.device("cpu"), model.model.state_dict())
    weights = trainer._initial(jobs(2))
    for name, parameter in model.model.named_parameters():
        assert torch.equal(weights[name][0], parameter)
        assert torch.equal(weights[name][1], parameter)


def test_broken_training_names_its_model(config, model, tracks):
    data = NetworkData.of(model, tracks(model, 12, "t", 0))
    data.latents[3] = math.inf
    trainer = Retrainer(config, data, SETTINGS, torch.device("cpu"))
    with pytest.raises(TrainingError, match="model half/0: its loss is not finite"):
        trainer.train(jobs(1))


def run(retrainer, folder, queries, **options):
    results = Results(folder, {"of": "this test"})
    done = run_jobs(
        retrainer,
        jobs(7),
        results,
        lambda: queries,
        TIMES,
        draws=1,
        at_once=2,
        description="models",
        **options,
    )
    return done, results.read()


def test_pieces_and_shards_give_what_one_pass_gives(tmp_path, retrainer, queries):
    done, whole = run(retrainer, tmp_path / "one", queries)
    assert done
    assert len(whole) == 7
    # Killed after the first stack, continued by two processes with other stacks.
    trained, kept = [], retrainer.train

    def only_one(*arguments):
        if trained:
            raise KeyboardInterrupt
        trained.append(arguments)
        return kept(*arguments)

    retrainer.train = only_one
    with pytest.raises(KeyboardInterrupt):
        run(retrainer, tmp_path / "pieces", queries)
    retrainer.train = kept
    assert len(Results(tmp_path / "pieces", {"of": "this test"}).read()) == 2
    for number in range(2):
        done, found = run(retrainer, tmp_path / "pieces", queries, shard=(number, 2))
        assert done
    assert set(found) == set(whole)
    for key, values in whole.items():
        torch.testing.assert_close(found[key], values, rtol=1e-5, atol=1e-5)


def test_nothing_begins_after_the_deadline(tmp_path, retrainer, queries):
    done, found = run(retrainer, tmp_path, queries, deadline=0.0)
    assert not done
    assert not found


def test_results_of_other_settings_are_refused(tmp_path):
    Results(tmp_path, {"steps": 1})
    with pytest.raises(StoreError, match="holds results of other settings"):
        Results(tmp_path, {"steps": 2})


def test_the_measured_loss_is_the_attributed_one(model, retrainer, queries, tracks):
    """What retraining measures and what ``f = loss`` differentiates is the same function of the network."""
    batch = tracks(model, 5, "q", 1)
    weights = {name: p.detach()[None] for name, p in model.model.named_parameters()}
    found = retrainer.measure(weights, queries, (0.3,))[0, :, 0]
    noise = keyed_noise(batch.latents.shape[1:], "proof-measure", 0, 0).expand_as(batch.latents)
    task = DiffusionTask(model, FeatureSettings())
    t = torch.full((5,), 0.3)
    inputs = model.get_conditioning_inputs({k: list(v) for k, v in batch.conditioning.items()})
    with torch.no_grad():
        output = model.model(task.objective.add_noise(batch.latents, noise, t), t, **inputs)
    expected = loss(output, task.objective.target(batch.latents, noise, t), batch.mask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
