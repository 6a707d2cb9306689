"""A module whose functions are looked at when a method calls them: do they return what they should?"""

import inspect
import linecache
import math
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rwslib import protocols
from rwslib.trees import batch_size, leaves, tree_map

_PARTS = {
    "p": (protocols.DefensiveGenerative, protocols.CategoricalGenerative),
    "q": (protocols.ReparameterisedInference, protocols.MixedInference, protocols.CategoricalInference),
    "control_variate": (protocols.GumbelControlVariate, protocols.Baseline),
}
_FORWARD = {"p": "log_joint", "q": "log_prob"}  # what a method means when it calls the module itself
_RETURNS = {  # latents first where there are any
    "sample": ("log_q",),
    "rsample": ("log_q",),
    "sample_mixed": ("log_q", "log_q_score"),
    "sample_defensive": ("log_r",),
    "log_joint": ("log_p",),
    "log_likelihood": ("log_p",),
    "log_prob": ("log_q",),
}
OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)


class MissingFunction(AttributeError, ValueError):
    """An AttributeError, too, so that a method may ask with ``hasattr``."""


class Watched(nn.Module):
    """A part of a model whose functions are looked at whenever a method calls them."""

    def __init__(self, part: nn.Module, name: str, method: str):
        super().__init__()
        self.name, self.method, self.part = name, method, part

    def __getattr__(self, name: str) -> Any:
        part = self.__dict__["_modules"].get("part")
        if part is None or name == "part":
            return super().__getattr__(name)
        arguments = _arguments(self.name, name)
        if not hasattr(part, name):
            signature = "" if arguments is None else f"({', '.join(arguments)})"
            raise MissingFunction(f"{self.name} has no {name}{signature}, which {self.method} needs")
        value = getattr(part, name)
        if arguments is None or not callable(value):
            return value
        return lambda *args, **kwargs: self._watch(name, value, *args, **kwargs)

    def forward(self, *args: Any) -> Any:
        name = _FORWARD.get(self.name, "forward")
        if type(self.part).forward is nn.Module.forward:
            means = f", for example `forward = {name}`" if name != "forward" else ""
            raise ValueError(f"{self.name} has no forward, which {self.method} needs{means}")
        before = torch.get_rng_state()
        result = self._watch(name, self.part, *args, called="forward")
        if type(self.part).forward is not getattr(type(self.part), name, type(self.part).forward):
            torch.set_rng_state(before)  # for those that draw from it
            expected = getattr(self.part, name)(*args)
            if not torch.allclose(result, expected, rtol=1e-3, atol=1e-3, equal_nan=True):
                raise ValueError(
                    f"{self.name}.forward must be {name} for {self.method}, but its values differ"
                )
        return result

    def _watch(self, name: str, function: Callable, *args: Any, called: str = "", **kwargs: Any) -> Any:
        where = f"{self.name}.{called or name}"
        given = {**dict(zip(_arguments(self.name, name) or (), args, strict=False)), **kwargs}
        try:
            result = function(*args, **kwargs)
        except OUT_OF_MEMORY:
            raise
        except Exception as error:
            shapes = ", ".join(f"{key} {describe(value)}" for key, value in given.items() if key != "noise")
            raise ValueError(
                f"{where} fails for {shapes} ({self.method}): {first_line(error)}{place(error)}"
            ) from error
        try:
            self._check(name, given, result)
            self._check_values(name, function, given, result)
        except Misfit as misfit:
            raise Misfit(f"{where} must return {misfit} ({self.method})") from None
        return result

    def _check(self, name: str, given: dict[str, Any], result: Any) -> None:
        if self.name == "control_variate":
            check_density("a value", result, "B", (size_of(given["x"]),))
        elif name == "log_probs":
            many = getattr(result, "ndim", 2) == 3  # a vector of latents
            shape = (size_of(given["x"]), *(None,) * (1 + many))
            check_density("log-probabilities", result, "B, D, C" if many else "B, C", shape)
            _check_sum(result)
        elif name == "log_prior":
            many = getattr(result, "ndim", 1) == 2 and result.shape[-1] > 1  # a column is no categories
            check_density("log-probabilities", result, "D, C" if many else "C", (None,) * (1 + many))
            _check_sum(result)
        elif "num" in given:
            z, x = _unpack(result, ("z", "x"))
            _check_lead("z", z, "num", (given["num"],))
            _check_lead("x", x, "num", (given["num"],))
        elif "num_particles" in given:
            shape = (given["num_particles"], size_of(given["x"]))
            z, *densities = _unpack(result, ("z", *_RETURNS[name]))
            _check_lead("z", z, "K, B", shape)
            for what, density in zip(_RETURNS[name], densities, strict=True):
                check_density(what, density, "K, B", shape)
            _check_draws(z, densities[0])
            self._check_path(name, z, *densities)
        else:
            first = leaves(given["z"])[0]
            shape = first.shape[:2] if isinstance(first, Tensor) else (None, size_of(given["x"]))
            check_density(_RETURNS[name][0], result, "K, B", tuple(shape))

    def _check_path(self, name: str, z: Any, log_q: Tensor, log_q_score: Tensor | None = None) -> None:
        moving = any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves(z))
        if name in ("sample", "sample_defensive") and moving:
            raise Misfit("z without gradient: detach it, a path derivative belongs to rsample")
        learns = any(value.requires_grad for value in self.part.parameters())
        if name in ("rsample", "sample_mixed") and learns and not moving:
            raise Misfit("z with a path derivative, but no gradient reaches its z")
        if log_q_score is not None and moving and torch.equal(log_q, log_q_score):
            raise Misfit("log_q_score as the part of log_q that belongs to the choices, got all of log_q")

    def _check_values(self, name: str, function: Callable, given: dict[str, Any], result: Any) -> None:
        """Look at log-densities once more: at one particle of one datum, and those of q beside log_prob's."""
        batch_norm = torch.nn.modules.batchnorm._BatchNorm
        if any(isinstance(module, batch_norm) and module.training for module in self.part.modules()):
            return  # data do depend on each other
        density = result if isinstance(result, Tensor) else result[1]
        if isinstance(density, Tensor) and len(set(density.shape[:2])) == 1:
            return  # [B, K] may pass for [K, B]: the next call has another K
        if "z" in given and isinstance(result, Tensor):
            z, x = given["z"], given["x"]
            alone = _again(function, z, x, result, lambda t: t[:1, :1], lambda t: t[:1])
            if alone is not None and not torch.allclose(alone, result[:1, :1], 0.02, 0.1, equal_nan=True):
                raise Misfit(
                    "a number for each particle and datum by itself, but that of the first depends on the "
                    "others: is there a sum over too many axes?"
                )
        elif name in ("sample", "rsample", "sample_mixed") and "num_particles" in given:
            z, log_q, *_ = result
            log_prob: Any = getattr(self.part, "log_prob", None)
            expected = _again(log_prob, z, given["x"]) if log_prob else None
            if expected is None or expected.shape != log_q.shape:
                return
            if not torch.allclose(log_q, expected, 0.02, 0.1, equal_nan=True):
                worst = (log_q - expected).abs().nan_to_num(torch.inf).argmax()
                both = [f"{t.flatten()[worst].item():.4g}" for t in (log_q, expected)]
                raise Misfit(f"log_q as log_prob gives it at its z, got {both[0]} where that is {both[1]}")
            if name == "rsample" and self._has_choices(z, given["x"], expected):
                raise Misfit("z without choices, which have no path derivative: with them it is sample_mixed")
            if name == "sample" and not self._same_gradient(log_q, expected):
                raise Misfit("log_q with the gradient of log_prob at its z: compute it at the detached z")

    def _has_choices(self, z: Any, x: Any, log_q: Tensor) -> bool:
        """Whether the density depends on whole numbers that differ between particles."""
        log_prob: Any = self.part.log_prob
        moved = _again(
            log_prob, z, x, log_q, lambda t: t if t.is_floating_point() else t.roll(1, 0), lambda t: t
        )
        return moved is not None and not torch.allclose(moved, log_q, equal_nan=True)

    def _same_gradient(self, log_q: Tensor, expected: Tensor) -> bool:
        learns = [value for value in self.part.parameters() if value.requires_grad]
        if not (learns and log_q.requires_grad and expected.requires_grad):
            return True
        found = (
            torch.autograd.grad(t.sum(), learns, retain_graph=True, allow_unused=True, materialize_grads=True)
            for t in (log_q, expected)
        )
        one, other = (torch.cat([part.flatten() for part in parts]) for parts in found)
        return bool((one - other).norm() <= 0.05 * other.norm() + 0.01)


class Misfit(ValueError):
    """A function of a model, or a method, returns something else than ``rwslib.protocols`` says."""


def _arguments(part: str, name: str) -> list[str] | None:
    """The arguments of a function of the protocols, as a caller sees them; None if it is none of theirs."""
    found = (getattr(protocol, name, None) for protocol in _PARTS.get(part, ()))
    function = next(filter(inspect.isfunction, found), None)
    return None if function is None else list(inspect.signature(function).parameters)[1:]


def describe(value: Any) -> str:
    """Structure, dtypes and shapes: what a sentence can say of a tree."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {describe(part)}" for name, part in value.items()) + "}"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(describe, value)) + ")"
    return str(value) if isinstance(value, int | float) else type(value).__name__


def size_of(x: Any) -> int | None:
    """The number of data of a batch, None where nothing says it."""
    try:
        return batch_size(x)
    except (TypeError, IndexError):
        return None


def _unpack(result: Any, names: tuple[str, ...]) -> tuple:
    if not isinstance(result, tuple) or len(result) != len(names):
        raise Misfit(f"({', '.join(names)}), got {describe(result)}")
    return result


def _shape(names: str, shape: tuple[int | None, ...], more: str = "") -> str:
    numbers = [name if n is None else str(n) for name, n in zip(names.split(", "), shape, strict=True)]
    return f"[{names}{more}] = [{', '.join(numbers)}{more}]"


def _fits(value: Tensor, shape: tuple[int | None, ...]) -> bool:
    return len(value.shape) >= len(shape) and all(
        size is None or size == found for size, found in zip(shape, value.shape, strict=False)
    )


def check_density(what: str, value: Any, names: str, shape: tuple[int | None, ...]) -> None:
    """Refuse all but floating point numbers of a shape, of which None is any length.

    Raises:
        Misfit: with the end of a sentence.
    """
    fits = isinstance(value, Tensor) and value.ndim == len(shape) and _fits(value, shape)
    if not (fits and value.is_floating_point()):
        raise Misfit(f"{what} as floating point numbers {_shape(names, shape)}, got {describe(value)}")


def _check_lead(what: str, tree: Any, names: str, shape: tuple[int | None, ...]) -> None:
    if not all(_fits(leaf, shape) for leaf in leaves(tree) if isinstance(leaf, Tensor)):
        raise Misfit(f"{what} of shape {_shape(names, shape, ', ...')}, got {describe(tree)}")


def _check_draws(z: Any, log_q: Tensor) -> None:
    same = all(isinstance(t, Tensor) and torch.equal(t, t[:1].expand_as(t)) for t in leaves(z))
    if same and log_q[1:].sum() < math.log(1e-9):  # the chance of the particles after the first
        raise Misfit("z with particles of their own, but all are the same: one draw for all, or an arg max?")


def _check_sum(log_probs: Tensor) -> None:
    total = log_probs.detach().logsumexp(dim=-1).exp()
    if not torch.allclose(total, torch.ones_like(total), atol=0.01):
        worst = total.flatten()[(total - 1).abs().argmax()].item()
        raise Misfit(f"log-probabilities of probabilities that sum to one, got a sum of {worst:.3g}")


def _again(
    function: Callable,
    z: Any,
    x: Any,
    before: Tensor | None = None,
    of_z: Callable[..., Tensor] | None = None,
    of_x: Callable[..., Tensor] | None = None,
) -> Tensor | None:
    """A density at z and x, or at parts of them; None where it is random, or fails there."""
    try:
        whole = function(z, x)
        if not torch.allclose(function(z, x) if before is None else before, whole, equal_nan=True):
            return None
        return whole if of_z is None or of_x is None else function(tree_map(of_z, z), tree_map(of_x, x))
    except OUT_OF_MEMORY:
        raise
    except Exception:  # said where a method calls it, if one does
        return None


def first_line(error: Exception) -> str:
    """An error in a few words."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def place(error: Exception) -> str:
    """The innermost line of the user's own code that an error passed through."""
    outside = [Path(torch.__file__).parent, Path(__file__).parent.parent]
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        code = frame.f_code
        if not any(folder in Path(code.co_filename).parents for folder in outside):
            text = linecache.getline(code.co_filename, line).strip()
            return f", in {code.co_qualname}" + (f" at `{text}`" if text else "")
    return ""
