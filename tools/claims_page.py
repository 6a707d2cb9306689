"""The page of claims: a summary of the verdicts, then every claim with its effects, scale and records."""

import json
from pathlib import Path
from typing import Any

import yaml
from claims_reasons import REASONS
from markup import minus, table

from rwslib.claims import VERDICTS, export, general_claims, listed, side, sum_up
from rwslib.data import DATASETS
from rwslib.experiments.vae import epochs_after
from rwslib.methods import METHODS

CHAPTERS = {  # and, for each, its section of the paper
    "02_gmm": "The Gaussian mixture (section 4.3)",
    "03_vae": "The continuous model (section 4.2)",
    "04_air": "Attend, infer, repeat (section 4.1)",
}
GENERAL = "What holds for every model"
# The sum of the paper: more particles help wake-sleep and hurt what climbs the bound.
PARTS_OF_GEN_3 = (
    [f"GMM-{i}" for i in range(1, 5)] + [f"VAE-{i}" for i in range(1, 5)] + [f"AIR-{i}" for i in range(1, 6)]
)
COLOURS = dict(zip(VERDICTS, ("success", "warning", "danger", "muted"), strict=True))
PAPER_LENGTH = {"gmm": (100_000, "iterations"), "vae": (3280, "epochs"), "air": (2_000_000, "iterations")}
Entry = dict[str, Any]  # a claim as `rwslib.claims.export` writes it


def read_claims(stage: Path) -> dict[str, dict[str, Entry]]:
    """The claims of every chapter and the general ones, by the heading of their section."""
    files = {title: stage / f"claims/{name}.json" for name, title in CHAPTERS.items()}
    chapters = {title: json.loads(path.read_text()) for title, path in files.items()}
    verdicts = {name: entry["verdict"] for entries in chapters.values() for name, entry in entries.items()}
    general = json.loads(export(general_claims()))
    parts = {name: verdicts[name] for name in PARTS_OF_GEN_3}
    general["GEN-3"] = {
        "source": "abstract",
        "says": "more particles help wake-sleep and hurt methods that climb the bound with both networks",
        "measured": "nothing of its own: it holds if every part that was run holds, "
        "and does not if none of them does",
        "verdict": sum_up(list(parts.values())),
        "parts": parts,
        "effects": [],
        "shown": [],
        "records": [],
    }
    return chapters | {GENERAL: general}


def label(title: str) -> str:
    """The label of a section of the page."""
    return "claims-" + next((name[3:] for name, heading in CHAPTERS.items() if heading == title), "general")


def badge(verdict: str) -> str:
    """A verdict as a coloured word."""
    return f"{{bdg-{COLOURS[verdict]}}}`{verdict}`"


def summary(chapters: dict[str, dict[str, Entry]]) -> str:
    """How many claims of each verdict, by chapter and in all."""
    found = {title: [entry["verdict"] for entry in entries.values()] for title, entries in chapters.items()}
    everything = [verdict for verdicts in found.values() for verdict in verdicts]
    rows = [
        [f"[{title}](#{label(title)})", *(str(verdicts.count(v) or "") for v in VERDICTS)]
        for title, verdicts in found.items()
    ]
    rows.append([f"**all {len(everything)}**", *(f"**{everything.count(v)}**" for v in VERDICTS)])
    return table(["", *(badge(v) for v in VERDICTS)], rows, wide=False)


def numbers(values: set[int]) -> str:
    """Numbers in words: 2, 5 and 10."""
    return listed(f"{value:,}" for value in sorted(values))


def scale(entries: list[Entry]) -> str:
    """Length, replicates, particles and data of the runs behind claims, from their configurations."""
    configs = [record["config"] for entry in entries for record in entry["records"]]
    if not configs:
        return ""
    experiment = configs[0]["experiment"]
    paper, unit = PAPER_LENGTH[experiment]
    lengths = {c.get("num_iterations") or epochs_after(c["num_stages"]) for c in configs}
    share = "" if max(lengths) >= paper else f" (the paper: {paper:,})"
    replicates = {config["num_runs"] for config in configs}
    dataset = configs[0].get("dataset")
    data = f", {DATASETS[dataset].title}" if dataset else ""
    return (
        f"{numbers(lengths)} {unit}{share}{data}; {numbers(replicates)} "
        f"replicate{'s' * (replicates != {1})}; K = {numbers({c['num_particles'] for c in configs})}"
    )


def show_effect(effect: Entry) -> list[str]:
    """The cells of one effect: its setting, its value with the interval, and whose side that is."""
    value, low, high = effect["value"], effect["low"], effect["high"]
    if low is None:
        return [effect["setting"], minus(f"{value:.3g} (no interval)"), "open"]
    interval = "no spread" if low == high else f"{low:.3g} to {high:.3g}"
    return [effect["setting"], minus(f"{value:.3g} ({interval})"), side((value, low, high))]


def show_record(record: Entry, url: str | None) -> str:
    """A record's key, linked to its folder where that has an address."""
    config, key = record["config"], f"`{record['key']}`"
    if url and record["published"]:
        key = f"[{key}]({url}/tree/main/book/results/{config['experiment']}/{record['key']})"
    return f"{METHODS[config['method']].title}, K {config['num_particles']}: {key}"


def show_claim(name: str, entry: Entry, url: str | None) -> str:
    """One claim, folded: its name, verdict and statement, and behind them all that they rest on."""
    agree = [show_effect(effect)[2] for effect in entry["effects"]].count("agrees")
    counted = f" ({agree}\u00a0of\u00a0{len(entry['effects'])})" if len(entry["effects"]) > 1 else ""
    lines = [
        f":::::{{dropdown}} **{name}** {badge(entry['verdict'])} {entry['says']}{counted}",
        f":name: {name.lower()}",
        ":class-container: claim",
        "",
        f"**In the paper**: {entry['source']}.",
        "",
        f"**Measured**: {entry['measured']}.",
    ]
    if how := scale([entry]):
        lines += ["", f"**Scale**: {how}."]
    if entry["shown"]:
        links = [f"{{numref}}`{s}`" if s.startswith("fig-") else f"{{ref}}`{s}`" for s in entry["shown"]]
        lines += ["", f"**Shown in** {', '.join(links)}."]
    if "parts" in entry:
        parts = [f"[{part}](#{part.lower()}) {badge(v)}" for part, v in entry["parts"].items()]
        lines += ["", f"**Parts**: {', '.join(parts)}."]
    if entry["effects"]:
        effects = [show_effect(effect) for effect in entry["effects"]]
        lines += ["", table(["setting", "effect (95 % interval)", "the paper"], effects, wide=False)]
    if entry["records"]:
        records = "; ".join(show_record(record, url) for record in entry["records"])
        lines += ["", ":::{div} records", f"**Records**: {records}.", ":::"]
    return "\n".join([*lines, ":::::"])


def claims_page(stage: Path) -> str:
    """The generated part of the page; also writes ``claims.json`` beside it."""
    chapters = read_claims(stage)
    url = yaml.safe_load((stage / "_config.yml").read_text())["repository"]["url"] or None
    flat = {name: entry for entries in chapters.values() for name, entry in entries.items()}
    (stage / "book/claims.json").write_text(json.dumps(flat, indent=1, ensure_ascii=False) + "\n")
    parts = [summary(chapters)]
    for title, entries in chapters.items():
        parts.append(f"({label(title)})=\n## {title}")
        chapter = next((name for name, heading in CHAPTERS.items() if heading == title), "01_background")
        how = scale(list(entries.values()))
        parts.append(f"Shown in {{doc}}`/notebooks/{chapter}`." + (f"\nScale: {how}." if how else ""))
        parts += [show_claim(name, entry, url) for name, entry in entries.items()]
        open_ones = {name for name, entry in entries.items() if entry["verdict"] in VERDICTS[1:3]}
        reasons = [text for reason in REASONS.get(chapter, ()) if (text := reason(entries, open_ones))]
        if reasons:
            subject = title.split(" (")[0]
            parts += [f"### Why not all of it: {subject[0].lower()}{subject[1:]}", *reasons]
    return "\n\n".join(parts)
