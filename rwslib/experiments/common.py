"""What a configuration's fields may be, declared with them, and the checks that all configurations share."""

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, field, fields
from difflib import get_close_matches
from functools import partial
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
from torch import Tensor

from rwslib.checks import require, require_int
from rwslib.methods import METHODS, Option, usable
from rwslib.noise import check_seed


def known_name(name: Any, known: Collection[str], what: str) -> None:
    """Refuse a name that nothing reads, and suggest the nearest."""
    close = get_close_matches(str(name), known, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    require(name in known, what, f"one of {list(known)}{hint}", name)


Check = Callable[[str, Any], None]  # of a name and a value; raises ``ValueError``


def checked(check: Check, default: Any = MISSING, **metadata: Any) -> Any:
    """A field of a configuration with the check of its values; None passes where it is the default."""
    return field(default=default, metadata={"check": check, **metadata})


def whole(at_least: int, at_most: float = math.inf) -> Check:
    """The check of a whole number in a range."""
    return partial(require_int, at_least=at_least, at_most=at_most)


def number(above: float, below: float = math.inf) -> Check:
    """The check of a number strictly between two limits."""
    return Option(None, above, below).check


def choice(*values: Any) -> Check:
    """The check of a few values."""
    return Option(None, choices=values).check


def one_of(names: Collection[str]) -> Check:
    """The check of the names of a table."""
    return lambda name, value: require(value in list(names), name, f"one of {list(names)}", value)


def each(check: Check, what: str, count: int | None = None) -> Check:
    """The check of a list of values, called what, in a message, and of so many."""

    def check_all(name: str, value: Any) -> None:
        fits = isinstance(value, list | tuple) and count in (None, len(value))
        require(fits, name, what, value)
        for item in value:
            check(name, item)

    return check_all


def plain_value(value: Any, kind: Any, text: bool = False) -> Any:
    """A value as the plain Python value of its type, so that what is equal is written equally.

    A whole number becomes a ``float`` where one is wanted, minus zero becomes zero, a NumPy scalar or array
    plain numbers, a list a tuple.  What does not fit stays as it is, for a check to refuse.

    Args:
        kind: a type such as ``float``, ``bool | None`` or ``tuple[float, ...]``.
        text: read numbers from text, too, see ``read_number``.
    """
    if isinstance(value, np.generic | np.ndarray):
        value = float(value) if isinstance(value, np.floating) else value.tolist()
    if NoneType in get_args(kind):
        (kind,) = (option for option in get_args(kind) if option is not NoneType)
    if get_origin(kind) in (list, tuple) and isinstance(value, list | tuple):
        return get_origin(kind)(plain_value(item, get_args(kind)[0], text) for item in value)
    if kind is float and text:
        value = read_number(value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value) + 0.0
        except OverflowError:
            return math.inf
    if kind is str and isinstance(value, str):
        return str(value)
    return value


def read_number(value: Any) -> Any:
    """Text that is a number as a ``float``, as YAML 1.1 has no other way to read 1e-3; the rest as it is."""
    number = isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", value)
    return float(value) if number else value


def check_common(config: Any) -> None:
    """Fit all fields, check those that every configuration has, and give the method's options their values.

    ``config.offers`` is what the model has for methods, see ``rwslib.methods.usable``.
    """
    for name, kind in get_type_hints(type(config)).items():  # each field its plain value, frozen or not
        object.__setattr__(config, name, plain_value(getattr(config, name), kind))
    if hasattr(config, "experiment"):
        default = type(config).experiment
        require(config.experiment == default, "experiment", repr(default), config.experiment)
    known = usable(*config.offers)
    allowed = f"one of {known} for this model"
    require(isinstance(config.method, str) and config.method in known, "method", allowed, config.method)
    method = METHODS[config.method]
    check_seed(config.seed)
    for name in ("num_runs", "batch_size", "num_particles"):
        require_int(name, getattr(config, name), 1)
    number(above=0)("learning_rate", config.learning_rate)
    few = f"at least {method.min_particles} for method {config.method!r}"
    require(config.num_particles >= method.min_particles, "num_particles", few, config.num_particles)
    for declared in fields(config):
        value = getattr(config, declared.name)
        if "check" in declared.metadata and (value is not None or declared.default is not None):
            declared.metadata["check"](declared.name, value)
    for name in options_of(type(config)):
        value = getattr(config, name)
        if name not in method.options:
            allowed = f"None for method {config.method!r}, which has no such option"
            require(value is None, name, allowed, value)
        elif value is None:
            object.__setattr__(config, name, method.options[name].of_run)  # frozen for everyone else
        else:
            method.options[name].check(name, value)
    if getattr(config, "center_weights", False):  # of one particle nothing would be left
        few = "at least 2 with center_weights"
        require(config.num_particles >= 2, "num_particles", few, config.num_particles)


def options_of(config: type) -> list[str]:
    """The fields of a configuration that are options of methods, None for those that lack them."""
    names = dict.fromkeys(name for row in METHODS.values() for name in row.options)
    return [f.name for f in fields(config) if f.name in names]


def options_at(config: Any, progress: Tensor) -> dict[str, Any]:
    """What a configuration sets of its method's options, at a progress in [0, 1)."""
    options = {}
    for name, option in METHODS[config.method].options.items():
        value = getattr(config, name, None)
        if value is not None and option.start is not None:
            first, last = value
            value = first + (last - first) * progress
        if value is not None:
            options[name] = value
    return options


def with_errors(estimates: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Means over the data of values ``[N]`` by name, and their standard errors as ``NAME_se``."""
    means = {name: value.mean() for name, value in estimates.items()}
    return means | {f"{name}_se": value.std() / math.sqrt(len(value)) for name, value in estimates.items()}


def evenly(tensor: Tensor, count: int) -> Tensor:
    """At most so many entries, evenly spaced."""
    return tensor[:: max(1, len(tensor) // count)][:count]
