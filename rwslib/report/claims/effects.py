"""Effects: how far runs differ, how sure that is, whether it matters, and whose side it is on."""

import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from itertools import pairwise
from typing import Any

import numpy as np

from rwslib.methods import METHODS
from rwslib.models.gmm import NUM_CATEGORIES
from rwslib.records import RunRecord

Cell = Any  # hashable, mostly (method, num_particles)
Runs = Mapping[Any, RunRecord | None]

NUM_RESAMPLES = 20_000
FAILED = 0.5  # count accuracy below which a run has not learned to count at all
SIDES = {  # of an effect; what one and several of them do
    "agrees": ("agrees with the paper", "agree with the paper"),
    "tie": ("is a tie", "are ties"),
    "open": ("is open", "are open"),
    "contradicts": ("contradicts it", "contradict it"),
    "not run": ("was not run", "were not run"),
}


@dataclass(frozen=True)
class Quantity:
    """What is measured.

    Attributes:
        unit: of its values and differences.
        smallest: the smallest difference that matters; 0 where every difference does.
        reason: why that one.
        values: takes the replicates' values ``[R]`` from a record; None where they come from elsewhere.
    """

    unit: str
    smallest: float
    reason: str
    values: Callable[[RunRecord], np.ndarray] | None = None


def metric(name: str) -> Callable[[RunRecord], np.ndarray]:
    """The final values of one metric."""
    return lambda record: record.metrics[name]


def log_spread(record: RunRecord, share: float = 1) -> np.ndarray:
    """Logarithm of the spread of phi's gradient, averaged over the first ``share`` of training ``[R]``."""
    curve = record.metrics["phi_gradient_std"]
    return np.log(curve[:, : math.ceil(share * curve.shape[1])].mean(axis=1))


def time_to_learn(record: RunRecord, error: float = 0.05) -> np.ndarray:
    """When the error of p(z) is first below 0.05, in per cent of the run ``[R]``; 200 where never."""
    below, iteration = record.metrics["prior_l2"] < error, record.metrics["iteration"]
    first = np.where(below.any(axis=1), iteration[below.argmax(axis=1)], 2 * iteration[-1])
    return 100 * first / iteration[-1]


def log_curve_noise(record: RunRecord) -> np.ndarray:
    """Logarithm of the noise on each replicate's training curve ``[R]``: its roughness in the second half.

    Second differences remove the trend; that of independent noise has six times its variance.
    NaN where the curve is too short.
    """
    curve = record.metrics["train_bound"]
    rough = np.diff(curve[:, curve.shape[1] // 2 :], n=2)
    return np.log(rough.std(axis=1) / np.sqrt(6)) if rough.shape[1] > 2 else np.full(len(curve), np.nan)


def without_failures(record: RunRecord) -> RunRecord | None:
    """The record with those replicates alone that learned to count; None where none did."""
    good = record.metrics["count_accuracy_sample"] >= FAILED
    metrics = {name: v if name == "iteration" else v[good] for name, v in record.metrics.items()}
    return replace(record, metrics=metrics) if good.any() else None


_PROBABILITIES = "it moves each of the twenty probabilities by 0.002 on average, a twentieth of their mean"
_TENTH = "ten per cent of spread are worth a fifth more data per step"
_IMAGES = "two published runs of this model with 50 particles differ by 0.13 nats"
_SCENES = "one per cent of a scene's log evidence, which is about -100 nats"
_EXACT = "computed without noise: every difference counts"
QUANTITIES = {
    "error of p": Quantity("", 0.01, _PROBABILITIES, metric("prior_l2_final")),
    "error of q": Quantity("", 0.01, _PROBABILITIES, metric("posterior_l2_final")),
    "log spread of the gradient": Quantity("", math.log(1.1), _TENTH, log_spread),
    "log spread of the gradient at first": Quantity("", math.log(1.1), _TENTH, lambda r: log_spread(r, 0.1)),
    "time until the error of p is 0.05": Quantity(
        "% of the run", 1, "curves are logged a hundred times per run", time_to_learn
    ),
    "categories given up": Quantity(
        "categories",
        0.5,
        "they are whole numbers",
        lambda record: NUM_CATEGORIES - record.metrics["support_size_final"],
    ),
    "log error of p": Quantity(
        "", math.log(1.1), "ten per cent of an error", lambda r: np.log(r.metrics["prior_l2_final"])
    ),
    "log ratio of the two terms": Quantity("", math.log(1.1), _TENTH),
    "slope of the signal-to-noise ratio": Quantity("", 0, "the claim has its own tolerance"),
    "bias": Quantity("", 0, _EXACT),
    "rounding": Quantity("", 0, _EXACT),
    "log evidence of images": Quantity("nats", 0.1, _IMAGES, metric("log_marginal")),
    "divergence on images": Quantity("nats", 0.1, _IMAGES, metric("kl_q_p")),
    "ELBO of images": Quantity("nats", 0.1, _IMAGES, metric("elbo")),
    "active units": Quantity("units", 0.5, "they are whole numbers", metric("active_units")),
    "log roughness of the curve": Quantity("", math.log(1.1), "ten per cent of roughness", log_curve_noise),
    "log evidence of scenes": Quantity("nats", 1, _SCENES, metric("log_marginal")),
    "divergence on scenes": Quantity("nats", 1, _SCENES, metric("kl_q_p")),
    "ELBO of scenes": Quantity("nats", 1, _SCENES, metric("elbo")),
    "counts that are right": Quantity(
        "of the scenes", 0.01, "one scene of a hundred", metric("count_accuracy_sample")
    ),
    "distance of pixel values": Quantity(
        "of full intensity", 0.01, "less than three of 255 levels of grey", metric("pixel_distance")
    ),
}


@dataclass(frozen=True)
class Effect:
    """By how much runs differ in one setting, signed so that positive agrees with the paper.

    Attributes:
        setting: what is compared.
        quantity: a name in ``QUANTITIES``.
        cells: of the runs that it rests on.
        value: NaN where a run is missing.
        low: lower end of its 95 % interval.
        high: upper end.
        smallest: the smallest difference that matters; 0 where the claim has a margin of its own.
        levels: the quantity in each cell.
        replicates: harmonic mean of their numbers over the cells.
    """

    setting: str
    quantity: str
    cells: tuple[Cell, ...]
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    smallest: float = 0.0
    levels: tuple[float, ...] = ()
    replicates: float = 0.0

    @property
    def side(self) -> str:
        """Whose side it is on, a key of ``SIDES``; a tie is an interval within what matters."""
        if math.isnan(self.value):
            return "not run"
        if -self.smallest <= self.low and self.high <= self.smallest and self.smallest:
            return "tie"
        return "agrees" if self.low > 0 else "contradicts" if self.high < 0 else "open"


Effects = dict[str, Effect]  # by setting


@lru_cache
def median_outcomes(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All medians that a bootstrap sample of so many sorted values can have, with their probabilities.

    A median is the mean of the values in two places, which are equal where the count is odd.

    Returns:
        The lower place, the upper one, and the probability, ``[outcomes]`` each.
    """
    middle = (count + 1) // 2  # this order statistic and, where the count is even, the next one
    ways = math.comb(count, middle)
    below = np.arange(count + 1) / count
    reached = [
        sum(math.comb(count, n) * b**n * (1 - b) ** (count - n) for n in range(middle, count + 1))
        for b in below
    ]
    joint = np.diag(np.diff(reached))  # the two places are the same
    if count % 2 == 0:
        low, high = np.diff(below**middle), -np.diff((1 - below) ** (count - middle))
        apart = np.triu(ways * np.outer(low, high), 1)
        joint += apart - np.diag(apart.sum(axis=1))
    lower, upper = np.triu_indices(count)
    return lower, upper, joint[lower, upper].clip(0)


@dataclass(frozen=True)
class Located:
    """Where a cell's replicates lie, and where other draws of them would: ``[outcomes]``, with weights."""

    value: float
    outcomes: np.ndarray
    weights: np.ndarray
    count: int


class Evidence:
    """Runs by cell, and what follows from their replicates.

    A location is the median of a cell's replicates, whose bootstrap distribution is computed exactly.  Or,
    if ``pooled``, it is the mean, and the deviations of all cells from their means form one pool to draw
    from: widened by sqrt(R / (R - 1)) for the degree of freedom that a mean takes, and as Student's t is
    wider than a normal for the few degrees that the pool's own width rests on.  A cell that cannot show a
    spread has outcomes of NaN.

    Args:
        runs: records by cell; None where there is none.
        pooled: for few replicates.
        given: values of quantities that are in no record, by quantity and cell; a plain number is exact.
    """

    def __init__(
        self,
        runs: Runs,
        pooled: bool = False,
        given: Mapping[str, Mapping[Cell, np.ndarray | float]] | None = None,
    ):
        self.runs = {cell: record for cell, record in runs.items() if record is not None}
        self.pooled, self.given = pooled, dict(given or {})
        self._located: dict[str, dict[Cell, Located]] = {}

    @property
    def particles(self) -> list[int]:
        """Numbers of particles of all runs, in order."""
        return sorted({K for _, K in self.runs})

    def particles_of(self, method: str) -> list[int]:
        """Numbers of particles of the runs of a method, in order."""
        return sorted(K for name, K in self.runs if name == method)

    def _locate(self, quantity: str) -> dict[Cell, Located]:
        """Where the replicates lie in a quantity, by cell; draws with the same place belong together."""
        if quantity not in self._located:
            found, values = self.given.get(quantity, {}), QUANTITIES[quantity].values
            if values and quantity not in self.given:
                found = {cell: values(record) for cell, record in self.runs.items()}
            samples = {cell: np.asarray(values) for cell, values in found.items()}
            self._located[quantity] = self._from_pool(samples) if self.pooled else self._medians(samples)
        return self._located[quantity]

    @staticmethod
    def _medians(samples: Mapping[Cell, np.ndarray]) -> dict[Cell, Located]:
        found = {}
        for cell, v in samples.items():
            lower, upper, weights = median_outcomes(max(v.size, 1))
            ordered = np.sort(v.ravel()) if v.ndim == 0 or len(v) > 1 else np.array([np.nan])
            found[cell] = Located(float(np.median(v)), (ordered[lower] + ordered[upper]) / 2, weights, v.size)
        return found

    @staticmethod
    def _from_pool(samples: Mapping[Cell, np.ndarray]) -> dict[Cell, Located]:
        generator = np.random.default_rng(0)
        several = [v for v in samples.values() if v.size > 1]
        deviations = [(v - v.mean()) * np.sqrt(len(v) / (len(v) - 1)) for v in several]
        pool = np.sort(np.concatenate(deviations)) if several else np.array([np.nan])
        degrees = max(pool.size - len(several), 1)
        widened = np.sqrt(degrees / generator.chisquare(degrees, NUM_RESAMPLES))
        weights, found = np.full(NUM_RESAMPLES, 1 / NUM_RESAMPLES), {}
        for cell, v in samples.items():
            drawn = np.zeros((NUM_RESAMPLES, 1))
            if v.ndim:
                own = np.random.default_rng(zlib.crc32(repr(cell).encode()))  # in any order of cells
                drawn = own.choice(pool, (NUM_RESAMPLES, len(v)))
            found[cell] = Located(float(v.mean()), v.mean() + widened * drawn.mean(axis=1), weights, v.size)
        return found

    def effect(
        self,
        setting: str,
        quantity: str,
        *cells: Cell,
        combine: Callable[..., np.ndarray] = lambda a, b: a - b,
        margin: float = 0.0,
    ) -> Effect:
        """The effect of one setting: a margin plus what ``combine`` makes of its cells' locations.

        Args:
            combine: maps one array of locations per cell to one; the first cell's minus the second's.
            margin: what the claim allows; what is left of it counts then, however small.
        """
        located = self._locate(quantity)
        if any(cell not in located or np.isnan(located[cell].value) for cell in cells):
            return Effect(setting, quantity, cells)
        parts = [located[cell] for cell in cells]
        outcomes, weights = [part.outcomes for part in parts], parts[0].weights
        if not self.pooled:  # cells are independent: every outcome of one with every outcome of the others
            outcomes = [values.ravel() for values in np.meshgrid(*outcomes)]
            weights = reduce(np.multiply, np.meshgrid(*(part.weights for part in parts))).ravel()
        found, low, high = margin + combine(*outcomes), -np.inf, np.inf
        if np.isfinite(found).all():
            low, high = np.quantile(found, [0.025, 0.975], weights=weights, method="inverted_cdf")
        return Effect(
            setting,
            quantity,
            cells,
            float(margin + combine(*(np.float64(part.value) for part in parts))),
            float(low),
            float(high),
            smallest=0.0 if margin else QUANTITIES[quantity].smallest,
            levels=tuple(part.value for part in parts),
            replicates=len(parts) / sum(1 / part.count for part in parts),
        )

    def steps(self, quantity: str, method: str, up_to: float = np.inf, sign: int = 1) -> list[Effect]:
        """Rise of a quantity with each step in particles, up to a number of them; fall if ``sign`` is -1."""
        Ks = {K for K in self.particles if up_to >= K} | ({int(up_to)} if np.isfinite(up_to) else set())
        return [
            self.effect(f"{title(method)}, K {a} to {b}", quantity, *((method, K) for K in (b, a)[::sign]))
            for a, b in pairwise(sorted(Ks))
        ]

    def above(
        self, quantity: str, a: str, b: str, Ks: Iterable[int] | None = None, margin: float = 0.0
    ) -> list[Effect]:
        """Excess of a quantity under method ``a`` over that under ``b``, by K; all of them by default."""
        label = f"{title(a)} above {title(b)}"
        return [
            self.effect(f"{label}, K {K}", quantity, (a, K), (b, K), margin=margin)
            for K in (self.particles if Ks is None else Ks)
        ]

    def gains_nothing(self, *pairs: tuple[str, str, str]) -> list[Effect]:
        """Excess of quantities under the first method, plus the smallest that matters, where WWS was run."""
        return [
            replace(effect, setting=f"{quantity}: {effect.setting}")
            for quantity, a, b in pairs
            for effect in self.above(quantity, a, b, self.particles_of("wws"), QUANTITIES[quantity].smallest)
        ]

    def within_two(self, setting: str, quantity: str, *cells: Cell) -> Effect:
        """Logarithm of two, minus the distance of two cells in a quantity that is a logarithm."""
        return self.effect(setting, quantity, *cells, combine=lambda a, b: -abs(a - b), margin=math.log(2))


def title(name: str) -> str:
    """What figures and tables call a method."""
    return METHODS[name].title


def listed(words: Iterable[object]) -> str:
    """Words as a list in a sentence: "2, 5 and 10"."""
    *most, last = map(str, words)
    return f"{', '.join(most)} and {last}" if most else last


def all_of(number: int) -> str:
    """So many and no more, in words: "both", "all 3"."""
    return "both" if number == 2 else f"all {number}"


def in_numbers(counts: Mapping[str, int], words: Mapping[str, Sequence[str]]) -> list[str]:
    """How many there are of each, in its words for one and for several: "3 agree", "1 contradicts"."""
    return [f"{counts[key]} {said[counts[key] > 1]}" for key, said in words.items() if counts.get(key)]


def in_words(effects: Effects) -> str:
    """On whose sides effects are, in words: "of 6 effects 4 agree with the paper and 2 are open"."""
    parts = in_numbers(Counter(effect.side for effect in effects.values()), SIDES)
    if len(parts) > 1:
        return f"of {len(effects)} effects {listed(parts)}"
    if not parts:
        return "not run"
    what = parts[0].split(" ", 1)[1]
    return f"its one effect {what}" if len(effects) == 1 else f"{all_of(len(effects))} effects {what}"


def number(value: float, sign: bool = True) -> str:
    """A value with two digits, or all before the point and a half, and a true minus sign."""
    text = f"{value:.0f}" if abs(value) >= 99.5 else f"{value:g}" if value % 1 == 0.5 else f"{value:.2g}"
    if "e" in text and abs(value) > 1e-6:
        text = f"{value:.4f}"
    text = text if float(text) else "0"
    plus = "+" if sign and float(text) > 0 else ""
    return plus + text.replace("-", "−")


def with_interval(effect: Effect) -> str:
    """The value of an effect with its interval: "+0.25 (+0.24 to +0.35)"."""
    if math.isnan(effect.value):
        return "not run"
    unit = QUANTITIES[effect.quantity].unit
    value = f"{number(effect.value)} {unit}".strip()
    if not math.isfinite(effect.low):
        return f"{value} (no interval)"
    exact = effect.low == effect.high
    return value if exact else f"{value} ({number(effect.low)} to {number(effect.high)})"
