"""Problems small enough that expectations can be computed exactly, and noise that can be prescribed."""

import itertools
import math

import torch
from torch import Tensor, nn
from torch.autograd import grad

from rwslib import estimators
from rwslib.models import gmm
from rwslib.noise import Noise

# -- prescribed noise --------------------------------------------------------------------------------


class Script(Noise):
    """Hands out tensors prepared beforehand, one a call, and checks that their shapes were asked for."""

    def __init__(self, uniform: list[Tensor] = (), normal: list[Tensor] = ()):
        self.numbers = {"uniform": list(uniform), "normal": list(normal)}

    def _next(self, kind: str, shape: tuple[int, ...]) -> Tensor:
        value = self.numbers[kind].pop(0)
        assert value.shape == shape, (
            f"{kind} numbers {list(shape)} were asked for, {list(value.shape)} prepared"
        )
        return value

    def uniform(self, *shape: int) -> Tensor:
        return self._next("uniform", shape)

    def normal(self, *shape: int) -> Tensor:
        return self._next("normal", shape)

    @property
    def is_used_up(self) -> bool:
        return not any(self.numbers.values())


def uniforms_for(probs: Tensor, z: Tensor) -> Tensor:
    """Numbers for which inverse-CDF sampling gives z: ``probs [B, C]``, ``z [K, B]`` -> ``[K, B]``."""
    upper = probs.detach().cumsum(dim=-1)
    middle = upper - probs.detach() / 2
    return middle[torch.arange(z.shape[1]), z]


# -- every tuple of K particles out of C categories --------------------------------------------------


def all_tuples(num_categories: int, num_particles: int) -> Tensor:
    """Every K-tuple of categories as a column, ``[K, C^K]``."""
    return torch.tensor(list(itertools.product(range(num_categories), repeat=num_particles))).T


class Enumeration:
    """B tables of ``log p(z, x)`` and of q's logits, and all C^K particle tuples for each of them.

    The tuples take the place of the batch.  Each has its own copy of the tables, so that one
    backward pass gives the gradient of every tuple by itself, ``[B, C^K, C]``.
    """

    def __init__(self, num_categories: int, num_particles: int, seed: int, num_data: int = 2):
        generator = torch.Generator().manual_seed(seed)
        self.log_joint = (
            1.5 * torch.randn(num_data, num_categories, generator=generator, dtype=torch.float64) - 2
        )
        self.logits = torch.randn(num_data, num_categories, generator=generator, dtype=torch.float64)
        self.num_particles, self.tuples = num_particles, all_tuples(num_categories, num_particles)
        self.num_tuples = self.tuples.shape[1]
        log_q = self.log_q_at_tuples(self.logits)
        self.probs = log_q.sum(dim=0).exp().view(num_data, self.num_tuples)

    def log_p_at_tuples(self, log_joint: Tensor) -> Tensor:
        """``[B, C]`` -> ``[K, B * C^K]``."""
        return log_joint[:, self.tuples].movedim(1, 0).flatten(1)

    def log_q_at_tuples(self, logits: Tensor) -> Tensor:
        return self.log_p_at_tuples(logits.log_softmax(dim=-1))

    def gradients(self, loss) -> tuple[Tensor, Tensor]:
        """Minus every tuple's gradient of ``loss(log_p, log_q) [B * C^K]`` in p's table and q's logits."""
        log_joint, logits = (
            t[:, None].expand(-1, self.num_tuples, -1).clone().requires_grad_()
            for t in (self.log_joint, self.logits)
        )
        rows = torch.arange(self.num_tuples)
        log_p = log_joint[:, rows, self.tuples].movedim(1, 0).flatten(1)
        log_q = logits.log_softmax(dim=-1)[:, rows, self.tuples].movedim(1, 0).flatten(1)
        total = loss(log_p, log_q).sum()
        ascent = grad(-total, (log_joint, logits), allow_unused=True, materialize_grads=True)
        return ascent[0].detach(), ascent[1].detach()

    def expectation(self, per_tuple: Tensor) -> Tensor:
        """``[B, C^K, C]`` -> ``[B, C]``."""
        return (self.probs[..., None] * per_tuple).sum(dim=1)

    def expected_gradients(self, loss) -> tuple[Tensor, Tensor]:
        theta, phi = self.gradients(loss)
        return self.expectation(theta), self.expectation(phi)

    def total_variance(self, loss) -> Tensor:
        """Summed variance of phi's gradient, ``[B]``."""
        _, phi = self.gradients(loss)
        return (self.expectation(phi.square()) - self.expectation(phi).square()).sum(dim=-1)

    def exact_gradients(self, objective) -> tuple[Tensor, Tensor]:
        """Autograd of ``objective(log_joint, logits)``, a scalar, in both tables."""
        tables = self.log_joint.clone().requires_grad_(), self.logits.clone().requires_grad_()
        return grad(objective(*tables), tables, allow_unused=True, materialize_grads=True)

    def bound(self, log_joint: Tensor, logits: Tensor) -> Tensor:
        """The expected K-particle bound, summed over the data, as a differentiable function."""
        log_p, log_q = self.log_p_at_tuples(log_joint), self.log_q_at_tuples(logits)
        # written out, not estimators.log_evidence
        value = torch.log((log_p - log_q).exp().mean(dim=0))
        return (log_q.sum(dim=0).exp() * value).sum()

    def elbo(self, log_joint: Tensor, logits: Tensor) -> Tensor:
        log_q = logits.log_softmax(dim=-1)
        return (log_q.exp() * (log_joint - log_q)).sum()

    def minus_inclusive_kl(self, log_joint: Tensor, logits: Tensor) -> Tensor:
        """``-KL(p(z|x) || q(z|x))`` summed over the data."""
        log_posterior = log_joint.log_softmax(dim=-1)
        return (log_posterior.exp() * (logits.log_softmax(dim=-1) - log_posterior)).sum()


# -- a mixture with three components -----------------------------------------------------------------


class RowNetwork(gmm.InferenceNetwork):
    """An inference "network" whose parameters are the logits of every datum, ``[B, C]``.

    A sum of losses over the batch then has the gradient of each datum as a row of its own.
    """

    def __init__(self, logits: Tensor):
        nn.Module.__init__(self)
        self.logits = nn.Parameter(logits.clone())

    def log_probs(self, x: Tensor) -> Tensor:
        return self.logits.log_softmax(dim=-1)


def small_mixture(seed: int = 0, num_categories: int = 3) -> tuple[gmm.GMM, gmm.InferenceNetwork]:
    """A mixture and its inference network with few categories, random, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        p = gmm.GMM("near", num_categories).double()
        q = gmm.InferenceNetwork((5,), num_categories).double()
        nn.init.normal_(p.theta)
        nn.init.normal_(q.layers[-1].bias)
        # near clusters, so that the posterior is not a point mass
        p.spacing = 4.0
    return p, q


# -- a vector of categorical latents -------------------------------------------------------------------


class VectorModel(nn.Module):
    r"""D latents of C categories each, and :math:`x | z \sim N(s(\textstyle\sum_d w_{d, z_d}), 1)`, float64.

    Takes categories ``[K, B, D]`` or points ``[K, B, D, C]``.  With ``power`` 1 the log-joint is linear in
    the points, with 2 quadratic, since s is then the identity; None is a tanh.
    """

    def __init__(self, num_latents: int = 3, num_categories: int = 2, power: int | None = None):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        table = torch.randn(3, num_latents, num_categories, generator=generator, dtype=torch.float64)
        self.prior, self.weights = nn.Parameter(table[0]), nn.Parameter(table[1])
        self.power = power

    def log_prior(self) -> Tensor:
        return self.prior.log_softmax(dim=-1)

    def points(self, z: Tensor) -> Tensor:
        if z.is_floating_point():
            return z
        return nn.functional.one_hot(z.long(), self.prior.shape[-1]).to(self.prior.dtype)

    def log_likelihood(self, z: Tensor, x: Tensor) -> Tensor:
        mean = (self.points(z) * self.weights).sum(dim=(-2, -1))
        if self.power == 1:
            return mean * x
        mean = mean if self.power == 2 else 2 * torch.tanh(mean)
        return -0.5 * (x - mean).square()

    def log_joint(self, z: Tensor, x: Tensor) -> Tensor:
        return (self.points(z) * self.log_prior()).sum(dim=(-2, -1)) + self.log_likelihood(z, x)

    forward = log_joint


class VectorRows(nn.Module):
    """q as a table of logits ``[B, D, C]``, a row a datum."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def log_probs(self, x: Tensor) -> Tensor:
        return self.logits.log_softmax(dim=-1)

    def log_prob(self, z: Tensor, x: Tensor) -> Tensor:
        log_probs = self.log_probs(x)
        if z.is_floating_point():
            return (z * log_probs).sum(dim=(-2, -1))
        expanded = log_probs.expand(len(z), *log_probs.shape)
        return expanded.gather(-1, z.long()[..., None])[..., 0].sum(dim=-1)

    forward = log_prob

    def sample(self, x: Tensor, num_particles: int, noise: Noise) -> tuple[Tensor, Tensor]:
        log_probs = self.log_probs(x)
        upper = log_probs.detach().exp().cumsum(dim=-1)[..., :-1]
        uniform = noise.uniform(num_particles, *log_probs.shape[:-1])
        z = (uniform[..., None] > upper).sum(dim=-1)
        return z, self.log_prob(z, x)


# -- a linear Gaussian model ---------------------------------------------------------------------------


class GaussianModel(nn.Module):
    r""":math:`z \sim N(\mu, 1)`, :math:`x|z \sim N(z, e^{2s})`."""

    def __init__(self, mean: float = 0.3, log_scale: float = 0.5):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean))
        self.log_scale = nn.Parameter(torch.tensor(log_scale))

    def log_joint(self, z: Tensor, x: Tensor) -> Tensor:
        return normal_log_prob(z, self.mean, torch.zeros_like(self.mean)) + normal_log_prob(
            x, z, self.log_scale
        )

    forward = log_joint

    def sample(self, num: int, noise: Noise) -> tuple[Tensor, Tensor]:
        """Ancestral samples that do carry a gradient, for methods must cut it."""
        z = self.mean + noise.normal(num)
        return z, z + self.log_scale.exp() * noise.normal(num)

    def sample_defensive(self, x: Tensor, num_particles: int, noise: Noise) -> tuple[Tensor, Tensor]:
        z = 3 * noise.normal(num_particles, len(x))
        return z, normal_log_prob(z, torch.zeros_like(x), torch.full_like(x, math.log(3)))


class GaussianNetwork(nn.Module):
    r""":math:`q(z|x) = N(a x + b, e^{2c})`."""

    def __init__(self, slope: float = 0.4, offset: float = -0.3, log_scale: float = -0.1):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))
        self.offset = nn.Parameter(torch.tensor(offset))
        self.log_scale = nn.Parameter(torch.tensor(log_scale))

    def rsample(self, x: Tensor, num_particles: int, noise: Noise) -> tuple[Tensor, Tensor]:
        z = self.slope * x + self.offset + self.log_scale.exp() * noise.normal(num_particles, len(x))
        return z, self.log_prob(z, x)

    def sample(self, x: Tensor, num_particles: int, noise: Noise) -> tuple[Tensor, Tensor]:
        z = self.rsample(x, num_particles, noise)[0].detach()
        return z, self.log_prob(z, x)

    def log_prob(self, z: Tensor, x: Tensor) -> Tensor:
        return normal_log_prob(z, self.slope * x + self.offset, self.log_scale)

    forward = log_prob


def normal_log_prob(value: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    return -0.5 * ((value - mean) / log_scale.exp()) ** 2 - log_scale - 0.5 * math.log(2 * math.pi)


class GaussianBaseline(nn.Module):
    """A baseline for NVIL."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x[:, None])[:, 0]


def parameter_gradients(loss: Tensor, module: nn.Module) -> dict[str, Tensor]:
    """Gradient of a scalar in all of a module's parameters, zero where there is none."""
    names, values = zip(*module.named_parameters(), strict=True)
    return dict(zip(names, grad(loss, values, materialize_grads=True, retain_graph=True), strict=True))


def flat_gradient(loss: Tensor, module: nn.Module) -> Tensor:
    """The same as one vector."""
    return torch.cat([g.flatten() for g in parameter_gradients(loss, module).values()])


# -- which arguments the estimators take ---------------------------------------------------------------

PAIRS = ("log_p", "log_q", "log_p_pair", "log_q_pair", "score")
# name: (function, names of [K, B] arguments, names of [B] arguments, smallest K)
ESTIMATORS = {
    "wake_theta": (estimators.wake_theta_loss, ("log_p", "log_q"), (), 1),
    "wake_phi": (estimators.wake_phi_loss, ("log_p", "log_q"), (), 1),
    "wake_phi_centred": (
        lambda log_p, log_q: estimators.wake_phi_loss(log_p, log_q, center_weights=True),
        ("log_p", "log_q"),
        (),
        2,
    ),
    "wake_phi_defensive": (estimators.wake_phi_loss, ("log_p", "log_q", "log_proposal"), (), 1),
    "sleep_phi": (estimators.sleep_phi_loss, ("log_q",), (), 1),
    "iwae": (estimators.iwae_loss, ("log_p", "log_q"), (), 1),
    "reinforce": (estimators.reinforce_loss, ("log_p", "log_q"), (), 1),
    "vimco": (estimators.vimco_loss, ("log_p", "log_q"), (), 2),
    "vimco_arithmetic": (
        lambda log_p, log_q: estimators.vimco_loss(log_p, log_q, mean="arithmetic"),
        ("log_p", "log_q"),
        (),
        2,
    ),
    "nvil": (estimators.nvil_loss, ("log_p", "log_q"), ("baseline",), 1),
    "nvil_scaled": (
        lambda log_p, log_q, baseline: estimators.nvil_loss(log_p, log_q, baseline, scale_signal=True),
        ("log_p", "log_q"),
        ("baseline",),
        1,
    ),
    "ovis": (estimators.ovis_loss, ("log_p", "log_q"), (), 2),
    "rloo": (estimators.rloo_loss, ("log_p", "log_q"), (), 2),
    "muprop": (estimators.muprop_loss, ("log_p", "log_q", "expansion"), ("expected",), 1),
    "disarm": (estimators.disarm_loss, PAIRS, (), 1),
    "disarm_bound": (estimators.disarm_bound_loss, PAIRS, (), 1),
    "reinforce_mixed": (estimators.reinforce_loss, ("log_p", "log_q", "log_q_score"), (), 1),
    "vimco_mixed": (estimators.vimco_loss, ("log_p", "log_q", "log_q_score"), (), 2),
    "nvil_mixed": (estimators.nvil_loss, ("log_p", "log_q", "log_q_score"), ("baseline",), 1),
    "relax": (estimators.relax_loss, ("log_p", "log_q"), ("c", "c_conditional", "c_bracket"), 1),
    "stl": (estimators.stl_loss, ("log_p", "log_q", "log_w_path"), (), 1),
    "dreg": (estimators.dreg_loss, ("log_p", "log_q", "log_w_path"), (), 1),
    "rws_dreg": (estimators.rws_dreg_loss, ("log_p", "log_q", "log_w_path"), (), 1),
    "tvo": (lambda log_p, log_q: estimators.tvo_loss(log_p, log_q, PARTITION), ("log_p", "log_q"), (), 2),
    "tvo_right": (
        lambda log_p, log_q: estimators.tvo_loss(log_p, log_q, PARTITION, rule="right"),
        ("log_p", "log_q"),
        (),
        2,
    ),
}
PARTITION = torch.tensor([0.0, 0.1, 0.5, 1.0])


def random_arguments(name: str, num_particles: int = 4, batch: int = 3, seed: int = 0, dtype=torch.float64):
    """Arguments of an estimator by name, with gradients switched on."""
    _, per_particle, per_datum, _ = ESTIMATORS[name]
    generator = torch.Generator().manual_seed(seed)
    shapes = {n: (num_particles, batch) for n in per_particle} | {n: (batch,) for n in per_datum}
    return {
        n: (2 * torch.randn(*shape, generator=generator, dtype=dtype)).requires_grad_()
        for n, shape in shapes.items()
    }
