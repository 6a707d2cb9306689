r"""Gradient estimators as surrogate losses on log-weights.

Every function takes log-densities whose first axis is the particle axis, ``[K, B]``, and
returns one surrogate loss per datum, ``[B]``, in nats.  Its gradient is *minus* the ascent
direction of the paper, so take the mean over the batch and minimise.  What must not carry a
gradient is detached in here; hand over the tensors as they come.

Notation: ``log_p`` is :math:`\log p_\theta(z_k, x)`, ``log_q`` is :math:`\log q_\phi(z_k | x)`,
``log_w = log_p - log_q``, and :math:`v_k = w_k / \sum_\ell w_\ell`.

No model, optimiser or random number enters.  All functions work in float32 and float64, on any
device, under ``vmap``, ``torch.func.grad`` and ``torch.compile``.

One rule for infinite numbers, in every function: ``log_p = -inf`` is a weight of zero, and values and
gradients are finite as long as one particle of the datum has a finite one; all else that is not finite is
refused.  Tensors that are not ``[K, B]``, shapes that disagree, too few particles, no datum, and bfloat16
or float16, in which rounding alone changes the weights by many per cent, are refused as well: with a
``ValueError`` that names the argument, for values only outside compiled or vmapped code.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rwslib.checks import check_finite, check_log_densities, check_per_datum

__all__ = [
    "dreg_loss",
    "effective_sample_size",
    "iwae_loss",
    "log_evidence",
    "normalized_weights",
    "nvil_loss",
    "reinforce_loss",
    "relax_loss",
    "rws_dreg_loss",
    "sleep_phi_loss",
    "stl_loss",
    "tvo_loss",
    "vimco_baseline",
    "vimco_loss",
    "wake_phi_loss",
    "wake_theta_loss",
]


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


def wake_theta_loss(log_p: Tensor, log_q: Tensor) -> Tensor:
    r"""Wake phase for theta (section 3.1): ascend :math:`\sum_k v_k \nabla_\theta \log p_\theta(z_k, x)`.

    Unbiased for the theta gradient of the K-particle bound; shared by all methods of the paper.
    No gradient reaches q.  The value is minus the bound.

    Args:
        log_p, log_q: ``[K, B]``, at particles drawn from q.

    Returns:
        ``[B]``, at the cost of K samples, K evaluations of p and q.
    """
    check_log_densities(log_p=log_p, log_q=log_q)
    return -log_evidence(log_p - log_q.detach())


def wake_phi_loss(
    log_p: Tensor, log_q: Tensor, log_proposal: Tensor | None = None, center_weights: bool = False
) -> Tensor:
    r"""Wake phase for phi, paper Eq. 5: ascend :math:`\sum_k v_k \nabla_\phi \log q_\phi(z_k | x)`.

    Biased of order 1/K for the inclusive KL of Eq. 4, consistent.  No gradient reaches p.

    Args:
        log_p: ``[K, B]``.
        log_q: ``[K, B]``, the density of q itself at the particles.
        log_proposal: ``[K, B]``, the density of the distribution the particles were really drawn
            from, if that is not q (delta-WW, paper section 4.3).
        center_weights: subtract 1/K from each weight.  With particles from q this leaves the
            expectation unchanged, since the score has mean zero, and lowers the variance.

    Returns:
        ``[B]``, at the cost of K samples, K evaluations of p and q.

    Raises:
        ValueError: ``center_weights`` together with ``log_proposal``, where the score of q does not
            have mean zero.
    """
    if log_proposal is None:
        log_proposal = log_q
    elif center_weights:
        raise ValueError("center_weights=True needs particles from q, but log_proposal was given")
    check_log_densities(log_p=log_p, log_q=log_q, log_proposal=log_proposal)
    v = normalized_weights(log_p - log_proposal)
    if center_weights:
        v = v - 1 / v.shape[0]
    return -(v * log_q).sum(dim=0)


def sleep_phi_loss(log_q: Tensor) -> Tensor:
    r"""Sleep phase for phi, paper Eq. 3: ascend :math:`\frac1K \sum_k \nabla_\phi \log q_\phi(z_k | x_k)`.

    Args:
        log_q: ``[K, B]``, q at dreams, i.e. pairs (z, x) drawn from the generative model.

    Returns:
        ``[B]``, at the cost of K samples from p and evaluations of q a datum.
    """
    check_log_densities(log_q=log_q)
    return -log_q.mean(dim=0)


def iwae_loss(log_p: Tensor, log_q: Tensor) -> Tensor:
    r"""Minus the importance-weighted bound, paper Eq. 1, for reparameterised particles.

    Nothing is detached: phi's gradient flows through the particles and through ``log_q``.

    Args:
        log_p, log_q: ``[K, B]``.

    Returns:
        ``[B]``, at the cost of K samples, K evaluations of p and q.
    """
    check_log_densities(log_p=log_p, log_q=log_q)
    return -log_evidence(log_p - log_q)


def reinforce_loss(log_p: Tensor, log_q: Tensor, log_q_score: Tensor | None = None) -> Tensor:
    r"""REINFORCE for the importance-weighted bound, both terms of paper Eq. 2.

    .. math:: \log \hat Z \sum_k \nabla_\phi \log q_\phi(z_k | x) + \nabla \log \hat Z

    Unbiased; the first term's variance grows with K and with :math:`|\log \hat Z|`.

    Args:
        log_p, log_q: ``[K, B]``, at particles without path derivative.
        log_q_score: ``[K, B]``, the part of ``log_q`` whose latents have no path derivative, where the
            others have one (a count by its score, places reparameterised); None is all of it.

    Returns:
        ``[B]``, at the cost of K samples, K evaluations of p and q.
    """
    bound = -iwae_loss(log_p, log_q)
    score = _score(log_p, log_q, log_q_score)
    return -(bound.detach() * score.sum(dim=0) + bound)


def _score(log_p: Tensor, log_q: Tensor, log_q_score: Tensor | None) -> Tensor:
    if log_q_score is None:
        return log_q
    check_log_densities(log_p=log_p, log_q_score=log_q_score)
    return log_q_score


def vimco_baseline(log_w: Tensor, mean: str = "geometric") -> Tensor:
    r"""VIMCO's baseline :math:`B_\ell`: the bound with particle l's weight replaced by a mean of the others.

    Time and memory O(KB).  Sums over the others are those before l plus those after l, in units of the
    largest other weight: nothing is subtracted, and nothing cancels.

    Args:
        log_w: log-weights ``[K, B]`` in nats, K >= 2.
        mean: ``"geometric"`` (Mnih & Rezende 2016, the paper's; zero if one of the others is zero) or
            ``"arithmetic"``.

    Returns:
        ``[K, B]`` in nats, without gradient; row l does not depend on particle l, to the last bit.
        It is 0, no baseline, where all the others have weight zero.
    """
    if mean not in ("geometric", "arithmetic"):
        raise ValueError(f"mean must be 'geometric' or 'arithmetic', got {mean!r}")
    check_log_densities(min_particles=2, log_w=log_w)
    log_w, num_others = log_w.detach(), log_w.shape[0] - 1
    index = torch.arange(num_others + 1, device=log_w.device)[:, None]
    is_top = index == log_w.argmax(dim=0)
    largest, second = log_w.amax(dim=0), log_w.masked_fill(is_top, -torch.inf).amax(dim=0)
    unit = torch.where(is_top, second, largest)  # of each row: the largest of the others
    in_units = log_w - second.masked_fill(second == -torch.inf, 0), log_w - largest
    of_others = _sum_of_others(torch.stack([*in_units, *(excess.exp() for excess in in_units)]))
    excess, total = torch.where(is_top, of_others[0::2], of_others[1::2])
    if mean == "arithmetic":
        replaced = total / num_others
    else:
        replaced = (total + (excess / num_others).exp()) / (num_others + 1)
    return torch.where(unit == -torch.inf, 0, unit + replaced.log())


def _sum_of_others(values: Tensor) -> Tensor:
    """Row l is the sum of the rows before row l plus that of the rows after it, ``[..., K, B]``."""
    zero = torch.zeros_like(values[..., :1, :])
    before = torch.cat([zero, values[..., :-1, :]], dim=-2).cumsum(dim=-2)
    after = torch.cat([zero, values[..., 1:, :].flip(-2)], dim=-2).cumsum(dim=-2).flip(-2)
    return before + after


def vimco_loss(
    log_p: Tensor, log_q: Tensor, mean: str = "geometric", log_q_score: Tensor | None = None
) -> Tensor:
    r"""VIMCO (Mnih & Rezende 2016), paper section 2.2.

    .. math:: \sum_\ell (\log \hat Z - B_\ell) \nabla_\phi \log q_\phi(z_\ell | x) + \nabla \log \hat Z

    Unbiased, since :math:`B_\ell` does not depend on :math:`z_\ell`.

    Args:
        log_p, log_q: ``[K, B]``, K >= 2, at particles without path derivative.
        mean: see :func:`vimco_baseline`.
        log_q_score: see :func:`reinforce_loss`.

    Returns:
        ``[B]``, at the cost of K samples, K evaluations of p and q.
    """
    check_log_densities(min_particles=2, log_p=log_p, log_q=log_q)
    bound = -iwae_loss(log_p, log_q)
    signal = bound.detach() - vimco_baseline(log_p - log_q, mean)
    return -((signal * _score(log_p, log_q, log_q_score)).sum(dim=0) + bound)


def nvil_loss(log_p: Tensor, log_q: Tensor, baseline: Tensor, log_q_score: Tensor | None = None) -> Tensor:
    r"""REINFORCE with an input-dependent baseline (NVIL, Mnih & Gregor 2014).

    Unbiased for any baseline that does not depend on the particles.  The baseline itself gets no
    gradient from here; it is regressed onto :math:`\log \hat Z` (see :func:`rwslib.methods.nvil`).

    Args:
        log_p, log_q: ``[K, B]``, at particles without path derivative.
        baseline: ``[B]`` in nats.
        log_q_score: see :func:`reinforce_loss`.

    Returns:
        ``[B]``, at the cost of K samples, K evaluations of p and q, one of the baseline.
    """
    bound = -iwae_loss(log_p, log_q)
    check_per_datum(log_p, baseline=baseline)
    score = _score(log_p, log_q, log_q_score).sum(dim=0)
    return -((bound - baseline).detach() * score + bound)


def relax_loss(
    log_p: Tensor, log_q: Tensor, c: Tensor, c_conditional: Tensor, c_bracket: Tensor | None = None
) -> Tensor:
    r"""RELAX and REBAR (Grathwohl et al. 2018, Tucker et al. 2017), paper section 2.2.

    .. math:: (\log \hat Z - c(\tilde g)) \nabla_\phi \log Q + \nabla_\phi c(g) - \nabla_\phi c(\tilde g)
              + \nabla \log \hat Z

    Unbiased for any control variate c.

    Args:
        log_p, log_q: ``[K, B]``, at :math:`z_k = \arg\max g_k`, without path derivative.
        c: ``[B]``, the control variate at the reparameterised Gumbel variates g.
        c_conditional: ``[B]``, the same at Gumbel variates drawn conditionally on z.
        c_bracket: ``[B]``, ``c_conditional`` once more, cut off from phi but not from the control
            variate's own parameters.  Only the objective that trains those needs it.

    Returns:
        ``[B]``, at the cost of K samples, K evaluations of p and q, two of c.
    """
    bound = -iwae_loss(log_p, log_q)
    if c_bracket is None:
        c_bracket = c_conditional.detach()
    check_per_datum(log_p, c=c, c_conditional=c_conditional, c_bracket=c_bracket)
    return -((bound.detach() - c_bracket) * log_q.sum(dim=0) + c - c_conditional + bound)


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
    if rule not in ("left", "right"):
        raise ValueError(f"rule must be 'left' or 'right', got {rule!r}")
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
