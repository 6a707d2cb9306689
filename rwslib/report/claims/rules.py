"""Verdicts: what a claim says, on which effects it rests, and what follows from the sides that they take."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rwslib.records import RunRecord
from rwslib.report.claims.effects import Effect, Effects, Evidence
from rwslib.report.claims.reasons import Reason, others, reasons

VERDICTS = {  # and what each asks of the effects that were run
    "holds": "all agree",
    "holds where decided": "some agree, none contradicts, the rest are ties or open",
    "split": "some agree and some contradict",
    "fails": "some contradict, none agrees",
    "open": "none agrees and none contradicts",
    "not run": "there is none",
}


@dataclass(frozen=True)
class Rule:
    """What the paper says in one place, and what decides it.

    Attributes:
        name: of the claim.
        source: where the paper says it.
        says: what it says, in our words.
        measured: what an effect is.
        shown: labels of the book's figures and sections that show it.
        effects: the effects, each with the cells that it rests on.
        part_of: names of the claims that sum it up.
        rests_on: which of the evidence that is judged together.
        certain: why the outcome is known before anything runs, in a word or three; empty where it is not.
    """

    name: str
    source: str
    says: str
    measured: str
    shown: tuple[str, ...]
    effects: Callable[[Evidence], Sequence[Effect]]
    part_of: tuple[str, ...] = ()
    rests_on: str = "runs"
    certain: str = ""


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, its effects by setting, and why it does not simply hold, if it does not."""

    rule: Rule
    effects: Effects
    reasons: tuple[Reason, ...] = ()
    records: tuple[RunRecord, ...] = ()

    @property
    def verdict(self) -> str:
        """The verdict by the sides of the effects, a key of ``VERDICTS``."""
        return verdict([effect.side for effect in self.effects.values()])

    @property
    def certain(self) -> str:
        """Why a claim that holds could not fail; empty for all others."""
        return self.rule.certain if self.verdict == "holds" else ""

    @property
    def strict(self) -> str:
        """By the stricter rule: "holds" and "does not hold" ask it of every effect, all else is "mixed"."""
        run = [effect for effect in self.effects.values() if effect.side != "not run"]
        if not run:
            return "not run"
        if all(effect.low > 0 for effect in run):
            return "holds"
        return "does not hold" if all(effect.high < 0 for effect in run) else "mixed"


def verdict(sides: Sequence[str]) -> str:
    """What follows from the sides of a claim's effects, a key of ``VERDICTS``."""
    found = set(sides) - {"not run"}
    if not found:
        return "not run"
    if found == {"agrees"}:
        return "holds"
    if "agrees" in found:
        return "split" if "contradicts" in found else "holds where decided"
    return "fails" if "contradicts" in found else "open"


def judge(rules: Sequence[Rule], evidence: Mapping[str, Evidence]) -> dict[str, Claim]:
    """Evaluate rules, each on the evidence that it rests on, and say why a claim does not simply hold.

    Raises:
        KeyError: a rule asks for a quantity or a metric that does not exist.
    """
    rows = {name: others(found) for name, found in evidence.items()}
    claims = {}
    for rule in rules:
        found = evidence[rule.rests_on]
        effects = {effect.setting: effect for effect in rule.effects(found)}
        used = {cell for e in effects.values() if e.side != "not run" for cell in e.cells}
        kept = tuple(record for cell, record in found.runs.items() if cell in used)
        why = reasons(rule.effects, effects, found, rows[rule.rests_on])
        claims[rule.name] = Claim(rule, effects, tuple(why), kept)
    return claims
