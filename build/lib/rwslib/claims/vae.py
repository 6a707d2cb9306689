"""The claims about the continuous latent variable model, section 4.2 of the paper."""

import numpy as np

from rwslib.claims.common import (
    Claim,
    Effects,
    Rule,
    Runs,
    above,
    gains,
    improves,
    judge,
    noted_means,
    particles,
    title,
    with_interval,
)

LARGE_K = 128  # up to which the paper sees IWAE's model improve


def vae_claims(runs: Runs) -> dict[str, Claim]:
    """Claims VAE-1 to VAE-7, on the continuous model of section 4.2.

    Cells of one or two replicates say little about their own spread, so all cells of a metric share it,
    see ``pooled_means``.  K = 1 is left out, where the expectation of WW's gradient for phi is zero.

    Args:
        runs: records of IWAE, WW and, for VAE-7, WWS; a claim is judged on the cells that are there.
    """
    runs = {cell: record for cell, record in runs.items() if cell[1] > 1}
    used: set = set()
    log_marginal, kl, units, noise = noted_means(runs, used, "log_marginal", "kl_q_p", "active_units")

    def levels_off() -> Effects:
        steps = gains(log_marginal, "iwae")
        before = [gain for (_, b), gain in steps.items() if b == LARGE_K]
        return {
            f"gain up to K {LARGE_K} above that from {a} to {b}": with_interval(before[0] - gain)
            for (a, b), gain in steps.items()
            if before and a >= LARGE_K
        }

    def per_doubling(method: str, sign: int) -> Effects:
        Ks = particles(kl, method)
        if len(Ks) < 2:
            return {}
        slope = np.polyfit(np.log2(Ks), np.stack([kl[method, K] for K in Ks]), 1)[0]
        return {f"{title(method)}, nats per doubling of K": with_interval(sign * slope)}

    def as_quiet() -> Effects:
        return {
            f"within a factor of two, K {K}": with_interval(
                np.log(2) - abs(noise["ww", K] - noise["iwae", K])
            )
            for K in particles(noise, "iwae", "ww")
            if np.isfinite(noise["ww", K][0] - noise["iwae", K][0])
        }

    rules = {
        "VAE-1": Rule(
            "Figure 2, middle",
            f"WW and IWAE learn a better model with more particles, up to {LARGE_K}",
            "gain in log evidence of the test images with each step in particles, nats",
            ("fig-vae-figure2",),
            lambda: improves(log_marginal, "iwae", LARGE_K) | improves(log_marginal, "ww", LARGE_K),
        ),
        "VAE-2": Rule(
            "Figure 2, middle",
            f"IWAE's model hardly improves beyond {LARGE_K} particles",
            f"gain in log evidence of the step up to {LARGE_K} particles, minus that of a later step, nats",
            ("fig-vae-figure2",),
            levels_off,
        ),
        "VAE-3": Rule(
            "Figure 2, right",
            "WW's inference network is closer to the posterior than IWAE's",
            "KL from the posterior under IWAE minus that under WW, nats",
            ("fig-vae-figure2",),
            lambda: above("KL", kl, "iwae", "ww"),
        ),
        "VAE-4": Rule(
            "Figure 2, right",
            "IWAE's inference network gets worse with more particles, WW's does not",
            "slope of the KL from the posterior against the logarithm of K; of WW with its sign changed",
            ("fig-vae-figure2",),
            lambda: per_doubling("iwae", 1) | per_doubling("ww", -1),
        ),
        "VAE-5": Rule(
            "Table 1",
            "WW has at least as many active units as IWAE",
            "active units of WW minus those of IWAE, plus half a unit",
            ("fig-vae-units",),
            lambda: above("units, half a unit granted", units, "ww", "iwae", 0.5),
        ),
        "VAE-6": Rule(
            "Figure 2, left",
            "WW's learning curves are as quiet as IWAE's",
            "logarithm of two, minus the distance of the logarithms of the curves' roughness",
            ("fig-vae-curves",),
            as_quiet,
        ),
        "VAE-7": Rule(
            "text",
            "mixing sleep into WW helps on this model",
            "gain in log evidence and fall of the KL from WW to WWS, nats",
            ("fig-vae-others",),
            lambda: above("log evidence", log_marginal, "wws", "ww") | above("KL", kl, "ww", "wws"),
        ),
    }
    return judge(rules, used, runs)
