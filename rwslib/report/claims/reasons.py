"""Why a claim does not simply hold: reasons that are computed from its effects and from other records."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from rwslib.experiments import EXPERIMENTS, configuration, stored
from rwslib.experiments.air import EARLIER_RUNS, WARM_UP
from rwslib.methods import METHODS
from rwslib.records import RunRecord, load, published_dir
from rwslib.report.claims.effects import (
    QUANTITIES,
    Cell,
    Effect,
    Effects,
    Evidence,
    listed,
    number,
    title,
    with_interval,
    without_failures,
)

FEW, SHORT, FLOOR = "too few replicates", "run too short", "nothing left to gain"
FAULT, DETAIL, SMALL = "fault of the original code", "detail not in the paper", "too small to matter"
ABSENT, UNKNOWN, DEPENDS = "not run", "no cause found", "depends on a detail"
MEASURE, MODEL = "matter of the measure", "matter of the model"
KINDS = (FEW, SHORT, FLOOR, FAULT, DETAIL, SMALL, MEASURE, MODEL, DEPENDS, ABSENT, UNKNOWN)
MANY = 1000  # replicates, above which their number says only that they are no way to decide


@dataclass(frozen=True)
class Reason:
    """Why a claim does not hold everywhere: one of ``KINDS``, a sentence with numbers, the effects."""

    kind: str
    says: str
    effects: Sequence[Effect] = ()


@dataclass(frozen=True)
class Other:
    """The same runs with one thing changed."""

    kind: str
    lead: str
    evidence: Evidence


# What the records hold beside the runs that are judged: kind, words, what differs; "methods" replaces some
# methods by others.  The runs of a method that the change does not touch stay beside them.
NO_LOG_K, RELAXED = {"vimco": "vimco_no_log_k"}, {"concrete": "concrete_2018"}
CHANGES: dict[str, tuple[tuple[str, str, Mapping[str, Any]], ...]] = {
    "gmm": (
        (FAULT, "With the baseline of the authors' code, which lacks its log K,", {"methods": NO_LOG_K}),
        (FAULT, "With Concrete relaxed as in the authors' code,", {"methods": RELAXED}),
        (DETAIL, "With the two hidden layers of the authors' code,", {"hidden": (16, 16)}),
        (
            FAULT,
            "With the authors' baseline, relaxation and two layers at once,",
            {"hidden": (16, 16), "methods": NO_LOG_K | RELAXED},
        ),
        (DETAIL, "From uniform mixture weights,", {"init": "near"}),
        (DETAIL, "With OVIS, which climbs the same bound, instead of VIMCO,", {"methods": {"vimco": "ovis"}}),
    ),
    "air": (
        (FAULT, "With VIMCO as in the authors' code,", {"methods": {"vimco": "vimco_air2018"}}),
        (DETAIL, "With VIMCO told by scores alone, as WW is,", {"methods": {"vimco": "vimco_scores"}}),
        (DETAIL, "With centred weights of WW,", {"center_weights": True}),
        (DETAIL, "With a warm-up instead of dreams at the start,", WARM_UP),
        (DETAIL, "From a warm-up, in ten times as many iterations,", EARLIER_RUNS[30_000]),
    ),
}


def touched(method: str, changes: Mapping[str, Any]) -> bool:
    """Whether a change concerns a method: replaces it, sets one of its options, or a field of all runs."""
    options = {name for row in METHODS.values() for name in row.options}
    return any(
        method in change if name == "methods" else name not in options or name in METHODS[method].options
        for name, change in changes.items()
    )


def changed(record: RunRecord, changes: Mapping[str, Any]) -> RunRecord | None:
    """The record that differs in this alone, or in the number of replicates, too; itself if not touched."""
    if "experiment" not in record.config:
        return None
    config = configuration(record.config)
    if not touched(config.method, changes):
        return record
    fields = {name: value for name, value in changes.items() if name != "methods"}
    method = changes.get("methods", {}).get(config.method, config.method)
    wanted = replace(config, method=method, **fields)
    return stored(wanted, record.path.parent.parent, fewer_runs=True) if wanted != config else None


@lru_cache
def lengths(store: Path, experiment: str) -> list[dict[str, Any]]:
    """The lengths of the records of an experiment, as fields of a configuration, longest first."""
    fields = ("num_stages", "num_iterations", "eval_scenes")
    configs = [
        json.loads(path.read_text(encoding="utf-8")) for path in store.glob(f"{experiment}/[!.]*/config.json")
    ]
    found = {tuple((name, c[name]) for name in fields if name in c) for c in configs}
    return sorted(map(dict, found), key=EXPERIMENTS[experiment].length, reverse=True)


def shorter(record: RunRecord) -> RunRecord | None:
    """The longest record that differs in being shorter."""
    if "experiment" not in record.config:
        return None
    stores, experiment = (published_dir(), record.path.parent.parent), record.config["experiment"]
    length = EXPERIMENTS[experiment].length
    for fields in (fields for store in stores for fields in lengths(store, experiment)):
        if length(fields) < length(record.config) and (found := changed(record, fields)):
            return found
    return None


def learned(record: RunRecord) -> RunRecord | None:
    """The record without replicates that never learned to count; itself where all did."""
    counted = "count_accuracy_sample"
    if counted not in record.metrics or (found := without_failures(record)) is None:
        return None
    return found if len(found.metrics[counted]) < len(record.metrics[counted]) else record


def others(evidence: Evidence) -> list[Other]:
    """The same evidence with one thing changed, where records hold it; the shorter runs come first."""
    runs = evidence.runs
    experiments = {r.config["experiment"] for r in runs.values() if "experiment" in r.config}

    def changed_runs(change: Callable[[RunRecord], RunRecord | None]) -> Evidence | None:
        found = {cell: new for cell, record in runs.items() if (new := change(record))}
        same = all(new is runs[cell] for cell, new in found.items())
        return None if same else Evidence(found, evidence.pooled)

    rows = [(SHORT, "", changed_runs(shorter))]
    ablated = any(METHODS[r.config["method"]].ablation for r in runs.values() if "method" in r.config)
    for kind, lead, changes in (row for name in experiments for row in CHANGES.get(name, ())):
        if not (ablated and "methods" in changes):  # a claim on a fault itself is not judged with it
            rows.append((kind, lead, changed_runs(partial(changed, changes=changes))))
    few = "Without the replicates that never learned to count,"
    rows.append((FEW, few, changed_runs(learned)))
    rows.append((MEASURE, "By log KL(q, p), p the learned model's own posterior,", own_posterior(evidence)))
    rows += [
        (MODEL, lead, found) for lead, found in (alone(evidence) if "vae" in experiments else {}).items()
    ]
    return [Other(kind, lead, found) for kind, lead, found in rows if found]


def alone(evidence: Evidence) -> dict[str, Evidence]:
    """By kept model, in words: networks of the same methods that learned alone on it, compared by the ELBO.

    On one model the ELBO is the divergence but for a constant.  One replicate each shows no spread: they
    borrow that of the runs that learned both.
    """
    quantities = {"divergence on images": ("kl_q_p", -1), "ELBO of images": ("elbo", 1)}
    found: dict[str, dict[Cell, RunRecord]] = {}
    for path in sorted(published_dir().glob("vae/[!.]*/config.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        cell = (config["method"], config["num_particles"])
        if cell in evidence.runs and (model := config.get("decoder")):
            found.setdefault(model, {})[cell] = load(path.parent)
    rows = {}
    for model, runs in found.items():
        kept = json.loads((published_dir() / "vae" / model / "config.json").read_text(encoding="utf-8"))
        lead = f"With networks alone on {title(kept['method'])}'s model of K = {kept['num_particles']},"
        given: dict[str, dict[Cell, np.ndarray]] = {name: {} for name in QUANTITIES}
        for quantity, (name, sign) in quantities.items():
            both = {("both", *cell): record.metrics[name] for cell, record in evidence.runs.items()}
            given[quantity] = both | {cell: sign * record.metrics["elbo"] for cell, record in runs.items()}
        rows[lead] = Evidence(runs, evidence.pooled, given)
    return rows


def own_posterior(evidence: Evidence) -> Evidence | None:
    """The same runs, their networks compared with their own models: the error of q holds the model's, too."""
    logs = {
        cell: np.log(record.metrics["kl_q_p_final"])
        for cell, record in evidence.runs.items()
        if "kl_q_p_final" in record.metrics
    }
    given = evidence.given | {"error of q": logs}
    return Evidence(evidence.runs, evidence.pooled, given) if logs else None


def needed(effect: Effect) -> float:
    """Replicates per cell that would decide an open effect, if its value and its spread stay as they are.

    An interval shrinks like one over the square root of their number, until it leaves zero or lies within
    what matters.  Infinite where no spread was seen.
    """
    value, smallest = abs(effect.value), effect.smallest
    reach = effect.value - effect.low if effect.value > 0 else effect.high - effect.value
    widest = max(effect.value - effect.low, effect.high - effect.value)
    ways = [reach / value if value else math.inf]
    if value < smallest:
        ways.append(widest / (smallest - value))
    return math.ceil(effect.replicates * min(ways) ** 2) if math.isfinite(min(ways)) else math.inf


def some(items: Sequence[str], most: int = 3) -> str:
    """The first few of some phrases, and how many more there are."""
    left = len(items) - most
    return "; ".join(items[:most]) + (f"; and {left} more" if left > 0 else "")


def few_replicates(effects: Iterable[Effect]) -> Iterator[Reason]:
    """How many replicates would decide what is open."""
    found = [effect for effect in effects if effect.side == "open"]
    if alone := [effect for effect in found if math.isinf(effect.low)]:
        says = "Without two replicates of any setting there is no spread to draw from."
        yield Reason(FEW, says, alone)
    if spread := sorted((effect for effect in found if math.isfinite(effect.low)), key=needed):
        phrases = [
            f"{effect.setting}: {'more than ' * (needed(effect) > MANY)}{min(needed(effect), MANY)} "
            f"instead of {effect.replicates:.0f}"
            for effect in spread
        ]
        says = f"So many replicates would decide, if value and spread stayed as they are: {some(phrases)}."
        yield Reason(FEW, says, spread)


def too_small(effects: Iterable[Effect]) -> Iterator[Reason]:
    """Errors that are at the floor, and other ties."""
    limits = {name: QUANTITIES[name].smallest for name in ("error of p", "error of q")}
    floor = [e for e in effects if e.quantity in limits and max(e.levels) < limits[e.quantity]]
    if floor:
        phrases = [f"{e.setting}, {listed(number(level, sign=False) for level in e.levels)}" for e in floor]
        limit = number(limits[floor[0].quantity], sign=False)
        says = f"Both errors are below {limit}, where nothing is left to gain: {some(phrases)}."
        yield Reason(FLOOR, says, floor)
    if small := [e for e in effects if e.side == "tie" and e not in floor]:
        limit = number(small[0].smallest, sign=False)
        phrases = [f"{e.setting}, {number(e.value)}" for e in small]
        says = f"The whole interval lies within {limit}, too little to matter: {some(phrases)}."
        yield Reason(SMALL, says, small)


def length_of(evidence: Evidence) -> int | None:
    """How long the runs are; None where they are no runs of an experiment."""
    config = next((record.config for record in evidence.runs.values()), {})
    return EXPERIMENTS[config["experiment"]].length(config) if "experiment" in config else None


def share_of_the_paper(evidence: Evidence) -> str | None:
    """What share of the paper's length was run; None where that is all or not known."""
    if (now := length_of(evidence)) is None:
        return None
    row = EXPERIMENTS[next(iter(evidence.runs.values())).config["experiment"]]
    paper = row.paper_length
    return None if paper is None or now >= paper else f"{now:,} of the {paper:,} {row.unit} of {row.source}"


def moved(effects: Iterable[Effect], before: Effects, evidence: Evidence, row: Other) -> Iterator[Reason]:
    """What lengthening the runs has changed so far, where it brought them closer to the paper."""
    closer = [
        effect
        for effect in effects
        if effect.side in ("open", "contradicts")
        and effect.setting in before
        and effect.value - before[effect.setting].value > effect.smallest
    ]
    if closer and (share := share_of_the_paper(evidence)):
        now, short = length_of(evidence), length_of(row.evidence)
        phrases = [f"{e.setting}, {number(before[e.setting].value)} to {number(e.value)}" for e in closer]
        change = f"From {short:,} to {now:,} it moved towards the paper: {some(phrases)}."
        says = f"The runs have {share}. {change}"
        yield Reason(SHORT, says, closer)


def turned(effects: Sequence[Effect], new: Effects, side: str, kind: str, says: str) -> Iterator[Reason]:
    """Which effects are on a side where one thing is changed."""
    if found := [e for e in effects if e.setting in new and new[e.setting].side == side]:
        phrases = [
            f"{e.setting}, {with_interval(new[e.setting])} instead of {number(e.value)}" for e in found
        ]
        yield Reason(kind, f"{says}: {some(phrases)}.", found)


def unexplained(effects: Sequence[Effect], before: Effects, evidence: Evidence, row: Other | None) -> Reason:
    """What contradicts the paper though nothing that is recorded changes it."""
    share, short = share_of_the_paper(evidence), length_of(row.evidence) if row else None
    phrases = [
        f"{e.setting}, {number(e.value)}"
        + (f" (with {short:,}: {number(before[e.setting].value)})" if share and e.setting in before else "")
        for e in effects
    ]
    though = f", though the runs have {share}" if share else ""
    return Reason(UNKNOWN, f"No record explains it{though}: {some(phrases)}.", effects)


def reasons(
    rule: Callable[[Evidence], Sequence[Effect]], effects: Effects, evidence: Evidence, rows: Sequence[Other]
) -> list[Reason]:
    """Why some of a claim's effects do not agree with the paper, and what overturns those that do.

    Args:
        rule: computes the claim's effects.
        rows: the evidence with one thing changed, see ``others``.
    """
    run = [effect for effect in effects.values() if effect.side != "not run"]
    undecided = [effect for effect in run if effect.side != "agrees"]
    agreeing = [effect for effect in run if effect.side == "agrees"]
    if not run:
        cells = dict.fromkeys(cell for e in effects.values() for cell in e.cells if cell not in evidence.runs)
        names = [
            f"{title(m)}, K = {K}" for m, K in (c for c in cells if isinstance(c, tuple)) if m in METHODS
        ]
        at = f"There is no record of {some(names, 4)} at these settings."
        says = at if names else "There is no run of it."
        return [Reason(ABSENT, says, list(effects.values()))]
    found, short, before = [*few_replicates(undecided), *too_small(undecided)], None, {}
    for row in rows:
        new = {effect.setting: effect for effect in rule(row.evidence) if effect.side != "not run"}
        if row.kind == SHORT:
            short, before = row, new
            found += moved(undecided, new, evidence, row)
        else:
            other = row.kind if row.kind in (MEASURE, MODEL) else DEPENDS
            moved_off = [
                effect
                for effect in undecided
                if effect.side == "contradicts"
                and effect.setting in new
                and new[effect.setting].value > effect.high  # a wider interval alone explains nothing
            ]
            found += turned(undecided, new, "agrees", row.kind, f"{row.lead} it is as the paper says")
            found += turned(moved_off, new, "open", row.kind, f"{row.lead} it is open")
            found += turned(agreeing, new, "contradicts", other, f"{row.lead} it is the other way round")
    covered = {effect.setting for reason in found for effect in reason.effects}
    if left := [e for e in undecided if e.side == "contradicts" and e.setting not in covered]:
        found.append(unexplained(left, before, evidence, short))
    return sorted(found, key=lambda reason: KINDS.index(reason.kind))
