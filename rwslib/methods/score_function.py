"""Methods that climb a bound with particles that have no path derivative."""

import torch
from torch import Tensor

from rwslib import estimators
from rwslib.noise import Noise
from rwslib.protocols import Baseline, Generative, Inference
from rwslib.trees import Tree


def reinforce(p: Generative, q: Inference, x: Tree, num_particles: int, noise: Noise) -> Tensor:
    """The K-particle bound by the score function (Williams 1992; paper Eq. 2)."""
    z, log_q, log_q_score = score_particles(q, x, num_particles, noise)
    return estimators.reinforce_loss(p.log_joint(z, x), log_q, log_q_score)


def score_particles(q, x, num_particles, noise):
    """Particles, ``log_q``, and its part for the score function: the discrete one where q tells it apart."""
    if hasattr(q, "sample_mixed"):
        return q.sample_mixed(x, num_particles, noise)
    z, log_q = q.sample(x, num_particles, noise)
    return z, log_q, log_q


def nvil(
    p: Generative,
    q: Inference,
    x: Tree,
    num_particles: int,
    noise: Noise,
    control_variate: Baseline,
    scale_signal: bool = False,
) -> Tensor:
    r"""REINFORCE with a baseline c(x) regressed onto the bound (Mnih & Gregor 2014).

    The original also scales the signal; that biases the gradient, so it is off unless asked for.
    """
    z, log_q, log_q_score = score_particles(q, x, num_particles, noise)
    log_p, baseline = p.log_joint(z, x), control_variate(x)
    bound = estimators.log_evidence(log_p - log_q).detach()
    loss = estimators.nvil_loss(log_p, log_q, baseline, log_q_score, scale_signal)
    return loss + (bound - baseline).square()


def vimco(
    p: Generative, q: Inference, x: Tree, num_particles: int, noise: Noise, mean: str = "geometric"
) -> Tensor:
    """VIMCO with its leave-one-out baseline (Mnih & Rezende 2016; paper section 2.2)."""
    z, log_q, log_q_score = score_particles(q, x, num_particles, noise)
    return estimators.vimco_loss(p.log_joint(z, x), log_q, mean, log_q_score)


def tvo(
    p: Generative,
    q: Inference,
    x: Tree,
    num_particles: int,
    noise: Noise,
    partition: tuple[float, ...] = (0.0, 0.03, 0.1, 0.3, 1.0),
) -> Tensor:
    """Thermodynamic variational objective, left Riemann sum (Masrani, Le & Wood 2019)."""
    z, log_q = q.sample(x, num_particles, noise)
    return estimators.tvo_loss(p.log_joint(z, x), log_q, torch.as_tensor(partition, device=log_q.device))


def ovis(
    p: Generative, q: Inference, x: Tree, num_particles: int, noise: Noise, gamma: float = 0.0
) -> Tensor:
    """OVIS with its asymptotic control variate (Liévin et al. 2020); unbiased at gamma 0 alone."""
    z, log_q = q.sample(x, num_particles, noise)
    return estimators.ovis_loss(p.log_joint(z, x), log_q, gamma)


def rloo(p: Generative, q: Inference, x: Tree, num_particles: int, noise: Noise) -> Tensor:
    """The ELBO by REINFORCE, with the mean of the others as baseline (Kool et al. 2019); also VarGrad."""
    z, log_q = q.sample(x, num_particles, noise)
    return estimators.rloo_loss(p.log_joint(z, x), log_q)
