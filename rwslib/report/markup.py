"""What notebooks and generated pages show: the source of functions, and tables."""

import inspect
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from IPython.display import Markdown, display


def show(*functions: Callable) -> None:
    """Display the source of functions without their docstrings."""
    for function in functions:
        source = textwrap.dedent(inspect.getsource(function))
        source = re.sub(r'\n    r?""".*?"""', "", source, count=1, flags=re.DOTALL)
        display(Markdown(f"```python\n{source}```"))


def show_table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> None:
    """Display rows as a table; numbers as they are printed."""
    lines = [header, ["---"] * len(header), *rows]
    display(Markdown("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)))


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
