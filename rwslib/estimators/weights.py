"""The weights of K particles: the bound that they give, their shares, and how many of them count."""

import math

import torch
from torch import Tensor

from rwslib.checks import check_log_densities


def log_evidence(log_w: Tensor) -> Tensor:
    r"""Importance-weighted bound, paper Eq. 1: :math:`\log \frac1K \sum_k w_k`.

    Args:
        log_w: log-weights ``[K, B]`` in nats.

    Returns:
        ``[B]`` in nats; K = 1 gives the one-sample ELBO.

    >>> log_evidence(torch.zeros(5, 2))
    tensor([0., 0.])
    """
    check_log_densities(log_w=log_w)
    return torch.logsumexp(log_w, dim=0) - math.log(log_w.shape[0])


def normalized_weights(log_w: Tensor) -> Tensor:
    r"""Self-normalised importance weights :math:`v_k`, paper Eq. 5; detached, sum to one over K.

    Args:
        log_w: log-weights ``[K, B]`` in nats.

    Returns:
        ``[K, B]`` without gradient.
    """
    check_log_densities(log_w=log_w)
    return torch.softmax(log_w.detach(), dim=0)


def effective_sample_size(log_w: Tensor) -> Tensor:
    r"""Kish's effective sample size :math:`1 / \sum_k v_k^2`, between 1 and K.

    Args:
        log_w: log-weights ``[K, B]`` in nats.

    Returns:
        ``[B]``, a number of particles, without gradient.
    """
    return 1 / normalized_weights(log_w).square().sum(dim=0)
