"""What notebooks show: the source of functions, and tables."""

import inspect
import re
import textwrap
from collections.abc import Callable, Sequence

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
