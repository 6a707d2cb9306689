"""The training loop: replicates trained together, checkpointed, resumable."""

import time
import warnings
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

from rwslib import files
from rwslib.checks import require
from rwslib.noise import METRICS, TRAINING, EpochOrder, check_seed, global_generators, seed_for, tapes
from rwslib.training import probe
from rwslib.training.acceleration import (
    Steps,
    accelerate,
    check_device,
    compile_or_keep,
    graph_length,
    largest_divisor,
    single_thread,
    why_not_compile,
)
from rwslib.training.checkpoints import State
from rwslib.training.networks import Networks, Objective, build, one_by_one, stack
from rwslib.training.optimizers import Tensors
from rwslib.training.problem import Problem

NOISE_BLOCK = 2**18  # random numbers that a replicate draws at once; a change changes the numbers of new runs
GPU_NOISE = 2**28  # the same on a GPU, a gigabyte; and
GPU_BLOCK = 125  # the optimiser steps of one graph: a change of either changes new runs on a GPU
COMPILE_FROM = 4000  # iterations from which compiling (5 to 30 s) pays
CHECKPOINT_SECONDS = files.seconds_from_environment("RWSLIB_CHECKPOINT_SECONDS", 30)  # changes no numbers


def pure_steps(objective: Objective, replicates: Sequence[int], begin: int, compile_update: bool) -> Steps:
    """The optimiser steps of a phase as a pure function of the state and of what they read.

    Args:
        begin: iteration at which the phase begins.
        compile_update: compile the optimiser alone, for gradients that cannot be compiled.

    Returns:
        ``(params, moments, iteration, *drawn) -> (params, moments)``, for ``drawn`` see ``Trainer.draw``.
    """
    problem, update = objective.problem, objective.problem.optimizer.update
    update = compile_or_keep(update) if compile_update else update

    def steps(
        params: Tensors, moments: tuple[Tensors, ...], iteration: Tensor, *drawn: Tensor
    ) -> tuple[Tensors, tuple[Tensors, ...]]:
        for step in range(drawn[0].shape[1]):
            progress = ((iteration + step) / problem.num_iterations).float()

            def gradients(params, uniform, normal, rows, progress=progress):  # torch 2.6 compiles no partial
                return objective.step_gradients(params, uniform, normal, rows, progress)

            if problem.mapped:
                over_replicates = vmap(gradients)
            else:
                over_replicates = one_by_one(gradients, problem, replicates, int(iteration) + step)
            grads = over_replicates(params, *(part[:, step] for part in drawn))
            changed = {name: grads.pop(name) for name in objective.changing}
            before = params, *moments
            free = [{name: part[name] for name in grads} for part in before]
            rate = problem.rate(iteration + step)
            value, moved = update(free[0], grads, tuple(free[1:]), iteration + step + 1 - begin, rate)
            params, *after = (
                {**{name: kept for name, kept in old.items() if name not in new}, **new}
                for old, new in zip(before, (value, *moved), strict=True)
            )
            params, moments = {**params, **changed}, tuple(after)
        return params, moments

    return steps


class Trainer:
    """R replicates of one problem, their parameters stacked along the first axis.

    Args:
        problem: what to train.
        replicates: indices of the replicates, usually ``range(num_runs)``; replicate i draws the
            same numbers whichever others are trained beside it.
        compiled: compile the step; None decides by the number of iterations.
    """

    def __init__(self, problem: Problem, replicates: Sequence[int], compiled: bool | None = None):
        check_seed(problem.seed)
        check_device(problem.device)
        several = isinstance(replicates, Sequence)  # of a range none is twice, and it may be too long to ask
        several = several and (isinstance(replicates, range) or len({*replicates}) == len(replicates))
        require(several, "replicates", "a sequence of different indices, as range(num_runs)", replicates)
        self.problem, self.replicates, self.device = problem, list(replicates), problem.device
        self.iteration, self.seconds = 0, 0.0
        self.curves: dict[str, list[np.ndarray]] = {}
        self._on_gpu = torch.device(self.device).type == "cuda"
        self._kept, self._torn = 0, False  # the iteration of the checkpoint, if there is one
        if not self.replicates:
            raise ValueError("replicates must hold at least one index, got none")
        probe.check_kinds(problem)
        parts, starts = build(problem, self.replicates)
        probe.check_arguments(problem, parts)
        self._order = EpochOrder(problem.seed, self.replicates, problem.epoch, self.device)
        rows = self._order.rows(0, 1)[:1, 0]
        self._numbers, changing = probe.try_problem(problem, parts, rows[0])
        self.params = stack(starts, parts, changing)
        self._objectives = [Objective(problem, parts, phase, changing) for phase in (*problem.phases, None)]
        if problem.mapped:
            probe.try_mapped(self._objectives, self._numbers, self.params, rows)
        if compiled is None:
            compiled = problem.num_iterations >= COMPILE_FROM
        if compiled and (reason := why_not_compile(self.device)):
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
        begin = ends[index - 1] if index else 0
        self._phase_end = ends[index] if index < len(ends) else None
        self.objective, self.numbers = self._objectives[index], self._numbers[index]
        if self.iteration == begin:
            self.moments = tuple(
                {name: torch.full_like(self.params[name], start) for name in self.objective.trained}
                for start in problem.optimizer.start
            )
        at_most = max(1, (GPU_NOISE if self._on_gpu else NOISE_BLOCK) // max(1, sum(self.numbers.values())))
        if self._on_gpu:
            self.block = graph_length(problem.log_every, min(at_most, GPU_BLOCK))
        else:
            self.block = largest_divisor(problem.log_every, at_most)
        compile_update = self.compiled and not problem.mapped
        self._steps = pure_steps(self.objective, self.replicates, begin, compile_update)
        if self.compiled and problem.mapped:
            self._steps = accelerate(self._steps, self.device, self.block, self._go_on_uncompiled)

    def _go_on_uncompiled(self, reason: str) -> None:
        warnings.warn(reason, stacklevel=2)
        self.compiled = False

    @property
    def networks(self) -> Networks:
        """The networks as they are now."""
        return Networks(self.objective, self.replicates, self.params, self.iteration)

    def draw(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """What the next iterations read: ``[R, count, n]`` uniform and normal numbers, and rows of data."""
        path = self.problem.seed, self.iteration, TRAINING
        drawn = tapes(*path, self.replicates, count, self.numbers, self.device)
        return *drawn, self._order.rows(self.iteration, count)

    def train_block(self) -> None:
        """Train ``block`` iterations, or those left before the next log or phase, without logging."""
        if self.iteration == self._phase_end:
            self._enter()
        count = min(self.block, self.problem.log_every - self.iteration % self.problem.log_every)
        if self._phase_end is not None:
            count = min(count, self._phase_end - self.iteration)
        drawn = self.draw(count)
        iteration = torch.tensor(self.iteration, dtype=torch.float64, device=self.device)
        self._torn = self._on_gpu  # where a step changes the state in its place
        with torch.no_grad():
            params, moments = self._steps(self.params, self.moments, iteration, *drawn)
        # together, so that an interruption finds a whole state
        self.params, self.moments, self.iteration = params, moments, self.iteration + count
        self._torn = False

    def log(self) -> None:
        """Append the metrics of the current parameters to the curves.

        Raises:
            FloatingPointError: the parameters of a replicate are no longer finite.
            ValueError: the metrics do not fit, or are not those of the curves so far.
        """
        for i, replicate in enumerate(self.replicates):
            if not all(torch.isfinite(self.params[name][i]).all() for name in self.objective.trained):
                why = "a rate too large, NaN in a datum, or a datum that no particle explains"
                how = "; with mapped=False training stops at the step where it begins" * self.problem.mapped
                raise FloatingPointError(
                    f"parameters of replicate {replicate} are no longer finite at iteration "
                    f"{self.iteration}: {why}{how}"
                )
        values = {"iteration": np.asarray(self.iteration, np.float32), **self._measured()}
        # at once, so that an interruption finds whole curves
        self.curves = self.curves | {k: [*self.curves.get(k, ()), value] for k, value in values.items()}

    def _measured(self) -> dict[str, np.ndarray]:
        """The metrics of the current parameters."""
        with global_generators(seed_for(self.problem.seed, 0, self.iteration, METRICS), self.device):
            metrics = self.problem.evaluate(self.networks)
        return probe.metric_values(metrics, len(self.replicates), self.curves)

    def train(self, checkpoint: Path | str | None = None, progress: bool = False) -> dict[str, np.ndarray]:
        """Train to the end, resuming from the checkpoint if there is one.

        A checkpoint knows method, shapes, seeds, options and the names of the metrics, but not the code of
        model, data or evaluation: delete it when that changes.

        Args:
            checkpoint: file to write now and then and when interrupted, and to resume from.
            progress: show a progress bar with the time left on standard error.

        Returns:
            Curves ``[R, T, ...]`` by metric name, and ``iteration [T]``.

        Raises:
            FloatingPointError: the parameters of a replicate are no longer finite.
            ValueError: the checkpoint is not whole or of another run, or metrics do not fit.
        """
        checkpoint = None if checkpoint is None else Path(checkpoint)
        if checkpoint is not None and checkpoint.exists() and not self.load(checkpoint):
            checkpoint = None  # it belongs to a longer run and stays as it is
        begun = time.monotonic() - self.seconds
        try:
            with single_thread(self.device), self._bar(progress) as bar:
                self._train_to_the_end(checkpoint, begun, bar)
        except (KeyboardInterrupt, SystemExit):
            if checkpoint is not None and self.iteration > self._kept and not self._torn:
                self.save(checkpoint, time.monotonic() - begun)
            raise
        self.seconds = time.monotonic() - begun
        if checkpoint is not None:
            self.save(checkpoint, self.seconds)  # what follows may take minutes
        return {
            name: np.stack(values, axis=0 if name == "iteration" else 1)
            for name, values in self.curves.items()
        }

    def _bar(self, shown: bool) -> tqdm:
        length, title = self.problem.num_iterations, self.problem.method.title
        return tqdm(total=length, initial=self.iteration, desc=title, leave=False, disable=not shown)

    def _train_to_the_end(self, checkpoint: Path | None, begun: float, bar: tqdm) -> None:
        """Train block by block; log and save when it is time."""
        saved = time.monotonic()
        if checkpoint is not None and self.curves:
            self._measured()  # the checkpoint's may be of another evaluation, and at the end nothing logs
        logged = bool(self.curves) and self.curves["iteration"][-1] == np.float32(self.iteration)
        if self.iteration % self.problem.log_every == 0 and not logged:
            self.log()
        while self.iteration < self.problem.num_iterations:
            self.train_block()
            bar.update(self.iteration - bar.n)
            if self.iteration % self.problem.log_every == 0:
                self.log()
                now = time.monotonic()
                if checkpoint is not None and now - saved > CHECKPOINT_SECONDS:
                    self.save(checkpoint, now - begun)
                    saved = now

    def _identity(self) -> dict[str, str]:
        """What this run is, in words, but for its length."""
        problem, zero = self.problem, torch.zeros((), dtype=torch.float64, device=self.device)
        options = problem.options(zero.float())
        fields = {
            "method": problem.method.title,
            **{name: getattr(problem, name) for name in ("num_particles", "seed", "log_every")},
            "replicates": self.replicates,
            "epoch": problem.epoch and tuple(problem.epoch),
            "learning_rate": f"{float(problem.rate(zero)):g}",
            "options": {k: v.tolist() if isinstance(v, Tensor) else v for k, v in options.items()},
        }
        return {name: str(value) for name, value in fields.items()}

    def save(self, path: Path, seconds: float) -> None:
        """Write the whole state to a file, with the seconds that training took so far."""
        state = State(self.iteration, seconds, self.params, self.moments, self.curves)
        state.save(path, self.problem.num_iterations, self._identity())
        self._kept = self.iteration

    def load(self, path: Path) -> bool:
        """Read the state back; False, and nothing is changed, if it lies beyond this problem's end.

        Raises:
            ValueError: the file is not a whole checkpoint, or one of another run.
        """
        state = State(self.iteration, self.seconds, self.params, self.moments, self.curves)
        state = state.load(path, self.device, self._identity())
        if state.iteration > self.problem.num_iterations:
            return False
        self.params, self.moments, self.curves = state.params, state.moments, state.curves
        self.iteration, self.seconds, self._kept = state.iteration, state.seconds, state.iteration
        self._enter()
        return True
