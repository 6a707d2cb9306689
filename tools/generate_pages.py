"""Fill the generated parts of the book's pages: methods, speeds, verdicts and the picture of the results.

Usage: python tools/generate_pages.py FOLDER, where FOLDER holds copies of the pages of `book/` and lies
beside the executed notebooks.  With --picture FILE only the picture is written, from the committed notebook.
"""

import json
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import nbformat

from rwslib.methods import METHODS

ROOT = Path(__file__).resolve().parent.parent


def table(header: list[str], rows: list[list[str]], wide: bool = True) -> str:
    """A markdown table; a wide one takes the margin on wide screens and scrolls on narrow ones."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
    if not wide:
        return "\n".join(lines)
    return "\n".join([":::{div} wide-table full-width", *lines, ":::"])


def text(value: Any) -> str:
    """A value as one table cell: absent ones empty, no bars or line breaks."""
    return "" if value is None else " ".join(str(value).split()).replace("|", "\\|")


def citation(reference: Any, keys: set[str]) -> str:
    """References as citations where they are keys of the bibliography, else as they are."""
    parts = reference if isinstance(reference, list | tuple) else re.split(r",\s*", text(reference))
    return ", ".join(f"{{cite:t}}`{part}`" if part in keys else text(part) for part in parts)


def method_row(name: str, method: Any, keys: set[str]) -> list[str]:
    """One method's cells."""
    return [
        f"`{name}`",
        f"{text(method.title)}, `{method.function.__name__}`",
        text(method.min_particles),
        text(method.latent),
        text(method.ablation or method.control_variate or "none"),
        text(method.cost),
        citation(method.reference, keys),
    ]


def methods_tables() -> str:
    """The methods of the literature, then the deliberate deviations from them."""
    bibliography = (ROOT / "book/references.bib").read_text()
    keys = set(re.findall(r"^@\w+\{([^,\s]+)", bibliography, re.MULTILINE))
    rows = {
        ablation: [
            method_row(name, method, keys)
            for name, method in METHODS.items()
            if bool(method.ablation) == ablation
        ]
        for ablation in (False, True)
    }
    start, end = ["name", "method, function", "least K", "latents"], ["cost", "source"]
    return "\n\n".join(
        [
            table([*start, "control variate", *end], rows[False]),
            "## Ablations",
            "These deviate from a method on purpose, to measure what the deviation does.",
            table([*start, "deviation", *end], rows[True]),
        ]
    )


BENCHMARKS = {  # columns of each section's table, by the names in the file
    "gmm": {
        "method": "method",
        "num_particles": "K",
        "replicate_iterations_per_second": "replicate-iterations per second",
        "aim_per_second": "aim",
        "fraction_of_matmul_limit": "of the matmul limit",
        "fraction_of_memory_limit": "of the memory limit",
    },
    "vae": {
        "method": "method",
        "precision": "precision",
        "num_particles": "K",
        "replicates": "replicates",
        "replicate_iterations_per_second": "replicate-iterations per second",
        "gigaflop_per_iteration": "Gflop each",
        "fraction_of_matmul_limit": "of the matmul limit",
        "aim_fraction": "aim",
    },
    "evaluation": {
        "particles": "particles",
        "images": "images",
        "images_measured": "of them measured",
        "seconds": "seconds",
        "aim_seconds": "aim",
    },
    "air": {
        "method": "method",
        "num_particles": "K",
        "iterations_per_second": "iterations per second",
        "aim_per_second": "aim",
        "gigaflop_per_iteration": "Gflop each",
        "fraction_of_matmul_limit": "of the matmul limit",
    },
    "sweep": {"what": "what", "seconds": "seconds", "aim_seconds": "aim"},
}
LIMITS = {  # units of a billion a second
    "flops_per_second": "Gflop/s in float32",
    "bfloat16_flops_per_second": "in bfloat16",
    "bytes_per_second": "GB/s of memory",
}


def benchmark_table(section: str, path: Path = ROOT / "book/results/benchmark.json") -> str:
    """The last measured speeds of one section, or a sentence that there are none."""
    measured = json.loads(path.read_text()) if path.exists() else {}
    if section not in measured:
        return "This has not been measured yet."
    found, columns = measured[section], BENCHMARKS[section]

    def cell(name: str, value: Any) -> str:
        if "fraction" in name:
            return percent(value)
        if isinstance(value, str):
            return f"`{value}`" if name == "method" else text(value)
        return "" if value is None else f"{value:,.3g}" if isinstance(value, float) else f"{value:,}"

    rows = [[cell(name, row.get(name)) for name in columns] for row in found["rows"]]
    machine = ", ".join(f"{text(key)}: {text(value)}" for key, value in found["hardware"].items())
    limits = "".join(
        f"; {found['limits'][name] / 1e9:,.3g} {unit}"
        for name, unit in LIMITS.items()
        if name in found["limits"] and section != "sweep"
    )
    shown = table(list(columns.values()), rows, wide=False)
    return f"Measured on {text(found['date'])} ({machine}{limits}).\n\n{shown}"


def drill_table() -> str:
    """What the last drills found, or a sentence that there were none."""
    path = ROOT / "book/results/drill.json"
    if not path.exists():
        return "The drills have not been run yet."
    found = json.loads(path.read_text())
    rows = [
        [drill, name, text(value)] for drill in ("kill drill", "fuzz") for name, value in found[drill].items()
    ]
    where = (
        f"{text(found['date'])}, {text(found['hardware']['processor'])}, {found['hardware']['cores']} cores"
    )
    return f"Run on {where}.\n\n{table(['drill', 'what', 'number'], rows)}"


def cells(notebook: Path) -> list[Any]:
    """The code cells of a notebook."""
    return [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]


def write_picture(notebook: Path, target: Path) -> None:
    """Save the notebook's Figure 4 as a file of its own, on white, so that it can be read anywhere."""
    (cell,) = (c for c in cells(notebook) if "fig-figure4" in json.dumps(c.metadata.get("mystnb", {})))
    (svg,) = (output["data"]["image/svg+xml"] for output in cell.outputs if "data" in output)
    target.write_text(
        re.sub(r"(<svg[^>]*>)", r'\1<rect width="100%" height="100%" fill="white"/>', svg, count=1)
    )


def verdicts(notebook: Path) -> str:
    """What the notebook's cell of verdicts printed."""
    (cell,) = (c for c in cells(notebook) if "verdicts" in c.metadata.get("tags", []))
    return "```text\n" + "".join(output["text"] for output in cell.outputs) + "```"


CHAPTERS = {
    "02_gmm": "The Gaussian mixture (section 4.3)",
    "03_vae": "The continuous model (section 4.2)",
    "04_air": "Attend, infer, repeat (section 4.1)",
}


def claim_rows(notebook: Path) -> dict[str, list[str]]:
    """The cells of each row of the notebook's table of claims, by the claim's name."""
    tables = [
        output["data"]["text/markdown"]
        for cell in cells(notebook)
        for output in cell.outputs
        if "| claim |" in output.get("data", {}).get("text/markdown", "")
    ]
    lines = (line for line in tables[0].splitlines() if re.match(r"\| [A-Z]+-\d", line))
    rows = ([part.strip() for part in line.split("|")[1:-1]] for line in lines)
    return {row[0]: row[1:] for row in rows}


def ledger(notebooks: Path) -> str:
    """All claims with their verdicts: how many of each, then a table a chapter."""
    claims = {name: claim_rows(notebooks / f"{name}.ipynb") for name in CHAPTERS}
    outcomes = ["holds", "mixed", "does not hold", "not run"]
    header, summary = ["chapter", *outcomes], []
    for name, title in CHAPTERS.items():
        found = [row[-1].strip("*") for row in claims[name].values()]
        summary.append([f"{{doc}}`{title} </notebooks/{name}>`", *(str(found.count(o)) for o in outcomes)])
    parts = [table(header, summary)]
    for name, title in CHAPTERS.items():
        header = ["claim", "the paper says", "agree", "weakest effect", "strongest effect", "verdict"]
        parts += [f"## {title}", f"Shown in {{doc}}`/notebooks/{name}`, under *Claim by claim*."]
        parts.append(table(header, [[claim, *row] for claim, row in claims[name].items()]))
    return "\n\n".join(parts)


def percent(fraction: float | None) -> str:
    """A fraction as a percentage with two significant digits; unknown ones empty."""
    return "" if fraction is None else f"{100 * fraction:.2g} %"


def main() -> None:
    """Replace the marker of each generated part."""
    if sys.argv[1] == "--picture":
        return write_picture(ROOT / "notebooks/02_gmm.ipynb", Path(sys.argv[2]))
    folder = Path(sys.argv[1])
    notebook = folder.parent / "notebooks/02_gmm.ipynb"
    write_picture(notebook, folder / "_static/figure4.svg")
    parts = [
        ("methods.md", "methods table", methods_tables),
        *(("benchmark.md", f"benchmark {name}", partial(benchmark_table, name)) for name in BENCHMARKS),
        ("rerun.md", "drills", drill_table),
        ("intro.md", "verdicts", lambda: verdicts(notebook)),
        ("claims.md", "ledger", lambda: ledger(notebook.parent)),
    ]
    for page, name, generate in parts:
        path, marker = folder / page, f"<!-- generated: {name} -->"
        source = path.read_text()
        if marker not in source:
            raise SystemExit(f"{path} has no line {marker}")
        path.write_text(source.replace(marker, generate()))


if __name__ == "__main__":
    main()
