"""Methods that take the model's derivative at categories: straight-through estimators, and MuProp.

The model takes points of the simplex, as for REBAR; all follow the ELBO.  Of log q they keep what comes
through the points: the rest has mean zero.
"""

import torch
from torch import Tensor
from torch.func import grad

from rwslib import estimators
from rwslib.methods.pathwise import frozen
from rwslib.methods.relaxed import gumbels
from rwslib.noise import Noise
from rwslib.protocols import CategoricalGenerative, CategoricalInference
from rwslib.trees import Tree


def straight_through(
    p: CategoricalGenerative, q: CategoricalInference, x: Tree, num_particles: int, noise: Noise
) -> Tensor:
    """Categories whose derivative is that of their probabilities (Bengio et al. 2013).

    Biased but where the log-weight is linear in the point, as its prior and entropy are.
    """
    log_probs = q.log_probs(x)
    corner = _corner(q.sample(x, num_particles, noise)[0], log_probs)
    return _minus_elbo(p, x, corner, log_probs.exp(), log_probs)


def _corner(z: Tensor, log_probs: Tensor) -> Tensor:
    """Categories ``[K, B]`` or ``[K, B, D]`` as corners of the simplex, ``[..., C]``."""
    categories = torch.arange(log_probs.shape[-1], device=z.device)
    return (z[..., None] == categories).to(log_probs.dtype)


def _minus_elbo(p, x, corner, soft, log_probs):
    """Minus the mean log-weight at the corners, with the derivative of ``soft`` in place of theirs."""
    point = corner + (soft - soft.detach())
    log_q = (point * log_probs.detach()).flatten(2).sum(dim=-1)
    return -(p.log_joint(point, x) - log_q).mean(dim=0)


def gumbel_straight_through(
    p: CategoricalGenerative,
    q: CategoricalInference,
    x: Tree,
    num_particles: int,
    noise: Noise,
    temperature: Tensor | float = 0.5,
) -> Tensor:
    """Straight-through Gumbel-softmax: the arg max, with the softmax's derivative (Jang et al. 2017)."""
    log_probs = q.log_probs(x)
    g = gumbels(log_probs, num_particles, noise)
    soft = torch.softmax(g / temperature, dim=-1)
    return _minus_elbo(p, x, _corner(g.argmax(dim=-1), log_probs), soft, log_probs)


def reinmax(
    p: CategoricalGenerative, q: CategoricalInference, x: Tree, num_particles: int, noise: Noise
) -> Tensor:
    r"""ReinMax: second-order accurate (Liu et al. 2023, algorithm 2).

    The derivative of :math:`2 \pi_m - \pi / 2`, where :math:`\pi_m` is the mean of the probabilities and
    the corner; unbiased where the log-weight is quadratic in the point.
    """
    log_probs = q.log_probs(x)
    probs, corner = log_probs.exp(), _corner(q.sample(x, num_particles, noise)[0], log_probs)
    middle = ((corner + probs) / 2).detach().clamp_min(torch.finfo(probs.dtype).tiny)
    moving = torch.softmax(middle.log() + (log_probs - log_probs.detach()), dim=-1)
    return _minus_elbo(p, x, corner, 2 * moving - 0.5 * probs, log_probs)


def muprop(
    p: CategoricalGenerative, q: CategoricalInference, x: Tree, num_particles: int, noise: Noise
) -> Tensor:
    """The ELBO by REINFORCE around the expansion at the mean of q (Gu et al. 2016)."""
    z, log_q = q.sample(x, num_particles, noise)
    log_probs = q.log_probs(x)
    probs, fixed = log_probs.exp(), log_probs.detach()

    def log_p_at(point: Tensor) -> tuple[Tensor, Tensor]:
        value = frozen(p, point[None], x)[0]
        return value.sum(), value

    slope, value = grad(log_p_at, has_aux=True)(probs.detach())
    slope, value = slope - fixed, value - (probs.detach() * fixed).flatten(1).sum(dim=-1)
    away = _corner(z, log_probs) - probs.detach()
    expansion = value + (slope * away).flatten(2).sum(dim=-1)
    expected = (slope.detach() * probs).flatten(1).sum(dim=-1)
    return estimators.muprop_loss(p.log_joint(z, x), log_q, expansion, expected)
