"""Checks that the configurations of all experiments share."""

import math
from collections.abc import Collection
from difflib import get_close_matches
from typing import Any

from rwslib.methods import METHODS


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


def check_common(config: Any) -> None:
    """Check the fields that every configuration has, the method's own limits included."""
    known = list(METHODS)
    require(
        isinstance(config.method, str) and config.method in METHODS,
        "method",
        f"one of {known}",
        config.method,
    )
    method = METHODS[config.method]
    require_int("num_runs", config.num_runs, 1)
    require_int("seed", config.seed, 0)
    require(config.seed < 2**32, "seed", "below 2**32", config.seed)
    require_int("batch_size", config.batch_size, 1)
    require_number("learning_rate", config.learning_rate, 0)
    require_int("num_particles", config.num_particles, 1)
    require(
        config.num_particles >= method.min_particles,
        "num_particles",
        f"at least {method.min_particles} for method {config.method!r}",
        config.num_particles,
    )
