"""Sweeps: each row once, whoever asks for it, on this machine or through a cluster's submit command."""

import asyncio
import errno
import importlib.util
import json
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import drill
import drill_slurm
import generate_pages
import pytest
import yaml

from rwslib import __main__ as cli
from rwslib import records
from rwslib.commands import rerun, sweep
from rwslib.experiments import GMMConfig, run

ROOT = Path(__file__).resolve().parent.parent
TINY = "num_iterations: 4, num_runs: 2, batch_size: 5"
GRID = f"- {{experiment: gmm, method: [ww, vimco], num_particles: [2, 3], {TINY}}}\n"

needs_snakemake = pytest.mark.skipif(not sweep.has_snakemake(), reason="needs requirements-sweep.txt")
needs_cluster = pytest.mark.skipif(
    importlib.util.find_spec("snakemake_executor_plugin_cluster_generic") is None,
    reason="needs requirements-sweep.txt",
)


@pytest.fixture(autouse=True)
def stores(tmp_path, monkeypatch):
    monkeypatch.setenv("RWSLIB_PUBLISHED", str(tmp_path / "published"))
    monkeypatch.setenv("RWSLIB_RESULTS", str(tmp_path / "results"))


@pytest.fixture
def grid(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(GRID)
    return path


def begin(grid, store, *options):
    command = [sys.executable, "-m", "rwslib", "sweep", str(grid), "--results-dir", str(store), *options]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    environment["HOME"] = "/proc/nowhere"  # a home in which nothing can be written
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def finish(process, code=0):
    out, err = process.communicate()
    assert process.returncode == code, err
    return out, err


def test_rows_are_the_same_if_their_configurations_are(tmp_path, grid):
    grid.write_text(
        GRID
        + f"- {{experiment: gmm, method: ww, num_particles: 2, {TINY}}}\n"
        + f"- {{experiment: gmm, method: ww, num_particles: 2, {TINY}, seed: 1, hidden: [[16]]}}\n"
    )
    assert [len(rows) if isinstance(rows, list) else rows for rows in sweep.pending([grid, grid], tmp_path)][
        :2
    ] == [4, 4]
    run(GMMConfig("ww", 2, num_iterations=4, num_runs=2, batch_size=5), tmp_path)
    total, runs, notebooks = sweep.pending([grid], tmp_path)
    assert (total, len(runs), notebooks) == (4, 3, {})


def test_the_grids_of_the_paper_are_whole():
    for path in (ROOT / "workflow/grids").glob("*.yaml"):
        assert sweep.pending([path], ROOT / "nowhere")[0] > 0


def test_every_published_record_is_a_run_of_a_grid():
    grids = [path for path in (ROOT / "workflow/grids").glob("*.yaml") if "reproduce" not in path.name]
    known = {records.key(records.plain(config)) for grid in grids for config in sweep.configurations(grid)}
    assert {path.parent.name for path in (ROOT / "book/results").glob("*/*/config.json")} <= known


def test_short_runs_share_jobs_and_long_ones_do_not():
    short = [GMMConfig("ww", 2, num_iterations=10, seed=seed) for seed in range(1, 41)]
    long = [GMMConfig("ww", 2, seed=seed) for seed in range(1, 4)]
    jobs = sweep.batches(short + long, 2)
    assert sorted(map(len, jobs)) == [1, 1, 1, 8, 16, 16]
    assert [len(job) for job in sweep.batches(short[:5], 2)] == [3, 2]
    assert [config for job in jobs for config in job] == long + short


def test_two_hundred_rows_that_are_there_take_no_snakemake(tmp_path, grid, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "has_snakemake", lambda: pytest.fail("Snakemake was asked for"))
    record = run(GMMConfig("ww", 2, num_iterations=4, num_runs=2, batch_size=5), tmp_path / "results")
    seeds = list(range(1, 201))
    grid.write_text(f"- {{experiment: gmm, method: ww, num_particles: 2, {TINY}, seed: {seeds}}}")
    for seed in seeds:
        config = record.config | {"seed": seed}
        records.save(config, record.metrics, record.provenance, tmp_path / "results")
    begun = time.process_time()
    cli.main(["sweep", str(grid)])
    assert time.process_time() - begun < 4
    assert "200 rows, 200 of them done before, 0 to do" in capsys.readouterr().out


def test_without_snakemake_a_sentence_says_what_to_install(grid, monkeypatch):
    monkeypatch.setattr(sweep, "has_snakemake", lambda: False)
    with pytest.raises(SystemExit, match=r"pip install -r requirements-sweep\.txt"):
        cli.main(["sweep", str(grid)])


def test_a_full_disk_is_said_with_the_folder(grid, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")  # as a write does, without a name

    monkeypatch.setattr(sweep, "has_snakemake", lambda: True)
    monkeypatch.setattr(sweep, "_write_plan", full)
    with pytest.raises(SystemExit, match=rf"No space left on device: '{tmp_path}/results/\.sweep'$"):
        cli.main(["sweep", str(grid)])
    assert not list((tmp_path / "results/.sweep").glob("*/"))


@pytest.fixture
def planned(monkeypatch):
    """The number of jobs that a sweep would hand to Snakemake, which is not started."""
    found = []

    def look(command, check, env):
        folder = Path(command[command.index("--directory") + 1])
        found.append(len(json.loads((folder / "plan.json").read_text())["runs"]))

    monkeypatch.setattr(sweep, "has_snakemake", lambda: True)
    monkeypatch.setattr(sweep.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(sweep.shutil, "which", lambda name: name)
    monkeypatch.setattr(sweep.subprocess, "run", look)
    return lambda grid, **options: (sweep.sweep([grid], **options), found.pop())[1]


def profile(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(text)
    return str(folder)


def test_a_profile_says_for_how_many_jobs_short_runs_are_packed(tmp_path, grid, planned):
    seeds = list(range(1, 13))
    grid.write_text(f"- {{experiment: gmm, method: ww, num_particles: 2, {TINY}, seed: {seeds}}}")
    assert planned(grid) == 2
    assert planned(grid, profile="slurm") == 12
    assert planned(grid, profile="slurm", cores=4) == 4
    said = {"executor: slurm\njobs: 7": 7, "cores: '20'": 20}
    unsaid = ("jobs: unlimited", "jobs: 0", "", "- 1", "[", "retries: 3")
    for text, jobs in {**said, **dict.fromkeys(unsaid, 100)}.items():
        assert sweep.profile_jobs(profile(tmp_path / "own", text)) == jobs
    assert sweep.profile_jobs("one-that-only-snakemake-finds") == 100
    assert sweep.profile_jobs("slurm") == sweep.profile_jobs("cluster-generic") == 100


def test_without_its_plug_in_a_profile_says_what_to_install(tmp_path, grid, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "has_snakemake", lambda: True)
    monkeypatch.setattr(sweep.importlib.util, "find_spec", lambda name: None)
    own = profile(tmp_path / "own", "executor: lsf\njobs: 3")
    needs = {
        "slurm": ("slurm", r"-r requirements-sweep\.txt"),
        "cluster-generic": ("cluster-generic", r"-r requirements-sweep\.txt"),
        own: ("lsf", "snakemake-executor-plugin-lsf"),
    }
    for name, (executor, what) in needs.items():
        sentence = (
            f"^error: the profile {name} needs snakemake-executor-plugin-{executor}: pip install {what}$"
        )
        with pytest.raises(SystemExit, match=sentence):
            cli.main(["sweep", str(grid), "--profile", name])
    assert sweep.profile_jobs(profile(tmp_path / "own", "executor: local\njobs: 3")) == 3
    monkeypatch.setattr(sweep.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(sweep.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match=r"^error: the profile slurm needs Slurm's sbatch, which this"):
        cli.main(["sweep", str(grid), "--profile", "slurm"])
    assert not (tmp_path / "results/.sweep").exists()


def test_the_profiles_learn_that_a_job_was_cancelled_and_their_plug_ins_are_pinned():
    pinned = (ROOT / "requirements-sweep.txt").read_text()
    found = {}
    for path in (ROOT / "workflow/profiles").glob("*/config.yaml"):
        found[path.parent.name] = settings = yaml.safe_load(path.read_text())
        assert f"\nsnakemake-executor-plugin-{settings['executor']}==" in pinned
    assert sorted(found) == sorted(sweep.PINNED_EXECUTORS)
    assert found["slurm"]["slurm-status-command"] == "squeue"
    assert "qstat" in found["cluster-generic"]["cluster-generic-status-cmd"]


@needs_snakemake
def test_the_plug_in_waits_while_slurm_is_silent_and_gives_up_forgotten_jobs(monkeypatch):
    real = Path(importlib.util.find_spec("snakemake_executor_plugin_slurm").origin).read_text()
    assert "await query_job_status(" in real and "= get_min_job_age()" in real
    answers = iter([(None, None), (None, None), ({"7": "RUNNING"}, 0.1), ({}, 0.1)])

    async def ask_once(command, logger):
        return next(answers, (None, None))

    plugin = types.SimpleNamespace(query_job_status=ask_once, get_min_job_age=lambda: None)
    monkeypatch.setitem(sys.modules, "snakemake_executor_plugin_slurm", plugin)
    patience = {"__name__": "patience"}
    exec((ROOT / "workflow/patience.py").read_text(), patience)
    patience["SECONDS"] = 0
    found, seconds = asyncio.run(plugin.query_job_status("squeue --name x", None))
    assert ({*found}, seconds, found["7"]) == ({"7"}, 0.1, "RUNNING")
    assert "8" in found and found["8"] == "UNKNOWN"
    found, _ = asyncio.run(plugin.query_job_status("sacct --name x", None))
    assert "8" not in found  # accounting may be late
    with pytest.raises(patience["WorkflowError"], match="has not said for an hour"):
        asyncio.run(plugin.query_job_status("squeue --name x", None))
    assert plugin.get_min_job_age() >= 3 * 40


def test_a_dry_run_says_what_would_be_done(grid, capsys, tmp_path):
    cli.main(["sweep", str(grid), "--dry-run"])
    assert "gmm vimco K=3" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()


def test_notebook_rows_are_done_until_their_notebook_changes(tmp_path, grid, monkeypatch):
    grid.write_text("- {notebook: 02_gmm, num_particles: [[2], [5]], scale: quick}")
    total, _, notebooks = sweep.pending([grid], tmp_path / "results")
    assert (total, len(notebooks)) == (2, 2)
    assert [values["num_particles"] for _, values in notebooks.values()] == [[2], [5]]
    name, (notebook, values) = next(iter(notebooks.items()))
    executed = rerun.target(Path(notebook), values)
    executed.parent.mkdir(parents=True)
    executed.write_text("{}")
    executed.with_suffix(".html").write_text("")
    about = {"inputs": rerun.inputs(Path(notebook))}
    executed.with_suffix(".json").write_text(json.dumps(about))
    assert name not in sweep.pending([grid], tmp_path / "results")[2]
    monkeypatch.setattr(rerun, "inputs", lambda notebook: {"notebook": "changed"})
    assert name in sweep.pending([grid], tmp_path / "results")[2]


# -- with Snakemake -----------------------------------------------------------------------------------

GRID_ENGINE = {  # a stand-in: jobs run here, in the background; the first is deleted, and nobody is told
    "qsub": """[ "$1 $2 $3 $4 $5" = "-terse -cwd -V -pe smp" ] || exit 1
cd "$JOBS" && number=$(ls | wc -l) && touch "$number" "$number.running"
if [ "$number" = 0 ]; then rm 0.running; else
    (sh "$7"; rm "$number.running") > /dev/null 2>&1 &
fi
echo "$number"
""",
    "qstat": """[ "$1" = -j ] && [ -e "$JOBS/$2.running" ]""",
}


@pytest.mark.slow
@needs_cluster
def test_a_cluster_and_no_sweep_at_all_give_the_same_records(tmp_path, grid, monkeypatch):
    cli.main(["train", str(grid), "--results-dir", str(tmp_path / "plain")])
    for name in ("bin", "jobs"):
        (tmp_path / name).mkdir()
    for name, lines in GRID_ENGINE.items():
        (tmp_path / "bin" / name).write_text("#!/bin/sh\n" + lines)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("JOBS", str(tmp_path / "jobs"))
    settings = yaml.safe_load((ROOT / "workflow/profiles/cluster-generic/config.yaml").read_text())
    settings |= {"jobs": 2, "latency-wait": 1, "seconds-between-status-checks": 1}
    grid_engine = profile(tmp_path / "profile", yaml.safe_dump(settings))
    assert "4 of 4 done" in finish(begin(grid, tmp_path / "cluster", "--profile", grid_engine))[0]
    assert len(list((tmp_path / "jobs").iterdir())) == 3  # one more than the two that there were to do
    assert not drill.compare(tmp_path / "cluster", tmp_path / "plain").total()
    assert not list((tmp_path / "cluster/.sweep").iterdir())


@pytest.mark.slow
@needs_snakemake
def test_two_sweeps_at_once_train_each_run_once_and_a_bad_row_stops_no_other(tmp_path, grid, capsys):
    store = tmp_path / "re{s}ults, with a space"
    bad = GMMConfig("vimco", 3, num_iterations=4, num_runs=2, batch_size=5)
    checkpoint = records.folder(records.plain(bad), store).with_suffix(".checkpoint")
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"nonsense")
    left, right = (begin(grid, store, "--cores", "1") for _ in range(2))
    (left_out, left_err), (right_out, _) = finish(left, 1), finish(right, 1)
    trained = [
        line.split("  ")[0] for line in (left_out + right_out).splitlines() if line.startswith(str(store))
    ]
    assert len(trained) == len(set(trained)) == 3
    assert f"checkpoint {checkpoint} is damaged" in left_err
    assert "not done: " + checkpoint.stem in left_err
    checkpoint.unlink()
    (left_to_do,) = sweep.pending([grid], store)[1]
    assert left_to_do == bad
    cli.main(["train", str(grid), "--results-dir", str(store)])
    cli.main(["train", str(grid), "--results-dir", str(tmp_path / "plain")])
    assert not drill.compare(store, tmp_path / "plain").total()
    cli.main(["sweep", str(grid), "--results-dir", str(store)])
    assert "0 to do" in capsys.readouterr().out


@pytest.mark.slow
@needs_snakemake
def test_the_kill_drill_in_short(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("RWSLIB_PUBLISHED", "")  # set by the drill, and restored after the test
    figures = drill.kill_drill(1, 2, seed=9)  # all of it, after some seconds
    assert figures["kills"] == 1
    assert figures["missing"] == figures["different"] == figures["damaged"] == 0


# -- the drill on Slurm, which needs Slurm: here what does not ----------------------------------------


def test_without_slurm_the_drill_says_what_to_install(tmp_path, monkeypatch):
    found = drill_slurm.program
    monkeypatch.setattr(drill_slurm, "program", lambda name: None if "d" in name else found("sh"))
    sentence = (
        r"^the drill needs Slurm and MUNGE, but this machine lacks munged, slurmctld, slurmd: apt-get install"
    )
    with pytest.raises(SystemExit, match=sentence), drill_slurm.slurm(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_the_drill_on_slurm_keeps_what_the_profile_says_of_states(tmp_path):
    ours = yaml.safe_load((ROOT / "workflow/profiles/slurm/config.yaml").read_text())
    own = yaml.safe_load((drill_slurm.profile(tmp_path / "own", minutes=3) / "config.yaml").read_text())
    changed = {"latency-wait", "slurm-init-seconds-before-status-checks", "default-resources"}
    assert {name for name in own if own[name] != ours.get(name)} == changed
    assert own["default-resources"] == ours["default-resources"] | {"runtime": 3}


def test_the_page_shows_what_both_drills_found():
    page = (ROOT / "book/rerun.md").read_text()
    for file, name, marker in [
        ("drill.json", "kill drill", "drills"),
        ("drill-slurm.json", "Slurm drill", "slurm drill"),
    ]:
        assert f"<!-- generated: {marker} -->" in page
        found = json.loads((ROOT / "book/results" / file).read_text())[name]
        assert found["missing"] == found["different"] == found["damaged"] == 0 < found["records compared"]
        assert f"| {name} | records compared | {found['records compared']} |" in generate_pages.drill_table(
            file, name
        )
    assert generate_pages.drill_table("none.json") == "This has not been run yet."
