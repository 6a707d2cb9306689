r"""Attend, infer, repeat (Eslami et al. 2016) with a Bernoulli likelihood, as in paper section 4.1.

With ``pixel_sd`` the likelihood is normal and pixels are grey, as in the original.

A scene has n objects, 0 to 3; object t has a place ``where`` (scales and shifts of its box, as
logits) and a look ``what``.  Only objects that are there cost anything: both networks gather the
present ones from all particles into one list of rows, work on that, and add the results back.  The
list is as long as the samples have it.  Without ``packed`` all objects are worked on and absent ones are
masked out: then shapes are fixed, as ``vmap``, ``torch.compile`` and a GPU's graphs want them.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rwslib.models.vae import check_pixels, normal_log_prob
from rwslib.noise import Noise

CANVAS = 50
GLIMPSE = 20
MAX_OBJECTS = 3
WHAT_SIZE = 50
WHERE_SIZE = 4  # logits of the scales (x, y), then of the shifts (x, y)
MIN_SCALE = 1e-4
MIN_SD = 1e-2  # of q's normal distributions


class Latents(NamedTuple):
    """The latents of a scene; entries of absent objects are zero and count for nothing.

    Attributes:
        count: the number n of objects, int64 ``[K, B]``.
        where: ``[K, B, 3, 4]``.
        what: ``[K, B, 3, 50]``.
    """

    count: Tensor
    where: Tensor
    what: Tensor


def scales_and_shifts(where: Tensor) -> tuple[Tensor, Tensor]:
    """Scales in (0, 1) and shifts in (-1, 1) of boxes, ``[..., 4]`` -> two of ``[..., 2]``, x before y.

    In coordinates from -1 to 1 a box has its centre at the shift and reaches a scale to either side.
    """
    return torch.sigmoid(where[..., :2]).clamp_min(MIN_SCALE), torch.tanh(where[..., 2:])


def _tents(num_targets: int, num_sources: int, scale: Tensor, shift: Tensor) -> Tensor:
    """Weights of bilinear interpolation along one axis, ``[P]`` each -> ``[P, targets, sources]``.

    Target u in -1..1 reads the source at ``scale * u + shift``; -1 and 1 are the centres of the border
    pixels (``align_corners=True`` in PyTorch), and outside is zero.
    """
    target = torch.linspace(-1, 1, num_targets, dtype=scale.dtype, device=scale.device)
    pixel = torch.arange(num_sources, dtype=scale.dtype, device=scale.device)
    position = (scale[:, None] * target + shift[:, None] + 1) * ((num_sources - 1) / 2)
    return (1 - (position[..., None] - pixel).abs()).clamp_min(0)


def crop(images: Tensor, where: Tensor, size: int = GLIMPSE) -> Tensor:
    """What is in the boxes: ``images [P, H, W]``, ``where [P, 4]`` -> ``[P, size, size]``.

    The same as ``affine_grid`` and ``grid_sample`` with ``align_corners=True``, as two matrix products:
    bilinear interpolation is separable when nothing rotates.
    """
    (sx, sy), (tx, ty) = (pair.unbind(dim=-1) for pair in scales_and_shifts(where))
    rows, columns = _tents(size, images.shape[-2], sy, ty), _tents(size, images.shape[-1], sx, tx)
    return rows @ images @ columns.mT


def paste(glimpses: Tensor, where: Tensor, size: int = CANVAS) -> Tensor:
    """The inverse of ``crop``: glimpses ``[P, h, w]`` on an empty canvas, ``[P, size, size]``."""
    (sx, sy), (tx, ty) = (pair.unbind(dim=-1) for pair in scales_and_shifts(where))
    rows = _tents(size, glimpses.shape[-2], 1 / sy, -ty / sy)
    columns = _tents(size, glimpses.shape[-1], 1 / sx, -tx / sx)
    return rows @ glimpses @ columns.mT


def boxes(where: Tensor, size: int = CANVAS) -> Tensor:
    """What ``crop`` and ``paste`` cover, ``(left, top, width, height)`` in pixels, of ``where [..., 4]``.

    Pixel i reaches from i to i + 1.  The outer pixels of a glimpse have their centres at the scale, so that
    the box ends half a glimpse pixel beyond.
    """
    scale, shift = scales_and_shifts(where)
    half = (size - 1) / 2  # pixels for each unit of shift
    width = half * scale * 2 * GLIMPSE / (GLIMPSE - 1)
    return torch.cat([half * (1 + shift) + 0.5 - width / 2, width], dim=-1)


def left_to_right(z: Latents) -> Latents:
    """The same objects in the order of their boxes' centres, absent ones last; any leading shape."""
    there = torch.arange(MAX_OBJECTS, device=z.count.device) < z.count[..., None]
    order = z.where[..., 2].where(there, torch.inf).argsort(dim=-1, stable=True)[..., None]
    where, what = (part.gather(-2, order.expand_as(part)) for part in (z.where, z.what))
    return Latents(z.count, where, what)


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """ELU network, linear at the end, from PyTorch's own start.

    The authors' larger start (sd ``1/sqrt(fan_in)``) scatters q's first boxes over the canvas, one place
    per image; WW, which has no path derivative, hardly moves them from there.
    """
    layers = [module for a, b in pairwise(sizes) for module in (nn.Linear(a, b), nn.ELU())]
    return nn.Sequential(*layers[:-1])


def _add_objects(start: Tensor, z: Latents, of_objects: Callable, packed: bool) -> Tensor:
    """Add to ``start [K * B, ...]`` what ``of_objects(where, what) -> [P, ...]`` gives for those present."""
    there = (torch.arange(MAX_OBJECTS, device=z.count.device) < z.count[..., None]).flatten()
    where, what = z.where.flatten(0, 2), z.what.flatten(0, 2)
    if packed:
        present = there.nonzero().squeeze(1)
        return start.index_add(0, present // MAX_OBJECTS, of_objects(where[present], what[present]))
    each = of_objects(*(torch.where(there[:, None], part, 0) for part in (where, what)))
    return start + (each * there.view(-1, *[1] * (each.ndim - 1))).unflatten(0, (-1, MAX_OBJECTS)).sum(dim=1)


class GenerativeModel(nn.Module):
    r""":math:`p(n) \prod_{t \le n} p(\mathrm{where}_t) p(\mathrm{what}_t) \prod_i \mathrm{Bernoulli}(x_i)`.

    The pixels' logits are a background plus what the decoder draws in each object's box.  With
    ``pixel_sd`` a pixel is normal around the probability that the logit stands for.

    Args:
        count_success: p(n) starts as the geometric distribution with this probability of one more
            object, cut off at 3 and normalised.
        learn_count: learn p(n) with theta (the authors' ``learnable_step_prior``) or keep it.
        scale_prior: mean and standard deviation of the scale logits.  The authors' code has (0, 1); a
            tight prior around the size of a digit keeps one box from swallowing two digits.
        background: logit of an empty pixel at the start.  The authors' code has -88, which makes one
            stray pixel cost 88 nats.
        ink: logit that a box adds at the start.
        pixel_sd: standard deviation of the normal likelihood of Eslami et al. (0.3 in public code); None is
            the Bernoulli likelihood.
        packed: work on the objects that are there alone; False masks the others out, the same up to rounding.
        in_order: hand out the objects of samples from left to right.  Objects are exchangeable under p, so
            this changes no picture and no density, but q need not guess which one comes first.
    """

    def __init__(
        self,
        count_success: float = 0.1,
        learn_count: bool = True,
        scale_prior: tuple[float, float] = (-0.4, 0.1),
        background: float = -5.0,
        ink: float = 4.0,
        pixel_sd: float | None = None,
        packed: bool = True,
        in_order: bool = False,
    ):
        super().__init__()
        self.pixel_sd, self.packed, self.in_order = pixel_sd, packed, in_order
        start = torch.arange(MAX_OBJECTS + 1) * math.log(count_success)
        if learn_count:
            self.count_logits = nn.Parameter(start.float())
        else:
            self.register_buffer("count_logits", start.float())
        self.background = nn.Parameter(torch.tensor(float(background)))
        self.decoder = mlp([WHAT_SIZE, 256, 256, GLIMPSE**2])
        with torch.no_grad():
            self.decoder[-1].weight.mul_(0.25)  # the authors' output multiplier, at the start
            self.decoder[-1].bias.fill_(ink)
        mean, sd = scale_prior
        self.register_buffer("where_mean", torch.tensor([mean, mean, 0.0, 0.0]), persistent=False)
        self.register_buffer("where_log_sd", torch.tensor([sd, sd, 1.0, 1.0]).log(), persistent=False)

    def log_count(self) -> Tensor:
        """``log p(n)``, ``[4]``."""
        return torch.log_softmax(self.count_logits, dim=0)

    def draw(self, z: Latents) -> Tensor:
        """Logits of the pixels, ``[K, B, 2500]``."""

        def objects(where: Tensor, what: Tensor) -> Tensor:
            return paste(self.decoder(what).view(-1, GLIMPSE, GLIMPSE), where).flatten(1)

        empty = self.background.expand(z.count.numel(), CANVAS**2)
        return _add_objects(empty, z, objects, self.packed).view(*z.count.shape, CANVAS**2)

    def log_prior(self, z: Latents) -> Tensor:
        """``log p(z)``, ``[K, B]`` in nats."""

        def objects(where: Tensor, what: Tensor) -> Tensor:
            return normal_log_prob(where, self.where_mean, self.where_log_sd) + normal_log_prob(what)

        count, log_count = z.count.flatten(), self.log_count()
        if self.packed:
            count = log_count[count]
        else:  # a sum, whose gradient is the same every time on a GPU, as that of indexing is not
            is_count = count[:, None] == torch.arange(MAX_OBJECTS + 1, device=count.device)
            count = (log_count * is_count).sum(dim=1)
        return _add_objects(count, z, objects, self.packed).view(z.count.shape)

    def log_joint(self, z: Latents, x: Tensor) -> Tensor:
        """``log p(z, x)``: binary, or grey, ``x [B, 2500]`` -> ``[K, B]`` in nats."""
        check_pixels(x, CANVAS**2, slack=10 * (self.pixel_sd or 0))
        logits = self.draw(z)
        if self.pixel_sd is not None:
            return self.log_prior(z) + normal_log_prob(x, torch.sigmoid(logits), math.log(self.pixel_sd))
        loss = F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none")
        return self.log_prior(z) - loss.sum(dim=-1)

    forward = log_joint

    def sample_prior(self, log_count: Tensor, shape: tuple[int, ...], noise: Noise) -> Latents:
        """Latents ``[*shape, ...]`` from the prior, with another distribution of the count if wanted."""
        edges = log_count.detach().softmax(dim=0).cumsum(dim=0)[:-1]
        count = (noise.uniform(*shape)[..., None] > edges).sum(dim=-1)
        there = (torch.arange(MAX_OBJECTS, device=count.device) < count[..., None])[..., None]
        where = self.where_mean + self.where_log_sd.exp() * noise.normal(*shape, MAX_OBJECTS, WHERE_SIZE)
        return Latents(count, where * there, noise.normal(*shape, MAX_OBJECTS, WHAT_SIZE) * there)

    def sample(self, num: int, noise: Noise, log_count: Tensor | None = None) -> tuple[Latents, Tensor]:
        """Ancestral samples: latents ``[num, ...]`` and pixels ``x [num, 2500]``, without gradient.

        Args:
            log_count: ``[4]``, the distribution of the count; None is the model's own.
        """
        with torch.no_grad():
            z = self.sample_prior(self.log_count() if log_count is None else log_count, (num,), noise)
            probs = torch.sigmoid(self.draw(Latents(*(part[None] for part in z)))[0])
            z = left_to_right(z) if self.in_order else z
            if self.pixel_sd is not None:
                return z, probs + self.pixel_sd * noise.normal(*probs.shape)
            return z, (noise.uniform(*probs.shape) < probs).to(probs.dtype)

    def dream(self, num: int, noise: Noise) -> tuple[Latents, Tensor]:
        """As ``sample``, with every count equally often, whatever the model's own p(n)."""
        return self.sample(num, noise, torch.zeros_like(self.count_logits))

    def sample_defensive(self, x: Tensor, num_particles: int, noise: Noise) -> tuple[Latents, Tensor]:
        """Trajectories ``[K, B, ...]`` with a uniform count and prior objects, and their log-density."""
        with torch.no_grad():
            uniform = torch.zeros_like(self.count_logits).log_softmax(dim=0)
            z = self.sample_prior(uniform, (num_particles, len(x)), noise)
            return z, self.log_prior(z) - self.log_count()[z.count] + uniform[0]


class InferenceNetwork(nn.Module):
    r"""The recurrent :math:`q_\phi(z | x)`: presence, where and what, one object after the other.

    Args:
        scale_bias: where q's scale logits start.
        shift_sd: standard deviation of q's shift logits at the start; how far it looks around for digits.
        presence_logit: where the logit of "one more object" starts, whatever the image.
        packed: as in ``GenerativeModel``.
    """

    def __init__(
        self,
        scale_bias: float = -0.4,
        shift_sd: float = 0.5,
        presence_logit: float = 0.5,
        hidden: int = 256,
        packed: bool = True,
    ):
        super().__init__()
        self.packed = packed
        self.encoder = nn.Sequential(mlp([CANVAS**2, hidden, hidden]), nn.ELU())
        self.start = nn.Parameter(torch.zeros(hidden))
        self.from_image = mlp([hidden, hidden])
        self.from_state = mlp([hidden, hidden])
        self.from_object = mlp([WHAT_SIZE + WHERE_SIZE, hidden])
        self.presence = mlp([hidden, 128, 64, 1])
        self.where = mlp([hidden, hidden, hidden, 2 * WHERE_SIZE])
        self.what = mlp([GLIMPSE**2, hidden, hidden, 2 * WHAT_SIZE])
        with torch.no_grad():
            self.presence[-1].weight.zero_()
            self.presence[-1].bias.fill_(presence_logit)
            self.what[-1].bias.zero_()
            self.where[-1].bias.copy_(torch.tensor([scale_bias, scale_bias, 0.0, 0.0, *4 * [-3.0]]))
            self.where[-1].bias[-2:] = math.log(math.expm1(shift_sd - MIN_SD))

    def _walk(self, x: Tensor, num_particles: int, choose_presence: Callable, choose: Callable):
        """Go through the steps; a row is a flat index into ``[K, B]``.

        Args:
            choose_presence: ``(step, rows, logit) -> bool [P]``, which rows have one more object.
            choose: ``(kind, step, rows, mean, log_sd) -> value [P, D]``.

        Returns:
            Latents, ``log q(n | path)`` and ``log q`` of everything, ``[K, B]`` each.
        """
        check_pixels(x, CANVAS**2, slack=math.inf)  # the dreams of a normal likelihood are beyond 0 and 1
        batch, total = len(x), num_particles * len(x)
        image = self.from_image(self.encoder(x))
        rows = torch.arange(total, device=x.device)
        state = torch.tanh(image + self.from_state(self.start))  # the same for all particles of an image
        logit, moments = self.presence(state).squeeze(1), self.where(state)
        log_q_count = log_q_objects = x.new_zeros(total)
        count = torch.zeros_like(rows)
        alive = torch.ones_like(rows, dtype=torch.bool)  # of ``rows``, those that all objects so far have
        what_t = where_t = None  # of the object before, for the rows that have one
        where, what = [], []

        def of_images(values: Tensor) -> Tensor:
            if self.packed:
                return values[rows % batch]
            return values.expand(num_particles, *values.shape).flatten(0, 1)

        def add(to: Tensor, values: Tensor) -> Tensor:
            return to.index_add(0, rows, values) if self.packed else to + values * alive

        def spread(values: Tensor) -> Tensor:
            if self.packed:
                return values.new_zeros(total, values.shape[1]).index_put((rows,), values)
            return values * alive[:, None]

        for step in range(MAX_OBJECTS):
            if step == 0:
                logit, moments, state = map(of_images, (logit, moments, state))
            else:
                found = self.from_object(torch.cat([what_t, where_t], dim=-1))
                state = torch.tanh(of_images(image) + self.from_state(state) + found)
                logit = self.presence(state).squeeze(1)
            there = choose_presence(step, rows, logit)
            log_q_count = add(log_q_count, F.logsigmoid(torch.where(there, logit, -logit)))
            alive = alive & there
            if self.packed:
                kept = there.nonzero().squeeze(1)
                rows, state, alive = rows[kept], state[kept], alive[kept]
                moments = moments[kept] if step == 0 else None
            moments = moments if step == 0 else self.where(state)
            count = add(count, torch.ones_like(rows))
            where_t, log_q_where = self._choose(choose, "where", step, rows, moments)
            glimpses = crop(of_images(x.view(batch, CANVAS, CANVAS)), where_t).flatten(1)
            what_t, log_q_what = self._choose(choose, "what", step, rows, self.what(glimpses))
            log_q_objects = add(log_q_objects, log_q_where + log_q_what)
            where.append(spread(where_t))
            what.append(spread(what_t))
        shape = (num_particles, batch)
        parts = (count, torch.stack(where, dim=1), torch.stack(what, dim=1))
        z = Latents(*(part.unflatten(0, shape) for part in parts))
        return z, log_q_count.view(shape), (log_q_count + log_q_objects).view(shape)

    @staticmethod
    def _choose(choose: Callable, kind: str, step: int, rows: Tensor, moments: Tensor):
        mean, raw = moments.chunk(2, dim=-1)
        log_sd = (F.softplus(raw) + MIN_SD).log()
        value = choose(kind, step, rows, mean, log_sd)
        return value, normal_log_prob(value, mean, log_sd)

    def _draw(self, x: Tensor, num_particles: int, noise: Noise, path: bool):
        total = num_particles * len(x)
        uniform = noise.uniform(MAX_OBJECTS, total)
        normal = {
            "where": noise.normal(MAX_OBJECTS, total, WHERE_SIZE),
            "what": noise.normal(MAX_OBJECTS, total, WHAT_SIZE),
        }

        def choose(kind: str, step: int, rows: Tensor, mean: Tensor, log_sd: Tensor) -> Tensor:
            value = mean + log_sd.exp() * normal[kind][step][rows]
            return value if path else value.detach()

        return self._walk(
            x, num_particles, lambda step, rows, logit: uniform[step][rows] < torch.sigmoid(logit), choose
        )

    def sample(self, x: Tensor, num_particles: int, noise: Noise) -> tuple[Latents, Tensor]:
        """Particles without path derivative, and ``log q [K, B]`` at them with phi's gradient."""
        z, _, log_q = self._draw(x, num_particles, noise, path=False)
        return z, log_q

    def sample_mixed(self, x: Tensor, num_particles: int, noise: Noise) -> tuple[Latents, Tensor, Tensor]:
        """Particles whose ``where`` and ``what`` are reparameterised.

        Returns:
            Latents, ``log q [K, B]``, and its discrete part ``log q(n | path) [K, B]``, for methods that
            use the score function for the count alone.
        """
        z, log_q_count, log_q = self._draw(x, num_particles, noise, path=True)
        return z, log_q, log_q_count

    def log_prob(self, z: Latents, x: Tensor) -> Tensor:
        """``log q(z | x)`` of any latents, ``[K, B]``."""
        count = z.count.flatten()
        there = (torch.arange(MAX_OBJECTS, device=count.device) < count[:, None])[..., None]
        values = {
            "where": torch.where(there, z.where.flatten(0, 1), 0),
            "what": torch.where(there, z.what.flatten(0, 1), 0),
        }
        _, _, log_q = self._walk(
            x,
            len(z.count),
            lambda step, rows, logit: count[rows] > step,
            lambda kind, step, rows, mean, log_sd: values[kind][rows, step],
        )
        return log_q

    forward = log_prob
