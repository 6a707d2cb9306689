"""The claims about attend, infer, repeat, section 4.1 of the paper."""

from collections.abc import Mapping
from itertools import pairwise

from rwslib.records import RunRecord
from rwslib.report.claims import effects
from rwslib.report.claims.effects import Effect, Evidence, Runs, title
from rwslib.report.claims.rules import Claim, Rule, judge

BEST_K = 10  # up to which the paper sees VIMCO's model of scenes improve
USABLE = 0.9  # count accuracy of an inference network that can be used; the paper gives no number
EVIDENCE, DIVERGENCE, ELBO = "log evidence of scenes", "divergence on scenes", "ELBO of scenes"


def without_failures(runs: Runs) -> dict[tuple[str, int], RunRecord]:
    """Records without the replicates that are wrong about more than half of the counts; empty ones go."""
    kept = {cell: effects.without_failures(record) for cell, record in runs.items() if record}
    return {cell: record for cell, record in kept.items() if record}


def beyond(evidence: Evidence, best: int) -> list[Effect]:
    """Loss of VIMCO's log evidence with each step beyond the best number of particles."""
    Ks = [best, *(K for K in evidence.particles if best < K)]
    if len(Ks) < 2:
        return [Effect(f"{title('vimco')}, more than {best} particles", EVIDENCE, (("vimco", best),))]
    return [
        evidence.effect(f"{title('vimco')}, K {a} to {b}", EVIDENCE, ("vimco", a), ("vimco", b))
        for a, b in pairwise(Ks)
    ]


def unusable(evidence: Evidence) -> list[Effect]:
    """How far VIMCO's count accuracy stays below that of a usable network, with the most it was run with."""
    return [
        evidence.effect(
            f"{title('vimco')}, K {K}",
            "counts that are right",
            ("vimco", K),
            combine=lambda a: -a,
            margin=USABLE,
        )
        for K in evidence.particles_of("vimco")[-1:]
    ]


MIDDLE, FIGURE = "Figure 1, middle", ("fig-air-figure1",)
RULES = (
    Rule(
        "AIR-1",
        MIDDLE,
        "WW learns a better model with every step in particles",
        "gain in log evidence of the test scenes with each step in particles, nats",
        FIGURE,
        lambda e: e.steps(EVIDENCE, "ww"),
        ("GEN-3a",),
    ),
    Rule(
        "AIR-2a",
        MIDDLE,
        f"VIMCO's model improves up to {BEST_K} particles",
        f"gain in log evidence with each step up to {BEST_K} particles, nats",
        FIGURE,
        lambda e: e.steps(EVIDENCE, "vimco", BEST_K),
    ),
    Rule(
        "AIR-2b",
        MIDDLE,
        f"VIMCO's model gets worse beyond {BEST_K} particles",
        f"loss of log evidence with each step beyond {BEST_K} particles, nats",
        FIGURE,
        lambda e: beyond(e, BEST_K),
        ("GEN-3b",),
    ),
    Rule(
        "AIR-3",
        "Figure 1, left",
        "VIMCO's learning curves are noisier than WW's",
        "logarithm of the ratio of the curves' roughness over their second half",
        ("fig-air-curves",),
        lambda e: e.above("log roughness of the curve", "vimco", "ww"),
    ),
    Rule(
        "AIR-4",
        "Figure 1, right",
        "WW's inference network is closer to the posterior than VIMCO's",
        "divergence from the posterior under VIMCO minus that under WW, nats",
        FIGURE,
        lambda e: e.above(DIVERGENCE, "vimco", "ww"),
        ("GEN-3c",),
    ),
    Rule(
        "AIR-5a",
        "Figure 1, right",
        "VIMCO's inference network gets worse with every step in particles",
        "growth of its divergence from the posterior with each step in particles, nats",
        FIGURE,
        lambda e: e.steps(DIVERGENCE, "vimco"),
        ("GEN-3b",),
    ),
    Rule(
        "AIR-5b",
        "conclusion",
        "VIMCO's inference network is unusable at the largest number of particles",
        f"{USABLE} minus the share of scenes whose objects it counts right",
        ("fig-air-curves",),
        unusable,
    ),
    Rule(
        "AIR-6",
        "text",
        "with a Gaussian likelihood samples of the model do not resemble the data",
        "distance between the pixels of the model's samples and of scenes, in units of intensity: with "
        "a normal likelihood minus with the Bernoulli likelihood; the normal's own noise puts those of a "
        "perfect model just as far away",
        ("fig-air-likelihoods",),
        lambda e: [e.effect("WW, K 5", "distance of pixel values", "normal", "Bernoulli")],
        rests_on="likelihoods",
        certain="by construction",
    ),
    Rule(
        "AIR-7",
        "ours",
        "ours: VIMCO learns a better model than the variant in the authors' code",
        "log evidence under VIMCO minus that under the variant, nats",
        ("air-runs",),
        lambda e: e.above(EVIDENCE, "vimco", "vimco_air2018", e.particles_of("vimco_air2018")),
        rests_on="variant",
    ),
    Rule(
        "AIR-8",
        "section 4 and conclusion",
        "WW learns a better model of scenes than VIMCO",
        "log evidence of the test scenes under WW minus that under VIMCO, nats",
        FIGURE,
        lambda e: e.above(EVIDENCE, "ww", "vimco"),
        ("GEN-3c",),
    ),
    Rule(
        "AIR-9",
        "section 4",
        "WW's inference network gets closer to the posterior with every step in particles",
        "fall of its divergence from the posterior with each step in particles, nats",
        FIGURE,
        lambda e: e.steps(DIVERGENCE, "ww", sign=-1),
        ("GEN-3a",),
    ),
    Rule(
        "AIR-10",
        "section 4",
        "mixing sleep into WW improves nothing on scenes",
        "log evidence under WW minus that under WWS, and divergence from the posterior under WWS minus that "
        "under WW, plus the smallest difference that matters, nats",
        ("air-runs",),
        lambda e: e.gains_nothing((EVIDENCE, "ww", "wws"), (DIVERGENCE, "wws", "ww")),
        rests_on="with sleep",
    ),
    Rule(
        "AIR-11a",
        "section 4",
        "WW's ELBO rises with every step in particles",
        "gain in the ELBO of the test scenes with each step in particles, nats",
        ("air-elbo",),
        lambda e: e.steps(ELBO, "ww"),
        ("GEN-3a",),
    ),
    Rule(
        "AIR-11b",
        "section 4",
        "VIMCO's ELBO falls with every step in particles",
        "fall of the ELBO of the test scenes with each step in particles, nats",
        ("air-elbo",),
        lambda e: e.steps(ELBO, "vimco", sign=-1),
        ("GEN-3b",),
    ),
)


def air_claims(runs: Runs, likelihoods: Mapping[str, RunRecord] | None = None) -> dict[str, Claim]:
    """The claims on attend, infer, repeat (section 4.1).

    Args:
        runs: records by method and K: of WW, VIMCO and, for AIR-7, of the ablation ``vimco_air2018``, for
            AIR-10 of WWS.  No claim's spread rests on a method that it does not speak of.
        likelihoods: records that differ in the likelihood alone, "Bernoulli" and "normal", for AIR-6.
    """
    pairs = {"runs": ("ww", "vimco"), "variant": ("vimco", "vimco_air2018"), "with sleep": ("ww", "wws")}
    evidence = {
        name: Evidence({cell: record for cell, record in runs.items() if cell[0] in pair}, pooled=True)
        for name, pair in pairs.items()
    }
    return judge(RULES, evidence | {"likelihoods": Evidence(likelihoods or {}, pooled=True)})
