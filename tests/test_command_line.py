"""The command line: what it prints, what it refuses, and what it leaves behind when things break."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import drill
import nbformat
import numpy as np
import pytest

from rwslib import __main__ as cli
from rwslib import experiments, records
from rwslib.commands import rerun
from rwslib.experiments import GMMConfig, run

CONFIG = GMMConfig("ww", 2, num_iterations=4, num_runs=2, batch_size=5)
GRID = (
    "- {experiment: gmm, method: [ww, vimco], num_particles: 2,"
    " num_iterations: 4, num_runs: 2, batch_size: 5}"
)


@pytest.fixture(autouse=True)
def stores(tmp_path, monkeypatch):
    monkeypatch.setenv("RWSLIB_PUBLISHED", str(tmp_path / "published"))
    monkeypatch.setenv("RWSLIB_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))


@pytest.fixture
def call(capsys):
    def call(*arguments, code=None):
        """What a command printed; ``code`` is what it must exit with."""
        if code is None:
            cli.main([str(argument) for argument in arguments])
        else:
            with pytest.raises(SystemExit) as end:
                cli.main([str(argument) for argument in arguments])
            if isinstance(code, int):
                assert end.value.code == code
            else:
                assert re.search(code, str(end.value)), end.value
                assert str(end.value).startswith("error: ") and "\n" not in str(end.value)
        return capsys.readouterr()

    return call


@pytest.fixture
def grid(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(GRID)
    return path


# -- data ---------------------------------------------------------------------------------------------


def test_missing_data_are_named_in_one_sentence(call, tmp_path, monkeypatch):
    monkeypatch.setenv("RWSLIB_DATA", str(tmp_path))
    assert "python -m rwslib data fetch mnist" in call("data", "status", code=1).out
    monkeypatch.setattr("rwslib.data.MIRRORS", ())
    call("data", "fetch", "mnist", code="could not be fetched")
    row = "- {experiment: vae, method: iwae, num_particles: 2, num_stages: 1}"
    (tmp_path / "grid.yaml").write_text(row)
    assert "run `python -m rwslib data fetch mnist`" in call("train", tmp_path / "grid.yaml", code=1).err


# -- looking at the store -----------------------------------------------------------------------------


def test_looking_at_records_needs_no_torch():
    command = "import sys, rwslib.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


def test_the_list_shows_records_damaged_ones_and_runs_that_were_begun(call, tmp_path):
    whole, other = run(CONFIG), run(replace(CONFIG, seed=2))
    (other.path / "metrics.npz").unlink()
    from rwslib.experiments import gmm
    from rwslib.training import Trainer

    trainer = Trainer(gmm.problem(replace(CONFIG, num_iterations=50)), range(2))
    trainer.train_block()
    trainer.log()
    trainer.save(tmp_path / f"results/gmm/{'b' * 16}.checkpoint", 1.0)
    (tmp_path / f"results/gmm/{'c' * 16}.checkpoint").write_text("nonsense")
    out = call("list").out
    line = next(line for line in out.splitlines() if line.startswith(whole.key))
    assert re.search(r"gmm +ww +2 +2 +4/4 +\d{4}-\d\d-\d\d +[\d.]+ +prior_l2 [\d.]+", line)
    assert re.search(rf"{other.key} .*is damaged", out)
    assert re.search(r"b{16} .*1/50 .*no record yet", out)
    assert re.search(r"c{16} .*checkpoint .* is damaged", out)


def test_five_hundred_records_are_listed_in_a_second(call, tmp_path):
    record = run(replace(CONFIG, num_iterations=100))
    for seed in range(2, 501):
        config = record.config | {"seed": seed}
        folder = records.folder(config, tmp_path / "results")
        shutil.copytree(record.path, folder)
        (folder / "config.json").write_text(json.dumps(config))
    begun = time.process_time()
    assert len(call("list").out.splitlines()) == 501
    assert time.process_time() - begun < 1


def test_show_wants_a_key_that_names_one_record(call, tmp_path):
    record = run(CONFIG)
    shown = json.loads(call("show", record.key[:5]).out)
    assert shown["config"] == record.config
    assert len(shown["final"]["prior_l2"]) == 2
    for key in ("nothing", "../gmm", "*"):
        call("show", key, code="key must name a stored record")
    run(replace(CONFIG, seed=2))
    call("show", "", code="several")


def test_verify_says_what_is_wrong_with_which_record(call):
    paths = {seed: run(replace(CONFIG, seed=seed)).path for seed in range(1, 7)}
    assert "6 records, 0 faults" in call("verify").out
    metrics = dict(np.load(paths[1] / "metrics.npz"))
    metrics["prior_l2"][0, 0] = np.nan
    np.savez(paths[1] / "metrics.npz", **metrics)
    provenance = json.loads((paths[2] / "provenance.json").read_text())
    del provenance["hardware"]
    (paths[2] / "provenance.json").write_text(json.dumps(provenance))
    (paths[3] / "config.json").write_text((paths[4] / "config.json").read_text())
    (paths[5] / "weights.safetensors").write_bytes(b"nonsense")
    (paths[6] / "config.json").unlink()
    out = call("verify", code=1).out.splitlines()
    assert out[-1] == "6 records, 5 faults"
    for seed, fault in {
        1: "metric prior_l2 has values that are not finite",
        2: "provenance has no hardware",
        3: "does not hash to its name",
        5: "weights.safetensors is damaged",
        6: "No such file",
    }.items():
        assert sum(str(paths[seed]) in line and fault in line for line in out) == 1


def test_export_has_one_row_a_replicate(call, tmp_path):
    record = run(CONFIG)
    call("export", "--csv", tmp_path / "table.csv")
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["replicate"] for row in rows] == ["0", "1"]
    assert {row["key"] for row in rows} == {record.key}
    for row, value in zip(rows, record.metrics["prior_l2_final"], strict=True):
        assert float(row["prior_l2"]) == pytest.approx(float(value), rel=1e-5)
    assert call("export").out.splitlines()[0].startswith("key,")


def test_damaged_records_are_left_out_of_an_export_and_said(call, tmp_path):
    whole, damaged, lacking = (run(replace(CONFIG, seed=seed)).path for seed in (1, 2, 3))
    (damaged / "metrics.npz").write_text("nonsense")
    provenance = json.loads((lacking / "provenance.json").read_text())
    del provenance["date"]
    (lacking / "provenance.json").write_text(json.dumps(provenance))
    shown = call("export", "--csv", tmp_path / "table.csv", code=1)
    assert re.search(f"left out: record {damaged} is damaged", shown.err)
    assert re.search(f"left out: {lacking}: .*date", shown.err)
    with (tmp_path / "table.csv").open() as file:
        assert {row["key"] for row in csv.DictReader(file)} == {whole.name}


def test_own_records_can_be_looked_at_alone(call, tmp_path):
    published = run(CONFIG)
    call("publish", published.path)
    shutil.rmtree(published.path)
    own = run(replace(CONFIG, seed=2))
    for command in ("list", "export"):
        assert {published.key, own.key} <= set(re.findall("[0-9a-f]{16}", call(command).out))
        assert set(re.findall("[0-9a-f]{16}", call(command, "--own").out)) == {own.key}
    assert "2 records, 0 faults" in call("verify").out
    assert "1 records, 0 faults" in call("verify", "--own").out


def test_records_are_published_with_or_without_weights(call):
    first, second = run(CONFIG), run(replace(CONFIG, seed=2))
    assert (Path(call("publish", first.path).out.strip()) / "weights.safetensors").exists()
    published = Path(call("publish", "--no-weights", second.path).out.strip())
    assert (published / "metrics.npz").exists()
    assert not (published / "weights.safetensors").exists()


# -- one notebook -------------------------------------------------------------------------------------

BAD_PARAMETERS = [
    (["-p", "num_particle", "[2]"], r"parameter must be .*did you mean 'num_particles'.*got 'num_particle'"),
    (["-p", "num_iterations", "many"], "num_iterations must be a whole number, got 'many'"),
    (["-p", "num_iterations", "1.5"], "num_iterations must be a whole number, got 1.5"),
    (["-p", "num_particles", "3"], "num_particles must be a list"),
    (["-p", "num_particles", "[two]"], "num_particles must be a list of which each is a whole number"),
    (["-p", "train_all", "1"], "train_all must be true or false, got 1"),
    (["-p", "learning_rate", ".nan"], "learning_rate must be a number"),
    (["-p", "learning_rate", "-1"], "learning_rate must be a number above 0, got -1.0"),
    (["-p", "methods", "[ww, wake]"], "methods must be one of .*got 'wake'"),
    (["-p", "methods", "[]"], "methods must be a list of at least one"),
    (["-p", "init", "<script>"], "init must be 'far' or 'near', got '<script>'"),
    (["-p", "delta", "2"], "delta must be a number between 0 and 1"),
    (["-p", "device", "gpu"], "device must be 'cpu' or a CUDA device .*, got 'gpu'"),
    (
        ["-p", "device", "mps"],
        "device must be .*, got 'mps': Apple's GPUs have no float64",
    ),
    (["-p", "device", "cuda:99"], "device must be one that PyTorch has here, .*got 'cuda:99'"),
    (["-f", "nowhere.yaml"], "nowhere.yaml"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_PARAMETERS, ids=lambda value: " ".join(value)[:40])
def test_bad_parameters_are_refused_before_anything_starts(call, monkeypatch, arguments, message):
    monkeypatch.setattr(rerun, "execute", lambda *_: pytest.fail("it was executed"))
    call("run", "02_gmm", *arguments, code=message)


def test_a_thousand_bad_parameter_sets_in_short(capsys):
    figures = drill.fuzz(60, seed=2)
    assert figures["refused"] == figures["sets"] == 60, capsys.readouterr().err
    assert figures["executed"] == figures["tracebacks"] == 0


def test_a_misspelt_notebook_is_suggested(call):
    call("run", "02_gm", code="did you mean '02_gmm'")


def test_parameters_are_listed_with_type_default_and_meaning(call):
    out = call("run", "02_gmm", "--help-parameters").out
    assert re.search(r"^num_iterations +int +100000 +optimiser steps$", out, re.MULTILINE)


def test_values_are_taken_from_scale_then_file_then_command_line(tmp_path):
    notebook = rerun.find("02_gmm")
    (tmp_path / "mine.yaml").write_text("num_runs: 4\nlearning_rate: 1e-2\n")
    given = [("num_particles", "[2]"), ("learning_rate", "1e-3")]
    chosen = rerun.choose(notebook, given, tmp_path / "mine.yaml", "quick")
    assert chosen["num_iterations"] == 200  # of the scale
    assert chosen["num_runs"] == 4  # of the file
    assert chosen["num_particles"] == [2]
    assert chosen["learning_rate"] == 1e-3
    assert rerun.choose(notebook, [], tmp_path / "mine.yaml")["learning_rate"] == 0.01
    sections = "num_runs: 4\n02_gmm: {num_runs: 5}\n03_vae: {num_runs: 6}\n"
    (tmp_path / "mine.yaml").write_text(sections)
    assert rerun.choose(notebook, [], tmp_path / "mine.yaml")["num_runs"] == 5
    (tmp_path / "mine.yaml").write_text("02_gmm: 5\n")
    with pytest.raises(ValueError, match="02_gmm must be a mapping of names to values, got 5"):
        rerun.choose(notebook, [], tmp_path / "mine.yaml")


@pytest.fixture
def notebook(tmp_path):
    """A small notebook, without a kernelspec, that shows its parameter in every way that a page has."""
    book = nbformat.v4.new_notebook()
    cell = nbformat.v4.new_code_cell(
        'text: str = "plain"  # shown\nnumber: int = 1  # below 3', metadata={"tags": ["parameters"]}
    )
    shown = nbformat.v4.new_code_cell(
        "from IPython.display import HTML, Markdown, display\n"
        "import rwslib\nprint(text)\ndisplay(HTML(text), Markdown(text))\n"
        "assert number < 3, 'number is too large'\ntext"
    )
    book.cells = [cell, shown]
    path = tmp_path / "small.ipynb"
    nbformat.write(book, path)
    return path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the client that talks to the kernel
def test_a_notebook_is_executed_into_a_page_without_the_markup_of_parameters(
    call, notebook, tmp_path, monkeypatch
):
    installed = tmp_path / "installed/rwslib"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("raise ImportError('another library')")
    monkeypatch.setenv("PYTHONPATH", str(installed.parent))
    monkeypatch.setenv("RWSLIB_RESULTS", str(tmp_path / "re{sul}ts"))
    text = "<script>alert('number')</script><b onclick='alert()'>"
    out = call("run", notebook, "-p", "text", text).out
    executed, page = (Path(line.split(": ", 1)[1]) for line in out.splitlines())
    assert executed.parent == page.parent == tmp_path / "re{sul}ts/notebooks"
    assert text in nbformat.read(executed, as_version=4).cells[-1].outputs[0]["text"]
    html = page.read_text()
    assert "<script>alert" not in html and "<b onclick" not in html
    assert "&lt;script&gt;alert" in html
    values = rerun.choose(notebook, [("text", text)])
    assert rerun.is_current(notebook, values, rerun.inputs(notebook))
    other = nbformat.read(notebook, as_version=4)
    other.cells[-1].source += "\n"
    nbformat.write(other, notebook)
    assert not rerun.is_current(notebook, values, rerun.inputs(notebook))
    call("run", notebook, "-p", "number", "3", code="small stopped with AssertionError: number is too large")
    assert len(list(executed.parent.glob("small-*.failed.ipynb"))) == 1
    assert not list(executed.parent.glob(".*"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the client that talks to the kernel
def test_an_interrupt_is_for_the_cell_that_runs(notebook, tmp_path, monkeypatch, capfd):
    """So that training in it writes a checkpoint; nobody sees a traceback."""
    book = nbformat.read(notebook, as_version=4)
    book.cells[-1].source = (
        f"from pathlib import Path\nPath({str(tmp_path / 'begun')!r}).touch()\n"
        "import time\ntry:\n    time.sleep(60)\n"
        f"except KeyboardInterrupt:\n    Path({str(tmp_path / 'stopped')!r}).touch()\n    raise"
    )
    nbformat.write(book, notebook)

    def interrupt():
        while not (tmp_path / "begun").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(SystemExit, match="interrupted; the same command goes on from here"):
        cli.main(["run", str(notebook)])
    assert (tmp_path / "stopped").exists()
    assert "Traceback" not in capfd.readouterr().err
    assert not list((tmp_path / "results/notebooks").iterdir())


@pytest.mark.parametrize("content", ["", "[]", "{}", "nonsense"])
def test_what_is_no_notebook_is_said_in_one_sentence(call, tmp_path, content):
    (tmp_path / "no.ipynb").write_text(content)
    call("run", tmp_path / "no.ipynb", code="is not a notebook")


# -- when things break --------------------------------------------------------------------------------


@contextmanager
def full_disk(folder, monkeypatch):
    """A tiny file system that is full, or, for who may not make one, writes that fail as if it were."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode == 0:
        try:
            with pytest.raises(OSError, match="No space left"), (folder / "filler").open("wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()
            yield
        finally:
            subprocess.run(["umount", str(folder)], check=True)
        return

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("rwslib.files.write_sealed", fail)
        yield


@pytest.mark.parametrize("command", [["run", "02_gmm"], ["sweep", "grid.yaml"]])
def test_an_installed_library_says_which_commands_need_a_checkout(command, tmp_path):
    shutil.copytree(Path(cli.__file__).parent, tmp_path / "rwslib")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "rwslib", *command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"error: {command[0]} needs the book's checkout, but this library is installed without it: "
        "call it from a clone of the repository\n"
    )


def test_a_full_disk_is_an_error_and_nothing_else_is_lost(call, grid, tmp_path, monkeypatch):
    store = tmp_path / "results"
    (store / "gmm").mkdir(parents=True)
    kept = run(replace(CONFIG, seed=3)).path
    shutil.move(kept, tmp_path / "kept")
    with full_disk(store / "gmm", monkeypatch):
        errors = call("train", grid, code=1).err.splitlines()
        assert len(errors) == 2
        assert all("error: " in line and re.search("No space|cannot be written", line) for line in errors)
        assert not list(records.iterate(store))
    shutil.move(tmp_path / "kept", kept)
    call("train", grid)
    assert "3 records, 0 faults" in call("verify").out


def test_a_notebook_in_a_grid_to_train_is_refused_in_one_sentence(call, grid):
    grid.write_text("- {notebook: 02_gmm, scale: quick}\n" + GRID)
    call("train", grid, code="a row of a grid to train must be a run; a sweep takes notebooks, got .*02_gmm")


HUGE = 10**13  # more than any machine has


@pytest.mark.parametrize("name", ["num_particles", "batch_size", "num_runs"])
def test_a_row_that_memory_has_no_room_for_stops_no_other(call, grid, name):
    fields = {"num_particles": 2, "batch_size": 5, "num_runs": 2, name: HUGE}
    large = ", ".join(f"{key}: {value}" for key, value in fields.items())
    grid.write_text(f"- {{experiment: gmm, method: ww, num_iterations: 4, {large}}}\n" + GRID)
    shown = call("train", grid, code=1)
    (line,) = shown.err.splitlines()
    assert re.match("error: [0-9a-f]{16} gmm ww K=.*there is not enough memory", line)
    assert "gmm ww K=2" in shown.out and "gmm vimco K=2" in shown.out


def test_an_error_of_the_program_is_shown_whole_and_stops_no_other(call, grid, monkeypatch):
    train = experiments.train

    def broken(config, *arguments, **options):
        if config.method == "ww":
            return {}["missing"]
        return train(config, *arguments, **options)

    monkeypatch.setattr(experiments, "train", broken)
    shown = call("train", grid, code=1)
    assert "Traceback" in shown.err and "gmm ww K=2: KeyError: 'missing'" in shown.err
    assert "gmm vimco K=2" in shown.out


def test_a_scheduler_that_ends_a_job_ends_training_in_good_order(call, grid, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(experiments, "train", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    call("train", grid, code=143)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("device", ["gpu", "mps", "cuda:99", "CUDA", ""])
def test_a_device_that_cannot_train_is_refused_in_one_sentence(call, grid, device):
    for command in ("train", "sweep"):
        call(command, grid, "--device", device, code="device must be")
    with pytest.raises(ValueError, match="device must be"):
        run(CONFIG, device=device)


def test_what_is_all_there_needs_no_store_to_write_to(call, grid, monkeypatch, tmp_path):
    call("train", grid)
    monkeypatch.setenv("RWSLIB_PUBLISHED", str(tmp_path / "results"))
    assert call("train", grid, "--results-dir", "/proc/nowhere").out == ""
    assert "0 to do" in call("sweep", grid, "--results-dir", "/proc/nowhere").out
    grid.write_text(GRID.replace("vimco", "dww"))
    assert "gmm dww K=2" in call("sweep", grid, "-n", "--results-dir", "/proc/nowhere").out


def test_an_unwritable_store_is_an_error_before_training(call, grid, tmp_path, monkeypatch):
    monkeypatch.setattr("rwslib.experiments.Trainer", lambda *args: pytest.fail("training began"))
    (tmp_path / "file").write_text("")
    for store in (tmp_path / "file", tmp_path / "file/below", "/proc/nowhere"):
        call("train", grid, "--results-dir", store, code="results_dir must be a folder that can be written")


def test_a_corrupted_checkpoint_stops_its_run_and_no_other(call, grid, tmp_path):
    path = records.folder(records.plain(CONFIG), tmp_path / "results").with_suffix(".checkpoint")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"nonsense")
    shown = call("train", grid, code=1)
    assert f"checkpoint {path} is damaged" in shown.err
    assert "gmm vimco K=2" in shown.out
    path.unlink()
    assert "gmm ww K=2" in call("train", grid).out


def test_a_record_of_a_newer_version_stops_its_run_and_no_other(call, grid):
    path = run(CONFIG).path / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    shown = call("train", grid, code=1)
    assert "newer than this version" in shown.err
    assert "gmm vimco K=2" in shown.out


def test_a_clock_that_jumps_changes_nothing(monkeypatch, tmp_path):
    times = iter([0.0, 1e9, -1e9] * 1000)
    expected = run(CONFIG)
    monkeypatch.setattr(time, "time", lambda: next(times))
    record = run(CONFIG, tmp_path / "other")
    np.testing.assert_array_equal(record.metrics["prior_l2"], expected.metrics["prior_l2"])


def test_what_a_killed_process_leaves_is_no_lock_and_is_cleared_away(tmp_path):
    plain = records.plain(CONFIG)
    place = records.folder(plain, tmp_path)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, json, time; from pathlib import Path; from rwslib import records\n"
            "with records.lock(json.loads(sys.argv[1]), Path(sys.argv[2])):\n"
            "    print('held', flush=True), time.sleep(99)",
            json.dumps(plain),
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
    )
    assert holder.stdout.readline() == b"held\n"
    with records.lock(plain, tmp_path, wait=False) as held:
        assert not held
    (place.parent / f".{place.name}.abc").mkdir()
    (place.parent / f".{place.name}.checkpoint.12345").write_text("half a checkpoint")
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with records.lock(plain, tmp_path, wait=False) as held:
        assert held
    assert not list(place.parent.iterdir())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{experiment: ../../elsewhere, method: ww, num_particles: 2}", "experiment must be one of"),
        ("{experiment: [[gmm]], method: ww, num_particles: 2}", "experiment must be one of"),
        ("{experiment: gmm, method: ../ww, num_particles: 2}", "method must be one of"),
        ("{experiment: gmm, num_particles: 2}", "cannot be made of"),
        ("{experiment: gmm, metod: ww, num_particles: 2}", "did you mean 'method'"),
        ("{experiment: air, method: ww, num_particles: 2, optimizer: {a: b}}", "optimizer must be"),
        ("{notebook: ../../elsewhere}", "notebook must be one of"),
        ("{notebook: 02_gmm, results_dir: /elsewhere}", "results_dir must be left to the sweep"),
        ("{notebook: 02_gmm, num_iteration: 3}", "did you mean 'num_iterations'"),
        ("]", "is not YAML"),
        ("!!python/object/apply:os.system [echo]", "is not YAML"),
    ],
)
def test_what_a_grid_names_cannot_leave_the_store(call, tmp_path, row, message):
    (tmp_path / "grid.yaml").write_text(f"- {row}")
    call("sweep", tmp_path / "grid.yaml", code=message)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "grid.yaml"]
