"""Annealed importance sampling: the evidence of a model, resting little on its inference network."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rwslib.checks import check_counts, require
from rwslib.noise import Noise
from rwslib.trees import Tree, split

NUM_CHAINS = 10  # per datum, of the experiments
SCALE_PARTICLES = 100  # from which the width of q is taken


@dataclass(frozen=True)
class Flips:
    """Moves of coins, many at once, each flipped by what the slope promises (Zhang et al. 2022).

    Attributes:
        step_size: smaller ones flip fewer coins and are accepted more often.
    """

    step_size: float

    def propose(self, z: Tensor, slope: Tensor, noise: Noise) -> Tensor:
        """New coins from coins and the slope of the log-density there, ``[K, B, D]`` each."""
        logits = self._logits(z, slope)
        return (z - (noise.uniform(*z.shape) < torch.sigmoid(logits)).to(z.dtype)).abs()

    def log_ratio(self, z: Tensor, slope: Tensor, new: Tensor, new_slope: Tensor) -> Tensor:
        """Log-probability of the way back less that of the way there, ``[K, B]``."""
        there, back = self._logits(z, slope), self._logits(new, new_slope)
        flips = (new - z).abs()
        return (flips * (back - there) - F.softplus(back) + F.softplus(there)).sum(dim=-1)

    def _logits(self, z: Tensor, slope: Tensor) -> Tensor:
        return (0.5 - z) * slope - 1 / (2 * self.step_size)


@dataclass(frozen=True)
class Drift:
    """Moves of real latents along the slope, with noise: Langevin's (Roberts & Tweedie 1996).

    Attributes:
        step_size: in units of the squared scale.
        scale: standard deviation of q, ``[B, D]``.
    """

    step_size: float
    scale: Tensor

    def propose(self, z: Tensor, slope: Tensor, noise: Noise) -> Tensor:
        """New latents from latents and the slope of the log-density there, ``[K, B, D]`` each."""
        return self._mean(z, slope) + math.sqrt(self.step_size) * self.scale * noise.normal(*z.shape)

    def log_ratio(self, z: Tensor, slope: Tensor, new: Tensor, new_slope: Tensor) -> Tensor:
        """Log-density of the way back less that of the way there, ``[K, B]``."""
        there, back = (new - self._mean(z, slope)) / self.scale, (z - self._mean(new, new_slope)) / self.scale
        return (there.square() - back.square()).sum(dim=-1) / (2 * self.step_size)

    def _mean(self, z: Tensor, slope: Tensor) -> Tensor:
        return z + self.step_size / 2 * self.scale.square() * slope


def annealed_estimates(
    p: Any,
    q: Any,
    x: Tree,
    num_chains: int,
    num_steps: int,
    noise: Noise,
    step_size: float | None = None,
    images_at_once: int = 50,
) -> dict[str, Tensor]:
    r"""Log evidence of every datum by annealed importance sampling (Neal 2001).

    A chain starts as a particle of q and moves towards the posterior on the way
    :math:`q^{1 - \beta} p^\beta`, so that the estimate rests on q far less than that of
    ``importance_estimates`` does.  A move follows the slope of the log-densities in the latents, and is
    accepted or refused as a whole.

    Args:
        p, q: generative model and inference network, as ``rwslib.protocols`` has them; latents are coins 0
            and 1 or real numbers ``[K, B, D]``, and the log-densities have a gradient in them.
        x: data ``[N, ...]``, a tensor or a tree of them (``rwslib.trees``).
        num_chains: per datum.
        num_steps: from beta 0 to 1, equally long, with a move between any two.
        noise: where the particles and the moves come from.
        step_size: of a move, see ``Flips`` and ``Drift``; None is 0.15 for coins and 0.3 for real numbers.
        images_at_once: data in one piece.

    Returns:
        ``log_marginal [N]``, in expectation below ``log p(x)``, in nats; ``ess [N]``, the effective number
        of chains.

    Raises:
        ValueError: no chain or step, latents of another kind, or a log-density without gradient in them.
    """
    check_counts(num_chains=num_chains, num_steps=num_steps, images_at_once=images_at_once)
    require(step_size is None or step_size > 0, "step_size", "above 0", step_size)

    def state_at(z: Tensor, x: Tree) -> tuple[Tensor, ...]:
        """Latents, both log-densities ``[K, B]`` and their slopes ``[K, B, D]``."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            logs = {"log_joint": p.log_joint(z, x), "log_prob": q.log_prob(z, x)}
            slopes = [_slope(name, log, z) for name, log in logs.items()]
        return z.detach(), *(log.detach() for log in logs.values()), *slopes

    def move(moves: Flips | Drift, state: tuple[Tensor, ...], x: Tree, beta: float) -> tuple[Tensor, ...]:
        def mixed(of_p: Tensor, of_q: Tensor) -> Tensor:
            return beta * of_p + (1 - beta) * of_q

        z, log_p, log_q, *slopes = state
        slope = mixed(*slopes)
        proposed = state_at(moves.propose(z, slope, noise), x)
        new, new_log_p, new_log_q, *new_slopes = proposed
        gain = mixed(new_log_p - log_p, new_log_q - log_q)
        gain = gain + moves.log_ratio(z, slope, new, mixed(*new_slopes))
        accepted = noise.uniform(*gain.shape).log() < gain
        pairs = zip(proposed, state, strict=True)
        return tuple(torch.where(accepted[(...,) + (None,) * (a.ndim - 2)], a, b) for a, b in pairs)

    pieces = []
    for some in split(x, images_at_once):
        with torch.no_grad():
            z, log_q = q.sample(some, num_chains, noise)
            moves = _moves_of(z, q, some, noise, step_size)
            state, log_w = state_at(z.to(log_q.dtype), some), torch.zeros_like(log_q)
            for step in range(1, num_steps + 1):
                log_w = log_w + (state[1] - state[2]) / num_steps
                if step < num_steps:
                    state = move(moves, state, some, step / num_steps)
            log_z = torch.logsumexp(log_w, dim=0)
            ess = (2 * log_z - torch.logsumexp(2 * log_w, dim=0)).exp()
            pieces.append(torch.stack([log_z - math.log(num_chains), ess]))
    return dict(zip(("log_marginal", "ess"), torch.cat(pieces, dim=1), strict=True))


def _slope(name: str, log: Tensor, z: Tensor) -> Tensor:
    """Gradient of log-densities ``[K, B]`` in the latents ``[K, B, D]``."""
    slope = torch.autograd.grad(log.sum(), z, allow_unused=True)[0] if log.requires_grad else None
    if slope is None:
        raise ValueError(f"{name} must have a gradient in z for moves to follow, got none")
    return slope


def _moves_of(z: Any, q: Any, x: Tree, noise: Noise, step_size: float | None) -> Flips | Drift:
    """The moves that fit latents ``z [K, B, D]``."""
    if isinstance(z, Tensor) and z.ndim == 3:
        if ((z == 0) | (z == 1)).all():
            return Flips(step_size or 0.15)
        if z.is_floating_point():
            return Drift(step_size or 0.3, q.sample(x, SCALE_PARTICLES, noise)[0].std(dim=0))
    raise ValueError("z must hold coins 0 and 1 or real numbers [K, B, D], but q.sample returned others")
