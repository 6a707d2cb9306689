"""What the book's pages say about the code is so."""

import re
import sys
from importlib.metadata import distribution
from pathlib import Path

import build_book
import generate_pages
import nbformat
import numpy as np
import pytest
import social_card
from glossary_links import glossary_terms, link_terms

from rwslib import __main__ as cli
from rwslib import records
from rwslib.commands import rerun
from rwslib.experiments import EXPERIMENTS, configuration, modules
from rwslib.methods import METHODS
from rwslib.report import plotting
from rwslib.report.claims import QUANTITIES, VERDICTS
from rwslib.report.ledger import CHAPTERS

ROOT = Path(__file__).resolve().parent.parent
BIBLIOGRAPHY = (ROOT / "book/references.bib").read_text()


def prose() -> dict[str, str]:
    """The text of all pages and notebooks by file name, without code, formulas, roles and addresses."""
    texts = {path.name: path.read_text() for path in [*ROOT.glob("*.md"), *(ROOT / "book").rglob("*.md")]}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        texts[path.name] = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    code = re.compile(r"```.*?^```|`[^`]*`|\$[^$]*\$|\{[^}]*\}|https?://\S+", re.DOTALL | re.MULTILINE)
    return {name: code.sub(" ", text) for name, text in texts.items()}


def test_the_prose_is_spelt_the_british_way():
    path = "codespell_lib/data/dictionary_en-GB_to_en-US.txt"
    pairs = [line.split("->") for line in distribution("codespell").locate_file(path).read_text().split()]
    british = {american.strip(","): british for british, american in pairs}
    assert british["optimizer"] == "optimiser"
    allowed = {"biased", "program", "story"}  # British too, in this sense or altogether
    for name, text in prose().items():
        found = set(re.findall("[a-z]+", text.lower())) & british.keys() - allowed
        assert not found, f"{name}: {[f'{word}: {british[word]}' for word in sorted(found)]}"


def test_every_test_that_a_page_names_exists():
    code = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    for page in (ROOT / "book").glob("*.md"):
        for name, parameter in re.findall(r"`(test_\w+)(?:\[(\w+)\])?`", page.read_text()):
            assert f"def {name}(" in code, f"{page.name}: {name}"
            assert not parameter or f"def {parameter}(" in code, f"{page.name}: {parameter}"


def test_first_uses_of_terms_are_linked_and_nothing_else_changes():
    terms = glossary_terms(ROOT / "book/glossary.md")
    assert "particle" in terms
    assert "effective sample size (ESS)" in terms
    quiet = """# A bound
(particle)=
| baseline | score |
`particle` {doc}`the bound </bound>` $particle$ [the score](particle) <!-- generated: baseline -->
```{note}
A particle in a directive.
```
$$
dream
$$ (dream)
Sub-particles and scoreboards."""
    assert link_terms([quiet], terms) == [quiet]
    texts = ["Two particles, a\nparticle; the *evidence lower bound*.", "Particle, ELBO"]
    first, second = link_terms(texts, terms)
    assert "Two {term}`particles <particle>`, a\nparticle; the *{term}`" in first
    assert first.endswith("*{term}`evidence lower bound <ELBO>`*.")
    assert second == "Particle, ELBO"


def test_the_bibliography_holds_what_is_cited_and_nothing_else():
    sources = [*(ROOT / "book").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]
    found = re.findall(r"\{cite(?::\w+)?\}`([^`{]+)`", "\n".join(path.read_text() for path in sources))
    cited = {key.strip() for keys in found for key in keys.split(",")}
    cited |= {method.reference for method in METHODS.values()}
    entries = re.findall(r"^@\w+\{([^,\s]+),(.*?)^\}?\s*(?=@|\Z)", BIBLIOGRAPHY, re.M | re.S)
    assert {key for key, _ in entries} == cited
    for key, fields in entries:
        assert re.search(r"(doi|eprint|url)=\{", fields), f"{key} has no public record"


def test_every_method_is_said_when_to_use():
    page = (ROOT / "book/methods.md").read_text()
    for name, method in METHODS.items():
        assert (f"\n{name}, {method.title}\n: Use it " in page) == (method.ablation is None), name


def test_the_worked_examples_of_the_design_page_run(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "book/architecture.md").read_text(), re.M | re.S)
    scope = {}
    for name in ("RWSLIB_RESULTS", "RWSLIB_PUBLISHED"):
        monkeypatch.setenv(name, str(tmp_path / name))
    try:
        for block in blocks:
            exec(block.replace("200", "20"), scope)  # what a reader would paste, but for its length
        assert plotting.method_style("tempered")["label"] == "tempered WW"
        (tmp_path / "grid.yaml").write_text(
            "- {experiment: kept, method: ww, num_particles: 5, learning_rate: [1e-3, 3e-3]}"
        )
        monkeypatch.setenv("RWSLIB_RESULTS", str(tmp_path / "others"))
        cli.main(["train", str(tmp_path / "grid.yaml")])
        cli.main(["list"])
        assert re.findall(r"kept +ww +5 .*20/20.*largest 0\.\d+", capsys.readouterr().out)
        found = list(records.iterate(records.results_store()))
        assert [records.plain(configuration(record.config)) for record in found] == [r.config for r in found]
        for record in found:
            largest = [modules(record, index)["p"].log_prior().exp().max().item() for index in range(2)]
            np.testing.assert_allclose(largest, record.metrics["largest_final"], rtol=1e-6)
            assert generate_pages.length(record.config) == "20 iterations"
    finally:
        METHODS.pop("tempered", None)
        EXPERIMENTS.pop("kept", None)
        QUANTITIES.pop("largest weight", None)
    claim = scope["claim"]
    assert list(claim.effects) == ["WW, K 2 to 5"] and claim.verdict in VERDICTS
    rises = [scope["runs"]["ww", K].metrics["prior_l2_final"] for K in (2, 5)]  # of the chapter
    assert all(values.shape == (2,) for values in rises)
    assert scope["curves"]["posterior_l2"].shape[0] == 2
    assert np.isfinite(scope["curves"]["posterior_l2"]).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the client that talks to the kernel
def test_the_worked_example_of_a_chapter_takes_new_parameters(tmp_path, monkeypatch):
    for name in ("RWSLIB_RESULTS", "RWSLIB_PUBLISHED", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    page = (ROOT / "book/architecture.md").read_text().split("## A chapter in two cells")[1]
    first, second = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(first, metadata={"tags": ["parameters"]})]
    )
    book.cells.append(nbformat.v4.new_code_cell(second))
    path = tmp_path / "07_kept.ipynb"
    nbformat.write(book, path)
    with pytest.raises(ValueError, match="num_particles"):
        rerun.check(path, {"num_particles": "few"})
    values = rerun.check(path, {"num_particles": [3], "num_iterations": 20})
    rerun.run_cells(path, tmp_path / "out.ipynb", values, tmp_path)
    shown = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[-1].outputs
    (shown_table,) = (out.data["text/markdown"] for out in shown if "text/markdown" in out.get("data", {}))
    assert re.search(r"\n\| 3 \| \d\.\d\d \|$", shown_table)


def test_parameters_that_are_the_defaults_add_no_second_cell_of_them(tmp_path):
    params, names = tmp_path / "mine.yaml", ["02_gmm", "03_vae", "04_air"]
    params.write_text("num_runs: 5\n03_vae: {num_stages: 5, num_particles: [8]}\n")
    assert not any(build_book.choose_parameters(names, "paper", None).values())
    chosen = build_book.choose_parameters(names, "paper", params)
    assert chosen.pop("03_vae") == {"num_runs": 5, "num_particles": [8]}  # it has 2 replicates, and 5 stages
    assert chosen == {"02_gmm": {"num_runs": 5}, "04_air": {}}  # which have 10 and 5
    assert all(build_book.choose_parameters(names, "quick", None).values())


def test_the_parameter_file_of_the_page_is_read_as_it_is_meant(tmp_path):
    (example,) = re.findall(r"```yaml\n(num_runs.*?)```", (ROOT / "book/rerun.md").read_text(), re.DOTALL)
    params, names = tmp_path / "my.yaml", ["02_gmm", "03_vae"]
    params.write_text(example)
    chosen = build_book.choose_parameters(names, "paper", params)
    assert chosen["02_gmm"]["learning_rate"] == 0.003
    assert chosen["03_vae"] == {"num_runs": 3}
    params.write_text("02_gmm: {learning_rate: 3e-3x}\n")
    with pytest.raises(SystemExit, match=r"my.yaml, for 02_gmm: learning_rate must be a number, got '3e-3x'"):
        build_book.choose_parameters(names, "paper", params)


def test_every_chapter_has_one_finding_for_the_first_page():
    page = (ROOT / "book/intro.md").read_text()
    for name in CHAPTERS:
        assert f"<!-- generated: finding {name} -->" in page
        found = generate_pages.finding(ROOT / f"notebooks/{name}.ipynb")
        assert all(re.fullmatch(r"- .*\.", line) for line in found.splitlines()), found


def test_the_first_page_tells_what_was_found_before_it_explains():
    page = (ROOT / "book/intro.md").read_text()
    order = [
        "arxiv.org/abs/1805.10469",
        *(f"<!-- generated: {name} -->" for name in ("answer", "headline", "film", "cards")),
    ]
    order += [
        "(playground.md)",
        "01_background.ipynb)",
        "(claims.md)",
        "05_your_own_model.ipynb)",
        "## The paper",
    ]
    places = [page.index(words) for words in order]
    assert places == sorted(places)


def test_the_finding_the_film_and_the_cards_come_from_the_chapters():
    notebooks = [ROOT / f"notebooks/{name}.ipynb" for name in CHAPTERS]
    said = generate_pages.headline(notebooks[0])
    assert re.match(r"With 20 particles, wake-wake \(WW\) .*learns? .* an error of 0\.00\d(,| )", said)
    film = generate_pages.displayed(notebooks[0], "film", "text/html")
    assert all(f">{title}</text>" in film for title in ("WW", "δ-WW", "VIMCO"))
    found = generate_pages.cards(notebooks)
    assert found.count('class="claim-bar"') == found.count("landing-card") == len(notebooks) == 3
    for notebook in notebooks:
        assert f"notebooks/{notebook.name})" in found
        lines = generate_pages.finding(notebook).splitlines()
        for line in lines[-1:] if notebook.stem == "02_gmm" else lines[-2:]:
            assert line.removeprefix("- ").partition("; at K =")[0] in found


def test_the_box_of_a_chapter_has_its_findings_its_bar_and_its_length():
    box = generate_pages.box(ROOT / "notebooks/03_vae.ipynb")
    assert 'class="claim-bar"' in box
    assert re.match(
        r"- Claims that hold in every setting that was run: VAE-1a \(WW learns a better model ", box
    )
    assert re.search(r"Reading takes about (5|10|15|20) minutes\.", box)
    assert 'class="claim-bar"' not in generate_pages.box(ROOT / "notebooks/01_background.ipynb")


def test_the_card_shows_the_end_of_the_film(tmp_path):
    frames = {"WW": np.array([[1.0, 0.0], [0.25, 0.0]]), "VIMCO": np.array([[1.0, 0.0], [0.25, 0.25]])}
    film = plotting.bar_film(frames, np.array([0.25, 1.0]), "a caption")
    assert social_card.last_frame(film) == {"WW": ([35, 0], [35, 70]), "VIMCO": ([35, 35], [35, 70])}
    for name in ("a.png", "b.png"):
        social_card.draw(film, "A finding.", tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_map_has_every_method_once_and_in_its_place():
    shown = generate_pages.methods_map()
    titles = [row.title for row in METHODS.values() if not row.ablation]
    cells = [cell for line in shown.splitlines()[3:] for cell in line.split(" | ")[1:]]
    assert sorted(title for cell in cells for title in cell.strip(" |:").split("; ") if title) == sorted(
        titles
    )
    for aim, title in (("on dreams", "WS"), ("both of these", "WWS")):
        (line,) = (line for line in shown.splitlines() if aim in line)
        assert [cell.strip() for cell in line.split("|")[2:4]] == [title, ""]
    for column, title in (("relaxed choice", "Concrete"), ("score", "VIMCO"), ("path derivative", "IWAE")):
        header, _, *lines = (line.split("|") for line in shown.splitlines() if line.startswith("|"))
        place = [cell.strip() for cell in header].index(column)
        assert any(title in line[place].strip().split("; ") for line in lines)


def test_the_machines_of_the_records_are_counted():
    said = generate_pages.machines()
    counts = [int(count) for count in re.findall(r"(\d+) records on ", said)]
    assert sum(counts) == sum(1 for _ in records.iterate(ROOT / "book/results"))
    assert said.startswith("- Gaussian mixture: ") and "- attend, infer, repeat: " in said


def test_pages_of_stored_outputs_take_no_parameters(monkeypatch, capsys):
    for others in (["--scale", "quick"], ["--params", "mine.yaml"]):
        monkeypatch.setattr(sys, "argv", ["build_book.py", "--stored", *others])
        with pytest.raises(SystemExit):
            build_book.main()
        assert "takes neither --scale nor --params" in capsys.readouterr().err
