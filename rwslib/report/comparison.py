"""Bias and noise of each method's gradient for phi, on two problems small enough to know the answer.

The discrete problem is the one of the chapter on the background, where methods that see nothing but their
particles are enumerated; the others, and all on the continuous problem, are sampled.
"""

import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.distributions import Normal

from rwslib import evaluation, methods
from rwslib.methods import METHODS
from rwslib.models.gmm import GMM, InferenceNetwork, RelaxControlVariate
from rwslib.noise import Noise
from rwslib.report.claims.general import NUM_CATEGORIES, OBSERVATION, small_mixture
from rwslib.report.markup import table

PARTICLES = (2, 5)
SAMPLES = 30_000  # draws where nothing can be enumerated
Moments = tuple[Tensor, Tensor, int | None]  # mean, variance, number of draws or None where exact


class Table(InferenceNetwork):
    """q as a table of logits ``[B, C]``, one row a draw of the gradient."""

    def __init__(self, logits: Tensor):
        nn.Module.__init__(self)
        self.logits = nn.Parameter(logits.clone())

    def log_probs(self, x: Tensor) -> Tensor:
        return torch.log_softmax(self.logits, dim=-1)


class Gaussian(nn.Module):
    """The continuous problem, z ~ N(0, 1) and x ~ N(z, 1), and q = N(loc, 0.8^2) with a loc for each draw."""

    def __init__(self, loc: Tensor | None = None):
        super().__init__()
        self.loc: Any = nn.Parameter(loc) if loc is not None else None

    def log_joint(self, z: Tensor, x: Tensor) -> Tensor:
        return Normal(0.0, 1.0).log_prob(z) + Normal(z, 1.0).log_prob(x)

    def log_prob(self, z: Tensor, x: Tensor) -> Tensor:
        return Normal(self.loc, 0.8).log_prob(z)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return self.log_joint(z, x) if self.loc is None else self.log_prob(z, x)

    def rsample(self, x: Tensor, num_particles: int, noise: Noise) -> tuple[Tensor, Tensor]:
        z = self.loc + 0.8 * noise.normal(num_particles, len(x))
        return z, self.log_prob(z, x)

    def sample(self, x: Tensor, num_particles: int, noise: Noise) -> tuple[Tensor, Tensor]:
        z = self.rsample(x, num_particles, noise)[0].detach()
        return z, self.log_prob(z, x)


def enumerated(method: Callable, K: int) -> Moments:
    """Exact moments of a method that asks for nothing but particles from q; else an AttributeError."""

    def loss(log_p: Tensor, log_q: Tensor) -> Tensor:
        model = SimpleNamespace(log_joint=lambda z, x: log_p)
        network = SimpleNamespace(sample=lambda x, num_particles, noise: (None, log_q))
        return method(model, network, torch.zeros(1), K, None)

    return *evaluation.exact_moments(loss, *small_mixture(), K), None


def draws(method: Callable, K: int, num: int, seed: int = 1, create_graph: bool = False) -> Tensor:
    """Independent gradients in the logits, ``[num, C]``."""
    q, x = Table(small_mixture()[1].expand(num, -1)), torch.full([num], OBSERVATION).double()
    model = GMM("near", NUM_CATEGORIES).double()
    return -grad(method(model, q, x, K, Noise(0, seed)).sum(), q.logits, create_graph=create_graph)[0]


def with_control_variate(name: str, K: int, num_steps: int = 100, num: int = 500) -> Callable:
    """The method with a control variate that was trained here, to lower the variance."""
    torch.manual_seed(0)
    control = methods.RebarControlVariate() if name == "rebar" else RelaxControlVariate(NUM_CATEGORIES)
    method = partial(METHODS[name].function, control_variate=control.double())
    optimiser = torch.optim.Adam(control.parameters(), 0.03)
    for step in range(num_steps):
        optimiser.zero_grad()
        draws(method, K, num, 2 + step, create_graph=True).var(dim=0).sum().backward()
        optimiser.step()
    return method


def discrete(name: str, K: int) -> Moments:
    """Moments of a method's gradient on the small mixture."""
    method = METHODS[name].function
    if METHODS[name].control_variate == "regression":  # as if fitted perfectly
        bound = evaluation.exact_bound(*small_mixture(), K)
        method = partial(method, control_variate=lambda x: bound.expand(len(x)))
    elif METHODS[name].control_variate == "variance":
        method = with_control_variate(name, K)
    try:
        return enumerated(method, K)
    except AttributeError:
        gradients = draws(method, K, SAMPLES)
        return gradients.mean(dim=0), gradients.var(dim=0), SAMPLES


def continuous(name: str, K: int, num: int = SAMPLES) -> Moments:
    """Moments of a method's gradient on the continuous problem, ``[1]`` each."""
    q, x = Gaussian(torch.full([num], 0.9).double()), torch.ones(num).double()
    gradient = -grad(METHODS[name].function(Gaussian(), q, x, K, Noise(0, K)).sum(), q.loc)[0]
    return gradient.mean()[None], gradient.var()[None], num


def target(name: str, K: int, discrete_problem: bool) -> Tensor | None:
    """The gradient that a method is after; None where that is an objective of its own."""
    follows = METHODS[name].follows
    if follows == "own":
        return None
    if not discrete_problem:  # the posterior is N(1/2, 1/2); DReG is unbiased and quiet
        if follows == "bound":
            return continuous("dreg", K, 10 * SAMPLES)[0]
        return torch.tensor([(0.5 - 0.9) / 0.8**2 if follows == "KL(p, q)" else 1 - 2 * 0.9])
    log_joint, logits = small_mixture()
    if follows == "KL(p, q)":
        return torch.softmax(log_joint, dim=0) - torch.softmax(logits, dim=0)
    tracked = logits.clone().requires_grad_()
    bound = evaluation.exact_bound(log_joint, tracked, 1 if follows == "ELBO" else K)
    return grad(bound, tracked)[0]


def percent(value: float) -> str:
    return f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.1g} %"


def bias_and_noise(name: str, K: int, discrete_problem: bool) -> tuple[str, str]:
    """Size of the bias and of the spread, as shares of the gradient that the method is after."""
    mean, variance, num = (discrete if discrete_problem else continuous)(name, K)
    wanted = target(name, K, discrete_problem)
    size = (mean if wanted is None else wanted).norm().item()
    noise = f"{variance.sum().sqrt().item() / size:.2g}"
    if wanted is None:
        return "", noise
    bias = (mean - wanted).norm().item() / size
    floor = 4 * math.sqrt(variance.sum().item() / num) / size if num else 1e-9
    return ("0" if bias < floor else percent(bias)), noise


def comparison(discrete_problem: bool) -> str:
    """The table for one of the problems."""
    rows = []
    for name, method in METHODS.items():
        pathwise, elsewhere = method.latent == "reparameterisable", method.latent == "binary"
        if (
            method.follows != "dreams"
            and not elsewhere
            and (not pathwise if discrete_problem else pathwise or name == "ww")
        ):
            bias, noise = zip(*(bias_and_noise(name, K, discrete_problem) for K in PARTICLES), strict=True)
            rows.append([method.title, method.follows, *bias, *noise])
    header = ["method", "follows", *(f"{what}, K = {K}" for what in ("bias", "noise") for K in PARTICLES)]
    return table(header, rows, wide=False)
