"""Grids of runs: many configurations, written as a few lines of YAML."""

import itertools
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from rwslib.experiments import CONFIGS
from rwslib.experiments.common import require


def known_name(name: Any, known: Mapping[str, Any], what: str) -> None:
    """Refuse a name that nothing reads, and suggest the nearest."""
    close = get_close_matches(str(name), known, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    require(name in known, what, f"one of {list(known)}{hint}", name)


def entries(grid: Path) -> Iterator[dict[str, Any]]:
    """Every single row of a grid file: a list of mappings, each the product of its lists."""
    try:
        listed = yaml.safe_load(grid.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{grid} is not YAML: {' '.join(str(error).split())}") from None
    require(isinstance(listed, list), str(grid), "a list of mappings", listed)
    for entry in listed:
        require(isinstance(entry, dict), str(grid), "a list of mappings", entry)
        fields = {name: value if isinstance(value, list) else [value] for name, value in entry.items()}
        for values in itertools.product(*fields.values()):
            yield dict(zip(fields, values, strict=True))


def configuration(fields: Mapping[str, Any]) -> Any:
    """The configuration of one row, checked."""
    fields = dict(fields)
    experiment = fields.pop("experiment", None)
    require(
        isinstance(experiment, str) and experiment in CONFIGS,
        "experiment",
        f"one of {list(CONFIGS)}",
        experiment,
    )
    for name in fields:
        known_name(name, CONFIGS[experiment].__dataclass_fields__, "field")
    try:
        return CONFIGS[experiment](**fields)
    except TypeError as error:  # a required field is missing, or a mapping stands where a value should
        raise ValueError(f"a {experiment} run cannot be made of {fields}: {error}") from None


def configurations(grid: Path) -> Iterator[Any]:
    """The configurations of a grid file."""
    yield from map(configuration, entries(grid))
