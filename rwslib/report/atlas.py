"""What the page of methods shows of the stored measurements of ``rwslib.report.comparison``."""

import json
import math
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from rwslib.methods import METHODS
from rwslib.report.claims import listed
from rwslib.report.comparison import MEANS, STEPS, VARIANTS, method_of, rounded
from rwslib.report.markup import table
from rwslib.report.plotting import method_style, shared_legend, use_style

Atlas = dict[str, Any]
CHAPTERS_Q = {"choice": STEPS.index(1.0), "coin": STEPS.index(1.0), "smooth": MEANS.index(0.9)}
TITLES = {"choice": "a choice of four", "coin": "a coin", "smooth": "a smooth latent"}
QUANTITIES = {"bias": "bias", "noise": "noise", "signal": "signal-to-noise ratio"}
DASHES = {"-": "", "--": "7 3", "-.": "7 3 2 3", ":": "2 3"}  # of lines in SVG, by their name in matplotlib
SHOWN = ("ww", "dww", "vimco", "ovis", "reinforce", "rloo", "rebar")  # at first


def read(path: Path) -> Atlas:
    """The stored measurements, by problem."""
    return json.loads(path.read_text(encoding="utf-8"))["problems"]


def value(atlas: Atlas, problem: str, row: str, quantity: str, K: int, at: int | None = None) -> Any:
    """One number, None where there is none; a sampled bias within four standard errors is zero.

    Args:
        at: which q, by its place in the line; default: the chapter's.
    """
    stored = atlas[problem]["rows"][row]
    if K not in stored["particles"] or stored[quantity] is None:
        return None
    line, column = CHAPTERS_Q[problem] if at is None else at, stored["particles"].index(K)
    found = stored[quantity][line][column]
    if quantity == "bias" and found is not None and "bias_error" in stored:
        return found if found > 4 * stored["bias_error"][line][column] else 0.0
    return found


def distance(atlas: Atlas, problem: str, at: int | None = None) -> str:
    """How wrong q is, in nats; the chapter's q by default."""
    return digits(atlas[problem]["wrongness"][CHAPTERS_Q[problem] if at is None else at])


def percent(share: float | None) -> str:
    """A share; empty where there is none."""
    if share is None:
        return ""
    return f"{100 * share:.0f} %" if share >= 0.1 or not share else f"{100 * share:.1g} %"


def digits(number: float | None) -> str:
    """Two digits; empty where there is none."""
    if number is None:
        return ""
    return f"{number:.0f}" if number >= 100 else f"{number:.2g}"


def line_style(row: str) -> dict[str, Any]:
    """Colour, line style and label; variants of a method are dotted in its colour."""
    if row in METHODS:
        return method_style(row)
    return {"color": VARIANTS[row].style[0], "linestyle": ":", "label": VARIANTS[row].title}


def bias_with_error(atlas: Atlas, problem: str, row: str, K: int) -> str:
    """The bias for the chapter's q; one that counts as zero with its standard error, if it was sampled."""
    found, stored = value(atlas, problem, row, "bias", K), atlas[problem]["rows"][row]
    if found != 0 or "bias_error" not in stored:
        return percent(found)
    return f"0 % ± {percent(stored['bias_error'][CHAPTERS_Q[problem]][stored['particles'].index(K)])}"


def comparison(atlas: Atlas, problem: str, particles: tuple[int, ...] = (2, 10)) -> str:
    """The table of bias, noise and cost at one problem, for the chapter's q."""
    rows = []
    for row, stored in atlas[problem]["rows"].items():
        bias = [bias_with_error(atlas, problem, row, K) for K in particles]
        noise = [digits(value(atlas, problem, row, "noise", K)) for K in particles]
        method, costs = method_of(row), dict(zip(stored["particles"], stored["evaluations"], strict=True))
        rows.append([method.title, method.follows, *bias, *noise, str(costs.get(particles[-1], ""))])
    columns = [f"{what}, K = {K}" for what in ("bias", "noise") for K in particles]
    header = ["method", "follows", *columns, f"evaluations of p, K = {particles[-1]}"]
    return table(header, rows, wide=False)


def findings(atlas: Atlas) -> str:
    """What the atlas says first."""

    def change(row: str, quantity: str, Ks: tuple[int, int], at: int | None = None) -> str:
        """How a number moves from the chapter's q and the first K to another q and the second K."""
        form = percent if quantity == "bias" else digits
        ends = [value(atlas, "choice", row, quantity, K, q) for K, q in zip(Ks, (None, at), strict=True)]
        before, after = map(form, ends)
        if before == after:
            return f"stays at {before}"
        return f"{'rises' if ends[1] > ends[0] else 'falls'} from {before} to {after}"

    few_many = (2, 100)
    wrong = atlas["choice"]["wrongness"]
    signal = [
        value(atlas, "choice", "vimco", "signal", K) for K in atlas["choice"]["rows"]["vimco"]["particles"]
    ]
    return "\n".join(
        [
            f"- On a choice, from $K = {few_many[0]}$ to ${few_many[1]}$, WW's bias "
            f"{change('ww', 'bias', few_many)}, and its signal-to-noise ratio "
            f"{change('ww', 'signal', few_many)}. VIMCO {bias_in_words(atlas, 'vimco')}, and its ratio "
            f"stays between {digits(min(signal))} and {digits(max(signal))}.",
            f"- How wrong $q$ is matters, too: from {digits(wrong[CHAPTERS_Q['choice']])} to "
            f"{digits(wrong[-1])} nats, WW's bias at $K = 10$ {change('ww', 'bias', (10, 10), -1)}, "
            f"and that of δ-WW {change('dww', 'bias', (10, 10), -1)}.",
            f"- {ovis_finding(atlas)}",
        ]
    )


def bias_in_words(atlas: Atlas, row: str) -> str:
    """Whether a method has a bias on a choice, at the chapter's q."""
    particles = atlas["choice"]["rows"][row]["particles"]
    largest = percent(max(value(atlas, "choice", row, "bias", K) for K in particles))
    return "has no bias" if largest == "0 %" else f"has a bias of up to {largest}"


def ovis_finding(atlas: Atlas) -> str:
    """Where OVIS has more signal than VIMCO."""
    particles = atlas["choice"]["rows"]["ovis"]["particles"]

    def ratio(row: str, K: int, at: int | None = None) -> float:
        return value(atlas, "choice", row, "signal", K, at)

    ahead = [sum(ratio("ovis", K, at) > ratio("vimco", K, at) for K in particles) for at in range(len(STEPS))]
    first, last = particles[0], particles[-1]
    near, far = distance(atlas, "choice", 0), distance(atlas, "choice", -1)
    return (
        f"OVIS {bias_in_words(atlas, 'ovis')}. Its ratio is {digits(ratio('ovis', first))} beside VIMCO's "
        f"{digits(ratio('vimco', first))} at $K = {first}$, and {digits(ratio('ovis', last))} beside "
        f"{digits(ratio('vimco', last))} at $K = {last}$. From the nearest $q$ ({near} nats) to the "
        f"farthest ({far}) OVIS is ahead at {listed(ahead)} of the {len(particles)} values of $K$."
    )


def signals(atlas: Atlas, rows: tuple[str, ...] = ("vimco", "ovis", "ovis_gamma_1", "ww")) -> str:
    """The table of signal-to-noise ratios by K, exact, for the chapter's q."""
    particles = atlas["choice"]["rows"]["ovis"]["particles"]
    lines = [
        [method_of(row).title, *(digits(value(atlas, "choice", row, "signal", K)) for K in particles)]
        for row in rows
    ]
    return table(["method", *(f"K = {K}" for K in particles)], lines, wide=True)


# -- what to take ------------------------------------------------------------------------------------

# words, problem, where q stands (None: the chapter's), evaluations of p, what is followed, points between?
SITUATIONS = (
    ("a choice; the network is to approach the posterior", "choice", None, 20, "KL(p, q)", False),
    ("the same, with $q$ far off", "choice", -1, 20, "KL(p, q)", False),
    ("the same, two evaluations of $p$", "choice", None, 2, "KL(p, q)", False),
    ("a choice; the bound is to be climbed", "choice", None, 20, "bound", False),
    ("the same, with $q$ far off", "choice", -1, 20, "bound", False),
    ("a choice; the bound, points between categories", "choice", None, 20, "bound", True),
    ("a choice; the bound, two evaluations of $p$", "choice", None, 2, "bound", False),
    ("the same, and $p$ takes points between categories", "choice", None, 2, "bound", True),
    ("a choice; the ELBO is to be climbed", "choice", None, 20, "ELBO", False),
    ("the same, and $p$ takes points between categories", "choice", None, 20, "ELBO", True),
    ("a coin; the ELBO", "coin", None, 20, "ELBO", False),
    ("the same, and $p$ takes points between its sides", "coin", None, 20, "ELBO", True),
    ("a coin; the bound", "coin", None, 20, "bound", False),
    ("a smooth latent; the bound", "smooth", None, 20, "bound", False),
    ("a smooth latent; the posterior", "smooth", None, 20, "KL(p, q)", False),
)


def candidates(atlas: Atlas, situation: tuple) -> list[tuple[float, str, int]]:
    """Signal-to-noise ratio, row and K of the methods that fit a situation, the best first."""
    _, problem, at, budget, follows, between = situation
    found = []
    for row, stored in atlas[problem]["rows"].items():
        method, costs = method_of(row), zip(stored["particles"], stored["evaluations"], strict=True)
        K = max((K for K, cost in costs if cost <= budget), default=None)
        if K is None or method.ablation or method.follows != follows:
            continue
        if (between or method.latent != "categorical") and (
            follows == "KL(p, q)" or value(atlas, problem, row, "bias", K, at) == 0
        ):
            found.append((value(atlas, problem, row, "signal", K, at), row, K))
    return sorted(found, reverse=True)


def take_this_when(atlas: Atlas) -> str:
    """Per situation the method with the largest signal-to-noise ratio, and the next."""
    rows = []
    for situation in SITUATIONS:
        words, problem, at, budget, *_ = situation
        (signal, row, K), *others = candidates(atlas, situation)
        bias = percent(value(atlas, problem, row, "bias", K, at))
        after = "; ".join(
            f"{method_of(other).title} {digits(ratio)}, K = {k}" for ratio, other, k in others[:2]
        )
        rests_on = f"{digits(signal)}, K = {K}" + (f", bias {bias}" if bias != "0 %" else "")
        rows.append([words, str(budget), f"**{method_of(row).title}**", rests_on, after or "none"])
    header = ["when", "evaluations of p", "take this", "signal-to-noise ratio", "next"]
    return table(header, rows, wide=False)


# -- the figure --------------------------------------------------------------------------------------


def figure_data(atlas: Atlas) -> str:
    """All that the interactive figure draws, as HTML that holds JSON; three digits of each number."""
    found: dict[str, Any] = {}
    for problem, words in TITLES.items():
        rows = {}
        for row, stored in atlas[problem]["rows"].items():
            style, line = line_style(row), line_style(row)["linestyle"]
            rows[row] = {
                "title": style["label"],
                "color": style["color"],
                "dash": DASHES[line] if isinstance(line, str) else " ".join(map(str, line[1])),
                "particles": stored["particles"],
                "evaluations": stored["evaluations"],
            } | {
                quantity: [
                    [rounded(value(atlas, problem, row, quantity, K, at), 3) for K in stored["particles"]]
                    for at in range(len(atlas[problem]["wrongness"]))
                ]
                for quantity in QUANTITIES
            }
        found[problem] = {
            "title": words,
            "start": CHAPTERS_Q[problem],
            "wrongness": [rounded(wrong, 3) for wrong in atlas[problem]["wrongness"]],
            "rows": rows,
        }
    data = json.dumps({"quantities": QUANTITIES, "shown": SHOWN, "problems": found}, separators=(",", ":"))
    return f'```{{raw}} html\n<script type="application/json" id="atlas-data">{data}</script>\n```'


def draw(atlas: Atlas, target: Path, K: int = 10) -> None:
    """Save the figure that stands where nothing can be chosen: one column per quantity, on the choice."""
    use_style()
    figure, axes = plt.subplots(2, 3, figsize=(9, 5.6), sharey="col")
    wrong, here = atlas["choice"]["wrongness"], CHAPTERS_Q["choice"]
    for (quantity, label), (above, below) in zip(QUANTITIES.items(), axes.T, strict=True):
        for row in SHOWN:
            particles = atlas["choice"]["rows"][row]["particles"]
            by_particles = [value(atlas, "choice", row, quantity, k) or math.nan for k in particles]
            by_wrongness = [
                value(atlas, "choice", row, quantity, K, at) or math.nan for at in range(len(wrong))
            ]
            above.plot(particles, by_particles, marker="o", markersize=3, **line_style(row))
            below.plot(wrong, by_wrongness, marker="o", markersize=3, **line_style(row))
        above.set(xscale="log", yscale="log", title=label, xlabel="particles K")
        above.set_xticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
        below.set(xscale="log", yscale="log", xlabel="KL(p, q) in nats")
        for ax in (above, below):
            ax.minorticks_off()
    axes[0, 0].set_ylabel(f"at KL(p, q) = {digits(wrong[here])} nats")
    axes[1, 0].set_ylabel(f"at K = {K}")
    shared_legend(figure, axes[0, 1])
    figure.savefig(target, metadata={"Date": None})
    plt.close(figure)


def largest_error(atlas: Atlas) -> str:
    """The largest standard error of a sampled noise, as a share of it."""
    sampled = [row for problem in atlas.values() for row in problem["rows"].values() if "noise_error" in row]
    return percent(max(np.max(np.divide(row["noise_error"], row["noise"])) for row in sampled))
