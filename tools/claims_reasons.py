"""Why a claim is mixed or does not hold, by ablations: paragraphs whose numbers come from the records.

Each function takes a chapter's claims and the names of the open ones, and returns a paragraph, or nothing
where the records that it speaks of are missing or none of the claims that it explains is open.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from markup import minus, table

from rwslib import records
from rwslib.claims.air import FAILED, air_claims, without_failures
from rwslib.claims.common import difference
from rwslib.experiments.vae import PAPER_STAGES, epochs_after
from rwslib.methods import METHODS
from rwslib.records import RunRecord

Entries = Mapping[str, Mapping[str, Any]]
Runs = dict[tuple[str, int], RunRecord]


def runs_of(entries: Entries) -> Runs:
    """The records behind claims, by method and particles; those on other settings are left out."""
    judged = [entry for name, entry in entries.items() if name not in ("GMM-13", "AIR-6", "AIR-7")]
    found = {record["key"]: record["config"] for entry in judged for record in entry["records"]}
    return {
        (config["method"], config["num_particles"]): record
        for config in sorted(found.values(), key=lambda config: config["num_particles"])
        if (record := records.find(config))  # a reader's own store may be elsewhere
    }


def twins(runs: Runs, **changes: Any) -> dict[tuple[str, int], tuple[RunRecord, RunRecord]]:
    """Runs with the record that differs in these fields alone, or has fewer replicates, where found."""
    found = {}
    for cell, run in runs.items():
        for num_runs in range(run.config["num_runs"], 0, -1):
            if twin := records.find({**run.config, **changes, "num_runs": num_runs}):
                found[cell] = run, twin
                break
    return found


def concerned(names: Iterable[str], open_ones: set[str]) -> str:
    """Those of some claims that are open, as a bracket of links."""
    links = [f"[{name}](#{name.lower()})" for name in names if name in open_ones]
    return f"({', '.join(links)})" if links else ""


def cell_name(method: str, K: int) -> str:
    return f"{METHODS[method].title}, K = {K}"


def paragraph(title: str, claims: str, *sentences: str) -> str:
    """A paragraph with a title, one sentence a line."""
    return minus("\n".join([f"**{title}** {claims}.".replace(" .", "."), *sentences]))


# -- the mixture -------------------------------------------------------------------------------------


def vimco_baseline(entries: Entries, open_ones: set[str]) -> str:
    """VIMCO with and without the log K of its baseline."""
    claims = concerned(("GMM-2", "GMM-3", "GMM-4", "GMM-7", "GMM-12"), open_ones)
    vimco = {cell: run for cell, run in runs_of(entries).items() if cell[0] == "vimco"}
    pairs = {K: pair for (_, K), pair in twins(vimco, method="vimco_no_log_k").items()}
    if not claims or len(pairs) < 2:
        return ""
    quantities = {
        "error of q": lambda run: run.metrics["posterior_l2_final"],
        "error of p": lambda run: run.metrics["prior_l2_final"],
        "spread of the gradient": lambda run: run.metrics["phi_gradient_std"].mean(axis=1),
    }
    rows = [
        [f"{name}, {which}", *(f"{np.median(get(pair[i])):.3g}" for pair in pairs.values())]
        for name, get in quantities.items()
        for i, which in enumerate(("with log K", "without"))
    ]
    second, last = sorted(pairs)[-3:][0], max(pairs)
    changes = []
    for i in (0, 1):
        before, after = (pairs[K][i].metrics["posterior_l2_final"] for K in (second, last))
        value, low, high = difference(after, before)
        changes.append(f"{value:+.3f} ({low:+.3f} to {high:+.3f})")
    return paragraph(
        "VIMCO's baseline",
        claims,
        "The code of the time lacked the $-\\log K$ in VIMCO's baseline.",
        "That keeps the estimator unbiased and makes it noisier.",
        f"From {second} particles to {last} the median error of VIMCO's network changes by {changes[0]} with "
        f"the $\\log K$, and by {changes[1]} without.",
        "Medians over the replicates:\n",
        table(["", *(f"K = {K}" for K in pairs)], rows, wide=False),
    )


def nothing_left(entries: Entries, open_ones: set[str], floor: float = 0.01) -> str:
    """WW, and whoever else is there, so close to the true weights that particles cannot help any more."""
    claims = concerned(("GMM-1", "GMM-7", "GMM-12"), open_ones)
    runs = runs_of(entries)
    errors = {cell: np.median(run.metrics["prior_l2_final"]) for cell, run in runs.items()}
    good = {cell: error for cell, error in errors.items() if error < floor}
    if not claims or not any(method == "ww" for method, _ in good):
        return ""
    start = np.median(next(iter(runs.values())).metrics["prior_l2"][:, 0])
    named = [f"{error:.4f} for {cell_name(*cell)}" for cell, error in good.items()]
    return paragraph(
        "Nothing left to gain",
        claims,
        "Where the true mixture weights are found, neither more particles nor another method can do better.",
        f"From an error of {start:.2f} at the start, these medians end below {floor}: {'; '.join(named)}.",
    )


def concrete_spread(entries: Entries, open_ones: set[str]) -> str:
    """How loud Concrete's gradient is beside VIMCO's."""
    claims = concerned(("GMM-5",), open_ones)
    runs = runs_of(entries)
    both = [K for method, K in runs if method == "concrete" and ("vimco", K) in runs]
    if not claims or not both:
        return ""
    spread = {cell: np.median(run.metrics["phi_gradient_std"].mean(axis=1)) for cell, run in runs.items()}
    ratios = [f"{spread['concrete', K] / spread['vimco', K]:.2g} at K = {K}" for K in both]
    return paragraph(
        "Concrete's gradient",
        claims,
        f"The ratio of its spread to VIMCO's is {', '.join(ratios)}.",
        "Here prior and posterior are relaxed at one temperature, which gives a bound of the relaxed model; "
        "the authors' code takes the prior at the arg max instead.",
        "That variant was not run.",
    )


def defence(entries: Entries, open_ones: set[str]) -> str:
    """The errors of δ-WW by δ."""
    claims = concerned(("GMM-13",), open_ones)
    configs = [record["config"] for record in entries["GMM-13"]["records"]]
    swept = [record for config in configs if (record := records.find(config))]
    found = {(run.config["delta"], run.config["num_particles"]): run.metrics for run in swept}
    if not claims or not found:
        return ""
    deltas, Ks = sorted({delta for delta, _ in found}), sorted({K for _, K in found})
    rows = [
        [f"{name}, K = {K}", *(f"{np.median(found[delta, K][metric]):.3g}" for delta in deltas)]
        for name, metric in (("error of p", "prior_l2_final"), ("error of q", "posterior_l2_final"))
        for K in Ks
    ]
    return paragraph(
        "How much defence",
        claims,
        "What δ does depends on how many particles there are to share; medians over the replicates:\n",
        table(["", *(f"δ = {delta}" for delta in deltas)], rows, wide=False),
    )


# -- the continuous model ----------------------------------------------------------------------------


def stages_left(entries: Entries, open_ones: set[str]) -> str:
    """How far the models still move in the last stage that was run."""
    claims = concerned(entries, open_ones)
    runs = runs_of(entries)
    stages = min((run.config["num_stages"] for run in runs.values()), default=0)
    if not claims or not 2 <= stages < PAPER_STAGES:
        return ""
    ends = [epochs_after(stage) for stage in range(1, stages + 1)]
    curves = {cell: np.median(run.metrics["test_bound"], axis=0)[ends] for cell, run in runs.items()}
    rows = [[cell_name(*cell), *(f"{value:.2f}" for value in curve)] for cell, curve in curves.items()]
    moved = [curve[-1] - curve[-2] for curve in curves.values()]
    ess = [run.metrics["ess"].mean() for run in runs.values()]
    particles = next(iter(runs.values())).config["eval_particles"]
    return paragraph(
        "Length",
        claims,
        f"The paper has {PAPER_STAGES} stages, so these models are not finished: in the last of {stages} the "
        f"bound on test images moved by {min(moved):+.1f} to {max(moved):+.1f} nats.",
        "Which method is ahead after so few epochs need not be ahead at the end.",
        "The bound with 64 particles, medians over the replicates:\n",
        table(["", *(f"epoch {end}" for end in ends)], rows, wide=False),
        "\nDivergences are estimated from below, and the larger one is, the more it is understated: the "
        f"effective sample size of the {particles} particles is {min(ess):.1f} to {max(ess):.1f} on average.",
    )


def half_precision(entries: Entries, open_ones: set[str]) -> str:
    """Runs that differ in the precision of the matrix products alone."""
    lines = []
    for precision in ("bfloat16", "float32"):
        runs = {c: run for c, run in runs_of(entries).items() if run.config["precision"] != precision}
        for cell, (run, twin) in twins(runs, precision=precision).items():
            evidence, divergence = (
                twin.metrics[metric].mean() - run.metrics[metric].mean()
                for metric in ("log_marginal", "kl_q_p")
            )
            lines.append(
                f"{cell_name(*cell)}, in {precision}: {evidence:+.2f} nats of evidence, "
                f"{divergence:+.2f} of divergence"
            )
    if not open_ones or not lines:
        return ""
    return paragraph("Precision", "", f"What runs in the other precision change: {'; '.join(lines)}.")


# -- scenes ------------------------------------------------------------------------------------------


def few_replicates(entries: Entries, open_ones: set[str]) -> str:
    """Claims without a finite interval."""
    endless = {n for n in open_ones if any(effect["low"] is None for effect in entries[n]["effects"])}
    if not endless:
        return ""
    return paragraph(
        "Replicates",
        concerned(entries, endless),
        "Without two replicates of any setting there is no spread to draw from.",
        "Intervals are infinite then, and no verdict can be more than mixed, whatever the values are.",
    )


def failed_runs(entries: Entries, open_ones: set[str]) -> str:
    """What runs that did not learn to count do to the intervals of all."""
    runs = runs_of(entries)
    failed = [
        f"{cell_name(*cell)}, {100 * value:.1f} %"
        for cell, run in runs.items()
        for value in run.metrics["count_accuracy_sample"]
        if value < FAILED
    ]
    if not open_ones or not failed:
        return ""
    changed = [
        f"{name}: {claim.verdict}"
        for name, claim in air_claims(without_failures(runs)).items()
        if name in open_ones and claim.verdict not in (entries[name]["verdict"], "not run")
    ]
    return paragraph(
        "Runs that failed",
        concerned(entries, open_ones),
        f"Some replicates did not learn to count; right are: {'; '.join(failed)}.",
        "All cells share one pool of deviations, so a failure widens every interval.",
        f"The verdicts that change without these replicates: {'; '.join(changed) or 'none'}.",
    )


def unfinished_scenes(entries: Entries, open_ones: set[str]) -> str:
    """The lead of VIMCO's model over WW's in the course of training, by K."""
    claims = concerned(("AIR-1", "AIR-2", "AIR-3", "AIR-4", "AIR-5"), open_ones)
    runs = runs_of(entries)
    both = [K for method, K in runs if method == "ww" and ("vimco", K) in runs]
    if not claims or not both:
        return ""
    rows, counts = [], []
    for K in both:
        vimco, ww = (np.median(runs[m, K].metrics["test_bound"], axis=0) for m in ("vimco", "ww"))
        at = [round(quarter * (len(ww) - 1) / 4) for quarter in range(1, 5)]
        rows.append([f"K = {K}", *(f"{value:+.1f}" for value in (vimco - ww)[at])])
        for method in ("ww", "vimco"):
            right = 100 * runs[method, K].metrics["count_accuracy_sample"].mean()
            counts.append(f"{cell_name(method, K)}: {right:.1f} %")
    iterations = runs["ww", both[0]].config["num_iterations"]
    return paragraph(
        "Length",
        claims,
        f"The paper's runs have two million iterations, these have {iterations:,}.",
        "VIMCO moves its boxes along a derivative, WW by comparing particles.",
        "By how many nats VIMCO's bound on test scenes is ahead of WW's in the course of a run:\n",
        table(["", "at 1/4", "1/2", "3/4", "the end"], rows, wide=False),
        f"\nCounts that one sample of the network gets right: {'; '.join(counts)}.",
    )


def warm_up(entries: Entries, open_ones: set[str]) -> str:
    """What the warm-up is worth."""
    shorter = twins(runs_of(entries), num_iterations=8000, eval_scenes=500)
    with_warm_up = {cell: short for cell, (_, short) in shorter.items()}
    lines = []
    for cell, pair in twins(with_warm_up, warmup_iterations=0).items():
        with_it, without = (100 * record.metrics["count_accuracy_sample"].mean() for record in pair)
        lines.append(f"{cell_name(*cell)}: {with_it:.1f} % with it, {without:.1f} % without")
    if not open_ones or not lines:
        return ""
    return paragraph(
        "The recipe",
        "",
        "Whether such a model learns to count depends on choices that the paper does not report.",
        f"One of them is the warm-up; counts that are right: {'; '.join(lines)}.",
    )


REASONS: dict[str, tuple[Callable[[Entries, set[str]], str], ...]] = {
    "02_gmm": (vimco_baseline, nothing_left, concrete_spread, defence),
    "03_vae": (stages_left, half_precision),
    "04_air": (few_replicates, failed_runs, unfinished_scenes, warm_up),
}
