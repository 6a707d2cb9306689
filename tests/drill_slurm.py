"""Disturb a sweep on a real Slurm, which is started for this on one machine; print what came of it.

Jobs are cancelled, killed, and stopped until their time limit ends them, and Slurm itself falls silent
for a while; what this leaves undone is swept again.  In the end every record must equal that of an
undisturbed sweep without Slurm, and no sweep may wait for a job that has ended.  Needs no service, no
accounting and no root, and leaves none of its daemons behind.
"""

import argparse
import contextlib
import getpass
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import yaml
from drill import METHODS, compare, family, kill, start

from rwslib import files, records
from rwslib.commands import sweep

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "sinfo")
CONFIGURATION = """\
ClusterName=drill
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=1000000
PartitionName=drill Nodes=ALL Default=YES
"""
LIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED")
SILENCE = 30  # seconds: long enough for the plug-in to ask in vain
PATIENCE = 300  # seconds: the plug-in looks at its jobs every three minutes, or more often


# -- Slurm --------------------------------------------------------------------------------------------


def program(name: str) -> str | None:
    """Where a program is; daemons are often not on the path of users."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


def free_ports(number: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[psutil.Process]:
    """A Slurm of one node, all of whose files are in a folder; at the end nothing of it runs on.

    Yields its controller.
    """
    lacking = [name for name in PROGRAMS if program(name) is None]
    if lacking:
        raise SystemExit(
            f"the drill needs Slurm and MUNGE, but this machine lacks {', '.join(lacking)}: "
            "apt-get install slurm-wlm munge"
        )
    folder.chmod(0o755)  # munged wants its socket to be within everybody's reach
    (folder / "spool").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    host = socket.gethostname().split(".")[0]
    settings = {"host": host, "user": getpass.getuser(), "cores": os.cpu_count(), "ports": free_ports(2)}
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, **settings), encoding="utf-8")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    munge = [f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("socket", "key-file", "seed-file")]
    commands = {
        "munged": ["--foreground", *munge, f"--pid-file={folder}/munged.pid"],
        "slurmctld": ["-D"],
        "slurmd": ["-D"],
    }
    daemons = []
    try:
        for name, arguments in commands.items():
            with (folder / f"{name}.log").open("wb") as log:
                daemon = [program(name), *arguments]
                streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
                daemons.append(subprocess.Popen(daemon, cwd=folder, start_new_session=True, **streams))
            time.sleep(1)
        for _ in range(60):
            if ask("sinfo", "--noheader", "--format=%T") == ["idle"]:
                break
            time.sleep(1)
        else:
            said = "\n".join(
                path.read_text(encoding="utf-8")[-2000:] for path in sorted(folder.glob("*d.log"))
            )
            raise SystemExit(f"{said}\nSlurm did not start; its last words are above")
        yield psutil.Process(daemons[1].pid)
    finally:
        ask("scancel", "--user", getpass.getuser())
        for _ in range(30):
            if not live(jobs()):
                break
            time.sleep(1)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(20)
            daemon.kill()
        kill([process for process, _ in ours()])


def jobs() -> dict[str, str]:
    """The states of all jobs, those that ended lately among them, by number."""
    return dict(line.split("|") for line in ask("squeue", "--states=all", "--noheader", "--format=%i|%T"))


def live(states: dict[str, str]) -> bool:
    """Whether any job has not ended."""
    return any(state in LIVE for state in states.values())


def ask(*command: str) -> list[str]:
    """The lines that a command of Slurm prints; none if it fails."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        return answer.stdout.split("\n")[:-1]
    return []


def ours() -> Iterator[tuple[psutil.Process, str]]:
    """The processes that this Slurm started, each with the number of its job, if it belongs to one.

    Those that watch over a job step have overwritten their environment; they are where slurmd is.
    """
    configuration = Path(os.environ["SLURM_CONF"])
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            environment = process.environ()
            here = environment.get("SLURM_CONF") == str(configuration)
            if here or Path(process.cwd()) == configuration.parent:
                yield process, environment.get("SLURM_JOB_ID", "")


# -- disturbing ---------------------------------------------------------------------------------------


def trainings() -> dict[str, psutil.Process]:
    """The process of each job that trains and is not stopped."""
    found = {}
    for process, job in ours():
        with contextlib.suppress(psutil.Error):
            trains = process.cmdline()[1:4] == ["-m", "rwslib", "train"]
            if job and trains and process.status() != psutil.STATUS_STOPPED:
                found[job] = process
    return found


def has_checkpoint(process: psutil.Process, store: Path) -> bool:
    """Whether one of the runs that a process trains would go on from a checkpoint."""
    with contextlib.suppress(psutil.Error, OSError):
        grid = Path(process.cwd(), process.cmdline()[4])
        runs = map(records.plain, sweep.configurations(grid))
        return any(records.folder(run, store).with_suffix(".checkpoint").exists() for run in runs)
    return False


def disturb(kind: str, store: Path, rng: random.Random) -> str | None:
    """Do something to a job that trains; returns how far the job was, or nothing if there is no such job.

    Most of the time only to one that has a checkpoint.
    """
    running = trainings()
    begun = {job for job, process in running.items() if has_checkpoint(process, store)}
    among = begun if rng.random() < 0.8 else running
    if not among:
        return None
    job = rng.choice(sorted(among))
    when = "after a checkpoint" if job in begun else "before the first checkpoint"
    if kind == "scancel":
        ask("scancel", job)
    elif kind == "SIGKILL":  # of the training, or of what started it and waits for it
        others = [process for process, number in ours() if number == job]
        kill([rng.choice([running[job], *others])])
    else:
        with contextlib.suppress(psutil.NoSuchProcess):
            running[job].suspend()
    return when


def bury(states: dict[str, str]) -> None:
    """Kill what is still stopped of jobs that have ended: by parents alone, Slurm loses some processes.

    On a cluster it tracks them by control groups.  What is lost and trains on is welcome to.
    """
    for process, job in ours():
        with contextlib.suppress(psutil.Error):
            if job in states and states[job] not in LIVE and process.status() == psutil.STATUS_STOPPED:
                process.kill()


def watch(
    process: subprocess.Popen,
    controller: psutil.Process,
    store: Path,
    plan: list[str],
    rng: random.Random,
) -> tuple[Counter, dict[str, str], bool]:
    """Disturb a sweep until it ends; returns what was done, the jobs' last states, and whether it hung."""
    done, states = Counter(), {}
    alive, due = time.monotonic(), time.monotonic()
    while process.poll() is None:
        time.sleep(1)
        now = time.monotonic()
        found = dict(
            line.split("|") for line in ask("squeue", "--states=all", "--noheader", "--format=%i|%T")
        )
        states |= found
        if any(state in LIVE for state in found.values()):
            alive = now
        elif now - alive > PATIENCE:
            kill(family(process))
            process.wait()
            return done, states, True
        if not plan or now < due:
            continue
        if plan[-1] == "silence":
            controller.suspend()
            time.sleep(SILENCE)
            controller.resume()
            done.update([plan.pop()])
        elif when := disturb(plan[-1], store, rng):
            done.update([plan.pop(), when])
            due = now + rng.uniform(0, 15)
    return done, states, False


def profile(folder: Path, minutes: int) -> Path:
    """The profile of the book, with a short time limit, and shorter waits."""
    settings = yaml.safe_load((sweep.WORKFLOW / "profiles/slurm/config.yaml").read_text(encoding="utf-8"))
    settings["default-resources"]["runtime"] = minutes
    settings |= {"latency-wait": 5, "slurm-init-seconds-before-status-checks": 5}
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return folder


def drill(
    controller: psutil.Process,
    faults: dict[str, int],
    num_runs: int,
    num_iterations: int,
    minutes: int,
    seed: int = 1,
) -> dict[str, Any]:
    """Disturb sweeps so often on a Slurm that runs; returns the figures."""
    rng, begun = random.Random(seed), time.monotonic()
    plan = [kind for kind, number in faults.items() for _ in range(number)]
    rng.shuffle(plan)
    most = 10 + 2 * len(plan)  # sweeps
    done, states, wrong = Counter(), {}, Counter(missing=0, different=0, damaged=0)
    sweeps, hung, compared, process = 0, 0, 0, None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        grid, store, reference = (folder / part for part in ("grid.yaml", "store0", "reference"))
        os.environ["RWSLIB_PUBLISHED"] = str(folder / "none")
        sizes = {"num_iterations": num_iterations, "num_runs": 2, "num_particles": 2, "experiment": "gmm"}
        rows = [{**sizes, "method": METHODS[i % 6], "seed": 1 + i // 6} for i in range(num_runs)]
        grid.write_text(yaml.safe_dump(rows), encoding="utf-8")
        ours_alone = profile(folder / "profile", minutes)
        try:
            if (process := start(grid, reference)).wait():
                raise SystemExit("the undisturbed sweep failed; python -m rwslib sweep says why")
            while sweeps < most:
                process = start(grid, store, "--profile", str(ours_alone))
                more, seen, hangs = watch(process, controller, store, plan, rng)
                done, states, sweeps, hung = done + more, states | seen, sweeps + 1, hung + hangs
                print(f"sweeps: {sweeps}, disturbances left: {len(plan)}", file=sys.stderr, flush=True)
                if sweep.pending([grid], store)[1]:
                    continue  # a job that is disturbed twice is given up until the next sweep
                wrong += compare(store, reference)
                compared += num_runs
                if not plan:
                    break
                store = folder / f"store{sweeps}"
            else:
                wrong["missing"] += len(sweep.pending([grid], store)[1])
            left = sum(1 for path in store.rglob("*") if path.name.startswith(".") and path.name != ".sweep")
        finally:
            if process is not None and process.poll() is None:
                kill(family(process))
    ends = Counter(states.values())
    return {
        "jobs": len(states),
        "jobs cancelled with scancel": done["scancel"],
        "jobs killed with SIGKILL": done["SIGKILL"],
        "jobs stopped until their time limit": done["time limit"],
        "of these after a checkpoint": done["after a checkpoint"],
        "times that Slurm was silent": done["silence"],
        "jobs that Slurm calls cancelled": ends["CANCELLED"],
        "jobs that Slurm calls failed": ends["FAILED"],
        "jobs that Slurm calls out of time": ends["TIMEOUT"],
        "sweeps": sweeps,
        "sweeps that hung": hung,
        "runs": num_runs,
        "records compared": compared,
        **{name: wrong[name] for name in ("missing", "different", "damaged")},
        "left-over files": left,
        "seconds": round(time.monotonic() - begun),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scancel", type=int, default=8, help="jobs to cancel")
    parser.add_argument("--sigkill", type=int, default=8, help="jobs to kill")
    parser.add_argument("--limit", type=int, default=2, help="jobs to stop until their time limit ends them")
    parser.add_argument("--silence", type=int, default=2, help="times that Slurm does not answer")
    parser.add_argument("--runs", type=int, default=8, help="runs in the sweep that is disturbed")
    parser.add_argument("--iterations", type=int, default=1500, help="of each run")
    parser.add_argument("--minutes", type=int, default=3, help="time limit of a job")
    parser.add_argument("--write", type=files.expanded, help="also write the figures as JSON")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that the daemons are stopped
    faults = {
        "scancel": arguments.scancel,
        "SIGKILL": arguments.sigkill,
        "time limit": arguments.limit,
        "silence": arguments.silence,
    }
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        slurm(Path(folder)) as controller,
    ):
        figures = {
            "date": datetime.now(UTC).date().isoformat(),
            "hardware": records.provenance(0, "cpu")["hardware"],
            "versions": {
                "Slurm": ask("sinfo", "--version")[0].split()[-1],
                "plug-in": version("snakemake-executor-plugin-slurm"),
            },
            "Slurm drill": drill(controller, faults, arguments.runs, arguments.iterations, arguments.minutes),
        }
    found = figures["Slurm drill"]
    for name, value in found.items():
        print(f"{name:36} {value:>6}")
    if arguments.write:
        arguments.write.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if found["missing"] + found["different"] + found["damaged"] + found["sweeps that hung"]:
        sys.exit("the drill found faults")


if __name__ == "__main__":
    main()
