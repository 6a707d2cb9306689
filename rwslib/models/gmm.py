r"""The Gaussian mixture of paper section 4.3, its inference network and its control variates.

Written for one run.  Tensors are logically ``[..., B, C]`` but lie in memory with the batch
innermost, where sums over the C categories vectorise best; only ``_mlp`` knows about it.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from rwslib.noise import Noise

NUM_CATEGORIES = 20


def true_probs(num_categories: int = NUM_CATEGORIES) -> Tensor:
    r"""Mixture weights of the true model, :math:`(c + 5) / \sum_i (i + 5)`; ``[C]``, float64."""
    weights = torch.arange(num_categories, dtype=torch.float64) + 5
    return weights / weights.sum()


def pick(table: Tensor, z: Tensor) -> Tensor:
    """``table[..., z]`` over the last axis: ``table [C]`` or ``[B, C]``, ``z [..., B]`` -> ``[..., B]``.

    A table per datum is read by comparison: the gradient is then a sum rather than a slow scatter.
    At points of the simplex, ``z [..., B, C]``, it is the mean of the table there.
    """
    if z.is_floating_point():
        return (z * table).sum(dim=-1)
    if table.ndim == 1:
        return table[z]
    categories = torch.arange(table.shape[-1], dtype=z.dtype, device=z.device).view(-1, *[1] * z.ndim)
    columns = table.mT.view(table.shape[-1], *[1] * (z.ndim - 1), z.shape[-1])
    return torch.where(z == categories, columns, 0).sum(dim=0)


def sample_categories(log_probs: Tensor, uniform: Tensor) -> Tensor:
    """Inverse-CDF samples: ``log_probs [C]`` or ``[B, C]``, ``uniform [..., B]`` -> ``[..., B]`` int32."""
    probs = log_probs.detach().exp()
    if probs.ndim == 1:
        layout = torch.contiguous_format  # searchsorted warns of strided tensors
        cdf = probs.cumsum(dim=0)[:-1].clone(memory_format=layout)
        return torch.searchsorted(cdf, uniform.clone(memory_format=layout), out_int32=True)
    cdf = probs.mT.cumsum(dim=0)[:-1]
    cdf = cdf.view(len(cdf), *[1] * (uniform.ndim - 1), cdf.shape[-1])
    return (uniform > cdf).sum(dim=0, dtype=torch.int32)


class GMM(nn.Module):
    r"""Generative model: :math:`p_\theta(z) = \mathrm{softmax}(\theta / 2)`, :math:`p(x|z) = N(10 z, 5^2)`.

    Only theta is learned.  The factor 1/2, which halves the optimiser's step on the logits, is not
    in the paper's text but in the authors' code.

    Args:
        init: ``"far"`` puts nearly all mass on small z (logits C-1, ..., 0), ``"near"`` starts
            uniform, ``"true"`` is the true model.
    """

    spacing, sd, logit_scale = 10.0, 5.0, 0.5

    def __init__(self, init: str = "far", num_categories: int = NUM_CATEGORIES):
        super().__init__()
        starts = {
            "far": torch.arange(num_categories - 1, -1, -1, dtype=torch.float64),
            "near": torch.zeros(num_categories, dtype=torch.float64),
            "true": true_probs(num_categories).log(),
        }
        if init not in starts:
            raise ValueError(f"init must be one of {sorted(starts)}, got {init!r}")
        self.theta = nn.Parameter((starts[init] / self.logit_scale).to(torch.get_default_dtype()))

    def log_prior(self) -> Tensor:
        """``log p(z)`` of every category, ``[C]``."""
        return torch.log_softmax(self.logit_scale * self.theta, dim=0)

    def log_likelihood(self, z: Tensor, x: Tensor) -> Tensor:
        """``log p(x | z)``: ``z [K, B]`` categories or ``[K, B, C]`` points of the simplex, ``x [B]``."""
        if z.is_floating_point():
            centres = torch.arange(z.shape[-1], device=z.device, dtype=z.dtype) * self.spacing
            mean = (z * centres).sum(dim=-1)
        else:
            mean = z * self.spacing
        return -0.5 * ((x - mean) / self.sd) ** 2 - math.log(self.sd * math.sqrt(2 * math.pi))

    def log_joint(self, z: Tensor, x: Tensor) -> Tensor:
        """``log p(z, x)``, ``[K, B]``; linear in the prior's logarithm where z is a point of the simplex."""
        return pick(self.log_prior(), z) + self.log_likelihood(z, x)

    forward = log_joint

    def sample(self, num: int, noise: Noise) -> tuple[Tensor, Tensor]:
        """Ancestral samples ``z [num]`` and ``x [num]``, without gradient."""
        z = sample_categories(self.log_prior(), noise.uniform(num))
        return z, z * self.spacing + self.sd * noise.normal(num)

    def sample_defensive(self, x: Tensor, num_particles: int, noise: Noise) -> tuple[Tensor, Tensor]:
        """Uniform categories ``z [K, B]`` and their log-density, for the defensive mixture of delta-WW."""
        num_categories = len(self.theta)
        z = (noise.uniform(num_particles, *x.shape) * num_categories).int()
        return z, torch.full_like(z, -math.log(num_categories), dtype=x.dtype)


def _layers(sizes: Sequence[int]) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))


def _mlp(layers: nn.ModuleList, inputs: Tensor) -> Tensor:
    """Tanh network on columns, ``[D_in, N] -> [D_out, N]``."""
    for i, layer in enumerate(layers):
        inputs = torch.tanh(inputs) if i else inputs
        # a matrix product with one inner element is an outer product, cheaper as a broadcast
        product = layer.weight * inputs if layer.in_features == 1 else layer.weight @ inputs
        inputs = product + layer.bias[:, None]
    return inputs


class InferenceNetwork(nn.Module):
    r""":math:`q_\phi(z | x) = \mathrm{softmax}(\eta_\phi(x))`, an MLP 1-16-C with tanh on the raw x.

    Args:
        hidden: sizes of the hidden layers; the paper writes (16,), the authors' code has (16, 16).
    """

    def __init__(self, hidden: Sequence[int] = (16,), num_categories: int = NUM_CATEGORIES):
        super().__init__()
        self.layers = _layers([1, *hidden, num_categories])

    def log_probs(self, x: Tensor) -> Tensor:
        """``log q(z | x)`` of every category: ``x [B]`` -> ``[B, C]``."""
        return torch.log_softmax(_mlp(self.layers, x[None]), dim=0).mT

    def log_prob(self, z: Tensor, x: Tensor) -> Tensor:
        """``log q(z | x)``: ``z [K, B]`` categories or ``[K, B, C]`` points of the simplex -> ``[K, B]``."""
        return pick(self.log_probs(x), z)

    forward = log_prob

    def sample(self, x: Tensor, num_particles: int, noise: Noise) -> tuple[Tensor, Tensor]:
        """Particles ``z [K, B]`` without path derivative, and ``log q`` at them with phi's gradient."""
        log_probs = self.log_probs(x)
        z = sample_categories(log_probs, noise.uniform(num_particles, *x.shape))
        return z, pick(log_probs, z)


class Table(InferenceNetwork):
    """An inference "network" that holds the logits of every datum, ``[B, C]``."""

    def __init__(self, logits: Tensor):
        nn.Module.__init__(self)
        self.logits = nn.Parameter(logits.clone())

    def log_probs(self, x: Tensor) -> Tensor:
        return torch.log_softmax(self.logits, dim=-1)


class RelaxControlVariate(nn.Module):
    r"""The paper's :math:`c_\rho(g_{1:K}) = \frac1K \sum_k \mathrm{MLP}([x, g_k])`, (1+C)-16-16-1, tanh."""

    def __init__(self, num_categories: int = NUM_CATEGORIES):
        super().__init__()
        self.layers = _layers([1 + num_categories, 16, 16, 1])

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        """``x [B]``, Gumbel variates ``g [K, B, C]`` -> ``[B]``."""
        num_particles, batch, num_categories = g.shape
        columns = g.permute(2, 0, 1).reshape(num_categories, num_particles * batch)
        inputs = torch.cat([x.expand(num_particles, batch).reshape(1, -1), columns])
        return _mlp(self.layers, inputs).view(num_particles, batch).mean(dim=0)


class Baseline(nn.Module):
    """NVIL's input-dependent baseline, an MLP 1-16-16-1 with tanh; its bias plays the running mean."""

    def __init__(self):
        super().__init__()
        self.layers = _layers([1, 16, 16, 1])

    def forward(self, x: Tensor) -> Tensor:
        """``x [B]`` -> ``[B]`` in nats."""
        return _mlp(self.layers, x[None])[0]
