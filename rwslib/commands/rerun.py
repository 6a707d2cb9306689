"""Run a notebook with other parameters: check them first, then let papermill execute it."""

import ast
import hashlib
import importlib
import json
import math
import os
import re
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import nbformat
import papermill
import yaml
from jupyter_client import AsyncKernelManager
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillExecutionError
from papermill.translators import PythonTranslator

from rwslib import files, records
from rwslib.experiments.common import known_name, options_of, read_number, require
from rwslib.methods import METHODS, usable
from rwslib.training.acceleration import check_device

NOTEBOOKS = files.ROOT / "notebooks"
KINDS = {  # what a parameter's type is called in messages
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "list": "a list such as [2, 5]",
    "dict": "a mapping",
}
LIBRARY = Path(__file__).resolve().parent.parent


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
    if name.endswith(".ipynb") and files.expanded(name).is_file():
        return files.expanded(name).resolve()
    known = {path.stem: path for path in sorted(NOTEBOOKS.glob("*.ipynb"))}
    known_name(name, known, "notebook")
    return known[name]


def read(notebook: Path) -> nbformat.NotebookNode:
    """A notebook of any version.

    Raises:
        ValueError: it is none.
    """
    try:
        return nbformat.read(notebook, as_version=4)
    except OSError:
        raise
    except Exception as error:  # of JSON, of its scheme, of what is missing in it
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise ValueError(f"{notebook} is not a notebook ({reason})") from None


@lru_cache
def parameters(notebook: Path) -> dict[str, Parameter]:
    """The parameters of a notebook by name, from its cell tagged ``parameters``."""
    found = {}
    tagged = [cell for cell in read(notebook).cells if "parameters" in cell.metadata.get("tags", [])]
    for entry in PythonTranslator.inspect(tagged[0]) if tagged else []:
        try:
            default = ast.literal_eval(entry.default)
        except (ValueError, SyntaxError):
            default = None
        kind = entry.inferred_type_name
        kind = kind if kind in KINDS else type(default).__name__
        found[entry.name] = Parameter(entry.name, kind, default, entry.help)
    return found


def describe(notebook: Path) -> str:
    """A table of a notebook's parameters."""
    rows = [("name", "type", "default", "meaning")]
    rows += [(p.name, p.kind, json.dumps(p.default), p.help) for p in parameters(notebook).values()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join("  ".join([*map(str.ljust, row, widths), row[3]]).rstrip() for row in rows)


def choose(
    notebook: Path, given: Iterable[tuple[str, str]] = (), file: Path | None = None, scale: str | None = None
) -> dict[str, Any]:
    """The parameters that differ from the defaults: those of the scale, then of the file, then ``given``.

    Args:
        given: names, and values as they were typed.
        file: YAML mapping of names to values; those below another notebook's name are passed over.
        scale: "quick" or "paper", see ``notebooks/parameters``.

    Raises:
        ValueError: a name is unknown, or a value has the wrong type or is refused by the experiment.
    """
    known = parameters(notebook)
    values: dict[str, Any] = {}
    if scale:
        path = NOTEBOOKS / "parameters" / f"{notebook.stem}-{scale}.yaml"
        if path.exists():
            values |= read_mapping(path)
        elif scale != "paper":  # whose parameters are the defaults, where no file says otherwise
            raise ValueError(f"scale must be one that {notebook.stem} has a file for, got {scale!r}")
    if file:
        content = read_mapping(file)
        sections = {path.stem: content.pop(path.stem, {}) for path in NOTEBOOKS.glob("*.ipynb")}
        own = sections.get(notebook.stem, {})
        require(isinstance(own, dict), notebook.stem, "a mapping of names to values", own)
        values |= content | own
    for name, text in given:
        known_name(name, known, "parameter")
        values[name] = typed(known[name], text)
    return check(notebook, values)


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping; an empty file is an empty mapping."""
    try:
        content = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
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
        checked["results_dir"] = str(files.expanded(checked["results_dir"]).absolute())
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
    """Refuse values that the notebook's configuration would refuse, before a kernel starts."""
    if "device" in values:
        check_device(values["device"])
    config = configured(notebook)
    if config is None:
        return
    for name in ("methods", "num_particles"):
        require(values[name], name, "a list of at least one", values[name])
    known = usable(*config.offers)
    for method in values["methods"]:
        require(method in known, "methods", f"one of {known} for this model", method)
        # the notebook gives an option only to the methods that have it
        unused = set(options_of(config)) - METHODS[method].options.keys()
        names = {f.name for f in fields(config)} & values.keys() - unused
        given = {name: values[name] for name in names} | {"method": method}
        for num_particles in values["num_particles"]:
            config(**given | {"num_particles": num_particles})


def configured(notebook: Path) -> Any:
    """The type of the configurations that a notebook makes of its parameters, as its metadata name it."""
    name = read(notebook).metadata.get("configuration")
    if name is None:
        return None
    module, _, config = str(name).rpartition(".")
    try:
        return getattr(importlib.import_module(f"rwslib.experiments.{module}"), config)
    except (ImportError, AttributeError):
        raise ValueError(
            f"configuration in the metadata of {notebook.name} must be a class in rwslib.experiments, "
            f"such as 'gmm.GMMConfig', got {name!r}"
        ) from None


def inputs(notebook: Path) -> dict[str, str]:
    """SHA-256 of what an execution depends on: the notebook's cells and the library."""
    cells = [[cell.cell_type, cell.source] for cell in read(notebook).cells]
    library = hashlib.sha256()
    for path in sorted(LIBRARY.rglob("*.py")):
        if path.name != "__main__.py" and path.parent != Path(__file__).parent:  # which no notebook imports
            library.update(path.read_bytes())
    return {
        "notebook": hashlib.sha256(json.dumps(cells).encode()).hexdigest(),
        "library": library.hexdigest(),
    }


def target(notebook: Path, values: Mapping[str, Any]) -> Path:
    """Where the notebook executed at these parameters goes, its page and its provenance beside it."""
    store = records.results_store(values.get("results_dir")).absolute()
    filled = {p.name: p.default for p in parameters(notebook).values()} | dict(values)
    filled.pop("results_dir", None)
    name = records.key({"notebook": notebook.stem, "parameters": filled})
    return store / "notebooks" / f"{notebook.stem}-{name}.ipynb"


def is_current(notebook: Path, values: Mapping[str, Any], now: Mapping[str, str]) -> bool:
    """Whether the notebook was executed at these parameters when its inputs were as they are now."""
    executed = target(notebook, values)
    try:
        same = json.loads(executed.with_suffix(".json").read_bytes())["inputs"] == now
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return same and executed.exists() and executed.with_suffix(".html").exists()


def execute(notebook: Path, values: Mapping[str, Any]) -> Path:
    """Execute a notebook at checked parameters; returns the executed one, with its page beside it.

    Raises:
        ValueError: a cell failed; the message says where the cells up to there are.
        KeyboardInterrupt: Ctrl-C interrupted a cell, and a run in it wrote its checkpoint.
    """
    executed = target(notebook, values)
    records.writable(executed.parent)
    files.settle_environment()
    before, begun = inputs(notebook), time.monotonic()
    temporary = executed.with_name(f".{executed.stem}.{os.getpid()}.ipynb")
    try:
        with files.naming(temporary), _interrupts_reach_the_kernel() as (interrupted, options):
            run_cells(notebook, temporary, values, notebook.parent, **options)
        temporary.replace(executed)
    except (PapermillExecutionError, RuntimeError) as error:  # the latter: the kernel died
        if interrupted:
            raise KeyboardInterrupt from None
        kept = executed.with_suffix(".failed.ipynb")
        if temporary.exists():
            temporary.replace(kept)
        raise ValueError(
            f"{notebook.stem} stopped with {in_a_line(error)}; the cells up to there are in {kept}"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    about = {
        "notebook": notebook.stem,
        "parameters": dict(values),
        "inputs": before,
        "seconds": round(time.monotonic() - begun, 1),
    }
    for suffix, text in ((".html", page(executed, values)), (".json", json.dumps(about, indent=1) + "\n")):
        beside = executed.with_suffix(suffix)
        with files.naming(beside):
            beside.write_text(text, encoding="utf-8")
    return executed


def run_cells(source: Path, executed: Path, values: Mapping[str, Any], cwd: Path, **options: Any) -> None:
    """Let papermill execute a notebook at checked parameters, in a kernel that works in a folder."""
    papermill.execute_notebook(
        *(str(path).replace("{", "{{").replace("}", "}}") for path in (source, executed)),  # it fills braces
        dict(values),
        kernel_name="python3",
        language="python",
        cwd=str(cwd),
        extra_arguments=["--log-level=ERROR"],  # else the kernel remarks on its transport
        **options,
    )


def in_a_line(error: Exception) -> str:
    """What stopped an execution: the error of a cell, or that of the kernel."""
    what = f"{error.ename}: {error.evalue}" if isinstance(error, PapermillExecutionError) else str(error)
    return what.splitlines()[0]


@contextmanager
def _interrupts_reach_the_kernel() -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Give the first Ctrl-C to the kernel alone, so that a run in it can write its checkpoint.

    Yields:
        The signals that came, and what papermill is to be called with.
    """
    interrupted: list[int] = []
    kernels: list[Any] = []
    begun: list[bool] = []

    class Kernel(AsyncKernelManager):
        def __init__(self, **traits):
            super().__init__(**traits)
            kernels.append(self)

    def interrupt(number: int, _: Any) -> None:
        signal.signal(signal.SIGINT, before)  # a second one is for this process
        interrupted.append(number)
        if begun:  # a kernel that starts would only die of it
            os.killpg(kernels[0].provisioner.pgid, number)

    def stop(**_: Any) -> None:
        if interrupted:  # before a cell began
            raise RuntimeError("interrupted")

    options = {
        "kernel_manager_class": Kernel,
        "on_notebook_start": lambda **_: begun.append(True),
        "on_cell_start": stop,
    }
    if threading.current_thread() is not threading.main_thread():  # which alone sees signals
        yield interrupted, options
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupted, options
    finally:
        signal.signal(signal.SIGINT, before)


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
