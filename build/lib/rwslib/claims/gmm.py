"""The claims about the mixture of Gaussians, section 4.3 of the paper."""

from collections.abc import Mapping
from itertools import pairwise, product

import numpy as np

from rwslib.claims.common import (
    Claim,
    Effects,
    Noted,
    Rule,
    Runs,
    difference,
    judge,
    median,
    title,
    union,
)
from rwslib.evaluation import bootstrap
from rwslib.models.gmm import NUM_CATEGORIES
from rwslib.records import RunRecord

BOUND_METHODS = ("reinforce", "vimco", "relax", "concrete")


def within_factor_two(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.log(2) - abs(np.log(median(a) / median(b)))


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
    used: set = set()
    records = {**runs, **delta_sweep}
    runs, delta_sweep = Noted(runs, used), Noted(delta_sweep, used)
    particles = sorted({K for _, K in runs})
    first, last = particles[0], particles[-1]
    errors = ("prior_l2", "posterior_l2")

    def final(metric: str, method: str, K: int) -> np.ndarray:
        return runs[method, K].metrics[f"{metric}_final"]

    def spread(method: str, K: int) -> np.ndarray:
        return runs[method, K].metrics["phi_gradient_std"].mean(axis=1)

    def falls(metric: str, *methods: str) -> Effects:
        return {
            f"{title(m)}, K {a} to {b}": difference(final(metric, m, a), final(metric, m, b))
            for m, (a, b) in product(methods, pairwise(particles))
        }

    def rises(metric: str, *methods: str) -> Effects:
        return {
            f"{title(m)}, K {first} to {last}": difference(final(metric, m, last), final(metric, m, first))
            for m in methods
        }

    def above(metric: str, worse: str, better: str, K: int) -> Effects:
        name = {"prior_l2": "error of p", "posterior_l2": "error of q"}[metric]
        label = f"{name}: {title(worse)} above {title(better)}, K {K}"
        return {label: difference(final(metric, worse, K), final(metric, better, K))}

    def gives_up(method: str, K: int) -> Effects:
        support = final("support_size", method, K)
        return {f"{title(method)}, K {K}": bootstrap(lambda s: NUM_CATEGORIES - median(s), support)}

    def keeps_all(method: str, K: int) -> Effects:
        support = final("support_size", method, K)
        least = NUM_CATEGORIES - 0.5
        return {f"{title(method)} keeps all, K {K}": bootstrap(lambda s: median(s) - least, support)}

    def quieter(a: str, b: str, K: int) -> Effects:
        return {
            f"log ratio of spreads: {title(a)} below {title(b)}, K {K}": bootstrap(
                lambda u, v: np.log(median(u) / median(v)), spread(b, K), spread(a, K)
            )
        }

    def reaches(method: str, K: int) -> np.ndarray:
        """First logged iteration with a prior error below 0.05; twice the length where never."""
        metrics = runs[method, K].metrics
        below = metrics["prior_l2"] < 0.05
        iteration = metrics["iteration"]
        return np.where(below.any(axis=1), iteration[below.argmax(axis=1)], 2 * iteration[-1])

    def sooner(a: str, b: str, K: int) -> Effects:
        label = f"iterations to 0.05: {title(a)} before {title(b)}, K {K}"
        return {label: difference(reaches(b, K), reaches(a, K))}

    def robust() -> Effects:
        errors = {cell: delta_sweep[cell].metrics["prior_l2_final"] for cell in delta_sweep}
        return {
            f"δ = {delta}, K {K}": bootstrap(within_factor_two, error, errors[0.2, K])
            for (delta, K), error in errors.items()
            if delta != 0.2
        }

    def louder() -> Effects:
        ratio = {K: np.log(term_std[K][:, 0] / term_std[K][:, 1]) for K in particles if runs["reinforce", K]}
        level = {f"term 1 above term 2, K {K}": bootstrap(median, ratio[K]) for K in particles}
        growth = {f"more so, K {a} to {b}": difference(ratio[b], ratio[a]) for a, b in pairwise(particles)}
        return level | growth

    def slopes() -> Effects:
        return {
            name: bootstrap(lambda s, target=target: 0.1 - abs(s.mean(axis=-1) - target), snr_slopes[:, i])
            for i, (name, target) in enumerate({"theta": 0.5, "phi": -0.5}.items())
        }

    def bias_falls() -> Effects:
        return {f"K {a} to {b}": (bias[a] - bias[b],) * 3 for a, b in pairwise(sorted(bias))}

    rules = {
        "GMM-1": Rule(
            "Figure 4, top",
            "WS and WW learn better mixture weights with more particles",
            "fall of the median final error of p(z) with each step in particles",
            ("fig-figure4",),
            lambda: falls("prior_l2", "ws", "ww"),
        ),
        "GMM-2": Rule(
            "Figure 4, top",
            "methods that climb the bound learn worse mixture weights with more particles",
            "rise of the median final error of p(z) from the fewest particles to the most",
            ("fig-figure4",),
            lambda: rises("prior_l2", *BOUND_METHODS),
        ),
        "GMM-3": Rule(
            "Figure 4, middle",
            "inference networks get better with more particles under WS and WW, and worse under the bound",
            "as GMM-1 and GMM-2, with the median final error of q(z | x)",
            ("fig-figure4",),
            lambda: falls("posterior_l2", "ws", "ww") | rises("posterior_l2", *BOUND_METHODS),
        ),
        "GMM-4": Rule(
            "Figure 4, bottom",
            "WW and WS have lower gradient variance than the bound's score-function estimators",
            "logarithm of the ratio of the gradients' spreads, averaged over training",
            ("fig-figure4",),
            lambda: union(
                quieter(a, b, K)
                for a, b, K in product(("ww", "ws"), ("reinforce", "relax", "vimco"), particles)
            ),
        ),
        "GMM-5": Rule(
            "Figure 4, bottom and top",
            "Concrete has a quiet gradient and learns poorly",
            "logarithm of the ratio of spreads, and difference of the median final errors of p(z)",
            ("fig-figure4",),
            lambda: union(
                quieter("concrete", "vimco", K) | above("prior_l2", "concrete", "vimco", K) for K in particles
            ),
        ),
        "GMM-6": Rule(
            "Figure 4, top",
            "WS ends worst, Concrete aside",
            "median final error of p(z) under WS minus that under another method",
            ("fig-figure4",),
            lambda: union(
                above("prior_l2", "ws", m, K)
                for m, K in product(("ww", "dww", "reinforce", "vimco", "relax"), particles)
            ),
        ),
        "GMM-7": Rule(
            "Figure 4, top",
            "WW learns the best model fastest with many particles, δ-WW aside",
            "difference of the median final errors of p(z), and of the iterations until it is below 0.05",
            ("fig-figure4",),
            lambda: union(
                above("prior_l2", m, "ww", last) | sooner("ww", m, last) for m in ("ws", *BOUND_METHODS)
            ),
        ),
        "GMM-8": Rule(
            "Figures 4 and 5",
            "WW loses categories with few particles",
            "number of categories given up at the end, median",
            ("fig-support", "fig-figure5"),
            lambda: gives_up("ww", first),
        ),
        "GMM-9": Rule(
            "Figures 4 and 5",
            "δ-WW removes that and is best with few particles",
            "half a category minus the number given up, and differences of the median final errors",
            ("fig-support", "fig-figure4"),
            lambda: (
                keeps_all("dww", first)
                | union(
                    above(metric, m, "dww", K)
                    for metric, m, K in product(errors, ("ws", "ww", *BOUND_METHODS), particles[:2])
                )
            ),
        ),
        "GMM-10": Rule(
            "Figure 5",
            "WS loses categories with few and with many particles",
            "number of categories given up at the end, median",
            ("fig-support", "fig-figure5"),
            lambda: gives_up("ws", first) | gives_up("ws", last),
        ),
        "GMM-11": Rule(
            "Figure 5",
            "VIMCO and REINFORCE lose categories with few particles",
            "number of categories given up at the end, median",
            ("fig-support", "fig-figure5"),
            lambda: gives_up("vimco", first) | gives_up("reinforce", first),
        ),
        "GMM-12": Rule(
            "Figure 5",
            "with many particles only WS loses categories, and bound-climbing methods end worse",
            "number of categories given up or kept, and differences of the median final errors of p(z)",
            ("fig-support", "fig-figure4"),
            lambda: (
                gives_up("ws", last)
                | union(keeps_all(m, last) for m in ("ww", "dww", *BOUND_METHODS))
                | union(above("prior_l2", m, w, last) for m, w in product(BOUND_METHODS, ("ww", "dww")))
            ),
        ),
        "GMM-13": Rule(
            "text",
            "δ-WW is robust to δ: errors within a factor of two of those at δ = 0.2",
            "logarithm of two, minus the distance of the logarithms of the median final errors of p(z)",
            ("gmm-delta",),
            robust,
        ),
        "GMM-14": Rule(
            "text",
            "term 1 dominates REINFORCE's variance, more so with more particles",
            "logarithm of the ratio of the terms' spreads at the trained parameters, and its growth",
            ("gmm-terms",),
            louder,
        ),
        "GMM-15": Rule(
            "text, after Rainforth et al. (2018)",
            "signal-to-noise slopes are +1/2 for theta and −1/2 for phi, within 0.1",
            "a tenth, minus the distance of the fitted slope, on a model with a normal latent",
            ("gmm-snr",),
            slopes,
        ),
        "GMM-16": Rule(
            "text, at Eq. 5",
            "wake-phi's bias falls with K",
            "fall of the norm of the bias with each step in particles, by enumeration up to three",
            ("gmm-bias",),
            bias_falls,
        ),
    }
    return judge(rules, used, records)
