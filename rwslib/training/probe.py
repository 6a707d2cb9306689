"""What a problem must fulfil, tried before anything trains: what does not fit is said in one sentence.

The method is called once, as training will call it, with modules that look at what goes in and what comes
out of each function of ``rwslib.protocols``.  The numbers drawn here are no run's numbers.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import vmap

from rwslib.checks import is_whole, require, require_int
from rwslib.noise import Noise, global_generators
from rwslib.training.watched import (
    OUT_OF_MEMORY,
    Misfit,
    Watched,
    check_density,
    describe,
    first_line,
    place,
    size_of,
)
from rwslib.trees import leaves

# -- the arguments of a problem ------------------------------------------------------------------------


def check_kinds(problem: Any) -> None:
    """Refuse what is no function where one is called, and the like.

    Raises:
        ValueError: with one sentence that names the argument.
    """
    for name in ("build", "draw_batch", "evaluate", "options", "finish"):
        require(callable(getattr(problem, name)), name, "a function", getattr(problem, name))
    require(hasattr(problem.optimizer, "delays"), "optimizer", "an Optimizer", problem.optimizer)
    require(isinstance(problem.phases, tuple | list), "phases", "a tuple of phases", problem.phases)


def check_arguments(problem: Any, parts: nn.ModuleDict) -> None:
    """Refuse arguments of a problem that do not fit each other, or that nothing would read.

    Raises:
        ValueError: with one sentence that names the argument.
    """
    method = problem.method
    require(hasattr(method, "min_particles"), "method", "a row of rwslib.methods.METHODS", method)
    if problem.epoch is not None:
        pair = isinstance(problem.epoch, tuple | list) and len(problem.epoch) == 2
        pair = pair and all(is_whole(number, 1) for number in problem.epoch)
        require(pair, "epoch", "None or (number of data, batch size)", problem.epoch)
        num_data, size = problem.epoch
        require(size <= num_data, "batch_size", f"at most the {num_data} data", size)
    for name in ("num_iterations", "log_every"):
        require_int(name, getattr(problem, name), 1)
    least = method.min_particles
    few = f"a whole number of at least {least} for method {method.title}"
    require(is_whole(problem.num_particles, least), "num_particles", few, problem.num_particles)
    whole = problem.num_iterations % problem.log_every == 0
    require(whole, "log_every", f"a divisor of num_iterations = {problem.num_iterations}", problem.log_every)
    require(not isinstance(problem.extensible, str), "extensible", "a tuple of names", problem.extensible)
    _check_rate(problem)
    _check_options(problem)
    _check_parts(problem, parts)


def _check_rate(problem: Any) -> None:
    rate, allowed = problem.learning_rate, "a positive number, or a function that gives one for an iteration"
    if callable(rate):
        rate = rate(torch.zeros((), dtype=torch.float64, device=problem.device))
        fine = torch.as_tensor(rate).ndim == 0 and 0 <= float(rate) < math.inf
    else:
        try:
            fine = not isinstance(rate, str) and 0 < float(rate) < math.inf
        except (TypeError, ValueError):
            fine = False
    require(fine, "learning_rate", allowed, rate)


def _check_options(problem: Any) -> None:
    options, method = problem.options(torch.zeros((), device=problem.device)), problem.method
    require(isinstance(options, dict), "options", "a function that returns a dict", options)
    unknown = [name for name in options if name not in method.options]
    known = f"those of method {method.title}, {list(method.options)}"
    takes = known if method.options else f"none for method {method.title}, which takes none"
    require(not unknown, "options", takes, unknown)
    for name, value in options.items():
        option = method.options[name]
        plain = value.tolist() if isinstance(value, Tensor) else value
        replace(option, start=None).check(name, plain)


def _check_parts(problem: Any, parts: nn.ModuleDict) -> None:
    method = problem.method
    needed = ["p", "q", *["control_variate"] * bool(method.control_variate)]
    for name in needed:
        if name not in parts:
            raise ValueError(
                f"build must return a {name!r}, which method {method.title} needs, got {list(parts)}"
            )
    for name in parts:
        if name not in needed:
            raise ValueError(f"build returns a {name!r}, which method {method.title} does not read")
    if method.control_variate == "variance":
        allowed = f"True for method {method.title}, whose control variate is trained through the gradient"
        require(problem.mapped, "mapped", allowed, problem.mapped)
        learns = any(value.requires_grad for value in parts["q"].parameters())
        require(learns, "q", f"trainable for method {method.title}", "frozen parameters alone")
    learns = any(value.requires_grad for value in parts.parameters())
    require(learns, "build", "a function that returns something to train", "frozen parameters alone")
    names = [name for name, _ in [*parts.named_parameters(), *parts.named_buffers()]]
    delays = problem.optimizer.delays
    require(not (delays and problem.phases), "delays", "empty where there are phases", delays)
    for phase in problem.phases:
        fine = is_whole(phase.iterations, 0) and phase.trains and set(phase.trains) <= set(parts)
        require(fine, "phases", f"phases that train some of {needed}", phase)
    before = sum(phase.iterations for phase in problem.phases)
    at_most = f"together at most num_iterations = {problem.num_iterations} steps long"
    require(before <= problem.num_iterations, "phases", at_most, before)
    for start in delays:
        found = any(name.startswith(start) for name in names)
        require(found, "delays", f"the start of names of parameters, such as {names[0]!r}", start)


# -- one call ------------------------------------------------------------------------------------------


def try_problem(problem: Any, parts: nn.ModuleDict, rows: Tensor) -> tuple[list[dict[str, int]], set[str]]:
    """Call a problem's functions once, as training does, and look at all that they return.

    Args:
        parts: the modules of one replicate; they stay as they are.
        rows: the data's turn of a first batch, ``[B]``.

    Returns:
        How many random numbers of each kind a step takes, for each phase and at the end for the method,
        and the names of the buffers that a step changes.

    Raises:
        ValueError: with one sentence that names function, shape, dtype and method.
    """
    copies, numbers, device = copy.deepcopy(parts), [], problem.device
    with global_generators(0, device) as touched, torch.enable_grad():
        for phase in (*problem.phases, None):
            noise = Noise(0, device=device)
            x = _draw(problem, noise, rows)
            loss = _losses(problem, copies, x, noise, phase)
            _check_reached(problem, copies, loss, phase)
            numbers.append(noise.used)
        if problem.num_particles == size_of(x):  # else [B, K] would pass for [K, B]
            more = replace(problem, num_particles=problem.num_particles + 1)
            try:
                _losses(more, copies, x, Noise(0, device=device))
            except Misfit as misfit:
                raise Misfit(f"{misfit} (tried with {more.num_particles} particles)") from None
            except Exception:  # a model may be made for its K alone
                pass
        if problem.mapped and touched():
            raise ValueError(
                f"a step draws random numbers from {touched()[0]}, the same for all replicates: draw them "
                "from `noise`, or set mapped=False, which seeds it"
            )
    after = dict(copies.named_buffers())
    changed = {name for name, value in parts.named_buffers() if not torch.equal(value, after[name])}
    if problem.mapped and changed:
        raise ValueError(
            f"method {problem.method.title} maps the model over replicates, but it changes its buffer "
            f"{min(changed)} (BatchNorm does): build it in eval mode, or set mapped=False, which takes one "
            "replicate after the other"
        )
    return numbers, {f"parts.{name}" for name in changed}


def _draw(problem: Any, noise: Noise, rows: Tensor) -> Any:
    device = problem.device
    if problem.epoch is not None:
        last = torch.arange(problem.epoch[0] - len(rows), problem.epoch[0], device=rows.device)
        try:
            problem.draw_batch(Noise(0, device=device), last)
        except IndexError as error:
            raise ValueError(
                f"epoch must be (number of data, batch size), got {problem.epoch}, but draw_batch fails for "
                f"row {problem.epoch[0] - 1}: {error}"
            ) from error
    x = problem.draw_batch(noise, rows)
    _check_repeats(problem, rows)
    size = size_of(x)
    if problem.epoch is None and size == 0:
        raise ValueError(
            "draw_batch returns an empty batch: without epoch=(number of data, batch size) its rows are empty"
        )
    tensors = [leaf for leaf in leaves(x) if isinstance(leaf, Tensor)]
    if any(isinstance(leaf, np.ndarray) for leaf in leaves(x)):
        raise ValueError(
            "draw_batch must return tensors, got NumPy's arrays: torch.as_tensor makes them some"
        )
    if any(leaf.ndim == 0 or len(leaf) != size for leaf in tensors):
        raise ValueError(f"draw_batch must return tensors [B, ...] of one B, got {describe(x)}")
    if problem.epoch is not None and size not in (None, len(rows)):
        got = f"a list of {size}: tensors that belong together go into a tuple" if isinstance(x, list) else ""
        raise ValueError(
            f"draw_batch must return a datum for each of its {len(rows)} rows (the batch size of epoch), "
            f"got {got or describe(x)}"
        )
    for leaf in tensors:
        if leaf.device.type != torch.device(device).type:
            raise ValueError(
                f"draw_batch must return a batch on {device}, where the model is, got {leaf.device}"
            )
        if leaf.is_floating_point() and not leaf.isfinite().all():
            raise ValueError(
                f"draw_batch must return finite numbers, got NaN or infinite ones in {describe(leaf)}: "
                "what is missing needs a mask beside it"
            )
    return x


def _check_repeats(problem: Any, rows: Tensor) -> None:
    """Refuse a batch that is not made of its noise and rows alone, as that of an iterator."""
    batches = []
    for _ in range(2):
        with global_generators(1, problem.device):
            batches.append(leaves(problem.draw_batch(Noise(0, device=problem.device), rows)))
    pairs = zip(*batches, strict=False)
    same = len(batches[0]) == len(batches[1]) and all(
        a.shape == b.shape and bool(((a == b) | (a != a)).all())
        for a, b in pairs
        if isinstance(a, Tensor) and isinstance(b, Tensor)
    )
    if not same:
        raise ValueError(
            "draw_batch returns different batches for the same noise and rows: take the data at `rows` from "
            "a tensor, and random numbers from `noise`, or no run can be repeated or resumed"
        )


def _losses(problem: Any, parts: nn.ModuleDict, x: Any, noise: Noise, phase: Any = None) -> Tensor:
    what = _called(problem, phase)
    watched = {name: Watched(part, name, what) for name, part in parts.items()}
    loss = problem.losses(watched, x, noise, torch.zeros((), device=noise.device), phase)
    try:
        check_density("losses", loss, "B", (size_of(x),))
    except Misfit as misfit:
        raise Misfit(f"{what} must return {misfit}") from None
    return loss


def _called(problem: Any, phase: Any) -> str:
    return f"method {problem.method.title}" if phase is None else f"phase {problem.phases.index(phase) + 1}"


def _check_reached(problem: Any, parts: nn.ModuleDict, loss: Tensor, phase: Any) -> None:
    """Refuse a model to which no gradient comes, as under ``no_grad``."""
    names = ("p", "q") if phase is None else phase.trains
    trained = [(name, value) for name in names for value in parts[name].parameters() if value.requires_grad]
    found: Sequence[Tensor | None] = [None] * len(trained)
    if trained and loss.requires_grad:
        found = torch.autograd.grad(loss.mean(), [value for _, value in trained], allow_unused=True)
    reached = {name for (name, _), value in zip(trained, found, strict=True) if value is not None}
    for name, _ in trained:
        if name not in reached:
            raise ValueError(
                f"no gradient of {_called(problem, phase)} reaches any parameter of {name}: "
                "is something detached, or are they to be frozen (requires_grad_(False))?"
            )


_READS = "reads a value (`if`, .item(), one_hot, validate_args of torch.distributions)"
_KINDS_OF_ERRORS = {  # what vmap and grad say, and what it means here
    "random operation": "draws random numbers of its own (Dropout and .sample() do)",
    "mutate a captured": "changes a tensor in place (BatchNorm does)",
    "updated in place": "changes a tensor in place (BatchNorm does)",
    "inplace arithmetic": "changes a tensor in place",
    "control flow": _READS,
    ".item()": _READS,
    "doesn't have storage": _READS,
    "dynamic shape": "has a shape that depends on a value",
    "Batching rule not implemented": "calls what vmap cannot take (GRU and LSTM do)",
}


def try_mapped(
    objectives: Sequence[Any], numbers: list[dict[str, int]], params: dict[str, Tensor], rows: Tensor
) -> None:
    """One gradient of one replicate, mapped as in training, in each phase.

    Args:
        objectives: one for each phase.
        numbers: how many random numbers of each kind a step of it takes.
        params: of the replicates, ``[R, ...]`` each.
        rows: the data's turn of a first batch, ``[1, B]``.

    Raises:
        ValueError: the model cannot be mapped over replicates; one sentence says why, and what to do.
    """
    problem = objectives[0].problem
    first, noise = {name: value[:1] for name, value in params.items()}, Noise(0, device=problem.device)
    advice = "set mapped=False, which takes one replicate after the other"
    if problem.method.control_variate == "variance":
        advice = "choose another method for such a model"
    for objective, used in zip(objectives, numbers, strict=True):
        gradients = partial(objective.step_gradients, progress=problem.progress(0))
        drawn = noise.uniform(1, used["uniform"]), noise.normal(1, used["normal"])
        what = _called(problem, objective.phase)
        with torch.no_grad(), mapping(what, advice, Exception):  # it did not fail alone
            vmap(gradients)(first, *drawn, rows)


@contextmanager
def mapping(what: str, advice: str, errors: type[Exception] = RuntimeError) -> Iterator[None]:
    """Say what an error of ``vmap`` means.

    Raises:
        ValueError: instead of these errors.
    """
    try:
        yield
    except OUT_OF_MEMORY:
        raise
    except errors as error:
        found = [meaning for text, meaning in _KINDS_OF_ERRORS.items() if text in str(error)]
        reason = found[0] if found else f"fails there ({first_line(error)})"
        raise ValueError(
            f"{what} maps the model over replicates, but it {reason}{place(error)}: "
            f"rewrite it (random numbers from `noise`, torch.where for `if`), or {advice}"
        ) from error


def metric_values(
    metrics: Any, num_replicates: int, curves: Mapping[str, list], of: str = "evaluate"
) -> dict[str, np.ndarray]:
    """What ``evaluate``, or another function of a problem, returned, as float32 arrays ``[R, ...]``.

    Raises:
        ValueError: it is no dict, or a value is no number, has no first axis of the replicates, or not the
            shape it had; or the names are others than those of the curves.
    """
    require(isinstance(metrics, dict), of, "a function that returns a dict", metrics)
    require("iteration" not in metrics, of, "a function without metric 'iteration'", sorted(metrics))
    known = sorted(curves.keys() - {"iteration"})
    if curves and known != sorted(metrics):
        raise ValueError(
            f"{of} must return the metrics {known} of the curves so far, or of the checkpoint, "
            f"got {sorted(metrics)}"
        )
    values = {}
    for name, metric in metrics.items():
        try:
            value = metric.detach().cpu() if isinstance(metric, Tensor) else torch.as_tensor(metric)
        except (TypeError, ValueError, RuntimeError):  # text, None, rows of different lengths
            raise ValueError(
                f"metric {name!r} of {of} must be a tensor, an array or a list of numbers, got {metric!r}"
            ) from None
        lead = f"must lead with the {num_replicates} replicates"
        if value.ndim == 0 or len(value) != num_replicates:
            got = describe(metric) if isinstance(metric, Tensor) else f"{metric!r}"
            raise ValueError(f"metric {name!r} of {of} {lead} ([R, ...]), got {got}")
        values[name] = value.float().numpy()
        before = curves.get(name)
        if before and before[-1].shape != values[name].shape:
            raise ValueError(
                f"metric {name!r} of {of} must keep its shape {list(before[-1].shape)}, "
                f"got {list(value.shape)}"
            )
    return values
