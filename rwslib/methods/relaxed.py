"""Methods that relax categories to points of the simplex, or use such a relaxation."""

import math

import torch
from torch import Tensor, nn

from rwslib import estimators
from rwslib.methods.pathwise import frozen
from rwslib.noise import Noise
from rwslib.protocols import CategoricalGenerative, CategoricalInference, Generative, GumbelControlVariate
from rwslib.trees import Tree


def concrete_log_prob(log_z: Tensor, log_probs: Tensor, temperature: Tensor | float) -> Tensor:
    r"""Log-density of the Concrete distribution on the simplex (Maddison et al. 2017, Eq. 10).

    Args:
        log_z: logarithm of the point, ``[..., C]``.
        log_probs: ``[..., C]``.
        temperature: above 0.

    Returns:
        ``[...]``.
    """
    num_categories = log_z.shape[-1]
    score = log_probs - temperature * log_z
    log_temperature = torch.log(torch.as_tensor(temperature, dtype=log_z.dtype))
    constant = math.lgamma(num_categories) + (num_categories - 1) * log_temperature
    return constant + (score - log_z).sum(dim=-1) - num_categories * torch.logsumexp(score, dim=-1)


def concrete(
    p: CategoricalGenerative,
    q: CategoricalInference,
    x: Tree,
    num_particles: int,
    noise: Noise,
    temperature: Tensor | float = 0.5,
) -> Tensor:
    """IWAE on the relaxed model, whose prior and posterior are Concrete (Maddison et al. 2017).

    Biased for the discrete model.  A lower temperature cures only the likelihood's part of that: at
    one temperature in both, the densities' ratio at softmax(g / temperature) does not depend on it.
    """
    log_probs = q.log_probs(x)
    log_z = torch.log_softmax(gumbels(log_probs, num_particles, noise) / temperature, dim=-1)
    log_q = over_latents(concrete_log_prob(log_z, log_probs, temperature))
    log_prior = over_latents(concrete_log_prob(log_z, p.log_prior(), temperature))
    return estimators.iwae_loss(log_prior + p.log_likelihood(log_z.exp(), x), log_q)


def gumbels(log_probs: Tensor, num_particles: int, noise: Noise) -> Tensor:
    """Gumbel variates at these locations, ``[K, *log_probs.shape]``, categories outermost in memory."""
    *shape, num_categories = log_probs.shape
    return log_probs + noise.gumbel(num_categories, num_particles, *shape).movedim(0, -1)


def over_latents(values: Tensor) -> Tensor:
    """The sum over all but the first two dimensions, ``[K, B, ...]`` -> ``[K, B]``."""
    return values.flatten(2).sum(dim=-1) if values.ndim > 2 else values


def conditional_gumbel(log_probs: Tensor, z: Tensor, uniform: Tensor) -> Tensor:
    r"""Gumbel variates with the given locations, conditional on their arg max being z.

    With :math:`E_c = -\log u_c`: :math:`\tilde\gamma_z = -\log E_z` and
    :math:`\tilde\gamma_c = -\log(E_c / \pi_c + E_z)` elsewhere (Tucker et al. 2017, appendix C).
    Differentiable in ``log_probs``.

    Args:
        log_probs: normalised, ``[B, C]``, or of D latents ``[B, D, C]``.
        z: ``[K, B]`` or ``[K, B, D]``.
        uniform: ``[K, B, C]`` or ``[K, B, D, C]`` in (0, 1).

    Returns:
        As ``uniform``.
    """
    log_e = torch.log(-torch.log(uniform))
    is_top = z[..., None] == torch.arange(log_probs.shape[-1], device=z.device)
    log_e_top = torch.where(is_top, log_e, 0).sum(dim=-1, keepdim=True)
    return -torch.where(is_top, log_e_top, torch.logaddexp(log_e - log_probs, log_e_top))


def _gumbel_pair(q, x, num_particles, noise):
    """``log_probs``, Gumbel variates ``[K, B, ..., C]``, their arg max, and conditional variates."""
    log_probs = q.log_probs(x)
    g = gumbels(log_probs, num_particles, noise)
    z = g.detach().argmax(dim=-1)
    *shape, num_categories = log_probs.shape
    uniform = noise.uniform(num_categories, num_particles, *shape).movedim(0, -1)
    return log_probs, g, z, conditional_gumbel(log_probs, z, uniform)


def relax(
    p: Generative,
    q: CategoricalInference,
    x: Tree,
    num_particles: int,
    noise: Noise,
    control_variate: GumbelControlVariate,
) -> Tensor:
    """RELAX with a free-form control variate c(x, g) (Grathwohl et al. 2018; paper section 2.2)."""
    _, g, z, g_conditional = _gumbel_pair(q, x, num_particles, noise)
    return estimators.relax_loss(
        p.log_joint(z, x),
        q.log_prob(z, x),
        c=control_variate(x, g),
        c_conditional=control_variate(x, g_conditional),
        c_bracket=control_variate(x, g_conditional.detach()),
    )


class RebarControlVariate(nn.Module):
    r"""REBAR's scale :math:`\eta` and temperature, both learned (Tucker et al. 2017)."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.log_temperature = nn.Parameter(torch.zeros(()))


def rebar(
    p: CategoricalGenerative,
    q: CategoricalInference,
    x: Tree,
    num_particles: int,
    noise: Noise,
    control_variate: RebarControlVariate,
) -> Tensor:
    r"""REBAR: the control variate is :math:`\eta` times the relaxed bound (Tucker et al. 2017)."""
    log_probs, g, z, g_conditional = _gumbel_pair(q, x, num_particles, noise)
    scale, temperature = control_variate.log_scale.exp(), control_variate.log_temperature.exp()

    def c(log_probs, g):
        soft = torch.softmax(g / temperature, dim=-1)
        log_w = frozen(p, soft, x) - (soft * log_probs).flatten(2).sum(dim=-1)
        return scale * estimators.log_evidence(log_w)

    return estimators.relax_loss(
        p.log_joint(z, x),
        q.log_prob(z, x),
        c=c(log_probs, g),
        c_conditional=c(log_probs, g_conditional),
        c_bracket=c(log_probs.detach(), g_conditional.detach()),
    )
