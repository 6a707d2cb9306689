"""The claims about the continuous latent variable model, section 4.2 of the paper."""

from itertools import pairwise

import numpy as np

from rwslib.report.claims.effects import QUANTITIES, Effect, Evidence, Runs, title
from rwslib.report.claims.rules import Claim, Rule, judge

LARGE_K = 128  # up to which the paper sees IWAE's model improve
EVIDENCE, DIVERGENCE, ELBO = "log evidence of images", "divergence on images", "ELBO of images"


def levels_off(evidence: Evidence) -> list[Effect]:
    """Gain of IWAE's step up to 128 particles, minus that of each later step."""
    Ks = [K for K in evidence.particles if K < LARGE_K][-1:]
    later = [LARGE_K, *(K for K in evidence.particles if K > LARGE_K)]
    return [
        evidence.effect(
            f"gain from K {before} to {LARGE_K} above that from {a} to {b}",
            EVIDENCE,
            *(("iwae", K) for K in (before, LARGE_K, a, b)),
            combine=lambda c, d, e, f: (d - c) - (f - e),
        )
        for before in Ks
        for a, b in pairwise(later)
    ]


def slope(
    evidence: Evidence, method: str, sign: int, margin: float = 0.0, quantity: str = DIVERGENCE
) -> list[Effect]:
    """Slope of the divergence, or of the ELBO, against the logarithm of K, over the runs of a method."""
    Ks = evidence.particles_of(method)
    if len(Ks) < 2:
        return [Effect(f"{title(method)}, two numbers of particles", quantity, ())]

    def fit(*values: np.ndarray) -> np.ndarray:
        return sign * np.polyfit(np.log2(Ks), np.stack(values), 1)[0]

    label = f"{title(method)}, per doubling of K"
    cells = [(method, K) for K in Ks]
    return [evidence.effect(label, quantity, *cells, combine=fit, margin=margin)]


def as_quiet(evidence: Evidence) -> list[Effect]:
    """Logarithm of two, minus the distance of the logarithms of the curves' roughness, by K."""
    return [
        evidence.within_two(
            f"within a factor of two, K {K}", "log roughness of the curve", ("ww", K), ("iwae", K)
        )
        for K in evidence.particles
    ]


GAIN = "gain in log evidence of the test images with each step in particles, nats"
MIDDLE, RIGHT, FIGURE = "Figure 2, middle", "Figure 2, right", ("fig-vae-figure2",)
RULES = (
    Rule(
        "VAE-1a",
        MIDDLE,
        f"WW learns a better model with more particles, up to {LARGE_K}",
        GAIN,
        FIGURE,
        lambda e: e.steps(EVIDENCE, "ww", LARGE_K),
        ("GEN-3a",),
    ),
    Rule(
        "VAE-1b",
        MIDDLE,
        f"IWAE learns a better model with more particles, up to {LARGE_K}",
        GAIN,
        FIGURE,
        lambda e: e.steps(EVIDENCE, "iwae", LARGE_K),
    ),
    Rule(
        "VAE-2",
        MIDDLE,
        f"IWAE's model hardly improves beyond {LARGE_K} particles",
        f"gain in log evidence of the step up to {LARGE_K} particles, minus that of a later step, nats",
        FIGURE,
        levels_off,
        ("GEN-3b",),
    ),
    Rule(
        "VAE-3",
        RIGHT,
        "WW's inference network is closer to the posterior than IWAE's",
        "divergence from the posterior under IWAE minus that under WW, nats",
        FIGURE,
        lambda e: e.above(DIVERGENCE, "iwae", "ww"),
        ("GEN-3c",),
    ),
    Rule(
        "VAE-4a",
        RIGHT,
        "IWAE's inference network gets worse with more particles",
        "slope of the divergence from the posterior against the logarithm of K, nats per doubling",
        FIGURE,
        lambda e: slope(e, "iwae", 1),
        ("GEN-3b",),
    ),
    Rule(
        "VAE-4b",
        RIGHT,
        "WW's inference network does not get worse with more particles",
        "a tenth of a nat per doubling, minus the slope of the divergence against the logarithm of K",
        FIGURE,
        lambda e: slope(e, "ww", -1, margin=0.1),
        ("GEN-3a",),
    ),
    Rule(
        "VAE-5",
        "Table 1",
        "WW has at least as many active units as IWAE",
        "active units of WW minus those of IWAE, plus half a unit",
        ("fig-vae-units",),
        lambda e: e.above("active units", "ww", "iwae", margin=0.5),
    ),
    Rule(
        "VAE-6",
        "Figure 2, left",
        "WW's learning curves are as quiet as IWAE's",
        "logarithm of two, minus the distance of the logarithms of the curves' roughness",
        ("fig-vae-curves",),
        as_quiet,
    ),
    Rule(
        "VAE-7a",
        "text",
        "mixing sleep into WW gives a better model",
        "gain in log evidence from WW to WWS, nats",
        ("fig-vae-others",),
        lambda e: e.above(EVIDENCE, "wws", "ww"),
    ),
    Rule(
        "VAE-7b",
        "text",
        "mixing sleep into WW gives an inference network closer to the posterior",
        "fall of the divergence from WW to WWS, nats",
        ("fig-vae-others",),
        lambda e: e.above(DIVERGENCE, "ww", "wws"),
    ),
    Rule(
        "VAE-8",
        "conclusion",
        "WW learns as good a model as IWAE",
        "log evidence of the test images under WW minus that under IWAE, plus the smallest difference that "
        "matters, nats",
        FIGURE,
        lambda e: e.above(EVIDENCE, "ww", "iwae", margin=QUANTITIES[EVIDENCE].smallest),
        ("GEN-3c",),
    ),
    Rule(
        "VAE-9a",
        "section 4",
        "WW's ELBO rises with more particles",
        "slope of the ELBO of the test images against the logarithm of K, nats per doubling",
        ("vae-elbo",),
        lambda e: slope(e, "ww", 1, quantity=ELBO),
        ("GEN-3a",),
    ),
    Rule(
        "VAE-9b",
        "section 4",
        "IWAE's ELBO falls with more particles",
        "fall of the ELBO of the test images against the logarithm of K, nats per doubling",
        ("vae-elbo",),
        lambda e: slope(e, "iwae", -1, quantity=ELBO),
        ("GEN-3b",),
    ),
)


def vae_claims(runs: Runs) -> dict[str, Claim]:
    """The claims on the continuous model of section 4.2.

    Cells of one or two replicates say little about their own spread, so all cells of a quantity share it.
    K = 1 is left out, where the expectation of WW's gradient for phi is zero.

    Args:
        runs: records of IWAE, WW and, for VAE-7, WWS, by method and K.
    """
    return judge(RULES, {"runs": Evidence({c: r for c, r in runs.items() if c[1] > 1}, pooled=True)})
