"""The benchmark runs, and its page shows what it wrote.  What it measures is not judged here."""

import copy
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import bench
import generate_pages
import pytest

from rwslib import data
from rwslib.commands import sweep
from rwslib.experiments import AIRConfig, SBNConfig, run
from rwslib.training import trainer

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def written(tmp_path, monkeypatch, capsys):
    """Run sections of the benchmark, small and uncompiled; returns the file's path."""
    scenes = data.scenes
    monkeypatch.setattr(data, "scenes", lambda name, split: scenes(name, split, 64))
    monkeypatch.setattr(trainer, "COMPILE_FROM", 10**9)
    monkeypatch.setattr(bench, "can_compile", lambda: False)
    monkeypatch.setitem(bench.LARGE, "cpu", (64, 2**10))
    monkeypatch.setattr(bench, "AIRConfig", partial(AIRConfig, batch_size=4))
    for name, value in {"EVALUATED_IMAGES": 20, "EVALUATED_PARTICLES": 50}.items():
        monkeypatch.setattr(bench, name, value)
    for name, value in {"SHARED_RUNS": 2, "OWN_RUNS": 1, "ROWS": 3, "RECORDS": 5}.items():
        monkeypatch.setattr(bench, name, value)

    def run(*sections):
        path = tmp_path / "benchmark.json"
        bench.main(["--only", *sections, "--seconds", "0.001", "--write", str(path)])
        printed = capsys.readouterr().out
        assert all(f"\n{section}: " in printed for section in sections)
        return path

    return run


def page_rows(section, path):
    """The cells of a section's table on the page, header first."""
    lines = [line for line in generate_pages.benchmark_table(section, path).splitlines() if line[:1] == "|"]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "---" not in line]


def test_every_section_has_a_table_on_the_page_whose_columns_the_file_holds():
    page = (ROOT / "book/benchmark.md").read_text()
    assert list(bench.SECTIONS) == list(generate_pages.BENCHMARKS)
    assert all(f"<!-- generated: benchmark {section} -->" in page for section in bench.SECTIONS)
    measured = json.loads((ROOT / "book/results/benchmark.json").read_text())
    assert measured.keys() <= bench.SECTIONS.keys()
    for section, found in measured.items():
        assert len({tuple(row) for row in found["rows"]}) == 1, f"{section}: a table has one header"
    names = {name for found in measured.values() for name in found["rows"][0]}
    assert generate_pages.COLUMNS.keys() <= names


def test_sections_of_a_gpu_give_the_columns_of_their_tables(monkeypatch, written):
    monkeypatch.setattr(bench, "GPU", "cpu")
    monkeypatch.setattr(bench, "VAE_GPU_CASES", (("float32", 2, 1),))
    monkeypatch.setattr(bench, "AIR_GPU_CASES", ((2, 1),))
    path = written(*bench.ON_GPU)
    for section, rows in (("vae_gpu", 1), ("air_gpu", 2)):
        header, *found = page_rows(section, path)
        names = json.loads(path.read_text())[section]["rows"][0]
        assert header == [generate_pages.COLUMNS.get(name, name) for name in names]
        assert len(found) == rows and all(cell for row in found for cell in row[:4])


def test_a_section_that_was_not_measured_says_so(tmp_path):
    assert "`make bench" in generate_pages.benchmark_table("air", tmp_path / "none.json")


def test_scenes_are_measured_and_shown_beside_their_aims(written, monkeypatch):
    monkeypatch.setattr(bench, "rate", lambda work, seconds: 1e6)  # the work itself is tested below
    path = written("air")
    rows = json.loads(path.read_text())["air"]["rows"]
    assert [(row["method"], row["num_particles"]) for row in rows] == [
        (method, num_particles) for method in ("ww", "vimco") for num_particles in (5, 10, 20)
    ]
    assert all(row["iterations_per_second"] > 0 and row["gigaflop_per_iteration"] > 0.01 for row in rows)
    header, *cells = page_rows("air", path)
    assert header[:4] == ["method", "K", "iterations per second", "aim"]
    assert [row[3] for row in cells] == ["15", "", "6"] * 2


FAKE_PYRO = """
from types import SimpleNamespace

class AIR:
    def __init__(self, num_steps, x_size, window_size, z_what_size, rnn_hidden_size, **nets):
        assert (num_steps, x_size, window_size, z_what_size) == (3, 50, 20, 50)
    model = guide = staticmethod(lambda: None)

def step(scenes, batch_size):
    assert scenes.shape[1:] == (50, 50) and 0 <= scenes.min() < scenes.max() <= 1 and batch_size == 4

optim = SimpleNamespace(Adam=dict)
infer = SimpleNamespace(TraceGraph_ELBO=dict, SVI=lambda *args, loss: SimpleNamespace(step=step))
"""


def test_pyros_example_is_measured_beside_ours_where_it_is_there(written, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "AIR_AIMS", {5: 15})
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYRO_AIR_EXAMPLE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pyro", None)
    with pytest.raises(SystemExit, match="needs pyro-ppl installed and the folder examples/air"):
        written("air")
    fake = ModuleType("fake")
    exec(FAKE_PYRO, vars(fake))
    for name in ("pyro", "air"):
        monkeypatch.setitem(sys.modules, name, fake)
    path = written("air")
    *_, pyros = json.loads(path.read_text())["air"]["rows"]
    assert pyros["iterations_per_second"] > 0
    assert page_rows("air", path)[-1][:2] == ["Pyro's example", "1"]


def test_models_and_evaluation_are_measured_and_other_sections_stay(written, monkeypatch):
    monkeypatch.setattr(bench, "rate", lambda work, seconds: 1e6)  # the work itself is tested elsewhere
    path = written("evaluation")
    written("gmm", "vae")
    measured = json.loads(path.read_text())
    assert list(measured) == ["evaluation", "gmm", "vae"]
    assert len(page_rows("evaluation", path)) == 1 + 1
    assert len(page_rows("gmm", path)) == 1 + 14
    header, *cells = page_rows("vae", path)
    assert len(cells) == 16 and {row[header.index("aim")] for row in cells} == {"55 %", "75 %", ""}
    # 206 800 weights of the decoder and 216 800 of the encoder, six operations each
    least = {8: 6 * 32 * (8 * 206_800 + 216_800), 64: 6 * 32 * (64 * 206_800 + 216_800)}
    for row in measured["vae"]["rows"]:
        assert row["gigaflop_per_iteration"] == pytest.approx(least[row["num_particles"]] / 1e9, abs=1e-4)


def test_sweeps_are_measured(written, monkeypatch):
    as_it_is = subprocess.run

    def in_this_process(command, **settings):  # the commands themselves are tested elsewhere
        if command[1:3] != ["-m", "rwslib"]:
            return as_it_is(command, **settings)
        name, *arguments = command[3:]
        if name == "sweep":
            store = arguments[arguments.index("--results-dir") + 1]
            for config in sweep.configurations(Path(arguments[0])):
                run(config, store)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(bench.subprocess, "run", in_this_process)
    header, *cells = page_rows("sweep", written("sweep"))
    assert header == ["what", "seconds", "aim"]
    assert [row[0] for row in cells][2:] == ["a sweep of 3 rows that are all done", "list over 5 records"]
    assert all(float(row[1]) > -0.1 for row in cells)  # of a record, training takes rounded seconds


def test_coins_are_measured_beside_a_plain_loop(written, monkeypatch):
    monkeypatch.setattr(bench, "SBN_CASES", (("ww", 2), ("disarm", 2)))
    header, *cells = page_rows("sbn", written("sbn"))
    assert header[:3] == ["method", "K", "replicates"]
    assert [row[:3] for row in cells] == [
        ["`ww`", "2", "4"],
        ["`disarm`", "2", "4"],
        ["plain loop, disarm", "10", "1"],
    ]
    assert all(float(row[3].replace(",", "")) > 0 for row in cells)


def test_the_plain_loop_trains(monkeypatch):
    config = SBNConfig("disarm", 4, "digits", latents=(5,), batch_size=20)
    parts = bench.sbn.build(config)
    monkeypatch.setattr(bench.sbn, "build", lambda config: parts)
    before = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
    bench.plain_step(config)()
    for name, part in parts.items():
        assert any((value != before[name][key]).any() for key, value in part.state_dict().items())
