"""Deliberate deviations, to measure what they do."""

import math

import torch
from torch import Tensor, nn

from rwslib import estimators
from rwslib.methods.relaxed import concrete_log_prob, gumbels
from rwslib.methods.score_function import score_particles
from rwslib.methods.wake_sleep import defensive_particles, wake_theta
from rwslib.noise import Noise
from rwslib.protocols import DefensiveGenerative, Generative, Inference
from rwslib.trees import Tree


def vimco_no_log_k(p: Generative, q: Inference, x: Tree, num_particles: int, noise: Noise) -> Tensor:
    """Ablation: VIMCO without the log K of its baseline, as in the authors' code of 2018; unbiased, noisy."""
    z, log_q = q.sample(x, num_particles, noise)
    log_p = p.log_joint(z, x)
    excess = math.log(num_particles) * log_q.sum(dim=0)  # the baseline is too large by log K
    return estimators.vimco_loss(log_p, log_q) + excess - excess.detach()


def vimco_air2018(p: Generative, q: Inference, x: Tree, num_particles: int, noise: Noise) -> Tensor:
    r"""Ablation: the signal of the authors' AIR code, :math:`\log w_\ell - B_\ell`, averaged over particles.

    Its score term has the expectation of the one-particle bound's, not of the K-particle bound's.
    """
    z, log_q, log_q_score = score_particles(q, x, num_particles, noise)
    log_p = p.log_joint(z, x)
    log_w = (log_p - log_q).detach()
    signal = log_w - estimators.vimco_baseline(log_w)
    return estimators.iwae_loss(log_p, log_q) - (signal * log_q_score).mean(dim=0)


def vimco_scores(p: Generative, q: Inference, x: Tree, num_particles: int, noise: Noise) -> Tensor:
    """Ablation: VIMCO told by scores alone, where q has a path derivative of some latents; unbiased."""
    z, log_q = q.sample(x, num_particles, noise)
    return estimators.vimco_loss(p.log_joint(z, x), log_q)


def dww_wrong_density(
    p: DefensiveGenerative, q: Inference, x: Tree, num_particles: int, noise: Noise, delta: float = 0.2
) -> Tensor:
    """Ablation: delta-WW with the mixture density taken at the draw from q, not at the particle used."""
    theta_loss = wake_theta(p, q, x, num_particles, noise)
    z, log_q, log_r, log_q_of_draw = defensive_particles(p, q, x, num_particles, noise, delta)
    log_proposal = torch.logaddexp(math.log1p(-delta) + log_q_of_draw, math.log(delta) + log_r)
    return theta_loss + estimators.wake_phi_loss(p.log_joint(z, x), log_q, log_proposal)


def concrete_2018(
    p: nn.Module, q: nn.Module, x: Tensor, num_particles: int, noise: Noise, temperature: Tensor | float = 0.5
) -> Tensor:
    r"""Ablation: Concrete with the prior's mass at the arg max, as in the authors' code of 2018.

    The weight :math:`\pi_{\arg\max z}\, p(x | z) / q(z)` divides a mass by a density.  Its mean is 1 / C! of
    the evidence of a third model, whose prior is flat where the arg max stays the same: the value bounds
    neither the discrete model's evidence nor the Concrete one's.  The prior's jumps have no path
    derivative, so phi meets it in the weights alone.  For one particle theta's expected gradient is that
    of the discrete ELBO.
    """
    log_probs = q.log_probs(x)
    log_z = torch.log_softmax(gumbels(log_probs, num_particles, noise) / temperature, dim=-1)
    log_prior = p.log_prior()[log_z.argmax(dim=-1)]
    log_q = concrete_log_prob(log_z, log_probs, temperature)
    return estimators.iwae_loss(log_prior + p.log_likelihood(log_z.exp(), x), log_q)
