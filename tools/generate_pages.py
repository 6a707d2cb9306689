"""Fill the generated parts of the book's pages: methods, speeds, times, verdicts, the picture of the results.

Usage: python tools/generate_pages.py FOLDER, where FOLDER holds copies of the pages of `book/` and lies
beside the executed notebooks.  With --picture FILE only the picture is written, from the committed notebook.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import social_card

from rwslib import records
from rwslib.experiments import EXPERIMENTS
from rwslib.methods import METHODS
from rwslib.report import atlas
from rwslib.report.claims import listed
from rwslib.report.ledger import (
    CHAPTERS,
    answer,
    chapter_bar,
    chapter_claims,
    chapter_scale,
    claims_page,
    original_code,
    read_ledger,
    summary,
    what_matters,
)
from rwslib.report.markup import minus, table, text

ROOT = Path(__file__).resolve().parent.parent


def methods_table(ablations: bool) -> str:
    """The methods of the literature, or the deliberate deviations from them."""
    rows = [
        [
            f"`{name}`",
            f"{text(method.title)}, `{method.function.__name__}`",
            text(method.min_particles),
            text(method.latent),
            text(method.ablation or method.control_variate or "none"),
            text(method.cost),
            speeds(name),
            f"{{cite:t}}`{method.reference}`",
        ]
        for name, method in METHODS.items()
        if bool(method.ablation) == ablations
    ]
    what = "deviation" if ablations else "control variate"
    return table(["name", "method, function", "least K", "latents", what, "cost", "speed", "source"], rows)


OBJECTIVES = {  # by ``Method.follows``
    "ELBO": "the bound of one particle",
    "bound": "the bound of K particles",
    "KL(p, q)": "closeness to the posterior, on data",
    "dreams": "closeness to the posterior, on dreams",
    "KL(p, q) and dreams": "both of these",
    "own": "an objective of its own",
}


def way(method: Any) -> str:
    """How a method gets at the gradient of phi's objective."""
    if method.latent == "reparameterisable":
        return "path derivative"
    if method.follows in ("KL(p, q)", "dreams", "KL(p, q) and dreams"):
        return "samples as targets"
    if method.control_variate:
        return "score, trained baseline"
    return "relaxed choice" if "between categories" in method.cost else "score"


def methods_map() -> str:
    """What phi follows under each method, by the way to its gradient; ablations left out."""
    ways = ["samples as targets", "score", "score, trained baseline", "relaxed choice", "path derivative"]
    places: dict[tuple[str, str], list[str]] = {}
    for method in METHODS.values():
        if not method.ablation:
            places.setdefault((method.follows, way(method)), []).append(method.title)
    rows = [
        [f"**{words}**", *("; ".join(places.get((name, column), [])) for column in ways)]
        for name, words in OBJECTIVES.items()
    ]
    return table(["φ follows", *ways], rows)


def speeds(name: str) -> str:
    """Measured replicate-iterations per second of one method, by K; empty where it was not measured."""
    path = ROOT / "book/results/benchmark.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["gmm"]["rows"] if path.exists() else []
    return ", ".join(
        f"{row['replicate_iterations_per_second']:,.0f} at K = {row['num_particles']}"
        for row in rows
        if row["method"] == name
    )


BENCHMARKS = ("gmm", "vae", "evaluation", "sbn", "air", "sweep", "vae_gpu", "air_gpu")
COLUMNS = {  # titles of the columns whose name in the file is not their title
    "num_particles": "K",
    "replicate_iterations_per_second": "replicate-iterations per second",
    "iterations_per_second": "iterations per second",
    "gigaflop_per_iteration": "Gflop each",
    "fraction_of_matmul_limit": "of the matmul limit",
    "fraction_of_memory_limit": "of the memory limit",
    "images_measured": "images measured",
    **dict.fromkeys(("aim_per_second", "aim_seconds", "aim_fraction"), "aim"),
}
LIMITS = {  # units of a billion a second
    "flops_per_second": "Gflop/s in float32",
    "bfloat16_flops_per_second": "in bfloat16",
    "bytes_per_second": "GB/s of memory",
}


def number(value: float) -> str:
    """Three digits of a fraction, and all before the point of what is larger."""
    return f"{value:,.3g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:,.0f}"


def benchmark_table(section: str, path: Path = ROOT / "book/results/benchmark.json") -> str:
    """The last measured speeds of one section, or a sentence that there are none."""
    measured = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if section not in measured:
        return f'No measurement is published yet; `make bench ARGS="--only {section}"` makes one.'
    found = measured[section]

    def cell(name: str, value: Any) -> str:
        if value is None:
            return ""
        if isinstance(value, str):
            return f"`{value}`" if value in METHODS else text(value)
        return f"{100 * value:.2g} %" if "fraction" in name else number(value)

    rows = [[cell(name, value) for name, value in row.items()] for row in found["rows"]]
    machine = ", ".join(f"{text(key)}: {text(value)}" for key, value in found["hardware"].items())
    limits = "".join(
        f"; {number(found['limits'][name] / 1e9)} {unit}"
        for name, unit in LIMITS.items()
        if name in found["limits"] and section != "sweep"
    )
    shown = table([COLUMNS.get(name, name) for name in found["rows"][0]], rows, wide=False)
    note = f" {text(found['note'])}" if "note" in found else ""
    return f"Measured on {text(found['date'])} ({machine}{limits}).{note}\n\n{shown}"


def drill_table(file: str, *drills: str) -> str:
    """What the last drills found, or a sentence that there were none."""
    path = ROOT / "book/results" / file
    if not path.exists():
        return "This has not been run yet."
    found = json.loads(path.read_text(encoding="utf-8"))
    rows = [[drill, name, text(value)] for drill in drills for name, value in found[drill].items()]
    hardware, versions = found["hardware"], found.get("versions", {})
    where = [found["date"], hardware["processor"], f"{hardware['cores']} cores"]
    where += [f"{name} {value}" for name, value in versions.items()]
    return f"Run on {', '.join(map(text, where))}.\n\n{table(['drill', 'what', 'number'], rows)}"


def length(config: dict[str, Any]) -> str:
    """How long a run trains."""
    row = EXPERIMENTS[config["experiment"]]
    return f"{row.length(config):,} {row.unit}"


def span(values: list[float]) -> str:
    """The least and the largest of some values, rounded; one number where they agree."""
    return " to ".join(dict.fromkeys(f"{value:.0f}" for value in (min(values), max(values))))


def times_table() -> str:
    """How long the published records took, by experiment, length and replicates; ablations left out."""
    found = [r for r in records.iterate(ROOT / "book/results") if not METHODS[r.config["method"]].ablation]
    order = list(EXPERIMENTS)
    found.sort(key=lambda record: (order.index(record.config["experiment"]), record.config["num_runs"]))
    groups: dict[tuple, list[records.RunRecord]] = {}
    for record in found:
        on_gpu = "on a GPU" if "accelerator" in record.provenance["hardware"] else None
        what = EXPERIMENTS[record.config["experiment"]].title, record.config.get("dataset"), on_gpu
        group = ", ".join(filter(None, what)), length(record.config), str(record.config["num_runs"])
        groups.setdefault(group, []).append(record)
    rows = []
    for group, members in groups.items():
        minutes: dict[str, list[float]] = {}
        for record in members:
            title = METHODS[record.config["method"]].title
            minutes.setdefault(title, []).append(record.provenance["seconds"] / 60)
        of_each = ", ".join(f"{title} {span(taken)}" for title, taken in sorted(minutes.items()))
        hours = f"{sum(map(sum, minutes.values())) / 60:.1f}"
        particles = span([record.config["num_particles"] for record in members])
        rows.append([*group, particles, of_each, str(len(members)), hours])
    hardware = [record.provenance["hardware"] for record in found]
    names = [each.get("accelerator") or each["processor"] for each in hardware]
    machines = ", ".join(f"{text(name)} ({names.count(name)} records)" for name in sorted(set(names)))
    header = ["experiment", "length", "replicates", "K", "minutes per record", "records", "hours in all"]
    return f"Hardware: {machines}.\n\n{table(header, rows)}"


def machines() -> str:
    """On what the published records were made, by experiment."""
    places: dict[str, Counter] = {name: Counter() for name in EXPERIMENTS}
    for record in records.iterate(ROOT / "book/results"):
        hardware = record.provenance["hardware"]
        where = text(hardware.get("accelerator") or hardware["processor"])
        places[record.config["experiment"]][where] += 1
    return "\n".join(
        f"- {EXPERIMENTS[name].title}: "
        + listed(f"{count} records on {where}" for where, count in found.most_common())
        for name, found in places.items()
        if found
    )


def write_picture(notebook: Path, target: Path) -> None:
    """Save the notebook's Figure 4 as a file of its own, on white, so that it can be read anywhere."""
    svg = displayed(notebook, "fig-figure4", "image/svg+xml")
    on_white = re.sub(r"(<svg[^>]*>)", r'\1<rect width="100%" height="100%" fill="white"/>', svg, count=1)
    target.write_text(on_white, encoding="utf-8")


def put(path: Path, name: str, content: str) -> None:
    """Replace the marker of a generated part in a page, or in the first cell of a notebook."""
    marker = f"<!-- generated: {name} -->"
    notebook = nbformat.read(path, as_version=4) if path.suffix == ".ipynb" else None
    source = notebook.cells[0].source if notebook else path.read_text(encoding="utf-8")
    if marker not in source:
        raise SystemExit(f"{path} has no line {marker}")
    if notebook:
        notebook.cells[0].source = source.replace(marker, content)
        nbformat.write(notebook, path)
    else:
        path.write_text(source.replace(marker, content), encoding="utf-8")


def displayed(notebook: Path, name: str, kind: str) -> str:
    """What the one code cell with a tag, or with a figure of this name, displayed, in one of its formats."""
    code = (c for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "code")
    (cell,) = (c for c in code if f'"{name}"' in json.dumps(c.metadata))
    (shown,) = (output["data"][kind] for output in cell.outputs if "data" in output)
    return shown


def finding(notebook: Path, start: int = 0) -> str:
    """What the notebook's cell of findings displayed, as a list; names of claims with what they say."""
    lines = displayed(notebook, "finding", "text/markdown").splitlines()[start:]
    claims = chapter_claims(notebook)["claims"] if notebook.stem in CHAPTERS else {}

    def spelt_out(name: re.Match) -> str:
        return f"{name[0]} ({claims[name[0]]['says']})" if name[0] in claims else name[0]

    words = "\n".join(f"- {line.removeprefix('- ')}" for line in lines)
    return minus(re.sub(r"\b[A-Z]+-\d+[a-z]?\b", spelt_out, words))


def box(notebook: Path) -> str:
    """What stands at the head of a chapter: findings, bar and verdicts of its claims, time to read."""
    bars = [chapter_bar(notebook)] if notebook.stem in CHAPTERS else []
    minutes = f"Reading takes about {reading_minutes(notebook)} minutes."
    return "\n\n".join([finding(notebook), *bars, minutes])


def reading_minutes(notebook: Path) -> int:
    """Minutes to read a chapter's text at 200 words each, solutions left out; in steps of five."""
    prose = "\n".join(
        c.source for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "markdown"
    )
    prose = re.sub(r"\{solution-start\}.*?\{solution-end\}", "", prose, flags=re.DOTALL)
    return max(5, 5 * round(len(prose.split()) / 1000))


def headline(notebook: Path) -> str:
    """The first finding of a chapter, as a sentence."""
    return finding(notebook).splitlines()[0].removeprefix("- ")


def cards(notebooks: Sequence[Path]) -> str:
    """One card a chapter: its subject, bar and verdicts of its claims, findings on model and network."""
    parts = []
    for notebook in notebooks:
        (title,) = (row.title for row in EXPERIMENTS.values() if row.chapter == notebook.stem)
        lines = [line.removeprefix("- ") for line in finding(notebook).splitlines()]
        gaps = [at for at, line in enumerate(lines) if "; at K =" in line] or [len(lines) - 1]
        told = [f"{line.split('; at K =')[0].removesuffix('.')}." for line in lines[gaps[0] :]]
        parts += [
            ":::{div} landing-card",
            f"[**{title[0].upper()}{title[1:]}**](../notebooks/{notebook.name})",
            "",
            chapter_bar(notebook),
            "",
            f"<p class='landing-more'>{' '.join(told)}</p>",
            ":::",
        ]
    return "\n".join(parts)


def main() -> None:
    """Replace the marker of each generated part."""
    if sys.argv[1] == "--picture":
        return write_picture(ROOT / "notebooks/02_gmm.ipynb", Path(sys.argv[2]))
    folder = Path(sys.argv[1])
    notebook, *others = (folder.parent / f"notebooks/{name}.ipynb" for name in CHAPTERS)
    write_picture(notebook, folder / "_static/figure4.svg")
    film = displayed(notebook, "film", "text/html")
    measured = atlas.read(ROOT / "book/results/atlas.json")
    atlas.draw(measured, folder / "_static/atlas.svg")
    social_card.draw(film, headline(notebook), folder / "_static/card.png")
    parts = [
        ("methods.md", "methods map", methods_map()),
        ("methods.md", "methods table", methods_table(ablations=False)),
        ("methods.md", "ablations table", methods_table(ablations=True)),
        ("methods.md", "atlas findings", atlas.findings(measured)),
        ("methods.md", "atlas data", atlas.figure_data(measured)),
        ("methods.md", "atlas error", atlas.largest_error(measured)),
        ("methods.md", "choice distance", atlas.distance(measured, "choice")),
        ("methods.md", "far distance", atlas.distance(measured, "choice", -1)),
        ("methods.md", "choice comparison", atlas.comparison(measured, "choice")),
        ("methods.md", "smooth comparison", atlas.comparison(measured, "smooth")),
        ("methods.md", "ovis signals", atlas.signals(measured)),
        ("methods.md", "take this when", atlas.take_this_when(measured)),
        *(("benchmark.md", f"benchmark {name}", benchmark_table(name)) for name in BENCHMARKS),
        ("rerun.md", "times", times_table()),
        ("rerun.md", "drills", drill_table("drill.json", "kill drill", "fuzz")),
        ("rerun.md", "slurm drill", drill_table("drill-slurm.json", "Slurm drill")),
        ("intro.md", "answer", answer(folder.parent)),
        ("intro.md", "headline", headline(notebook)),
        ("intro.md", "film", film),
        ("intro.md", "cards", cards([notebook, *others])),
        ("intro.md", f"finding {notebook.stem}", finding(notebook, start=1)),  # after the headline
        *(("intro.md", f"finding {path.stem}", finding(path)) for path in others),
        *(("intro.md", f"scale {path.stem}", chapter_scale(path)) for path in (notebook, *others)),
        ("intro.md", "original code", original_code(notebook)),
        ("intro.md", "verdicts", summary(read_ledger(folder.parent)[0])),
        ("reproducibility.md", "machines", machines()),
        ("claims.md", "ledger", claims_page(folder.parent)),
        ("claims.md", "what matters", what_matters()),
    ]
    for page, name, content in parts:
        put(folder / page, name, content)
    for path in sorted((folder.parent / "notebooks").glob("*.ipynb")):
        if "<!-- generated: box -->" in nbformat.read(path, as_version=4).cells[0].source:
            put(path, "box", box(path))


if __name__ == "__main__":
    main()
