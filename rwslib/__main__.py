"""Command line: ``python -m rwslib COMMAND``; ``-h`` lists the commands."""

# What is slow to import is imported by the command that needs it: looking at records takes no PyTorch.
import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rwslib import inspection, records


def data_command(arguments: argparse.Namespace) -> None:
    """Fetch a data set, or say which of its files are there and whole."""
    from rwslib import data

    if arguments.action == "fetch":
        data.fetch()
    states = data.status()
    for place, state in states.items():
        print(f"{place}: ok" if state == "ok" else state)
    if set(states.values()) != {"ok"}:
        raise SystemExit(1)


def run(arguments: argparse.Namespace) -> None:
    """Execute a notebook with other parameters, and make a page of it."""
    from rwslib import rerun

    notebook = rerun.find(arguments.notebook)
    if arguments.help_parameters:
        print(rerun.describe(notebook))
        return
    values = rerun.choose(notebook, arguments.parameter, arguments.file, arguments.scale)
    if arguments.results_dir:
        os.environ["RWSLIB_RESULTS"] = str(arguments.results_dir.absolute())
    executed = rerun.execute(notebook, values)
    print(f"executed notebook: {executed}\npage: {executed.with_suffix('.html')}")


def train(arguments: argparse.Namespace) -> None:
    """Train what a grid asks for and no record holds; several processes may share one grid."""
    from rwslib import experiments
    from rwslib.sweep import configurations

    store = records.writable(arguments.results_dir)
    waiting, failures = list(configurations(arguments.grid)), 0
    for wait in (False, True):  # first whatever nobody else trains, then wait for the others
        left = []
        for config in waiting:
            plain = records.plain(config)
            try:
                if records.find(plain, store):
                    continue
                record = experiments.train(config, store, arguments.device, wait=wait)
            except (ValueError, OSError, ArithmeticError) as error:  # the others may still succeed
                print(f"error: {records.key(plain)} {inspection.label(plain)}: {error}", file=sys.stderr)
                failures += 1
                continue
            if record is None:  # another process has it, done or under way
                left.append(config)
                continue
            print(f"{record.path}  {inspection.label(plain)}  {record.provenance['seconds']} s", flush=True)
        waiting = left
    if failures:
        raise SystemExit(1)


def sweep(arguments: argparse.Namespace) -> None:
    """Train and execute, on several cores or a cluster, what grids ask for and the store does not have."""
    from rwslib.sweep import sweep

    if arguments.cores is not None and arguments.cores < 1:
        raise ValueError(f"--cores must be at least 1, got {arguments.cores}")
    if sweep(
        arguments.grid,
        arguments.results_dir,
        arguments.cores,
        arguments.profile,
        arguments.device,
        arguments.dry_run,
    ):
        raise SystemExit(1)


def show(arguments: argparse.Namespace) -> None:
    """Print one record's configuration, provenance and final values."""
    record = inspection.find(arguments.key, arguments.results_dir)
    finals = {name: value.round(4).tolist() for name, value in inspection.finals(record.metrics).items()}
    print(json.dumps({"config": record.config, "provenance": record.provenance, "final": finals}, indent=1))


def list_records(arguments: argparse.Namespace) -> None:
    """Print a table of the records of both stores, and of the runs that were begun."""
    for line in inspection.table(arguments.results_dir):
        print(line)


def verify(arguments: argparse.Namespace) -> None:
    """Check every record of both stores; one line a fault, and exit code 1 if there is any."""
    number, faults = inspection.verify(arguments.results_dir)
    for fault in faults:
        print(fault)
    print(f"{number} records, {len(faults)} faults")
    if faults:
        raise SystemExit(1)


def export(arguments: argparse.Namespace) -> None:
    """Write the final values of all records as a table, one row a replicate."""
    if arguments.csv == "-":
        inspection.export(sys.stdout, arguments.results_dir)
    else:
        with open(arguments.csv, "w", newline="") as file:
            inspection.export(file, arguments.results_dir)


def publish(arguments: argparse.Namespace) -> None:
    """Copy finished records from the results folder into the published store."""
    for path in arguments.record:
        print(records.publish(path, arguments.weights))


def parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    parser = argparse.ArgumentParser(prog="python -m rwslib", description="Runs and their records.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    results = argparse.ArgumentParser(add_help=False)
    results.add_argument(
        "--results-dir", type=Path, help="where new records are; default $RWSLIB_RESULTS or results"
    )

    def add(name, function, parents=()):
        command = commands.add_parser(name, help=function.__doc__, parents=parents)
        command.set_defaults(function=function)
        return command

    command = add("data", data_command)
    command.add_argument("action", choices=["fetch", "status"])
    command.add_argument("dataset", choices=["mnist"], nargs="?", default="mnist")

    command = add("run", run, [results])
    command.add_argument("notebook", help="its name, 02_gmm, or its path")
    command.add_argument(
        "-p",
        dest="parameter",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="a parameter; lists as [2, 5]; may be repeated",
    )
    command.add_argument("-f", dest="file", type=Path, help="YAML file of parameters")
    command.add_argument("--scale", choices=["quick", "paper"], help="start from the parameters of a scale")
    command.add_argument("--help-parameters", action="store_true", help="list the notebook's parameters")

    command = add("train", train, [results])
    command.add_argument("grid", type=Path, help="YAML file, see workflow/grids")
    command.add_argument("--device", default="cpu")

    command = add("sweep", sweep, [results])
    command.add_argument("grid", type=Path, nargs="+", help="YAML files, see workflow/grids")
    command.add_argument("--cores", type=int, help="jobs at once on this machine; default 2")
    command.add_argument("--profile", help="a folder of workflow/profiles, or any Snakemake profile")
    command.add_argument("--device", default="cpu")
    command.add_argument("-n", "--dry-run", action="store_true", help="only say what would be done")

    add("list", list_records, [results])

    command = add("show", show, [results])
    command.add_argument("key", help="the record's key or the start of it")

    add("verify", verify, [results])

    command = add("export", export, [results])
    command.add_argument("--csv", default="-", metavar="FILE", help="where to; default is the terminal")

    command = add("publish", publish)
    command.add_argument("record", type=Path, nargs="+", help="folder of a finished record")
    command.add_argument("--no-weights", dest="weights", action="store_false", help="leave the weights out")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; what is wrong with its arguments is said in one sentence."""
    chosen = parser().parse_args(arguments)
    try:
        chosen.function(chosen)
    except BrokenPipeError:  # whoever reads the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ModuleNotFoundError as error:
        sys.exit(f"error: this command needs the package {error.name}, see requirements.txt")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from here")
    except (ValueError, OSError, ArithmeticError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
