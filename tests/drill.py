"""Try to break a sweep by killing it, and `run` by giving it nonsense; print what came of it.

Kill drill: a sweep of tiny runs is killed at random moments, all of it or one of its processes, and
started again; in the end every record must equal that of an undisturbed sweep.  Fuzz: random bad
parameters; each must be refused with one sentence that names the parameter, and nothing may start.
"""

import argparse
import contextlib
import json
import math
import os
import random
import signal
import string
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

from rwslib import __main__ as cli
from rwslib import files, records
from rwslib.commands import inspection, rerun

ITERATIONS = 20
METHODS = ("ww", "dww", "vimco", "ws", "reinforce", "concrete")


# -- kills --------------------------------------------------------------------------------------------


def start(grid: Path, store: Path, *options: str) -> subprocess.Popen:
    """A sweep in a process group of its own, whose runs write a checkpoint whenever they can."""
    command = [sys.executable, "-m", "rwslib", "sweep", str(grid), "--results-dir", str(store), *options]
    environment = os.environ | {"RWSLIB_CHECKPOINT_SECONDS": "0"}
    return subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def family(process: subprocess.Popen) -> list[psutil.Process]:
    """A sweep and all that it started."""
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def kill(processes: list[psutil.Process]) -> None:
    """SIGKILL; some may have ended meanwhile."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)


def compare(store: Path, reference: Path) -> Counter:
    """How the records of a store differ from the undisturbed ones."""
    faults = Counter(damaged=len(inspection.verify(store)[1]))
    for expected in records.iterate(reference):
        try:
            record = records.load(store / expected.config["experiment"] / expected.key)
        except ValueError:
            faults["missing"] += 1
            continue
        left, right = ({**r.metrics, **r.weights()} for r in (record, expected))
        same = left.keys() == right.keys() and record.config == expected.config
        faults["different"] += not (same and all(np.array_equal(left[name], right[name]) for name in left))
    return faults


def kill_drill(kills: int, num_runs: int, minutes: float = math.inf, seed: int = 1) -> dict[str, Any]:
    """Kill a sweep so often, or until the time is up; returns the figures."""
    rng, begun = random.Random(seed), time.monotonic()
    faults, done = Counter(damaged=0, missing=0, different=0), Counter()
    passes, survivors, begun_sweeps = 0, [], []
    with tempfile.TemporaryDirectory() as folder:
        grid, store, reference = (Path(folder) / name for name in ("grid.yaml", "store0", "reference"))
        os.environ["RWSLIB_PUBLISHED"] = str(Path(folder) / "none")
        sizes = {"num_iterations": ITERATIONS, "num_runs": 2, "num_particles": 2, "experiment": "gmm"}
        rows = [{**sizes, "method": METHODS[i % 6], "seed": 1 + i // 6} for i in range(num_runs)]
        grid.write_text(yaml.safe_dump(rows), encoding="utf-8")
        started = time.monotonic()
        if start(grid, reference).wait():
            raise SystemExit("the undisturbed sweep failed; python -m rwslib sweep says why")
        duration = time.monotonic() - started
        while done.total() < kills and time.monotonic() - begun < 60 * minutes:
            print(f"kills: {done.total()} of {kills}", end="\r", file=sys.stderr, flush=True)
            process, started = start(grid, store), time.monotonic()
            try:
                process.wait(rng.uniform(0, duration))
            except subprocess.TimeoutExpired:
                members = family(process)
                whole = rng.random() < 0.7
                kill(members if whole else [rng.choice(members)])
                done["whole sweeps" if whole else "single processes"] += 1
                if not whole:  # the rest works on for a while, at times beside the next sweep
                    survivors += members
                    begun_sweeps.append(process)
                    time.sleep(rng.uniform(0, duration / 4))
                    if rng.random() < 0.5:
                        kill(members)
                if whole:
                    process.wait()
            else:  # it was done before its time came: look, and begin anew
                faults += compare(store, reference)
                passes += 1
                duration = min(duration, time.monotonic() - started)  # the machine may be quieter now
                store = Path(folder) / f"store{passes}"
        finished = start(grid, store).wait()
        kill([process for process in survivors if process.is_running()])
        for process in begun_sweeps:
            process.kill()
            process.wait()
        faults.update(compare(store, reference) if finished == 0 else {"unfinished": 1})
        left = sum(1 for path in store.rglob("*") if path.name.startswith(".") and path.name != ".sweep")
    return {
        "kills": done.total(),
        **{f"kills of {what}": number for what, number in done.items()},
        "runs": num_runs,
        "records compared": num_runs * (passes + 1),
        **{name: faults[name] for name in ("missing", "different", "damaged")},
        "left-over files": left,
        "seconds": round(time.monotonic() - begun),
    }


# -- nonsense -----------------------------------------------------------------------------------------

WRONG_TYPE = {
    "int": ["many", 1.5, [1], True, None, {"a": 1}, "", "1 000"],
    "float": ["many", [0.1], True, None, float("nan"), float("inf"), "1e", {"a": 0.1}],
    "bool": ["maybe", 1, 0.0, [True], None],
    "str": [1, 2.5, ["far"], None, {"a": "b"}, False],
    "list": [3, "ww", {"a": 1}, True, None, [[1]], [None], [{}]],
}
OUT_OF_RANGE = {
    "num_iterations": lambda rng: -rng.randrange(10**6),
    "num_runs": lambda rng: -rng.randrange(100),
    "batch_size": lambda rng: -rng.randrange(100),
    "seed": lambda rng: -rng.randrange(1, 10**9),
    "learning_rate": lambda rng: -rng.random(),
    "delta": lambda rng: rng.choice([-1, 1]) * (1 + rng.random()),
    "num_particles": lambda rng: rng.choice([[], [-rng.randrange(9)], [2, 0]]),
    "num_stages": lambda rng: rng.choice([0, -1, rng.randrange(9, 99)]),
    "eval_particles": lambda rng: -rng.randrange(99),
    "methods": lambda rng: rng.choice([[], [word(rng)], ["ww", word(rng)]]),
    "init": lambda rng: word(rng),
    "dataset": lambda rng: word(rng),
    "precision": lambda rng: word(rng),
    "device": lambda rng: word(rng),
}


def word(rng: random.Random) -> str:
    """Letters, with some of what shells, pages and paths give a meaning to."""
    letters = string.ascii_letters + "_<>&/.'\"$é"
    return "x" + "".join(rng.choice(letters) for _ in range(rng.randrange(2, 12)))


def misspelt(rng: random.Random, name: str) -> str:
    """A name with one letter dropped, doubled or changed."""
    at = rng.randrange(len(name))
    return name[:at] + rng.choice(["", 2 * name[at], "q"]) + name[at + 1 :]


def bad_parameter(rng: random.Random, known: dict[str, rerun.Parameter]) -> tuple[str, str, Any]:
    """What is wrong, with which parameter, and its value."""
    parameter = known[rng.choice(list(known))]
    ranged = sorted(known.keys() & OUT_OF_RANGE.keys())
    kind = rng.choice(["unknown name", "misspelt name", "wrong type", "out of range"])
    if kind == "out of range" and "methods" in known:
        name = rng.choice(ranged)
        return kind, name, OUT_OF_RANGE[name](rng)
    if kind == "unknown name":
        return kind, word(rng), rng.choice([1, "a", [2]])
    if kind == "misspelt name" and (name := misspelt(rng, parameter.name)) not in known:
        return kind, name, parameter.default
    return "wrong type", parameter.name, rng.choice(WRONG_TYPE[parameter.kind])


def fuzz(number: int, seed: int = 1) -> dict[str, Any]:
    """Give `run` so many bad sets of parameters; returns the figures."""
    rng, kinds, begun = random.Random(seed), Counter(), time.monotonic()
    counts = Counter(refused=0, executed=0, tracebacks=0)
    notebooks = sorted(rerun.NOTEBOOKS.glob("*.ipynb"))
    execute, rerun.execute = rerun.execute, lambda *_: counts.update(executed=1) or Path("executed.ipynb")
    try:
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(number):
                notebook = rng.choice(notebooks)
                known = rerun.parameters(notebook)
                kind, name, value = bad_parameter(rng, known)
                good = {p.name: p.default for p in known.values() if rng.random() < 0.2}
                values = {**{k: v for k, v in good.items() if k != name}, name: value}
                if (kind == "wrong type" and known[name].kind == "str") or rng.random() < 0.5:
                    (Path(folder) / "values.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
                    arguments = ["-f", str(Path(folder) / "values.yaml")]
                else:
                    typed = ((k, v if isinstance(v, str) else json.dumps(v)) for k, v in values.items())
                    arguments = [part for k, v in typed for part in ("-p", k, v)]
                outcome = refusal(["run", notebook.stem, *arguments], name)
                counts[outcome] += 1
                kinds[kind] += 1
                if outcome != "refused":
                    print(f"{outcome}: {notebook.stem} {values}", file=sys.stderr)
    finally:
        rerun.execute = execute
    seconds = round(time.monotonic() - begun)
    return {"sets": number, **dict(counts), **dict(sorted(kinds.items())), "seconds": seconds}


def refusal(arguments: list[str], name: str) -> str:
    """How a command ended: "refused" if with one sentence that names the parameter."""
    try:
        cli.main(arguments)
    except SystemExit as end:
        said = str(end.code)
        clear = said.startswith("error: ") and "\n" not in said and (name in said or repr(name) in said)
        return "refused" if clear else "unclear"
    except Exception:
        return "tracebacks"
    return "accepted"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--runs", type=int, default=12, help="tiny runs in the sweep that is killed")
    parser.add_argument("--minutes", type=float, default=math.inf, help="kill no more after so long")
    parser.add_argument("--sets", type=int, default=1000, help="bad parameter sets")
    parser.add_argument("--write", type=files.expanded, help="also write the figures as JSON")
    arguments = parser.parse_args()
    figures = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": records.provenance(0, "cpu")["hardware"],
        "fuzz": fuzz(arguments.sets),
        "kill drill": kill_drill(arguments.kills, arguments.runs, arguments.minutes),
    }
    for drill in ("fuzz", "kill drill"):
        for name, value in figures[drill].items():
            print(f"{drill:10}  {name:24} {value:>6}")
    if arguments.write:
        arguments.write.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    kills, sets = figures["kill drill"], figures["fuzz"]
    broken = kills["missing"] + kills["different"] + kills["damaged"] + sets["executed"]
    if broken or sets["refused"] < sets["sets"]:
        sys.exit("the drill found faults")


if __name__ == "__main__":
    main()
