"""What the training loop must know of an experiment."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rwslib.methods import Method
from rwslib.noise import Noise
from rwslib.training.optimizers import Optimizer, Tensors, adam
from rwslib.trees import Tree

if TYPE_CHECKING:
    from rwslib.training.networks import Networks


@dataclass(frozen=True)
class Phase:
    """Steps before the method's own, which train some of the modules by a loss of their own.

    Attributes:
        iterations: length of the phase; the method's own steps follow the last phase.
        loss: ``(p, q, x, num_particles, noise) -> [B]``, as a method without options.
        trains: names of the modules that move ("p", "q"); the others stay.  Every phase starts the
            optimiser afresh, since gradients of another loss have another size.
    """

    iterations: int
    loss: Callable[..., Tensor]
    trains: tuple[str, ...]


@dataclass(frozen=True)
class Problem:
    """What the loop must know of an experiment.

    Attributes:
        method: row of ``rwslib.methods.METHODS``.
        build: makes the modules of one replicate, ``{"p": ..., "q": ...}`` and, where the method
            has one, ``"control_variate"``; PyTorch's, NumPy's and Python's global generators are seeded
            for it.  What they must offer is in ``rwslib.protocols``.  Parameters with ``requires_grad``
            False stay as they are.
        draw_batch: one batch ``x [B, ...]`` from a noise source and ``rows [B]``, the data's turn in
            this epoch (empty where ``epoch`` is None); a tensor, or a tree of them (``rwslib.trees``).
        evaluate: metrics of the curves, called as ``evaluate(networks)`` with ``training.Networks``; every
            value leads with R.
        learning_rate: a number, or a function of the iteration, a float64 scalar tensor from 0.
        epoch: number of data and batch size: each epoch goes through all data in a fresh order, whole
            batches only.  None where batches are drawn from a true model.
        optimizer: the rule of the steps, Adam by default.
        phases: other losses at the start of training; not together with an optimiser that is delayed.
        mapped: map the gradient over the replicates with ``vmap`` and compile it; False takes one
            replicate after the other, for models that ``vmap`` cannot take: shapes or an ``if`` that depend
            on values, Dropout, BatchNorm, ``.sample()``.  PyTorch's, NumPy's and Python's global generators
            are seeded for each of its steps.
        options: keyword arguments of the method, given the progress in [0, 1).
        finish: final metrics that are too expensive for the curves, called as ``finish(networks)``.
        extensible: fields of the configuration that change nothing before the end of training, so that
            a longer run may start from a shorter one's checkpoint; none if training depends on its length.
        device: where the data are and the training is, any PyTorch device.
    """

    method: Method
    build: Callable[[], dict[str, nn.Module]]
    draw_batch: Callable[[Noise, Tensor], Tree]
    evaluate: Callable[["Networks"], Tensors]
    num_particles: int
    num_iterations: int
    log_every: int
    learning_rate: float | Callable[[Tensor], Tensor]
    seed: int
    epoch: tuple[int, int] | None = None
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(adam))
    phases: tuple[Phase, ...] = ()
    mapped: bool = True
    options: Callable[[Tensor], dict[str, Any]] = field(default=lambda progress: {})
    finish: Callable[["Networks"], Tensors] = field(default=lambda networks: {})
    extensible: tuple[str, ...] = ()
    device: str = "cpu"

    def losses(
        self, parts: Mapping[str, nn.Module], x: Tree, noise: Noise, progress: Tensor, phase: Phase | None
    ) -> Tensor:
        """The surrogate loss of these modules for each datum, ``[B]``; the method's, or that of a phase."""
        p, q, extra = parts["p"], parts["q"], {}
        if phase is not None:
            return phase.loss(p, q, x, self.num_particles, noise)
        if self.method.control_variate:
            extra["control_variate"] = parts["control_variate"]
        options = self.options(progress)
        return self.method.function(p, q, x, self.num_particles, noise, **extra, **options)

    def progress(self, iteration: int) -> Tensor:
        """Where an iteration lies in training, a float32 scalar in [0, 1]."""
        return torch.tensor(iteration / self.num_iterations, device=self.device)

    def rate(self, iteration: Tensor) -> float | Tensor:
        """The learning rate at an iteration, a float64 scalar tensor."""
        return self.learning_rate(iteration) if callable(self.learning_rate) else self.learning_rate
