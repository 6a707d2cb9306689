"""Estimators whose particles have no path derivative: a signal times the score of q."""

import math

import torch
from torch import Tensor

from rwslib.checks import check_log_densities, check_per_datum, require
from rwslib.estimators.pathwise import iwae_loss
from rwslib.estimators.wake_sleep import wake_theta_loss
from rwslib.estimators.weights import normalized_weights


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
    require(mean in ("geometric", "arithmetic"), "mean", "'geometric' or 'arithmetic'", mean)
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


def nvil_loss(
    log_p: Tensor,
    log_q: Tensor,
    baseline: Tensor,
    log_q_score: Tensor | None = None,
    scale_signal: bool = False,
) -> Tensor:
    r"""REINFORCE with an input-dependent baseline (NVIL, Mnih & Gregor 2014).

    Unbiased for any baseline that does not depend on the particles.  The baseline itself gets no
    gradient from here; it is regressed onto :math:`\log \hat Z` (see :func:`rwslib.methods.nvil`).

    Args:
        log_p, log_q: ``[K, B]``, at particles without path derivative.
        baseline: ``[B]`` in nats.
        log_q_score: see :func:`reinforce_loss`.
        scale_signal: divide the signal by its standard deviation over the batch if that is above 1, as
            the original does with a running one.  That rescales one of the two terms of Eq. 2 against
            the other, and so biases the gradient.

    Returns:
        ``[B]``, at the cost of K samples, K evaluations of p and q, one of the baseline.
    """
    bound = -iwae_loss(log_p, log_q)
    check_per_datum(log_p, baseline=baseline)
    score = _score(log_p, log_q, log_q_score).sum(dim=0)
    signal = (bound - baseline).detach()
    if scale_signal:
        signal = signal / signal.std(correction=0).clamp_min(1)
    return -(signal * score + bound)


def relax_loss(
    log_p: Tensor, log_q: Tensor, c: Tensor, c_conditional: Tensor, c_bracket: Tensor | None = None
) -> Tensor:
    r"""RELAX and REBAR (Grathwohl et al. 2018, Tucker et al. 2017), paper section 2.2.

    .. math:: (\log \hat Z - c(\tilde\gamma)) \nabla_\phi \log Q_\phi + \nabla_\phi c(\gamma)
              - \nabla_\phi c(\tilde\gamma) + \nabla \log \hat Z

    with :math:`Q_\phi = \prod_k q_\phi(z_k | x)`.  Unbiased for any control variate c.

    Args:
        log_p, log_q: ``[K, B]``, at :math:`z_k = \arg\max \gamma_k`, without path derivative.
        c: ``[B]``, the control variate at the reparameterised Gumbel variates gamma.
        c_conditional: ``[B]``, the same at Gumbel variates drawn conditionally on z.
        c_bracket: ``[B]``, ``c_conditional`` once more, cut off from phi but not from the control
            variate's own parameters.  Only the objective that trains those needs it: they do not descend this
            loss, but the square of phi's gradient, as ``rwslib.training.networks`` does.

    Returns:
        ``[B]``, at the cost of K samples, K evaluations of p and q, and c at two sets of K Gumbel variates,
        three where it is trained.
    """
    bound = -iwae_loss(log_p, log_q)
    if c_bracket is None:
        c_bracket = c_conditional.detach()
    check_per_datum(log_p, c=c, c_conditional=c_conditional, c_bracket=c_bracket)
    return -((bound.detach() - c_bracket) * log_q.sum(dim=0) + c - c_conditional + bound)


def ovis_loss(log_p: Tensor, log_q: Tensor, gamma: float = 0.0) -> Tensor:
    r"""OVIS with its asymptotic control variate (Liévin et al. 2020, Eq. 17).

    .. math:: \sum_\ell \left(\log \hat Z - \log \hat Z_{-\ell}
              - (1 - \gamma) (v_\ell + \log(1 - \tfrac1K))\right) \nabla_\phi \log q_\phi(z_\ell | x)

    with :math:`\hat Z_{-\ell}` the mean weight of the others.  At gamma 0, meant for a small effective
    sample size, it is unbiased.  At 1, meant for a large one, its expectation is the bound's gradient plus
    the wake-phase update, exactly; in between, the bound's gradient plus gamma times that update.

    Args:
        log_p, log_q: ``[K, B]``, K >= 2, at particles without path derivative.
        gamma: from 0 to 1.

    Returns:
        ``[B]``, at the cost of K samples, K evaluations of p and q.
    """
    require(0 <= gamma <= 1, "gamma", "a number from 0 to 1", gamma)
    check_log_densities(min_particles=2, log_p=log_p, log_q=log_q)
    log_w, theta_loss = (log_p - log_q).detach(), wake_theta_loss(log_p, log_q)
    signal = -theta_loss.detach() - vimco_baseline(log_w, "arithmetic")
    signal = signal - (1 - gamma) * (normalized_weights(log_w) + math.log1p(-1 / len(log_w)))
    return theta_loss - (signal * log_q).sum(dim=0)
