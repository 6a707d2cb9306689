"""Claims in words, as a table, and as JSON for machines and for the page of claims."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rwslib.records import published_dir
from rwslib.report.claims.effects import QUANTITIES, Effect, Effects, all_of, number, with_interval
from rwslib.report.claims.rules import VERDICTS, Claim

CARRIED = "claims"  # where the metadata of the output of a chapter's cell of verdicts have the JSON
FOUND = {  # sides in the order in which a finding names them; what one and several effects do
    "agrees": ("agrees", "agree"),
    "contradicts": ("contradicts", "contradict"),
    "tie": ("is a tie", "are ties"),
    "open": ("is open", "are open"),
}


def extremes(effects: Sequence[Effect]) -> str:
    """The least favourable and the most favourable of some effects, with their settings."""
    ordered = sorted(effects, key=lambda effect: effect.value)
    ends = dict.fromkeys((ordered[0], ordered[-1]))
    return " to ".join(f"{number(effect.value)} ({effect.setting})" for effect in ends)


def and_absent(number: int) -> str:
    """The end of a sentence about effects of which so many more were not run."""
    return f"; {number} more {'were' if number > 1 else 'was'} not run." if number else "."


def finding(effects: Effects) -> str:
    """What was found, in one sentence."""
    run = [effect for effect in effects.values() if effect.side != "not run"]
    tail = and_absent(len(effects) - len(run))
    if not run:
        return "Nothing that it speaks of was run."
    if len(run) == 1:
        (only,) = run
        return f"{only.setting}: {with_interval(only)}, which {FOUND[only.side][0]}{tail}"
    parts = []
    for side, words in FOUND.items():
        if found := [effect for effect in run if effect.side == side]:
            parts.append(f"{len(found)} {words[len(found) > 1]}, {extremes(found)}")
    if len(parts) > 1:
        return f"Of {len(run)} effects {'; '.join(parts)}{tail}"
    return f"{all_of(len(run)).capitalize()}{parts[0].removeprefix(str(len(run)))}{tail}"


def claims_table(claims: Mapping[str, Claim]) -> str:
    """A markdown table: claim, what the paper says, what was found, the verdict."""
    lines = ["| claim | the paper says | found | verdict |", "|---" * 4 + "|"]
    for name, claim in claims.items():
        sure = f" (could not fail: {claim.certain})" if claim.certain else ""
        cells = [name, claim.rule.says, finding(claim.effects), f"**{claim.verdict}**{sure}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdicts_table(columns: Mapping[str, Mapping[str, Claim]]) -> str:
    """A markdown table of the verdicts on the same claims by several sets of runs, one column each."""
    first = next(iter(columns.values()))
    rows = [["claim", *columns], *([name, *(c[name].verdict for c in columns.values())] for name in first)]
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def summary(claims: Mapping[str, Claim]) -> str:
    """How many claims there are of each verdict, and which, one verdict a line."""
    lines = []
    for outcome in VERDICTS:
        names = [name for name, claim in claims.items() if claim.verdict == outcome]
        lines.append(f"{outcome:20}{len(names):3}  {', '.join(names)}".rstrip())
    return "\n".join(lines)


def plain_effect(effect: Effect) -> dict[str, Any]:
    """An effect as plain values; an infinite interval has null ends, and what was not run only nulls."""

    def end(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "setting": effect.setting,
        "quantity": effect.quantity,
        "unit": QUANTITIES[effect.quantity].unit,
        "value": end(effect.value),
        "low": end(effect.low),
        "high": end(effect.high),
        "smallest": effect.smallest,
        "side": effect.side,
    }


def plain_claim(claim: Claim) -> dict[str, Any]:
    """A claim as plain values; its records by their keys."""
    return {
        "source": claim.rule.source,
        "says": claim.rule.says,
        "measured": claim.rule.measured,
        "verdict": claim.verdict,
        "strict": claim.strict,
        "certain": claim.certain,
        "finding": finding(claim.effects),
        "reasons": [{"kind": reason.kind, "says": reason.says} for reason in claim.reasons],
        "effects": [plain_effect(effect) for effect in claim.effects.values()],
        "shown": list(claim.rule.shown),
        "part_of": list(claim.rule.part_of),
        "records": [record.key for record in claim.records],
    }


def export(claims: Mapping[str, Claim]) -> str:
    """Claims and the configurations of the records that they rest on, as JSON."""
    published = published_dir().resolve()
    records = {record.key: record for claim in claims.values() for record in claim.records}
    plain = {
        "claims": {name: plain_claim(claim) for name, claim in claims.items()},
        "records": {
            key: {"published": record.path.parent.parent.resolve() == published, "config": record.config}
            for key, record in records.items()
        },
    }
    return json.dumps(plain, ensure_ascii=False, allow_nan=False)


def show_claims(claims: Mapping[str, Claim]) -> None:
    """Display the table of a chapter's claims; its metadata carry their JSON, for the page of claims."""
    from IPython.display import display  # which the library does not need elsewhere

    table = f":::{{div}} wide-table full-width\n{claims_table(claims)}\n:::"
    shown = {"text/markdown": table, "text/plain": summary(claims)}
    display(shown, metadata={CARRIED: export(claims)}, raw=True)
