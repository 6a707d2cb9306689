"""Exact moments, gradient spread, bootstrap and verdicts."""

import numpy as np
import pytest
import torch

from rwslib import evaluation
from rwslib.estimators import reinforce_loss, vimco_loss, wake_phi_loss


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
        ([(-1, -2, -0.5), (-3, -4, 0)], "does not hold"),
        ([(1, -0.5, 2)], "mixed"),
        ([(1, 0.5, 2), (-1, -2, -0.5)], "mixed"),
    ],
)
def test_verdict(intervals, expected):
    assert evaluation.verdict(intervals) == expected
