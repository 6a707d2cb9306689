"""Sphinx extension for the book's API reference; tools/build_book.py names it to Jupyter Book."""

from typing import Any

from sphinx.application import Sphinx


def skip_repetitions(app: Sphinx, kind: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out second names of a method (`forward = log_joint`) and the fields of named tuples.

    The fields are documented with their class.
    """
    repeated = getattr(member, "__name__", name) != name or type(member).__name__ == "_tuplegetter"
    return True if repeated else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to the build."""
    app.connect("autodoc-skip-member", skip_repetitions)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
