"""Run a notebook with other parameters: check them first, then let papermill execute it."""

import ast
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import nbformat
import papermill
import torch
import yaml
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillExecutionError

from rwslib import records
from rwslib.experiments import CONFIGS
from rwslib.experiments.common import known_name, read_number, require
from rwslib.experiments.own_model import OwnModelConfig

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
KINDS = {  # what a parameter's type is called in messages
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "list": "a list such as [2, 5]",
    "dict": "a mapping",
}
OUTSIDE = ("__main__.py", "inspection.py", "rerun.py", "sweep.py")  # no notebook imports them


@dataclass(frozen=True)
class Parameter:
    """One parameter of a notebook: its name, its type's name, its default and what it means."""

    name: str
    kind: str
    default: Any
    help: str


def find(name: str) -> Path:
    """A notebook by its name (``02_gmm``) or its path.

    Raises:
        ValueError: there is no such notebook.
    """
    known = {path.stem: path for path in sorted(NOTEBOOKS.glob("*.ipynb"))}
    if name in known:
        return known[name]
    if name.endswith(".ipynb") and Path(name).is_file():
        return Path(name).resolve()
    known_name(name, known, "notebook")


@lru_cache
def parameters(notebook: Path) -> dict[str, Parameter]:
    """The parameters of a notebook by name, from its cell tagged ``parameters``."""
    found = {}
    for entry in papermill.inspect_notebook(str(notebook)).values():
        try:
            default = ast.literal_eval(entry["default"])
        except ValueError:
            default = None
        kind = entry["inferred_type_name"]
        kind = kind if kind in KINDS else type(default).__name__
        found[entry["name"]] = Parameter(entry["name"], kind, default, entry["help"])
    return found


def describe(notebook: Path) -> str:
    """A table of a notebook's parameters."""
    rows = [("name", "type", "default", "meaning")]
    rows += [(p.name, p.kind, json.dumps(p.default), p.help) for p in parameters(notebook).values()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join("  ".join([*map(str.ljust, row, widths), row[3]]).rstrip() for row in rows)


def choose(
    notebook: Path,
    given: Iterable[tuple[str, str]] = (),
    file: Path | None = None,
    scale: str | None = None,
) -> dict[str, Any]:
    """The parameters that differ from the defaults: those of the scale, then of the file, then ``given``.

    Args:
        given: names, and values as they were typed.
        file: YAML mapping of names to values.
        scale: "quick" or "paper", see ``notebooks/parameters``.

    Raises:
        ValueError: a name is unknown, or a value has the wrong type or is refused by the experiment.
    """
    known, values = parameters(notebook), {}
    if scale:
        path = NOTEBOOKS / "parameters" / f"{notebook.stem}-{scale}.yaml"
        if path.exists():
            values |= read_mapping(path)
        elif scale != "paper":  # whose parameters are the defaults, where no file says otherwise
            raise ValueError(f"scale must be one that {notebook.stem} has a file for, got {scale!r}")
    if file:
        values |= read_mapping(file)
    for name, text in given:
        known_name(name, known, "parameter")
        values[name] = typed(known[name], text)
    return check(notebook, values)


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping; an empty file is an empty mapping."""
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    require(isinstance(content, dict | None), str(path), "a mapping of names to values", content)
    return content or {}


def typed(parameter: Parameter, text: str) -> Any:
    """A value as typed on the command line: text where text is wanted, else YAML."""
    if parameter.kind == "str":
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f"{parameter.name} must be {KINDS[parameter.kind]}, got {text!r}") from None


def check(notebook: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with their right types.

    Raises:
        ValueError: see ``choose``.
    """
    known, checked = parameters(notebook), {}
    for name, value in values.items():
        known_name(name, known, "parameter")
        parameter = known[name]
        checked[name] = fitted(name, value, parameter.kind)
        if parameter.kind == "list" and parameter.default:
            kind = type(parameter.default[0]).__name__
            checked[name] = [fitted(name, item, kind, "a list of which each is ") for item in checked[name]]
    if checked.get("results_dir"):
        checked["results_dir"] = str(Path(checked["results_dir"]).expanduser().absolute())
    _check_experiment(notebook, {p.name: p.default for p in known.values()} | checked)
    return checked


def fitted(name: str, value: Any, kind: str, each: str = "") -> Any:
    """A value as what its parameter takes: nothing is guessed but a whole number where any will do."""
    if kind == "float":
        value = read_number(value)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        require(number and math.isfinite(value), name, each + KINDS[kind], value)
        return float(value)
    types = {"int": int, "str": str, "bool": bool, "list": list, "dict": dict}
    fits = isinstance(value, types.get(kind, object)) and (kind == "bool" or not isinstance(value, bool))
    require(fits, name, each + KINDS.get(kind, "a value"), value)
    return value


def _check_experiment(notebook: Path, values: Mapping[str, Any]) -> None:
    """Refuse values that the experiment of a notebook (``02_gmm``) would refuse, before a kernel starts."""
    if "device" in values:
        _check_device(values["device"])
    configs = {**CONFIGS, "your_own_model": OwnModelConfig}
    config = configs.get(notebook.stem.partition("_")[2])
    if config is None or not {"methods", "num_particles"} <= values.keys():
        return
    for name in ("methods", "num_particles"):
        require(values[name], name, "a list of at least one", values[name])
    fields = {name: value for name, value in values.items() if name in config.__dataclass_fields__}
    for method in values["methods"]:
        for num_particles in values["num_particles"]:
            _configure(config, {**fields, "method": method, "num_particles": num_particles})


def _configure(config: type, fields: dict[str, Any]) -> None:
    try:
        config(**fields)
    except ValueError as error:
        message = str(error)
        unused = re.match(r"(\w+) must be None for method", message)
        if unused:  # the notebook gives an option only to the methods that have it
            _configure(config, {name: value for name, value in fields.items() if name != unused[1]})
        else:
            raise ValueError(re.sub(r"^method ", "methods ", message)) from None


def _check_device(device: str) -> None:
    try:
        require(torch.device(device).type in ("cpu", "cuda"), "device", "'cpu' or a CUDA device", device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f"device must be one that PyTorch has here, such as 'cpu', got {device!r} ({reason})"
        ) from None


def inputs(notebook: Path) -> dict[str, str]:
    """SHA-256 of what an execution depends on: the notebook's cells and the library."""
    cells = [[cell.cell_type, cell.source] for cell in nbformat.read(notebook, as_version=4).cells]
    library = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        if path.name not in OUTSIDE:
            library.update(path.read_bytes())
    return {
        "notebook": hashlib.sha256(json.dumps(cells).encode()).hexdigest(),
        "library": library.hexdigest(),
    }


def target(notebook: Path, values: Mapping[str, Any]) -> Path:
    """Where the notebook executed at these parameters goes, its page and its provenance beside it."""
    store = Path(values.get("results_dir") or records.default_results_dir()).absolute()
    filled = {p.name: p.default for p in parameters(notebook).values()} | dict(values)
    filled.pop("results_dir", None)
    name = records.key({"notebook": notebook.stem, "parameters": filled})
    return store / "notebooks" / f"{notebook.stem}-{name}.ipynb"


def is_current(notebook: Path, values: Mapping[str, Any], now: Mapping[str, str]) -> bool:
    """Whether the notebook was executed at these parameters when its inputs were as they are now."""
    executed = target(notebook, values)
    try:
        same = json.loads(executed.with_suffix(".json").read_text())["inputs"] == now
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return same and executed.exists() and executed.with_suffix(".html").exists()


def execute(notebook: Path, values: Mapping[str, Any]) -> Path:
    """Execute a notebook at checked parameters; returns the executed one, with its page beside it.

    Raises:
        ValueError: a cell failed; the message says where the cells up to there are.
    """
    executed = target(notebook, values)
    records.writable(executed.parent)
    for name in ("RWSLIB_RESULTS", "RWSLIB_PUBLISHED", "RWSLIB_DATA"):  # the kernel works in another folder
        if os.environ.get(name):
            os.environ[name] = str(Path(os.environ[name]).absolute())
    before, begun = inputs(notebook), time.monotonic()
    temporary = executed.with_name(f".{executed.stem}.{os.getpid()}.ipynb")
    try:
        papermill.execute_notebook(
            str(notebook),
            str(temporary),
            dict(values),
            kernel_name="python3",
            cwd=str(notebook.parent),
            extra_arguments=["--log-level=ERROR"],  # else the kernel remarks on its transport
        )
        temporary.replace(executed)
    except (PapermillExecutionError, RuntimeError) as error:  # the latter: the kernel died
        kept = executed.with_suffix(".failed.ipynb")
        if temporary.exists():
            temporary.replace(kept)
        what = f"{error.ename}: {error.evalue}" if isinstance(error, PapermillExecutionError) else str(error)
        raise ValueError(
            f"{notebook.stem} stopped with {what.splitlines()[0]}; the cells up to there are in {kept}"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    executed.with_suffix(".html").write_text(page(executed, values))
    about = {
        "notebook": notebook.stem,
        "parameters": dict(values),
        "inputs": before,
        "seconds": round(time.monotonic() - begun, 1),
    }
    executed.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n")
    return executed


def page(executed: Path, values: Mapping[str, Any]) -> str:
    """An executed notebook as HTML; markup in the values of the parameters shows as text."""
    marked = re.search(r"[<>&\[\]()`]", "\n".join(strings(values)))
    exporter = HTMLExporter(sanitize_html=bool(marked))
    return exporter.from_filename(str(executed))[0]


def strings(value: Any) -> Iterable[str]:
    """All text in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in (*value, *value.values()):
            yield from strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from strings(part)
