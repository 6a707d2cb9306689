"""Give the notebooks the cell that fetches the library on Colab, where nothing but the notebook is.

Usage: python tools/colab_cell.py [https://github.com/OWNER/NAME].  Without an address it is that of the git
remote.  The cell comes after the parameters and does nothing where rwslib can be imported.  Colab's button
appears in a book whose notebooks all have it for the book's own address.
"""

import sys
from pathlib import Path

import nbformat
from build_book import ROOT, colab_source, repository_url


def put(path: Path, source: str) -> None:
    """Write the cell into one notebook, in place of an older one, and number the others anew."""
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if "colab" not in cell.metadata.get("tags", [])]
    after = next(i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])) + 1
    metadata = {"tags": ["colab", "remove-cell"]}
    cells.insert(after, nbformat.v4.new_code_cell(source, id="colab", metadata=metadata))
    for count, cell in enumerate((c for c in cells if c.cell_type == "code" and c.source.strip()), start=1):
        cell.execution_count = count
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
    notebook.cells = cells
    nbformat.write(notebook, path)


def main() -> None:
    """Write the cell into every notebook."""
    url = sys.argv[1] if len(sys.argv) > 1 else repository_url()
    if not url:
        raise SystemExit("There is no git remote on GitHub: name the repository's address.")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        put(path, colab_source(url))


if __name__ == "__main__":
    main()
