"""Sweeps: many runs or notebooks, written as a few lines of YAML, trained once each.

Which rows of a grid still need work is decided here; Snakemake distributes them (``workflow/Snakefile``),
on this machine or on a cluster.  The store alone says what is done, so a sweep that was interrupted,
or that another one works beside, needs no repair.
"""

import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from rwslib import files, records
from rwslib.commands import inspection
from rwslib.experiments import EXPERIMENTS
from rwslib.experiments.common import known_name, one_of, plain_value, require
from rwslib.training.acceleration import check_device
from rwslib.training.trainer import COMPILE_FROM

WORKFLOW = files.ROOT / "workflow"
LARGEST_BATCH = 16  # short runs that share one job, and so one start of Python
PINNED_EXECUTORS = ("cluster-generic", "slurm")
MANY_JOBS = 100  # where a profile does not say how many
INHERITED = ("RWSLIB_DATA", "RWSLIB_PUBLISHED", "RWSLIB_CHECKPOINT_SECONDS", "PYTHONPATH")


def entries(grid: Path) -> Iterator[dict[str, Any]]:
    """Every single row of a grid file: a list of mappings, each the product of its lists."""
    try:
        listed = yaml.safe_load(grid.read_bytes())
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
    one_of(EXPERIMENTS)("experiment", experiment)
    config = EXPERIMENTS[experiment].config
    kinds = get_type_hints(config)
    for name, value in fields.items():
        known_name(name, kinds, "field")
        fields[name] = plain_value(value, kinds[name], text=True)
    try:
        return config(**fields)
    except TypeError as error:  # a required field is missing, or a mapping stands where a value should
        raise ValueError(f"a {experiment} run cannot be made of {fields}: {error}") from None


def configurations(grid: Path) -> Iterator[Any]:
    """The configurations of a grid file.

    Raises:
        ValueError: a row is no run, or refused.
    """
    for entry in entries(grid):
        require("notebook" not in entry, "a row of a grid to train", "a run; a sweep takes notebooks", entry)
        yield configuration(entry)


def pending(grids: Sequence[Path], store: Path) -> tuple[int, list[Any], dict[str, tuple[str, dict]]]:
    """Number of different rows, the configurations no store has, and the notebooks not executed yet.

    A notebook is not executed yet if it or the library has changed since it was.
    """
    wanted: dict[str, Any] = {}
    asked: dict[str, tuple[Path, dict[str, Any]]] = {}
    inputs: dict[Path, dict[str, str]] = {}
    for entry in itertools.chain.from_iterable(map(entries, grids)):
        if "notebook" not in entry:
            config = configuration(entry)
            wanted.setdefault(records.key(records.plain(config)), config)
            continue
        from rwslib.commands import rerun  # papermill and nbconvert, which runs do not need

        require("results_dir" not in entry, "results_dir", "left to the sweep", entry.get("results_dir"))
        values = dict(entry)
        notebook, scale = rerun.find(str(values.pop("notebook"))), values.pop("scale", None)
        require(scale in (None, "quick", "paper"), "scale", "'quick' or 'paper'", scale)
        values = rerun.choose(notebook, scale=scale) | rerun.check(notebook, values)
        inputs.setdefault(notebook, rerun.inputs(notebook))
        asked[rerun.target(notebook, values).stem] = (notebook, values)
    runs = [config for config in wanted.values() if not is_stored(config, store)]
    notebooks = {
        name: (str(notebook), values)
        for name, (notebook, values) in asked.items()
        if not rerun.is_current(notebook, values, inputs[notebook])
    }
    return len(wanted) + len(asked), runs, notebooks


def is_stored(config: Any, store: Path) -> bool:
    """Whether one of the stores has the record of a configuration, whole."""
    try:
        return records.find(records.plain(config), store, only=()) is not None
    except (ValueError, OSError):
        return False  # damaged or not readable: the run will say so, and the others go on


def batches(runs: Sequence[Any], jobs: int) -> list[list[Any]]:
    """Runs that share a job: several if they are short and more than the jobs at once.

    So starting Python costs little of each.
    """
    short = [c for c in runs if EXPERIMENTS[c.experiment].small and c.num_iterations < COMPILE_FROM]
    size = max(1, min(LARGEST_BATCH, -(-len(short) // jobs)))
    long = [[config] for config in runs if config not in short]
    return long + [short[start : start + size] for start in range(0, len(short), size)]


def sweep(
    grids: Sequence[Path],
    results_dir: Path | None = None,
    cores: int | None = None,
    profile: str | None = None,
    device: str = "cpu",
    dry_run: bool = False,
) -> int:
    """Train and execute what grids ask for and the stores do not have.

    Args:
        grids: YAML files; see ``workflow/grids``.
        results_dir: where records go.
        cores: jobs at once on this machine; 2 if there is no profile.
        profile: a folder of ``workflow/profiles`` or any Snakemake profile.
        device: where runs are trained.
        dry_run: only say what would be done.

    Returns:
        How many rows could not be done.
    """
    check_device(device, here=not profile)  # a cluster's may be elsewhere
    store = records.results_store(results_dir).absolute()
    os.environ["RWSLIB_RESULTS"] = str(store)
    total, runs, notebooks = pending(grids, store)
    missing = len(runs) + len(notebooks)
    print(f"{total} rows, {total - missing} of them done before, {missing} to do", flush=True)
    if dry_run:
        for config in runs:
            print(inspection.label(records.plain(config)), records.key(records.plain(config)))
        print("\n".join(notebooks), end="\n" * bool(notebooks))
    if dry_run or not missing:
        return 0
    records.writable(store)
    if not has_snakemake():
        raise ValueError(
            "sweep needs Snakemake: pip install -r requirements-sweep.txt; "
            "python -m rwslib train GRID does without, on one core"
        )
    jobs = cores or (profile_jobs(profile) if profile else 2)
    with files.naming(store / ".sweep"), _workspace(store) as folder:
        _write_plan(folder, store, batches(runs, jobs), notebooks, device)
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(WORKFLOW / "Snakefile")]
        command += ["--directory", str(folder), "--keep-going", "--quiet", "host", "reason"]
        # jobs that run elsewhere do not say here why they fail
        command += ["--profile", str(_profile_folder(profile))] if profile else ["rules"]
        command += ["--cores", str(jobs)] if cores or not profile else []
        # its own cache, because homes are not writable everywhere; what is missing afterwards tells more
        # than its exit code
        subprocess.run(command, check=False, env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")})
    _, runs, notebooks = pending(grids, store)
    left = [f"{records.key(plain)} {inspection.label(plain)}" for plain in map(records.plain, runs)]
    for name in left + list(notebooks):
        print(f"not done: {name}", file=sys.stderr)
    print(f"{missing - len(runs) - len(notebooks)} of {missing} done, in {store}")
    return len(runs) + len(notebooks)


def has_snakemake() -> bool:
    """Whether the engine of sweeps is installed."""
    return importlib.util.find_spec("snakemake") is not None


def _profile_folder(profile: str) -> Path:
    ours = WORKFLOW / "profiles" / profile
    return ours if ours.is_dir() else files.expanded(profile)


def profile_jobs(profile: str) -> int:
    """How many jobs at once a profile allows.

    Raises:
        ValueError: if the plug-in that would submit them is not installed, or Slurm is not.
    """
    settings = None
    for path in sorted(_profile_folder(profile).glob("config*.yaml"))[:1]:  # config.v8+.yaml comes first
        with suppress(yaml.YAMLError):  # Snakemake will say what is wrong with it
            settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings = settings if isinstance(settings, dict) else {}  # Snakemake also looks in folders of its own
    executor = str(settings.get("executor", "local"))
    plugin = f"snakemake-executor-plugin-{executor}"
    inbuilt = executor in ("local", "dryrun", "touch")
    if not inbuilt and importlib.util.find_spec(plugin.replace("-", "_")) is None:
        what = "-r requirements-sweep.txt" if executor in PINNED_EXECUTORS else plugin
        raise ValueError(f"the profile {profile} needs {plugin}: pip install {what}")
    if executor == "slurm" and shutil.which("sbatch") is None:
        raise ValueError(f"the profile {profile} needs Slurm's sbatch, which this machine does not have")
    jobs = str(settings.get("jobs", settings.get("cores")))
    return int(jobs) if jobs.isdecimal() and int(jobs) else MANY_JOBS  # it may say "unlimited"


@contextmanager
def _workspace(store: Path) -> Iterator[Path]:
    """A folder of this sweep alone; those of dead sweeps are removed."""
    shelf = store / ".sweep"
    shelf.mkdir(exist_ok=True)
    with ExitStack() as stack:
        with files.locked(shelf / "lock"):  # else another sweep might take a new folder for a dead one's
            for path in shelf.glob("*/"):
                with suppress(PermissionError), files.locked(path / "lock", wait=False) as held:
                    if held and files.fcntl:
                        shutil.rmtree(path, ignore_errors=True)
            folder = Path(tempfile.mkdtemp(dir=shelf))
            stack.enter_context(files.locked(folder / "lock"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _write_plan(
    folder: Path, store: Path, jobs: Sequence[Sequence[Any]], notebooks: Mapping[str, Any], device: str
) -> None:
    """The jobs as files that ``workflow/Snakefile`` reads."""
    files.settle_environment()
    cache = os.environ.get("XDG_CACHE_HOME")  # which Snakemake gets another of
    own_cache = ["-u", "XDG_CACHE_HOME"] if cache is None else [f"XDG_CACHE_HOME={cache}"]
    for number, configs in enumerate(jobs):
        rows = [  # a list in a grid is an axis, so each value goes into one of its own
            {name: [value] for name, value in records.plain(config).items()} for config in configs
        ]
        (folder / f"run{number}.yaml").write_text(yaml.safe_dump(rows), encoding="utf-8")
    for name, (_, values) in notebooks.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    plan = {
        "command": ["env", *own_cache, sys.executable, "-m", "rwslib"],
        "store": str(store),
        "device": device,
        "runs": [f"run{number}" for number in range(len(jobs))],
        "notebooks": {name: notebook for name, (notebook, _) in notebooks.items()},
        "environment": {
            "OMP_NUM_THREADS": "1",
            **{name: os.environ[name] for name in INHERITED if os.environ.get(name)},
        },
    }
    (folder / "plan.json").write_text(json.dumps(plan, indent=1), encoding="utf-8")
