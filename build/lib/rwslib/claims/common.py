"""What the claims of all experiments share: how one is judged, tabulated, exported; small statistics."""

import json
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from rwslib.evaluation import bootstrap, verdict
from rwslib.methods import METHODS
from rwslib.records import RunRecord, published_dir

Cell = tuple[str, int]  # method, num_particles
Runs = Mapping[Cell, RunRecord]
Effect = tuple[float, float, float]  # value, lower and upper end of its interval
Effects = dict[str, Effect]  # by setting

VERDICTS = ("holds", "mixed", "does not hold", "not run")


@dataclass(frozen=True)
class Rule:
    """How a statement is judged.

    Attributes:
        source: where the paper says it.
        says: what it says, in our words.
        measured: what an effect is.
        shown: labels of the book's figures and sections that show it.
        effects: computes the effects, or raises KeyError or AttributeError where a run is missing.
    """

    source: str
    says: str
    measured: str
    shown: tuple[str, ...]
    effects: Callable[[], Effects]


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, its effects by setting, and the verdict that follows from them."""

    says: str
    effects: Effects
    source: str = ""
    measured: str = ""
    shown: tuple[str, ...] = ()
    records: tuple[RunRecord, ...] = ()

    @property
    def verdict(self) -> str:
        return verdict(list(self.effects.values())) if self.effects else "not run"


SIDES = {  # of an effect; what one and several of them do
    "agrees": ("agrees with the paper", "agree with the paper"),
    "contradicts": ("contradicts it", "contradict it"),
    "tie": ("is a tie", "are ties"),
    "open": ("is open", "are open"),
}


def side(effect: Effect) -> str:
    """Whose side an effect is on.

    "agrees" or "contradicts" with its whole interval above or below zero, "tie" at zero without any spread,
    else "open".
    """
    _, low, high = effect
    if low > 0:
        return "agrees"
    if high < 0:
        return "contradicts"
    return "tie" if low == high else "open"


def listed(words: Iterable[object]) -> str:
    """Words as a list in a sentence: "2, 5 and 10"."""
    *most, last = map(str, words)
    return f"{', '.join(most)} and {last}" if most else last


def in_words(effects: Effects) -> str:
    """On whose sides effects are, in words: "of 6 effects 4 agree with the paper and 2 are open"."""
    counts = Counter(map(side, effects.values()))
    parts = [f"{counts[name]} {words[counts[name] > 1]}" for name, words in SIDES.items() if counts[name]]
    if len(parts) > 1:
        return f"of {len(effects)} effects {listed(parts)}"
    if not parts:
        return "not run"
    number, what = parts[0].split(" ", 1)
    return f"its one effect {what}" if number == "1" else f"all {number} effects {what}"


class Noted(dict):
    """A mapping that notes which of its keys were looked up, in a set that several can share."""

    def __init__(self, entries: Mapping[Hashable, Any], keys: set):
        super().__init__(entries)
        self.keys_used = keys

    def __getitem__(self, key: Hashable) -> Any:
        value = super().__getitem__(key)
        self.keys_used.add(key)
        return value


def judge(
    rules: Mapping[str, Rule], used: set, records: Mapping[Hashable, RunRecord | None]
) -> dict[str, Claim]:
    """Evaluate each rule; the records of the keys that it left in ``used`` are those it rests on."""
    claims = {}
    for name, rule in rules.items():
        used.clear()
        try:
            effects = rule.effects()
        except (KeyError, AttributeError):  # not in the runs, or None in the sweep
            effects = {}
        found = tuple(records[key] for key in records if effects and key in used)
        claims[name] = Claim(rule.says, effects, rule.source, rule.measured, rule.shown, found)
    return claims


def sum_up(verdicts: Sequence[str]) -> str:
    """Verdict of a claim whose parts are claims; parts that were not run say nothing.

    "holds" or "does not hold" if all parts that were run do, else "mixed"; "not run" without any.
    """
    found = set(verdicts) - {"not run"}
    if not found:
        return "not run"
    return found.pop() if len(found) == 1 else "mixed"


def claims_table(claims: Mapping[str, Claim]) -> str:
    """A markdown table: claim, how many settings agree, the two extreme effects, the verdict."""
    header = "| claim | the paper says | agree | least favourable | most favourable | verdict |"
    lines = [header, "|---" * 6 + "|"]
    for name, claim in claims.items():
        ordered = sorted(claim.effects.items(), key=lambda item: item[1][0])
        ends = [
            f"{label}: {value:.3g} ({low:.3g} to {high:.3g})"
            for label, (value, low, high) in (ordered[:1] + ordered[-1:])
        ]
        agree = f"{[*map(side, claim.effects.values())].count('agrees')} of {len(claim.effects)}"
        cells = [name, claim.says, agree, *(ends or ["", ""]), f"**{claim.verdict}**"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def export(claims: Mapping[str, Claim]) -> str:
    """Claims as JSON, for machines and for the page of claims; an endless interval has null ends."""

    def end(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return json.dumps(
        {
            name: {
                "source": claim.source,
                "says": claim.says,
                "measured": claim.measured,
                "verdict": claim.verdict,
                "effects": [
                    {"setting": setting, "value": value, "low": end(low), "high": end(high)}
                    for setting, (value, low, high) in claim.effects.items()
                ],
                "shown": claim.shown,
                "records": [
                    {
                        "key": record.key,
                        "published": record.path.parent.parent.resolve() == published_dir().resolve(),
                        "config": record.config,
                    }
                    for record in claim.records
                ],
            }
            for name, claim in claims.items()
        }
    )


def title(name: str) -> str:
    """What figures and tables call a method."""
    return METHODS[name].title


def median(values: np.ndarray) -> np.ndarray:
    return np.median(values, axis=-1)


def difference(a: np.ndarray, b: np.ndarray) -> Effect:
    """Difference of the medians of two samples of replicates, with its interval."""
    return bootstrap(lambda u, v: median(u) - median(v), a, b)


def union(parts: Iterable[Effects]) -> Effects:
    return {label: effect for part in parts for label, effect in part.items()}


# -- few replicates: means that share their spread ---------------------------------------------------


def pooled_means(cells: Mapping[Cell, np.ndarray], num_resamples: int = 2000) -> dict[Cell, np.ndarray]:
    """Mean over the replicates ``[R]`` of each cell, then its bootstrap means: ``[1 + num_resamples]``.

    Deviations of the replicates from their cell's mean, widened by sqrt(R / (R - 1)) for the degree of
    freedom that the mean takes, form one pool; a bootstrap mean is the mean plus that of R draws from it.
    Without any cell of two replicates the bootstrap means are NaN.
    """
    generator = np.random.default_rng(0)
    deviations = [(v - v.mean()) * np.sqrt(len(v) / (len(v) - 1)) for v in cells.values() if len(v) > 1]
    pool = np.concatenate(deviations) if deviations else np.array([np.nan])
    return {
        cell: v.mean() + np.r_[0, generator.choice(pool, (num_resamples, len(v))).mean(axis=1)]
        for cell, v in cells.items()
    }


def with_interval(values: np.ndarray) -> Effect:
    """Value with its 95 % interval, from the value followed by its bootstrap draws."""
    if np.isnan(values).any():
        return float(values[0]), -np.inf, np.inf
    return float(values[0]), *map(float, np.percentile(values[1:], [2.5, 97.5]))


def particles(cells: Iterable[Cell], *methods: str) -> list[int]:
    """Numbers of particles with which all of these methods were run."""
    return sorted(set.intersection(*({K for m, K in cells if m == method} for method in methods)))


def gains(
    means: Mapping[Cell, np.ndarray], method: str, up_to: float = np.inf
) -> dict[tuple[int, int], np.ndarray]:
    """Bootstrap means of what each step in particles adds."""
    steps = pairwise(K for K in particles(means, method) if up_to >= K)
    return {(a, b): means[method, b] - means[method, a] for a, b in steps}


def improves(means: Mapping[Cell, np.ndarray], method: str, up_to: float = np.inf) -> Effects:
    steps = gains(means, method, up_to)
    return {f"{title(method)}, K {a} to {b}": with_interval(gain) for (a, b), gain in steps.items()}


def above(label: str, means: Mapping[Cell, np.ndarray], a: str, b: str, margin: float = 0) -> Effects:
    return {
        f"{label}: {title(a)} above {title(b)}, K {K}": with_interval(means[a, K] - means[b, K] + margin)
        for K in particles(means, a, b)
    }


def log_curve_noise(record: RunRecord) -> np.ndarray:
    """Logarithm of the noise on each replicate's training curve ``[R]``: its roughness in the second half.

    Second differences remove the trend; that of independent noise has six times its variance.
    NaN where the curve is too short.
    """
    curve = record.metrics["train_bound"]
    rough = np.diff(curve[:, curve.shape[1] // 2 :], n=2)
    return np.log(rough.std(axis=1) / np.sqrt(6)) if rough.shape[1] > 2 else np.full(len(curve), np.nan)


def noted_means(runs: Runs, used: set, *metrics: str) -> list[Noted]:
    """Pooled means of each metric by cell, then those of the curves' noise; all note their use."""
    cells = [{cell: record.metrics[metric] for cell, record in runs.items()} for metric in metrics]
    cells.append({cell: log_curve_noise(record) for cell, record in runs.items()})
    return [Noted(pooled_means(values), used) for values in cells]
