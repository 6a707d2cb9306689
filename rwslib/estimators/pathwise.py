"""Estimators whose gradient flows through reparameterised particles."""

from collections.abc import Callable

import torch
from torch import Tensor

from rwslib.checks import check_finite, check_log_densities
from rwslib.estimators.wake_sleep import wake_theta_loss
from rwslib.estimators.weights import log_evidence, normalized_weights


def iwae_loss(log_p: Tensor, log_q: Tensor) -> Tensor:
    r"""Minus the importance-weighted bound, paper Eq. 1, for reparameterised particles.

    Nothing is detached: phi's gradient flows through the particles and through ``log_q``.  With particles
    without path derivative it is minus that of :func:`wake_phi_loss`, and the two cancel: theta alone
    follows :func:`wake_theta_loss`.

    Args:
        log_p, log_q: ``[K, B]``.

    Returns:
        ``[B]``, at the cost of K samples, K evaluations of p and q.
    """
    check_log_densities(log_p=log_p, log_q=log_q)
    return -log_evidence(log_p - log_q)


def stl_loss(log_p: Tensor, log_q: Tensor, log_w_path: Tensor) -> Tensor:
    r"""Sticking the landing (Roeder, Wu & Duvenaud 2017): weights :math:`v_k` along the path.

    Unbiased at K = 1, biased above.  Theta follows :func:`wake_theta_loss`.

    Args:
        log_p: ``[K, B]`` at detached particles.
        log_q: ``[K, B]``.
        log_w_path: ``[K, B]``, the log-weights evaluated with the *parameters* of p and q detached,
            so that the gradient flows through the reparameterised particles alone.

    Returns:
        ``[B]``, at the cost of K samples, 2K evaluations of p and q.
    """
    return _pathwise_loss(log_p, log_q, log_w_path, lambda v: v)


def dreg_loss(log_p: Tensor, log_q: Tensor, log_w_path: Tensor) -> Tensor:
    r"""Doubly reparameterised IWAE gradient (Tucker et al. 2019): weights :math:`v_k^2` along the path.

    Same expectation as the IWAE phi gradient, without its 1/sqrt(K) decay of the signal-to-noise
    ratio.  Arguments, returns and cost as :func:`stl_loss`.
    """
    return _pathwise_loss(log_p, log_q, log_w_path, lambda v: v.square())


def rws_dreg_loss(log_p: Tensor, log_q: Tensor, log_w_path: Tensor) -> Tensor:
    r"""Doubly reparameterised wake-phi gradient (Tucker et al. 2019): weights :math:`v_k - v_k^2`.

    Same expectation as :func:`wake_phi_loss`; zero at K = 1.  Arguments, returns and cost as
    :func:`stl_loss`.
    """
    return _pathwise_loss(log_p, log_q, log_w_path, lambda v: v - v.square())


def _pathwise_loss(
    log_p: Tensor, log_q: Tensor, log_w_path: Tensor, weigh: Callable[[Tensor], Tensor]
) -> Tensor:
    check_log_densities(log_p=log_p, log_q=log_q, log_w_path=log_w_path)
    log_w_path = log_w_path.masked_fill(log_p == -torch.inf, 0)  # else zero times infinity
    check_finite("log_w_path", log_w_path)
    weights = weigh(normalized_weights(log_p - log_q))
    return wake_theta_loss(log_p, log_q) - (weights * log_w_path).sum(dim=0)
