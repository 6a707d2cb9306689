"""The experiment of section 4.2: configurations, stages of the learning rate, runs and their continuation."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from resuming import assert_resumes, assert_same_run, record_steps

from rwslib import data, records
from rwslib.evaluation import active_units
from rwslib.experiments import EXPERIMENTS, VAEConfig, run, stored, vae
from rwslib.experiments.common import evenly
from rwslib.methods import METHODS, usable
from rwslib.models.vae import GenerativeModel, InferenceNetwork
from rwslib.noise import Noise, Tape
from rwslib.training import Trainer

NUM_TRAIN, NUM_TEST = 1498, 299  # of the embedded digits


def tiny(method="iwae", num_particles=2, **changes):
    settings = {"dataset": "digits", "num_stages": 1, "num_runs": 2, "batch_size": 128, "eval_particles": 20}
    return VAEConfig(method, num_particles, **settings | changes)


@pytest.fixture(autouse=True)
def alone_and_quick(monkeypatch, tmp_path):
    """No published records, and curves from few images: how well they are estimated is not tested here."""
    monkeypatch.setenv("RWSLIB_PUBLISHED", str(tmp_path / "published"))
    monkeypatch.setattr(vae, "CURVE_IMAGES", 20)


# -- configurations ------------------------------------------------------------------------------------

BAD = [
    ({"method": "wake"}, "method must be one of .*, got 'wake'"),
    ({"method": "relax"}, "method must be one of .*, got 'relax'"),
    ({"method": None}, "method must be one of"),
    ({"method": ["iwae"]}, "method must be one of"),
    ({"num_particles": 0}, "num_particles must be a whole number of at least 1, got 0"),
    ({"num_particles": "8"}, "num_particles must be a whole number .*, got '8'"),
    ({"num_particles": 8.0}, "num_particles"),
    ({"num_particles": True}, "num_particles"),
    ({"method": "vimco", "num_particles": 1}, "num_particles must be at least 2 for method 'vimco', got 1"),
    ({"method": "tvo", "num_particles": 1}, "num_particles must be at least 2"),
    ({"method": "rws_dreg", "num_particles": 1}, "num_particles must be at least 2"),
    ({"dataset": "MNIST"}, r"dataset must be one of \['mnist', 'digits'\], got 'MNIST'"),
    ({"dataset": None}, "dataset must be one of"),
    ({"num_stages": 0}, "num_stages must be a whole number of at least 1, got 0"),
    ({"num_stages": 9}, "num_stages must be at most 8, got 9"),
    ({"num_stages": 1.5}, "num_stages"),
    ({"num_stages": "8"}, "num_stages must be a whole number .*, got '8'"),
    ({"annealing": -1}, "annealing must be a whole number of at least 0, got -1"),
    ({"num_runs": 0}, "num_runs must be a whole number of at least 1, got 0"),
    ({"num_runs": None}, "num_runs"),
    ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
    ({"batch_size": 32.0}, "batch_size"),
    ({"learning_rate": 0}, "learning_rate must be a number above 0, got 0"),
    ({"learning_rate": -1e-3}, "learning_rate"),
    ({"learning_rate": "1e-3"}, "learning_rate must be a number above 0, got '1e-3'"),
    ({"learning_rate": float("nan")}, "learning_rate"),
    ({"learning_rate": float("inf")}, "learning_rate"),
    ({"eval_particles": 0}, "eval_particles must be a whole number of at least 1, got 0"),
    ({"eval_particles": 5e3}, "eval_particles"),
    ({"precision": "float16"}, "precision must be 'float32' or 'bfloat16', got 'float16'"),
    ({"precision": torch.float32}, "precision"),
    ({"decoder": "mine"}, "decoder must be a record's key of 16 hexadecimal digits, or \"\", got 'mine'"),
    ({"decoder": "9AF91A072B666CC2"}, "decoder"),
    ({"decoder": None}, "decoder"),
    ({"seed": 0}, "seed must be a whole number from 1 to .*, got 0"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**32}, "seed must be a whole number from 1 to"),
    ({"seed": 1.0}, "seed"),
    ({"wake_weight": 0.5}, "wake_weight must be None for method 'iwae', which has no such option, got 0.5"),
    ({"method": "ww", "wake_weight": 1}, "wake_weight must be None for method 'ww'"),
    ({"method": "wws", "wake_weight": 0}, "wake_weight must be a number between 0 and 1, got 0"),
    ({"method": "wws", "wake_weight": 1.0}, "wake_weight must be a number between 0 and 1, got 1.0"),
    ({"method": "wws", "wake_weight": "half"}, "wake_weight"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_values_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        VAEConfig(**({"method": "iwae", "num_particles": 8} | changes))
    assert "\n" not in str(error.value)


def test_every_field_has_a_bad_value_above():
    fields = set(VAEConfig.__dataclass_fields__) - {"experiment"}
    assert {name for changes, _ in BAD for name in changes} == fields


def test_the_mixture_weight_is_filled_in_where_it_applies():
    assert VAEConfig("wws", 8) == VAEConfig("wws", 8, wake_weight=0.5)
    assert VAEConfig("wws", 8, wake_weight=0.8).wake_weight == 0.8
    assert VAEConfig("ww", 8).wake_weight is None


def test_a_configuration_is_plain_and_comes_back():
    config = VAEConfig("wws", 8, dataset="digits", precision="bfloat16")
    assert json.loads(json.dumps(asdict(config))) == asdict(config)
    assert EXPERIMENTS["vae"].config(**asdict(config)) == config


def test_the_methods_are_all_that_a_continuous_latent_allows():
    left_out = {"dww", "dww_wrong_density", "nvil", "vimco_scores"}  # they need more
    allowed = {name for name, method in METHODS.items() if method.latent in ("any", "reparameterisable")}
    assert set(usable(*vae.OFFERS)) == allowed - left_out


# -- stages --------------------------------------------------------------------------------------------


def test_the_paper_has_3280_epochs():
    epochs = [VAEConfig("iwae", 8, num_stages=stages).num_epochs for stages in range(1, 9)]
    assert epochs == [1, 4, 13, 40, 121, 364, 1093, 3280]


def test_learning_rates_are_those_of_burda_et_al():
    expected = [1e-3, 7.2e-4, 5.2e-4, 3.7e-4, 2.7e-4, 1.9e-4, 1.4e-4, 1e-4]
    assert vae.stage_rates(1e-3) == pytest.approx(expected, rel=1e-12)
    assert vae.stage_rates(5e-4) == pytest.approx([rate / 2 for rate in expected], rel=1e-12)


@pytest.mark.parametrize(("batch_size", "steps_per_epoch"), [(128, 11), (32, 46), (1498, 1)])
def test_the_learning_rate_falls_at_the_end_of_each_stage(batch_size, steps_per_epoch):
    problem = vae.problem(tiny(num_stages=8, batch_size=batch_size))
    assert problem.num_iterations == 3280 * steps_per_epoch
    assert problem.log_every == steps_per_epoch
    ends = [0, *(epochs * steps_per_epoch for epochs in (1, 4, 13, 40, 121, 364, 1093, 3280))]
    for rate, first, end in zip(vae.stage_rates(1e-3), ends, ends[1:], strict=False):
        for iteration in (first, end - 1):
            found = problem.learning_rate(torch.tensor(iteration, dtype=torch.float64))
            assert found.item() == pytest.approx(rate, rel=1e-6)


def test_the_length_of_a_run_does_not_change_its_learning_rates():
    short, long = (vae.problem(tiny(num_stages=stages)).learning_rate for stages in (2, 8))
    for iteration in (0, 10, 11, 43):
        iteration = torch.tensor(iteration, dtype=torch.float64)
        assert short(iteration) == long(iteration)


# -- the training problem ------------------------------------------------------------------------------


def test_training_starts_from_the_mean_image():
    trainer = Trainer(vae.problem(tiny()), range(2), compiled=False)
    mean = data.load("digits").train.flatten(1).double().mean(dim=0) / 255
    expected = torch.logit(mean.clamp(1e-3, 1 - 1e-3)).float()
    bias = trainer.params["parts.p.decoder.layers.2.bias"]
    torch.testing.assert_close(bias, expected.expand(2, -1), rtol=1e-5, atol=1e-5)
    weight = trainer.params["parts.p.decoder.layers.2.weight"]
    assert not torch.equal(weight[0], weight[1])


def test_steps_are_those_of_torch_adam_with_the_rows_and_rates_of_the_stages(monkeypatch):
    """101 images and two steps an epoch: ten steps cross the ends of two stages and of five epochs."""
    few = data.Digits(*(part[:101] for part in data.load("digits")))
    monkeypatch.setattr(data, "load", lambda name: few)
    config = tiny(num_particles=3, num_stages=3, num_runs=1, batch_size=50)
    trainer = Trainer(vae.problem(config), [0], compiled=False)
    images = few.train.flatten(1)
    parts = trainer.networks.modules(0)
    optimiser = torch.optim.Adam(parts.parameters(), lr=1e-3, eps=1e-4)
    rates = [1e-3] * 2 + [7.2e-4] * 6 + [5.2e-4] * 2
    while trainer.iteration < len(rates):
        uniform, normal, rows = (tensor[0] for tensor in trainer.draw(trainer.block))
        for step in range(trainer.block):
            optimiser.param_groups[0]["lr"] = rates[trainer.iteration + step]
            noise = Tape(uniform[step], normal[step])
            x = data.binarize(images[rows[step]], noise)
            loss = METHODS["iwae"].function(parts["p"], parts["q"], x, 3, noise).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        trainer.train_block()
    assert trainer.iteration == len(rates)
    for name, value in parts.named_parameters():
        found = trainer.params[f"parts.{name}"][0]
        close = torch.isclose(found, value.detach(), rtol=1e-4, atol=2e-6)
        # where a gradient is all rounding, Adam's division makes steps of it
        assert (~close).sum() <= 1e-4 * close.numel(), name
        torch.testing.assert_close(found, value.detach(), rtol=1e-3, atol=1e-5)


def test_an_image_is_binarised_afresh_in_every_epoch():
    """All images in one batch: sorted by row, two epochs differ in grey pixels only, and a seed repeats."""
    images = data.load("digits").train.flatten(1)

    def epochs(seed):
        problem = vae.problem(tiny(batch_size=NUM_TRAIN, seed=seed))
        trainer, found = Trainer(problem, [0], compiled=False), []
        for _ in range(2):
            uniform, normal, rows = (tensor[0, 0] for tensor in trainer.draw(1))
            x = problem.draw_batch(Tape(uniform, normal), rows)
            found.append(x[rows.argsort()])
            trainer.iteration += 1
        return found

    first, second = epochs(seed=1)
    differs = first != second
    grey = (images > 0) & (images < 255)
    assert not differs[~grey].any()
    intensity = images[grey] / 255
    chance = 2 * intensity * (1 - intensity)
    error = (chance * (1 - chance)).sum().sqrt()
    assert (differs[grey].sum() - chance.sum()).abs() < 5 * error
    assert all(torch.equal(a, b) for a, b in zip(epochs(seed=1), (first, second), strict=True))
    assert not torch.equal(epochs(seed=2)[0], first)


def test_test_images_are_binarised_once_and_for_all():
    images, grey = vae.test_images("digits"), data.load("digits").test.flatten(1)
    assert images.shape == (NUM_TEST, 784)
    assert torch.equal(images, vae.test_images("digits"))
    assert (images[grey == 0] == 0).all()
    assert (images[grey == 255] == 1).all()


@pytest.mark.parametrize("method", usable(*vae.OFFERS))
def test_every_method_trains(method):
    """One epoch of 23 steps: all parameters move, and the test bound rises, but for the noisiest."""
    trainer = Trainer(vae.problem(tiny(method, 4, num_runs=1, batch_size=64)), [0], compiled=False)
    before = {name: value.clone() for name, value in trainer.params.items()}
    bound = trainer.train()["test_bound"][0]
    for name, value in before.items():
        assert not torch.equal(trainer.params[name], value), name
    assert bound[-1] > bound[0] + 5 or method in ("reinforce", "vimco_no_log_k")
    assert np.isfinite(bound).all()


def test_a_larger_batch_than_the_data_is_refused():
    with pytest.raises(ValueError, match="batch_size must be at most the 1498 data, got 1499"):
        Trainer(vae.problem(tiny(batch_size=1499)), [0])


def test_bfloat16_trains_to_the_same_bound():
    """One epoch with the same noise, in which the bound rises by many times the difference."""
    bounds = []
    for precision in ("float32", "bfloat16"):
        config = tiny(num_particles=4, num_runs=1, batch_size=64, precision=precision)
        trainer = Trainer(vae.problem(config), [0], compiled=False)
        bounds.append(trainer.train()["test_bound"][0])
        assert all(value.dtype == torch.float32 for value in trainer.params.values())
    assert not np.array_equal(*bounds)
    np.testing.assert_allclose(*bounds, rtol=0, atol=0.3)
    assert bounds[0][-1] > bounds[0][0] + 5


def test_images_are_taken_evenly():
    images = torch.arange(10)
    assert evenly(images, 5).tolist() == [0, 2, 4, 6, 8]
    assert evenly(images, 3).tolist() == [0, 3, 6]
    assert evenly(images, 10).tolist() == evenly(images, 99).tolist() == images.tolist()


def test_final_metrics_are_means_with_their_standard_errors():
    torch.manual_seed(0)
    p, q, x = GenerativeModel(), InferenceNetwork(), vae.test_images("digits")
    found = vae.final_metrics(p, q, x, 30, Noise(1))
    log_marginals = []
    noise = Noise(1)
    with torch.no_grad():
        for some in x.split(20):
            z, log_q = q.sample(some, 30, noise)
            log_marginals.append(torch.logsumexp(p.log_joint(z, some) - log_q, dim=0) - math.log(30))
        means = q.moments(x)[0]
    log_marginals = torch.cat(log_marginals)
    torch.testing.assert_close(found["log_marginal"], log_marginals.mean())
    torch.testing.assert_close(found["log_marginal_se"], log_marginals.std() / math.sqrt(NUM_TEST))
    torch.testing.assert_close(found["log_marginal_first"], log_marginals[:100])
    torch.testing.assert_close(found["kl_q_p"], found["log_marginal"] - found["elbo"], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found["unit_variance"], means.var(dim=0, correction=0))
    assert found["active_units"] == active_units(means)
    assert 1 <= found["ess"] <= 30


# -- runs ----------------------------------------------------------------------------------------------

CURVES = ("train_bound", "test_bound")
ESTIMATES = ("log_marginal", "kl_q_p", "elbo", "ess")


def checkpoints(folder):
    return sorted((folder / "vae").glob("*.checkpoint"))


def test_annealing_is_added_to_a_run_without_training_it_again(tmp_path, monkeypatch):
    plain = run(tiny(), tmp_path).metrics
    monkeypatch.setattr(Trainer, "train_block", None)
    found = run(tiny(annealing=4), tmp_path).metrics
    assert {name: found[name].tolist() for name in plain} == {n: v.tolist() for n, v in plain.items()}
    names = [f"annealed_{name}{end}" for name in ("log_marginal", "gain", "ess") for end in ("", "_se")]
    assert found.keys() - plain.keys() == set(names)
    assert all(np.isfinite(found[name]).all() for name in names)
    without = found["annealed_log_marginal"] - found["annealed_gain"]  # of all images, there are few
    np.testing.assert_allclose(without, plain["log_marginal"], rtol=1e-5)


def test_a_record_has_the_documented_metrics(tmp_path):
    config = tiny(num_stages=2)
    assert stored(config, tmp_path) is None
    record = run(config, tmp_path)
    shapes = {name: value.shape for name, value in record.metrics.items()}
    expected = {"iteration": (5,), "active_units": (2,), "log_marginal_first": (2, 100)}
    expected |= {"unit_variance": (2, 50)}
    expected |= {name: (2, 5) for name in CURVES} | {f"{name}_final": (2,) for name in CURVES}
    expected |= {name: (2,) for name in ESTIMATES} | {f"{name}_se": (2,) for name in ESTIMATES}
    assert shapes == expected
    metrics = record.metrics
    assert all(np.isfinite(value).all() for value in metrics.values())
    assert metrics["iteration"].tolist() == [0, 11, 22, 33, 44]
    for name in CURVES:
        np.testing.assert_array_equal(metrics[f"{name}_final"], metrics[name][:, -1])
        assert (metrics[name][:, -1] > metrics[name][:, 0]).all()
        assert metrics[name][0, -1] != metrics[name][1, -1]
    np.testing.assert_allclose(metrics["kl_q_p"], metrics["log_marginal"] - metrics["elbo"], atol=1e-3)
    assert ((metrics["active_units"] >= 0) & (metrics["active_units"] <= 50)).all()
    active = (metrics["unit_variance"] > 0.01).sum(axis=1)
    np.testing.assert_array_equal(metrics["active_units"], active)
    assert ((metrics["ess"] >= 1) & (metrics["ess"] <= 20)).all()
    assert {value.shape[0] for value in record.weights().values()} == {2}
    assert record.weights()["q.mean.layers.0.weight"].shape == (2, 50, 200)
    assert record.config == records.plain(config)


def test_the_recorded_log_marginals_follow_from_the_recorded_weights(tmp_path):
    """New particles, five standard errors of their difference."""
    config = tiny(num_runs=1, eval_particles=100)
    record = run(config, tmp_path)
    parts = vae.build()
    for part, module in parts.items():
        weights = {name: torch.from_numpy(value[0]) for name, value in record.weights().items()}
        own = {name.removeprefix(f"{part}."): value for name, value in weights.items() if name[0] == part}
        module.load_state_dict(own)
    found = vae.final_metrics(parts["p"], parts["q"], vae.test_images("digits"), 100, Noise(9))
    difference = found["log_marginal_first"].numpy() - record.metrics["log_marginal_first"][0]
    assert abs(difference.mean()) < 5 * difference.std() / 10
    assert difference.std() < 5


def test_an_interrupted_run_goes_on_and_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    steps = assert_resumes(tiny(num_stages=2, num_runs=1), 33, tmp_path, monkeypatch)
    assert min(steps) == 33  # a checkpoint is written on the way out


def test_a_longer_run_goes_on_from_a_shorter_one_and_equals_one_from_scratch(tmp_path, monkeypatch):
    """And a shorter one asked for afterwards trains by itself and leaves the longer checkpoint alone."""
    short, long = tiny("ww", num_runs=1), tiny("ww", num_runs=1, num_stages=2)
    steps = record_steps(monkeypatch)
    first = run(short, tmp_path / "grown")
    grown = run(long, tmp_path / "grown")
    assert sorted(steps) == list(range(44))  # none twice
    whole = run(long, tmp_path / "whole")
    assert_same_run(grown, whole)

    (checkpoint,) = checkpoints(tmp_path / "whole")
    content = checkpoint.read_bytes()
    steps.clear()
    afterwards = run(short, tmp_path / "whole")
    assert sorted(steps) == list(range(11))
    assert_same_run(afterwards, first)
    assert checkpoint.read_bytes() == content
    assert checkpoints(tmp_path / "whole") == [checkpoint]


def test_more_evaluation_particles_need_no_training(tmp_path, monkeypatch):
    first = run(tiny(), tmp_path)
    monkeypatch.setattr(Trainer, "train_block", None)  # cannot be called
    again = run(tiny(eval_particles=40), tmp_path)
    for name, value in first.weights().items():
        np.testing.assert_array_equal(again.weights()[name], value)
    assert (again.metrics["log_marginal"] != first.metrics["log_marginal"]).all()
    assert (again.metrics["ess"] > first.metrics["ess"]).all()


def test_a_run_that_trains_otherwise_starts_afresh(tmp_path):
    config = tiny(num_runs=1)
    run(config, tmp_path)
    others = [{"seed": 2}, {"learning_rate": 2e-3}, {"num_particles": 3}, {"method": "vae"}]
    for count, changes in enumerate(others, start=2):
        run(replace(config, **changes), tmp_path)
        assert len(checkpoints(tmp_path)) == count


def test_a_published_record_is_taken_without_training(tmp_path, monkeypatch):
    config = tiny(num_runs=1)
    record = run(config, tmp_path / "results")
    records.publish(record.path)
    monkeypatch.setattr(Trainer, "train_block", None)
    assert_same_run(run(config, tmp_path / "elsewhere"), record)


def test_a_decoder_that_is_given_stays_and_the_network_learns(tmp_path, monkeypatch):
    """All replicates keep the model of the record's first replicate; the networks are new."""
    monkeypatch.setenv("RWSLIB_RESULTS", str(tmp_path))
    first = run(tiny())
    second = run(tiny("rws_dreg", 8, decoder=first.key))
    before, after = first.weights(), second.weights()
    for name, value in after.items():
        same = [np.array_equal(value[replicate], before[name][0]) for replicate in range(2)]
        assert same == [name.startswith("p.")] * 2, name
    curve = second.metrics["test_bound"]
    assert (curve[:, -1] > curve[:, 0]).all()


def test_a_decoder_that_is_nowhere_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setenv("RWSLIB_RESULTS", str(tmp_path))
    light = run(tiny(num_runs=1))
    (light.path / records.WEIGHTS).unlink()
    for key in ("0" * 16, light.key):
        with pytest.raises(
            ValueError, match=f"decoder must be the key of a stored record of .*, got '{key}'"
        ):
            run(tiny(decoder=key))


def test_a_run_that_learns_its_model_keeps_the_key_that_it_had():
    assert "decoder" not in records.plain(tiny())
    assert records.plain(tiny(decoder="0" * 16))["decoder"] == "0" * 16
