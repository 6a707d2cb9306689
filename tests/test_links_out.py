"""The links out of the book: launch buttons, the cell that Colab needs, and the citation."""

import html
import re
from pathlib import Path
from shutil import copytree

import build_book
import colab_cell
import nbformat
import papermill
import pytest
from pybtex.database import parse_string

ROOT = Path(__file__).resolve().parent.parent


URL = "https://github.com/someone/book"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A copy of the notebooks without the cell, as build_book's own."""
    copytree(ROOT / "notebooks", tmp_path / "notebooks")
    copytree(ROOT / "book", tmp_path / "book", ignore=lambda *_: ["results", "api", "_static"])
    for path in tmp_path.glob("notebooks/*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        notebook.cells = [cell for cell in notebook.cells if "colab" not in cell.metadata.get("tags", [])]
        nbformat.write(notebook, path)
    monkeypatch.setattr(build_book, "ROOT", tmp_path)
    return tmp_path


def test_colab_has_a_button_only_if_every_notebook_has_the_cell_for_this_address(checkout):
    paths = sorted(checkout.glob("notebooks/*.ipynb"))
    for path in paths:
        assert "colab_url" not in build_book.launch_buttons(URL)
        colab_cell.put(path, build_book.colab_source(URL))
    assert build_book.launch_buttons(URL).keys() == {"notebook_interface", "binderhub_url", "colab_url"}
    assert "colab_url" not in build_book.launch_buttons(URL + "-moved")
    assert build_book.launch_buttons("https://elsewhere.org/book") == {}


def test_the_cell_comes_after_the_parameters_and_once(checkout):
    for path in sorted(checkout.glob("notebooks/*.ipynb")):
        parameters = papermill.inspect_notebook(path)
        for url in (URL, URL + "-moved"):
            colab_cell.put(path, build_book.colab_source(url))
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
        assert "parameters" in code[0].metadata.tags
        assert "remove-cell" in code[1].metadata.tags
        assert URL + "-moved" in code[1].source
        assert sum("colab" in cell.metadata.get("tags", []) for cell in code) == 1
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
        assert papermill.inspect_notebook(path) == parameters


@pytest.mark.parametrize("url", [None, URL])
def test_the_citation_is_bibtex_of_the_book_and_the_paper(url):
    (text,) = re.findall(r"<pre.*?>(.*)</pre>", build_book.cite_box(url, "2026"), re.DOTALL)
    entries = parse_string(html.unescape(text), "bibtex").entries
    assert list(entries) == ["rwslib", "le2019revisiting"]
    assert entries["rwslib"].fields.get("url") == url
    assert entries["rwslib"].persons["author"]


def test_without_git_the_book_has_no_buttons_of_a_repository(monkeypatch, tmp_path):
    monkeypatch.delenv("RWSLIB_REPOSITORY", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))  # no program at all
    assert build_book.repository_url() is None
