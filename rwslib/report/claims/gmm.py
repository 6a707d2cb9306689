"""The claims about the mixture of Gaussians, section 4.3 of the paper."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np

from rwslib.records import RunRecord
from rwslib.report.claims.effects import Effect, Evidence, Runs, title
from rwslib.report.claims.rules import Claim, Rule, judge

BOUND_METHODS = ("reinforce", "vimco", "relax", "concrete")
OTHERS = ("ws", "ww", *BOUND_METHODS)  # than δ-WW
TERMS, SLOPES, BIAS = "log ratio of the two terms", "slope of the signal-to-noise ratio", "bias"


def steps(evidence: Evidence, quantity: str, methods: Sequence[str], sign: int) -> list[Effect]:
    """Rise (or fall) of a quantity with each step in particles, under each method."""
    return [effect for method in methods for effect in evidence.steps(quantity, method, sign=sign)]


def quieter(evidence: Evidence, quiet: Sequence[str], loud: Sequence[str], when: str = "") -> list[Effect]:
    """Log ratio of the gradients' spreads, by K; of training's start where ``when`` is " at first"."""
    return [e for a in quiet for e in worse(evidence, f"log spread of the gradient{when}", loud, (a,))]


def worse(
    evidence: Evidence,
    quantity: str,
    those: Sequence[str],
    than: Sequence[str],
    Ks: Sequence[int] | None = None,
) -> list[Effect]:
    """Excess of a quantity under some methods over that under others, by K."""
    return [e for a, b in product(those, than) if a != b for e in evidence.above(quantity, a, b, Ks)]


def best(evidence: Evidence, method: str, Ks: Sequence[int]) -> list[Effect]:
    """Excess of both errors under all others over those under a method, with these numbers of particles."""
    return [
        replace(effect, setting=f"{quantity}: {effect.setting}")
        for quantity in ("error of p", "error of q")
        for effect in worse(evidence, quantity, OTHERS, (method,), Ks)
    ]


def gives_up(evidence: Evidence, methods: Sequence[str], Ks: Sequence[int], sign: int = 1) -> list[Effect]:
    """Number of categories given up, minus half of one; with the other sign where ``sign`` is -1."""
    what = "gives some up" if sign > 0 else "keeps all"
    return [
        evidence.effect(
            f"{title(method)} {what}, K {K}",
            "categories given up",
            (method, K),
            combine=lambda lost: sign * lost,
            margin=-sign * 0.5,
        )
        for method, K in product(methods, Ks)
    ]


def within_factor_two(evidence: Evidence) -> list[Effect]:
    """How far errors stay within a factor of two of that at δ = 0.2, and those at the ends of each other."""
    pairs = [(delta, 0.2, K) for delta, K in evidence.runs if delta != 0.2]
    for K in evidence.particles:
        deltas = sorted(delta for delta, num_particles in evidence.runs if num_particles == K)
        pairs += [(deltas[0], deltas[-1], K)] if deltas[0] < 0.2 < deltas[-1] else []
    return [
        evidence.within_two(
            f"δ = {a}{f' and {b}' if b != 0.2 else ''}, K {K}", "log error of p", (a, K), (b, K)
        )
        for a, b, K in pairs
    ]


def slope(evidence: Evidence, part: str, target: float) -> list[Effect]:
    """A tenth minus the distance of a slope from its target."""
    return [
        evidence.effect("five sets of draws", SLOPES, part, combine=lambda s: -abs(s - target), margin=0.1)
    ]


def bias_falls(evidence: Evidence) -> list[Effect]:
    """Fall of the norm of the bias with each step in particles."""
    Ks = sorted(evidence.given.get(BIAS, {}))
    return [evidence.effect(f"K {a} to {b}", BIAS, a, b) for a, b in pairwise(Ks)]


TOP, MIDDLE, BOTTOM = "Figure 4, top", "Figure 4, middle", "Figure 4, bottom"
FIGURE, SUPPORT = ("fig-figure4",), ("fig-support", "fig-figure5")
GIVEN_UP = "number of categories given up at the end, minus half of one"
BESIDE_DWW = (
    "median final error, of p(z) and of q(z | x), under another method minus that under δ-WW, whose steps "
    "evaluate twice as many particles"
)
P_ABOVE = "median final error of p(z) under the one method minus that under the other"
RULES = (
    Rule(
        "GMM-1",
        TOP,
        "WS and WW learn better mixture weights with more particles",
        "fall of the median final error of p(z) with each step in particles",
        FIGURE,
        lambda e: steps(e, "error of p", ("ws", "ww"), -1),
        ("GEN-3a",),
    ),
    Rule(
        "GMM-2",
        TOP,
        "methods that climb the bound learn worse mixture weights with more particles",
        "rise of the median final error of p(z) with each step in particles",
        FIGURE,
        lambda e: steps(e, "error of p", BOUND_METHODS, 1),
        ("GEN-3b",),
    ),
    Rule(
        "GMM-3a",
        MIDDLE,
        "inference networks get better with more particles under WS and WW",
        "fall of the median final error of q(z | x) with each step in particles",
        FIGURE,
        lambda e: steps(e, "error of q", ("ws", "ww"), -1),
        ("GEN-3a",),
    ),
    Rule(
        "GMM-3b",
        MIDDLE,
        "inference networks get worse with more particles under methods that climb the bound",
        "rise of the median final error of q(z | x) with each step in particles",
        FIGURE,
        lambda e: steps(e, "error of q", BOUND_METHODS, 1),
        ("GEN-3b",),
    ),
    Rule(
        "GMM-4",
        BOTTOM,
        "WW and WS have lower gradient variance than methods that climb the bound",
        "logarithm of the ratio of the gradients' spreads, averaged over training",
        FIGURE,
        lambda e: quieter(e, ("ww", "ws"), BOUND_METHODS),
    ),
    Rule(
        "GMM-5a",
        "Figure 4, bottom, and text",
        "Concrete's gradient is quieter than VIMCO's to begin with",
        "logarithm of the ratio of the gradients' spreads, averaged over the first tenth of training",
        FIGURE,
        lambda e: quieter(e, ("concrete",), ("vimco",), " at first"),
    ),
    Rule(
        "GMM-5b",
        TOP,
        "Concrete learns worse mixture weights than VIMCO",
        P_ABOVE,
        FIGURE,
        lambda e: worse(e, "error of p", ("concrete",), ("vimco",)),
    ),
    Rule(
        "GMM-6",
        TOP,
        "WS learns the worst mixture weights",
        P_ABOVE,
        FIGURE,
        lambda e: worse(e, "error of p", ("ws",), ("ww", "dww", *BOUND_METHODS)),
    ),
    Rule(
        "GMM-7a",
        TOP,
        "WW learns the best model with many particles, δ-WW aside",
        P_ABOVE,
        FIGURE,
        lambda e: worse(e, "error of p", OTHERS, ("ww",), e.particles[-1:]),
        ("GEN-3c",),
    ),
    Rule(
        "GMM-7b",
        TOP,
        "WW learns fastest with many particles, δ-WW aside",
        "difference of the iterations until the error of p(z) is below 0.05, in per cent of the run; "
        "twice the run where it never is; from the far start Adam's steps of 0.001 cannot bring any method "
        "there before about a fifth of 100,000 iterations",
        FIGURE,
        lambda e: worse(e, "time until the error of p is 0.05", OTHERS, ("ww",), e.particles[-1:]),
        ("GEN-3c",),
    ),
    Rule(
        "GMM-7c",
        "Figure 4, middle, and text",
        "WW learns the best inference network with many particles, δ-WW aside",
        "median final error of q(z | x) under the one method minus that under the other",
        FIGURE,
        lambda e: worse(e, "error of q", OTHERS, ("ww",), e.particles[-1:]),
        ("GEN-3c",),
    ),
    Rule(
        "GMM-8",
        "Figures 4 and 5",
        "WW loses categories with few particles",
        GIVEN_UP,
        SUPPORT,
        lambda e: gives_up(e, ("ww",), e.particles[:1]),
    ),
    Rule(
        "GMM-9a",
        "Figures 4 and 5",
        "δ-WW keeps all categories with few particles",
        "half a category minus the number given up, one whose probability ends below 10⁻³",
        SUPPORT,
        lambda e: gives_up(e, ("dww",), e.particles[:1], -1),
    ),
    Rule(
        "GMM-9b",
        "Figure 4, top and middle",
        "δ-WW is best with few particles",
        BESIDE_DWW,
        FIGURE,
        lambda e: best(e, "dww", e.particles[:2]),
    ),
    Rule(
        "GMM-9c",
        "text",
        "δ-WW is best with many particles, too",
        BESIDE_DWW,
        FIGURE,
        lambda e: best(e, "dww", e.particles[2:]),
        ("GEN-3c",),
    ),
    Rule(
        "GMM-10",
        "Figure 5",
        "WS loses categories with few and with many particles",
        GIVEN_UP,
        SUPPORT,
        lambda e: gives_up(e, ("ws",), sorted({*e.particles[:1], *e.particles[-1:]})),
    ),
    Rule(
        "GMM-11",
        "Figure 5",
        "VIMCO and REINFORCE lose categories with few particles",
        GIVEN_UP,
        SUPPORT,
        lambda e: gives_up(e, ("vimco", "reinforce"), e.particles[:1]),
    ),
    Rule(
        "GMM-12a",
        "Figure 5",
        "with many particles only WS loses categories",
        "number of categories given up by WS minus half of one; for the others with the other sign",
        SUPPORT,
        lambda e: (
            gives_up(e, ("ws",), e.particles[-1:])
            + gives_up(e, ("ww", "dww", *BOUND_METHODS), e.particles[-1:], -1)
        ),
    ),
    Rule(
        "GMM-12b",
        "Figure 5",
        "with many particles bound-climbing methods end worse than WW and δ-WW",
        P_ABOVE,
        FIGURE,
        lambda e: worse(e, "error of p", BOUND_METHODS, ("ww", "dww"), e.particles[-1:]),
    ),
    Rule(
        "GMM-13",
        "text",
        "δ-WW is robust to δ: the error of p(z) stays within a factor of two of that at δ = 0.2, and so do "
        "those of the smallest and the largest δ of each other",
        "logarithm of two, minus the distance of the logarithms of the median final errors of p(z)",
        ("gmm-delta",),
        within_factor_two,
        rests_on="delta sweep",
    ),
    Rule(
        "GMM-14a",
        "text",
        "term 1 dominates REINFORCE's variance",
        "logarithm of the ratio of the terms' spreads at the trained parameters",
        ("gmm-terms",),
        lambda e: [e.effect(f"K {K}", TERMS, ("reinforce", K), combine=lambda a: a) for K in e.particles],
    ),
    Rule(
        "GMM-14b",
        "text",
        "term 1 dominates REINFORCE's variance the more, the more particles there are",
        "growth of the logarithm of the ratio of the terms' spreads with each step in particles",
        ("gmm-terms",),
        lambda e: e.steps(TERMS, "reinforce"),
    ),
    Rule(
        "GMM-15a",
        "text, after Rainforth et al. (2018)",
        "theta's signal-to-noise ratio rises like the square root of K, to within 0.1",
        "a tenth, minus the distance of the fitted slope from 1/2, on a model with a normal latent",
        ("gmm-snr",),
        lambda e: slope(e, "theta", 0.5),
        certain="theorem",
    ),
    Rule(
        "GMM-15b",
        "text, after Rainforth et al. (2018)",
        "phi's signal-to-noise ratio falls like one over the square root of K, to within 0.1",
        "a tenth, minus the distance of the fitted slope from −1/2, on a model with a normal latent",
        ("gmm-snr",),
        lambda e: slope(e, "phi", -0.5),
        certain="theorem",
    ),
    Rule(
        "GMM-16",
        "text, at Eq. 5",
        "wake-phi's bias falls with K",
        "fall of the norm of the bias with each step in particles, by enumeration up to three",
        ("gmm-bias",),
        bias_falls,
    ),
    Rule(
        "GMM-17",
        "Figure 5 and text",
        "with few particles WS keeps fewer categories than WW, and WW fewer than VIMCO and REINFORCE",
        "number of categories given up under the one method minus that under the other",
        SUPPORT,
        lambda e: [
            *worse(e, "categories given up", ("ws",), ("ww",), e.particles[:1]),
            *worse(e, "categories given up", ("ww",), ("vimco", "reinforce"), e.particles[:1]),
        ],
    ),
    Rule(
        "GMM-18",
        "text",
        "mixing sleep into WW improves nothing on the mixture",
        "median final error, of p(z) and of q(z | x), under WWS minus that under WW, plus the smallest "
        "difference that matters",
        ("gmm-claims",),
        lambda e: e.gains_nothing(("error of p", "wws", "ww"), ("error of q", "wws", "ww")),
        rests_on="with sleep",
    ),
)


def gmm_claims(
    runs: Runs,
    delta_sweep: Mapping[tuple[float, int], RunRecord | None],
    term_std: Mapping[int, np.ndarray],
    snr_slopes: np.ndarray,
    bias: Mapping[int, float],
) -> dict[str, Claim]:
    """The claims on the mixture of section 4.3.

    Args:
        runs: the records of Figure 4 and, for GMM-18, of WWS, by method and K.
        delta_sweep: δ-WW's records by (delta, K).
        term_std: standard deviations of the two terms of Eq. 2, ``[R, 2]`` by K.
        snr_slopes: slopes for theta and phi, ``[groups, 2]``.
        bias: size of wake-phi's bias by K.
    """
    given: dict[str, dict[Any, Any]] = {
        TERMS: {("reinforce", K): np.log(v[:, 0] / v[:, 1]) for K, v in term_std.items()},
        SLOPES: {"theta": snr_slopes[:, 0], "phi": snr_slopes[:, 1]} if len(snr_slopes) else {},
        BIAS: dict(bias),
    }
    evidence = {
        "runs": Evidence({cell: record for cell, record in runs.items() if cell[0] != "wws"}, given=given),
        "with sleep": Evidence({cell: record for cell, record in runs.items() if cell[0] in ("ww", "wws")}),
        "delta sweep": Evidence(delta_sweep),
    }
    return judge(RULES, evidence)
