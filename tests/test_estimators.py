"""The estimators against exact enumeration, and their behaviour at the edges.

On a problem with C categories the expectation of an estimator over its K particles is a finite sum
over C^K tuples, and the objective that it should climb is a finite sum too.  Both must agree to
1e-9, for every random problem: no tolerance for Monte Carlo error is needed, and a wrong factor,
a missing detach or a biased baseline shows at once (`test_enumeration_rejects_wrong_estimators`).
"""

import itertools
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.autograd import grad
from torch.func import vmap
from toys import ESTIMATORS, PARTITION, Enumeration, random_arguments

from rwslib import estimators

SIZES = [(3, 2), (3, 3), (3, 4), (4, 2), (4, 3), (4, 4)]
enumerated = pytest.mark.parametrize("num_categories, num_particles", SIZES)
seeded = pytest.mark.parametrize("seed", [0, 1, 2])


def agree(actual, expected, atol=1e-9):
    return torch.allclose(actual, expected, rtol=0, atol=atol)


# -- estimators of the bound's gradient --------------------------------------------------------------


def arbitrary_baseline(log_p, log_q):
    """NVIL with some number for every datum, the same for all its tuples (two data)."""
    values = torch.tensor([-3.7, 0.9], dtype=log_p.dtype)
    return estimators.nvil_loss(log_p, log_q, values.repeat_interleave(log_p.shape[1] // 2))


def zero_control_variate(log_p, log_q):
    zero = torch.zeros_like(log_p[0])
    return estimators.relax_loss(log_p, log_q, zero, zero)


BOUND_ESTIMATORS = {
    "reinforce": estimators.reinforce_loss,
    "vimco_geometric": estimators.vimco_loss,
    "vimco_arithmetic": lambda log_p, log_q: estimators.vimco_loss(log_p, log_q, mean="arithmetic"),
    "nvil": arbitrary_baseline,
    "relax_without_control_variate": zero_control_variate,
}


def is_unbiased_for_the_bound(loss, problem):
    """Whether the expected theta and phi gradients are those of the K-particle bound."""
    expected = problem.exact_gradients(problem.bound)
    return all(agree(*pair) for pair in zip(problem.expected_gradients(loss), expected, strict=True))


@pytest.mark.parametrize("name", BOUND_ESTIMATORS)
@enumerated
@seeded
def test_score_function_estimators_are_unbiased_for_the_bound(name, num_categories, num_particles, seed):
    problem = Enumeration(num_categories, num_particles, seed)
    assert is_unbiased_for_the_bound(BOUND_ESTIMATORS[name], problem)


@enumerated
@seeded
def test_wake_theta_is_unbiased_for_the_bound_and_does_not_move_q(num_categories, num_particles, seed):
    problem = Enumeration(num_categories, num_particles, seed)
    theta, phi = problem.expected_gradients(estimators.wake_theta_loss)
    assert agree(theta, problem.exact_gradients(problem.bound)[0])
    assert (phi == 0).all()


def test_value_of_the_theta_loss_is_minus_the_expected_bound():
    """Catches a forgotten log K, which no gradient shows."""
    problem = Enumeration(4, 3, seed=0)
    log_p, log_q = problem.log_p_at_tuples(problem.log_joint), problem.log_q_at_tuples(problem.logits)
    value = (problem.probs.flatten() * estimators.wake_theta_loss(log_p, log_q)).sum()
    assert agree(-value, problem.bound(problem.log_joint, problem.logits))


def test_baselines_lower_the_variance():
    problem = Enumeration(4, 4, seed=0)
    variance = {name: problem.total_variance(loss).sum() for name, loss in BOUND_ESTIMATORS.items()}
    assert variance["vimco_geometric"] < 0.5 * variance["reinforce"]
    assert variance["vimco_arithmetic"] < 0.5 * variance["reinforce"]


def test_both_means_of_vimco_are_the_same_for_two_particles():
    log_w = 3 * torch.randn(2, 50, dtype=torch.float64)
    geometric, arithmetic = (estimators.vimco_baseline(log_w, mean) for mean in ("geometric", "arithmetic"))
    assert agree(geometric, arithmetic)


def test_zero_control_variate_gives_reinforce():
    problem = Enumeration(3, 3, seed=5)
    for actual, expected in zip(
        problem.gradients(zero_control_variate), problem.gradients(estimators.reinforce_loss), strict=True
    ):
        assert torch.equal(actual, expected)


def test_relax_cuts_its_bracket_off_from_phi_unless_told_otherwise():
    """The gradient in c is -1, in c_conditional +1; with a bracket of its own, that gets the rest."""
    arguments = random_arguments("relax")
    bracket = arguments.pop("c_bracket")
    loss = estimators.relax_loss(**arguments)
    c, c_conditional = grad(loss.sum(), [arguments["c"], arguments["c_conditional"]])
    assert (c == -1).all()
    assert (c_conditional == 1).all()
    loss = estimators.relax_loss(**arguments, c_bracket=bracket)
    (through_bracket,) = grad(loss.sum(), bracket)
    torch.testing.assert_close(through_bracket, arguments["log_q"].sum(dim=0))


# -- a part of log q whose latents alone have no path derivative -----------------------------------------


def by_score(name, log_p, log_q, log_q_score=None):
    """A score-function estimator by name, NVIL with some baseline."""
    function, _, per_datum, _ = ESTIMATORS[name]
    extra = {n: torch.tensor([-3.7, 0.9, 20.0], dtype=log_p.dtype) for n in per_datum}
    return function(log_p=log_p, log_q=log_q, log_q_score=log_q_score, **extra)


BY_SCORE = pytest.mark.parametrize("name", ["reinforce_mixed", "vimco_mixed", "nvil_mixed"])


def signal_of(name, log_w):
    """What multiplies each particle's score, ``[K, B]``."""
    bound = torch.logsumexp(log_w, dim=0) - math.log(len(log_w))
    if name == "vimco_mixed":
        return bound - vimco_baseline_by_loops(log_w, "geometric")
    baseline = torch.tensor([-3.7, 0.9, 20.0], dtype=log_w.dtype)
    return (bound - (baseline if name == "nvil_mixed" else 0)).expand_as(log_w)


@BY_SCORE
def test_the_signal_multiplies_the_given_score_and_the_bound_keeps_all_of_log_q(name):
    arguments = random_arguments("vimco_mixed")
    loss = by_score(name, **arguments)
    gradients = dict(zip(arguments, grad(loss.sum(), list(arguments.values())), strict=True))
    log_w = (arguments["log_p"] - arguments["log_q"]).detach()
    v = torch.softmax(log_w, dim=0)
    torch.testing.assert_close(gradients["log_p"], -v)
    torch.testing.assert_close(gradients["log_q"], v)
    torch.testing.assert_close(gradients["log_q_score"], -signal_of(name, log_w))


@BY_SCORE
def test_all_of_log_q_is_the_score_unless_told_otherwise(name):
    arguments = random_arguments("vimco_mixed")
    log_p, log_q = arguments["log_p"], arguments["log_q"]
    default, given = by_score(name, log_p, log_q), by_score(name, log_p, log_q, log_q)
    assert torch.equal(default, given)
    for a, b in zip(*(grad(loss.sum(), (log_p, log_q)) for loss in (default, given)), strict=True):
        assert torch.equal(a, b)


# -- the enumeration notices mistakes ----------------------------------------------------------------


def bound_of(log_p, log_q):
    return torch.logsumexp(log_p - log_q, dim=0) - math.log(len(log_p))


def mean_of_scores(log_p, log_q):
    bound = bound_of(log_p, log_q)
    return -(bound.detach() * log_q.mean(dim=0) + bound)


def signal_not_detached(log_p, log_q):
    bound = bound_of(log_p, log_q)
    return -(bound * log_q.sum(dim=0) + bound)


def second_term_forgotten(log_p, log_q):
    return -bound_of(log_p, log_q).detach() * log_q.sum(dim=0)


def first_term_forgotten(log_p, log_q):
    return -bound_of(log_p, log_q)


def second_term_with_wrong_sign(log_p, log_q):
    bound = bound_of(log_p, log_q)
    return -(bound.detach() * log_q.sum(dim=0) - bound)


def mean_of_logs(log_p, log_q):
    bound = (log_p - log_q).mean(dim=0)
    return -(bound.detach() * log_q.sum(dim=0) + bound)


def own_weight_as_signal(log_p, log_q):
    """The signal of the paper's AIR code, log w_l - B_l in place of log Z - B_l."""
    signal = (log_p - log_q).detach() - estimators.vimco_baseline(log_p - log_q)
    return -((signal * log_q).sum(dim=0) + bound_of(log_p, log_q))


def mean_of_vimco_scores(log_p, log_q):
    bound = bound_of(log_p, log_q)
    signal = bound.detach() - estimators.vimco_baseline(log_p - log_q)
    return -((signal * log_q).mean(dim=0) + bound)


def baseline_with_own_particle(log_p, log_q):
    bound, log_w = bound_of(log_p, log_q), (log_p - log_q).detach()
    return -(((bound.detach() - log_w.mean(dim=0)) * log_q).sum(dim=0) + bound)


WRONG_BOUND_ESTIMATORS = [
    mean_of_scores,
    signal_not_detached,
    second_term_forgotten,
    first_term_forgotten,
    second_term_with_wrong_sign,
    mean_of_logs,
    own_weight_as_signal,
    mean_of_vimco_scores,
    baseline_with_own_particle,
]


@pytest.mark.parametrize("wrong", WRONG_BOUND_ESTIMATORS)
@pytest.mark.parametrize("num_particles", [2, 3])
def test_enumeration_rejects_wrong_estimators(wrong, num_particles):
    assert not is_unbiased_for_the_bound(wrong, Enumeration(3, num_particles, seed=0))


def weights_not_detached(log_p, log_q):
    return -(torch.softmax(log_p - log_q, dim=0) * log_q).sum(dim=0)


def weights_not_normalised(log_p, log_q):
    return -((log_p - log_q).detach().exp() * log_q).mean(dim=0)


def mean_of_weighted_scores(log_p, log_q):
    return estimators.wake_phi_loss(log_p, log_q) / len(log_p)


def bound_for_theta(log_p, log_q):
    return estimators.iwae_loss(log_p, log_q) + estimators.wake_phi_loss(log_p, log_q)


@pytest.mark.parametrize(
    "wrong", [weights_not_detached, weights_not_normalised, mean_of_weighted_scores, bound_for_theta]
)
def test_enumeration_rejects_wrong_wake_phi(wrong):
    problem = Enumeration(3, 3, seed=0)
    assert not agree(problem.expected_gradients(wrong)[1], wake_phi_by_a_loop(problem))


# -- wake-phi and sleep-phi ----------------------------------------------------------------------------


def wake_phi_by_a_loop(problem):
    """Expected wake-phi gradient in q's logits, in plain Python numbers, ``[B, C]``."""
    rows = []
    for log_joint, logits in zip(problem.log_joint.tolist(), problem.logits.tolist(), strict=True):
        p = [math.exp(value) for value in log_joint]
        q = [math.exp(value) / sum(map(math.exp, logits)) for value in logits]
        categories = range(len(q))
        expected = [0.0 for _ in categories]
        for particles in itertools.product(categories, repeat=problem.num_particles):
            probability = math.prod(q[z] for z in particles)
            total = sum(p[z] / q[z] for z in particles)
            for z in particles:
                v = p[z] / q[z] / total
                for c in categories:
                    expected[c] += probability * v * ((c == z) - q[c])
        rows.append(expected)
    return torch.tensor(rows, dtype=torch.float64)


@enumerated
@seeded
@pytest.mark.parametrize("center_weights", [False, True])
def test_wake_phi_has_the_expectation_of_the_loop(num_categories, num_particles, seed, center_weights):
    problem = Enumeration(num_categories, num_particles, seed)

    def loss(log_p, log_q):
        return estimators.wake_phi_loss(log_p, log_q, center_weights=center_weights)

    theta, phi = problem.expected_gradients(loss)
    assert agree(phi, wake_phi_by_a_loop(problem))
    assert (theta == 0).all()


@seeded
def test_wake_phi_bias_falls_with_every_particle(seed):
    bias = []
    for num_particles in range(1, 7):
        problem = Enumeration(3, num_particles, seed, num_data=1)
        _, exact = problem.exact_gradients(problem.minus_inclusive_kl)
        _, expected = problem.expected_gradients(estimators.wake_phi_loss)
        bias.append((expected - exact).norm().item())
        if num_particles == 1:
            assert agree(expected, torch.zeros_like(expected))
            assert bias[0] == pytest.approx(exact.norm().item())
    assert all(b < a for a, b in itertools.pairwise(bias))
    assert bias[-1] < 0.5 * bias[0]


@enumerated
def test_centred_weights_lower_the_variance(num_categories, num_particles):
    problem = Enumeration(num_categories, num_particles, seed=0)
    plain = problem.total_variance(estimators.wake_phi_loss)
    centred = problem.total_variance(lambda p, q: estimators.wake_phi_loss(p, q, center_weights=True))
    assert (centred < plain).all()


def test_defensive_weights_use_the_given_density():
    """With p itself as the proposal all weights are equal, whatever q is."""
    problem = Enumeration(3, 3, seed=1)
    _, phi = problem.gradients(lambda p, q: estimators.wake_phi_loss(p, q, log_proposal=p - 7))
    _, expected = problem.gradients(lambda p, q: -q.mean(dim=0))
    assert agree(phi, expected)


@seeded
@pytest.mark.parametrize("num_particles", [1, 2, 3])
def test_sleep_phi_is_exact(num_particles, seed):
    """Dreams are enumerated as tuples too: their distribution is p's, their number any."""
    num_categories, num_symbols = 3, 2
    generator = torch.Generator().manual_seed(seed)
    joint = torch.randn(num_categories, num_symbols, generator=generator, dtype=torch.float64).exp()
    joint /= joint.sum()
    logits = torch.randn(
        num_symbols, num_categories, generator=generator, dtype=torch.float64
    ).requires_grad_()
    dreams = list(itertools.product(range(num_categories), range(num_symbols)))
    expected = torch.zeros_like(logits)
    for tuple_of_dreams in itertools.product(dreams, repeat=num_particles):
        probability = math.prod(joint[dream].item() for dream in tuple_of_dreams)
        log_q = torch.stack([logits.log_softmax(dim=-1)[x, z] for z, x in tuple_of_dreams])
        (score,) = grad(-estimators.sleep_phi_loss(log_q[:, None]).sum(), logits)
        expected += probability * score
    (exact,) = grad((joint.T * logits.log_softmax(dim=-1)).sum(), logits)
    assert agree(expected, exact)


def test_second_term_of_equation_2_is_minus_wake_phi():
    """Claim GEN-1, for every tuple and not only in expectation."""
    problem = Enumeration(4, 3, seed=0)
    _, second_term = problem.gradients(lambda p, q: -estimators.log_evidence(p - q))
    _, wake_phi = problem.gradients(estimators.wake_phi_loss)
    assert agree(second_term, -wake_phi, atol=1e-14)


# -- the thermodynamic variational objective -----------------------------------------------------------


@enumerated
@seeded
def test_tvo_with_one_left_interval_is_the_elbo(num_categories, num_particles, seed):
    problem = Enumeration(num_categories, num_particles, seed)
    actual = problem.expected_gradients(lambda p, q: estimators.tvo_loss(p, q, torch.tensor([0.0, 1.0])))
    for a, b in zip(actual, problem.exact_gradients(problem.elbo), strict=True):
        assert agree(a, b)


def test_tvo_with_one_right_interval_is_wake_wake():
    problem = Enumeration(4, 3, seed=0)
    actual = problem.gradients(lambda p, q: estimators.tvo_loss(p, q, torch.tensor([0.0, 1.0]), rule="right"))
    expected = problem.gradients(
        lambda p, q: estimators.wake_theta_loss(p, q) + estimators.wake_phi_loss(p, q)
    )
    for a, b in zip(actual, expected, strict=True):
        assert agree(a, b, atol=1e-14)


def tvo_exactly(log_joint, log_q, partition, rule):
    """The Riemann sum by summation over the categories."""
    total = 0
    for low, high in itertools.pairwise(partition.tolist()):
        beta = low if rule == "left" else high
        pi = torch.softmax(beta * log_joint + (1 - beta) * log_q, dim=0)
        total = total + (high - low) * (pi * (log_joint - log_q)).sum()
    return total


def proportional_particles(copies):
    """Particles whose frequencies are exactly q's, (1, 2, 3) / 6; with them sampling error is gone."""
    log_q = torch.log(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64) / 6)
    return torch.tensor([0, 1, 1, 2, 2, 2]).repeat(copies), log_q


@pytest.mark.parametrize("rule", ["left", "right"])
def test_tvo_gradient_is_that_of_the_riemann_sum(rule):
    z, start = proportional_particles(copies=2000)
    partition = torch.tensor([0.0, 0.2, 0.5, 1.0], dtype=torch.float64)
    tables = torch.tensor([-0.3, -2.0, -1.1], dtype=torch.float64).requires_grad_(), start.requires_grad_()

    def particles():
        return tables[0][z][:, None], tables[1].log_softmax(dim=0)[z][:, None]

    theta, phi = grad(estimators.tvo_loss(*particles(), partition, rule).sum(), tables)
    value = tvo_exactly(tables[0], tables[1].log_softmax(dim=0), partition, rule)
    exact_theta, exact_phi = grad(value, tables)
    if (
        rule == "right"
    ):  # phi descends the upper bound, theta climbs log p(x), whose gradient is the posterior
        exact_theta, exact_phi = tables[0].softmax(dim=0), -exact_phi
    assert agree(-theta, exact_theta, atol=3e-4)
    assert agree(-phi, exact_phi, atol=3e-4)


def test_finer_partitions_tighten_the_tvo():
    z, log_q = proportional_particles(copies=1)
    log_joint = torch.tensor([-0.3, -2.0, -1.1], dtype=torch.float64)
    bounds = []
    for intervals in [1, 2, 4, 8, 64]:
        partition = torch.linspace(0, 1, intervals + 1, dtype=torch.float64)
        bounds.append(-estimators.tvo_loss(log_joint[z][:, None], log_q[z][:, None], partition).item())
        assert bounds[-1] == pytest.approx(tvo_exactly(log_joint, log_q, partition, "left").item(), abs=1e-12)
    evidence = torch.logsumexp(log_joint, dim=0).item()
    assert all(a < b < evidence for a, b in itertools.pairwise(bounds))
    assert evidence - bounds[-1] < 0.01


# -- extreme and bad input -----------------------------------------------------------------------------

EXTREMES = {
    "spread": [-1e4, -1.0, 0.0, 1e4],
    "all high": [1e4, 1e4, 1e4, 1e4],
    "all low": [-1e4, -1e4, -1e4, -1e4],
    "one high": [1e4, -1e4, -1e4, -1e4],
    "one low": [1e4, 1e4, 1e4, -1e4],
    "two equal": [1e4, 1e4, -1e4, -1e4],
}


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log_q_value", [0.0, -50.0, 1e4, -1e4])
def test_values_and_gradients_stay_finite(name, dtype, log_q_value):
    function, per_particle, per_datum, _ = ESTIMATORS[name]
    log_w = torch.tensor(list(EXTREMES.values()), dtype=dtype).T
    log_q = torch.full_like(log_w, log_q_value)
    values = {"log_p": log_w + log_q, "log_q": log_q, "log_proposal": log_q, "log_w_path": log_w}
    values |= {"log_q_score": log_q / 2, "score": log_q / 2}
    values |= {"log_p_pair": log_w.flip(0) + log_q, "log_q_pair": log_q, "expansion": log_w}
    values |= {
        "baseline": log_w[0],
        "expected": log_w[0],
        "c": log_w[0],
        "c_conditional": log_w[1],
        "c_bracket": log_w[1],
    }
    arguments = {n: values[n].clone().requires_grad_() for n in (*per_particle, *per_datum)}
    loss = function(**arguments)
    assert loss.shape == log_w.shape[1:]
    assert loss.dtype == dtype
    assert torch.isfinite(loss).all()
    for gradient in grad(loss.sum(), list(arguments.values()), allow_unused=True):
        assert gradient is None or torch.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_diagnostics_stay_finite(dtype):
    log_w = torch.tensor(list(EXTREMES.values()), dtype=dtype).T
    for value in (
        estimators.log_evidence(log_w),
        estimators.normalized_weights(log_w),
        estimators.effective_sample_size(log_w),
        estimators.vimco_baseline(log_w),
        estimators.vimco_baseline(log_w, "arithmetic"),
    ):
        assert torch.isfinite(value).all()
        assert value.dtype == dtype


PARTICLE_ARGUMENTS = [(name, n) for name, row in ESTIMATORS.items() for n in row[1]]
DATUM_ARGUMENTS = [(name, n) for name, row in ESTIMATORS.items() for n in row[2]]


def complain_about(name, argument, value):
    """Call an estimator with one argument replaced; a ValueError must name that argument."""
    arguments = random_arguments(name) | {argument: value}
    with pytest.raises(ValueError, match=rf"\b{argument}\b"):
        ESTIMATORS[name][0](**arguments)


@pytest.mark.parametrize(
    "name, argument, value",
    [
        (name, argument, value)
        for name, argument in PARTICLE_ARGUMENTS + DATUM_ARGUMENTS
        for value in (math.nan, math.inf, -math.inf)
        if value != -math.inf or argument not in ("log_p", "log_p_pair", "log_w_path")  # a weight of zero
    ],
)
def test_non_finite_numbers_are_named(name, argument, value):
    bad = random_arguments(name)[argument].detach()
    bad.view(-1)[1] = value
    complain_about(name, argument, bad)


@pytest.mark.parametrize("shape", [(), (4,), (4, 3, 1)])
@pytest.mark.parametrize("name, argument", PARTICLE_ARGUMENTS)
def test_a_wrong_number_of_axes_is_named(name, argument, shape):
    complain_about(name, argument, torch.zeros(shape))


@pytest.mark.parametrize("shape", [(5, 3), (4, 2), (4, 1), (1, 3)])
@pytest.mark.parametrize("name, argument", [pair for pair in PARTICLE_ARGUMENTS if pair[0] != "sleep_phi"])
def test_disagreeing_shapes_are_named(name, argument, shape):
    complain_about(name, argument, torch.zeros(shape))


@pytest.mark.parametrize("shape", [(), (1,), (2,), (4, 3), (3, 1)])
@pytest.mark.parametrize("name, argument", DATUM_ARGUMENTS)
def test_wrong_shapes_of_values_per_datum_are_named(name, argument, shape):
    complain_about(name, argument, torch.zeros(shape))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_too_few_particles_are_refused(name):
    function, *_, smallest = ESTIMATORS[name]
    with pytest.raises(ValueError, match=f"at least {smallest}"):
        function(**random_arguments(name, num_particles=smallest - 1))
    assert function(**random_arguments(name, num_particles=smallest)).shape == (3,)


def test_vimco_baseline_needs_two_particles():
    with pytest.raises(ValueError, match=r"log_w holds 1 particle.* at least 2"):
        estimators.vimco_baseline(torch.zeros(1, 3))


def test_centred_weights_need_particles_from_q():
    log_p = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"center_weights.*log_proposal"):
        estimators.wake_phi_loss(log_p, log_p, log_proposal=log_p, center_weights=True)


def test_unknown_options_are_named():
    log_p = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="mean must be 'geometric' or 'arithmetic', got 'harmonic'"):
        estimators.vimco_loss(log_p, log_p, mean="harmonic")
    with pytest.raises(ValueError, match="rule must be 'left' or 'right', got 'middle'"):
        estimators.tvo_loss(log_p, log_p, PARTITION, rule="middle")


@pytest.mark.parametrize(
    "partition",
    [[0.0], [], [[0.0, 1.0]], [0.1, 1.0], [0.0, 0.9], [0.0, 0.5, 0.5, 1.0], [1.0, 0.0], [0, math.nan, 1]],
)
def test_bad_partitions_are_named(partition):
    log_p = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="partition must"):
        estimators.tvo_loss(log_p, log_p, torch.tensor(partition))


# -- properties ------------------------------------------------------------------------------------------


@st.composite
def log_weights(draw, min_particles=1, limit=1e4):
    """``[K, B]`` in float64: moderate, or anything up to the limit."""
    shape = draw(st.integers(min_particles, 6)), draw(st.integers(1, 3))
    bound = draw(st.sampled_from([5.0, limit]))
    return torch.from_numpy(draw(arrays("float64", shape, elements=st.floats(-bound, bound))))


@given(log_weights(min_particles=2, limit=50), st.randoms(use_true_random=False))
def test_the_order_of_the_particles_does_not_matter(log_w, random):
    order = list(range(len(log_w)))
    random.shuffle(order)
    for name, (function, per_particle, per_datum, _) in ESTIMATORS.items():
        arguments = {n: (i + 1) * log_w.roll(i, 0) for i, n in enumerate(per_particle)}
        extra = {n: (i - 1) * log_w[i % 2] for i, n in enumerate(per_datum)}
        permuted = {n: value[order] for n, value in arguments.items()}
        torch.testing.assert_close(
            function(**permuted, **extra), function(**arguments, **extra), rtol=1e-9, atol=1e-9, msg=name
        )


@given(log_weights(min_particles=2), st.floats(-1e4, 1e4))
def test_a_constant_shifts_the_bound_and_nothing_else(log_w, constant):
    shifted = log_w + constant
    tolerance = dict(rtol=1e-9, atol=1e-9)
    bound, shifted_bound = estimators.log_evidence(log_w), estimators.log_evidence(shifted)
    torch.testing.assert_close(shifted_bound, bound + constant, **tolerance)
    for function in (estimators.normalized_weights, estimators.effective_sample_size):
        torch.testing.assert_close(function(shifted), function(log_w), **tolerance)
    for mean in ("geometric", "arithmetic"):
        signal = bound - estimators.vimco_baseline(log_w, mean)
        shifted_signal = shifted_bound - estimators.vimco_baseline(shifted, mean)
        torch.testing.assert_close(shifted_signal, signal, **tolerance)


@given(log_weights())
def test_weights_sum_to_one_and_effective_sample_size_is_between_1_and_k(log_w):
    v, size = estimators.normalized_weights(log_w), estimators.effective_sample_size(log_w)
    torch.testing.assert_close(v.sum(dim=0), torch.ones_like(v[0]))
    assert (v >= 0).all()
    assert (size >= 1 - 1e-12).all()
    assert (size <= len(log_w) * (1 + 1e-12)).all()
    bound = estimators.log_evidence(log_w)
    assert (bound <= log_w.amax(dim=0) + 1e-9).all()
    assert (bound >= log_w.mean(dim=0) - 1e-9).all()  # Jensen's inequality


@given(log_weights().map(lambda log_w: log_w[:1]))
def test_one_particle_gives_the_elbo(log_w):
    log_q = torch.linspace(-3, 0, log_w.numel(), dtype=log_w.dtype).view_as(log_w)
    log_p = log_w + log_q
    torch.testing.assert_close(estimators.log_evidence(log_w), log_w[0])
    assert (estimators.normalized_weights(log_w) == 1).all()
    assert (estimators.effective_sample_size(log_w) == 1).all()
    torch.testing.assert_close(estimators.iwae_loss(log_p, log_q), log_q[0] - log_p[0])
    torch.testing.assert_close(estimators.wake_theta_loss(log_p, log_q), log_q[0] - log_p[0])
    torch.testing.assert_close(estimators.wake_phi_loss(log_p, log_q), -log_q[0])
    path = log_w.clone().requires_grad_()
    theta_loss = estimators.wake_theta_loss(log_p, log_q)
    for function, coefficient in [
        (estimators.stl_loss, 1),
        (estimators.dreg_loss, 1),
        (estimators.rws_dreg_loss, 0),
    ]:
        loss = function(log_p, log_q, path)
        torch.testing.assert_close(loss, theta_loss - coefficient * log_w[0])
        assert (grad(loss.sum(), path)[0] == -coefficient).all()


def vimco_baseline_by_loops(log_w, mean):
    """Its definition, one particle and one datum at a time."""
    num_particles, batch = log_w.shape
    baseline = torch.empty_like(log_w)
    for l, b in itertools.product(range(num_particles), range(batch)):
        others = torch.cat([log_w[:l, b], log_w[l + 1 :, b]])
        if mean == "geometric":
            missing = others.mean()
        else:
            missing = torch.logsumexp(others, dim=0) - math.log(num_particles - 1)
        baseline[l, b] = torch.logsumexp(torch.cat([others, missing[None]]), dim=0) - math.log(num_particles)
    return baseline


@given(log_weights(min_particles=2), st.sampled_from(["geometric", "arithmetic"]))
def test_vimco_baseline_is_its_definition(log_w, mean):
    actual, expected = estimators.vimco_baseline(log_w, mean), vimco_baseline_by_loops(log_w, mean)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-10)


@given(
    log_weights(min_particles=2),
    st.sampled_from(["geometric", "arithmetic"]),
    st.integers(0, 5),
    st.floats(-1e4, 1e4),
)
def test_row_l_of_the_vimco_baseline_does_not_depend_on_particle_l(log_w, mean, l, value):
    l = l % len(log_w)
    changed = log_w.clone()
    changed[l] = value
    before, after = estimators.vimco_baseline(log_w, mean)[l], estimators.vimco_baseline(changed, mean)[l]
    assert torch.equal(after, before)


# -- function transforms and the compiler ----------------------------------------------------------------


@pytest.mark.parametrize("name", ESTIMATORS)
def test_vmap_and_func_grad_give_the_same_numbers(name):
    function = ESTIMATORS[name][0]
    runs = [random_arguments(name, seed=seed) for seed in range(3)]
    expected = torch.stack([function(**arguments) for arguments in runs])
    names = list(runs[0])
    stacked = tuple(torch.stack([arguments[n].detach() for arguments in runs]) for n in names)

    def total(*values):
        return function(**dict(zip(names, values, strict=True))).sum()

    mapped = vmap(lambda *values: function(**dict(zip(names, values, strict=True))))(*stacked)
    torch.testing.assert_close(mapped, expected)
    gradients = vmap(torch.func.grad(total, argnums=tuple(range(len(names)))))(*stacked)
    for i, arguments in enumerate(runs):
        values = list(arguments.values())
        for a, b in zip(gradients, grad(expected[i].sum(), values, materialize_grads=True), strict=True):
            torch.testing.assert_close(a[i], b)


def test_func_grad_still_refuses_nan():
    """Outside vmap the values can be looked at, under a transform of torch.func too."""
    log_p = torch.tensor([[0.0, math.nan], [1.0, 2.0]])
    with pytest.raises(ValueError, match="log_p holds NaN"):
        torch.func.grad(lambda log_q: estimators.vimco_loss(log_p, log_q).sum())(torch.zeros(2, 2))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # PyTorch's compiler raises it
def test_compiled_code_gives_the_same_numbers(compiler):
    def losses(log_p, log_q):
        return torch.stack([
            estimators.wake_theta_loss(log_p, log_q),
            estimators.wake_phi_loss(log_p, log_q, center_weights=True),
            estimators.vimco_loss(log_p, log_q),
            estimators.vimco_loss(log_p, log_q, mean="arithmetic"),
            estimators.reinforce_loss(log_p, log_q),
            estimators.tvo_loss(log_p, log_q, PARTITION),
        ])  # fmt: skip

    compiled_losses, weights = torch.compile(losses, fullgraph=True), torch.arange(1.0, 7.0).double()[:, None]
    log_p, log_q = random_arguments("vimco", num_particles=5, batch=4).values()
    for impossible in (None, 1, slice(1, None)):  # particles of weight zero
        arguments = [log_p.detach().clone(), log_q]
        if impossible is not None:
            arguments[0][impossible, 2] = -math.inf
        arguments[0].requires_grad_()
        compiled, expected = compiled_losses(*arguments), losses(*arguments)
        torch.testing.assert_close(compiled, expected)
        gradients = (grad((weights * value).sum(), arguments) for value in (compiled, expected))
        for a, b in zip(*gradients, strict=True):
            assert torch.isfinite(a).all()
            torch.testing.assert_close(a, b)


def test_every_estimator_is_in_the_list_of_these_tests():
    functions = {name for name in estimators.__all__ if name.endswith("_loss")}
    tested = {
        re.sub("_(centred|defensive|arithmetic|mixed|right|scaled)$", "", name) + "_loss"
        for name in ESTIMATORS
    }
    assert tested == functions


def test_rloo_descends_half_the_variance_of_the_log_weights():
    log_p, log_q = random_arguments("rloo").values()
    (found,) = grad(estimators.rloo_loss(log_p, log_q).sum(), log_q)
    (expected,) = grad((log_p - log_q).var(dim=0).sum() / 2, log_q)
    torch.testing.assert_close(found, expected)


def test_muprop_takes_no_gradient_of_its_expansion():
    arguments = random_arguments("muprop")
    loss = estimators.muprop_loss(**arguments).sum()
    (found,) = grad(loss, arguments["expansion"], allow_unused=True, materialize_grads=True)
    assert (found == 0).all()


@pytest.mark.parametrize("gamma", [0.0, 0.4, 1.0])
def test_ovis_is_its_definition(gamma):
    log_p, log_q = random_arguments("ovis").values()
    (found,) = grad(estimators.ovis_loss(log_p, log_q, gamma).sum(), log_q)
    log_w = (log_p - log_q).detach()
    bound, K = estimators.log_evidence(log_w), len(log_w)
    rest = [estimators.log_evidence(torch.cat([log_w[:k], log_w[k + 1 :]])) for k in range(K)]
    signal = bound - torch.stack(rest) - (1 - gamma) * (log_w.softmax(dim=0) + math.log(1 - 1 / K))
    torch.testing.assert_close(found, -signal)


def test_centred_weights_lack_one_over_k():
    log_p, log_q = random_arguments("wake_phi").values()
    (found,) = grad(estimators.wake_phi_loss(log_p, log_q, center_weights=True).sum(), log_q)
    torch.testing.assert_close(found, 1 / len(log_p) - torch.softmax((log_p - log_q).detach(), dim=0))
