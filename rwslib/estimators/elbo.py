r"""Estimators of the ELBO's gradient, averaged over particles without path derivative.

A particle of weight zero, where the ELBO is minus infinity, takes no part.
"""

import math

import torch
from torch import Tensor

from rwslib.checks import check_log_densities, check_per_datum
from rwslib.estimators.weights import log_evidence


def rloo_loss(log_p: Tensor, log_q: Tensor) -> Tensor:
    r"""REINFORCE with the mean of the others as baseline (Kool et al. 2019; VarGrad, Richter et al. 2020).

    .. math:: \frac{1}{K - 1} \sum_k \left(\log w_k - \tfrac1K \textstyle\sum_\ell \log w_\ell\right)
              \nabla_\phi \log q_\phi(z_k | x)

    Unbiased for the ELBO; minus the gradient of half the variance of the log-weights.  Theta follows the
    ELBO, too.

    Args:
        log_p, log_q: ``[K, B]``, K >= 2, at particles without path derivative.

    Returns:
        ``[B]``, at the cost of K samples, K evaluations of p and q.
    """
    check_log_densities(min_particles=2, log_p=log_p, log_q=log_q)
    log_w, share = _log_weights(log_p, log_q)
    elbo, num_particles = (share * log_w).sum(dim=0), len(log_w)
    signal = num_particles / (num_particles - 1) * share * (log_w - elbo).detach()
    return -(elbo + (signal * log_q).sum(dim=0))


def _log_weights(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Log-weights with the gradient of log p alone, and each particle's share of the mean, ``[K, B]``."""
    impossible = log_p == -torch.inf
    share = torch.softmax(torch.zeros_like(log_q).masked_fill(impossible, -torch.inf), dim=0)
    return (log_p - log_q.detach()).masked_fill(impossible, 0), share.detach()


def muprop_loss(log_p: Tensor, log_q: Tensor, expansion: Tensor, expected: Tensor) -> Tensor:
    r"""MuProp: REINFORCE with a first-order expansion as control variate (Gu et al. 2016).

    .. math:: \frac1K \sum_k (\log w_k - h(z_k)) \nabla_\phi \log q_\phi(z_k | x)
              + \nabla_\phi\, \mathbb{E}_q[h(z)]

    Unbiased for the ELBO with any h.

    Args:
        log_p, log_q: ``[K, B]``, at particles without path derivative.
        expansion: ``[K, B]``, h at the particles; its gradient is not taken.
        expected: ``[B]``, the expectation of h under q, of which only the gradient matters.

    Returns:
        ``[B]``, at the cost of K samples, K evaluations of p and q, one of p with its derivative.
    """
    check_log_densities(log_p=log_p, log_q=log_q, expansion=expansion)
    check_per_datum(log_p, expected=expected)
    log_w, share = _log_weights(log_p, log_q)
    signal = share * (log_w - expansion).detach()
    return -((share * log_w).sum(dim=0) + (signal * log_q).sum(dim=0) + expected - expected.detach())


def disarm_loss(
    log_p: Tensor, log_q: Tensor, log_p_pair: Tensor, log_q_pair: Tensor, score: Tensor
) -> Tensor:
    r"""DisARM, for coins in antithetic pairs (Dong, Mnih & Tucker 2020; U2G, Yin et al. 2020).

    .. math:: \tfrac12 (\log w(b) - \log w(\tilde b)) \sum_d (-1)^{\tilde b_d}\, [b_d \ne \tilde b_d]\,
              \sigma(|\alpha_d|)\, \nabla_\phi \alpha_d

    Unbiased for the ELBO.

    Args:
        log_p, log_q: ``[N, B]`` at the first coins of N pairs.
        log_p_pair, log_q_pair: ``[N, B]`` at the second.
        score: ``[N, B]``, the sum over d with the logit itself in place of its gradient, see
            :func:`rwslib.methods.antithetic_score`.

    Returns:
        ``[B]``, at the cost of 2N samples, 2N evaluations of p and q.
    """
    check_log_densities(log_p=log_p, log_q=log_q, log_p_pair=log_p_pair, log_q_pair=log_q_pair, score=score)
    log_w, share = _log_weights(log_p, log_q)
    log_w_pair, share_pair = _log_weights(log_p_pair, log_q_pair)
    both = (share > 0) & (share_pair > 0)
    difference = torch.where(both, log_w - log_w_pair, 0).detach()
    elbo = ((share * log_w).sum(dim=0) + (share_pair * log_w_pair).sum(dim=0)) / 2
    return -(elbo + (difference * score).mean(dim=0) / 2)


def disarm_bound_loss(
    log_p: Tensor, log_q: Tensor, log_p_pair: Tensor, log_q_pair: Tensor, score: Tensor
) -> Tensor:
    r"""DisARM for the K-particle bound: each particle is compared with its partner, the others as they are.

    Unbiased for the bound (Dong, Mnih & Tucker 2020).  The first and the second coins of the K pairs are
    two sets of K particles; what one set says is averaged with what the other does.

    Args:
        log_p, log_q, log_p_pair, log_q_pair, score: ``[K, B]``, see :func:`disarm_loss`.

    Returns:
        ``[B]``, at the cost of 2K samples, 2K evaluations of p and q.
    """
    check_log_densities(log_p=log_p, log_q=log_q, log_p_pair=log_p_pair, log_q_pair=log_q_pair, score=score)
    log_w, log_w_pair = log_p - log_q, log_p_pair - log_q_pair
    bound, bound_pair = log_evidence(log_w), log_evidence(log_w_pair)
    swapped = _with_one_of(log_w_pair, log_w), _with_one_of(log_w, log_w_pair)
    difference = (bound - swapped[0] + swapped[1] - bound_pair).detach() / 2
    difference = torch.where(difference.isfinite(), difference, 0)  # a mixture with no weight says nothing
    return -((bound + bound_pair) / 2 + (difference * score).sum(dim=0) / 2)


def _with_one_of(log_w_pair: Tensor, log_w: Tensor) -> Tensor:
    """Row k is the bound of ``log_w`` with its particle k from ``log_w_pair``, ``[K, B]``; no gradient."""
    num_particles = len(log_w)
    own = torch.eye(num_particles, dtype=torch.bool, device=log_w.device)[..., None]
    mixed = torch.where(own, log_w_pair.detach()[:, None], log_w.detach()[None])
    return torch.logsumexp(mixed, dim=1) - math.log(num_particles)
