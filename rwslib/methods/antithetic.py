"""DisARM: coins thrown in antithetic pairs."""

import torch
from torch import Tensor

from rwslib import estimators
from rwslib.checks import require
from rwslib.methods.relaxed import over_latents
from rwslib.noise import Noise
from rwslib.protocols import CategoricalInference, Generative
from rwslib.trees import Tree


def antithetic_score(log_probs: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Pairs of coins thrown with u and 1 - u, and their score (Dong, Mnih & Tucker 2020).

    Args:
        log_probs: of both sides, ``[B, 2]``, or of D coins ``[B, D, 2]``.
        uniform: ``[N, B]`` or ``[N, B, D]`` in (0, 1).

    Returns:
        First coins b and second coins b' (as ``uniform``, int32), and their score ``[N, B]``

        .. math:: \sum_d (-1)^{b'_d} [b_d \ne b'_d]\, \sigma(|\alpha_d|)\, \alpha_d

        with alpha the log-odds and phi's gradient in the last factor alone.
    """
    logits = log_probs[..., 1] - log_probs[..., 0]
    first = uniform > torch.sigmoid(-logits.detach())
    second = uniform < torch.sigmoid(logits.detach())
    sign = first.to(logits.dtype) - second.to(logits.dtype)
    score = sign * torch.sigmoid(logits.detach().abs()) * logits
    return first.int(), second.int(), over_latents(score)


def _antithetic_particles(p, q, x, num_pairs, noise):
    """``log_p`` and ``log_q`` at the first and at the second coins, and the score, ``[N, B]`` each."""
    log_probs = q.log_probs(x)
    if log_probs.shape[-1] != 2:
        raise ValueError(f"q must have two categories for antithetic pairs, got {log_probs.shape[-1]}")
    first, second, score = antithetic_score(log_probs, noise.uniform(num_pairs, *log_probs.shape[:-1]))
    z = torch.cat([first, second])
    (log_p, log_p_pair), (log_q, log_q_pair) = p.log_joint(z, x).chunk(2), q.log_prob(z, x).chunk(2)
    return log_p, log_q, log_p_pair, log_q_pair, score


def disarm(p: Generative, q: CategoricalInference, x: Tree, num_particles: int, noise: Noise) -> Tensor:
    """The ELBO of coins by antithetic pairs, K / 2 of them (Dong, Mnih & Tucker 2020)."""
    fits = num_particles >= 2 and num_particles % 2 == 0
    require(fits, "num_particles", "even and at least 2 for antithetic pairs", num_particles)
    return estimators.disarm_loss(*_antithetic_particles(p, q, x, num_particles // 2, noise))


def disarm_bound(p: Generative, q: CategoricalInference, x: Tree, num_particles: int, noise: Noise) -> Tensor:
    """The K-particle bound of coins, each particle with an antithetic partner (Dong, Mnih & Tucker 2020)."""
    return estimators.disarm_bound_loss(*_antithetic_particles(p, q, x, num_particles, noise))
