"""The thermodynamic variational objective."""

import torch
from torch import Tensor

from rwslib.checks import check_log_densities, require
from rwslib.estimators.wake_sleep import wake_theta_loss


def tvo_loss(log_p: Tensor, log_q: Tensor, partition: Tensor, rule: str = "left") -> Tensor:
    r"""Thermodynamic variational objective (Masrani, Le & Wood 2019).

    The Riemann sum of :math:`\log p_\theta(x) = \int_0^1 \mathbb{E}_{\pi_\beta}[\log w]\,d\beta`, with
    :math:`\pi_\beta \propto q^{1-\beta} p^\beta`, by self-normalised importance sampling from one set
    of particles, and its covariance gradient.  One interval and the left rule give the ELBO.  A particle
    of weight zero takes no part at any beta: at 0 that is the limit from above, where the ELBO has none.

    Args:
        log_p, log_q: ``[K, B]``, K >= 2, at particles without path derivative.
        partition: ``[S + 1]``, increasing from 0 to 1.
        rule: ``"left"`` maximises the lower bound over theta and phi.  ``"right"`` minimises the
            upper bound over phi, while theta follows :func:`wake_theta_loss`; one interval then
            gives exactly wake-wake.

    Returns:
        ``[B]``, at the cost of K samples, K evaluations of p and q.
    """
    check_log_densities(min_particles=2, log_p=log_p, log_q=log_q)
    require(rule in ("left", "right"), "rule", "'left' or 'right'", rule)
    if partition.ndim != 1 or len(partition) < 2:
        raise ValueError(f"partition must have shape [S + 1] with S >= 1, got {list(partition.shape)}")
    if not torch.compiler.is_compiling() and not (
        partition[0] == 0 and partition[-1] == 1 and bool((partition.diff() > 0).all())
    ):
        raise ValueError(f"partition must increase from 0 to 1, got {partition.tolist()}")
    if rule == "right":
        upper = _tvo_sum(log_p.detach(), log_q, partition[1:], partition.diff())
        return wake_theta_loss(log_p, log_q) + upper
    return -_tvo_sum(log_p, log_q, partition[:-1], partition.diff())


def _tvo_sum(log_p: Tensor, log_q: Tensor, betas: Tensor, widths: Tensor) -> Tensor:
    """Surrogate whose gradient is that of the sum over beta of width * E_beta[log w]."""
    impossible, num_particles = log_p == -torch.inf, log_p.shape[0]
    log_p = log_p.masked_fill(impossible, 0)  # any number: its weight is zero
    log_w = log_p - log_q
    total = torch.zeros_like(log_w[0])
    for beta, width in zip(betas, widths, strict=True):
        v = torch.softmax((beta * log_w.detach()).masked_fill(impossible, -torch.inf), dim=0)
        expected = (v * log_w.detach()).sum(dim=0)
        log_pi = beta * log_p + (1 - beta) * log_q
        deviation = v * (log_w.detach() - expected)
        covariance = num_particles / (num_particles - 1) * (deviation * log_pi).sum(dim=0)
        value_only = covariance - covariance.detach()  # zero in value, the covariance in gradient
        total = total + width * ((v * log_w).sum(dim=0) + value_only)
    return total
