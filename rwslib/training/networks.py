"""The networks of R replicates: how they are made, their gradients, and functions of them for metrics."""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from rwslib.noise import GLOBALS, GRADIENTS, Noise, Tape, global_generators, seed_for, tapes
from rwslib.training import probe
from rwslib.training.optimizers import Tensors
from rwslib.training.problem import Phase, Problem
from rwslib.trees import Tree


class Objective(nn.Module):
    """The mean surrogate loss of a problem in one phase, as one module whose parameters can be swapped.

    Args:
        problem: what is trained.
        parts: the modules of one replicate.
        phase: the phase; None is the method's own steps.
        changing: names of the buffers that a step changes.

    Attributes:
        trained: names of all parameters but the frozen ones.
        free: those that this phase trains.
    """

    def __init__(
        self, problem: Problem, parts: nn.ModuleDict, phase: Phase | None, changing: Collection[str]
    ):
        super().__init__()
        self.problem, self.parts, self.phase, self.changing = problem, parts, phase, changing
        self.trained = [name for name, value in self.named_parameters() if value.requires_grad]
        self.free = [name for name in self.trained if phase is None or name.split(".")[1] in phase.trains]

    def forward(self, x: Tree, noise: Noise, progress: Tensor) -> Tensor:
        """The loss, a scalar, of a batch ``x [B, ...]`` at a progress in [0, 1)."""
        return self.problem.losses(dict(self.parts.items()), x, noise, progress, self.phase).mean()

    def loss(self, params: Tensors, x: Tree, noise: Noise, progress: Tensor) -> Tensor:
        """The same at other parameters, of one replicate."""
        return functional_call(self, params, (x, noise, progress))

    def gradients(self, params: Tensors, x: Tree, noise: Noise, progress: Tensor) -> Tensors:
        """Gradient of one replicate's free parameters, those of the control variate included.

        Beside the gradients come the new values of the buffers that the loss changes.
        """
        free = {name: params[name] for name in self.free}
        fixed = {name: value for name, value in params.items() if name not in free}
        if not self.problem.mapped:  # plain autograd: several times less overhead than torch.func.grad
            with torch.enable_grad():
                leaves = {name: value.detach().requires_grad_() for name, value in free.items()}
                buffers = {name: fixed[name].clone() for name in self.changing}
                state = {**fixed, **buffers, **leaves}  # where the call leaves what buffers have become
                value = self.loss(state, x, noise, progress)
                grads = torch.autograd.grad(value, tuple(leaves.values()), materialize_grads=True)
            changed = {name: state[name].detach() for name in self.changing}
            return {**dict(zip(leaves, grads, strict=True)), **changed}

        def loss(free: Tensors) -> Tensor:
            return self.loss({**fixed, **free}, x, noise, progress)

        if self.problem.method.control_variate != "variance" or self.phase is not None:
            return grad(loss)(free)
        own = {name: value for name, value in free.items() if name.startswith("parts.control_variate.")}
        model = {name: value for name, value in free.items() if name not in own}

        def variance(own):
            # E[g]^2 does not depend on the control variate, so E[g^2] is the variance plus a constant
            grads = grad(lambda model: loss({**model, **own}))(model)
            phi = torch.cat([g.flatten() for name, g in grads.items() if name.startswith("parts.q.")])
            return phi.square().mean(), grads

        own_grads, grads = grad(variance, has_aux=True)(own)
        return {**grads, **own_grads}

    def step_gradients(
        self, params: Tensors, uniform: Tensor, normal: Tensor, rows: Tensor, progress: Tensor
    ) -> Tensors:
        """The same for the batch that a step draws, from the random numbers and rows that it reads."""
        tape = Tape(uniform, normal)
        return self.gradients(params, self.problem.draw_batch(tape, rows), tape, progress)


class _Apply(nn.Module):
    """A function of some modules as one module."""

    def __init__(self, modules: nn.ModuleDict, function: Callable[..., Tensors]):
        super().__init__()
        self.parts, self.function = modules, function

    def forward(self) -> Tensors:
        return self.function(self.parts["p"], self.parts["q"])


@dataclass(frozen=True)
class Networks:
    """The networks of R replicates at one iteration, as metrics see them.

    Attributes:
        objective: the loss that is trained now, with the modules of one replicate.
        replicates: their indices.
        params: parameters and changing buffers, ``[R, ...]`` each.
        iteration: optimiser steps taken.
    """

    objective: Objective
    replicates: Sequence[int]
    params: Tensors
    iteration: int

    def map_modules(self, function: Callable[..., Tensors]) -> Tensors:
        """Apply a function of the modules (p, q) to every replicate; each result leads with R."""

        def one(params: Tensors) -> Tensors:
            return functional_call(_Apply(self.objective.parts, function), params, ())

        advice = "take networks.each, which maps nothing"
        with torch.no_grad(), probe.mapping("map_modules", advice):
            return vmap(one)(self.params)

    def modules(self, index: int) -> nn.ModuleDict:
        """A copy of the modules with the parameters of the replicate at this index."""
        parts = copy.deepcopy(self.objective.parts)
        with torch.no_grad():
            for name, value in _tensors(parts):
                if f"parts.{name}" in self.params:
                    value.copy_(self.params[f"parts.{name}"][index])
        return parts

    def each(self, function: Callable[[int, Any], Tensors]) -> Tensors:
        """Apply a function of (replicate, its modules) to one after the other; each result leads with R."""
        found = [function(replicate, self.modules(i)) for i, replicate in enumerate(self.replicates)]
        return {name: torch.stack([one[name] for one in found]) for name in found[0]}

    def phi_gradients(self, x: Tree, num_samples: int) -> Tensor:
        """Fresh estimates of phi's gradient at these parameters, ``[R, num_samples, D_phi]``.

        Parameters that q shares with p count as p's, if ``build`` names p first.
        """
        problem = self.objective.problem
        names = [name for name in self.objective.trained if name.startswith("parts.q.")]
        progress = problem.progress(self.iteration)

        def phi_gradient(params: Tensors, uniform: Tensor, normal: Tensor) -> Tensor:
            phi = {name: params[name] for name in names}
            rest = {name: value for name, value in params.items() if name not in phi}
            tape = Tape(uniform, normal)
            grads = grad(lambda phi: self.objective.loss({**rest, **phi}, x, tape, progress))(phi)
            return torch.cat([grads[name].flatten() for name in names])

        counter = Noise(0, device=problem.device)
        with global_generators(0, problem.device):
            rows = torch.arange(problem.epoch[1] if problem.epoch else 0, device=problem.device)
            problem.draw_batch(counter, rows)  # a tape holds the numbers of a batch, too
            self.objective(x, counter, problem.progress(0))
        path = problem.seed, self.iteration, GRADIENTS
        drawn = tapes(*path, self.replicates, num_samples, counter.used, problem.device)
        return vmap(vmap(phi_gradient, (None, 0, 0)), (0, 0, 0))(self.params, *drawn)


def build(problem: Problem, replicates: Sequence[int]) -> tuple[nn.ModuleDict, list[Tensors]]:
    """The modules of the last replicate, and what all of them start from, named as in ``Objective``."""
    starts = []
    for replicate in replicates:
        with global_generators(seed_for(problem.seed, replicate), problem.device):
            built = problem.build()
            if not (isinstance(built, Mapping) and all(isinstance(p, nn.Module) for p in built.values())):
                got = probe.describe(built)
                raise ValueError(f"build must return a dict of nn.Module, {{'p': ..., 'q': ...}}, got {got}")
            parts = nn.ModuleDict(built).to(problem.device)
        starts.append({f"parts.{name}": value.detach() for name, value in _tensors(parts)})
        for name, value in parts.named_parameters():
            before = starts[-2].get(f"parts.{name}") if len(starts) > 1 else None
            if value.requires_grad and before is not None and before.data_ptr() == value.data_ptr() != 0:
                raise ValueError(
                    f"build must make new modules at each call, but returned the same {name} twice: "
                    "make them inside, or copy.deepcopy what all replicates are to start from"
                )
    return parts, starts


def stack(starts: list[Tensors], parts: nn.ModuleDict, changing: Collection[str]) -> Tensors:
    """Parameters of all replicates, and of the buffers those that are not the same for all at all times."""
    shared = {f"parts.{name}" for name, _ in parts.named_buffers()} - set(changing)
    stacked = {}
    for name, first in starts[0].items():
        values = [start.get(name, first[..., None]) for start in starts]
        if any(value.shape != first.shape or value.dtype != first.dtype for value in values):
            raise ValueError(f"build must make the same modules for every replicate, but {name} differs")
        if name not in shared or not all(torch.equal(value, first) for value in values):
            stacked[name] = torch.stack(values)
    return stacked


def one_by_one(function: Callable[..., Tensors], problem: Problem, replicates: Sequence[int], iteration: int):
    """As ``vmap``, one replicate after the other, each with global generators of its own."""

    def over_replicates(params: Tensors, *tensors: Tensor) -> Tensors:
        results = []
        for i, replicate in enumerate(replicates):
            with global_generators(seed_for(problem.seed, replicate, iteration, GLOBALS), problem.device):
                one = {name: value[i] for name, value in params.items()}
                try:
                    results.append(function(one, *(tensor[i] for tensor in tensors)))
                except Exception as error:
                    error.add_note(f"This was replicate {replicate} at iteration {iteration}.")
                    raise
        return {name: torch.stack([result[name] for result in results]) for name in results[0]}

    return over_replicates


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name."""
    return chain(module.named_parameters(), module.named_buffers())
