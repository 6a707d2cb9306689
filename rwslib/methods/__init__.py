r"""One function per learning method, and the table of all of them.

A method draws particles with the generative model ``p``, the inference network ``q`` and a noise
source, hands log-densities to an estimator, and returns the surrogate loss ``[B]`` whose gradient
is the method's estimator for theta and phi together.  One backward pass serves every method.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rwslib.checks import require
from rwslib.methods.ablations import (
    concrete_2018,
    dww_wrong_density,
    vimco_air2018,
    vimco_no_log_k,
    vimco_scores,
)
from rwslib.methods.antithetic import antithetic_score, disarm, disarm_bound
from rwslib.methods.pathwise import dreg, iwae, rws_dreg, stl, vae
from rwslib.methods.relaxed import (
    RebarControlVariate,
    concrete,
    concrete_log_prob,
    conditional_gumbel,
    rebar,
    relax,
)
from rwslib.methods.score_function import nvil, ovis, reinforce, rloo, tvo, vimco
from rwslib.methods.straight_through import gumbel_straight_through, muprop, reinmax, straight_through
from rwslib.methods.wake_sleep import defensive_wake_wake, wake_sleep, wake_wake, wake_wake_sleep

__all__ = [
    "METHODS",
    "Method",
    "Option",
    "RebarControlVariate",
    "antithetic_score",
    "concrete",
    "concrete_2018",
    "concrete_log_prob",
    "conditional_gumbel",
    "defensive_wake_wake",
    "disarm",
    "disarm_bound",
    "dreg",
    "dww_wrong_density",
    "gumbel_straight_through",
    "iwae",
    "muprop",
    "nvil",
    "ovis",
    "rebar",
    "reinforce",
    "reinmax",
    "relax",
    "rloo",
    "rws_dreg",
    "stl",
    "straight_through",
    "tvo",
    "usable",
    "vae",
    "vimco",
    "vimco_air2018",
    "vimco_no_log_k",
    "vimco_scores",
    "wake_sleep",
    "wake_wake",
    "wake_wake_sleep",
]


@dataclass(frozen=True)
class Option:
    """What a run may set of a method beside the number of particles.

    Attributes:
        default: of the function.
        low: numbers must be above it.
        high: numbers must be below it.
        choices: all allowed values, where they are no numbers.
        start: a run goes linearly from this to ``default`` and sets the pair; None for one value throughout.
    """

    default: Any
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[Any, ...] = ()
    start: float | None = None

    @property
    def of_run(self) -> Any:
        """The value, or the pair, of a run that sets none."""
        return self.default if self.start is None else (self.start, self.default)

    def check(self, name: str, value: Any) -> None:
        """Raise ``ValueError`` with one sentence unless a run may set the option, called name, to value."""
        if self.choices:
            fits = type(value) in map(type, self.choices) and value in self.choices
            names = ("true or false" if c is True else repr(c) for c in self.choices if c is not False)
            allowed = " or ".join(names)
        else:
            low, high = self.low, self.high
            limits = f"above {low:g}" if math.isinf(high) else f"between {low:g} and {high:g}"
            fits, allowed = self._within(value), f"a number {limits}"
            if isinstance(self.of_run, tuple):
                several = isinstance(value, list | tuple) and (self.start is None or len(value) == 2)
                fits = several and all(map(self._within, value))
                allowed = f"{'a list' if self.start is None else 'a pair (first, last)'} of numbers {limits}"
        require(fits, name, allowed, value)

    def _within(self, value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low < value < self.high


@dataclass(frozen=True)
class Method:
    """One row of the table: all that anything outside must know of a method.

    Attributes:
        title: the name that figures and tables show.
        function: the method itself.
        reference: citation key in ``book/references.bib``.
        cost: what one step draws and evaluates per datum.
        style: colour and line style in figures; None is chosen by the order in the table.
        follows: whose gradient phi's expectation is, or is after: ``"bound"`` (of K particles), ``"ELBO"``,
            ``"KL(p, q)"`` (minus the divergence from the posterior), ``"dreams"`` (data of the model),
            ``"KL(p, q) and dreams"`` or ``"own"``.
        latent: ``"any"``, ``"categorical"`` (one, or a vector of them that are independent given x),
            ``"binary"`` (the same with two categories) or ``"reparameterisable"``.
        needs: what else the model must have: ``"sample_defensive"``, a function of p; ``"one_kind"``,
            latents of which not only some have a path derivative, and ``"two_kinds"``, of which only some
            have; ``"one_latent"``, no vector of them.
        min_particles: smallest K at which the method is defined.
        options: keyword arguments a run may set.
        control_variate: None, ``"regression"`` (trained inside the loss) or ``"variance"`` (trained
            to minimise the variance of phi's gradient).
        ablation: a mistake reproduced on purpose, or None.
    """

    title: str
    function: Callable[..., Tensor]
    reference: str
    cost: str
    style: tuple[str, Any] | None = None
    follows: str = "bound"
    latent: str = "any"
    needs: tuple[str, ...] = ()
    min_particles: int = 1
    options: Mapping[str, Option] = field(default_factory=dict)
    control_variate: str | None = None
    ablation: str | None = None


def usable(*offers: str) -> list[str]:
    """Names of the methods for a model that has the functions which all need, and what it offers beside.

    Args:
        *offers: kinds of latents, what ``Method.needs`` names, and ``"control_variate"``, a network for
            each method that has one.

    Raises:
        ValueError: one of the words is none of these.
    """
    needs = {
        name: {method.latent, *method.needs, *("control_variate",) * bool(method.control_variate)}
        for name, method in METHODS.items()
    }
    known = set().union(*needs.values())
    require(known.issuperset(offers), "offers", f"some of {sorted(known)}", offers)
    return [name for name, needed in needs.items() if needed <= {"any", *offers}]


# No colour twice.  The methods of the paper's Figure 4 have Okabe and Ito's palette, safe for colour-blind
# readers; methods that climb a bound are dashed, as in the paper; ablations are dotted, near their original.
_DELTA = {"delta": Option(0.2, 0, 1)}
_TEMPERATURE = {"temperature": Option(0.5, 0, start=3.0)}
_K = "K samples of q; K evaluations of p and q"
_BETWEEN = f"{_K}; p between categories, too"
_2K = "2K samples of q, K of r; 2K evaluations of p, 3K of q"
_DREAMS = "K samples of q, K of p; K evaluations of p, 2K of q"
_PATH = "K samples of q; 2K evaluations of p and q"
_RELAXED = "K relaxed samples; K evaluations of p between categories"
# One method a row, laid out by hand: title, function, source, cost, style; then what is not as usual.
# fmt: off
METHODS = {
    "ws": Method("WS", wake_sleep, "hinton1995wake", _DREAMS, ("#009E73", "-"), follows="dreams"),
    "ww": Method("WW", wake_wake, "bornschein2015reweighted", _K, ("#0072B2", "-"), follows="KL(p, q)",
                 options={"center_weights": Option(False, choices=(True, False))}),
    "wws": Method("WWS", wake_wake_sleep, "bornschein2015reweighted", _DREAMS, ("#9467BD", "-"),
                  follows="KL(p, q) and dreams", options={"wake_weight": Option(0.5, 0, 1)}),
    "dww": Method("δ-WW", defensive_wake_wake, "hesterberg1995weighted", _2K, ("#D55E00", "-"),
                  follows="KL(p, q)", needs=("sample_defensive",), options=_DELTA),
    "vae": Method("VAE", vae, "kingma2014auto", _K, ("#777777", "--"),
                  follows="ELBO", latent="reparameterisable"),
    "iwae": Method("IWAE", iwae, "burda2016importance", _K, ("#8C510A", "--"), latent="reparameterisable"),
    "stl": Method("STL", stl, "roeder2017sticking", _PATH, ("#BF812D", "-."), latent="reparameterisable"),
    "dreg": Method("DReG", dreg, "tucker2019doubly", _PATH, ("#5B7C0F", "-."), latent="reparameterisable"),
    "rws_dreg": Method("RWS-DReG", rws_dreg, "tucker2019doubly", _PATH, ("#1A3A8A", "-."),
                       follows="KL(p, q)", latent="reparameterisable", min_particles=2),
    "tvo": Method("TVO", tvo, "masrani2019thermodynamic", _K, ("#35978F", "-."), follows="own",
                  needs=("one_kind",), min_particles=2,
                  options={"partition": Option((0.0, 0.03, 0.1, 0.3, 1.0))}),
    "reinforce": Method("REINFORCE", reinforce, "williams1992simple", _K, ("#E69F00", "--")),
    "nvil": Method("NVIL", nvil, "mnih2014neural", f"{_K}, one of the baseline", ("#B8860B", ":"),
                   options={"scale_signal": Option(False, choices=(True, False))},
                   control_variate="regression"),
    "vimco": Method("VIMCO", vimco, "mnih2016variational", _K, ("#000000", "--"), min_particles=2,
                    options={"mean": Option("geometric", choices=("geometric", "arithmetic"))}),
    "ovis": Method("OVIS", ovis, "lievin2020optimal", _K, ("#005F73", "--"), needs=("one_kind",),
                   min_particles=2, options={"gamma": Option(0.0, choices=(0.0, 1.0))}),
    "rloo": Method("RLOO", rloo, "kool2019buy", _K, ("#2CA02C", "--"), follows="ELBO",
                   needs=("one_kind",), min_particles=2),
    "disarm": Method("DisARM", disarm, "dong2020disarm",
                     "K samples of q in pairs (K even); K evaluations of p and q", ("#E41A1C", "--"),
                     follows="ELBO", latent="binary", min_particles=2),
    "disarm_bound": Method("DisARM, bound", disarm_bound, "dong2020disarm",
                           "2K samples of q in pairs; 2K evaluations of p and q", ("#FF6F61", "--"),
                           latent="binary"),
    "muprop": Method("MuProp", muprop, "gu2016muprop", f"{_K}, one of p with its derivative",
                     ("#17BECF", "-."), follows="ELBO", latent="categorical"),
    "straight_through": Method("Straight-through", straight_through, "bengio2013estimating", _BETWEEN,
                               ("#BCBD22", "-."), follows="ELBO", latent="categorical"),
    "gumbel_st": Method("ST Gumbel-softmax", gumbel_straight_through, "jang2017categorical", _BETWEEN,
                        ("#E377C2", "-."), follows="ELBO", latent="categorical", options=_TEMPERATURE),
    "reinmax": Method("ReinMax", reinmax, "liu2023bridging", _BETWEEN, ("#7B3294", "-."),
                      follows="ELBO", latent="categorical"),
    "concrete": Method("Concrete", concrete, "maddison2017concrete", _RELAXED, ("#56B4E9", "--"),
                       latent="categorical", options=_TEMPERATURE),
    "rebar": Method("REBAR", rebar, "tucker2017rebar", f"{_K}, 3K relaxed ones; gradient of a gradient",
                    ("#8F3F71", ":"), latent="categorical", control_variate="variance"),
    "relax": Method("RELAX", relax, "grathwohl2018backpropagation", f"{_K}, 3K of c; gradient of a gradient",
                    ("#CC79A7", "--"), latent="categorical", control_variate="variance"),
    "vimco_no_log_k": Method("VIMCO without log K", vimco_no_log_k, "mnih2016variational", _K,
                             ("#555555", ":"), needs=("one_kind",), min_particles=2,
                             ablation="the baseline lacks its log K"),
    "vimco_air2018": Method("VIMCO, AIR 2018", vimco_air2018, "mnih2016variational", _K, ("#999999", ":"),
                            min_particles=2, ablation="the learning signal is the particle's own log-weight, "
                            "and the mean over particles"),
    "vimco_scores": Method("VIMCO, scores alone", vimco_scores, "mnih2016variational", _K, ("#7F7F00", ":"),
                           needs=("two_kinds",), min_particles=2,
                           ablation="no path derivative, though some latents have one"),
    "dww_wrong_density": Method("δ-WW, wrong density", dww_wrong_density, "hesterberg1995weighted", _2K,
                                ("#A0522D", ":"), follows="KL(p, q)",
                                needs=("sample_defensive", "one_kind"), options=_DELTA,
                                ablation="the mixture density is taken at another point than the particle"),
    "concrete_2018": Method("Concrete, 2018", concrete_2018, "maddison2017concrete", _RELAXED,
                            ("#2C7FB8", ":"), latent="categorical", needs=("one_latent",),
                            options=_TEMPERATURE,
                            ablation="the prior is a mass at the arg max, and q a density on the simplex"),
}
# fmt: on
"""Every method by the name that configurations, grids and notebooks use."""
