"""The wake-sleep family: theta follows the bound, phi the posterior or dreams."""

import math

import torch
from torch import Tensor

from rwslib import estimators
from rwslib.noise import Noise
from rwslib.protocols import DefensiveGenerative, Generative, Inference
from rwslib.trees import Tree, batch_size, tree_map


def wake_wake(
    p: Generative, q: Inference, x: Tree, num_particles: int, noise: Noise, center_weights: bool = False
) -> Tensor:
    """Reweighted wake-sleep with the wake-phase phi update alone; the paper's WW (sections 3.1, 4)."""
    z, log_q = q.sample(x, num_particles, noise)
    log_p = p.log_joint(z, x)
    theta_loss = estimators.wake_theta_loss(log_p, log_q)
    return theta_loss + estimators.wake_phi_loss(log_p, log_q, center_weights=center_weights)


def wake_sleep(p: Generative, q: Inference, x: Tree, num_particles: int, noise: Noise) -> Tensor:
    """Wake-phase theta, sleep-phase phi on K dreams per datum; the paper's WS (sections 3.1, 4)."""
    theta_loss = wake_theta(p, q, x, num_particles, noise)
    return theta_loss + sleep_loss(q, *p.sample(num_particles * batch_size(x), noise), num_particles)


def sleep_loss(q: Inference, z: Tree, dreams: Tree, num_particles: int) -> Tensor:
    """The sleep-phase phi update alone, on dreams and their latents, so many for each datum."""
    log_q = q.log_prob(tree_map(lambda t: t.detach()[None], z), tree_map(Tensor.detach, dreams))
    return estimators.sleep_phi_loss(log_q.view(num_particles, batch_size(dreams) // num_particles))


def wake_wake_sleep(
    p: Generative, q: Inference, x: Tree, num_particles: int, noise: Noise, wake_weight: float = 0.5
) -> Tensor:
    """Mixture of the wake- and sleep-phase phi updates (Bornschein & Bengio 2015: equal weights)."""
    z, log_q = q.sample(x, num_particles, noise)
    log_p = p.log_joint(z, x)
    wake = estimators.wake_phi_loss(log_p, log_q)
    sleep = sleep_loss(q, *p.sample(num_particles * batch_size(x), noise), num_particles)
    return estimators.wake_theta_loss(log_p, log_q) + wake_weight * wake + (1 - wake_weight) * sleep


def defensive_wake_wake(
    p: DefensiveGenerative, q: Inference, x: Tree, num_particles: int, noise: Noise, delta: float = 0.2
) -> Tensor:
    r"""WW whose phi particles come from :math:`(1-\delta) q + \delta r`; the paper's delta-WW (section 4.3).

    Theta keeps its own particles from q.  r is ``p.sample_defensive``, uniform in the paper.
    """
    theta_loss = wake_theta(p, q, x, num_particles, noise)
    z, log_q, log_r, _ = defensive_particles(p, q, x, num_particles, noise, delta)
    log_proposal = torch.logaddexp(math.log1p(-delta) + log_q, math.log(delta) + log_r)
    return theta_loss + estimators.wake_phi_loss(p.log_joint(z, x), log_q, log_proposal)


def wake_theta(p: Generative, q: Inference, x: Tree, num_particles: int, noise: Noise) -> Tensor:
    """The wake-phase theta update alone (section 3.1); phi gets no gradient."""
    z, log_q = q.sample(x, num_particles, noise)
    return estimators.wake_theta_loss(p.log_joint(z, x), log_q)


def defensive_particles(p, q, x, num_particles, noise, delta):
    """Particles of the mixture, log q and log r at them, and log q at the draw from q alone."""
    z_q, log_q_of_draw = q.sample(x, num_particles, noise)
    z_r, log_r = p.sample_defensive(x, num_particles, noise)
    from_r = noise.uniform(num_particles, batch_size(x)) < delta
    z = tree_map(lambda a, b: torch.where(from_r.view(*from_r.shape, *[1] * (a.ndim - 2)), a, b), z_r, z_q)
    return z, q.log_prob(z, x), log_r, log_q_of_draw
