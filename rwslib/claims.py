"""The paper's checkable statements as numbers: effects with bootstrap intervals, verdicts by rule.

An effect is signed so that the paper says *positive*: a difference of medians over replicates, or a
logarithm of a ratio of medians.  A claim whose methods or particle numbers were not run is "not run".
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np

from rwslib.evaluation import bootstrap, verdict
from rwslib.methods import METHODS
from rwslib.models.gmm import NUM_CATEGORIES
from rwslib.records import RunRecord

Runs = Mapping[tuple[str, int], RunRecord]  # by (method, num_particles)
Effects = dict[str, tuple[float, float, float]]  # value, lower and upper end, by setting

BOUND_METHODS = ("reinforce", "vimco", "relax", "concrete")


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, its effects by setting, and the verdict that follows from them."""

    says: str
    effects: Effects

    @property
    def verdict(self) -> str:
        return verdict(list(self.effects.values())) if self.effects else "not run"


def _title(name: str) -> str:
    return METHODS[name].title


def _median(values: np.ndarray) -> np.ndarray:
    return np.median(values, axis=-1)


def _difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    return bootstrap(lambda u, v: _median(u) - _median(v), a, b)


def _log_ratio(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    return bootstrap(lambda u, v: np.log(_median(u) / _median(v)), a, b)


def gmm_claims(
    runs: Runs,
    delta_sweep: Mapping[tuple[float, int], RunRecord | None],
    term_std: Mapping[int, np.ndarray],
    snr_slopes: np.ndarray,
    bias: Mapping[int, float],
) -> dict[str, Claim]:
    """Claims GMM-1 to GMM-16, on the mixture of section 4.3.

    Args:
        runs: the records of Figure 4.
        delta_sweep: δ-WW's records by (delta, K).
        term_std: standard deviations of the two terms of Eq. 2, ``[R, 2]`` by K.
        snr_slopes: slopes for theta and phi, ``[groups, 2]``.
        bias: size of wake-phi's bias by K.
    """
    particles = sorted({K for _, K in runs})
    first, last = particles[0], particles[-1]
    errors = ("prior_l2", "posterior_l2")

    def final(metric: str, method: str, K: int) -> np.ndarray:
        return runs[method, K].metrics[f"{metric}_final"]

    def spread(method: str, K: int) -> np.ndarray:
        return runs[method, K].metrics["phi_gradient_std"].mean(axis=1)

    def falls(metric: str, *methods: str) -> Effects:
        return {
            f"{_title(m)}, K {a} to {b}": _difference(final(metric, m, a), final(metric, m, b))
            for m, (a, b) in product(methods, pairwise(particles))
        }

    def rises(metric: str, *methods: str) -> Effects:
        return {
            f"{_title(m)}, K {first} to {last}": _difference(final(metric, m, last), final(metric, m, first))
            for m in methods
        }

    def above(metric: str, worse: str, better: str, K: int) -> Effects:
        name = {"prior_l2": "error of p", "posterior_l2": "error of q"}[metric]
        label = f"{name}: {_title(worse)} above {_title(better)}, K {K}"
        return {label: _difference(final(metric, worse, K), final(metric, better, K))}

    def gives_up(method: str, K: int) -> Effects:
        support = final("support_size", method, K)
        return {f"{_title(method)}, K {K}": bootstrap(lambda s: NUM_CATEGORIES - _median(s), support)}

    def keeps_all(method: str, K: int) -> Effects:
        support = final("support_size", method, K)
        least = NUM_CATEGORIES - 0.5
        return {f"{_title(method)} keeps all, K {K}": bootstrap(lambda s: _median(s) - least, support)}

    def quieter(a: str, b: str, K: int) -> Effects:
        return {
            f"log ratio of spreads: {_title(a)} below {_title(b)}, K {K}": _log_ratio(
                spread(b, K), spread(a, K)
            )
        }

    def reaches(method: str, K: int) -> np.ndarray:
        """First logged iteration with a prior error below 0.05; twice the length where never."""
        metrics = runs[method, K].metrics
        below = metrics["prior_l2"] < 0.05
        iteration = metrics["iteration"]
        return np.where(below.any(axis=1), iteration[below.argmax(axis=1)], 2 * iteration[-1])

    def sooner(a: str, b: str, K: int) -> Effects:
        label = f"iterations to 0.05: {_title(a)} before {_title(b)}, K {K}"
        return {label: _difference(reaches(b, K), reaches(a, K))}

    def robust() -> Effects:
        within = {
            (delta, K): (record.metrics["prior_l2_final"], delta_sweep[0.2, K].metrics["prior_l2_final"])
            for (delta, K), record in delta_sweep.items()
            if delta != 0.2
        }
        return {
            f"δ = {delta}, K {K}": bootstrap(_within_factor_two, *pair) for (delta, K), pair in within.items()
        }

    def louder() -> Effects:
        ratio = {K: np.log(term_std[K][:, 0] / term_std[K][:, 1]) for K in particles}
        level = {f"term 1 above term 2, K {K}": bootstrap(_median, ratio[K]) for K in particles}
        growth = {f"more so, K {a} to {b}": _difference(ratio[b], ratio[a]) for a, b in pairwise(particles)}
        return level | growth

    def slopes() -> Effects:
        return {
            name: bootstrap(lambda s, target=target: 0.1 - abs(s.mean(axis=-1) - target), snr_slopes[:, i])
            for i, (name, target) in enumerate({"theta": 0.5, "phi": -0.5}.items())
        }

    def bias_falls() -> Effects:
        return {f"K {a} to {b}": (bias[a] - bias[b],) * 3 for a, b in pairwise(sorted(bias))}

    rules: dict[str, tuple[str, Callable[[], Effects]]] = {
        "GMM-1": (
            "WS and WW learn better mixture weights with more particles",
            lambda: falls("prior_l2", "ws", "ww"),
        ),
        "GMM-2": (
            "methods that climb the bound learn worse mixture weights with more particles",
            lambda: rises("prior_l2", *BOUND_METHODS),
        ),
        "GMM-3": (
            "the inference network develops as the model does",
            lambda: falls("posterior_l2", "ws", "ww") | rises("posterior_l2", *BOUND_METHODS),
        ),
        "GMM-4": (
            "WW and WS have lower gradient variance than the bound's score-function estimators",
            lambda: _union(
                quieter(a, b, K)
                for a, b, K in product(("ww", "ws"), ("reinforce", "relax", "vimco"), particles)
            ),
        ),
        "GMM-5": (
            "Concrete has a quiet gradient and learns poorly",
            lambda: _union(
                quieter("concrete", "vimco", K) | above("prior_l2", "concrete", "vimco", K) for K in particles
            ),
        ),
        "GMM-6": (
            "WS ends worst, Concrete aside",
            lambda: _union(
                above("prior_l2", "ws", m, K)
                for m, K in product(("ww", "dww", "reinforce", "vimco", "relax"), particles)
            ),
        ),
        "GMM-7": (
            "WW learns the best model fastest with many particles, δ-WW aside",
            lambda: _union(
                above("prior_l2", m, "ww", last) | sooner("ww", m, last) for m in ("ws", *BOUND_METHODS)
            ),
        ),
        "GMM-8": ("WW loses categories with few particles", lambda: gives_up("ww", first)),
        "GMM-9": (
            "δ-WW removes that and is best with few particles",
            lambda: (
                keeps_all("dww", first)
                | _union(
                    above(metric, m, "dww", K)
                    for metric, m, K in product(errors, ("ws", "ww", *BOUND_METHODS), particles[:2])
                )
            ),
        ),
        "GMM-10": (
            "WS loses categories with few and with many particles",
            lambda: gives_up("ws", first) | gives_up("ws", last),
        ),
        "GMM-11": (
            "VIMCO and REINFORCE lose categories with few particles",
            lambda: gives_up("vimco", first) | gives_up("reinforce", first),
        ),
        "GMM-12": (
            "with many particles only WS loses categories, and bound-climbing methods end worse",
            lambda: (
                gives_up("ws", last)
                | keeps_all("ww", last)
                | keeps_all("dww", last)
                | _union(above("prior_l2", m, w, last) for m, w in product(BOUND_METHODS, ("ww", "dww")))
            ),
        ),
        "GMM-13": ("δ-WW is robust to δ: errors within a factor of two of those at δ = 0.2", robust),
        "GMM-14": ("term 1 dominates REINFORCE's variance, more so with more particles", louder),
        "GMM-15": ("signal-to-noise slopes are +1/2 for theta and −1/2 for phi, within 0.1", slopes),
        "GMM-16": ("wake-phi's bias falls with K", bias_falls),
    }
    return {name: Claim(says, _effects_or_none(rule)) for name, (says, rule) in rules.items()}


def _union(parts) -> Effects:
    return {label: effect for part in parts for label, effect in part.items()}


def _within_factor_two(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.log(2) - abs(np.log(_median(a) / _median(b)))


def _effects_or_none(rule: Callable[[], Effects]) -> Effects:
    """The effects, or none at all where a run that the claim needs is missing."""
    try:
        return rule()
    except (KeyError, AttributeError):  # not in the runs, or None in the sweep
        return {}


def claims_table(claims: Mapping[str, Claim]) -> str:
    """A markdown table: claim, how many settings agree, the two extreme effects, the verdict."""
    header = "| claim | the paper says | agree | weakest effect | strongest effect | verdict |"
    lines = [header, "|---" * 6 + "|"]
    for name, claim in claims.items():
        ordered = sorted(claim.effects.items(), key=lambda item: item[1][0])
        ends = [
            f"{label}: {value:.3g} ({low:.3g} to {high:.3g})"
            for label, (value, low, high) in (ordered[:1] + ordered[-1:])
        ]
        agree = f"{sum(low > 0 for _, low, _ in claim.effects.values())} of {len(claim.effects)}"
        cells = [name, claim.says, agree, *(ends or ["", ""]), f"**{claim.verdict}**"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
