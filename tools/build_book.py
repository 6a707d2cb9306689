"""Build the book: execute copies of its notebooks, then turn them and the pages into a web site.

Everything happens in `_build/`: the committed notebooks and the published run records are only read.
"""

import argparse
import html
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from itertools import chain
from pathlib import Path
from typing import Any

import nbformat
import yaml
from glossary_links import glossary_terms, link_terms
from lighten import lighten
from pybtex.database import BibliographyData, Entry, Person, parse_file

from rwslib import files
from rwslib.commands import rerun
from rwslib.experiments.common import known_name, require

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
STAGE = BUILD / "stage"
SITE = BUILD / "html"
TERMS = glossary_terms(ROOT / "book/glossary.md")
Parameters = dict[str, Any]


def toc_notebooks() -> list[str]:
    """Names of the notebooks in the table of contents, in its order."""
    toc = (ROOT / "book/_toc.yml").read_text(encoding="utf-8")
    names = re.findall(r"^\s*-?\s*file:\s*notebooks/(\w+)", toc, re.MULTILINE)
    for name in names:
        if not (ROOT / f"notebooks/{name}.ipynb").exists():
            raise SystemExit(f"notebooks/{name}.ipynb, which book/_toc.yml names, does not exist.")
    return names


def reader_parameters(given: Parameters, names: list[str]) -> dict[str, Parameters]:
    """Sort a reader's parameters by notebook.

    A name at the top level goes to every notebook that knows it; below a notebook's name, to that one only.
    """
    known = {name: rerun.parameters(source(name)) for name in names}
    for key in given:
        known_name(key, dict.fromkeys(chain(*known.values(), names)), "parameter")
    chosen = {name: {key: value for key, value in given.items() if key in known[name]} for name in names}
    for name in given.keys() & known.keys():
        require(isinstance(given[name], dict), name, "a mapping of names to values", given[name])
        chosen[name] |= given[name]
    return chosen


def choose_parameters(names: list[str], scale: str, params: Path | None) -> dict[str, Parameters]:
    """The parameters of every notebook: those of the scale, then the reader's own; none is a default.

    Raises:
        SystemExit: a parameter is refused, as ``python -m rwslib run`` would.
    """
    where = "parameters"
    try:
        chosen = {}
        for name in names:  # a notebook without parameters has no scales
            chosen[name] = rerun.choose(source(name), scale=scale if rerun.parameters(source(name)) else None)
        if params:
            where = str(params)
            own = reader_parameters(rerun.read_mapping(params), names)
            for name in names:
                where = f"{params}, for {name}"
                chosen[name] = rerun.check(source(name), chosen[name] | own[name])
    except (ValueError, OSError) as error:
        raise SystemExit(f"{where}: {error}") from None
    # without a parameter papermill adds no cell of them
    return {
        name: {key: v for key, v in values.items() if v != rerun.parameters(source(name))[key].default}
        for name, values in chosen.items()
    }


def source(name: str) -> Path:
    """The notebook of this name, as committed."""
    return ROOT / f"notebooks/{name}.ipynb"


def stage_sources() -> None:
    """Copy what the site is made of to a fresh staging folder."""
    shutil.rmtree(STAGE, ignore_errors=True)
    STAGE.mkdir(parents=True)
    shutil.copytree(ROOT / "book", STAGE / "book", ignore=shutil.ignore_patterns("results"))
    shutil.copytree(ROOT / "notebooks", STAGE / "notebooks", ignore=shutil.ignore_patterns(".*"))
    for page in (STAGE / "book").glob("*.md"):
        if page.name != "glossary.md":
            page.write_text(link_terms([page.read_text(encoding="utf-8")], TERMS)[0], encoding="utf-8")
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    config["sphinx"]["local_extensions"] = {"reference": str(ROOT / "tools")}
    if url := repository_url():
        config["repository"]["url"] = url
        buttons = ("use_repository_button", "use_issues_button", "use_edit_page_button")
        config["html"] |= dict.fromkeys(buttons, True)
        config["launch_buttons"] |= launch_buttons(url)
        if url.startswith("https://github.com/"):  # whose pages have an address of their own
            owner, name = url.removeprefix("https://github.com/").split("/")
            card = f"https://{owner.lower()}.github.io/{name}/_static/card.png"
            config["sphinx"]["config"]["myst_html_meta"]["property=og:image"] = card
    config["html"]["extra_footer"] = cite_box(url, config["copyright"])
    (STAGE / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def repository_url() -> str | None:
    """Where the sources can be read: RWSLIB_REPOSITORY, else the git remote if it is on GitHub."""
    if given := os.environ.get("RWSLIB_REPOSITORY"):
        return given
    command = ["git", "-C", str(ROOT), "remote", "get-url", "origin"]
    try:
        remote = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # there is no git
        return None
    pattern = r"(?:https://(?:[^@/]+@)?|(?:ssh://)?git@)github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?"
    match = re.fullmatch(pattern, remote)
    return f"https://github.com/{match[1]}" if match else None


def launch_buttons(url: str) -> dict[str, str]:
    """Where the notebooks can be run without installing anything; Colab only if they fetch the library."""
    if not url.startswith("https://github.com/"):
        return {}
    buttons = {"notebook_interface": "jupyterlab", "binderhub_url": "https://mybinder.org"}
    for name in toc_notebooks():
        cells = nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4).cells
        if colab_source(url) not in [cell.source for cell in cells]:
            print(f"No Colab button: it needs the cell of tools/colab_cell.py {url}.")
            return buttons
    return buttons | {"colab_url": "https://colab.research.google.com"}


def colab_source(url: str) -> str:
    """The cell with which a notebook fetches the library and its records, on Colab."""
    return f"""import importlib.util
import sys

if importlib.util.find_spec("rwslib") is None:  # on Colab, which has all else that the notebook needs
    !test -d rwslib-book || git clone --quiet --depth 1 {url} rwslib-book
    sys.path.insert(0, "rwslib-book")"""


def cite_box(url: str | None, year: str) -> str:
    """The end of every page: how to cite the book, by CITATION.cff, and the paper, by the bibliography."""
    work = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    book = Entry("software", {"title": f"{{{work['title']}}}", "year": year, "version": work["version"]})
    if url:
        book.fields["url"] = url
    for author in work["authors"]:
        name = f"{{{author['name']}}}" if "name" in author else None
        book.add_person(Person(name or f"{author['family-names']}, {author['given-names']}"), "author")
    paper = parse_file(ROOT / "book/references.bib").entries["le2019revisiting"]
    paper.fields.pop("note", None)
    entries = BibliographyData({"rwslib": book, "le2019revisiting": paper}).to_string("bibtex")
    return (
        "<details class='cite'><summary>Cite this book</summary>"
        f"<div class='highlight'><pre tabindex='0'>{html.escape(entries, quote=False)}</pre></div></details>"
    )


def execute(name: str, parameters: Parameters) -> str | None:
    """Execute one notebook into the staging folder; return what went wrong, if anything did."""
    target = STAGE / f"notebooks/{name}.ipynb"
    try:
        rerun.run_cells(source(name), target, parameters, STAGE / "notebooks", progress_bar=False)
    except Exception as error:
        kept = f" (the cells up to there are in {target.relative_to(ROOT)})"
        return f"{name} stopped with {rerun.in_a_line(error)}{kept}"
    polish(name)
    return None


def polish(name: str) -> None:
    """Link the first uses of terms in a staged notebook, and leave out times and paths of this machine."""
    target = STAGE / f"notebooks/{name}.ipynb"
    notebook = nbformat.read(target, as_version=4)
    prose = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    for cell, linked in zip(prose, link_terms([cell.source for cell in prose], TERMS), strict=True):
        cell.source = linked
    for part in (notebook, *notebook.cells):
        part.metadata.pop("papermill", None)
    nbformat.write(notebook, target)


def execute_all(names: list[str], parameters: dict[str, Parameters]) -> None:
    """Execute all notebooks, two at a time; stop where one fails."""
    # Threads, because kernels that different processes start together can pick the same port; the working
    # directory is theirs together.  The last chapters take longest, so they come first.
    with chdir(STAGE / "notebooks"), ThreadPoolExecutor(max_workers=2) as pool:
        found = pool.map(execute, names[::-1], [parameters[name] for name in names[::-1]])
        try:
            failures = [failure for failure in found if failure]
        except KeyboardInterrupt:  # threads cannot be stopped; kernels end with their parent
            os._exit(130)
    if failures:
        raise SystemExit("\n".join(failures))


def make_pages(builder: str) -> None:
    """Turn what is staged into pages, with any warning an error."""
    command = ["build", str(STAGE), "--path-output", str(ROOT), "--toc", str(STAGE / "book/_toc.yml")]
    options = ["--builder", builder, "-W", "-n", "--keep-going", "--all", "-q"]
    built = subprocess.run([Path(sys.executable).with_name("jupyter-book"), *command, *options], check=False)
    if built.returncode:
        raise SystemExit("The pages could not be built without warnings: see above.")


def main() -> None:
    """Parse the command line, execute the notebooks, build the site."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=("paper", "quick"), default="paper", help="default: paper")
    parser.add_argument(
        "--params", type=files.expanded, metavar="FILE", help="YAML file of notebook parameters"
    )
    parser.add_argument(
        "--stored", action="store_true", help="execute nothing: show the outputs that the notebooks hold"
    )
    arguments = parser.parse_args()
    if arguments.stored and (arguments.scale != "paper" or arguments.params):
        parser.error("--stored shows what the notebooks hold, so it takes neither --scale nor --params")
    start = time.monotonic()

    names = toc_notebooks()
    parameters = choose_parameters(names, arguments.scale, arguments.params)
    stage_sources()
    if arguments.scale == "quick":  # everything is trained: no record may be found
        for variable in ("RWSLIB_RESULTS", "RWSLIB_PUBLISHED"):
            folder = BUILD / "quick-results" / variable.removeprefix("RWSLIB_").lower()
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            os.environ[variable] = str(folder)
    os.environ.setdefault("RWSLIB_RESULTS", str(ROOT / "results"))
    files.settle_environment()  # kernels work in another folder

    if arguments.stored:
        for name in names:
            polish(name)
    else:
        execute_all(names, parameters)
    subprocess.run([sys.executable, ROOT / "tools/generate_pages.py", STAGE / "book"], check=True)
    shutil.rmtree(SITE, ignore_errors=True)
    make_pages("html")
    lighten(SITE)
    seconds = time.monotonic() - start
    print(f"The book is in {SITE / 'index.html'} ({arguments.scale} scale, {seconds:.0f} s).")


if __name__ == "__main__":
    main()
