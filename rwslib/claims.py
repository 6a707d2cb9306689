"""The paper's checkable statements as numbers: effects with bootstrap intervals, verdicts by rule.

An effect is signed so that the paper says *positive*: a difference of medians over replicates (of means
where there are only a few), or a logarithm of a ratio.  A claim whose methods or particle numbers were
not run is "not run".
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np

from rwslib.evaluation import bootstrap, verdict
from rwslib.methods import METHODS
from rwslib.models.gmm import NUM_CATEGORIES
from rwslib.records import RunRecord

Cell = tuple[str, int]  # method, num_particles
Runs = Mapping[Cell, RunRecord]
Effects = dict[str, tuple[float, float, float]]  # value, lower and upper end, by setting

BOUND_METHODS = ("reinforce", "vimco", "relax", "concrete")
LARGE_K = 128  # up to which the paper sees IWAE's model improve
BEST_K = 10  # up to which the paper sees VIMCO's model of scenes improve
USABLE = 0.9  # count accuracy of an inference network that can be used; the paper gives no number


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


def vae_claims(runs: Runs) -> dict[str, Claim]:
    """Claims VAE-1 to VAE-7, on the continuous model of section 4.2.

    Cells of one or two replicates say little about their own spread, so all cells of a metric share it,
    see ``_pooled_means``.  K = 1 is left out, where the expectation of WW's gradient for phi is zero.

    Args:
        runs: records of IWAE, WW and, for VAE-7, WWS; a claim is judged on the cells that are there.
    """
    runs = {cell: record for cell, record in runs.items() if cell[1] > 1}
    log_marginal, kl, units = (
        _pooled_means({cell: record.metrics[metric] for cell, record in runs.items()})
        for metric in ("log_marginal", "kl_q_p", "active_units")
    )
    noise = _pooled_means({cell: _log_curve_noise(record) for cell, record in runs.items()})

    def levels_off() -> Effects:
        gains = _gains(log_marginal, "iwae")
        before = [gain for (_, b), gain in gains.items() if b == LARGE_K]
        return {
            f"gain up to K {LARGE_K} above that from {a} to {b}": _effect(before[0] - gain)
            for (a, b), gain in gains.items()
            if before and a >= LARGE_K
        }

    def per_doubling(method: str, sign: int) -> Effects:
        Ks = _particles(kl, method)
        if len(Ks) < 2:
            return {}
        slope = np.polyfit(np.log2(Ks), np.stack([kl[method, K] for K in Ks]), 1)[0]
        return {f"{_title(method)}, nats per doubling of K": _effect(sign * slope)}

    def as_quiet() -> Effects:
        return {
            f"within a factor of two, K {K}": _effect(np.log(2) - abs(noise["ww", K] - noise["iwae", K]))
            for K in _particles(noise, "iwae", "ww")
            if np.isfinite(noise["ww", K][0] - noise["iwae", K][0])
        }

    effects = {
        "VAE-1": (
            f"WW and IWAE learn a better model with more particles, up to {LARGE_K}",
            _improves(log_marginal, "iwae", LARGE_K) | _improves(log_marginal, "ww", LARGE_K),
        ),
        "VAE-2": (f"IWAE's model hardly improves beyond {LARGE_K} particles", levels_off()),
        "VAE-3": (
            "WW's inference network is closer to the posterior than IWAE's",
            _above("KL", kl, "iwae", "ww"),
        ),
        "VAE-4": (
            "IWAE's inference network gets worse with more particles, WW's does not",
            per_doubling("iwae", 1) | per_doubling("ww", -1),
        ),
        "VAE-5": (
            "WW has at least as many active units as IWAE",
            _above("units, half a unit granted", units, "ww", "iwae", 0.5),
        ),
        "VAE-6": ("WW's learning curves are as quiet as IWAE's", as_quiet()),
        "VAE-7": (
            "mixing sleep into WW helps on this model",
            _above("log evidence", log_marginal, "wws", "ww") | _above("KL", kl, "ww", "wws"),
        ),
    }
    return {name: Claim(says, found) for name, (says, found) in effects.items()}


def air_claims(runs: Runs) -> dict[str, Claim]:
    """Claims AIR-1 to AIR-7, on attend, infer, repeat (section 4.1).

    Args:
        runs: records of WW, VIMCO and, for AIR-7, of the ablation ``vimco_air2018``; a claim is judged on
            the cells that are there.
    """
    log_marginal, kl, accuracy = (
        _pooled_means({cell: record.metrics[metric] for cell, record in runs.items()})
        for metric in ("log_marginal", "kl_q_p", "count_accuracy_sample")
    )
    noise = _pooled_means({cell: _log_curve_noise(record) for cell, record in runs.items()})
    last = max(_particles(runs, "vimco"), default=0)

    def turns_down() -> Effects:
        return {
            f"VIMCO, K {b} below {a}": _effect(-gain)
            for (a, b), gain in _gains(log_marginal, "vimco").items()
            if a >= BEST_K
        }

    def unusable() -> Effects:
        gains = _gains(kl, "vimco")
        if not gains:
            return {}
        return {
            f"KL of VIMCO, K {last} above {min(gains)[0]}": _effect(sum(gains.values())),
            f"count accuracy of VIMCO below {USABLE}, K {last}": _effect(USABLE - accuracy["vimco", last]),
        }

    down = turns_down()
    effects = {
        "AIR-1": ("WW learns a better model with every step in particles", _improves(log_marginal, "ww")),
        "AIR-2": (
            f"VIMCO's model improves up to {BEST_K} particles and gets worse beyond",
            _improves(log_marginal, "vimco", BEST_K) | down if down else {},
        ),
        "AIR-3": (
            "VIMCO's learning curves are noisier than WW's",
            _above("log noise", noise, "vimco", "ww"),
        ),
        "AIR-4": (
            "WW's inference network is closer to the posterior than VIMCO's",
            _above("KL", kl, "vimco", "ww"),
        ),
        "AIR-5": ("VIMCO's inference network is unusable at the largest number of particles", unusable()),
        "AIR-6": ("with a Gaussian likelihood samples of the model do not resemble the data", {}),
        "AIR-7": (
            "ours: VIMCO learns a better model than the variant in the authors' code",
            _above("log evidence", log_marginal, "vimco", "vimco_air2018"),
        ),
    }
    return {name: Claim(says, found) for name, (says, found) in effects.items()}


def _particles(cells: Iterable[Cell], *methods: str) -> list[int]:
    """Numbers of particles with which all of these methods were run."""
    return sorted(set.intersection(*({K for m, K in cells if m == method} for method in methods)))


def _gains(means: Mapping[Cell, np.ndarray], method: str) -> dict[tuple[int, int], np.ndarray]:
    """Bootstrap means of what each step in particles adds."""
    steps = pairwise(_particles(means, method))
    return {(a, b): means[method, b] - means[method, a] for a, b in steps}


def _improves(means: Mapping[Cell, np.ndarray], method: str, up_to: float = np.inf) -> Effects:
    return {
        f"{_title(method)}, K {a} to {b}": _effect(gain)
        for (a, b), gain in _gains(means, method).items()
        if b <= up_to
    }


def _above(label: str, means: Mapping[Cell, np.ndarray], a: str, b: str, margin: float = 0) -> Effects:
    return {
        f"{label}: {_title(a)} above {_title(b)}, K {K}": _effect(means[a, K] - means[b, K] + margin)
        for K in _particles(means, a, b)
    }


def _pooled_means(cells: Mapping[Cell, np.ndarray], num_resamples: int = 2000) -> dict[Cell, np.ndarray]:
    """Mean over the replicates ``[R]`` of each cell, then its bootstrap means: ``[1 + num_resamples]``.

    Deviations of the replicates from their cell's mean, widened by sqrt(R / (R - 1)) for the degree of
    freedom that the mean takes, form one pool; a bootstrap mean is the mean plus that of R draws from it.
    Without any cell of two replicates the bootstrap means are NaN.
    """
    generator = np.random.default_rng(0)
    deviations = [(v - v.mean()) * np.sqrt(len(v) / (len(v) - 1)) for v in cells.values() if len(v) > 1]
    pool = np.concatenate(deviations) if deviations else np.array([np.nan])
    return {
        cell: v.mean() + np.r_[0, generator.choice(pool, (num_resamples, len(v))).mean(axis=1)]
        for cell, v in cells.items()
    }


def _effect(values: np.ndarray) -> tuple[float, float, float]:
    """Value with its 95 % interval, from the value followed by its bootstrap draws."""
    if np.isnan(values).any():
        return float(values[0]), -np.inf, np.inf
    return float(values[0]), *map(float, np.percentile(values[1:], [2.5, 97.5]))


def _log_curve_noise(record: RunRecord) -> np.ndarray:
    """Logarithm of the noise on each replicate's training curve ``[R]``: its roughness in the second half.

    Second differences remove the trend; that of independent noise has six times its variance.
    NaN where the curve is too short.
    """
    curve = record.metrics["train_bound"]
    rough = np.diff(curve[:, curve.shape[1] // 2 :], n=2)
    return np.log(rough.std(axis=1) / np.sqrt(6)) if rough.shape[1] > 2 else np.full(len(curve), np.nan)


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
