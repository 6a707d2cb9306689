"""Sigmoid belief networks: layers of coins, the discrete model that estimators are compared on.

One layer is the discrete VAE of Tucker et al. (2017) and of what followed it; several are the network of
Mnih & Rezende (2016).  Coins enter the next layer as -1 and 1.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rwslib.models.vae import MLP, NUM_PIXELS, bernoulli_log_prob, check_pixels
from rwslib.noise import Noise

NUM_LATENTS = 200


def sides(logits: Tensor) -> Tensor:
    """Log-probabilities of both sides of coins, ``[...]`` -> ``[..., 2]``, sides outermost in memory."""
    return torch.stack([F.logsigmoid(-logits), F.logsigmoid(logits)]).movedim(0, -1)


def _ones(z: Tensor, like: Tensor) -> Tensor:
    """The second side's share: ``z [K, B, D]`` of coins or ``[K, B, D, 2]`` of points -> ``[K, B, D]``."""
    return z[..., 1] if z.ndim == 4 else z.to(like.dtype)


def _throw(logits: Tensor, noise: Noise, *lead: int) -> Tensor:
    """Coins 0 and 1 as floating point numbers, without gradient; ``lead`` comes before the logits' shape."""
    uniform = noise.uniform(*lead, *logits.shape)
    return (uniform < torch.sigmoid(logits.detach())).to(logits.dtype)


class GenerativeModel(nn.Module):
    r""":math:`p_\theta(z, x) = p(z_1) \prod_{l > 1} p(z_l | z_{l-1})\, p(x | z_L)`, all Bernoulli.

    Latents of all layers lie behind each other, the top one first: ``z [K, B, D]``.

    Args:
        latents: coins of each layer, the top one first.
        hidden: tanh layers of the decoder of images; none makes it linear.
        pixel_mean: mean intensity of the training data ``[num_pixels]``, where the output bias starts.
        num_pixels: of an image.
    """

    def __init__(
        self,
        latents: Sequence[int] = (NUM_LATENTS,),
        hidden: Sequence[int] = (),
        pixel_mean: Tensor | None = None,
        num_pixels: int = NUM_PIXELS,
    ):
        super().__init__()
        self.latents = tuple(latents)
        self.top = nn.Parameter(torch.zeros(self.latents[0]))
        self.layers = nn.ModuleList(MLP(sizes) for sizes in pairwise(self.latents))
        self.decoder = MLP([self.latents[-1], *hidden, num_pixels], mean=pixel_mean)

    def log_prior(self) -> Tensor:
        """``log p(z)`` of both sides of every coin of the only layer, ``[D, 2]``."""
        return sides(self.top)

    def log_likelihood(self, z: Tensor, x: Tensor) -> Tensor:
        """``log p(x | z)`` of the lowest layer: coins ``[K, B, D]`` or points ``[K, B, D, 2]``."""
        logits = self.decoder(2 * _ones(z, self.top) - 1)
        check_pixels(x, logits.shape[-1])
        return bernoulli_log_prob(x, logits)

    def log_joint(self, z: Tensor, x: Tensor) -> Tensor:
        """``log p(z, x)``: coins ``[K, B, D]``, of one layer also points ``[K, B, D, 2]`` -> ``[K, B]``."""
        above, *below = _ones(z, self.top).split(self.latents, dim=-1)
        log_p = bernoulli_log_prob(above, self.top)
        for layer, ones in zip(self.layers, below, strict=True):
            log_p = log_p + bernoulli_log_prob(ones, layer(2 * above - 1))
            above = ones
        return log_p + self.log_likelihood(above, x)

    forward = log_joint

    def sample(self, num: int, noise: Noise) -> tuple[Tensor, Tensor]:
        """Ancestral samples ``z [num, D]`` and binary ``x [num, num_pixels]``, without gradient."""
        coins = [_throw(self.top, noise, num)]
        for layer in self.layers:
            coins.append(_throw(layer(2 * coins[-1] - 1), noise))
        return torch.cat(coins, dim=-1), _throw(self.decoder(2 * coins[-1] - 1), noise)

    def sample_defensive(self, x: Tensor, num_particles: int, noise: Noise) -> tuple[Tensor, Tensor]:
        """Fair coins ``z [K, B, D]`` and their log-probability, for the defensive mixture of delta-WW."""
        fair = torch.zeros(sum(self.latents), dtype=self.top.dtype, device=self.top.device)
        z = _throw(fair, noise, num_particles, len(x))
        return z, bernoulli_log_prob(z, fair)


class InferenceNetwork(nn.Module):
    r""":math:`q_\phi(z | x) = q(z_L | x) \prod_l q(z_{l-1} | z_l)`, all Bernoulli, from the image upwards.

    Args:
        latents, hidden, num_pixels: as in ``GenerativeModel``; the encoder of images has ``hidden`` reversed.
    """

    def __init__(
        self,
        latents: Sequence[int] = (NUM_LATENTS,),
        hidden: Sequence[int] = (),
        num_pixels: int = NUM_PIXELS,
    ):
        super().__init__()
        self.latents = tuple(latents)
        self.encoder = MLP([num_pixels, *reversed(hidden), self.latents[-1]])
        self.layers = nn.ModuleList(MLP(sizes) for sizes in pairwise(reversed(self.latents)))

    def logits(self, x: Tensor) -> Tensor:
        """Of the lowest layer's coins, ``[B, D]``."""
        check_pixels(x, self.encoder.layers[0].in_features)
        return self.encoder(2 * x - 1)

    def log_probs(self, x: Tensor) -> Tensor:
        """``log q(z | x)`` of both sides of every coin of the only layer, ``[B, D, 2]``."""
        return sides(self.logits(x))

    def log_prob(self, z: Tensor, x: Tensor) -> Tensor:
        """``log q(z | x)``: coins ``[K, B, D]``, of one layer also points ``[K, B, D, 2]`` -> ``[K, B]``."""
        *above, below = _ones(z, self.encoder.layers[0].bias).split(self.latents, dim=-1)
        log_q = bernoulli_log_prob(below, self.logits(x))
        for layer, ones in zip(self.layers, reversed(above), strict=True):
            log_q = log_q + bernoulli_log_prob(ones, layer(2 * below - 1))
            below = ones
        return log_q

    forward = log_prob

    def sample(self, x: Tensor, num_particles: int, noise: Noise) -> tuple[Tensor, Tensor]:
        """Particles ``z [K, B, D]`` without path derivative, and ``log q`` at them with phi's gradient."""
        logits = self.logits(x)
        coins = [_throw(logits, noise, num_particles)]
        log_q = bernoulli_log_prob(coins[0], logits)
        for layer in self.layers:
            logits = layer(2 * coins[0] - 1)
            coins.insert(0, _throw(logits, noise))
            log_q = log_q + bernoulli_log_prob(coins[0], logits)
        return torch.cat(coins, dim=-1), log_q


class RelaxControlVariate(nn.Module):
    """A free control variate of an image and the Gumbel variates of its coins, averaged over particles."""

    def __init__(self, num_latents: int = NUM_LATENTS, num_pixels: int = NUM_PIXELS):
        super().__init__()
        self.of_image, self.of_coins = MLP([num_pixels, 50]), MLP([num_latents, 50])
        self.out = MLP([50, 1])

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        """``x [B, num_pixels]``, Gumbel variates ``g [K, B, D, 2]`` -> ``[B]``."""
        h = self.of_image(2 * x - 1) + self.of_coins(torch.tanh((g[..., 1] - g[..., 0]) / 2))
        return self.out(torch.tanh(h)).squeeze(-1).mean(dim=0)


class Baseline(nn.Module):
    """NVIL's input-dependent baseline; its bias plays the running mean."""

    def __init__(self, num_pixels: int = NUM_PIXELS):
        super().__init__()
        self.layers = MLP([num_pixels, 100, 1])

    def forward(self, x: Tensor) -> Tensor:
        """``x [B, num_pixels]`` -> ``[B]`` in nats."""
        return 100 * self.layers(2 * x - 1).squeeze(-1)
