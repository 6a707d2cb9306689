"""Exact moments, gradient spread, importance estimates, active units, bootstrap and verdicts."""

import math

import numpy as np
import pytest
import torch
from torch import distributions as D
from toys import GaussianModel, GaussianNetwork

from rwslib import estimators, evaluation
from rwslib.cpu import can_compile
from rwslib.estimators import reinforce_loss, vimco_loss, wake_phi_loss
from rwslib.models.vae import GenerativeModel, InferenceNetwork
from rwslib.noise import Noise


@pytest.fixture
def toy():
    generator = torch.Generator().manual_seed(3)
    log_joint = torch.randn(4, generator=generator, dtype=torch.double) - 2
    return log_joint, torch.randn(4, generator=generator, dtype=torch.double)


def test_particle_tuples_are_all_of_them():
    tuples = evaluation.particle_tuples(3, 4)
    assert tuples.shape == (4, 81)
    assert len({tuple(column) for column in tuples.T.tolist()}) == 81


@pytest.mark.parametrize("loss", [reinforce_loss, vimco_loss])
def test_exact_moments_of_unbiased_estimators(toy, loss):
    log_joint, logits = toy
    mean, variance = evaluation.exact_moments(loss, log_joint, logits, 3)
    logits = logits.clone().requires_grad_()
    bound = evaluation.exact_bound(log_joint, logits, 3)
    torch.testing.assert_close(mean, torch.autograd.grad(bound, logits)[0], rtol=0, atol=1e-12)
    assert (variance > 0).all()


def test_exact_variance_agrees_with_sampling(toy):
    log_joint, logits = toy
    log_q = torch.log_softmax(logits, 0)
    z = torch.multinomial(
        log_q.exp(), 2 * 400_000, replacement=True, generator=torch.Generator().manual_seed(1)
    )
    z = z.view(2, -1)
    signal = torch.logsumexp(log_joint[z] - log_q[z], 0) - np.log(2)
    v = torch.softmax(log_joint[z] - log_q[z], 0)
    score = torch.eye(4, dtype=torch.double)[z] - log_q.exp()
    sampled = ((signal - v)[..., None] * score).sum(0).var(0)
    _, variance = evaluation.exact_moments(reinforce_loss, log_joint, logits, 2)
    torch.testing.assert_close(sampled, variance, rtol=0.02, atol=0)


def test_exact_bound_tightens_to_the_evidence(toy):
    log_joint, logits = toy
    bounds = [evaluation.exact_bound(log_joint, logits, K).item() for K in range(1, 6)]
    evidence = evaluation.exact_log_evidence(log_joint).item()
    assert bounds == sorted(bounds)
    assert bounds[-1] < evidence < bounds[-1] + 0.5


def test_exact_wake_phi_is_the_mean_of_the_estimator(toy):
    log_joint, logits = toy
    mean, _ = evaluation.exact_moments(wake_phi_loss, log_joint, logits, 3)
    torch.testing.assert_close(evaluation.exact_wake_phi(log_joint, logits, 3), mean, rtol=0, atol=1e-12)


def test_exact_kl():
    log_a = torch.log(torch.tensor([[0.5, 0.5], [0.9, 0.1]]))
    log_b = torch.log(torch.tensor([[0.5, 0.5], [0.1, 0.9]]))
    expected = torch.tensor([0.0, 0.8 * np.log(9)]).float()
    torch.testing.assert_close(evaluation.exact_kl(log_a, log_b), expected)


def test_gradient_std_is_the_paper_formula():
    gradients = np.random.default_rng(0).normal(size=(3, 10, 7))
    expected = np.sqrt(((gradients - gradients.mean(1, keepdims=True)) ** 2).mean(1)).mean(1)
    np.testing.assert_allclose(evaluation.gradient_std(torch.from_numpy(gradients)).numpy(), expected)


def test_signal_to_noise_of_a_known_ratio():
    generator = torch.Generator().manual_seed(0)
    gradients = 3 + 2 * torch.randn(100_000, 5, generator=generator)
    gradients[:, 4] = 1.0  # never varies: left out
    assert evaluation.signal_to_noise(gradients).item() == pytest.approx(1.5, rel=0.02)


def test_bootstrap_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        sample = generator.normal(size=40)
        _, low, high = evaluation.bootstrap(lambda s: s.mean(axis=-1), sample, num_resamples=300, seed=seed)
        covered += low <= 0 <= high
    assert 0.88 <= covered / 200 <= 0.99


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([(1, 0.5, 2), (3, 0.1, 4)], "holds"),
        ([(-1, -2, -0.5), (-3, -4, -0.1)], "does not hold"),
        ([(-1, -2, -0.5), (0, 0, 0)], "mixed"),
        ([(0, 0, 0)], "mixed"),
        ([(1, -0.5, 2)], "mixed"),
        ([(1, 0.5, 2), (-1, -2, -0.5)], "mixed"),
    ],
)
def test_verdict(intervals, expected):
    assert evaluation.verdict(intervals) == expected


# -- log evidence, KL and effective sample size by importance sampling --------------------------------


def test_importance_estimates_are_those_of_the_linear_gaussian_model():
    """5000 particles for 400 data against evidence and KL in closed form; five standard errors."""
    p, q, num_particles = GaussianModel(), GaussianNetwork(), 5000
    with torch.no_grad():
        x = p.sample(400, Noise(1))[1]
        evidence = D.Normal(p.mean, (1 + (2 * p.log_scale).exp()).sqrt()).log_prob(x)
        precision = 1 + (-2 * p.log_scale).exp()
        posterior = D.Normal((p.mean + x * (-2 * p.log_scale).exp()) / precision, 1 / precision.sqrt())
        kl = D.kl_divergence(D.Normal(q.slope * x + q.offset, q.log_scale.exp()), posterior)
    found = evaluation.importance_estimates(p, q, x, num_particles, Noise(2))
    assert not any(value.requires_grad for value in found.values())

    relative_variance = 1 / found["ess"] - 1 / num_particles  # of the estimated evidence itself
    assert ((found["log_marginal"] - evidence).abs() < 5 * relative_variance.sqrt()).all()
    exact = {"log_marginal": evidence, "kl_q_p": kl, "elbo": evidence - kl}
    for name, value in exact.items():
        off = found[name] - value
        error = off.std() / math.sqrt(len(x))
        assert off.mean().abs() < 5 * error, name
        assert error < 2e-3, name
    assert kl.mean() > 0.1


def estimates_at_once(p, q, x, num_particles, noise, images_at_once):
    """The same from all particles of some data at a time, by the formulas."""
    pieces = []
    for some in x.split(images_at_once):
        z, log_q = q.sample(some, num_particles, noise)
        log_w = (p.log_joint(z, some) - log_q).detach().double()
        log_marginal, elbo = estimators.log_evidence(log_w), log_w.mean(dim=0)
        ess = estimators.effective_sample_size(log_w)
        pieces.append(torch.stack([log_marginal, log_marginal - elbo, elbo, ess]))
    names = ("log_marginal", "kl_q_p", "elbo", "ess")
    return dict(zip(names, torch.cat(pieces, dim=1).float(), strict=True))


@pytest.mark.parametrize("rows_at_once", [1, 6, 10, 33, 10_000])
@pytest.mark.parametrize("num_particles", [1, 11])
def test_the_size_of_the_pieces_changes_only_the_rounding(num_particles, rows_at_once):
    """Eight data, three at a time; pieces of 1, 2, 3 and all particles, the last ones smaller."""
    p, q, x = GaussianModel(), GaussianNetwork(), torch.linspace(-2, 2, 8)
    expected = estimates_at_once(p, q, x, num_particles, Noise(4), 3)
    found = evaluation.importance_estimates(
        p, q, x, num_particles, Noise(4), images_at_once=3, rows_at_once=rows_at_once
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("log_scale", [-4.0, 0.5, 4.0])
@pytest.mark.parametrize("num_particles", [1, 2, 50])
def test_the_effective_sample_size_lies_between_one_and_all(num_particles, log_scale):
    """From one particle that has all the weight to nearly equal weights; log-weights far from zero too."""
    p, q = GaussianModel(log_scale=log_scale), GaussianNetwork()
    found = evaluation.importance_estimates(p, q, torch.linspace(-5, 5, 30), num_particles, Noise(0))
    assert all(torch.isfinite(value).all() for value in found.values())
    assert (found["ess"] > 1 - 1e-3).all()
    assert (found["ess"] < num_particles * (1 + 1e-3)).all()
    assert (found["kl_q_p"] > -1e-3).all()
    if num_particles == 50:
        assert found["ess"].min() < 1.1 or log_scale != -4.0
        assert found["ess"].median() > 25 or log_scale != 0.5


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason="no C++ compiler or Python headers")
def test_compiled_importance_estimates_equal_eager_ones():
    """Pieces of four, four and two particles, for four data and for four more."""
    torch.manual_seed(0)
    sizes = {"latent_size": 3, "hidden": (8,), "num_pixels": 12}
    p, q = GenerativeModel(**sizes), InferenceNetwork(**sizes)
    x = torch.bernoulli(torch.full((8, 12), 0.5))
    eager, compiled = (
        evaluation.importance_estimates(
            p, q, x, 10, Noise(3), images_at_once=4, rows_at_once=16, compiled=compiled
        )
        for compiled in (False, True)
    )
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-5, atol=1e-5)


# -- active units --------------------------------------------------------------------------------------


def test_units_whose_mean_varies_by_more_than_a_hundredth_are_active():
    """Means of plus and minus a have variance a^2, wherever they are."""
    amplitudes = torch.tensor([0.0, 0.05, 0.099, 0.101, 0.5, 3.0])
    means = torch.stack([5 + amplitudes, 5 - amplitudes])
    assert evaluation.active_units(means) == 3
    assert evaluation.active_units(means.repeat(7, 1)) == 3
    assert evaluation.active_units(means, threshold=1.0) == 1
    assert evaluation.active_units(torch.zeros(4, 6)) == 0
