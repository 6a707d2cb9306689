"""What a method wants of a model, as protocols: nothing here is to be subclassed.

A generative model ``p``, an inference network ``q`` and a control variate are ``nn.Module``; that they
have the functions that a method calls, and that these return what is said here, is tried before training
starts.  K is the number of particles, B that of data, C that of categories.  Latents ``z`` and batches
``x`` are tensors or trees of them (``rwslib.trees``): every tensor of ``z`` leads with ``[K, B]``, every
one of ``x`` with ``[B]``.  Log-densities are in nats, floating point, summed over all other dimensions.
"""

from typing import Protocol

from torch import Tensor

from rwslib.trees import Tree


class RandomNumbers(Protocol):
    """Where a model takes all its random numbers from, for example ``rwslib.noise.Noise``."""

    def uniform(self, *shape: int) -> Tensor:
        """Uniform on (0, 1)."""

    def normal(self, *shape: int) -> Tensor:
        """Standard normal."""


class Generative(Protocol):
    """A generative model p; all methods call ``log_joint``, those with a sleep phase ``sample``.

    Pathwise methods (STL, DReG, RWS-DReG) and REBAR also call the module itself: let ``forward`` be
    ``log_joint``.
    """

    def log_joint(self, z: Tree, x: Tree) -> Tensor:
        """``log p(z, x)``, ``[K, B]``."""

    def sample(self, num: int, noise: RandomNumbers) -> tuple[Tree, Tree]:
        """Ancestral samples: ``z`` and ``x``, every tensor ``[num, ...]``."""


class DefensiveGenerative(Generative, Protocol):
    """A generative model with the proposal r of delta-WW."""

    def sample_defensive(self, x: Tree, num_particles: int, noise: RandomNumbers) -> tuple[Tree, Tensor]:
        """Particles of r without gradient, ``[K, B, ...]``, and ``log r`` at them, ``[K, B]``."""


class CategoricalGenerative(Generative, Protocol):
    """A generative model of categorical latents that also takes points of the simplex.

    ``log_joint`` takes ``z [K, B]`` of categories, or ``[K, B, D]`` of D latents; for REBAR, MuProp and
    the straight-through methods also ``[K, B, C]`` or ``[K, B, D, C]`` of points.
    """

    def log_prior(self) -> Tensor:
        """``log p(z)`` of every category, ``[C]`` or ``[D, C]``."""

    def log_likelihood(self, z: Tensor, x: Tree) -> Tensor:
        """``log p(x | z)`` at points of the simplex ``z [K, B, C]`` or ``[K, B, D, C]``, ``[K, B]``."""


class Inference(Protocol):
    """An inference network q; most methods call ``sample`` alone, the sleep phase and delta-WW ``log_prob``.

    Pathwise methods also call the module itself: let ``forward`` be ``log_prob``.
    """

    def sample(self, x: Tree, num_particles: int, noise: RandomNumbers) -> tuple[Tree, Tensor]:
        """Particles without path derivative ``[K, B, ...]``, and ``log q [K, B]`` with phi's gradient."""

    def log_prob(self, z: Tree, x: Tree) -> Tensor:
        """``log q(z | x)`` of any latents, ``[K, B]``."""


class ReparameterisedInference(Inference, Protocol):
    """An inference network with a path derivative (VAE, IWAE, STL, DReG, RWS-DReG)."""

    def rsample(self, x: Tree, num_particles: int, noise: RandomNumbers) -> tuple[Tree, Tensor]:
        """As ``sample``, with the path derivative of all that is random in z: a choice has none."""


class MixedInference(Inference, Protocol):
    """An inference network of latents of which only some have a path derivative (REINFORCE, VIMCO, NVIL)."""

    def sample_mixed(self, x: Tree, num_particles: int, noise: RandomNumbers) -> tuple[Tree, Tensor, Tensor]:
        """As ``rsample``, and the part of ``log q`` that belongs to the latents without path, ``[K, B]``."""


class CategoricalInference(Inference, Protocol):
    """An inference network of one categorical latent, or of D that are independent given x."""

    def log_probs(self, x: Tree) -> Tensor:
        """``log q(z | x)`` of every category, ``[B, C]`` or ``[B, D, C]``."""


class Baseline(Protocol):
    """NVIL's control variate."""

    def forward(self, x: Tree) -> Tensor:
        """A prediction of the bound, ``[B]`` in nats."""


class GumbelControlVariate(Protocol):
    """RELAX's control variate; REBAR's is ``rwslib.methods.RebarControlVariate``."""

    def forward(self, x: Tree, g: Tensor) -> Tensor:
        """A function of Gumbel variates ``g [K, B, C]`` or ``[K, B, D, C]``, ``[B]`` in nats."""
