"""The layers of CONTRIBUTING.md: imports point downward only, and every module has its place."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LISTED = re.search(r"^```text\n(__main__\n.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.S | re.M)[1]
LAYERS = {name: i for i, line in enumerate(LISTED.splitlines()) for name in line.split(", ")}
FILES = sorted((ROOT / "rwslib").rglob("*.py"))


def place(path):
    """The module that has a place: a file of rwslib, or the folder that it is in."""
    return path.relative_to(ROOT / "rwslib").with_suffix("").parts[0]


def imported(tree):
    """Names below rwslib that a file imports from, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are written in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from ((name.split(".")[1], node.lineno) for name in names if name.startswith("rwslib."))


def test_every_module_has_a_place():
    assert {place(path) for path in FILES} - {"__init__"} == set(LAYERS)


def test_the_picture_of_the_layers_is_that_of_the_list():
    page = (ROOT / "book/architecture.md").read_text()
    places = [
        (int(y), int(x), n) for x, y, n in re.findall(r'<text x="(\d+)" y="(\d+)".*?>(\w+)</text>', page)
    ]
    floors = {}
    for y, _, name in sorted(places):
        floors.setdefault(y, []).append(name)
    assert [", ".join(names) for names in floors.values()] == LISTED.splitlines()


def test_imports_point_downward():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in FILES
        for name, line in imported(ast.parse(path.read_text()))
        if name in LAYERS and name != place(path) and LAYERS[name] <= LAYERS[place(path)]
    ]
    assert not wrong, wrong
