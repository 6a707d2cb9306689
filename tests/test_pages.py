"""What the book's pages say about the code is so."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_every_test_that_a_page_names_exists():
    code = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    for page in (ROOT / "book").glob("*.md"):
        for name, parameter in re.findall(r"`(test_\w+)(?:\[(\w+)\])?`", page.read_text()):
            assert f"def {name}(" in code, f"{page.name}: {name}"
            assert not parameter or f"def {parameter}(" in code, f"{page.name}: {parameter}"
