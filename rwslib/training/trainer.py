"""The training loop: replicates trained together, checkpointed, resumable."""

import copy
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate, chain
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from tqdm import tqdm

from rwslib import files
from rwslib.noise import (
    GLOBALS,
    GRADIENTS,
    METRICS,
    ORDER,
    TRAINING,
    Noise,
    Tape,
    check_seed,
    global_generators,
    seed_for,
)
from rwslib.training import probe
from rwslib.training.acceleration import Captured, check_device, graph_length, single_thread, why_not_compile
from rwslib.training.optimizers import Tensors
from rwslib.training.problem import Phase, Problem
from rwslib.trees import Tree

NOISE_BLOCK = 2**18  # random numbers a replicate draws at once; a change changes every run's numbers
UNROLL = 2  # optimiser steps in one compiled call; more is hardly faster and compiles longer
GPU_BLOCK = 125  # optimiser steps that a GPU takes in one go; a change changes its runs' numbers, and so
GPU_NOISE = 2**28  # does one of the random numbers that they may take, a gigabyte a replicate
COMPILE_FROM = 4000  # iterations from which compiling (5 to 30 s) pays
CHECKPOINT_SECONDS = files.seconds_from_environment("RWSLIB_CHECKPOINT_SECONDS", 30)  # changes no numbers


class _Objective(nn.Module):
    """The mean surrogate loss of a method as one module, so that its parameters can be swapped."""

    def __init__(self, problem: Problem):
        super().__init__()
        self.problem, self.parts = problem, nn.ModuleDict(problem.build())

    def forward(self, x: Tree, noise: Noise, progress: Tensor, phase: Phase | None = None) -> Tensor:
        return self.problem.losses(self.parts, x, noise, progress, phase).mean()


class _Apply(nn.Module):
    """A function of some modules as one module."""

    def __init__(self, modules: nn.ModuleDict, function: Callable[..., Tensors]):
        super().__init__()
        self.modules_, self.function = modules, function

    def forward(self) -> Tensors:
        return self.function(self.modules_["p"], self.modules_["q"])


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name."""
    return chain(module.named_parameters(), module.named_buffers())


def _stack(starts: list[Tensors], module: nn.Module, changing: set[str]) -> Tensors:
    """Parameters of all replicates, and of the buffers those that are not the same for all at all times."""
    shared = {name for name, _ in module.named_buffers() if name not in changing}
    stacked = {}
    for name, first in starts[0].items():
        values = [start.get(name, first[..., None]) for start in starts]
        if any(value.shape != first.shape or value.dtype != first.dtype for value in values):
            raise ValueError(f"build must make the same modules for every replicate, but {name} differs")
        if name not in shared or not all(torch.equal(value, first) for value in values):
            stacked[name] = torch.stack(values)
    return stacked


def largest_divisor(number: int, at_most: int) -> int:
    """The largest divisor of a number that is not above a limit (at least 1)."""
    return next(d for d in range(max(1, min(number, at_most)), 0, -1) if number % d == 0)


class Trainer:
    """R replicates of one problem, their parameters stacked along the first axis.

    Args:
        problem: what to train.
        replicates: indices of the replicates, usually ``range(num_runs)``; replicate i draws the
            same numbers whichever others are trained beside it.
        device: any PyTorch device.
        compiled: compile the step; None decides by the number of iterations.
    """

    def __init__(
        self, problem: Problem, replicates: Sequence[int], device: str = "cpu", compiled: bool | None = None
    ):
        check_seed(problem.seed)
        self.problem, self.replicates, self.device = problem, list(replicates), device
        check_device(device)
        self.iteration, self.seconds, self.curves, self._orders = 0, 0.0, {}, (None, None)
        self._in_step = False
        if not self.replicates:
            raise ValueError("replicates must hold at least one index, got none")
        starts = []
        for replicate in self.replicates:
            with torch.random.fork_rng():
                torch.manual_seed(seed_for(problem.seed, replicate))
                self.objective = _Objective(problem).to(device)
            starts.append({name: value.detach() for name, value in _tensors(self.objective)})
        probe.check_arguments(problem, self.objective.parts, device)
        numbers, self._changing = probe.try_problem(problem, self.objective, self._rows(1)[0, 0], device)
        self.params = _stack(starts, self.objective, self._changing)
        self._trained = {name for name, value in self.objective.named_parameters() if value.requires_grad}
        if problem.mapped:
            probe.try_mapped(self, numbers)
        self._held = {
            name: max(
                (end for start, end in problem.hold.items() if name.startswith(f"parts.{start}")), default=0
            )
            for name in self.params
        }
        if compiled is None:
            compiled = problem.num_iterations >= COMPILE_FROM
        if compiled and (reason := why_not_compile(device)):
            warnings.warn(f"{reason}: training uncompiled, slower", stacklevel=2)
            compiled = False
        self.compiled = compiled
        if compiled:
            torch.compiler.reset()  # else many runs in one process reach dynamo's recompile limit
        self._enter()

    def _enter(self) -> None:
        """Make ready for the phase that the iteration lies in."""
        problem, ends = self.problem, list(accumulate(phase.iterations for phase in self.problem.phases))
        index = sum(end <= self.iteration for end in ends)
        self._phase_start = ends[index - 1] if index else 0
        self.phase = problem.phases[index] if index < len(ends) else None
        self._phase_end = ends[index] if self.phase else None
        self._free = self._names(self.phase)
        if self.iteration == self._phase_start:
            self.moments = tuple(
                {name: torch.full_like(self.params[name], start) for name in self._names(None)}
                for start in problem.optimizer.start
            )
        self.numbers = self._count_numbers(None)
        per_iteration = max(1, sum(self.numbers.values()))
        on_gpu = torch.device(self.device).type == "cuda"
        at_most = max(1, (GPU_NOISE if on_gpu else NOISE_BLOCK) // per_iteration)
        if on_gpu:
            self.block = graph_length(problem.log_every, min(at_most, GPU_BLOCK))
        else:
            self.block = largest_divisor(problem.log_every, at_most)
        self.unroll = 1 if on_gpu else largest_divisor(self.block, UNROLL)
        compiled = self.compiled
        self._advance_together, self._update = self._advance, problem.optimizer.update
        self._advance_block = self._advance_piecewise
        if compiled and problem.mapped:
            self._advance_together = torch.compile(self._advance, fullgraph=True)
            if on_gpu:
                self._advance_block = Captured(self._advance_piecewise)
        elif compiled:
            self._update = torch.compile(self._update, fullgraph=True)

    def _names(self, phase: Phase | None) -> list[str]:
        """What a phase trains; of None, the method's own steps, all but frozen parameters and buffers."""
        names = [name for name in self.params if name in self._trained]
        return [name for name in names if phase is None or name.split(".")[1] in phase.trains]

    def _count_numbers(self, x: Tree | None) -> dict[str, int]:
        """How many random numbers one loss takes, those of a training batch included."""
        counter = Noise(0, device=self.device)
        with global_generators(0, self.device):
            batch = self.problem.draw_batch(counter, self._rows(1)[0, 0])
            self.objective(batch if x is None else x, counter, self._progress(0), self.phase)
        return counter.used

    def _progress(self, iteration: int) -> Tensor:
        return torch.tensor(iteration / self.problem.num_iterations, device=self.device)

    # -- gradients ---------------------------------------------------------------------------------

    def loss(self, params: Tensors, x: Tree, noise: Noise, progress: Tensor) -> Tensor:
        """The batch-mean surrogate loss of one replicate."""
        return functional_call(self.objective, params, (x, noise, progress, self.phase))

    def gradients(self, params: Tensors, x: Tree, noise: Noise, progress: Tensor) -> Tensors:
        """Gradient of one replicate's free parameters, those of the control variate included.

        Beside the gradients come the new values of the buffers that the loss changes.
        """
        free = {name: params[name] for name in self._free}
        fixed = {name: value for name, value in params.items() if name not in free}
        if not self.problem.mapped:  # plain autograd: several times less overhead than torch.func.grad
            with torch.enable_grad():
                leaves = {name: value.detach().requires_grad_() for name, value in free.items()}
                buffers = {name: fixed[name].clone() for name in self._changing}
                state = {**fixed, **buffers, **leaves}  # where the call leaves what buffers have become
                loss = self.loss(state, x, noise, progress)
                grads = torch.autograd.grad(loss, leaves.values(), materialize_grads=True)
            changed = {name: state[name].detach() for name in self._changing}
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

    def map_modules(self, function: Callable[..., Tensors]) -> Tensors:
        """Apply a function of the modules (p, q, ...) to every replicate; each result leads with R."""

        def one(params: Tensors) -> Tensors:
            return functional_call(_Apply(self.objective.parts, function), params, ())

        with torch.no_grad(), probe.mapping("map_modules", "take trainer.modules(index) one by one"):
            return vmap(one)({name.replace("parts.", "modules_."): v for name, v in self.params.items()})

    def modules(self, index: int) -> nn.ModuleDict:
        """A copy of the modules with the current parameters of the replicate at this index."""
        parts = copy.deepcopy(self.objective.parts)
        with torch.no_grad():
            for name, value in _tensors(parts):
                if f"parts.{name}" in self.params:
                    value.copy_(self.params[f"parts.{name}"][index])
        return parts

    def phi_gradients(self, x: Tree, num_samples: int) -> Tensor:
        """Fresh estimates of phi's gradient at the current parameters, ``[R, num_samples, D_phi]``."""
        names = [name for name in self._names(None) if name.startswith("parts.q.")]
        progress = self._progress(self.iteration)

        def phi_gradient(params: Tensors, uniform: Tensor, normal: Tensor) -> Tensor:
            phi = {name: params[name] for name in names}
            rest = {name: value for name, value in params.items() if name not in phi}
            tape = Tape(uniform, normal)
            grads = grad(lambda phi: self.loss({**rest, **phi}, x, tape, progress))(phi)
            return torch.cat([grads[name].flatten() for name in names])

        tapes = self._tapes(num_samples, self._count_numbers(x), GRADIENTS)
        return vmap(vmap(phi_gradient, (None, 0, 0)), (0, 0, 0))(self.params, *tapes)

    # -- steps -------------------------------------------------------------------------------------

    def _tapes(self, count: int, numbers: dict[str, int], purpose: int = TRAINING) -> tuple[Tensor, Tensor]:
        """Random numbers of ``count`` iterations: uniform ``[R, count, n]`` and normal ``[R, count, m]``."""
        tapes = []
        for replicate in self.replicates:
            noise = Noise(self.problem.seed, replicate, self.iteration, purpose, device=self.device)
            tapes.append((noise.uniform(count, numbers["uniform"]), noise.normal(count, numbers["normal"])))
        uniform, normal = zip(*tapes, strict=True)
        return torch.stack(uniform), torch.stack(normal)

    def _rows(self, count: int) -> Tensor:
        """Rows of the data for the next ``count`` iterations, ``[R, count, B]``."""
        if self.problem.epoch is None:
            return torch.empty(len(self.replicates), count, 0, dtype=torch.int64, device=self.device)
        num_rows, batch_size = self.problem.epoch
        rows = []
        for iteration in range(self.iteration, self.iteration + count):
            epoch, turn = divmod(iteration, num_rows // batch_size)
            if self._orders[0] != epoch:
                orders = [
                    Noise(self.problem.seed, r, epoch, ORDER, device=self.device).permutation(num_rows)
                    for r in self.replicates
                ]
                self._orders = (epoch, torch.stack(orders))
            rows.append(self._orders[1][:, turn * batch_size : (turn + 1) * batch_size])
        return torch.stack(rows, dim=1)

    def _advance(
        self,
        params: Tensors,
        moments: tuple[Tensors, Tensors],
        iteration: Tensor,
        uniform: Tensor,
        normal: Tensor,
        rows: Tensor,
    ) -> tuple[Tensors, tuple[Tensors, Tensors]]:
        """As many optimiser steps as the tapes hold, ``uniform [R, steps, n]``."""
        problem = self.problem
        for step in range(uniform.shape[1]):
            progress = ((iteration + step) / problem.num_iterations).float()

            def replicate_gradients(params, uniform, normal, rows, progress=progress):
                tape = Tape(uniform, normal)
                return self.gradients(params, problem.draw_batch(tape, rows), tape, progress)

            over_replicates = vmap if problem.mapped else partial(self._one_by_one, int(iteration) + step)
            grads = over_replicates(replicate_gradients)(
                params, uniform[:, step], normal[:, step], rows[:, step]
            )
            changed = {name: grads.pop(name) for name in self._changing}
            rate = problem.learning_rate
            rate = rate(iteration + step) if callable(rate) else rate
            params, moments = self._step(params, grads, moments, iteration + step, rate)
            params = {**params, **changed}
        return params, moments

    def _one_by_one(self, iteration: int, function: Callable[..., Tensors]) -> Callable[..., Tensors]:
        """As ``vmap``, one replicate after the other, each with global generators of its own."""

        def over_replicates(params: Tensors, *tensors: Tensor) -> Tensors:
            results = []
            for i, replicate in enumerate(self.replicates):
                seed = seed_for(self.problem.seed, replicate, iteration, GLOBALS)
                with global_generators(seed, self.device):
                    one = {name: value[i] for name, value in params.items()}
                    results.append(function(one, *(tensor[i] for tensor in tensors)))
            return {name: torch.stack([result[name] for result in results]) for name in results[0]}

        return over_replicates

    def _step(
        self,
        params: Tensors,
        grads: Tensors,
        moments: tuple[Tensors, Tensors],
        iteration: Tensor,
        learning_rate: float | Tensor,
    ) -> tuple[Tensors, tuple[Tensors, Tensors]]:
        """One optimiser step; frozen parameters stay, those on hold start when they are free."""
        if not self.problem.hold and len(grads) == len(params):
            return self._update(params, grads, moments, iteration + 1 - self._phase_start, learning_rate)
        stepped = tuple(
            {name: value for name, value in part.items() if name not in grads} for part in (params, *moments)
        )
        for end in sorted({self._held[name] for name in grads}):
            names = [name for name in grads if self._held[name] == end]
            before = [{name: part[name] for name in names} for part in (params, *moments)]
            own_grads = {name: grads[name] for name in names}
            own_step = (iteration + 1 - self._phase_start - end).clamp_min(1)
            value, moved = self._update(before[0], own_grads, tuple(before[1:]), own_step, learning_rate)
            for result, old, new in zip(stepped, before, (value, *moved), strict=True):
                result |= {
                    name: torch.where(iteration >= end, new[name], old[name]) if end else new[name]
                    for name in names
                }
        return stepped[0], stepped[1:]

    def train_block(self) -> None:
        """Train ``block`` iterations, or those left before the next log or phase, without logging."""
        if self.iteration == self._phase_end:
            self._enter()
        count = min(self.block, self.problem.log_every - self.iteration % self.problem.log_every)
        if self._phase_end is not None:
            count = min(count, self._phase_end - self.iteration)
        tapes, rows = self._tapes(count, self.numbers), self._rows(count)
        iteration = torch.tensor(self.iteration, dtype=torch.float64, device=self.device)
        advance = self._advance_block if count == self.block else self._advance_piecewise
        self._in_step = True
        with torch.no_grad():
            params, moments = advance(self.params, self.moments, iteration, *tapes, rows)
        # together, so that an interruption finds a whole state
        self.params, self.moments, self.iteration = params, moments, self.iteration + count
        self._in_step = False

    def _advance_piecewise(
        self, params: Tensors, moments: tuple[Tensors, Tensors], iteration: Tensor, *tensors: Tensor
    ) -> tuple[Tensors, tuple[Tensors, Tensors]]:
        """As ``_advance``, ``unroll`` steps at a time."""
        for start in range(0, tensors[0].shape[1], self.unroll):
            pieces = [tensor[:, start : start + self.unroll] for tensor in tensors]
            params, moments = self._advance_together(params, moments, iteration + start, *pieces)
        return params, moments

    def log(self) -> None:
        """Append the metrics of the current parameters to the curves."""
        with global_generators(seed_for(self.problem.seed, 0, self.iteration, METRICS), self.device):
            metrics = self.problem.evaluate(self, self.iteration)
        if not all(torch.isfinite(self.params[name]).all() for name in self._trained):
            raise FloatingPointError(f"parameters are no longer finite at iteration {self.iteration}")
        values = probe.metric_values(metrics, len(self.replicates), self.curves)
        values = {"iteration": np.asarray(self.iteration, np.float32), **values}
        # at once, so that an interruption finds whole curves
        self.curves = self.curves | {k: [*self.curves.get(k, ()), value] for k, value in values.items()}

    def _is_logged(self) -> bool:
        return bool(self.curves) and self.curves["iteration"][-1] == np.float32(self.iteration)

    def train(self, checkpoint: Path | None = None, progress: bool = False) -> dict[str, np.ndarray]:
        """Train to the end, resuming from the checkpoint if there is one.

        Args:
            checkpoint: file to write now and then and when interrupted, and to resume from.
            progress: show a progress bar with the time left on standard error.

        Returns:
            Curves ``[R, T, ...]`` by metric name, and ``iteration [T]``.
        """
        resumed = checkpoint is not None and checkpoint.exists() and self.load(checkpoint)
        if checkpoint is not None and checkpoint.exists() and not resumed:
            checkpoint = None  # it belongs to a longer run and stays as it is
        begun = saved = time.monotonic()
        known = self.iteration  # which a new start or the checkpoint would give
        bar = tqdm(
            total=self.problem.num_iterations,
            initial=self.iteration,
            disable=not progress,
            unit="it",
            desc=self.problem.method.title,
            file=sys.stderr,
            leave=False,
        )
        try:
            with single_thread(self.device), bar:
                if self.iteration % self.problem.log_every == 0 and not self._is_logged():
                    self.log()
                while self.iteration < self.problem.num_iterations:
                    self.train_block()
                    bar.update(self.iteration - bar.n)
                    if self.iteration % self.problem.log_every == 0:
                        self.log()
                        now = time.monotonic()
                        if checkpoint is not None and now - saved > CHECKPOINT_SECONDS:
                            self.save(checkpoint, self.seconds + now - begun)
                            known, saved = self.iteration, now
        except (KeyboardInterrupt, SystemExit):
            on_gpu = torch.device(self.device).type == "cuda"  # where a step changes the state in its place
            if checkpoint is not None and self.iteration > known and not (on_gpu and self._in_step):
                self.save(checkpoint, self.seconds + time.monotonic() - begun)
            raise
        self.seconds += time.monotonic() - begun
        if checkpoint is not None:
            self.save(checkpoint, self.seconds)  # what follows may take minutes
        return {
            name: np.stack(values, axis=0 if name == "iteration" else 1)
            for name, values in self.curves.items()
        }

    # -- checkpoints -------------------------------------------------------------------------------

    def save(self, path: Path, seconds: float) -> None:
        """Write the whole state atomically (safetensors; nothing is pickled)."""
        state = {f"params/{name}": value for name, value in self.params.items()}
        for i, moment in enumerate(self.moments):
            state |= {f"moment{i}/{name}": value for name, value in moment.items()}
        for name, values in self.curves.items():
            state[f"curve/{name}"] = torch.from_numpy(np.stack(values))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        metadata = {"iteration": self.iteration, "asked": self.problem.num_iterations, "seconds": seconds}
        content = safetensors.torch.save(
            {name: value.contiguous().cpu() for name, value in state.items()},
            {name: str(value) for name, value in metadata.items()} | files.UNSEALED,
        )
        try:
            files.write_sealed(temporary, content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def load(self, path: Path) -> bool:
        """Read the state back; False, and nothing is changed, if it lies beyond this problem's end.

        Raises:
            ValueError: the file is not a whole checkpoint of this problem.
        """
        try:
            content, metadata = files.read_sealed(path), files.metadata(path)
            # copied: from an unaligned address matrix products round otherwise
            state = {k: v.to(self.device, copy=True) for k, v in safetensors.torch.load(content).items()}
            iteration, seconds = int(metadata["iteration"]), float(metadata["seconds"])
            if iteration > self.problem.num_iterations:
                return False
            self.params = {name: state[f"params/{name}"] for name in self.params}
            self.moments = tuple({k: state[f"moment{i}/{k}"] for k in self._names(None)} for i in range(2))
            self.curves = {
                name.removeprefix("curve/"): list(value.cpu().numpy())
                for name, value in state.items()
                if name.startswith("curve/")
            }
            self.iteration, self.seconds = iteration, seconds
            self._enter()
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"checkpoint {path} is damaged ({error}); delete it to start this run again"
            ) from error
        return True
