"""Vectors of categorical latents, and the estimators made for them: exact by enumeration over all vectors.

Every K-tuple of vectors is a row of the batch, so that an expectation is a finite sum and must agree with
the gradient of its objective to 1e-9.  `test_mutants_are_noticed` breaks each estimator once.
"""

import math

import pytest
import torch
from torch import distributions as D
from torch import nn
from torch.autograd import grad
from toys import Script, VectorModel, VectorRows, all_tuples

from rwslib import estimators, methods
from rwslib.methods import METHODS
from rwslib.noise import Noise

OBSERVATION = 0.7


class EnumeratedVectors:
    """A model of D latents, one observation, q's logits, and all K-tuples of its C**D vectors."""

    def __init__(self, num_particles, num_latents=3, num_categories=2, power=None):
        self.p = VectorModel(num_latents, num_categories, power)
        generator = torch.Generator().manual_seed(8)
        shape = num_latents, num_categories
        self.logits = torch.randn(*shape, generator=generator, dtype=torch.float64)
        self.num_particles, self.shape = num_particles, shape
        self.vectors = all_tuples(num_categories, num_latents).T  # [V, D]
        self.z = self.vectors[all_tuples(len(self.vectors), num_particles)]  # [K, N, D]
        self.x = torch.tensor([OBSERVATION], dtype=torch.float64)

    def log_weights(self, logits):
        """``log p(z, x)`` and ``log q`` of every vector, ``[V]``."""
        log_probs = logits.log_softmax(dim=-1)
        log_q = log_probs[torch.arange(self.shape[0]), self.vectors].sum(dim=-1)
        return self.p.log_joint(self.vectors[:, None], self.x)[:, 0], log_q

    def elbo(self, logits):
        log_p, log_q = self.log_weights(logits)
        return (log_q.exp() * (log_p - log_q)).sum()

    def bound(self, logits):
        log_p, log_q = self.log_weights(logits)
        rows = all_tuples(len(self.vectors), self.num_particles)
        value = torch.log((log_p - log_q)[rows].exp().mean(dim=0))
        return (log_q[rows].sum(dim=0).exp() * value).sum()

    def minus_divergence_of_wake_phi(self, logits):
        """A function with the expected wake-phi update as gradient in the logits."""
        log_p, log_q = self.log_weights(logits)
        rows = all_tuples(len(self.vectors), self.num_particles)
        v = torch.softmax((log_p - log_q)[rows].detach(), dim=0)
        return (log_q[rows].sum(dim=0).exp().detach() * (v * log_q[rows]).sum(dim=0)).sum()

    def exact_gradients(self, objective):
        logits = self.logits.clone().requires_grad_()
        return grad(objective(logits), (self.p.weights, self.p.prior, logits), materialize_grads=True)

    def expected_gradients(self, function, script, probs, **extra):
        q = VectorRows(self.logits.expand(len(probs), *self.shape))
        loss = function(self.p, q, self.x.expand(len(probs)), self.num_particles, script, **extra)
        assert script.is_used_up
        wanted = (self.p.weights, self.p.prior, q.logits)
        *theta, phi = grad(-(probs * loss).sum(), wanted, materialize_grads=True)
        return *theta, phi.sum(dim=0)

    def draws(self):
        """Uniform numbers for which q draws every tuple, and the tuples' probabilities."""
        probs = self.logits.softmax(dim=-1)
        latent = torch.arange(self.shape[0])
        middle = probs.cumsum(dim=-1) - probs / 2
        return Script([middle[latent, self.z]]), probs[latent, self.z].prod(dim=-1).prod(dim=0)

    def pairs(self, num_pairs):
        """Uniform numbers for all antithetic pairs: below both ends, between them, above both."""
        up = torch.sigmoid(self.logits[:, 1] - self.logits[:, 0])
        ends = torch.stack([torch.minimum(up, 1 - up), torch.maximum(up, 1 - up)])  # [2, D]
        edges = torch.cat([torch.zeros_like(ends[:1]), ends, torch.ones_like(ends[:1])])
        middle, width = (edges[1:] + edges[:-1]) / 2, edges.diff(dim=0)
        vectors = all_tuples(3, self.shape[0]).T
        cells = vectors[all_tuples(len(vectors), num_pairs)]  # [pairs, N, D]
        latent = torch.arange(self.shape[0])
        return Script([middle[cells, latent]]), width[cells, latent].prod(dim=-1).prod(dim=0)


def agree(actual, expected, atol=1e-9):
    return all(torch.allclose(a, e, rtol=0, atol=atol) for a, e in zip(actual, expected, strict=True))


# -- unbiased for the ELBO or the bound --------------------------------------------------------------------


@pytest.mark.parametrize("num_categories", [2, 3])
@pytest.mark.parametrize("name", ["rloo", "muprop", "reinforce", "vimco", "ovis"])
def test_methods_are_unbiased_on_vectors(name, num_categories):
    num_particles = 2 if num_categories == 2 else METHODS[name].min_particles
    if num_categories**3 > 8 and num_particles > 1:
        num_particles = 2
    problem = EnumeratedVectors(num_particles, num_categories=num_categories)
    objective = problem.elbo if METHODS[name].follows == "ELBO" else problem.bound
    actual = problem.expected_gradients(METHODS[name].function, *problem.draws())
    assert agree(actual, problem.exact_gradients(objective))


@pytest.mark.parametrize(("name", "num_particles"), [("disarm", 2), ("disarm_bound", 1), ("disarm_bound", 2)])
def test_antithetic_pairs_are_unbiased(name, num_particles):
    problem = EnumeratedVectors(num_particles)
    num_pairs = 1 if name == "disarm" else num_particles
    actual = problem.expected_gradients(METHODS[name].function, *problem.pairs(num_pairs))
    objective = problem.elbo if name == "disarm" else problem.bound
    assert agree(actual, problem.exact_gradients(objective))


@pytest.mark.parametrize("gamma", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("num_particles", [2, 3])
def test_ovis_follows_the_bound_and_gamma_times_wake_phi(gamma, num_particles):
    problem = EnumeratedVectors(num_particles, num_latents=2)
    *_, actual = problem.expected_gradients(methods.ovis, *problem.draws(), gamma=gamma)
    *_, bound = problem.exact_gradients(problem.bound)
    *_, wake_phi = problem.exact_gradients(problem.minus_divergence_of_wake_phi)
    assert agree([actual], [bound + gamma * wake_phi])
    assert wake_phi.norm() > 0.05 * bound.norm()


def test_disarm_takes_even_numbers_of_particles_and_two_categories():
    problem = EnumeratedVectors(3)
    q = VectorRows(problem.logits[None])
    with pytest.raises(ValueError, match="num_particles must be even"):
        methods.disarm(problem.p, q, problem.x, 3, Noise(1))
    three = EnumeratedVectors(2, num_categories=3)
    with pytest.raises(ValueError, match="q must have two categories"):
        methods.disarm(three.p, VectorRows(three.logits[None]), three.x, 2, Noise(1))


def phi_variance(problem, function, script, probs):
    q = VectorRows(problem.logits.expand(len(probs), *problem.shape))
    loss = function(problem.p, q, problem.x.expand(len(probs)), problem.num_particles, script)
    (rows,) = grad(loss.sum(), q.logits)
    mean = torch.einsum("n,ndc->dc", probs, rows)
    return (torch.einsum("n,ndc->dc", probs, rows.square()) - mean.square()).sum()


def test_disarm_is_quieter_than_rloo_with_as_many_particles():
    problem = EnumeratedVectors(2)
    disarm = phi_variance(problem, methods.disarm, *problem.pairs(1))
    assert disarm < phi_variance(problem, methods.rloo, *problem.draws())


# -- straight-through: the exact bias ------------------------------------------------------------------------


def expected_by_jacobians(problem, derivative):
    """Expected update of the logits, vector by vector: the model's slope times a derivative of the point."""
    probs, total = problem.logits.softmax(dim=-1), torch.zeros_like(problem.logits)
    log_probs = problem.logits.log_softmax(dim=-1)
    for vector in problem.vectors:
        corner = nn.functional.one_hot(vector, problem.shape[1]).double().requires_grad_()
        log_w = problem.p.log_joint(corner[None, None], problem.x).sum() - (corner * log_probs).sum()
        (slope,) = grad(log_w, corner)
        share = probs[torch.arange(problem.shape[0]), vector].prod()
        for d in range(problem.shape[0]):
            total[d] += share * derivative(probs[d], corner[d].detach()) @ slope[d]
    return total.detach()


def softmax_jacobian(probs):
    return torch.diag(probs) - torch.outer(probs, probs)


DERIVATIVES = {
    "straight_through": lambda probs, corner: softmax_jacobian(probs),
    "reinmax": lambda probs, corner: 2 * softmax_jacobian((probs + corner) / 2) - softmax_jacobian(probs) / 2,
}


@pytest.mark.parametrize("num_categories", [2, 3])
@pytest.mark.parametrize("name", DERIVATIVES)
def test_straight_through_methods_have_the_expectation_of_their_derivative(name, num_categories):
    problem = EnumeratedVectors(1, num_categories=num_categories)
    *theta, phi = problem.expected_gradients(METHODS[name].function, *problem.draws())
    *exact_theta, exact_phi = problem.exact_gradients(problem.elbo)
    assert agree(theta, exact_theta)
    assert agree([phi], [expected_by_jacobians(problem, DERIVATIVES[name])])
    assert (phi - exact_phi).norm() > 0.01 * exact_phi.norm()


@pytest.mark.parametrize(("name", "power"), [("straight_through", 1), ("reinmax", 1), ("reinmax", 2)])
def test_straight_through_is_exact_for_linear_and_reinmax_for_quadratic_models(name, power):
    problem = EnumeratedVectors(1, num_categories=3, power=power)
    actual = problem.expected_gradients(METHODS[name].function, *problem.draws())
    assert agree(actual, problem.exact_gradients(problem.elbo))


def test_straight_through_is_biased_where_reinmax_is_exact():
    problem = EnumeratedVectors(1, power=2)
    *_, phi = problem.expected_gradients(methods.straight_through, *problem.draws())
    *_, exact = problem.exact_gradients(problem.elbo)
    assert (phi - exact).norm() > 0.01 * exact.norm()


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_gumbel_straight_through_has_the_expectation_of_its_softmax(temperature):
    """One coin: the difference of two Gumbel variates is logistic, and one integral is left."""
    problem = EnumeratedVectors(1, num_latents=1)
    num = 20_000
    t = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    gumbel = torch.stack([-torch.logit(t) / 2, torch.logit(t) / 2])  # their difference has this quantile
    script = Script([torch.exp(-torch.exp(-gumbel))[:, None, :, None]])
    probs = torch.full((num,), 1 / num, dtype=torch.float64)
    function = METHODS["gumbel_st"].function
    *_, phi = problem.expected_gradients(function, script, probs, temperature=temperature)

    logit = (problem.logits[0, 1] - problem.logits[0, 0] + torch.logit(t)) / temperature
    slopes = []
    for side in range(2):
        corner = nn.functional.one_hot(torch.tensor([side]), 2).double().requires_grad_()
        log_probs = problem.logits.log_softmax(dim=-1)
        log_w = problem.p.log_joint(corner[None, None], problem.x).sum() - (corner * log_probs).sum()
        slope = grad(log_w, corner)[0][0]
        slopes.append(slope[1] - slope[0])
    steep = torch.sigmoid(logit) * torch.sigmoid(-logit) / temperature
    expected = (torch.where(logit > 0, slopes[1], slopes[0]) * steep).mean()
    assert agree([phi[0, 1]], [expected])
    assert agree([phi[0, 0]], [-expected])


# -- mutants -------------------------------------------------------------------------------------------------


def rloo_over_k(log_p, log_q):
    log_w = (log_p - log_q).detach()
    elbo = (log_p - log_q.detach()).mean(dim=0)
    return -elbo - ((log_w - log_w.mean(dim=0)) * log_q).mean(dim=0)


def muprop_without_expectation(log_p, log_q, expansion, expected):
    return ESTIMATORS["muprop_loss"](log_p, log_q, expansion, expected.detach())


def unweighted_score(log_probs, uniform):
    first, second, _ = antithetic_score(log_probs, uniform)
    logits = log_probs[..., 1] - log_probs[..., 0]
    return first, second, ((first - second) * logits).sum(dim=-1)


def ovis_with_all_particles(log_p, log_q, gamma):
    log_w = (log_p - log_q).detach()
    theta_loss = estimators.wake_theta_loss(log_p, log_q)
    return theta_loss + (torch.softmax(log_w, dim=0) * (1 - gamma) * log_q).sum(dim=0)


def with_another_one_of(log_w_pair, log_w):
    return with_one_of(log_w_pair, log_w).roll(1, 0)


with_one_of = estimators.elbo._with_one_of
ESTIMATORS = {"muprop_loss": estimators.muprop_loss}
antithetic_score = methods.antithetic_score
MUTANTS = {
    "rloo": ("rwslib.estimators.rloo_loss", rloo_over_k),
    "muprop": ("rwslib.estimators.muprop_loss", muprop_without_expectation),
    "ovis": ("rwslib.estimators.ovis_loss", ovis_with_all_particles),
    "disarm": ("rwslib.methods.antithetic.antithetic_score", unweighted_score),
    "disarm_bound": ("rwslib.estimators.elbo._with_one_of", with_another_one_of),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_noticed(name, monkeypatch):
    problem = EnumeratedVectors(2)
    draws = {"disarm": lambda: problem.pairs(1), "disarm_bound": lambda: problem.pairs(2)}
    objective = problem.elbo if METHODS[name].follows == "ELBO" else problem.bound
    exact = problem.exact_gradients(objective)
    for broken in (False, True):
        if broken:
            monkeypatch.setattr(*MUTANTS[name])
        actual = problem.expected_gradients(METHODS[name].function, *draws.get(name, problem.draws)())
        assert agree(actual, exact) != broken


# -- relaxations of a vector ---------------------------------------------------------------------------------


def test_concrete_of_a_vector_is_that_of_independent_distributions():
    problem = EnumeratedVectors(4, num_categories=3)
    p, q, x = problem.p, VectorRows(problem.logits.expand(5, 3, 3)), torch.linspace(-1, 1, 5).double()
    temperature = torch.tensor(0.7, dtype=torch.float64)
    actual = methods.concrete(p, q, x, 4, Noise(5), temperature=temperature)
    gumbel = Noise(5).gumbel(3, 4, 5, 3).double().movedim(0, -1)
    z = torch.softmax((q.log_probs(x) + gumbel) / temperature, dim=-1)
    posterior = D.Independent(D.RelaxedOneHotCategorical(temperature, logits=q.log_probs(x)), 1)
    prior = D.Independent(D.RelaxedOneHotCategorical(temperature, logits=p.log_prior()), 1)
    log_w = prior.log_prob(z) + p.log_likelihood(z, x) - posterior.log_prob(z)
    torch.testing.assert_close(actual, math.log(4) - torch.logsumexp(log_w, dim=0), rtol=0, atol=1e-9)


class SteepVariate(nn.Module):
    """A control variate for RELAX, far from zero."""

    def forward(self, x, g):
        return torch.tanh(g).flatten(2).cumsum(dim=-1).sin().sum(dim=-1).mean(dim=0)


@pytest.mark.parametrize("name", ["relax", "rebar"])
@pytest.mark.parametrize("num_particles", [1, 2])
def test_relax_and_rebar_are_unbiased_on_vectors(name, num_particles, num_samples=100_000):
    problem = EnumeratedVectors(num_particles)
    *_, exact = problem.exact_gradients(problem.bound)
    q = VectorRows(problem.logits.expand(num_samples, *problem.shape))
    control = SteepVariate() if name == "relax" else methods.RebarControlVariate().double()
    x = problem.x.expand(num_samples)
    loss = METHODS[name].function(problem.p, q, x, num_particles, Noise(11), control_variate=control)
    samples = grad(-loss.sum(), q.logits)[0]
    error = samples.std(dim=0) / math.sqrt(num_samples)
    assert ((samples.mean(dim=0) - exact).abs() < 5 * error).all()
    assert error.max() < 0.05 * exact.norm()


@pytest.mark.parametrize("spread", [0.1, 30.0])
def test_nvil_divides_its_signal_by_its_spread_where_that_is_above_one(spread):
    log_p = spread * torch.tensor([[0.3, -1.0, 2.0], [0.1, 0.4, -0.7]]).double()
    log_q = torch.tensor([[-1.0, -0.5, -2.0]] * 2).double().requires_grad_()
    bound = torch.logsumexp(log_p - log_q, dim=0) - math.log(2)
    signal = bound.detach() / max(1, bound.detach().std(correction=0).item())
    (expected,) = torch.autograd.grad(-(signal * log_q.sum(dim=0) + bound).sum(), log_q)
    loss = estimators.nvil_loss(log_p, log_q, torch.zeros(3).double(), scale_signal=True)
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), log_q)[0], expected)
