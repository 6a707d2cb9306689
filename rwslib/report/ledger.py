"""The page of claims, from what the chapters' cells of verdicts carry."""

import html
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import yaml

from rwslib.data import DATASETS
from rwslib.experiments import EXPERIMENTS
from rwslib.methods import METHODS
from rwslib.report.claims import CARRIED, QUANTITIES, SUMS, VERDICTS, export, general_claims, listed, verdict
from rwslib.report.claims.effects import in_numbers, number
from rwslib.report.claims.export import and_absent
from rwslib.report.claims.reasons import FAULT
from rwslib.report.markup import table

GROUPS = {  # by the start of a claim's name: the notebook that shows it, and the heading
    "GEN-3": (None, "What the abstract says"),
    **{
        name.upper(): (row.chapter, f"{row.title[0].upper()}{row.title[1:]} (section {row.section})")
        for name, row in EXPERIMENTS.items()
        if row.section
    },
    "GEN": (None, "What holds for every model"),
}
CHAPTERS = [notebook for notebook, _ in GROUPS.values() if notebook]
SAID = {  # by verdict: of one claim, of several, and the colour
    "holds": ("holds", "hold", "success"),
    "holds where decided": ("holds where decided", "hold where decided", "success-line"),
    "split": ("is split", "are split", "warning"),
    "fails": ("fails", "fail", "danger"),
    "open": ("is open", "are open", "secondary"),
    "not run": ("was not run", "were not run", "muted"),
}
STRICT = {  # the same by the stricter rule
    "holds": ("holds", "hold"),
    "mixed": ("is mixed", "are mixed"),
    "does not hold": ("does not hold", "do not hold"),
    "not run": ("was not run", "were not run"),
}
WORDS = {  # below a bar: of one effect, and of several
    "agrees": ("agrees", "agree"),
    "tie": ("tie", "ties"),
    "open": ("open", "open"),
    "contradicts": ("contradicts", "contradict"),
}
Entry = dict[str, Any]  # a claim as `rwslib.report.claims.export` writes it


@cache
def chapter_claims(notebook: Path) -> dict[str, dict[str, Any]]:
    """The claims and records that an executed notebook's cell of verdicts carries.

    Raises:
        SystemExit: it carries none.
    """
    cells = nbformat.read(notebook, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    found = [o.metadata[CARRIED] for o in outputs if CARRIED in o.get("metadata", {})]
    if len(found) != 1:
        raise SystemExit(
            f"{notebook} carries {len(found)} sets of claims in its outputs, and should carry one."
        )
    return json.loads(found[0])


def sum_up(name: str, claims: Mapping[str, Entry]) -> Entry:
    """A claim of the abstract: the effects of all claims that are part of it, judged by the same rule."""
    parts = {part: entry for part, entry in claims.items() if name in entry["part_of"]}
    effects = [
        effect | {"setting": f"{part}: {effect['setting']}"}
        for part, entry in parts.items()
        for effect in entry["effects"]
    ]
    kinds: dict[str, list[str]] = {}
    for part, entry in parts.items():
        for kind in dict.fromkeys(reason["kind"] for reason in entry["reasons"]):
            kinds.setdefault(kind, []).append(part)
    found = [effect["side"] for effect in effects]
    told, absent = in_numbers(Counter(found), WORDS), found.count("not run")
    return {
        "source": "abstract",
        "says": SUMS[name],
        "measured": "the effects of all claims that are part of it",
        "verdict": verdict(found),
        "strict": {"holds": "holds", "fails": "does not hold"}.get(verdict(found), "mixed"),
        "certain": "",
        "finding": f"Of the {len(found) - absent} effects in {len(parts)} claims {listed(told)}"
        f"{and_absent(absent)}"
        if told
        else "Nothing that it speaks of was run.",
        "reasons": [{"kind": kind, "says": f"See {listed(names)}."} for kind, names in kinds.items()],
        "effects": effects,
        "shown": [],
        "part_of": [],
        "parts": list(parts),
        "records": [],
    }


def read_ledger(stage: Path) -> tuple[dict[str, Entry], dict[str, Entry]]:
    """All claims by name, the abstract's first, and the records that they rest on by key."""
    notebooks = [stage / f"notebooks/{name}.ipynb" for name in CHAPTERS]
    found = [*map(chapter_claims, notebooks), json.loads(export(general_claims()))]
    claims = {name: entry for each in found for name, entry in each["claims"].items()}
    records = {key: record for each in found for key, record in each["records"].items()}
    return {name: sum_up(name, claims) for name in SUMS} | claims, records


def group_of(name: str) -> str:
    """The key of ``GROUPS`` that a claim belongs to."""
    return next(start for start in GROUPS if name.startswith(start))


def label(group: str) -> str:
    """The label of a section of the page."""
    return f"claims-{'abstract' if group == 'GEN-3' else 'general' if group == 'GEN' else group.lower()}"


# -- bars, badges, counts ----------------------------------------------------------------------------


def sides(entries: Iterable[Entry]) -> Counter:
    """How many effects of some claims are on each side."""
    return Counter(effect["side"] for entry in entries for effect in entry["effects"])


def bar(counts: Mapping[str, int]) -> str:
    """A stacked bar of effects by side, with its numbers for those who do not see it; nothing without any."""
    shown = {side: counts[side] for side in WORDS if counts.get(side)}
    if not shown:
        return ""
    words = listed(in_numbers(shown, WORDS))
    parts = "".join(f'<i class="{side}" style="flex-grow:{count}"></i>' for side, count in shown.items())
    return f'<span class="claim-bar" role="img" aria-label="Effects: {words}" title="{words}">{parts}</span>'


def legend() -> str:
    """What the colours of the bars mean."""
    what = {
        "agrees": "agrees with the paper",
        "tie": "differs by less than matters",
        "open": "not decided",
        "contradicts": "contradicts the paper",
    }
    items = "".join(
        f'<span><span class="claim-bar key" aria-hidden="true"><i class="{side}" style="flex-grow:1"></i>'
        f"</span> {words}</span>"
        for side, words in what.items()
    )
    return f'<p class="claim-legend">{items}</p>'


def badge(name: str) -> str:
    """A verdict as a coloured word."""
    return f"{{bdg-{SAID[name][2]}}}`{name}`"


def of_paper(claims: Mapping[str, Entry]) -> dict[str, Entry]:
    """The claims without those of the abstract, which sum up others, and without ours."""
    return {name: e for name, e in claims.items() if name not in SUMS and e["source"] != "ours"}


def summary(claims: Mapping[str, Entry]) -> str:
    """One row a section: its bar, and how many of its claims have each verdict; then all of them."""
    groups: dict[str, list[Entry]] = {}
    for name, entry in of_paper(claims).items():
        groups.setdefault(group_of(name), []).append(entry)
    everything = [entry for entries in groups.values() for entry in entries]
    rows = []
    for link, entries in [
        *((f"[{GROUPS[group][1]}](#{label(group)})", entries) for group, entries in groups.items()),
        (f"**all {len(everything)}**", everything),
    ]:
        verdicts = Counter(entry["verdict"] for entry in entries)
        rows.append([link, bar(sides(entries)), *(str(verdicts[name] or "") for name in VERDICTS)])
    shown = table(["claims about", "effects", *map(badge, VERDICTS)], rows, wide=False)
    strict = Counter(entry["strict"] for entry in everything)
    words = listed(in_numbers(strict, STRICT))
    rule = (
        "By a stricter rule a claim holds only if the intervals of all its effects that were run lie above "
    )
    rule += f"zero, does not hold only if all lie below, and is mixed otherwise: {words}."
    return "\n\n".join(part for part in (shown, legend(), held(of_paper(claims)), rule) if part)


def held(claims: Mapping[str, Entry]) -> str:
    """Which claims that hold could not fail, and why, and which have settings that were not run."""
    lines, holding = [], {name: entry for name, entry in claims.items() if entry["verdict"] == "holds"}
    if sure := [f"{name} ({entry['certain']})" for name, entry in holding.items() if entry["certain"]]:
        lines.append(f"Of those that hold, {len(sure)} could not fail: {listed(sure)}.")
    if part := [name for name, entry in holding.items() if sides([entry])["not run"]]:
        lines.append(f"Of those that hold, some settings were not run: {listed(part)}.")
    return "\n".join(lines)


def counted(entries: Collection[Entry]) -> str:
    """Claims by verdict, in words: "12 hold (2 of which could not fail), 4 are split and 1 fails"."""
    verdicts = Counter(entry["verdict"] for entry in entries)
    sure = Counter(entry["verdict"] for entry in entries if entry["certain"])
    return listed(
        f"{verdicts[name]} {words[verdicts[name] > 1]}"
        + (f" ({sure[name]} of which could not fail)" if sure[name] else "")
        for name, words in SAID.items()
        if verdicts[name]
    )


def chapter_bar(notebook: Path) -> str:
    """The head of a chapter: the bar of all its effects, and its claims by verdict."""
    claims = chapter_claims(notebook)["claims"]
    section, entries = label(group_of(next(iter(claims)))), of_paper(claims).values()
    return (
        f'<div class="claim-head">{bar(sides(entries))}</div>\n\n'
        f"Of its {{ref}}`{len(entries)} claims <{section}>` {counted(entries)}."
    )


# -- one claim ---------------------------------------------------------------------------------------


def interval(effect: Entry) -> str:
    """The ends of an effect's interval."""
    if effect["low"] is None:
        return "no interval"
    low, high = effect["low"], effect["high"]
    return "no spread" if low == high else f"{number(low)} to {number(high)}"


def forest_row(effect: Entry, low: float, span: float) -> str:
    """One effect: its setting, its interval on the scale from ``low``, its numbers, its side."""

    def x(value: float | None, missing: float = 0) -> float:
        return round(missing if value is None else 100 * min(max((value - low) / span, 0), 1), 1)

    side, smallest = effect["side"], effect["smallest"]
    start, end = x(-smallest), x(smallest)
    band = f'<rect x="{start}" width="{end - start:.1f}" height="10"/>' if smallest else ""
    line = f'<path d="M{x(effect["low"])} 5H{x(effect["high"], 100)}"/>'
    plot = (
        f'<svg viewBox="0 0 100 10" preserveAspectRatio="none" class="{side}" aria-hidden="true">{band}'
        f'<path class="zero" d="M{x(0)} 0V10"/>{line}'
        f'<path class="value" d="M{x(effect["value"])} 2V8"/></svg>'
    )
    value = f"{number(effect['value'])} {effect['unit']}".strip()
    return (
        f'<tr><th scope="row">{html.escape(effect["setting"])}</th><td>{plot}</td>'
        f"<td>{value} ({interval(effect)})</td><td>{side}</td></tr>"
    )


def forest(effects: Sequence[Entry]) -> str:
    """Effects as rows with their intervals on a common scale; those that were not run by name."""
    run = [effect for effect in effects if effect["side"] != "not run"]
    ends = [effect[end] for effect in run for end in ("low", "high", "value") if effect[end] is not None]
    low, high = min(0, *ends, 0), max(0, *ends, 0)
    pad = 0.04 * (high - low or 1)
    columns = ("setting", "contradicts | agrees", "effect (95 % interval)", "side")
    header = "".join(f'<th scope="col">{name}</th>' for name in columns)
    rows = "".join(forest_row(effect, low - pad, high - low + 2 * pad) for effect in run)
    shown = f'<table class="forest"><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table>'
    absent = [effect["setting"] for effect in effects if effect["side"] == "not run"]
    parts = [shown] * bool(run) + [f"**Not run**: {'; '.join(absent)}."] * bool(absent)
    return "\n\n".join(parts)


def numbers(values: Iterable[int]) -> str:
    """Numbers in words: 2, 5 and 10."""
    return listed(f"{value:,}" for value in sorted(set(values)))


def scale(configs: Sequence[Entry]) -> str:
    """Length, replicates, particles and data of the runs behind claims, from their configurations."""
    if not configs:
        return ""
    row = EXPERIMENTS[configs[0]["experiment"]]
    paper, lengths = row.paper_length, {row.length(config) for config in configs}
    share = "" if not paper or max(lengths) >= paper else f" ({row.source}: {paper:,})"
    dreams = {config.get("dream_iterations", 0) for config in configs} - {0}
    first = f", the first {numbers(dreams)} of them on dreams" if dreams else ""
    replicates = {config["num_runs"] for config in configs}
    dataset = configs[0].get("dataset")
    data = f", {DATASETS[dataset].title}" if dataset else ""
    return (
        f"{numbers(lengths)} {row.unit}{share}{first}{data}; {numbers(replicates)} "
        f"replicate{'s' * (replicates != {1})}; K = {numbers(c['num_particles'] for c in configs)}"
    )


def show_record(key: str, record: Entry, url: str | None) -> str:
    """A record's key, linked to its folder where that has an address."""
    config, shown = record["config"], f"`{key}`"
    if url and record["published"]:
        shown = f"[{key}]({url}/tree/main/book/results/{config['experiment']}/{key})"
    return f"{METHODS[config['method']].title}, K {config['num_particles']}: {shown}"


def show_claim(name: str, entry: Entry, claims: Mapping[str, Entry], records: Entry, url: str | None) -> str:
    """One claim, folded: name, verdict, statement, bar and finding, and behind them all that they rest on."""
    kinds = dict.fromkeys(reason["kind"] for reason in entry["reasons"])
    chips = "".join(f'<span class="claim-chip">{kind}</span>' for kind in kinds)
    sure = f'<span class="claim-chip">could not fail: {entry["certain"]}</span> ' if entry["certain"] else ""
    title = (
        f"**{name}** {badge(entry['verdict'])} {sure}{entry['says']} "
        f'{bar(sides([entry]))}<span class="claim-finding">{html.escape(entry["finding"])}</span> {chips}'
    )
    kind = f"verdict-{entry['verdict'].replace(' ', '-')} about-{group_of(name).lower()}"
    lines = [f"```{{index}} ! single: {name}\n```\n"]  # a main entry: the search's first answer to the name
    lines += [f"::::::{{dropdown}} {title}", f":name: {name.lower()}", f":class-container: claim {kind}", ""]
    if entry["reasons"]:
        holds = entry["verdict"] == "holds"
        lines += [f"**{'What it depends on' if holds else 'Why not everywhere'}**:\n"]
        lines += [f"- *{reason['kind']}*: {reason['says']}" for reason in entry["reasons"]] + [""]
    lines += [f"**In the paper**: {entry['source']}.", "", f"**Measured**: {entry['measured']}.", ""]
    if how := scale([records[key]["config"] for key in entry["records"]]):
        lines += [f"**Scale**: {how}.", ""]
    if entry["shown"]:
        links = [f"{{numref}}`{s}`" if s.startswith("fig-") else f"{{ref}}`{s}`" for s in entry["shown"]]
        lines += [f"**Shown in** {', '.join(links)}.", ""]
    if "parts" in entry:
        rows = [
            [f"[{part}](#{part.lower()})", of["says"], bar(sides([of])), badge(of["verdict"])]
            for part, of in ((part, claims[part]) for part in entry["parts"])
        ]
        lines += [table(["part", "says", "effects", "verdict"], rows, wide=False)]
    elif entry["effects"]:
        lines += [forest(entry["effects"])]
    if entry["records"]:
        shown = "; ".join(show_record(key, records[key], url) for key in entry["records"])
        lines += ["\n<details class='records'><summary>Records</summary>\n", f"{shown}.\n\n</details>"]
    return "\n".join([*lines, "::::::"])


def what_matters() -> str:
    """The smallest difference that matters of every quantity, with the reason."""
    rows = []
    for name, quantity in QUANTITIES.items():
        unit = quantity.unit.removesuffix("s" * (quantity.smallest == 1))
        rows.append([name, f"{number(quantity.smallest, sign=False)} {unit}", quantity.reason])
    return table(["quantity", "smallest difference that matters", "why"], rows, wide=False)


def claims_page(stage: Path) -> str:
    """The generated part of the page; also writes ``claims.json`` beside it."""
    claims, records = read_ledger(stage)
    url = yaml.safe_load((stage / "_config.yml").read_text(encoding="utf-8"))["repository"]["url"] or None
    flat = {
        name: entry | {"records": [{"key": key} | records[key] for key in entry["records"]]}
        for name, entry in claims.items()
    }
    (stage / "book/claims.json").write_text(
        json.dumps(flat, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    parts = [summary(claims), '<div id="claim-filter"></div>']
    for group, (chapter, title) in GROUPS.items():
        own = {name: entry for name, entry in claims.items() if group_of(name) == group}
        parts.append(f"({label(group)})=\n## {title}")
        how = scale([records[key]["config"] for entry in own.values() for key in entry["records"]])
        if chapter:
            parts.append(f"Shown in {{doc}}`/notebooks/{chapter}`." + f"\nScale: {how}." * bool(how))
        parts += [show_claim(name, entry, claims, records, url) for name, entry in own.items()]
    return "\n\n".join(parts)


def chapter_scale(notebook: Path) -> str:
    """How long the runs behind a chapter's claims are, how many, and on which data."""
    found = chapter_claims(notebook)["records"].values()
    return scale([record["config"] for record in found]) or "nothing was run"


def original_code(notebook: Path, name: str = "GMM-3b") -> str:
    """What a fault of the original code explains of one claim, as an item of a list, if it does."""
    entry = chapter_claims(notebook)["claims"][name]
    found = [reason["says"] for reason in entry["reasons"] if reason["kind"] == FAULT]
    return " ".join([f"- {name} says that {entry['says']}.", *found]) if found else ""


def answer(stage: Path) -> str:
    """What came out, in the first page's second sentence."""
    entries = of_paper(read_ledger(stage)[0]).values()
    return f"This book runs it again: of [{len(entries)} claims](claims.md) {counted(entries)}."
