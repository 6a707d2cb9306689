"""Where all randomness comes from: a seeded generator, or a tape of numbers drawn beforehand.

Models and methods ask a noise source for uniform and normal numbers instead of calling a global
generator.  That makes every run a function of its seed, and lets one compiled program train many
replicates, each reading its own tape.

A stream is named by a path of whole numbers.  Those of a run are (seed, replicate, step, purpose), where
the purpose is one of the constants below.  No run has seed 0, so a path that begins with 0 is free for
what all runs share, such as test data: it never meets a training stream.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

# purposes; a change changes runs' numbers
TRAINING, GRADIENTS, ORDER, CURVES, FINALS, SAMPLES, GLOBALS, METRICS = range(8)


def check_seed(seed: int) -> None:
    """Refuse a seed that is not a run's own.

    Raises:
        ValueError: it is not a whole number from 1 to 2**32 - 1.
    """
    whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    if not (whole and 1 <= seed < 2**32):
        raise ValueError(
            f"seed must be a whole number from 1 to 2**32 - 1 (0 draws what all runs share), got {seed!r}"
        )


def _sequence(path: tuple[int, ...]) -> np.random.SeedSequence:
    for number in path:
        if not 0 <= number < 2**32:
            raise ValueError(f"path must hold whole numbers from 0 to 2**32 - 1, got {number}")
    return np.random.SeedSequence(path or None)


def seed_for(*path: int) -> int:
    """A 63-bit seed for a path of integers such as (seed, replicate), filled with zeros as by ``Noise``."""
    return int(_sequence(path).generate_state(1, np.uint64)[0]) >> 1


class Noise:
    """Fresh random numbers, seeded by a path of integers.

    On the CPU they come from NumPy's SFC64, several times faster than PyTorch's generator, which
    serves the other devices.

    Args:
        *path: whole numbers below 2**32, for example ``(seed, replicate)``; none seeds from the system.
            Up to four are filled with zeros to four: (seed,) is (seed, 0, 0, 0), a training stream.
        device: where the numbers go.
    """

    generator: np.random.Generator | torch.Generator

    def __init__(self, *path: int, device: str | torch.device = "cpu"):
        self.device = torch.device(device)
        self.used = {"uniform": 0, "normal": 0}
        if self.device.type == "cpu":
            self.generator = np.random.Generator(np.random.SFC64(_sequence(path)))
        else:
            self.generator = torch.Generator(self.device).manual_seed(seed_for(*path))

    def uniform(self, *shape: int) -> Tensor:
        """Uniform on the open interval (0, 1), float32 of the given shape."""
        self.used["uniform"] += math.prod(shape)
        if isinstance(self.generator, torch.Generator):
            u = torch.rand(shape, generator=self.generator, device=self.device)
        else:
            u = torch.from_numpy(self.generator.random(shape, dtype=np.float32))
        return u.clamp_min_(2.0**-25)  # both generators can return 0, whose logarithm is infinite

    def normal(self, *shape: int) -> Tensor:
        """Standard normal, float32 of the given shape."""
        self.used["normal"] += math.prod(shape)
        if isinstance(self.generator, torch.Generator):
            return torch.randn(shape, generator=self.generator, device=self.device)
        return torch.from_numpy(self.generator.standard_normal(shape, dtype=np.float32))

    def permutation(self, n: int) -> Tensor:
        """The numbers 0 to n - 1 in random order, int64 ``[n]``."""
        if isinstance(self.generator, torch.Generator):
            return torch.randperm(n, generator=self.generator, device=self.device)
        return torch.from_numpy(self.generator.permutation(n))

    def gumbel(self, *shape: int) -> Tensor:
        """Standard Gumbel, of the given shape."""
        return -torch.log(-torch.log(self.uniform(*shape)))


class Tape(Noise):
    """Replays numbers drawn beforehand, in order; may run inside ``vmap`` and ``torch.compile``.

    Args:
        uniform: ``[n]``.
        normal: ``[m]``.  Asking for more than there is raises an error.
    """

    def __init__(self, uniform: Tensor, normal: Tensor):
        self.device = uniform.device
        self.tapes = {"uniform": uniform, "normal": normal}
        self.used = {"uniform": 0, "normal": 0}

    def _next(self, kind: str, shape: tuple[int, ...]) -> Tensor:
        start, count = self.used[kind], math.prod(shape)
        self.used[kind] += count
        if start + count > len(self.tapes[kind]):
            raise RuntimeError(
                f"{start + count} {kind} numbers were asked for, but the first step took "
                f"{len(self.tapes[kind])}: let every step ask for as many"
            )
        return self.tapes[kind][start : start + count].view(shape)

    def uniform(self, *shape: int) -> Tensor:
        return self._next("uniform", shape)

    def normal(self, *shape: int) -> Tensor:
        return self._next("normal", shape)


def tapes(
    seed: int,
    step: int,
    purpose: int,
    replicates: Sequence[int],
    count: int,
    numbers: dict[str, int],
    device: str | torch.device = "cpu",
) -> tuple[Tensor, Tensor]:
    """The random numbers of a block of steps, each replicate's from a stream of its own.

    Args:
        step: at which the block begins.
        purpose: one of the constants above.
        replicates: indices of R replicates.
        numbers: how many a step takes, by kind.

    Returns:
        Uniform numbers ``[R, count, n]`` and normal ones ``[R, count, m]``.
    """
    noises = [Noise(seed, replicate, step, purpose, device=device) for replicate in replicates]
    uniform = torch.stack([noise.uniform(count, numbers["uniform"]) for noise in noises])
    return uniform, torch.stack([noise.normal(count, numbers["normal"]) for noise in noises])


class EpochOrder:
    """Which data come when: each epoch goes through all of them in a fresh order, in whole batches.

    Args:
        replicates: indices of R replicates, each with an order of its own.
        epoch: number of data and batch size B; None where there are no data, and B is 0.
    """

    def __init__(
        self, seed: int, replicates: Sequence[int], epoch: tuple[int, int] | None, device: str | torch.device
    ):
        self.seed, self.replicates, self.epoch, self.device = seed, replicates, epoch, device
        self._known = (-1, torch.empty(0))

    def rows(self, iteration: int, count: int) -> Tensor:
        """Rows of the data for ``count`` iterations, ``[R, count, B]``."""
        if self.epoch is None:
            return torch.empty(len(self.replicates), count, 0, dtype=torch.int64, device=self.device)
        num_rows, batch_size = self.epoch
        rows = []
        for step in range(iteration, iteration + count):
            epoch, turn = divmod(step, num_rows // batch_size)
            if self._known[0] != epoch:
                noises = [Noise(self.seed, r, epoch, ORDER, device=self.device) for r in self.replicates]
                self._known = (epoch, torch.stack([noise.permutation(num_rows) for noise in noises]))
            rows.append(self._known[1][:, turn * batch_size : (turn + 1) * batch_size])
        return torch.stack(rows, dim=1)


@contextmanager
def global_generators(seed: int, device: str | torch.device = "cpu") -> Iterator[Callable[[], list[str]]]:
    """Seed the global generators of PyTorch, NumPy and Python; afterwards they are where they were.

    For models that draw from them, as ``torch.distributions`` and Dropout do.  Yields a function that
    names those of NumPy and Python that have been drawn from.
    """

    def states() -> dict[str, tuple]:
        state: Any = np.random.get_state()  # noqa: NPY002
        return {"numpy.random": (state[1].tobytes(), *state[2:]), "random": random.getstate()}

    device = torch.device(device)
    numpy_before, python_before = np.random.get_state(), random.getstate()  # noqa: NPY002
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
    seeded = states()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            yield lambda: [name for name, state in states().items() if state != seeded[name]]
    finally:
        np.random.set_state(numpy_before)  # noqa: NPY002
        random.setstate(python_before)
