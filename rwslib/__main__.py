"""Command line: ``python -m rwslib COMMAND``; ``-h`` lists the commands."""

# What is slow to import is imported by the command that needs it: looking at records takes no PyTorch.
import argparse
import io
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rwslib import files, records
from rwslib.commands import inspection


def data_command(arguments: argparse.Namespace) -> bool:
    """Fetch a data set, or say which of its files are there and whole."""
    from rwslib import data

    if arguments.action == "fetch":
        data.fetch()
    states = data.status()
    for place, state in states.items():
        print(f"{place}: ok" if state == "ok" else state)
    return set(states.values()) != {"ok"}


def _need_checkout(command: str) -> None:
    """Refuse a command whose notebooks and workflow lie beside the library only in the book's checkout."""
    if not files.IS_CHECKOUT:
        raise ValueError(
            f"{command} needs the book's checkout, but this library is installed without it: "
            "call it from a clone of the repository"
        )


def run(arguments: argparse.Namespace) -> None:
    """Execute a notebook with other parameters, and make a page of it."""
    _need_checkout("run")
    from rwslib.commands import rerun

    notebook = rerun.find(arguments.notebook)
    if arguments.help_parameters:
        print(rerun.describe(notebook))
        return
    values = rerun.choose(notebook, arguments.parameter, arguments.file, arguments.scale)
    if arguments.results_dir:
        os.environ["RWSLIB_RESULTS"] = str(arguments.results_dir)
    executed = rerun.execute(notebook, values)
    print(f"executed notebook: {executed}\npage: {executed.with_suffix('.html')}")


def train(arguments: argparse.Namespace) -> int:
    """Train what a grid asks for and no record holds; several processes may share one grid."""
    from rwslib.commands.sweep import configurations, is_stored
    from rwslib.training.acceleration import check_device

    device, store = check_device(arguments.device, here=False), records.results_store(arguments.results_dir)
    waiting = [config for config in configurations(arguments.grid) if not is_stored(config, store)]
    if waiting:
        check_device(device)
        records.writable(store)
    with exit_when_terminated():
        return _train_all(waiting, store, device)


def _train_all(waiting: list[Any], store: Path, device: str) -> int:
    """Train configurations one after the other; returns how many could not be."""
    from rwslib import experiments

    failures = 0
    for wait in (False, True):  # first whatever nobody else trains, then wait for the others
        left = []
        for config in waiting:
            plain = records.plain(config)
            try:
                if records.find(plain, store):
                    continue
                record = experiments.train(config, store, device, wait=wait)
            except Exception as error:  # the others may still succeed
                if not is_fault(error):
                    traceback.print_exc()
                said = f"{records.key(plain)} {inspection.label(plain)}: {sentence(error)}"
                print(f"error: {said}", file=sys.stderr, flush=True)
                failures += 1
                continue
            if record is None:  # another process has it, done or under way
                left.append(config)
                continue
            print(f"{record.path}  {inspection.label(plain)}  {record.provenance['seconds']} s", flush=True)
        waiting = left
    return failures


@contextmanager
def exit_when_terminated() -> Iterator[None]:
    """Leave in good order when a scheduler says so: training then writes a checkpoint."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def sweep(arguments: argparse.Namespace) -> int:
    """Train and execute, on several cores or a cluster, what grids ask for and the store does not have."""
    _need_checkout("sweep")
    from rwslib.commands.sweep import sweep

    if arguments.cores is not None and arguments.cores < 1:
        raise ValueError(f"--cores must be at least 1, got {arguments.cores}")
    how = arguments.cores, arguments.profile, arguments.device, arguments.dry_run
    return sweep(arguments.grid, arguments.results_dir, *how)


def show(arguments: argparse.Namespace) -> None:
    """Print one record's configuration, provenance and final values."""
    record = inspection.find(arguments.key, arguments.results_dir)
    finals = {name: value.round(4).tolist() for name, value in inspection.finals(record.metrics).items()}
    print(json.dumps({"config": record.config, "provenance": record.provenance, "final": finals}, indent=1))


def list_records(arguments: argparse.Namespace) -> None:
    """Print a table of the records of both stores, and of the runs that were begun."""
    for line in inspection.table(arguments.results_dir, arguments.own):
        print(line)


def verify(arguments: argparse.Namespace) -> bool:
    """Check every record of both stores; one line a fault, and exit code 1 if there is any."""
    number, faults = inspection.verify(arguments.results_dir, arguments.own)
    for fault in faults:
        print(fault)
    print(f"{number} records, {len(faults)} faults")
    return bool(faults)


def export(arguments: argparse.Namespace) -> bool:
    """Write the final values of all records as a table, one row a replicate."""
    where = arguments.results_dir, arguments.own
    if arguments.csv == Path("-"):
        faults = inspection.export(sys.stdout, *where)
    else:
        with files.naming(arguments.csv), arguments.csv.open("w", newline="", encoding="utf-8") as file:
            faults = inspection.export(file, *where)
    for fault in faults:
        print(f"left out: {fault}", file=sys.stderr)
    return bool(faults)


def publish(arguments: argparse.Namespace) -> None:
    """Copy finished records from the results folder into the published store."""
    for path in arguments.record:
        print(records.publish(path, arguments.weights))


def is_fault(error: Exception) -> bool:
    """Whether something is wrong with arguments, files or the machine rather than with the program."""
    return isinstance(error, (ValueError, OSError, ArithmeticError)) or is_memory(error)


def is_memory(error: Exception) -> bool:
    """Whether memory did not suffice, for which PyTorch raises RuntimeErrors of several kinds."""
    wanted = "allocate|out of memory|Storage size"
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and bool(re.search(wanted, str(error)))
    )


def sentence(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    if is_memory(error):
        first = str(error).splitlines()[0] if text else "MemoryError"
        return f"there is not enough memory, and fewer num_runs or num_particles would take less ({first})"
    return text if is_fault(error) else f"{type(error).__name__}: {text}"


def path(text: str) -> Path:
    """A path as typed, its home folder written out."""
    try:
        return files.expanded(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    parser = argparse.ArgumentParser(prog="python -m rwslib", description="Runs and their records.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    results = argparse.ArgumentParser(add_help=False)
    results.add_argument(
        "--results-dir", type=path, help="where new records are; default $RWSLIB_RESULTS or results"
    )
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--own", action="store_true", help="leave the published records out")

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
    command.add_argument("-f", dest="file", type=path, help="YAML file of parameters")
    command.add_argument("--scale", choices=["quick", "paper"], help="start from the parameters of a scale")
    command.add_argument("--help-parameters", action="store_true", help="list the notebook's parameters")

    command = add("train", train, [results])
    command.add_argument("grid", type=path, help="YAML file, see workflow/grids")
    command.add_argument("--device", default="cpu")

    command = add("sweep", sweep, [results])
    command.add_argument("grid", type=path, nargs="+", help="YAML files, see workflow/grids")
    command.add_argument("--cores", type=int, help="jobs at once on this machine; default 2")
    command.add_argument("--profile", help="a folder of workflow/profiles, or any Snakemake profile")
    command.add_argument("--device", default="cpu")
    command.add_argument("-n", "--dry-run", action="store_true", help="only say what would be done")

    add("list", list_records, [results, own])

    command = add("show", show, [results])
    command.add_argument("key", help="the record's key or the start of it")

    add("verify", verify, [results, own])

    command = add("export", export, [results, own])
    command.add_argument(
        "--csv", type=path, default=Path("-"), metavar="FILE", help="where to; default is the terminal"
    )

    command = add("publish", publish)
    command.add_argument("record", type=path, nargs="+", help="folder of a finished record")
    command.add_argument("--no-weights", dest="weights", action="store_false", help="leave the weights out")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; what is wrong with its arguments is said in one sentence."""
    chosen = parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):  # a locale without Greek letters is no reason to stop
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        if chosen.function(chosen):  # something is wrong, and said
            sys.exit(1)
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
