"""Findings as sentences, made from records, so that no page says what its runs do not show."""

from collections.abc import Iterable, Mapping

from rwslib.claims.common import (
    Effect,
    Effects,
    Runs,
    difference,
    in_words,
    listed,
    particles,
    pooled_means,
    side,
    title,
    with_interval,
)
from rwslib.claims.gmm import BOUND_METHODS
from rwslib.records import RunRecord

GMM_ERRORS = {"prior_l2_final": "model", "posterior_l2_final": "inference network"}


def grouped(effects: Iterable[tuple[object, Effect]], positive: str, negative: str, where: str) -> str:
    """Labels of effects by sign: "is above at K = 2 and 5, is below at K = 10, is undecided at K = 20"."""
    words = {
        "agrees": f"{positive} {where}",
        "contradicts": f"{negative} {where}",
        "tie": f"is the same {where}",
        "open": f"is undecided {where}",
    }
    found: dict[str, list[object]] = {}
    for label, effect in effects:
        found.setdefault(side(effect), []).append(label)
    return ", ".join(f"{how} {listed(found[name])}" for name, how in words.items() if name in found)


def with_ends(effect: Effect, digits: int) -> str:
    """A value with its interval: "+0.25 (+0.24 to +0.35)"."""
    value, low, high = (f"{number:+.{digits}f}" for number in effect)
    return f"{value} ({low} to {high})"


def more_particles(runs: Runs) -> str:
    """What more particles do to the mixture under the methods that climb the bound, one sentence a line.

    From the fewest particles to the most, and from the second fewest to the most: where one starts to count
    decides the answer.
    """
    methods = [method for method in BOUND_METHODS if particles(runs, method)]
    Ks = particles(runs, *methods) if methods else []
    lines = []
    for few in Ks[:-1][:2]:
        for metric, name in GMM_ERRORS.items():
            ends = {m: [runs[m, K].metrics[metric] for K in (Ks[-1], few)] for m in methods}
            rises = [(title(method), difference(*errors)) for method, errors in ends.items()]
            found = grouped(rises, "ends worse", "ends better", "under")
            lines.append(f"From {few} to {Ks[-1]} particles the {name} {found}.")
    return "\n".join(lines)


def more_defence(delta_sweep: Mapping[tuple[float, int], RunRecord | None], robust: Effects) -> str:
    """What the largest δ changes beside the smallest, and on whose side GMM-13 is, one sentence a line.

    Args:
        delta_sweep: δ-WW's records by (delta, K).
        robust: the effects of GMM-13.
    """
    found = {cell: record.metrics for cell, record in delta_sweep.items() if record}
    lines = []
    for K in sorted({K for _, K in found}):
        deltas = sorted(delta for delta, num_particles in found if num_particles == K)
        ends = [found[delta, K] for delta in (deltas[-1], deltas[0])]
        changes = [
            f"that of the {name} by {with_ends(difference(*(metrics[metric] for metrics in ends)), 3)}"
            for metric, name in GMM_ERRORS.items()
        ]
        settled = in_words({label: e for label, e in robust.items() if label.endswith(f"K {K}")})
        lines.append(
            f"With {K} particles the median error changes from δ = {deltas[0]} to {deltas[-1]}: "
            f"{listed(changes)}; within a factor of two of the model's error at δ = 0.2 (GMM-13): {settled}."
        )
    return "\n".join(lines)


def lead(runs: Runs, a: str, b: str) -> str:
    """Whose model is better and whose network closer to its posterior, by K, one sentence a line.

    Replicates are few, so cells share their spread, as in the claims about images and scenes.
    """
    lines = []
    for metric, name in {"log_marginal": "log evidence", "kl_q_p": "divergence from its posterior"}.items():
        means = pooled_means({cell: record.metrics[metric] for cell, record in runs.items() if cell[1] > 1})
        gaps = {K: with_interval(means[a, K] - means[b, K]) for K in particles(means, a, b)}
        if gaps:
            found = grouped(gaps.items(), f"is above {title(b)}'s", f"is below {title(b)}'s", "at K =")
            last = f"at K = {max(gaps)} the difference is {with_ends(gaps[max(gaps)], 1)} nats"
            lines.append(f"{title(a)}'s {name} {found}; {last}.")
    return "\n".join(lines)
