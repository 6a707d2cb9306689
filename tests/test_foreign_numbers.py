"""Numbers that this code did not make: from other code bases, and from arithmetic of sixty digits."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import grad
from torch.distributions import Normal
from torch.nn.functional import logsigmoid

from rwslib import estimators, methods


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def assert_equal(actual, expected, digits=12):
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=10.0**-digits, atol=10.0**-digits)


# -- VIMCO's baseline, by 60-digit arithmetic ----------------------------------------------------------

BASELINES = {
    (0, 700, -1, 1): (
        [698.61370563888, 0.240229013916555, 698.61370563888, 698.61370563888],
        [698.901387711332, 0.308993675776271, 698.901387711332, 698.901387711332],
    ),
    (0, -1000, -1, 1): (
        [-0.259366350076918, 0.240229013916555, -0.0730326736016678, -1.07303267360167],
        [0.0283157223748628, 0.308993675776271, 0.214649398850113, -0.785350601149887],
    ),
    # TensorFlow Probability's float32 has -0.8289 in the middle: its subtraction cancels
    (0, 12, -3): (
        [10.9019409485404, -0.857300992010953, 10.9038695254709],
        [11.3068531253423, -0.644559828986203, 11.3068589636335],
    ),
    (1000, 1000, -1000): (
        [998.901387711332, 998.901387711332, 1000.0],
        [999.30685281944, 999.30685281944, 1000.0],
    ),
}


@pytest.mark.parametrize("log_w", BASELINES, ids=str)
@pytest.mark.parametrize("dtype, digits", [(torch.float64, 14), (torch.float32, 6)])
def test_vimco_baseline(log_w, dtype, digits):
    for mean, expected in zip(("geometric", "arithmetic"), BASELINES[log_w], strict=True):
        actual = estimators.vimco_baseline(column(*log_w).to(dtype), mean)[:, 0]
        assert_equal(actual.double(), expected, digits)


# -- gradients of the losses: the authors' code (rrws, e3eecdd), and that of the TVO (f7a3229) -----------

REINFORCE = [-0.0101024993015, -0.206645956192, 0.216748455494]
WAKE_THETA = [0.282067975018, 0.0942449161913, -0.376312891209]
PARTITION = torch.tensor([0, 0.03, 0.1, 0.3, 1], dtype=torch.float64)
GRADIENTS = {  # in q's logits, and in theta
    "wake_theta": (estimators.wake_theta_loss, [0.0, 0.0, 0.0], WAKE_THETA),
    "wake_phi": (estimators.wake_phi_loss, [0.434211193452, -0.138074735541, -0.296136457911], [0.0] * 3),
    "reinforce": (estimators.reinforce_loss, REINFORCE, WAKE_THETA),
    "vimco": (estimators.vimco_loss, [0.214513984935, 0.00490650283721, -0.219420487772], WAKE_THETA),
    "vimco_arithmetic": (
        lambda *log_densities: estimators.vimco_loss(*log_densities, "arithmetic"),
        [0.035441996578, 0.131479582084, -0.166921578662],
        WAKE_THETA,
    ),
    "nvil_without_baseline": (
        lambda *log_densities: estimators.nvil_loss(*log_densities, torch.zeros(1, dtype=torch.float64)),
        REINFORCE,
        WAKE_THETA,
    ),
    "tvo": (
        lambda *log_densities: estimators.tvo_loss(*log_densities, PARTITION),
        [0.296241962314, -0.00573972773067, -0.290502234584],
        [0.249603376346, 0.0553717997412, -0.304975176088],
    ),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_three_particles(name):
    loss, phi, theta = GRADIENTS[name]
    logits, table = (column(*values).requires_grad_() for values in ([0.5, -0.2, 0.1], [0, 0.4, -0.3]))
    z, log_likelihood = torch.tensor([0, 2, 1]), column(-1, 0.5, 2)  # of the categories
    log_q, log_p = logits.log_softmax(0)[z], table.log_softmax(0)[z] + log_likelihood[z]
    gradients = grad(loss(log_p, log_q).sum(), (logits, table), materialize_grads=True)
    for actual, expected in zip(gradients, (phi, theta), strict=True):
        assert_equal(actual[:, 0], expected)


# -- relaxations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("z, expected", [(0, -1.5023052442218374), (1, 0.8292538868663845)])
def test_two_conditional_gumbels_differ_by_a_conditional_logistic(z, expected):
    log_probs = logsigmoid(torch.tensor([[-0.7, 0.7]], dtype=torch.float64))
    uniform = torch.exp(-torch.tensor([[[0.3, 0.7]]], dtype=torch.float64))
    first, second = methods.conditional_gumbel(log_probs, torch.tensor([[z]]), uniform)[0, 0]
    assert_equal(second - first, expected, digits=14)


def test_concrete_log_prob():
    point, probs = (torch.tensor(p, dtype=torch.float64).log() for p in ([0.1, 0.2, 0.7], [0.2, 0.3, 0.5]))
    assert_equal(methods.concrete_log_prob(point, probs, 0.5), 0.276374890609782, digits=14)


# -- delta-WW with particles without bound ---------------------------------------------------------------


@pytest.mark.parametrize(
    "method, expected",
    [
        (methods.defensive_wake_wake, [-0.2497145096, -0.1909680657, 0.4406825753]),
        (methods.dww_wrong_density, [-0.18847799, -0.18711321, 0.37559120]),
    ],
)
def test_limit_of_the_defensive_direction(method, expected):
    """All pairs of a draw from q and one from r, and which of them is used, as often as they occur."""
    log_joint = torch.tensor([0.3, -1.2, 0.8], dtype=torch.float64)
    logits = torch.tensor([1, 0.2, -0.5], dtype=torch.float64, requires_grad=True)
    z_q, z_r, coin = torch.cartesian_prod(*map(torch.arange, (3, 3, 2))).T[:, :, None]
    log_q, log_r = logits.log_softmax(0), -math.log(3) * torch.ones(18, 1, dtype=torch.float64)
    frequency = log_q.detach()[z_q] + log_r + torch.tensor([0.8, 0.2], dtype=torch.float64).log()[coin]
    p = SimpleNamespace(
        log_joint=lambda z, x: log_joint[z] + frequency, sample_defensive=lambda *_: (z_r, log_r)
    )
    q = SimpleNamespace(sample=lambda *_: (z_q, log_q[z_q]), log_prob=lambda z, x: log_q[z])
    noise = SimpleNamespace(uniform=lambda *_: 1.0 - coin)  # below delta where the coin says r
    loss = method(p, q, torch.zeros(1), 18, noise, delta=0.2)
    assert_equal(-grad(loss.sum(), logits)[0], expected, digits=8 if "wrong" in method.__name__ else 10)


# -- expectations over two Gaussian particles, by quadrature -------------------------------------------


def quadrature(loss):
    """Expected ascent in mu, log sd and theta; the trapezoid rule is exact here to all digits."""
    line = torch.linspace(-9, 9, 241, dtype=torch.float64)
    weights = Normal(0, 1).log_prob(line).exp() * (line[1] - line[0])
    eps = torch.cartesian_prod(line, line).T
    mu, log_sd, theta = parameters = [
        torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.3, -0.2, 0.5)
    ]
    x, z = torch.tensor(1.3, dtype=torch.float64), mu + log_sd.exp() * eps

    def log_p(z, theta):
        return Normal(theta, 1).log_prob(z) + Normal(z.sin() + z, 0.7).log_prob(x)

    def log_q(z, mu, log_sd):
        return Normal(mu, log_sd.exp()).log_prob(z)

    def at(z):
        return log_p(z, theta), log_q(z, mu, log_sd)

    path = log_p(z, theta.detach()) - log_q(z, mu.detach(), log_sd.detach())
    arguments = {
        estimators.iwae_loss: lambda: at(z),
        estimators.wake_phi_loss: lambda: at(z.detach()),
    }.get(loss, lambda: (log_p(z.detach(), theta), log_q(z, mu, log_sd), path))()
    total = (torch.outer(weights, weights).flatten() * loss(*arguments)).sum()
    return -torch.stack(grad(total, parameters, materialize_grads=True))


@pytest.mark.parametrize(
    "loss, expected",
    [
        (estimators.iwae_loss, [1.2594939533, -0.8605844582, 0.1062122646]),
        (estimators.dreg_loss, [1.2594939533, -0.8605844582, 0.1062122646]),
        (estimators.wake_phi_loss, [0.4568150191, -0.3017199006, 0]),
        (estimators.rws_dreg_loss, [0.4568150191, -0.3017199006, 0.1062122646]),
        (estimators.stl_loss, [1.7163089723, -1.1623043588, 0.1062122646]),
    ],
)
def test_expectations_over_two_gaussian_particles(loss, expected):
    assert_equal(quadrature(loss), expected, digits=9)
