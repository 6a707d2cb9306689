"""Checks that the configurations of all experiments share."""

import math
import re
from collections.abc import Collection
from difflib import get_close_matches
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
from torch import Tensor

from rwslib.methods import METHODS, usable
from rwslib.noise import check_seed


def require(condition: bool, name: str, allowed: str, value: Any) -> None:
    """Raise one clear ``ValueError`` naming parameter, allowed values and the value given."""
    if not condition:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


def known_name(name: Any, known: Collection[str], what: str) -> None:
    """Refuse a name that nothing reads, and suggest the nearest."""
    close = get_close_matches(str(name), known, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    require(name in known, what, f"one of {list(known)}{hint}", name)


def require_int(name: str, value: Any, at_least: int) -> None:
    """Refuse anything but a whole number that is large enough."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    require(whole and value >= at_least, name, f"a whole number of at least {at_least}", value)


def require_number(name: str, value: Any, low: float, high: float = math.inf) -> None:
    """Refuse anything but a number strictly between two limits."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    allowed = f"a number above {low:g}" if high == math.inf else f"a number between {low:g} and {high:g}"
    require(number and low < value < high, name, allowed, value)


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


def fit_fields(config: Any) -> None:
    """Give every field of a configuration, frozen or not, its ``plain_value``."""
    for name, kind in get_type_hints(type(config)).items():
        object.__setattr__(config, name, plain_value(getattr(config, name), kind))


def check_common(config: Any, *offers: str) -> None:
    """Fit all fields, check those that every configuration has, and give the method's options their values.

    Args:
        *offers: what the model has for methods, see ``rwslib.methods.usable``.
    """
    fit_fields(config)
    if hasattr(config, "experiment"):
        default = type(config).experiment
        require(config.experiment == default, "experiment", repr(default), config.experiment)
    known = usable(*offers)
    allowed = f"one of {known} for this model"
    require(isinstance(config.method, str) and config.method in known, "method", allowed, config.method)
    method = METHODS[config.method]
    require_int("num_runs", config.num_runs, 1)
    check_seed(config.seed)
    require_int("batch_size", config.batch_size, 1)
    require_number("learning_rate", config.learning_rate, 0)
    require_int("num_particles", config.num_particles, 1)
    require(
        config.num_particles >= method.min_particles,
        "num_particles",
        f"at least {method.min_particles} for method {config.method!r}",
        config.num_particles,
    )
    for name in dict.fromkeys(
        name for row in METHODS.values() for name in row.options if hasattr(config, name)
    ):
        value = getattr(config, name)
        if name not in method.options:
            allowed = f"None for method {config.method!r}, which has no such option"
            require(value is None, name, allowed, value)
        elif value is None:
            object.__setattr__(config, name, method.options[name].of_run)  # frozen for everyone else
        else:
            method.options[name].check(name, value)


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
