"""A module whose functions are looked at when a method calls them: do they return what they should?"""

import inspect
import linecache
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rwslib import protocols
from rwslib.trees import batch_size, leaves

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


class MissingFunction(AttributeError):
    """An AttributeError, so that a method may ask with ``hasattr``."""


class Watched(nn.Module):
    """A part of a model whose functions are looked at whenever a method calls them."""

    def __init__(self, part: nn.Module, name: str, method: str):
        super().__init__()
        self.name, self.method, self.part = name, method, part

    def __getattr__(self, name: str) -> Any:
        part = self.__dict__["_modules"].get("part")
        if part is None or name == "part":
            return super().__getattr__(name)
        if not hasattr(part, name):
            signature = _signature(self.name, name)
            raise MissingFunction(f"{self.name} has no {name}{signature or ''}, which {self.method} needs")
        value = getattr(part, name)
        if _signature(self.name, name) is None or not callable(value):
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
        given = _bind(self.name, name, args, kwargs)
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
        elif name == "log_prior":
            many = getattr(result, "ndim", 1) == 2 and result.shape[-1] > 1  # a column is no categories
            check_density("log-probabilities", result, "D, C" if many else "C", (None,) * (1 + many))
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
            self._check_path(name, z)
        else:
            first = leaves(given["z"])[0]
            shape = first.shape[:2] if isinstance(first, Tensor) else (None, size_of(given["x"]))
            check_density(_RETURNS[name][0], result, "K, B", tuple(shape))

    def _check_path(self, name: str, z: Any) -> None:
        moving = any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves(z))
        if name in ("sample", "sample_defensive") and moving:
            raise Misfit("z without gradient: detach it, a path derivative belongs to rsample")
        learns = any(value.requires_grad for value in self.part.parameters())
        if name == "rsample" and learns and not moving:
            raise Misfit("z with a path derivative, but no gradient reaches its z")


class Misfit(ValueError):
    """A function of a model, or a method, returns something else than ``rwslib.protocols`` says."""


def _protocol_function(part: str, name: str) -> Callable | None:
    found = (getattr(protocol, name, None) for protocol in _PARTS.get(part, ()))
    return next(filter(inspect.isfunction, found), None)


def _signature(part: str, name: str) -> str | None:
    """The arguments of a function of the protocols, as a caller sees them; None if it is none of theirs."""
    function = _protocol_function(part, name)
    if function is None:
        return None
    return f"({', '.join(list(inspect.signature(function).parameters)[1:])})"


def _bind(part: str, name: str, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    function = _protocol_function(part, name)
    assert function is not None, "only functions of protocols are watched"
    names = list(inspect.signature(function).parameters)[1:]
    return {**dict(zip(names, args, strict=False)), **kwargs}


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
    numbers = [
        name if size is None else str(size) for name, size in zip(names.split(", "), shape, strict=True)
    ]
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
