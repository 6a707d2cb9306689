"""Small pieces of markdown that the generated pages share."""

import re
from collections.abc import Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[str]], wide: bool = True) -> str:
    """A markdown table; a wide one takes the margin of wide screens, the others shrink on narrow ones."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
    return "\n".join([f":::{{div}} {'wide-table full-width' if wide else 'compact-table'}", *lines, ":::"])


def text(value: Any) -> str:
    """A value as one table cell: absent ones empty, no bars or line breaks."""
    return "" if value is None else " ".join(str(value).split()).replace("|", "\\|")


def minus(text: str) -> str:
    """Text whose numbers have a minus sign instead of a hyphen."""
    return re.sub(r"(?<![\w\])}-])-(?=\d)", "−", text)
