"""The one-stochastic-layer model of Burda et al. (2016), which the paper trains in section 4.2."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rwslib.noise import Noise

LATENT_SIZE = 50
NUM_PIXELS = 28 * 28


def check_pixels(x: Tensor, num_pixels: int, slack: float = 0.0) -> None:
    """Refuse images that are not what a density of pixels takes; inside compiled code all pass.

    Args:
        x: should be floats from 0 to 1, ``[B, num_pixels]``.
        slack: how far below 0 and above 1 pixels may be.

    Raises:
        ValueError: they are not.
    """
    if torch.compiler.is_compiling():
        return
    fits, values = x.is_floating_point() and x.shape[-1:] == (num_pixels,), ""
    try:
        low, high = (float(value) for value in x.detach().aminmax())
        fits, values = fits and -slack <= low and high <= 1 + slack, f" from {low:g} to {high:g}"
    except RuntimeError:  # inside vmap no value can be read, and without images there is none
        pass
    if not fits:
        dtype = str(x.dtype).removeprefix("torch.")
        raise ValueError(
            f"x must be pixels from 0 to 1 (see data.binarize), float [B, {num_pixels}], "
            f"got {dtype} {list(x.shape)}{values}"
        )


class MLP(nn.Module):
    """Tanh network whose last layer is linear, initialised as Glorot & Bengio (2010): uniform, zero biases.

    Args:
        sizes: of the input, the hidden layers and the output.
        matmul_dtype: None is that of the parameters; bfloat16 rounds the factors and results of the matrix
            products (their sums, the biases and everything between are float32); several times faster
            where the processor has bfloat16 units.
        mean: of the coins whose logits are the output; the last bias starts there, or at zeros.
    """

    def __init__(
        self, sizes: Sequence[int], matmul_dtype: torch.dtype | None = None, mean: Tensor | None = None
    ):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.matmul_dtype = matmul_dtype
        for layer in self.layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        if mean is not None:
            with torch.no_grad():
                self.layers[-1].bias.copy_(torch.logit(mean.clamp(1e-3, 1 - 1e-3)))

    def forward(self, h: Tensor) -> Tensor:
        """``[..., D_in]`` -> ``[..., D_out]``."""
        for i, layer in enumerate(self.layers):
            h = torch.tanh(h) if i else h
            if self.matmul_dtype in (None, h.dtype):
                h = layer(h)
            else:
                product = F.linear(h.to(self.matmul_dtype), layer.weight.to(self.matmul_dtype))
                h = product.to(layer.bias.dtype) + layer.bias
        return h


def normal_log_prob(z: Tensor, mean: Tensor | float = 0.0, log_sd: Tensor | float = 0.0) -> Tensor:
    """Log-density of independent normals, summed over the last axis."""
    log_sd = torch.as_tensor(log_sd, dtype=z.dtype, device=z.device)
    scaled = (z - mean) * torch.exp(-log_sd)
    return -(0.5 * scaled.square() + log_sd + 0.5 * math.log(2 * math.pi)).sum(dim=-1)


def bernoulli_log_prob(x: Tensor, logits: Tensor) -> Tensor:
    """Log-probability of independent coins, summed over the last axis; stable for logits of any size."""
    # log rather than log1p: as good here, where only the sum counts, and much faster
    size = logits.abs()  # whose derivative at 0 is 0, which makes the sum's x - 1/2 there
    return ((x - 0.5) * logits - 0.5 * size - torch.log(1 + torch.exp(-size))).sum(dim=-1)


class GenerativeModel(nn.Module):
    r""":math:`p_\theta(z, x) = \mathcal N(z; 0, I) \prod_i \mathrm{Bernoulli}(x_i; \sigma(\eta_i(z)))`.

    Args:
        pixel_mean: mean intensity of the training data ``[D]``; the output bias starts at its logit,
            so that training starts from the data's mean image.  None starts at one half.
        latent_size: of z.
        hidden: sizes of the tanh layers.
        num_pixels: the number D of pixels.
        matmul_dtype: see ``MLP``.
    """

    def __init__(
        self,
        pixel_mean: Tensor | None = None,
        latent_size: int = LATENT_SIZE,
        hidden: Sequence[int] = (200, 200),
        num_pixels: int = NUM_PIXELS,
        matmul_dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.latent_size = latent_size
        self.decoder = MLP([latent_size, *hidden, num_pixels], matmul_dtype, pixel_mean)

    def log_likelihood(self, z: Tensor, x: Tensor) -> Tensor:
        """``log p(x | z)``: ``z [K, B, L]``, binary ``x [B, D]`` -> ``[K, B]`` in nats."""
        logits = self.decoder(z)
        check_pixels(x, logits.shape[-1])
        return bernoulli_log_prob(x, logits)

    def log_joint(self, z: Tensor, x: Tensor) -> Tensor:
        """``log p(z, x)``, ``[K, B]`` in nats."""
        return normal_log_prob(z) + self.log_likelihood(z, x)

    forward = log_joint

    def sample(self, num: int, noise: Noise) -> tuple[Tensor, Tensor]:
        """Ancestral samples ``z [num, L]`` and binary ``x [num, D]``, without gradient."""
        z = noise.normal(num, self.latent_size)
        probs = torch.sigmoid(self.decoder(z))
        return z, (noise.uniform(*probs.shape) < probs).to(z.dtype)


class InferenceNetwork(nn.Module):
    r""":math:`q_\phi(z | x) = \mathcal N(z; \mu_\phi(x), \mathrm{diag}(\sigma_\phi^2(x)))`.

    Args:
        latent_size, hidden, num_pixels, matmul_dtype: as in ``GenerativeModel``.
    """

    def __init__(
        self,
        latent_size: int = LATENT_SIZE,
        hidden: Sequence[int] = (200, 200),
        num_pixels: int = NUM_PIXELS,
        matmul_dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.body = MLP([num_pixels, *hidden], matmul_dtype)
        self.mean = MLP([hidden[-1], latent_size], matmul_dtype)
        self.log_sd = MLP([hidden[-1], latent_size], matmul_dtype)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of z, ``[B, L]`` each."""
        check_pixels(x, self.body.layers[0].in_features)
        h = torch.tanh(self.body(x))
        return self.mean(h), self.log_sd(h)

    def log_prob(self, z: Tensor, x: Tensor) -> Tensor:
        """``log q(z | x)``: ``z [K, B, L]``, ``x [B, D]`` -> ``[K, B]`` in nats."""
        return normal_log_prob(z, *self.moments(x))

    forward = log_prob

    def rsample(self, x: Tensor, num_particles: int, noise: Noise) -> tuple[Tensor, Tensor]:
        """Reparameterised particles ``z [K, B, L]`` and ``log q`` at them ``[K, B]``."""
        mean, log_sd = self.moments(x)
        z = mean + log_sd.exp() * noise.normal(num_particles, *mean.shape)
        return z, normal_log_prob(z, mean, log_sd)

    def sample(self, x: Tensor, num_particles: int, noise: Noise) -> tuple[Tensor, Tensor]:
        """Particles ``z [K, B, L]`` without path derivative, and ``log q`` at them with phi's gradient."""
        mean, log_sd = self.moments(x)
        z = (mean + log_sd.exp() * noise.normal(num_particles, *mean.shape)).detach()
        return z, normal_log_prob(z, mean, log_sd)
