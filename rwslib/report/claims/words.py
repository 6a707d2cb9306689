"""Findings as sentences, made from records, so that no page says what its runs do not show."""

from collections.abc import Iterable, Mapping

import numpy as np

from rwslib.models.gmm import NUM_CATEGORIES
from rwslib.records import RunRecord
from rwslib.report.claims.effects import Effect, Effects, Evidence, Runs, in_words, listed, title
from rwslib.report.claims.gmm import BOUND_METHODS

GMM_ERRORS = {"error of p": "model", "error of q": "inference network"}


def grouped(effects: Iterable[tuple[object, Effect]], positive: str, negative: str, where: str) -> str:
    """Labels of effects by sign: "is above at K = 2 and 5, is below at K = 10 and is undecided at K = 20"."""
    words = {
        "agrees": f"{positive} {where}",
        "contradicts": f"{negative} {where}",
        "tie": f"is the same {where}",
        "open": f"is undecided {where}",
    }
    found: dict[str, list[object]] = {}
    for label, effect in effects:
        found.setdefault(effect.side, []).append(label)
    return listed([f"{how} {listed(found[name])}" for name, how in words.items() if name in found])


def with_ends(effect: Effect, digits: int) -> str:
    """A value with its interval: "+0.25 (+0.24 to +0.35)"."""
    ends = (effect.value, effect.low, effect.high)
    value, low, high = (f"{number:+z.{digits}f}" for number in ends)  # z: no "-0.000"
    return f"{value} ({low} to {high})"


def headline(runs: Runs) -> str:
    """What WW, δ-WW and VIMCO do to the mixture with many particles and with few; nothing without their runs.

    Medians over the replicates.
    """
    evidence = Evidence(runs)
    Ks = evidence.particles
    if not Ks or any((m, K) not in evidence.runs for m in ("ww", "dww", "vimco") for K in (Ks[0], Ks[-1])):
        return ""
    few, many = Ks[0], Ks[-1]

    def median(metric: str, method: str, K: int) -> float:
        return float(np.median(evidence.runs[method, K].metrics[f"{metric}_final"]))

    one, other = (f"{median('prior_l2', method, many):.3f}" for method in ("ww", "vimco"))
    ratio = median("posterior_l2", "vimco", many) / median("posterior_l2", "ww", many)
    times = f"{ratio:.1f} times closer to" if ratio > 1 else f"{1 / ratio:.1f} times farther from"
    kept = [f"{median('support_size', method, few):g}" for method in ("ww", "vimco", "dww")]
    learns = (
        f"wake-wake (WW) and VIMCO both learn the mixture to an error of {one}"
        if one == other
        else f"wake-wake (WW) learns the mixture to an error of {one} and VIMCO to {other}"
    )
    return (
        f"With {many} particles, {learns}, and WW's inference network ends {times} the posterior than "
        f"VIMCO's; with {few}, WW keeps {kept[0]} of the {NUM_CATEGORIES} categories, VIMCO {kept[1]}, and "
        f"δ-WW {kept[2]}."
    )


def more_particles(runs: Runs) -> str:
    """What more particles do to the mixture under the methods that climb the bound, one sentence per line.

    From the fewest particles to the most, and from the second fewest to the most: where one starts to count
    decides the answer.
    """
    evidence = Evidence(runs)
    methods = [m for m in BOUND_METHODS if evidence.particles_of(m)]
    Ks = [K for K in evidence.particles if methods and all((m, K) in evidence.runs for m in methods)]
    lines = []
    for few in Ks[:-1][:2]:
        parts = []
        for quantity, name in GMM_ERRORS.items():
            rises = [(title(m), evidence.effect("", quantity, (m, Ks[-1]), (m, few))) for m in methods]
            parts.append(f"the {name} {grouped(rises, 'gets worse', 'gets better', 'under')}")
        lines.append(f"Going from {few} to {Ks[-1]} particles, {'; '.join(parts)}.")
    return "\n".join(lines)


def more_defence(delta_sweep: Mapping[tuple[float, int], RunRecord | None], robust: Effects) -> str:
    """What the largest δ changes beside the smallest, and on whose side GMM-13 is, one sentence per line.

    Args:
        delta_sweep: δ-WW's records by (delta, K).
        robust: the effects of GMM-13.
    """
    evidence = Evidence(delta_sweep)
    lines = []
    for K in evidence.particles:
        deltas = sorted(delta for delta, num_particles in evidence.runs if num_particles == K)
        ends = [(delta, K) for delta in (deltas[-1], deltas[0])]
        changes = [
            f"that of the {name} by {with_ends(evidence.effect('', quantity, *ends), 3)}"
            for quantity, name in GMM_ERRORS.items()
        ]
        settled = in_words({label: e for label, e in robust.items() if label.endswith(f"K {K}")})
        lines.append(
            f"With {K} particles the median error changes from δ = {deltas[0]} to {deltas[-1]}: "
            f"{listed(changes)}; within the factor of two (GMM-13): {settled}."
        )
    return "\n".join(lines)


def lead(runs: Runs, a: str, b: str) -> str:
    """Whose model is better and whose network closer to its posterior, by K, one sentence per line.

    Replicates are few, so cells share their spread, as in the claims about images and scenes.
    """
    evidence = Evidence({cell: record for cell, record in runs.items() if cell[1] > 1}, pooled=True)
    scenes = any("count_accuracy_sample" in record.metrics for record in evidence.runs.values())
    what = "scenes" if scenes else "images"
    names = {
        f"log evidence of {what}": "log evidence",
        f"divergence on {what}": "divergence from its posterior",
    }
    lines = []
    for quantity, name in names.items():
        effects = {K: evidence.effect("", quantity, (a, K), (b, K)) for K in evidence.particles}
        gaps = {K: effect for K, effect in effects.items() if effect.side != "not run"}
        if gaps:
            found = grouped(gaps.items(), f"is above {title(b)}'s", f"is below {title(b)}'s", "at K =")
            last = f"at K = {max(gaps)} the difference is {with_ends(gaps[max(gaps)], 1)} nats"
            lines.append(f"{title(a)}'s {name} {found}; {last}.")
    return "\n".join(lines)
