"""The claims about attend, infer, repeat, section 4.1 of the paper."""

from collections.abc import Mapping
from dataclasses import replace

from rwslib.claims.common import (
    Cell,
    Claim,
    Effects,
    Noted,
    Rule,
    Runs,
    above,
    gains,
    improves,
    judge,
    noted_means,
    particles,
    pooled_means,
    with_interval,
)
from rwslib.records import RunRecord

BEST_K = 10  # up to which the paper sees VIMCO's model of scenes improve
USABLE = 0.9  # count accuracy of an inference network that can be used; the paper gives no number
FAILED = 0.5  # count accuracy below which a run has not learned to count at all


def without_failures(runs: Runs) -> dict[Cell, RunRecord]:
    """Records without the replicates that are wrong about more than half of the counts; empty ones go."""
    kept = {}
    for cell, record in runs.items():
        good = record.metrics["count_accuracy_sample"] >= FAILED
        if good.any():
            metrics = {n: v if n == "iteration" else v[good] for n, v in record.metrics.items()}
            kept[cell] = replace(record, metrics=metrics)
    return kept


def air_claims(runs: Runs, likelihoods: Mapping[str, RunRecord] | None = None) -> dict[str, Claim]:
    """Claims AIR-1 to AIR-7, on attend, infer, repeat (section 4.1).

    Args:
        runs: records of WW, VIMCO and, for AIR-7, of the ablation ``vimco_air2018``; a claim is judged on
            the cells that are there.
        likelihoods: records that differ in the likelihood alone, "Bernoulli" and "normal", for AIR-6.
    """
    used: set = set()
    samples = Noted(likelihoods or {}, used)
    names = ("log_marginal", "kl_q_p", "count_accuracy_sample")
    log_marginal, kl, accuracy, noise = noted_means(runs, used, *names)
    last = max(particles(runs, "vimco"), default=0)

    def turns_down() -> Effects:
        down = {
            f"VIMCO, K {b} below {a}": with_interval(-gain)
            for (a, b), gain in gains(log_marginal, "vimco").items()
            if a >= BEST_K
        }
        return improves(log_marginal, "vimco", BEST_K) | down if down else {}

    def unusable() -> Effects:
        steps = gains(kl, "vimco")
        if not steps:
            return {}
        return {
            f"KL of VIMCO, K {last} above {min(steps)[0]}": with_interval(sum(steps.values())),
            f"count accuracy of VIMCO below {USABLE}, K {last}": with_interval(
                USABLE - accuracy["vimco", last]
            ),
        }

    def unlike_the_data() -> Effects:
        names = ("normal", "Bernoulli")
        distance = pooled_means({name: samples[name].metrics["pixel_distance"] for name in names})
        return {"WW, K 5": with_interval(distance["normal"] - distance["Bernoulli"])}

    rules = {
        "AIR-1": Rule(
            "Figure 1, middle",
            "WW learns a better model with every step in particles",
            "gain in log evidence of the test scenes with each step in particles, nats",
            ("fig-air-figure1",),
            lambda: improves(log_marginal, "ww"),
        ),
        "AIR-2": Rule(
            "Figure 1, middle",
            f"VIMCO's model improves up to {BEST_K} particles and gets worse beyond",
            "gain in log evidence with each step up to ten particles, loss with each later one, nats",
            ("fig-air-figure1",),
            turns_down,
        ),
        "AIR-3": Rule(
            "Figure 1, left",
            "VIMCO's learning curves are noisier than WW's",
            "logarithm of the ratio of the curves' roughness over their second half",
            ("fig-air-curves",),
            lambda: above("log noise", noise, "vimco", "ww"),
        ),
        "AIR-4": Rule(
            "Figure 1, right",
            "WW's inference network is closer to the posterior than VIMCO's",
            "KL from the posterior under VIMCO minus that under WW, nats",
            ("fig-air-figure1",),
            lambda: above("KL", kl, "vimco", "ww"),
        ),
        "AIR-5": Rule(
            "conclusion",
            "VIMCO's inference network is unusable at the largest number of particles",
            "growth of its KL from the fewest particles to the most, nats; "
            f"and how far its count accuracy stays below {USABLE}",
            ("fig-air-figure1", "fig-air-curves"),
            unusable,
        ),
        "AIR-6": Rule(
            "text",
            "with a Gaussian likelihood samples of the model do not resemble the data",
            "distance between the pixels of the model's samples and of scenes, in units of intensity: with "
            "a normal likelihood minus with the Bernoulli likelihood",
            ("fig-air-likelihoods",),
            unlike_the_data,
        ),
        "AIR-7": Rule(
            "ours",
            "ours: VIMCO learns a better model than the variant in the authors' code",
            "log evidence under VIMCO minus that under the variant, nats",
            ("air-runs",),
            lambda: above("log evidence", log_marginal, "vimco", "vimco_air2018"),
        ),
    }
    return judge(rules, used, {**runs, **samples})
