"""Command line: ``python -m rwslib {train,list,show,publish}``."""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from rwslib import records
from rwslib.experiments import CONFIGS, run
from rwslib.experiments.common import require


def expand(grid: Path) -> Iterator[object]:
    """The configurations of a grid file: a list of mappings, each the product of its lists."""
    entries = yaml.safe_load(grid.read_text())
    require(isinstance(entries, list), str(grid), "a list of mappings", entries)
    for entry in entries:
        require(isinstance(entry, dict), str(grid), "a list of mappings", entry)
        fields = {name: value if isinstance(value, list) else [value] for name, value in entry.items()}
        for values in itertools.product(*fields.values()):
            fields_of_one = dict(zip(fields, values, strict=True))
            experiment = fields_of_one.pop("experiment", None)
            require(experiment in CONFIGS, "experiment", f"one of {list(CONFIGS)}", experiment)
            known = CONFIGS[experiment].__dataclass_fields__
            for name in fields_of_one:
                require(name in known, "field", f"one of {list(known)}", name)
            yield CONFIGS[experiment](**fields_of_one)


def train(arguments: argparse.Namespace) -> None:
    """Train what a grid asks for and no record holds; several processes may share one grid."""
    store = records.writable(arguments.results_dir)
    waiting = list(expand(arguments.grid))
    for wait in (False, True):  # first whatever nobody else trains, then wait for the others
        left = []
        for config in waiting:
            plain = records.plain(config)
            if records.find(plain, store):
                continue
            with records.lock(plain, store, wait) as held:
                pass
            if not held:
                left.append(config)
                continue
            record = run(config, store, arguments.device)
            print(
                f"{record.path}  {config.method} K={config.num_particles}  {record.provenance['seconds']} s",
                flush=True,
            )
        waiting = left


def show(arguments: argparse.Namespace) -> None:
    """Print one record's configuration, provenance and final values."""
    for store in (records.published_dir(), records.default_results_dir()):
        for path in Path(store).glob(f"*/{arguments.key}*"):
            record = records.load(path)
            finals = {k: v.round(4).tolist() for k, v in record.metrics.items() if k.endswith("_final")}
            print(
                json.dumps(
                    {"config": record.config, "provenance": record.provenance, "final": finals}, indent=1
                )
            )
            return
    raise ValueError(f"key must name a stored record, got {arguments.key!r}; see python -m rwslib list")


def list_records(arguments: argparse.Namespace) -> None:
    """Print one line for each record of both stores."""
    for store in (records.published_dir(), records.default_results_dir()):
        for record in records.iterate(store):
            config = record.config
            extra = {k: v for k, v in config.items() if k in ("init", "hidden", "delta") and v is not None}
            print(
                f"{record.key}  {config['experiment']:4} {config['method']:18} K={config['num_particles']:<4}"
                f" runs={config['num_runs']:<3} {record.provenance['seconds']:>8} s  {extra}"
            )


def publish(arguments: argparse.Namespace) -> None:
    """Copy finished records from the results folder into the published store."""
    for path in arguments.record:
        print(records.publish(path))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rwslib", description="Runs and their records.")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("train", help=train.__doc__)
    command.add_argument("grid", type=Path, help="YAML file, see workflow/grids")
    command.add_argument(
        "--results-dir", type=Path, help="where records go; default $RWSLIB_RESULTS or results"
    )
    command.add_argument("--device", default="cpu")
    command.set_defaults(function=train)
    command = commands.add_parser("list", help=list_records.__doc__)
    command.set_defaults(function=list_records)
    command = commands.add_parser("show", help=show.__doc__)
    command.add_argument("key", help="the record's key or the start of it")
    command.set_defaults(function=show)
    command = commands.add_parser("publish", help=publish.__doc__)
    command.add_argument("record", type=Path, nargs="+", help="folder of a finished record")
    command.set_defaults(function=publish)
    arguments = parser.parse_args()
    try:
        arguments.function(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
