"""Look at the stores: what was run, whether it is whole, and its final values as a table."""

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from rwslib import records
from rwslib.records import RunRecord

PROVENANCE = ("commit", "date", "device", "format", "hardware", "seconds", "versions")
_COLUMNS = "{:16}  {:10}  {:18}  {:>4}  {:>4}  {:>17}  {:10}  {:>9}  {}"


def label(config: Mapping[str, Any]) -> str:
    """A configuration in a few words."""
    return f"{config['experiment']} {config['method']} K={config['num_particles']}"


def finals(metrics: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The final values of a record, ``[R]`` each."""
    last = {name.removesuffix("_final"): value for name, value in metrics.items() if value.ndim == 1}
    return {name: value for name, value in last.items() if name != "iteration"}


def stores(results_dir: Path | None = None, own: bool = False) -> list[Path]:
    """The published store and the one that is written, or with ``own`` the latter alone."""
    written = records.results_store(results_dir)
    return [written] if own or written == records.published_dir() else [records.published_dir(), written]


def folders(results_dir: Path | None = None, own: bool = False) -> Iterator[Path]:
    """Every folder of both stores that is or should be a record, or that cannot be looked into."""
    for store in stores(results_dir, own):
        for experiment in _inside(store):
            if experiment == store:
                yield store
            else:
                named = "[0-9a-f]{16}"
                yield from (p for p in _inside(experiment) if p == experiment or re.fullmatch(named, p.name))


def _inside(folder: Path) -> list[Path]:
    """The folders in a folder but those that are hidden, or itself where that is forbidden to know."""
    try:
        return sorted(path for path in folder.iterdir() if path.name[0] != "." and path.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError:
        return [folder]


def find(key: str, results_dir: Path | None = None) -> RunRecord:
    """The record whose key begins so.

    Raises:
        ValueError: there is none, or more than one.
    """
    known = [path for path in folders(results_dir) if path.name.startswith(key)]
    if len({path.name for path in known}) != 1:
        problem = "several begin so" if known else "no record has it"
        raise ValueError(f"key must name a stored record, got {key!r} ({problem}); see python -m rwslib list")
    return records.load(known[0])


def table(results_dir: Path | None = None, own: bool = False) -> Iterator[str]:
    """Lines that say what both stores hold, or with ``own`` that of new records."""
    from rwslib.experiments import EXPERIMENTS  # with torch, which the other commands of records do without

    yield _COLUMNS.format(
        "key", "experiment", "method", "K", "runs", "iterations", "date", "seconds", "medians, settings"
    )
    for path in folders(results_dir, own):
        row = EXPERIMENTS.get(path.parent.name)  # a store's folders are named after experiments
        names = row.headline if row else ()
        try:
            wanted = {*names, *(f"{name}_final" for name in names), "iteration"}
            yield _line(records.load(path, wanted), names)
        except (ValueError, KeyError) as error:
            yield f"{path.name:16}  {error}"
    for path in sorted(stores(results_dir)[-1].glob("[!.]*/*.checkpoint")):
        if line := _unfinished(path):
            yield line


def _line(record: RunRecord, headline: Sequence[str]) -> str:
    config, values = record.config, finals(record.metrics)
    done = int(record.metrics["iteration"][-1])
    shown = [f"{name} {np.median(values[name]):.4g}" for name in headline]
    settings = ("dataset", "num_stages", "init", "hidden", "delta")
    shown += [f"{name} {config[name]}" for name in settings if config.get(name) is not None]
    return _COLUMNS.format(
        record.key,
        config["experiment"],
        config["method"],
        config["num_particles"],
        config["num_runs"],
        f"{done}/{config.get('num_iterations', done)}",
        record.provenance["date"][:10],
        record.provenance["seconds"],
        ", ".join(shown),
    )


def _unfinished(path: Path) -> str | None:
    """The line of a run that was begun and has no record yet."""
    from rwslib.training.checkpoints import peek  # with torch, seconds of imports that others do not need

    try:
        done, asked, seconds = peek(path)
        if done == asked:  # kept for a longer run to go on from
            return None
        cells = ("begun", "", "", f"{done}/{'?' if asked is None else asked}", "", f"{seconds:.1f}")
    except FileNotFoundError:  # its run has just ended
        return None
    except OSError as error:
        return f"{path.stem:16}  checkpoint {path} cannot be read ({error.strerror})"
    except (KeyError, TypeError, ValueError) as error:
        return f"{path.stem:16}  checkpoint {path} is damaged ({error}); delete it to start this run again"
    return _COLUMNS.format(path.stem, path.parent.name, *cells, "no record yet").rstrip()


def verify(results_dir: Path | None = None, own: bool = False) -> tuple[int, list[str]]:
    """Number of records in both stores, and one line for each fault of theirs."""
    found = {path: list(_faults(path)) for path in folders(results_dir, own)}
    return len(found), [f"{path}: {fault}" for path, faults in found.items() for fault in faults]


def _faults(path: Path) -> Iterator[str]:
    try:
        record = records.load(path)
    except ValueError as error:
        yield str(error)
        return
    for name, value in record.metrics.items():
        if not np.isfinite(value).all():
            yield f"metric {name} has values that are not finite"
    for name in PROVENANCE:
        if name not in record.provenance:
            yield f"provenance has no {name}"
    if (path / records.WEIGHTS).exists():
        try:
            for name, value in record.weights().items():
                if not np.isfinite(value).all():
                    yield f"parameter {name} has values that are not finite"
        except OSError as error:
            yield f"{records.WEIGHTS} cannot be read ({error.strerror})"
        except ValueError as error:
            yield str(error)


def export(file: TextIO, results_dir: Path | None = None, own: bool = False) -> list[str]:
    """Write one row for each replicate: key, configuration, replicate, date, seconds, final values.

    Returns:
        One line for each record that has no rows, because it is damaged or lacks something.
    """
    rows: list[dict[str, Any]] = []
    faults: list[str] = []
    for path in folders(results_dir, own):
        try:
            rows += _rows(records.load(path))
        except (ValueError, LookupError) as error:
            faults.append(f"{path}: {error!r}" if isinstance(error, LookupError) else str(error))
    writer = csv.DictWriter(file, dict.fromkeys(name for row in rows for name in row))
    writer.writeheader()
    writer.writerows(rows)
    return faults


def _rows(record: RunRecord) -> list[dict[str, Any]]:
    """One row a replicate."""
    values = finals(record.metrics)
    about = {name: record.provenance[name] for name in ("date", "device", "seconds")}
    plain = {k: json.dumps(v) if isinstance(v, list) else v for k, v in record.config.items()}
    rows = []
    for replicate in range(record.config["num_runs"]):
        last = {name: f"{value[replicate]:.6g}" for name, value in values.items()}
        rows.append({"key": record.key, **plain, "replicate": replicate, **about, **last})
    return rows
