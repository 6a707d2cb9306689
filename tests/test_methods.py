"""The methods: one suite over the whole table, exactness of each method's gradient, who moves what."""

import inspect
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributions as D
from torch import nn
from torch.autograd import grad
from toys import (
    GaussianBaseline,
    GaussianModel,
    GaussianNetwork,
    RowNetwork,
    Script,
    all_tuples,
    flat_gradient,
    parameter_gradients,
    small_mixture,
    uniforms_for,
)

from rwslib import estimators, methods
from rwslib.methods import METHODS
from rwslib.models import gmm
from rwslib.noise import Noise

SIGNATURE = ["p", "q", "x", "num_particles", "noise"]
REFERENCES = Path(__file__).parent.parent / "book" / "references.bib"


def assert_same_gradients(actual, expected, atol=1e-10):
    assert actual.keys() == expected.keys()
    for name in actual:
        torch.testing.assert_close(actual[name], expected[name], rtol=0, atol=atol, msg=name)


# -- one suite for every row of the table ------------------------------------------------------------

CONTROL_VARIATES = {
    "nvil": gmm.Baseline,
    "relax": gmm.RelaxControlVariate,
    "rebar": methods.RebarControlVariate,
}
GAUSSIAN_CONTROL_VARIATES = {"nvil": GaussianBaseline}
ON_MIXTURE = [name for name, method in METHODS.items() if method.latent in ("any", "categorical")]
ON_GAUSSIAN = [name for name, method in METHODS.items() if method.latent in ("any", "reparameterisable")]
ROWS = [(name, "mixture") for name in ON_MIXTURE] + [(name, "gaussian") for name in ON_GAUSSIAN]
every_row = pytest.mark.parametrize("name, toy", ROWS)


def toy_problem(name, toy, batch=7):
    """``p, q, x, extra`` for a method, in float32 and with the library's own initial values."""
    torch.manual_seed(1)
    if toy == "mixture":
        p, q, control_variates = gmm.GMM("far"), gmm.InferenceNetwork(), CONTROL_VARIATES
        _, x = gmm.GMM("true").sample(batch, Noise(1))
    else:
        p, q, control_variates = GaussianModel(), GaussianNetwork(), GAUSSIAN_CONTROL_VARIATES
        x = torch.linspace(-2, 2, batch)
    extra = {"control_variate": control_variates[name]()} if METHODS[name].control_variate else {}
    return p, q, x, extra


@every_row
@pytest.mark.parametrize("more_particles", [0, 3])
def test_a_method_returns_one_finite_loss_per_datum(name, toy, more_particles):
    method = METHODS[name]
    p, q, x, extra = toy_problem(name, toy)
    loss = method.function(p, q, x, method.min_particles + more_particles, Noise(0), **extra)
    assert loss.shape == x.shape
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss).all()
    for module in (p, q):
        gradients = parameter_gradients(loss.mean(), module)
        assert all(torch.isfinite(g).all() for g in gradients.values())
        assert any((g != 0).any() for g in gradients.values())


@every_row
def test_a_method_is_a_function_of_its_noise(name, toy):
    p, q, x, extra = toy_problem(name, toy)
    first, again, other = (METHODS[name].function(p, q, x, 4, Noise(seed), **extra) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name, toy", [row for row in ROWS if METHODS[row[0]].min_particles > 1])
def test_too_few_particles_are_refused_with_the_smallest_number(name, toy):
    method = METHODS[name]
    p, q, x, extra = toy_problem(name, toy)
    with pytest.raises(ValueError, match=f"at least {method.min_particles}"):
        method.function(p, q, x, method.min_particles - 1, Noise(0), **extra)


def test_every_method_is_in_the_table_and_nothing_else():
    functions = {
        function
        for function in map(vars(methods).get, methods.__all__)
        if inspect.isfunction(function) and list(inspect.signature(function).parameters)[:5] == SIGNATURE
    }
    assert {method.function for method in METHODS.values()} == functions
    assert len({method.title for method in METHODS.values()}) == len(METHODS) == len(functions)


@pytest.mark.parametrize("name", METHODS)
def test_a_row_describes_its_function(name):
    method = METHODS[name]
    parameters = inspect.signature(method.function).parameters
    assert list(parameters)[:5] == SIGNATURE
    own = {name: parameters[name].default for name in list(parameters)[5:]}
    defaults = {n: default for n, default in own.items() if default is not inspect.Parameter.empty}
    assert {n: option.default for n, option in method.options.items()} == defaults
    for n, option in method.options.items():
        option.check(n, option.of_run)
    assert [n for n in own if n not in method.options] == (
        ["control_variate"] if method.control_variate else []
    )
    assert method.control_variate in (None, "regression", "variance")
    assert method.latent in ("any", "categorical", "binary", "reparameterisable")
    assert method.follows in ("bound", "ELBO", "KL(p, q)", "dreams", "KL(p, q) and dreams", "own")
    assert method.cost
    assert method.function.__doc__
    assert method.function.__doc__.startswith("Ablation:") == (method.ablation is not None)


@pytest.mark.parametrize("name", METHODS)
def test_references_are_in_the_bibliography(name):
    keys = re.findall(r"^@\w+\{([^,]+),", REFERENCES.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert METHODS[name].reference in keys


# -- the categorical methods against enumeration -----------------------------------------------------


class EnumeratedMixture:
    """A mixture, one observation, and q's draws enumerated: every K-tuple is a row of the batch.

    q is a table of logits, one row a tuple, so that gradients of single tuples can be seen.
    """

    def __init__(self, num_particles, num_categories=3, seed=0, observation=5.0):
        self.p, network = small_mixture(seed, num_categories)
        self.observation = torch.tensor([observation], dtype=torch.float64)
        self.logits = network.log_probs(self.observation).detach()[0]
        self.num_particles, self.num_categories = num_particles, num_categories
        self.tuples = all_tuples(num_categories, num_particles)
        self.num_tuples = self.tuples.shape[1]
        self.q_probs = self.logits.softmax(dim=0)
        self.probs = self.q_probs[self.tuples].prod(dim=0)
        self.uniforms = uniforms_for(self.q_probs.expand(self.num_tuples, -1), self.tuples)

    def log_joint(self):
        """``log p(z, x)`` of every category, ``[C]``."""
        return self.p.log_joint(torch.arange(self.num_categories)[:, None], self.observation)[:, 0]

    def bound(self, logits):
        log_q = logits.log_softmax(dim=0)[self.tuples]
        value = torch.log((self.log_joint()[self.tuples] - log_q).exp().mean(dim=0))
        return (log_q.sum(dim=0).exp() * value).sum()

    def elbo(self, logits):
        log_q = logits.log_softmax(dim=0)
        return (log_q.exp() * (self.log_joint() - log_q)).sum()

    def exact_gradients(self, objective):
        logits = self.logits.clone().requires_grad_()
        return grad(objective(logits), (self.p.theta, logits))

    def expected_gradients(self, function, script, probs, **extra):
        """Expected ascent directions of theta and q's logits; ``probs`` are those of the script's columns."""
        q = RowNetwork(self.logits.expand(len(probs), -1))
        loss = function(self.p, q, self.observation.expand(len(probs)), self.num_particles, script, **extra)
        assert script.is_used_up
        theta, phi = grad(-(probs * loss).sum(), (self.p.theta, q.logits), materialize_grads=True)
        return theta, phi.sum(dim=0)


class ArbitraryBaseline(nn.Module):
    def forward(self, x):
        return torch.sin(x) - 3


UNBIASED = {
    "reinforce": {},
    "vimco": {},
    "vimco arithmetic": {"mean": "arithmetic"},
    "vimco_no_log_k": {},
    "nvil": {"control_variate": ArbitraryBaseline()},
}


@pytest.mark.parametrize("name", UNBIASED)
@pytest.mark.parametrize("num_particles", [2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_methods_with_score_function_are_unbiased_for_the_bound(name, num_particles, seed):
    problem = EnumeratedMixture(num_particles, seed=seed)
    function = METHODS[name.split()[0]].function
    actual = problem.expected_gradients(function, Script([problem.uniforms]), problem.probs, **UNBIASED[name])
    for a, b in zip(actual, problem.exact_gradients(problem.bound), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize("num_particles", [2, 3])
def test_tvo_with_one_interval_climbs_the_elbo(num_particles):
    problem = EnumeratedMixture(num_particles)
    script = Script([problem.uniforms])
    actual = problem.expected_gradients(methods.tvo, script, problem.probs, partition=(0.0, 1.0))
    for a, b in zip(actual, problem.exact_gradients(problem.elbo), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def self_normalised_by_a_loop(problem, proposal):
    """Expected wake-phi gradient in q's logits with particles from a proposal, in plain Python numbers."""
    p, q, r = problem.log_joint().exp().tolist(), problem.q_probs.tolist(), proposal.tolist()
    expected = [0.0 for _ in q]
    for particles in itertools.product(range(len(q)), repeat=problem.num_particles):
        probability = math.prod(r[z] for z in particles)
        total = sum(p[z] / r[z] for z in particles)
        for z, c in itertools.product(particles, range(len(q))):
            expected[c] += probability * p[z] / r[z] / total * ((c == z) - q[c])
    return torch.tensor(expected, dtype=torch.float64)


@pytest.mark.parametrize(
    ("num_particles", "center_weights"), [(1, False), (2, False), (3, False), (2, True), (3, True)]
)
def test_wake_wake_has_the_expectation_of_the_loop(num_particles, center_weights):
    problem = EnumeratedMixture(num_particles)
    script = Script([problem.uniforms])
    theta, phi = problem.expected_gradients(
        methods.wake_wake, script, problem.probs, center_weights=center_weights
    )
    expected = self_normalised_by_a_loop(problem, problem.q_probs)
    torch.testing.assert_close(phi, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(theta, problem.exact_gradients(problem.bound)[0], rtol=0, atol=1e-9)


def defensive_draws(problem, delta):
    """All draws of delta-WW as a script, and their probabilities.

    A particle's state is (draw from q, draw from r, coin), so a tuple is one of (2 C^2)^K.
    """
    c = problem.num_categories
    states = all_tuples(2 * c * c, problem.num_particles)
    z_q, z_r, from_r = states // (2 * c), states // 2 % c, (states % 2).bool()
    delta = torch.tensor(delta, dtype=torch.float64)
    coin_probs = torch.where(from_r, delta, 1 - delta)
    probs = (problem.q_probs[z_q] / c * coin_probs).prod(dim=0)
    coins = torch.where(from_r, delta / 2, (1 + delta) / 2)
    for_theta = torch.full_like(coins, 0.5)
    rows = problem.q_probs.expand(states.shape[1], -1)
    return Script([for_theta, uniforms_for(rows, z_q), (z_r + 0.5) / c, coins]), probs


@pytest.mark.parametrize("delta", [0.2, 0.7])
@pytest.mark.parametrize("num_particles", [1, 2, 3])
def test_defensive_wake_wake_weights_use_the_density_of_the_particles_drawn(num_particles, delta):
    problem = EnumeratedMixture(num_particles)
    script, probs = defensive_draws(problem, delta)
    assert probs.sum().item() == pytest.approx(1)
    _, phi = problem.expected_gradients(methods.defensive_wake_wake, script, probs, delta=delta)
    mixture = (1 - delta) * problem.q_probs + delta / problem.num_categories
    torch.testing.assert_close(phi, self_normalised_by_a_loop(problem, mixture), rtol=0, atol=1e-9)


def test_defensive_wake_wake_with_one_particle_pulls_towards_r():
    problem, delta = EnumeratedMixture(num_particles=1), 0.3
    script, probs = defensive_draws(problem, delta)
    _, phi = problem.expected_gradients(methods.defensive_wake_wake, script, probs, delta=delta)
    expected_score_under_r = 1 / problem.num_categories - problem.q_probs
    torch.testing.assert_close(phi, delta * expected_score_under_r, rtol=0, atol=1e-12)


def test_the_ablation_of_the_wrong_density_is_noticed():
    problem, delta = EnumeratedMixture(num_particles=2), 0.2
    _, right = problem.expected_gradients(
        methods.defensive_wake_wake, *defensive_draws(problem, delta), delta=delta
    )
    _, wrong = problem.expected_gradients(
        methods.dww_wrong_density, *defensive_draws(problem, delta), delta=delta
    )
    assert (right - wrong).norm() > 0.05 * right.norm()


@pytest.mark.parametrize("num_particles", [2, 3])
def test_the_ablation_of_2018_has_the_score_of_the_elbo_and_the_rest_of_the_bound(num_particles):
    """Its expected phi gradient is the ELBO's minus wake-phi, the second term of Eq. 2; theta's is right."""
    problem = EnumeratedMixture(num_particles)
    theta, phi = problem.expected_gradients(methods.vimco_air2018, Script([problem.uniforms]), problem.probs)
    exact_theta, exact_phi = problem.exact_gradients(problem.bound)
    _, elbo = problem.exact_gradients(problem.elbo)
    wake_phi = self_normalised_by_a_loop(problem, problem.q_probs)
    torch.testing.assert_close(theta, exact_theta, rtol=0, atol=1e-9)
    torch.testing.assert_close(phi, elbo - wake_phi, rtol=0, atol=1e-9)
    assert (phi - exact_phi).norm() > 0.05 * exact_phi.norm()


class MixedNetwork(GaussianNetwork):
    """Half of log q, with its own noise, passes for the discrete part; particles keep their path."""

    def sample_mixed(self, x, num_particles, noise):
        z, log_q = self.rsample(x, num_particles, noise)
        return z, log_q, 0.5 * log_q


@pytest.mark.parametrize("name", ["reinforce", "vimco", "nvil", "vimco_air2018"])
def test_methods_use_the_discrete_part_of_log_q_where_q_tells_it_apart(name):
    p, q, x = GaussianModel().double(), MixedNetwork().double(), torch.linspace(-2, 2, 5).double()
    extra = {"control_variate": ArbitraryBaseline()} if name == "nvil" else {}
    loss = METHODS[name].function(p, q, x, 3, Noise(4), **extra).sum()
    z, log_q, score = q.sample_mixed(x, 3, Noise(4))
    log_p = p.log_joint(z, x)
    log_w = (log_p - log_q).detach()
    bound = estimators.log_evidence(log_p - log_q)
    signal = {
        "reinforce": bound.detach().expand_as(log_w),
        "nvil": (bound.detach() - ArbitraryBaseline()(x)).expand_as(log_w),
        "vimco": bound.detach() - estimators.vimco_baseline(log_w),
        "vimco_air2018": (log_w - estimators.vimco_baseline(log_w)) / 3,
    }[name]
    expected = -((signal * score).sum(dim=0) + bound).sum()
    for module in (p, q):
        assert_same_gradients(parameter_gradients(loss, module), parameter_gradients(expected, module))


@pytest.mark.parametrize("network", [GaussianNetwork, MixedNetwork])
def test_the_ablation_without_path_is_vimco_of_a_network_that_offers_none(network):
    p, q, x = GaussianModel().double(), network().double(), torch.linspace(-2, 2, 5).double()
    loss = methods.vimco_scores(p, q, x, 3, Noise(4)).sum()
    z, log_q = q.sample(x, 3, Noise(4))
    expected = estimators.vimco_loss(p.log_joint(z, x), log_q).sum()
    with_path = methods.vimco(p, q, x, 3, Noise(4)).sum()
    for module in (p, q):
        gradients = parameter_gradients(loss, module)
        assert_same_gradients(gradients, parameter_gradients(expected, module))
    other = parameter_gradients(with_path, q)  # the loop ends with q's
    same = all(torch.allclose(gradients[name], other[name]) for name in other)
    assert same == (network is GaussianNetwork)


def test_the_ablation_without_log_k_is_noisier():
    """For K = 4 it may be noisier even than REINFORCE."""
    problem = EnumeratedMixture(num_particles=4)
    variance = {}
    for name in ("vimco", "vimco_no_log_k"):
        q = RowNetwork(problem.logits.expand(problem.num_tuples, -1))
        x, script = problem.observation.expand(problem.num_tuples), Script([problem.uniforms])
        loss = METHODS[name].function(problem.p, q, x, problem.num_particles, script)
        (rows,) = grad(loss.sum(), q.logits)
        mean = problem.probs @ rows
        variance[name] = (problem.probs @ rows.square() - mean.square()).sum()
    assert variance["vimco_no_log_k"] > 3 * variance["vimco"]


def test_the_ablation_without_log_k_is_vimco_with_a_larger_baseline():
    p, q = small_mixture()
    x, num_particles = torch.linspace(-2, 9, 6, dtype=torch.float64), 4
    loss = methods.vimco_no_log_k(p, q, x, num_particles, Noise(3)).sum()
    z, log_q = q.sample(x, num_particles, Noise(3))
    log_w = p.log_joint(z, x) - log_q
    bound = torch.logsumexp(log_w, dim=0) - math.log(num_particles)
    baseline = estimators.vimco_baseline(log_w) + math.log(num_particles)
    expected = -((bound.detach() - baseline) * log_q).sum() - bound.sum()
    for module in (p, q):
        assert_same_gradients(parameter_gradients(loss, module), parameter_gradients(expected, module))


def quadrature(num_nodes):
    """Nodes and weights for the expectation over a standard normal variable, float64."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    return torch.from_numpy(nodes), torch.from_numpy(weights / math.sqrt(2 * math.pi))


def test_wake_sleep_climbs_the_expected_log_q_of_dreams():
    """Dreams z by enumeration, x by quadrature: one row of the batch for each pair."""
    p, q = small_mixture(seed=3)
    num_categories, (nodes, weights) = len(p.theta), quadrature(80)
    prior = p.log_prior().exp().detach()
    z, node = torch.cartesian_prod(torch.arange(num_categories), torch.arange(len(nodes))).T
    for_theta = torch.full((1, len(z)), 0.5, dtype=torch.float64)
    script = Script([for_theta, uniforms_for(prior.expand(len(z), -1), z[None])[0]], [nodes[node]])
    loss = methods.wake_sleep(p, q, torch.zeros(len(z), dtype=torch.float64), 1, script)
    actual = parameter_gradients((prior[z] * weights[node] * loss).sum(), q)

    expected_log_q = 0
    for category in range(num_categories):
        log_q = q.log_probs(p.spacing * category + p.sd * nodes)[:, category]
        expected_log_q = expected_log_q + prior[category] * (weights * log_q).sum()
    assert_same_gradients(actual, parameter_gradients(-expected_log_q, q))


def test_wake_sleep_averages_all_dreams():
    p, q = small_mixture()
    x, num_particles = torch.linspace(-2, 9, 5, dtype=torch.float64), 3
    loss = methods.wake_sleep(p, q, x, num_particles, Noise(2))
    noise = Noise(2)
    q.sample(x, num_particles, noise)
    z, dreams = p.sample(num_particles * len(x), noise)
    log_q = q.log_probs(dreams.detach())[torch.arange(len(dreams)), z]
    assert_same_gradients(
        parameter_gradients(loss.mean(), q), parameter_gradients(-log_q.mean(), q), atol=1e-7
    )


@pytest.mark.parametrize("wake_weight, name", [(1.0, "ww"), (0.0, "ws")])
def test_the_mixture_of_wake_and_sleep_ends_at_its_parts(wake_weight, name):
    p, q = small_mixture()
    x = torch.linspace(-2, 9, 5, dtype=torch.float64)
    mixed = methods.wake_wake_sleep(p, q, x, 3, Noise(4), wake_weight=wake_weight).mean()
    pure = METHODS[name].function(p, q, x, 3, Noise(4)).mean()
    for module in (p, q):
        assert_same_gradients(parameter_gradients(mixed, module), parameter_gradients(pure, module))


# -- RELAX and REBAR -------------------------------------------------------------------------------------


def steep(control_variate, factor=3.0):
    """A control variate far from zero, so that a mistake in its terms cannot hide."""
    with torch.no_grad():
        for parameter in control_variate.parameters():
            parameter.mul_(factor)
    return control_variate.double()


def control_variate_for(name, num_categories=3):
    with torch.random.fork_rng():
        torch.manual_seed(4)
        if name == "relax":
            return steep(gmm.RelaxControlVariate(num_categories))
        control_variate = methods.RebarControlVariate().double()
        nn.init.constant_(control_variate.log_scale, 0.3)
        nn.init.constant_(control_variate.log_temperature, -0.4)
        return control_variate


def phi_gradient_samples(name, problem, num_samples, seed=11):
    """Independent samples of the ascent direction of q's logits, ``[num_samples, C]``."""
    q = RowNetwork(problem.logits.expand(num_samples, -1))
    x = problem.observation.expand(num_samples)
    control_variate = control_variate_for(name, problem.num_categories)
    function = METHODS[name].function
    loss = function(problem.p, q, x, problem.num_particles, Noise(seed), control_variate=control_variate)
    return grad(-loss.sum(), q.logits)[0]


def standard_errors_off(samples, exact):
    """Largest distance of the mean from the exact value, in standard errors."""
    error = samples.std(dim=0) / math.sqrt(len(samples))
    return ((samples.mean(dim=0) - exact).abs() / error).max().item()


@pytest.mark.parametrize("name", ["relax", "rebar"])
@pytest.mark.parametrize("num_particles", [1, 2, 3])
def test_relax_and_rebar_are_unbiased(name, num_particles):
    """200 000 samples, five standard errors; one is below 4% of the gradient, so the check is sharp."""
    problem = EnumeratedMixture(num_particles, seed=1)
    _, exact = problem.exact_gradients(problem.bound)
    samples = phi_gradient_samples(name, problem, 200_000)
    assert standard_errors_off(samples, exact) < 5
    assert (samples.std(dim=0) / math.sqrt(len(samples))).max() < 0.04 * exact.norm()


def without_gradient(log_probs, z, uniform):
    """The known mistake: no gradient through the conditional variates."""
    return methods_conditional_gumbel(log_probs.detach(), z, uniform)


def not_truncated(log_probs, z, uniform):
    """The other variates drawn without regard to the maximum."""
    is_top = nn.functional.one_hot(z, log_probs.shape[-1]).bool()
    return torch.where(is_top, 0, log_probs) - torch.log(-torch.log(uniform))


methods_conditional_gumbel = methods.conditional_gumbel


@pytest.mark.parametrize("name", ["relax", "rebar"])
@pytest.mark.parametrize("mistake", [without_gradient, not_truncated])
def test_wrong_conditional_variates_are_noticed(name, mistake, monkeypatch):
    problem = EnumeratedMixture(num_particles=2, seed=1)
    _, exact = problem.exact_gradients(problem.bound)
    monkeypatch.setattr(methods.relaxed, "conditional_gumbel", mistake)
    assert standard_errors_off(phi_gradient_samples(name, problem, 200_000), exact) > 10


class NoControlVariate(nn.Module):
    def forward(self, x, g):
        return torch.zeros_like(x)


def particles_of_gumbel_noise(q, x, num_particles, noise):
    """The categories that RELAX and REBAR choose with this noise, ``[K, B]``."""
    log_probs = q.log_probs(x)
    gumbel = noise.gumbel(log_probs.shape[-1], num_particles, len(x)).movedim(0, -1)
    return (log_probs + gumbel).argmax(dim=-1)


def test_relax_without_control_variate_is_reinforce():
    p, q = small_mixture()
    x = torch.linspace(-2, 9, 6, dtype=torch.float64)
    loss = methods.relax(p, q, x, 3, Noise(8), control_variate=NoControlVariate())
    z = particles_of_gumbel_noise(q, x, 3, Noise(8))
    expected = estimators.reinforce_loss(p.log_joint(z, x), q.log_prob(z, x))
    assert torch.equal(loss, expected)
    for module in (p, q):
        assert_same_gradients(
            parameter_gradients(loss.sum(), module), parameter_gradients(expected.sum(), module), atol=0
        )


@pytest.mark.parametrize("name", ["relax", "rebar"])
def test_theta_gradient_of_relax_and_rebar_is_wake_theta(name):
    """Claim GEN-2; the control variate passes nothing on to theta."""
    p, q = small_mixture()
    x = torch.linspace(-2, 9, 6, dtype=torch.float64)
    loss = METHODS[name].function(p, q, x, 3, Noise(8), control_variate=control_variate_for(name))
    z = particles_of_gumbel_noise(q, x, 3, Noise(8))
    expected = estimators.wake_theta_loss(p.log_joint(z, x), q.log_prob(z, x))
    assert_same_gradients(
        parameter_gradients(loss.sum(), p), parameter_gradients(expected.sum(), p), atol=1e-12
    )


@pytest.mark.parametrize("name", ["relax", "rebar"])
def test_control_variate_gradient_is_the_derivative_of_the_squared_phi_gradient(name):
    """Autograd through the gradient against central differences, along random directions."""
    p, q = small_mixture()
    x = torch.linspace(-2, 9, 6, dtype=torch.float64)
    control_variate = control_variate_for(name)
    parameters = list(control_variate.parameters())

    def mean_square(create_graph=False):
        loss = METHODS[name].function(p, q, x, 2, Noise(9), control_variate=control_variate)
        gradients = grad(loss.mean(), list(q.parameters()), create_graph=create_graph)
        return torch.cat([g.flatten() for g in gradients]).square().mean()

    gradients = grad(mean_square(create_graph=True), parameters)
    assert all((g != 0).any() for g in gradients)
    generator, step = torch.Generator().manual_seed(0), 1e-5

    def move(direction, size):
        with torch.no_grad():
            for parameter, d in zip(parameters, direction, strict=True):
                parameter.add_(d, alpha=size)

    for _ in range(5):
        direction = [torch.randn(g.shape, generator=generator, dtype=g.dtype) for g in gradients]
        move(direction, step)
        above = mean_square()
        move(direction, -2 * step)
        below = mean_square()
        move(direction, step)
        derivative = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
        torch.testing.assert_close(derivative, (above - below) / (2 * step), rtol=1e-5, atol=1e-8)


def gumbel_pairs(num_samples=200_000):
    log_probs = torch.tensor([0.1, 0.6, 0.05, 0.25], dtype=torch.float64).log()
    noise = Noise(21)
    g = log_probs + noise.gumbel(num_samples, 1, 4).double().transpose(0, 1)
    z = g.argmax(dim=-1)
    uniform = noise.uniform(1, num_samples, 4).double()
    conditional = methods.conditional_gumbel(log_probs.expand(num_samples, -1), z, uniform)
    return log_probs, z, conditional


def test_conditional_gumbel_has_its_maximum_at_z():
    _, z, conditional = gumbel_pairs()
    assert torch.equal(conditional.argmax(dim=-1), z)


def test_conditional_gumbel_has_the_unconditional_law():
    """Marginals by mean, variance and Kolmogorov-Smirnov distance, 5 sigma at 200 000; no correlation."""
    log_probs, _, conditional = gumbel_pairs()
    values = conditional[0] - log_probs  # standard Gumbel, if all is well
    n = len(values)
    mean, variance, fourth = np.euler_gamma, math.pi**2 / 6, 14.6  # the fourth central moment
    assert ((values.mean(dim=0) - mean).abs() < 5 * math.sqrt(variance / n)).all()
    assert ((values.var(dim=0) - variance).abs() < 5 * math.sqrt((fourth - variance**2) / n)).all()
    cdf = torch.exp(-torch.exp(-values.sort(dim=0).values))
    empirical = torch.arange(1, n + 1, dtype=torch.float64)[:, None] / n
    distance = (cdf - empirical).abs().amax(dim=0)
    assert (distance < math.sqrt(math.log(2 / 5.7e-7) / (2 * n))).all()  # the bound of Dvoretzky et al.
    correlation = torch.corrcoef(values.T) - torch.eye(4)
    assert correlation.abs().max() < 5 / math.sqrt(n)


def test_conditional_gumbel_gradient_matches_finite_differences():
    generator = torch.Generator().manual_seed(0)
    log_probs = (
        torch.randn(5, 4, generator=generator, dtype=torch.float64).log_softmax(dim=-1).requires_grad_()
    )
    z = torch.randint(4, (3, 5), generator=generator)
    uniform = torch.rand(3, 5, 4, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda logits: methods.conditional_gumbel(logits, z, uniform), log_probs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_conditional_gumbel_stays_finite_at_the_ends(dtype):
    """The smallest and largest numbers that a noise source gives, and a category of probability e^-100."""
    ends = torch.tensor([2.0**-25, 1 - 2.0**-24], dtype=dtype)
    uniform = torch.cartesian_prod(ends, ends, ends)[None]
    log_probs = torch.tensor([[0.0, -100.0, -5.0]], dtype=dtype).expand(8, -1).clone().requires_grad_()
    for z in range(3):
        g = methods.conditional_gumbel(log_probs, torch.full((1, 8), z), uniform)
        assert torch.isfinite(g).all()
        assert torch.isfinite(grad(g.sum(), log_probs)[0]).all()


# -- Concrete ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.3, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("num_categories", [2, 3, 20])
def test_concrete_log_prob_is_that_of_torch(temperature, num_categories):
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(6, num_categories, generator=generator, dtype=torch.float64).log_softmax(dim=-1)
    log_z = torch.randn(4, 6, num_categories, generator=generator, dtype=torch.float64).log_softmax(dim=-1)
    temperature = torch.tensor(temperature, dtype=torch.float64)
    expected = D.RelaxedOneHotCategorical(temperature, logits=log_probs).log_prob(log_z.exp())
    torch.testing.assert_close(methods.concrete_log_prob(log_z, log_probs, temperature), expected)


def test_concrete_log_prob_keeps_double_precision_with_a_number_as_temperature():
    log_z = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
    expected = methods.concrete_log_prob(log_z, log_z, torch.tensor(0.3, dtype=torch.float64))
    torch.testing.assert_close(methods.concrete_log_prob(log_z, log_z, 0.3), expected, rtol=0, atol=1e-14)


def test_concrete_is_the_bound_of_the_relaxed_model():
    p, q = small_mixture()
    x, temperature = torch.linspace(-2, 9, 6, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    actual = methods.concrete(p, q, x, 4, Noise(5), temperature=temperature)
    gumbel = Noise(5).gumbel(3, 4, len(x)).double().movedim(0, -1)
    z = torch.softmax((q.log_probs(x) + gumbel) / temperature, dim=-1)
    log_q = D.RelaxedOneHotCategorical(temperature, logits=q.log_probs(x)).log_prob(z)
    prior = D.RelaxedOneHotCategorical(temperature, logits=p.log_prior())
    mean = (z * torch.arange(3) * p.spacing).sum(dim=-1)
    log_p = prior.log_prob(z) + D.Normal(mean, p.sd).log_prob(x)
    expected = math.log(4) - torch.logsumexp(log_p - log_q, dim=0)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)
    for module in (p, q):
        assert_same_gradients(
            parameter_gradients(actual.sum(), module), parameter_gradients(expected.sum(), module), atol=1e-7
        )


def relaxed_draws(q_probs, num_nodes=60):
    """Gumbel pairs of one particle as a script, and their weights, so that sums over them are expectations.

    Only the pair's difference matters, a logistic variable: Gauss-Legendre nodes in its distribution
    function, on either side of where the arg max changes.
    """
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(num_nodes))
    jump = q_probs[1].item()  # the first category wins above it
    halves = ((0, jump), (jump, 1))
    t = torch.cat([low + (high - low) * (nodes + 1) / 2 for low, high in halves])
    difference = torch.logit(t)
    gumbel = torch.stack([difference / 2, -difference / 2])
    probs = torch.cat([(high - low) * weights / 2 for low, high in halves])
    return Script([torch.exp(-torch.exp(-gumbel))[:, None]]), probs


def relaxed_problem(spacing=40.0, observation=20.0):
    """Two clusters, an observation between them, and all draws of one particle."""
    problem = EnumeratedMixture(num_particles=1, num_categories=2, observation=observation)
    problem.p.spacing = spacing
    return problem


def evidence_on_the_line(p, x, prior):
    """Evidence of two clusters whose latent is a point between them: ``prior`` is flat cells, or Concrete."""
    share = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000  # of the first category
    likelihood = D.Normal((1 - share) * p.spacing, p.sd).log_prob(x).exp()
    if prior == "flat cells":
        pi = p.log_prior().exp()
        density = 2 * torch.where(share > 0.5, pi[0], pi[1])
    else:
        density = prior.log_prob(torch.stack([share, 1 - share], dim=-1)).exp()
    return (density * likelihood).mean().item()


def mean_weight(name, problem, temperature):
    script, probs = relaxed_draws(problem.q_probs)
    q, x = RowNetwork(problem.logits.expand(len(probs), -1)), problem.observation.expand(len(probs))
    loss = METHODS[name].function(problem.p, q, x, 1, script, temperature=temperature)
    return (probs * torch.exp(-loss)).sum().item()


def test_weights_of_concrete_2018_are_those_of_its_distributions_in_torch():
    """A one-hot distribution asked for the probability of a point within the simplex takes its arg max."""
    p, q = small_mixture()
    x, temperature = torch.linspace(-2, 9, 6, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    actual = methods.concrete_2018(p, q, x, 4, Noise(5), temperature=temperature)
    gumbel = Noise(5).gumbel(3, 4, len(x)).double().movedim(0, -1)
    z = torch.softmax((q.log_probs(x) + gumbel) / temperature, dim=-1)
    log_q = D.RelaxedOneHotCategorical(temperature, logits=q.log_probs(x)).log_prob(z)
    prior = D.OneHotCategorical(logits=p.log_prior(), validate_args=False)
    mean = (z * torch.arange(3) * p.spacing).sum(dim=-1)
    log_p = prior.log_prob(z) + D.Normal(mean, p.sd).log_prob(x)
    expected = math.log(4) - torch.logsumexp(log_p - log_q, dim=0)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)
    for module in (p, q):
        assert_same_gradients(
            parameter_gradients(actual.sum(), module), parameter_gradients(expected.sum(), module), atol=1e-7
        )


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_weights_of_concrete_2018_average_to_half_the_evidence_of_flat_cells(temperature):
    """And those of Concrete to the evidence of its relaxed model: the same test tells them apart."""
    problem = relaxed_problem(spacing=10.0, observation=3.0)
    p, x, temperature = problem.p, problem.observation, torch.tensor(temperature, dtype=torch.float64)
    halved = evidence_on_the_line(p, x, "flat cells") / 2
    proper = evidence_on_the_line(p, x, D.RelaxedOneHotCategorical(temperature, logits=p.log_prior()))
    assert mean_weight("concrete_2018", problem, temperature) == pytest.approx(halved, rel=1e-4)
    assert mean_weight("concrete", problem, temperature) == pytest.approx(proper, rel=5e-3)
    assert abs(proper / halved - 1) > 0.2


def test_concrete_2018_is_no_bound():
    """Between two clusters a point in the middle explains what neither cluster does.

    The value exceeds the discrete model's evidence with a single particle, and with many, where it is the
    logarithm of the mean weight, that of the Concrete model at the same temperature, too.
    """
    problem, temperature = relaxed_problem(), torch.tensor(0.3, dtype=torch.float64)
    p, x = problem.p, problem.observation
    discrete = torch.logsumexp(problem.log_joint(), dim=0).item()
    script, probs = relaxed_draws(torch.full((2,), 0.5, dtype=torch.float64))
    even = RowNetwork(torch.zeros(len(probs), 2, dtype=torch.float64))
    loss = methods.concrete_2018(p, even, x.expand(len(probs)), 1, script, temperature=1.0)
    assert -(probs * loss).sum().item() > discrete + 1
    relaxed = evidence_on_the_line(p, x, D.RelaxedOneHotCategorical(temperature, logits=p.log_prior()))
    assert math.log(mean_weight("concrete_2018", problem, temperature)) > math.log(relaxed) + 0.3
    assert math.log(mean_weight("concrete", problem, temperature)) < math.log(relaxed) + 0.01


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_concrete_2018_with_one_particle_moves_theta_as_the_discrete_elbo_does(temperature):
    """Towards q's probabilities; Concrete's own theta goes elsewhere.  Phi does not see the prior at all."""
    problem = relaxed_problem(spacing=10.0, observation=3.0)
    script, probs = relaxed_draws(problem.q_probs)
    theta, phi = problem.expected_gradients(methods.concrete_2018, script, probs, temperature=temperature)
    elbo, _ = problem.exact_gradients(problem.elbo)
    torch.testing.assert_close(theta, elbo, rtol=0, atol=1e-12)
    script, probs = relaxed_draws(problem.q_probs)
    other, _ = problem.expected_gradients(methods.concrete, script, probs, temperature=temperature)
    assert (other - elbo).norm() > 0.1 * elbo.norm()
    with torch.no_grad():
        problem.p.theta += torch.tensor([2.0, -1.0])
    script, probs = relaxed_draws(problem.q_probs)
    _, again = problem.expected_gradients(methods.concrete_2018, script, probs, temperature=temperature)
    torch.testing.assert_close(again, phi, rtol=0, atol=1e-12)


# -- the reparameterisable methods against quadrature ----------------------------------------------------

NODES = {1: 60, 2: 60, 3: 30}  # the quadrature error is then below 1e-13


def expected_gaussian_gradient(function, num_particles, observation=1.3, **extra):
    """Expected ascent direction ``(theta, phi)`` by a product grid of Gauss-Hermite nodes."""
    p, q = GaussianModel().double(), GaussianNetwork().double()
    nodes, weights = quadrature(NODES[num_particles])
    tuples = all_tuples(len(nodes), num_particles)
    x = torch.tensor(observation, dtype=torch.float64).expand(tuples.shape[1])
    loss = function(p, q, x, num_particles, Script(normal=[nodes[tuples]]), **extra)
    total = -(weights[tuples].prod(dim=0) * loss).sum()
    return flat_gradient(total, p), flat_gradient(total, q)


@pytest.mark.parametrize("num_particles", [1, 2, 3])
def test_dreg_has_the_expectation_of_iwae(num_particles):
    iwae = expected_gaussian_gradient(methods.iwae, num_particles)
    for a, b in zip(expected_gaussian_gradient(methods.dreg, num_particles), iwae, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("num_particles", [1, 2, 3])
def test_reinforce_has_the_expectation_of_iwae(num_particles):
    """Path derivative and score function are two ways to the same gradient."""
    iwae = expected_gaussian_gradient(methods.iwae, num_particles)
    for a, b in zip(expected_gaussian_gradient(methods.reinforce, num_particles), iwae, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("num_particles", [2, 3])
def test_rws_dreg_has_the_expectation_of_wake_phi(num_particles):
    wake_wake = expected_gaussian_gradient(methods.wake_wake, num_particles)
    assert wake_wake[1].norm() > 0.1
    for a, b in zip(expected_gaussian_gradient(methods.rws_dreg, num_particles), wake_wake, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_stl_is_unbiased_for_one_particle_and_biased_for_two():
    (_, iwae), (_, stl) = (expected_gaussian_gradient(f, 1) for f in (methods.iwae, methods.stl))
    torch.testing.assert_close(stl, iwae, rtol=0, atol=1e-11)
    (_, iwae), (_, stl) = (expected_gaussian_gradient(f, 2) for f in (methods.iwae, methods.stl))
    assert (stl - iwae).norm() > 0.1 * iwae.norm()


def test_stl_is_the_sum_of_dreg_and_rws_dreg():
    p, q = GaussianModel().double(), GaussianNetwork().double()
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)
    stl, dreg, rws_dreg = (
        flat_gradient(METHODS[name].function(p, q, x, 4, Noise(1)).mean(), q)
        for name in ("stl", "dreg", "rws_dreg")
    )
    torch.testing.assert_close(stl, dreg + rws_dreg)


def test_vae_climbs_the_elbo_in_closed_form():
    p, q, observation = GaussianModel().double(), GaussianNetwork().double(), 1.3
    mean, scale = q.slope * observation + q.offset, q.log_scale.exp()
    noise_scale = p.log_scale.exp()
    log_likelihood = D.Normal(mean, noise_scale).log_prob(torch.tensor(observation, dtype=torch.float64))
    kl = D.kl_divergence(D.Normal(mean, scale), D.Normal(p.mean, 1.0))
    elbo = log_likelihood - 0.5 * (scale / noise_scale) ** 2 - kl
    for num_particles in (1, 2):
        theta, phi = expected_gaussian_gradient(methods.vae, num_particles, observation)
        torch.testing.assert_close(theta, flat_gradient(elbo, p), rtol=0, atol=1e-9)
        torch.testing.assert_close(phi, flat_gradient(elbo, q), rtol=0, atol=1e-9)


def test_path_derivatives_leave_no_gradient_through_parameters():
    """At the exact posterior log w is constant in z, and the path derivative vanishes in every sample."""
    p, q = GaussianModel(0.0, 0.0).double(), GaussianNetwork(0.5, 0.0, 0.5 * math.log(0.5)).double()
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)
    for name in ("stl", "dreg", "rws_dreg"):
        loss = METHODS[name].function(p, q, x, 3, Noise(1)).mean()
        assert flat_gradient(loss, q).abs().max() < 1e-7  # the parameters came from float32
        assert flat_gradient(loss, p).abs().max() > 0.01


# -- who moves what ----------------------------------------------------------------------------------------

WAKE_SLEEP_FAMILY = ["ws", "ww", "wws", "dww"]


def family_problem(toy):
    if toy == "mixture":
        p, q = small_mixture()
        return p, q, torch.linspace(-2, 9, 6, dtype=torch.float64)
    return GaussianModel().double(), GaussianNetwork().double(), torch.linspace(-2, 2, 6, dtype=torch.float64)


def no_loss(log_density, *args, **kwargs):
    return torch.zeros_like(log_density[0])


@pytest.mark.parametrize("toy", ["mixture", "gaussian"])
@pytest.mark.parametrize("name", WAKE_SLEEP_FAMILY)
def test_the_loss_of_theta_moves_no_phi_and_that_of_phi_no_theta(name, toy, monkeypatch):
    """Each half is switched off in turn.  The Gaussian toy's dreams carry a gradient that must be cut."""
    p, q, x = family_problem(toy)

    def gradients():
        loss = METHODS[name].function(p, q, x, 3, Noise(3)).sum()
        return parameter_gradients(loss, p), parameter_gradients(loss, q)

    theta, phi = gradients()
    with monkeypatch.context() as only_theta:
        only_theta.setattr(estimators, "wake_phi_loss", no_loss)
        only_theta.setattr(estimators, "sleep_phi_loss", no_loss)
        theta_alone, nothing = gradients()
    assert all((g == 0).all() for g in nothing.values())
    with monkeypatch.context() as only_phi:
        only_phi.setattr(estimators, "wake_theta_loss", no_loss)
        nothing, phi_alone = gradients()
    assert all((g == 0).all() for g in nothing.values())
    assert_same_gradients(theta_alone, theta)
    assert_same_gradients(phi_alone, phi)
    for gradients_of_one in (theta, phi):
        assert any((g != 0).any() for g in gradients_of_one.values())


# another objective for theta (the ELBO, a Riemann sum, a relaxed model), or particles from other noise
NOT_IN_GEN_2 = {"tvo", "concrete", "concrete_2018", "rebar", "relax"}
NOT_IN_GEN_2 |= {name for name, method in METHODS.items() if method.follows == "ELBO"}


@pytest.mark.parametrize("name, toy", [row for row in ROWS if row[0] not in NOT_IN_GEN_2])
def test_theta_gradient_is_common_to_all_methods(name, toy):
    """Claim GEN-2: the same particles, the first that each method draws, give the same theta gradient."""
    p, q, x = family_problem(toy)
    extra = {"control_variate": ArbitraryBaseline()} if name == "nvil" else {}
    loss = METHODS[name].function(p, q, x, 3, Noise(3), **extra).sum()
    z, log_q = q.sample(x, 3, Noise(3))
    expected = -estimators.log_evidence(p.log_joint(z, x) - log_q).sum()
    assert_same_gradients(parameter_gradients(loss, p), parameter_gradients(expected, p))


def test_the_baseline_of_nvil_regresses_onto_the_bound():
    p, q, x = family_problem("gaussian")
    baseline = GaussianBaseline().double()
    loss = methods.nvil(p, q, x, 3, Noise(3), control_variate=baseline).sum()
    z, log_q = q.sample(x, 3, Noise(3))
    bound = estimators.log_evidence(p.log_joint(z, x) - log_q)
    regression = (bound.detach() - baseline(x)).square().sum()
    assert_same_gradients(parameter_gradients(loss, baseline), parameter_gradients(regression, baseline))
    without = estimators.nvil_loss(p.log_joint(z, x), log_q, baseline(x).detach()).sum()
    assert_same_gradients(parameter_gradients(loss, q), parameter_gradients(without, q))


# -- the table says all that others need to know -----------------------------------------------------------


def test_a_word_that_no_method_needs_is_no_offer():
    with pytest.raises(ValueError, match=r"offers must be some of .*'reparameterisable'.*got .*'reparam"):
        methods.usable("one_kind", "reparametrizable")


def test_a_method_is_usable_where_the_model_has_all_that_it_needs():
    assert "ww" in methods.usable()
    assert {"tvo", "dww", "nvil", "concrete", "iwae"}.isdisjoint(methods.usable())
    for name, offers in {
        "tvo": ["one_kind"],
        "vimco_scores": ["two_kinds"],
        "dww": ["sample_defensive"],
        "nvil": ["control_variate"],
        "relax": ["categorical", "control_variate"],
        "iwae": ["reparameterisable"],
    }.items():
        assert name in methods.usable(*offers)
        assert all(name not in methods.usable(*set(offers) - {offer}) for offer in offers)


@pytest.mark.parametrize(
    ("name", "option", "bad", "message"),
    [
        ("dww", "delta", 1, "delta must be a number between 0 and 1, got 1"),
        ("dww", "delta", True, "delta must be a number between 0 and 1, got True"),
        (
            "concrete",
            "temperature",
            (3.0, 0.0),
            r"temperature must be a pair \(first, last\) of numbers above 0",
        ),
        ("concrete", "temperature", (3.0,), r"temperature must be a pair \(first, last\) of numbers above 0"),
        ("ww", "center_weights", 1, "center_weights must be true or false, got 1"),
        ("vimco", "mean", "harmonic", "mean must be 'geometric' or 'arithmetic', got 'harmonic'"),
    ],
)
def test_an_option_refuses_what_a_run_may_not_set(name, option, bad, message):
    row = METHODS[name].options[option]
    row.check(option, row.of_run)
    with pytest.raises(ValueError, match=message):
        row.check(option, bad)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("ww", {"center_weights": True}),
        ("nvil", {"scale_signal": True}),
        ("vimco", {"mean": "arithmetic"}),
        ("ovis", {"gamma": 1.0}),
    ],
)
def test_an_option_reaches_the_estimator(name, option):
    torch.manual_seed(0)
    p, q, x = gmm.GMM(), gmm.InferenceNetwork(), torch.linspace(0, 190, 8)
    extra = {"control_variate": gmm.Baseline()} if name == "nvil" else {}

    def phi_gradient(**options):
        loss = METHODS[name].function(p, q, x, 4, Noise(1), **extra, **options).sum()
        return torch.cat([g.flatten() for g in grad(loss, list(q.parameters()))])

    assert not torch.allclose(phi_gradient(), phi_gradient(**option))
