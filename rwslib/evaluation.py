"""What a model or an estimator is judged by; exact by enumeration wherever the latent is small."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap

from rwslib.checks import check_counts, check_precision, require
from rwslib.estimators import normalized_weights
from rwslib.noise import Noise, Tape
from rwslib.trees import Tree, batch_size, leaves, split


def gradient_std(gradients: Tensor) -> Tensor:
    r"""The paper's gradient spread :math:`\frac{1}{D}\sum_d \mathrm{std}(\hat g_d)` (section 4.3).

    Args:
        gradients: independent estimates ``[..., S, D]``.

    Returns:
        ``[...]``; the standard deviation is over the S estimates (divided by S), then the mean is
        over all D parameters.  The authors' code divided by the sum of the first dimensions of the
        parameters' tensors, which makes its values larger: 372/72 = 5.2 times for the network of the
        paper's text, 644/104 = 6.2 times for its own, which has two hidden layers.
    """
    _check_estimates(gradients, at_least=1)
    return gradients.std(dim=-2, correction=0).mean(dim=-1)


def signal_to_noise(gradients: Tensor) -> Tensor:
    r"""Ratio :math:`|\mathbb E \hat g_d| / \mathrm{std}(\hat g_d)`, averaged over d (Rainforth et al. 2018).

    Args:
        gradients: independent estimates ``[..., S, D]``.

    Returns:
        ``[...]``.  Parameters whose gradient never varies are left out.
    """
    _check_estimates(gradients, at_least=2)
    std = gradients.std(dim=-2)
    ratio = gradients.mean(dim=-2).abs() / std.clamp_min(torch.finfo(std.dtype).tiny)
    varies = std > 0
    return torch.where(varies, ratio, 0).sum(dim=-1) / varies.sum(dim=-1)


def _check_estimates(gradients: Tensor, at_least: int) -> None:
    if gradients.ndim < 2 or gradients.shape[-2] < at_least or not gradients.shape[-1]:
        raise ValueError(
            f"gradients must have shape [..., S, D] with S at least {at_least} and D at least 1, "
            f"got {list(gradients.shape)}"
        )


def importance_estimates(
    p: Any,
    q: Any,
    x: Tree,
    num_particles: int,
    noise: Noise,
    images_at_once: int = 20,
    rows_at_once: int = 4000,
    compiled: bool = False,
) -> dict[str, Tensor]:
    """Log evidence, ELBO and effective sample size of every datum, by one K-particle estimate.

    The particles come in pieces of a size that fits any memory; ``rows_at_once`` only changes the rounding
    where q draws all its numbers at once and normal ones alone.

    Args:
        p, q: generative model and inference network, as ``rwslib.protocols`` has them.
        x: data ``[N, ...]``, a tensor or a tree of them (``rwslib.trees``).
        num_particles: the number K of particles.
        noise: where the particles come from.
        images_at_once: data in one piece.
        rows_at_once: data times particles in one piece.
        compiled: compile the piece; pays from about a million particles.

    Returns:
        ``log_marginal [N]``, the K-particle bound, in expectation below ``log p(x)``, in nats;
        ``kl_q_p [N]``, it minus the ELBO of the same particles, in expectation below KL(q || p(z | x));
        ``elbo [N]``; ``ess [N]``, effective sample size between 1 and K.  In the models' own precision.
        Particles of weight zero count; a datum with no others has ``-inf``, and NaN where that says nothing.

    Raises:
        ValueError: no datum, no particle, or log-densities of another shape than ``[K, B]`` or in fewer
            digits than float32's.
    """
    check_counts(num_particles=num_particles, images_at_once=images_at_once, rows_at_once=rows_at_once)
    if not batch_size(x):
        raise ValueError(f"x holds no datum, its shape is {list(leaves(x)[0].shape)}")

    def log_weights(x: Tree, count: int, noise: Noise) -> Tensor:
        z, log_q = q.sample(x, count, noise)
        log_p, shape = p.log_joint(z, x), (count, batch_size(x))
        for name, value in {"p.log_joint": log_p, "q.sample": log_q}.items():
            if value.shape != shape:  # else they would be broadcast
                got = f"[K, B] = {list(shape)}, got {list(value.shape)}"
                raise ValueError(f"{name} must return log-densities {got}")
        return log_p - log_q

    def whole_piece(x: Tree, uniform: Tensor, normal: Tensor) -> Tensor:
        return log_weights(x, count, Tape(uniform, normal))

    count = min(num_particles, max(1, rows_at_once // min(batch_size(x), images_at_once)))
    piece = torch.compile(whole_piece, dynamic=False) if compiled else whole_piece
    pieces = []
    with torch.no_grad():
        for some in split(x, images_at_once):
            size, device = batch_size(some), leaves(some)[0].device
            log_z = log_z_squared = torch.full((size,), -math.inf, device=device)
            total = torch.zeros(size, device=device, dtype=torch.float64)
            counter = Noise(0, device=noise.device)
            q.sample(some, count, counter)
            left = num_particles
            while left:
                if left >= count:
                    numbers = [noise.uniform(counter.used["uniform"]), noise.normal(counter.used["normal"])]
                    log_w = piece(some, *numbers)
                else:  # drawing a whole piece would make the next data's particles depend on its size
                    log_w = log_weights(some, left, noise)
                check_precision("log_p - log_q", log_w)
                log_z = torch.logaddexp(log_z, torch.logsumexp(log_w, dim=0))
                log_z_squared = torch.logaddexp(log_z_squared, torch.logsumexp(2 * log_w, dim=0))
                total += log_w.sum(dim=0)
                left -= len(log_w)
            log_marginal = log_z - math.log(num_particles)
            elbo = (total / num_particles).to(log_marginal.dtype)
            ess = (2 * log_z - log_z_squared).exp()
            pieces.append(torch.stack([log_marginal, log_marginal - elbo, elbo, ess]))
    return dict(zip(("log_marginal", "kl_q_p", "elbo", "ess"), torch.cat(pieces, dim=1), strict=True))


def active_units(means: Tensor, threshold: float = 0.01) -> Tensor:
    r"""Number of latents u with :math:`\mathrm{Var}_x(\mathbb E_q[u])` above a threshold (Burda et al. 2016).

    Args:
        means: of q for every datum, ``[N, L]``.
    """
    check_counts(**{"the number of means": len(means)})
    return (means.var(dim=0, correction=0) > threshold).sum()


def exact_log_evidence(log_joint: Tensor) -> Tensor:
    """``log p(x)`` from ``log p(z, x)`` of every category: ``[..., B, C]`` -> ``[..., B]`` in nats."""
    return torch.logsumexp(log_joint, dim=-1)


def exact_kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a || b) of categorical distributions, from log-probabilities ``[..., C]``; ``[...]`` in nats.

    Categories that a gives probability zero add nothing.
    """
    return (log_a.exp() * torch.where(log_a == -math.inf, 0, log_a - log_b)).sum(dim=-1)


def particle_tuples(num_categories: int, num_particles: int) -> Tensor:
    """Every tuple of K categories as the columns of ``[K, C**K]`` int64."""
    check_counts(num_categories=num_categories, num_particles=num_particles)
    tuples = itertools.product(range(num_categories), repeat=num_particles)
    return torch.tensor(list(tuples)).T


def exact_moments(
    loss: Callable[[Tensor, Tensor], Tensor], log_joint: Tensor, logits: Tensor, num_particles: int
) -> tuple[Tensor, Tensor]:
    r"""Exact mean and variance of an estimator for one datum, over all ``C**K`` particle tuples from q.

    The ascent direction with respect to the logits of q is evaluated at every tuple, at the cost of
    one gradient for a batch of ``C**K`` data: keep C and K small.

    Args:
        loss: an estimator, ``(log_p, log_q) -> [B]``.
        log_joint: ``log p(z, x)`` of every category, ``[C]``.
        logits: unnormalised log-probabilities of q, ``[C]``.

    Returns:
        Mean and variance of the ascent direction, ``[C]`` each.

    Raises:
        ValueError: a category that q can draw is impossible under p: with K such particles there are no
            weights.
    """
    z = _tuples_from_q(log_joint, logits, num_particles)

    def one_tuple(logits: Tensor, z: Tensor) -> Tensor:
        log_q = torch.log_softmax(logits, dim=0)
        return loss(log_joint[z][:, None], log_q[z][:, None]).sum()

    ascent = -vmap(grad(one_tuple), in_dims=(None, 1))(logits, z)
    weights = torch.log_softmax(logits, dim=0)[z].sum(dim=0).exp()[:, None].detach()
    mean = (weights * ascent).sum(dim=0)
    return mean, (weights * (ascent - mean).square()).sum(dim=0)


def _tuples_from_q(log_joint: Tensor, logits: Tensor, num_particles: int) -> Tensor:
    """Those of ``particle_tuples`` that q can draw."""
    possible = logits > -math.inf
    allowed = "above -inf for every category that q can draw, since K such particles have no weights"
    require(bool((log_joint[possible] > -math.inf).all()), "log_joint", allowed, log_joint.tolist())
    z = particle_tuples(len(logits), num_particles)
    return z.T[possible[z].all(dim=0)].T  # laid out as before


def particle_counts(num_categories: int, num_particles: int) -> tuple[Tensor, Tensor]:
    """How often each category is among K particles, whatever their order.

    There are far fewer counts than tuples: 176,851 instead of 4**100 for a hundred particles of four
    categories.  They suffice for whatever treats all particles alike.

    Returns:
        Counts ``[N, C]``, float64, and the logarithm of how many tuples have them, ``[N]``.
    """
    check_counts(num_categories=num_categories, num_particles=num_particles)
    last = num_particles + num_categories - 1
    bars = itertools.combinations(range(last), num_categories - 1)  # between categories, as in stars and bars
    walls = torch.tensor([(-1, *bar, last) for bar in bars], dtype=torch.float64)
    counts = walls.diff(dim=1) - 1
    return counts, math.lgamma(num_particles + 1) - torch.lgamma(counts + 1).sum(dim=1)


def exact_bound(log_joint: Tensor, logits: Tensor, num_particles: int) -> Tensor:
    """The K-particle bound (paper Eq. 1) of one datum by enumeration; a differentiable scalar in nats.

    Categories that q cannot draw take no part; where it can draw one that p cannot, the bound is ``-inf``.

    Args:
        log_joint: ``[C]``.
        logits: ``[C]``, of q.
    """
    possible = logits > -math.inf
    log_joint, logits = log_joint[possible], logits[possible]
    counts, log_ways = (table.to(logits.dtype) for table in particle_counts(len(logits), num_particles))
    log_q = torch.log_softmax(logits, dim=0)
    bound = torch.logsumexp(counts.log() + log_joint - log_q, dim=1) - math.log(num_particles)
    return ((log_ways + counts @ log_q).exp() * bound).sum()


def exact_wake_phi(log_joint: Tensor, logits: Tensor, num_particles: int) -> Tensor:
    """Expectation of the wake-phi ascent direction (paper Eq. 5) for one datum, ``[C]``, by enumeration.

    Raises:
        ValueError: see :func:`exact_moments`.
    """
    z = _tuples_from_q(log_joint, logits, num_particles)
    probs = torch.softmax(logits, dim=0).detach()
    log_q = torch.log_softmax(logits, dim=0).detach()[z]
    v = normalized_weights(log_joint[z] - log_q)
    score = torch.eye(len(logits), dtype=logits.dtype)[z] - probs
    return torch.einsum("n,kn,knc->c", log_q.sum(dim=0).exp(), v, score)
