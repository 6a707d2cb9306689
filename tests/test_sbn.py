"""Sigmoid belief networks: densities and samplers against enumeration, and their configurations."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from toys import all_tuples

from rwslib import methods
from rwslib.annealing import annealed_estimates
from rwslib.evaluation import importance_estimates
from rwslib.experiments import SBNConfig, run, sbn
from rwslib.methods import METHODS, usable
from rwslib.models.sbn import GenerativeModel, InferenceNetwork
from rwslib.noise import Noise

PIXELS = 12
LAYERS = pytest.mark.parametrize(("latents", "hidden"), [((10,), ()), ((10,), (7,)), ((3, 4, 3), ())])


def networks(latents, hidden, seed=0):
    torch.manual_seed(seed)
    p = GenerativeModel(latents, hidden, num_pixels=PIXELS).double()
    q = InferenceNetwork(latents, hidden, num_pixels=PIXELS).double()
    torch.nn.init.normal_(p.top)
    with torch.no_grad():  # near enough for importance weights that are not too uneven
        for value in p.parameters():
            value.mul_(0.15)
    x = (torch.rand(4, PIXELS) < 0.5).double()
    return p, q, x


def all_vectors(num_data, num_latents=10):
    """Every vector of coins for every datum, ``[2**D, B, D]``."""
    return all_tuples(2, num_latents).T[:, None].expand(-1, num_data, -1)


@LAYERS
def test_evidence_by_enumeration_is_the_importance_estimate(latents, hidden):
    p, q, x = networks(latents, hidden)
    with torch.no_grad():
        exact = torch.logsumexp(p.log_joint(all_vectors(len(x)), x), dim=0)
        z, log_q = q.sample(x, 50_000, Noise(3))
        ratio = (p.log_joint(z, x) - log_q - exact).exp()
    error = ratio.std(dim=0) / math.sqrt(len(ratio))
    assert ((ratio.mean(dim=0) - 1).abs() < 5 * error).all()
    assert (error < 0.05).all()


def far_networks(latents, hidden):
    """Networks of which the inference network is several nats from the posterior."""
    p, q, x = networks(latents, hidden)
    with torch.no_grad():
        for module, factor in ((p, 8), (q, -4)):
            for value in module.parameters():
                value.mul_(factor)
        exact = torch.logsumexp(p.log_joint(all_vectors(len(x)), x), dim=0)
    return p, q, x, exact


@LAYERS
def test_the_annealed_evidence_is_that_by_enumeration(latents, hidden):
    p, q, x, exact = far_networks(latents, hidden)
    num_chains = 500
    found = annealed_estimates(p, q, x, num_chains, 200, Noise(3), images_at_once=3)
    error = (1 / found["ess"] - 1 / num_chains).sqrt()
    assert (error < 0.25).all()
    assert (((found["log_marginal"] - exact).exp() - 1).abs() < 4 * error).all()
    plain = importance_estimates(p, q, x, num_chains, Noise(3))
    assert (found["ess"] > 2 * plain["ess"]).all()  # what annealing is for


def test_annealing_in_one_step_is_importance_sampling():
    p, q, x, _ = far_networks((10,), ())
    found = annealed_estimates(p, q, x, 7, 1, Noise(3))
    plain = importance_estimates(p, q, x, 7, Noise(3))
    for name, values in found.items():
        torch.testing.assert_close(values, plain[name])


def test_a_run_can_end_with_annealing(tmp_path):
    short = {"dataset": "digits", "latents": (6,), "num_iterations": 3, "num_runs": 2, "eval_images": 20}
    found = run(SBNConfig("ww", 4, annealing=5, **short), results_dir=tmp_path).metrics
    plain = run(SBNConfig("ww", 4, **short), results_dir=tmp_path).metrics
    assert {name: found[name].tolist() for name in plain} == {n: v.tolist() for n, v in plain.items()}
    more = {name for name in found if name not in plain}
    names = ("annealed_log_marginal", "annealed_kl_q_p", "annealed_ess")
    assert more == {name + end for name in names for end in ("", "_se")}
    np.testing.assert_allclose(
        found["annealed_kl_q_p"], found["annealed_log_marginal"] - found["elbo"], rtol=1e-5
    )


@LAYERS
def test_the_densities_sum_to_one(latents, hidden):
    p, q, x = networks(latents, hidden)
    total = torch.logsumexp(q.log_prob(all_vectors(len(x)), x), dim=0)
    torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-12)
    images = all_tuples(2, PIXELS).T.double()
    z = p.sample(1, Noise(1))[0].double()[None].expand(-1, len(images), -1)
    prior = torch.logsumexp(p.log_joint(all_vectors(1), x[:1])[:, 0] - p.log_likelihood(
        all_vectors(1)[..., -p.latents[-1] :], x[:1])[:, 0], dim=0)  # fmt: skip
    assert prior.item() == pytest.approx(0, abs=1e-12)
    likelihood = p.log_likelihood(z[..., -p.latents[-1] :], images)
    assert torch.logsumexp(likelihood[0], dim=0).item() == pytest.approx(0, abs=1e-12)


@LAYERS
def test_log_q_of_a_sample_is_its_log_prob(latents, hidden):
    _, q, x = networks(latents, hidden)
    z, log_q = q.sample(x, 5, Noise(2))
    torch.testing.assert_close(log_q, q.log_prob(z, x), rtol=0, atol=1e-12)


@LAYERS
def test_samples_of_q_have_its_probabilities(latents, hidden):
    _, q, x = networks(latents, hidden)
    with torch.no_grad():
        z, _ = q.sample(x[:1], 100_000, Noise(5))
        probs = q.log_prob(all_vectors(1), x[:1])[:, 0].exp()
    expected = probs @ all_vectors(1)[:, 0].double()
    error = (expected * (1 - expected) / len(z)).sqrt()
    assert ((z.double().mean(dim=0)[0] - expected).abs() < 5 * error + 1e-9).all()


def test_points_at_the_corners_are_coins():
    p, q, x = networks((10,), (7,))
    z, _ = q.sample(x, 6, Noise(4))
    corners = torch.stack([1 - z, z], dim=-1).double()
    torch.testing.assert_close(p.log_joint(corners, x), p.log_joint(z, x))
    torch.testing.assert_close(q.log_prob(corners, x), q.log_prob(z, x))
    torch.testing.assert_close(p.log_likelihood(corners, x), p.log_likelihood(z, x))
    sides = q.log_probs(x).exp()
    torch.testing.assert_close(sides.sum(dim=-1), torch.ones(4, 10).double())
    torch.testing.assert_close(p.log_prior().exp()[:, 1], torch.sigmoid(p.top))


def tiny(method="ww", num_particles=4, **changes):
    small = dict(dataset="digits", latents=(8,), num_iterations=2, num_runs=2, batch_size=10)
    return SBNConfig(method, num_particles, **(small | dict(eval_particles=20, eval_images=6) | changes))


@pytest.mark.parametrize("name", usable(*sbn.OFFERS, *sbn.OF_ONE_LAYER))
def test_every_method_trains_one_layer(name, tmp_path, monkeypatch):
    monkeypatch.setenv("RWSLIB_PUBLISHED", str(tmp_path / "published"))
    record = run(tiny(name), tmp_path)
    assert record.metrics["test_bound"].shape == (2, 3)
    assert all(
        np.isfinite(record.metrics[n]).all() for n in ("test_bound", "log_marginal", "phi_gradient_snr")
    )


def test_deep_networks_take_the_methods_that_need_no_factorised_q(tmp_path, monkeypatch):
    monkeypatch.setenv("RWSLIB_PUBLISHED", str(tmp_path / "published"))
    record = run(tiny("vimco", latents=(4, 6, 8)), tmp_path)
    assert np.isfinite(record.metrics["log_marginal"]).all()
    with pytest.raises(ValueError, match=r"method must be one of .* with several layers, got 'disarm'"):
        tiny("disarm", latents=(4, 8))


def test_training_raises_the_bound():
    from rwslib.training import Trainer

    config = tiny("reinmax", 4, latents=(20,), num_iterations=60, num_runs=1, learning_rate=5e-3)
    bound = Trainer(sbn.problem(config), [0], compiled=False).train()["test_bound"][0]
    assert bound[-1] > bound[0] + 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents": ()}, "latents must be a list of at least one layer size"),
        ({"latents": (0,)}, "latents must be a whole number of at least 1, got 0"),
        ({"hidden": 3}, "hidden must be a list of layer sizes, got 3"),
        ({"dataset": "faces"}, "dataset must be one of"),
        ({"gamma": 1.0}, "gamma must be None for method 'ww', which has no such option"),
        ({"method": "ovis", "gamma": 0.5, "center_weights": None}, "gamma must be 0.0 or 1.0, got 0.5"),
        ({"method": "iwae"}, "method must be one of .* for this model, got 'iwae'"),
        (
            {"num_particles": 1, "center_weights": True},
            "num_particles must be at least 2 with center_weights, got 1",
        ),
        ({"eval_images": 1}, "eval_images must be a whole number of at least 2, got 1"),
    ],
)
def test_bad_values_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(tiny(), **changes)


def test_every_method_of_the_table_runs_on_coins_or_needs_what_they_lack():
    lacks = {n for n in METHODS if n not in usable(*sbn.OFFERS, *sbn.OF_ONE_LAYER)}
    assert lacks == {n for n, row in METHODS.items() if row.latent == "reparameterisable"} | {
        "concrete_2018",
        "vimco_scores",
    }
    assert methods.usable(*sbn.OFFERS)
