"""Chapters without what a test does not ask for: sections that train live whatever the parameters are."""

from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
LEFT_OUT = {  # from one heading to another, or to the end
    "02_gmm": (("## Exercises", None),),
    "03_vae": (("### Two models in seconds", "## Claim by claim"), ("## Exercises", None)),
    "04_air": (("## Subtracting what is only noise", "## Other ways"), ("## Exercises", None)),
}
SMALLER = {  # and what is trained all the same
    "02_gmm": {'small = {"num_iterations": 300,': 'small = {"num_iterations": 30,'},
    "03_vae": {},
    "04_air": {
        "batch_size=32,": "batch_size=2,",
        "dream_iterations=200, num_iterations=300)": "dream_iterations=20, num_iterations=30)",
        "for iteration, when in stages.items():": "for iteration, when in ():",
        "pixels[:1000], 50,": "pixels[:1000], 5,",
    },
}


def shortened(name: str) -> nbformat.NotebookNode:
    """The chapter without those sections."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)

    def place(heading: str) -> int:
        (found,) = (i for i, cell in enumerate(notebook.cells) if f"\n{heading}" in f"\n{cell.source}")
        return found

    for begin, end in LEFT_OUT[name]:
        del notebook.cells[place(begin) : place(end) if end else None]
    for large, small in SMALLER[name].items():
        (cell,) = (cell for cell in notebook.cells if large in cell.source)
        cell.source = cell.source.replace(large, small)
    return notebook
