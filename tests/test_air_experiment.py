"""The experiment of section 4.1: configurations, warm-up, training of all methods, runs, what is measured."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from resuming import assert_resumes
from torch import nn

from rwslib import data, records
from rwslib.experiments import AIRConfig, air, configuration, modules, run, stored
from rwslib.methods import METHODS, usable
from rwslib.models.air import Latents
from rwslib.noise import Noise
from rwslib.training import Trainer

NUM_TRAIN, NUM_TEST = 60, 30


def tiny(method="ww", num_particles=2, **changes):
    settings = {"dataset": "digits", "num_iterations": 4, "batch_size": 4}
    settings |= {"dream_iterations": 0, "sorted_dreams": False}
    settings |= {"eval_particles": 6, "eval_scenes": 10}
    return AIRConfig(method, num_particles, **settings | changes)


@pytest.fixture(autouse=True)
def alone_and_quick(monkeypatch, tmp_path):
    """No published records, few scenes and particles: how well a metric is estimated is not tested here."""
    monkeypatch.setenv("RWSLIB_PUBLISHED", str(tmp_path / "published"))
    monkeypatch.setattr(data, "NUM_SCENES", {"train": NUM_TRAIN, "test": NUM_TEST})
    monkeypatch.setattr(air, "LEAST_BETWEEN_LOGS", 1)
    monkeypatch.setattr(air, "CURVE_SCENES", 6)
    monkeypatch.setattr(air, "CURVE_PARTICLES", 3)
    monkeypatch.setattr(air, "WEIGHTED_PARTICLES", 5)
    data._scenes.cache_clear()
    yield
    data._scenes.cache_clear()


# -- configurations ------------------------------------------------------------------------------------

BAD = [
    ({"method": "wake"}, "method must be one of .*, got 'wake'"),
    ({"method": "iwae"}, "method must be one of .*, got 'iwae'"),
    ({"method": None}, "method must be one of"),
    ({"method": ["ww"]}, r"method must be one of .*, got \['ww'\]"),
    ({"num_particles": 0}, "num_particles must be a whole number of at least 1, got 0"),
    ({"num_particles": "8"}, "num_particles must be a whole number .*, got '8'"),
    ({"num_particles": 8.0}, "num_particles"),
    ({"num_particles": True}, "num_particles"),
    ({"method": "vimco", "num_particles": 1}, "num_particles must be at least 2 for method 'vimco', got 1"),
    ({"method": "vimco_air2018", "num_particles": 1}, "num_particles must be at least 2"),
    ({"dataset": "MNIST"}, r"dataset must be one of \['mnist', 'digits'\], got 'MNIST'"),
    ({"dataset": ["digits"]}, r"dataset must be one of .*, got \['digits'\]"),
    ({"num_iterations": 0}, "num_iterations must be a whole number of at least 1, got 0"),
    ({"num_iterations": 1e5}, "num_iterations must be a whole number .*, got 100000.0"),
    ({"num_runs": 0}, "num_runs must be a whole number of at least 1, got 0"),
    ({"num_runs": None}, "num_runs"),
    ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
    ({"batch_size": 32.0}, "batch_size"),
    ({"optimizer": "sgd"}, r"optimizer must be one of \['adam', 'rmsprop'\], got 'sgd'"),
    ({"optimizer": None}, "optimizer must be one of"),
    ({"optimizer": ["adam"]}, r"optimizer must be one of \['adam', 'rmsprop'\], got \['adam'\]"),
    ({"optimizer": {}}, r"optimizer must be one of .*, got \{\}"),
    ({"learning_rate": 0}, "learning_rate must be a number above 0, got 0"),
    ({"learning_rate": "1e-3"}, "learning_rate must be a number above 0, got '1e-3'"),
    ({"learning_rate": float("nan")}, "learning_rate"),
    ({"decay_at": 0.5}, "decay_at must be a list of fractions, got 0.5"),
    ({"decay_at": "0.5"}, "decay_at must be a list of fractions, got '0.5'"),
    ({"decay_at": (0.5, 1)}, "decay_at must be a number between 0 and 1, got 1"),
    ({"decay_at": (0, 0.5)}, "decay_at must be a number between 0 and 1, got 0"),
    ({"decay_at": ("half",)}, "decay_at must be a number between 0 and 1, got 'half'"),
    ({"pixel_sd": 0}, "pixel_sd must be a number between 0 and 100, got 0"),
    ({"pixel_sd": "0.3"}, "pixel_sd must be a number between 0 and 100, got '0.3'"),
    ({"eval_particles": 0}, "eval_particles must be a whole number of at least 1, got 0"),
    ({"eval_particles": 5e3}, "eval_particles"),
    ({"eval_scenes": 1}, "eval_scenes must be a whole number of at least 2, got 1"),
    ({"eval_scenes": 0}, "eval_scenes must be a whole number of at least 2, got 0"),
    ({"eval_scenes": NUM_TEST + 1}, f"eval_scenes must be at most the {NUM_TEST} test scenes, got 31"),
    ({"eval_scenes": 10.0}, "eval_scenes"),
    ({"seed": 0}, "seed must be a whole number from 1 to .*, got 0"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**32}, "seed must be a whole number from 1 to"),
    ({"dream_iterations": -1}, "dream_iterations must be a whole number of at least 0, got -1"),
    ({"num_iterations": 600}, "num_iterations must be above the 600 of dream_iterations, got 600"),
    (
        {"dream_iterations": 10, "warmup_iterations": 9},
        "warmup_iterations must be 0 where dreams come first, got 9",
    ),
    ({"sorted_dreams": 1}, "sorted_dreams must be true or false, got 1"),
    ({"warmup_iterations": -1}, "warmup_iterations must be a whole number of at least 0, got -1"),
    ({"warmup_iterations": 0.5}, "warmup_iterations"),
    ({"presence_logit": 20}, "presence_logit must be a number between -20 and 20, got 20"),
    ({"presence_logit": float("nan")}, "presence_logit"),
    ({"presence_logit": None}, "presence_logit"),
    ({"shift_sd": 0.01}, "shift_sd must be a number between 0.01 and 100, got 0.01"),
    ({"shift_sd": 1000}, "shift_sd must be a number between 0.01 and 100, got 1000"),
    ({"shift_sd": "0.5"}, "shift_sd"),
    ({"scale_prior": -0.4}, r"scale_prior must be a pair \(mean, standard deviation\), got -0.4"),
    ({"scale_prior": (0, 1, 2)}, "scale_prior must be a pair"),
    ({"scale_prior": "ab"}, "scale_prior must be a pair"),
    ({"scale_prior": ("0", 1)}, "scale_prior must be a number"),
    ({"scale_prior": (float("inf"), 1)}, "scale_prior must be a number"),
    ({"scale_prior": (0, 0)}, "scale_prior must be a number above 0, got 0"),
    ({"scale_prior": (0, -1)}, "scale_prior must be a number above 0, got -1"),
    ({"background": -100}, "background must be a number between -100 and 100, got -100"),
    ({"background": "-5"}, "background"),
    ({"learn_count": 1}, "learn_count must be true or false, got 1"),
    ({"learn_count": None}, "learn_count must be true or false, got None"),
    ({"center_weights": 1}, "center_weights must be true or false, got 1"),
    (
        {"method": "ws", "center_weights": True},
        "center_weights must be None for method 'ws', which has no such option, got True",
    ),
    ({"delta": 0.2}, "delta must be None for method 'ww', which has no such option, got 0.2"),
    ({"method": "dww", "delta": 0}, "delta must be a number between 0 and 1, got 0"),
    ({"method": "dww", "delta": 1.0}, "delta must be a number between 0 and 1, got 1.0"),
    ({"method": "dww", "delta": "a bit"}, "delta must be a number"),
    ({"wake_weight": 0.5}, "wake_weight must be None for method 'ww', which has no such option, got 0.5"),
    ({"method": "wws", "wake_weight": 0}, "wake_weight must be a number between 0 and 1, got 0"),
    ({"method": "wws", "wake_weight": 1}, "wake_weight must be a number between 0 and 1, got 1"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_values_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        AIRConfig(**({"method": "ww", "num_particles": 8, "eval_scenes": 10} | changes))
    assert "\n" not in str(error.value)


def test_every_field_has_a_bad_value_above():
    fields = set(AIRConfig.__dataclass_fields__) - {"experiment"}
    assert {name for changes, _ in BAD for name in changes} == fields


def test_options_are_filled_in_where_they_apply():
    assert tiny("wws").wake_weight == 0.5
    assert tiny("wws", wake_weight=0.8).wake_weight == 0.8
    assert tiny("dww").delta == 0.2
    assert tiny("ww").center_weights is False
    assert tiny("ww", center_weights=True).center_weights is True
    for method in ("vimco", "ws", "reinforce", "nvil", "vimco_air2018"):
        config = tiny(method)
        assert (config.center_weights, config.delta, config.wake_weight) == (None, None, None)


def test_a_configuration_is_plain_and_comes_back():
    config = tiny("dww", decay_at=[0.3], scale_prior=[0, 1], background=-4)
    plain = json.loads(json.dumps(records.plain(config)))
    assert configuration(plain) == config
    assert config.decay_at == (0.3,)
    assert config.scale_prior == (0, 1)
    assert hash(config) == hash(configuration(plain))


def test_fields_that_came_later_leave_the_keys_of_earlier_records_alone():
    """Where dreams do not come first a configuration is what it was before there was the choice."""
    later = {"dream_iterations", "sorted_dreams"}
    assert not later & set(records.plain(tiny()))
    dreaming = replace(tiny(), dream_iterations=2, sorted_dreams=True)
    assert later <= set(records.plain(dreaming))
    assert configuration(records.plain(dreaming)) == dreaming
    assert len({records.key(records.plain(c)) for c in (tiny(), dreaming, tiny(num_particles=3))}) == 3


def test_the_methods_are_all_that_mixed_latents_allow():
    left_out = {"tvo", "ovis", "rloo", "vimco_no_log_k", "dww_wrong_density"}  # no mixed score
    allowed = {name for name, method in METHODS.items() if method.latent == "any"}
    assert set(usable(*air.OFFERS)) == allowed - left_out


# -- the training problem ------------------------------------------------------------------------------


def test_networks_start_as_configured():
    parts = air.build(tiny(scale_prior=(-0.7, 0.2), background=-4, presence_logit=2, shift_sd=0.3))
    assert parts.keys() == {"p", "q"}
    p, q = parts["p"], parts["q"]
    assert p.background.item() == -4
    assert p.where_mean.tolist() == pytest.approx([-0.7, -0.7, 0, 0])
    assert p.where_log_sd.exp().tolist() == pytest.approx([0.2, 0.2, 1, 1])
    assert (q.presence[-1].weight == 0).all()
    assert q.presence[-1].bias.item() == 2
    assert q.where[-1].bias[:2].tolist() == pytest.approx([-0.7, -0.7])
    assert (nn.functional.softplus(q.where[-1].bias[-2:]) + 0.01).tolist() == pytest.approx([0.3, 0.3])
    assert "count_logits" in dict(p.named_parameters())
    assert "count_logits" not in dict(air.build(tiny(learn_count=False))["p"].named_parameters())
    assert isinstance(air.build(tiny("nvil"))["control_variate"], air.Baseline)


def test_the_learning_rate_is_divided_by_three_at_each_fraction():
    rate = air.problem(tiny(num_iterations=1000, decay_at=(0.2, 0.5), learning_rate=9e-4)).learning_rate
    for iteration, expected in [(0, 9e-4), (199, 9e-4), (200, 3e-4), (499, 3e-4), (500, 1e-4), (999, 1e-4)]:
        found = rate(torch.tensor(iteration, dtype=torch.float64)).item()
        assert found == pytest.approx(expected, rel=1e-6), iteration
    rate = air.problem(tiny(decay_at=(), learning_rate=9e-4)).learning_rate
    assert rate(torch.tensor(3, dtype=torch.float64)).item() == pytest.approx(9e-4)


def test_metrics_are_logged_about_a_hundred_times():
    for num_iterations, log_every in [(4, 1), (100, 1), (1000, 10), (30_000, 300), (2_000_000, 20_000)]:
        assert air.problem(tiny(num_iterations=num_iterations)).log_every == log_every


def test_a_normal_likelihood_sees_grey_scenes(tmp_path):
    config = tiny(pixel_sd=0.3)
    grey = data.scenes("digits", "train").images.flatten(1)
    rows = torch.arange(20)
    assert torch.equal(air.problem(config).draw_batch(Noise(1), rows), grey[rows] / 255)
    assert torch.equal(
        air.test_scenes("digits", grey=True)[0], data.scenes("digits", "test").images.flatten(1) / 255
    )
    record, binary = run(config, tmp_path), run(tiny(), tmp_path).metrics
    metrics, p = record.metrics, modules(record)["p"]
    again = air.dream_metrics(p, air.test_scenes("digits", grey=True)[0], config.seed, replicate=0)
    assert np.array_equal(metrics["dreams"][0], again["dreams"])
    assert np.isfinite(metrics["log_marginal"]).all()
    assert set(np.unique(binary["dreams"])) <= {0, 1}
    assert 0.2 < metrics["dreams"].std() < 0.4  # noise on the pixels, and next to nothing drawn yet
    assert metrics["pixel_distance"][0] > binary["pixel_distance"][0]


def test_the_distance_between_pixels_is_that_of_their_distributions():
    a = torch.tensor([0.0, 0.0, 0.0, 1.0]).repeat(10, 5)
    assert air.pixel_distance(a, a.flip(1)) == 0  # wherever they are
    assert air.pixel_distance(a, 1 - a).item() == pytest.approx(0.5)
    assert air.pixel_distance(a, a[:3] + 0.25).item() == pytest.approx(0.25)


def test_training_scenes_are_binarised_afresh_and_test_scenes_once():
    problem = air.problem(tiny())
    grey = data.scenes("digits", "train").images.flatten(1)
    rows = torch.arange(20)
    first, second = problem.draw_batch(Noise(1), rows), problem.draw_batch(Noise(2), rows)
    assert first.shape == (20, 2500)
    assert (first[grey[rows] == 0] == 0).all()
    assert (first[grey[rows] == 255] == 1).all()
    assert (first != second).any()
    x, truth = air.test_scenes("digits")
    assert x.shape == (NUM_TEST, 2500)
    assert torch.equal(x, air.test_scenes("digits")[0])
    assert torch.equal(truth.images, data.scenes("digits", "test").images)


CURVES = ("train_bound", "test_bound", "count_accuracy", "boxes_inside")


@pytest.mark.parametrize("method", usable(*air.OFFERS))
def test_every_method_trains(method):
    trainer = Trainer(air.problem(tiny(method, 3)), [0], compiled=False)
    before = {name: value.clone() for name, value in trainer.params.items()}
    curves = trainer.train()
    for name, value in before.items():
        assert torch.isfinite(trainer.params[name]).all(), name
        assert not torch.equal(trainer.params[name], value), name
    assert {name: value.shape for name, value in curves.items()} == {
        "iteration": (5,), "count_probs": (1, 5, 4), **dict.fromkeys(CURVES, (1, 5)),
    }  # fmt: skip
    assert all(np.isfinite(value).all() for value in curves.values())
    np.testing.assert_allclose(curves["count_probs"].sum(axis=-1), 1, rtol=1e-5)
    assert ((curves["count_accuracy"] >= 0) & (curves["count_accuracy"] <= 1)).all()
    finals = trainer.problem.finish(trainer.networks)
    assert {value.shape for name, value in finals.items() if name != "dreams"} == {(1,)}


def test_rmsprop_trains_otherwise_than_adam():
    ends = []
    for optimizer in ("adam", "rmsprop"):
        trainer = Trainer(air.problem(tiny(optimizer=optimizer)), [0], compiled=False)
        assert trainer.problem.optimizer is air.OPTIMIZERS[optimizer]
        trainer.train()
        ends.append(trainer.params["parts.p.background"].item())
    assert ends[0] != ends[1]
    assert all(math.isfinite(end) for end in ends)


def parameters_after(config, iterations, replicates=(0,)):
    trainer = Trainer(air.problem(config), replicates, compiled=False)
    while trainer.iteration < iterations:
        trainer.train_block()
    return trainer.params


@pytest.mark.parametrize("method", ["ww", "vimco"])
def test_warm_up_holds_presence_and_the_prior_count_and_nothing_else(method):
    config = tiny(method, num_iterations=6, warmup_iterations=3)
    start, held, free = (parameters_after(config, iterations) for iterations in (0, 3, 4))
    for name, value in start.items():
        is_held = name.startswith(("parts.q.presence", "parts.p.count_logits"))
        assert torch.equal(held[name], value) == is_held, name
        if is_held and ("presence" not in name or name.endswith(("6.bias", "6.weight"))):
            assert not torch.equal(free[name], value), name
    # without warm-up they move from the first step on
    moved = parameters_after(replace(config, warmup_iterations=0), 1)
    assert not torch.equal(moved["parts.p.count_logits"], start["parts.p.count_logits"])


def test_presence_does_not_depend_on_the_image_before_it_is_free():
    config = tiny(num_iterations=6, warmup_iterations=3, presence_logit=0.7)
    trainer = Trainer(air.problem(config), [0], compiled=False)
    while trainer.iteration < 3:
        trainer.train_block()
    q = trainer.networks.modules(0)["q"]
    logits = q.presence(torch.randn(5, 256))
    torch.testing.assert_close(logits, torch.full((5, 1), 0.7))


@pytest.mark.parametrize("method", ["ww", "nvil"])
def test_a_replicate_does_not_depend_on_its_neighbours(method):
    config = tiny(method)
    together, alone = (parameters_after(config, 2, replicates) for replicates in ([0, 1], [1]))
    for name, value in alone.items():
        torch.testing.assert_close(value[0], together[name][1], rtol=0, atol=1e-7)
    weight = together["parts.q.what.0.weight"]
    assert not torch.equal(weight[0], weight[1])


def test_a_larger_batch_than_the_data_is_refused():
    with pytest.raises(ValueError, match=f"batch_size must be at most the {NUM_TRAIN} data, got 61"):
        Trainer(air.problem(tiny(batch_size=NUM_TRAIN + 1)), [0])


# -- runs ----------------------------------------------------------------------------------------------

ESTIMATES = ("log_marginal", "kl_q_p", "elbo", "ess")
JUDGED = ("count_accuracy_sample", "count_accuracy_mode", "count_accuracy_weighted", "box_iou")


def test_a_record_has_the_documented_metrics(tmp_path):
    config = tiny(num_runs=2)
    assert stored(config, tmp_path) is None
    record = run(config, tmp_path)
    expected = {"iteration": (5,), "count_probs": (2, 5, 4)}
    expected |= {name: (2, 5) for name in CURVES} | {f"{name}_final": (2,) for name in CURVES}
    expected |= {name: (2,) for name in (*ESTIMATES, *JUDGED)}
    expected |= {"dreams": (2, 7, 2500), "pixel_distance": (2,)}
    expected |= {f"{name}_se": (2,) for name in ESTIMATES}
    expected |= {f"{name}_{n}_objects": (2,) for name in ESTIMATES for n in range(3)}
    metrics = record.metrics
    assert {name: value.shape for name, value in metrics.items()} == expected
    assert all(np.isfinite(value).all() for value in metrics.values())
    assert metrics["iteration"].tolist() == [0, 1, 2, 3, 4]
    for name in CURVES:
        np.testing.assert_array_equal(metrics[f"{name}_final"], metrics[name][:, -1])
    for name in JUDGED:
        assert ((metrics[name] >= 0) & (metrics[name] <= 1)).all()
    np.testing.assert_allclose(metrics["kl_q_p"], metrics["log_marginal"] - metrics["elbo"], atol=1e-2)
    assert ((metrics["ess"] >= 1) & (metrics["ess"] <= 6)).all()
    assert metrics["log_marginal"][0] != metrics["log_marginal"][1]
    assert {value.shape[0] for value in record.weights().values()} == {2}
    assert record.weights()["p.count_logits"].shape == (2, 4)
    assert record.config == records.plain(config)
    assert not list((tmp_path / "air").glob("*.checkpoint"))


def test_an_interrupted_run_goes_on_and_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    steps = assert_resumes(tiny("vimco", warmup_iterations=1), 3, tmp_path, monkeypatch)
    assert steps == [3]  # a checkpoint is written on the way out


# -- what a run is judged by ---------------------------------------------------------------------------


def box_table(*rows):
    return torch.tensor(rows, dtype=torch.float32)


NONE = [0, 0, 0, 0]


def test_box_overlap_on_cases_by_hand():
    left, right, half = [0, 0, 10, 10], [20, 20, 10, 10], [5, 0, 10, 10]
    cases = [  # found, true, digits, mean intersection over union
        ([left, NONE], [left, NONE], 1, 1),
        ([left, right], [left, right], 2, 1),
        ([right, left], [left, right], 2, 1),  # the order does not matter
        ([left, left], [left, right], 2, 0.5),
        ([half, NONE], [left, NONE], 1, 50 / 150),
        ([right, half], [left, NONE], 1, 50 / 150),  # one too many does no harm
        ([left, NONE], [left, right], 2, 0.5),  # one is missing
        ([NONE, NONE], [left, right], 2, 0),
        ([right, NONE], [left, NONE], 1, 0),
        ([[0, 0, 5, 10], NONE], [left, NONE], 1, 0.5),  # inside
        ([[2, 2, 5, 5], right], [left, [20, 20, 10, 5]], 2, (0.25 + 0.5) / 2),
        ([[10, 0, 10, 10], NONE], [left, NONE], 1, 0),  # they touch
        ([left, NONE], [NONE, NONE], 0, math.nan),
        ([NONE, NONE], [NONE, NONE], 0, math.nan),
    ]
    found, true = (torch.stack([box_table(*case[i]) for case in cases]) for i in (0, 1))
    counts, expected = (torch.tensor([case[i] for case in cases]) for i in (2, 3))
    torch.testing.assert_close(air.box_overlap(found, true, counts), expected.float(), equal_nan=True)
    torch.testing.assert_close(air.box_overlap(found, true.long(), counts), expected.float(), equal_nan=True)


class Prescribed:
    """A q that gives the prescribed counts ``[20, N]``, and a p and log q that weigh them."""

    def __init__(self, counts, log_w=None):
        self.counts, self.log_w, self.first = counts, log_w, 0

    def sample(self, x, num_particles, noise):
        which = slice(self.first, self.first + len(x))
        self.first += len(x)
        count = self.counts[:num_particles, which]
        log_w = torch.zeros(count.shape) if self.log_w is None else self.log_w[:num_particles, which]
        return Latents(count, None, log_w), torch.ones(count.shape)

    def log_joint(self, z, x):
        return z.what + 1


def test_counts_of_q_are_those_of_the_first_particle_and_of_the_majority():
    counts = torch.zeros(20, 250, dtype=torch.int64)
    counts[:, 0] = torch.tensor([2] * 7 + [1] * 8 + [3] * 5)
    counts[:, 1] = 3
    counts[0, 2] = 1
    counts[:, 249] = torch.tensor([1] + [2] * 19)  # in the second piece of 200
    first, mode = air.q_counts(Prescribed(counts), torch.zeros(250, 1), Noise(0))
    assert first.shape == mode.shape == (250,)
    assert first[[0, 1, 2, 3, 249]].tolist() == [2, 3, 1, 0, 1]
    assert mode[[0, 1, 2, 3, 249]].tolist() == [1, 3, 0, 0, 2]


def test_weighted_counts_are_the_heaviest():
    counts = torch.tensor([[1, 0, 2], [1, 3, 2], [2, 3, 0], [3, 1, 0]]).repeat(1, 30)[:, :85]
    weights = torch.tensor([[0.2, 0.4, 0.1], [0.3, 0.2, 0.1], [0.4, 0.25, 0.1], [0.1, 0.15, 0.1]])
    log_w = weights.log().repeat(1, 30)[:, :85] + 500 * torch.randn(85)  # the scale plays no part
    both = Prescribed(counts, log_w)
    found = air.weighted_counts(both, both, torch.zeros(85, 1), 4, Noise(0))
    assert found.tolist() == ([1, 3, 0] * 30)[:85]  # 0.5; 0.45; a tie goes to the smaller count


@pytest.mark.parametrize(
    ("eval_scenes", "num", "expected"),
    [
        (500, 10_000, range(0, 10_000, 20)),
        (1000, 10_000, range(0, 10_000, 10)),
        (10_000, 10_000, range(10_000)),
        (6, 10, [0, 1, 3, 5, 6, 8]),
        (2, 30, [0, 15]),
    ],
)
def test_exactly_so_many_test_scenes_are_evaluated_and_evenly_spaced(eval_scenes, num, expected, monkeypatch):
    """Every scene's number is its only pixel; what reaches the estimates is recorded."""
    monkeypatch.setattr(data, "NUM_SCENES", {"train": 60, "test": num})
    seen = []

    def recorded(p, q, x, num_particles, noise, **options):
        seen.append(x[:, 0].tolist())
        return {"log_marginal": x[:, 0]}

    monkeypatch.setattr(air, "importance_estimates", recorded)
    monkeypatch.setattr(air, "weighted_counts", lambda p, q, x, num, noise: torch.ones(len(x)))
    monkeypatch.setattr(air, "q_counts", lambda q, x, noise: (torch.ones(len(x)), torch.zeros(len(x))))

    class NoObjects:
        def sample(self, x, num_particles, noise):
            return Latents(torch.zeros(1, len(x)), torch.zeros(1, len(x), 3, 4), None), None

    x, counts = torch.arange(float(num))[:, None], torch.arange(num) % 3
    boxes = torch.tensor([[1.0, 1, 5, 5], NONE]).expand(num, -1, -1)
    config = tiny(eval_scenes=eval_scenes)
    found = air.final_metrics(None, NoObjects(), x, counts, boxes, config, Noise(0))
    assert seen == [list(expected)]
    chosen = torch.tensor(list(expected), dtype=torch.float32)
    torch.testing.assert_close(found["log_marginal"], chosen.mean())
    torch.testing.assert_close(found["log_marginal_se"], chosen.std() / math.sqrt(eval_scenes))
    assert torch.isfinite(found["log_marginal_se"])
    for n in range(3):
        of_count = chosen[chosen.long() % 3 == n]
        torch.testing.assert_close(found[f"log_marginal_{n}_objects"], of_count.mean(), equal_nan=True)
    ones = (torch.tensor(list(expected)) % 3 == 1).float().mean()
    torch.testing.assert_close(found["count_accuracy_weighted"], ones)
    torch.testing.assert_close(found["count_accuracy_sample"], (counts == 1).float().mean())
    torch.testing.assert_close(found["count_accuracy_mode"], (counts == 0).float().mean())
    assert found["box_iou"] == 0


def test_two_scenes_are_enough_for_finite_standard_errors():
    config = tiny(eval_scenes=2)
    trainer = Trainer(air.problem(config), [0], compiled=False)
    found = trainer.problem.finish(trainer.networks)
    assert all(torch.isfinite(found[f"{name}_se"]).all() for name in ESTIMATES)


class Seeing(nn.Module):
    """A q that finds the true boxes of the scenes by their number, with one more box than there is."""

    def __init__(self, where, counts):
        super().__init__()
        self.where, self.counts = where, counts

    def sample(self, x, num_particles, noise):
        rows = x[:, 0].long()
        shape = (num_particles, len(x))
        where = self.where[rows].expand(*shape, 3, 4)
        log_q = torch.zeros(shape)
        return Latents(self.counts[rows].expand(shape), where, torch.zeros(*shape, 3, 50)), log_q

    def log_joint(self, z, x):
        return torch.zeros(z.count.shape)


def test_a_q_that_knows_the_truth_gets_full_marks():
    """Boxes go from pixels to logits and back, in the convention that all records share."""
    truth = data.scenes("digits", "test")
    boxes = truth.boxes.float()
    scale = boxes[..., 2:] / 50
    shift = (2 * boxes[..., :2] / 50 - 1 + scale).clamp(-0.999, 0.999)
    where = torch.cat([scale.clamp(0.001, 0.999).logit(), shift.atanh()], dim=-1)
    where = torch.cat([where, torch.zeros(NUM_TEST, 1, 4)], dim=1)
    both, x = Seeing(where, truth.counts), torch.arange(float(NUM_TEST))[:, None]
    torch.testing.assert_close(air.nominal_boxes(where)[:, :2], boxes, rtol=0, atol=0.3)
    found = air.final_metrics(both, both, x, truth.counts, truth.boxes, tiny(), Noise(0))
    for name in JUDGED:
        assert found[name].item() == pytest.approx(1, abs=1e-3), name
    assert found["log_marginal"] == 0
    blind = Seeing(where, torch.zeros_like(truth.counts))
    found = air.final_metrics(blind, blind, x, truth.counts, truth.boxes, tiny(), Noise(0))
    assert found["box_iou"] == 0
    assert found["count_accuracy_sample"] == (truth.counts == 0).float().mean()
