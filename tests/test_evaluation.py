"""Exact moments, gradient spread, importance estimates, active units."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import distributions as D
from toys import GaussianModel, GaussianNetwork

from rwslib import estimators, evaluation
from rwslib.estimators import reinforce_loss, vimco_loss, wake_phi_loss
from rwslib.models import gmm
from rwslib.models.vae import GenerativeModel, InferenceNetwork
from rwslib.noise import Noise
from rwslib.training.acceleration import can_compile


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


def test_exact_kl_counts_impossible_categories_as_zero():
    log_a, log_b = torch.log(torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]))
    expected = D.kl_divergence(D.Categorical(logits=log_a), D.Categorical(logits=log_b))
    torch.testing.assert_close(evaluation.exact_kl(log_a, log_b), expected)
    assert evaluation.exact_kl(log_b, log_a) == math.inf
    log_a = log_a.requires_grad_()
    assert torch.isfinite(torch.autograd.grad(evaluation.exact_kl(log_a, log_b), log_a)[0]).all()


def test_categories_that_neither_can_draw_take_no_part(toy):
    log_joint, logits = (torch.cat([table, torch.tensor([-math.inf])]) for table in toy)
    for function in (
        evaluation.exact_bound,
        evaluation.exact_wake_phi,
        partial(evaluation.exact_moments, wake_phi_loss),
    ):
        found, expected = function(log_joint, logits, 3), function(*toy, 3)
        if isinstance(found, tuple):
            (found, spread), (expected, expected_spread) = found, expected
            torch.testing.assert_close(spread[:4], expected_spread)
        torch.testing.assert_close(found if found.ndim == 0 else found[:4], expected)
        assert found.ndim == 0 or found[4] == 0


def test_without_weights_there_is_no_direction(toy):
    log_joint, logits = toy[0].clone(), toy[1]
    log_joint[2] = -math.inf
    assert evaluation.exact_bound(log_joint, logits, 3) == -math.inf
    for function in (evaluation.exact_wake_phi, partial(evaluation.exact_moments, wake_phi_loss)):
        with pytest.raises(ValueError, match="log_joint must be above -inf for every category that q can"):
            function(log_joint, logits, 3)


def test_gradient_std_is_the_paper_formula():
    gradients = np.random.default_rng(0).normal(size=(3, 10, 7))
    expected = np.sqrt(((gradients - gradients.mean(1, keepdims=True)) ** 2).mean(1)).mean(1)
    np.testing.assert_allclose(evaluation.gradient_std(torch.from_numpy(gradients)).numpy(), expected)


def test_signal_to_noise_of_a_known_ratio():
    generator = torch.Generator().manual_seed(0)
    gradients = 3 + 2 * torch.randn(100_000, 5, generator=generator)
    gradients[:, 4] = 1.0  # never varies: left out
    assert evaluation.signal_to_noise(gradients).item() == pytest.approx(1.5, rel=0.02)


NOTHING = {
    "gradient_std": lambda: evaluation.gradient_std(torch.zeros(3, 0, 7)),
    "gradient_std, no parameter": lambda: evaluation.gradient_std(torch.zeros(3, 7, 0)),
    "signal_to_noise": lambda: evaluation.signal_to_noise(torch.zeros(1, 7)),
    "active_units": lambda: evaluation.active_units(torch.zeros(0, 7)),
    "particle_tuples, K": lambda: evaluation.particle_tuples(3, 0),
    "particle_tuples, C": lambda: evaluation.particle_tuples(0, 3),
    "exact_bound": lambda: evaluation.exact_bound(torch.zeros(3), torch.zeros(3), 0),
    "exact_wake_phi": lambda: evaluation.exact_wake_phi(torch.zeros(3), torch.zeros(3), 0),
    "exact_moments": lambda: evaluation.exact_moments(vimco_loss, torch.zeros(3), torch.zeros(3), 0),
    "importance_estimates, K": lambda: estimates(num_particles=0),
    "importance_estimates, N": lambda: estimates(x=torch.zeros(0)),
    "importance_estimates, rows": lambda: estimates(rows_at_once=0),
    "importance_estimates, data": lambda: estimates(images_at_once=-1),
}


def estimates(x=None, num_particles=3, **options):
    x = torch.zeros(2) if x is None else x
    return evaluation.importance_estimates(
        GaussianModel(), GaussianNetwork(), x, num_particles, Noise(1), **options
    )


@pytest.mark.parametrize("name", NOTHING)
def test_from_nothing_there_is_one_sentence(name):
    with pytest.raises(ValueError, match=r"(must (be|hold|have)|holds no datum).*(got|its shape is)"):
        NOTHING[name]()


def test_by_how_much_the_authors_spread_is_larger():
    """They divided by the first dimensions of the tensors; the docstring says what that makes."""
    for hidden, factor in [((16,), "372/72 = 5.2"), ((16, 16), "644/104 = 6.2")]:
        parameters = list(gmm.InferenceNetwork(hidden).parameters())
        ours, theirs = sum(p.numel() for p in parameters), sum(len(p) for p in parameters)
        assert f"{ours}/{theirs} = {ours / theirs:.1f}" == factor
        assert factor in evaluation.gradient_std.__doc__


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


def estimates_at_once(p, q, x, num_particles, noise, images_at_once, dtype=torch.float32):
    """The same from all particles of some data at a time, by the formulas."""
    pieces = []
    for some in x.split(images_at_once):
        z, log_q = q.sample(some, num_particles, noise)
        log_w = (p.log_joint(z, some) - log_q).detach().double()
        log_marginal, elbo = estimators.log_evidence(log_w), log_w.mean(dim=0)
        ess = estimators.effective_sample_size(log_w)
        pieces.append(torch.stack([log_marginal, log_marginal - elbo, elbo, ess]))
    names = ("log_marginal", "kl_q_p", "elbo", "ess")
    return dict(zip(names, torch.cat(pieces, dim=1).to(dtype), strict=True))


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_importance_estimates_have_the_precision_of_the_models(dtype):
    p, q, x = GaussianModel().to(dtype), GaussianNetwork().to(dtype), torch.linspace(-2, 2, 8, dtype=dtype)
    found = evaluation.importance_estimates(p, q, x, 10, Noise(4), images_at_once=3)
    expected = estimates_at_once(p, q, x, 10, Noise(4), 3, dtype)
    for name, value in found.items():
        assert value.dtype == dtype, name
        tolerance = 1e-12 if dtype == torch.float64 else 2e-6
        torch.testing.assert_close(value, expected[name], rtol=tolerance, atol=tolerance)


WRONG_SHAPES = {"[B, K]": lambda t: t.T, "[K, B, 1]": lambda t: t[..., None], "[K]": lambda t: t[:, 0]}


@pytest.mark.parametrize("where", ["p.log_joint", "q.sample"])
@pytest.mark.parametrize("shape", WRONG_SHAPES)
@pytest.mark.parametrize("num_data", [1, 3])
def test_importance_estimates_refuse_other_shapes(where, shape, num_data):
    change = WRONG_SHAPES[shape]

    class Model(GaussianModel):
        def log_joint(self, z, x):
            log_p = super().log_joint(z, x)
            return change(log_p) if where == "p.log_joint" else log_p

    class Network(GaussianNetwork):
        def sample(self, x, num_particles, noise):
            z, log_q = super().sample(x, num_particles, noise)
            return z, change(log_q) if where == "q.sample" else log_q

    right = rf"{where} must return log-densities \[K, B\] = \[4, {num_data}\], got"
    with pytest.raises(ValueError, match=right):
        evaluation.importance_estimates(Model(), Network(), torch.zeros(num_data), 4, Noise(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_importance_estimates_refuse_too_few_digits(dtype):
    class Coarse(GaussianModel):
        def log_joint(self, z, x):
            return super().log_joint(z, x).to(dtype)

    class CoarseNetwork(GaussianNetwork):
        def log_prob(self, z, x):
            return super().log_prob(z, x).to(dtype)

    with pytest.raises(ValueError, match=f"log_p - log_q must be float32 or float64, got {str(dtype)[6:]}"):
        evaluation.importance_estimates(Coarse(), CoarseNetwork(), torch.zeros(2), 3, Noise(1))


def test_importance_estimates_count_impossible_particles():
    """Half a normal distribution: as many zeros as there are, and a datum without evidence."""

    class Positive(GaussianModel):
        def log_joint(self, z, x):
            return super().log_joint(z, x).masked_fill((z < 0) | (x == 7), -math.inf)

    p, q, x = Positive(), GaussianNetwork(), torch.tensor([0.0, 7.0, 1.0])
    found = evaluation.importance_estimates(p, q, x, 50, Noise(4), rows_at_once=20)
    z, log_q = q.sample(x, 50, Noise(4))
    log_w = (p.log_joint(z, x) - log_q)[:, [0, 2]]
    torch.testing.assert_close(found["log_marginal"][[0, 2]], estimators.log_evidence(log_w))
    torch.testing.assert_close(found["ess"][[0, 2]], estimators.effective_sample_size(log_w))
    assert found["log_marginal"][1] == -math.inf
    assert (found["elbo"] == -math.inf).all()


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason="no C++ compiler or Python headers")
def test_compiled_importance_estimates_equal_eager_ones(compiler):
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


def test_signal_to_noise_is_its_formula():
    g = np.random.default_rng(0).normal(-1, 1, size=(5, 7))
    expected = (np.abs(g.mean(0)) / g.std(0, ddof=1)).mean()
    assert evaluation.signal_to_noise(torch.from_numpy(g)).item() == pytest.approx(expected)
