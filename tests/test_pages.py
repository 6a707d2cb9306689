"""What the book's pages say about the code is so."""

import re
from pathlib import Path

import numpy as np

from rwslib.methods import METHODS

ROOT = Path(__file__).resolve().parent.parent


def test_every_test_that_a_page_names_exists():
    code = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    for page in (ROOT / "book").glob("*.md"):
        for name, parameter in re.findall(r"`(test_\w+)(?:\[(\w+)\])?`", page.read_text()):
            assert f"def {name}(" in code, f"{page.name}: {name}"
            assert not parameter or f"def {parameter}(" in code, f"{page.name}: {parameter}"


def test_the_worked_example_of_the_design_page_runs():
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "book/architecture.md").read_text(), re.M | re.S)
    scope = {}
    try:
        for block in blocks:
            exec(block, scope)  # what a reader would paste
    finally:
        METHODS.pop("tempered", None)
    assert scope["curves"]["posterior_l2"].shape[0] == 2
    assert np.isfinite(scope["curves"]["posterior_l2"]).all()
