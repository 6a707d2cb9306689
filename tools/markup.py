"""Small pieces of markdown that the generated pages share."""

from collections.abc import Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[str]], wide: bool = True) -> str:
    """A markdown table; a wide one takes the margin on wide screens and scrolls on narrow ones."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
    return "\n".join([":::{div} wide-table full-width", *lines, ":::"] if wide else lines)


def text(value: Any) -> str:
    """A value as one table cell: absent ones empty, no bars or line breaks."""
    return "" if value is None else " ".join(str(value).split()).replace("|", "\\|")
