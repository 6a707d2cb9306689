"""The notebooks: executed, documented, and retrained when a parameter changes."""

import json
import re
from pathlib import Path

import matplotlib
import nbformat
import papermill
import pytest
import yaml
from shortened import LEFT_OUT, shortened

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
GMM_PARAMETERS = {
    "methods",
    "num_particles",
    "num_iterations",
    "num_runs",
    "batch_size",
    "learning_rate",
    "delta",
    "init",
    "seed",
    "device",
    "results_dir",
}

AIR_PARAMETERS = {
    "dataset",
    "methods",
    "num_particles",
    "num_iterations",
    "batch_size",
    "learning_rate",
    "num_runs",
    "eval_particles",
    "seed",
    "device",
    "results_dir",
}
OWN_PARAMETERS = AIR_PARAMETERS - {"results_dir"} | {"num_latents"}
COINS_PARAMETERS = OWN_PARAMETERS - {"num_latents", "eval_particles"} | {"latents", "hidden"}
VAE_PARAMETERS = AIR_PARAMETERS - {"num_iterations", "learning_rate"} | {"num_stages"}


def code_cells(path):
    cells = nbformat.read(path, as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_was_executed_in_order_without_errors(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        if (
            re.search(r"^\s*(print|plt\.show|display)\(", cell.source, re.MULTILINE)
            and "def " not in cell.source
        ):
            assert cell.outputs, f"this cell prints, but has no output:\n{cell.source}"
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", f"warnings or a progress bar:\n{output.text}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_code_fits_the_page_and_outputs_are_numbers(path):
    for cell in code_cells(path):
        assert max(map(len, cell.source.splitlines())) <= 88, cell.source
        printed = "".join(output.get("text", "") for output in cell.outputs)
        assert not re.search(r"\b(True|False)\b", printed), f"a test, not a number:\n{printed}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_chapter_opens_with_its_box_and_folds_what_plots(path):
    first, *others = nbformat.read(path, as_version=4).cells
    assert "<!-- generated: box -->" in first.source
    assert sum("finding" in cell.metadata.get("tags", []) for cell in others) == 1
    for cell in others:
        if "plt.show()" in cell.source:
            assert "hide-input" in cell.metadata.get("tags", []), cell.source


CHAPTERS = [path for path in NOTEBOOKS if re.match(r"0\d_", path.stem)]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_has_exercises_in_three_levels_and_asks_what_stayed(path):
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    levels = re.findall(r"\{exercise\} (Warm-up|Work|Open): ", text)
    assert len(levels) >= 6 and set(levels) == {"Warm-up", "Work", "Open"}
    assert "**Ask yourself.**" in text and text.count(":::{dropdown} ") >= 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_parameters_are_typed_and_explained(path):
    parameters = papermill.inspect_notebook(path)
    assert parameters
    for parameter in parameters.values():
        assert parameter["help"], f"{parameter['name']} has no comment"
        assert parameter["inferred_type_name"] != "None", f"{parameter['name']} has no type"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_figures_have_captions_and_alternative_texts(path):
    for cell in code_cells(path):
        if any("image/svg+xml" in output.get("data", {}) for output in cell.outputs):
            settings = cell.metadata.get("mystnb", {})
            assert settings.get("figure", {}).get("caption"), cell.source
            assert settings.get("image", {}).get("alt"), cell.source


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("02_gmm", GMM_PARAMETERS),
        ("03_vae", VAE_PARAMETERS),
        ("04_air", AIR_PARAMETERS),
        ("05_your_own_model", OWN_PARAMETERS),
        ("06_coins", COINS_PARAMETERS),
    ],
)
def test_a_notebook_has_its_parameters(name, parameters):
    assert papermill.inspect_notebook(ROOT / f"notebooks/{name}.ipynb").keys() >= parameters


@pytest.mark.parametrize(
    "path", sorted((ROOT / "notebooks/parameters").glob("*.yaml")), ids=lambda path: path.stem
)
def test_parameter_files_set_known_parameters(path):
    known = papermill.inspect_notebook(ROOT / f"notebooks/{path.stem.split('-')[0]}.ipynb")
    assert yaml.safe_load(path.read_text()).keys() <= known.keys()


@pytest.fixture
def empty_stores(tmp_path, monkeypatch):
    monkeypatch.setenv("RWSLIB_PUBLISHED", str(tmp_path / "published"))
    monkeypatch.setenv("RWSLIB_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return tmp_path


def rerun(folder, name="02_gmm", **parameters):
    """Execute a notebook; papermill runs in this process, its kernel in another."""
    source, target = folder / f"{name}.ipynb", folder / "out.ipynb"
    whole = ROOT / f"notebooks/{name}.ipynb"
    nbformat.write(shortened(name) if name in LEFT_OUT else nbformat.read(whole, as_version=4), source)
    papermill.execute_notebook(
        source, target, parameters, kernel_name="python3", progress_bar=False, cwd=folder
    )
    return "\n".join(json.dumps(cell.outputs) for cell in code_cells(target))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the client that talks to the kernel
def test_changed_parameters_train_live_and_show_just_that(empty_stores):
    shown = rerun(empty_stores, methods=["ww", "dww"], num_particles=[3], num_iterations=20, num_runs=2)
    configs = [json.loads(path.read_text()) for path in (empty_stores / "results").glob("*/*/config.json")]
    trained = {(config["method"], config["num_particles"], config["num_iterations"]) for config in configs}
    assert trained == {("ww", 3, 20), ("dww", 3, 20)}
    assert "K = 3" in shown
    assert "2 replicates, 20 iterations" in shown


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_own_model_trains_at_other_parameters(empty_stores):
    sizes = {"num_latents": [2, 3], "num_iterations": 5, "num_runs": 1, "eval_particles": 4}
    shown = rerun(empty_stores, "05_your_own_model", methods=["wws", "tvo"], num_particles=[3], **sizes)
    assert "2 cells of 1 replicate and 5 iterations" in shown
    assert "| WWS |" in shown and "| TVO |" in shown
    assert not (empty_stores / "results").exists()


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("05_your_own_model", {"methods": ["ww", "iwae"]}, "method must be one of"),
        ("05_your_own_model", {"batch_size": 5000}, "batch_size must be at most"),
        (
            "02_gmm",
            {"methods": ["vimco"], "num_particles": [1]},
            "num_particles must be at least 2 for method 'vimco', got 1",
        ),
        ("02_gmm", {"num_iterations": "many"}, "num_iterations must be a whole number"),
    ],
)
def test_bad_parameters_stop_before_training(empty_stores, monkeypatch, name, parameters, message):
    """The cells run in this process: a kernel would only cost time."""

    def train(*_, **__):
        raise AssertionError("training begins")

    monkeypatch.setattr("rwslib.training.Trainer.train", train)
    monkeypatch.setattr("rwslib.training.Trainer.train_block", train)
    whole = papermill.iorw.load_notebook_node(str(ROOT / f"notebooks/{name}.ipynb"))
    cells = papermill.parameterize.parameterize_notebook(whole, parameters).cells
    names = {"__name__": "__main__"}
    with matplotlib.rc_context(), pytest.raises(ValueError, match=message):
        for cell in cells:
            if cell.cell_type == "code":
                exec(cell.source, names)
    assert not (empty_stores / "results").exists()
