"""Bias, noise and signal of each method's gradient for phi, on problems small enough to know the answer.

Two problems are choices: the mixture of the chapter on the background, and a coin.  A method that sees
nothing but its particles treats them alike, so a sum over how often each category was drawn is exact up to
a hundred particles.  The other methods, and all on the smooth problem, are sampled.

``python -m rwslib.report.comparison --write FILE`` measures everything, in a quarter of an hour of
one core.
"""

import argparse
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.distributions import Normal

from rwslib import evaluation, files, methods
from rwslib.experiments.common import known_name
from rwslib.methods import METHODS, Method
from rwslib.models.gmm import GMM, RelaxControlVariate, Table
from rwslib.noise import Noise, Tape
from rwslib.report.claims.general import NUM_CATEGORIES, OBSERVATION, small_mixture

CHOICES = {"choice": (NUM_CATEGORIES, OBSERVATION), "coin": (2, 6.0)}  # number of categories, observation
STEPS = (0.1, 0.2, 0.5, 0.7, 1.0, 1.5, 2.0)  # of q's logits: 0 is the posterior, 1 that chapter's table
MEANS = (0.6, 0.7, 0.9, 1.3, 2.1)  # of the smooth problem's q; the posterior's is 0.5
PROBLEMS = {**dict.fromkeys(CHOICES, STEPS), "smooth": MEANS}
MANY = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100)
FEW = (1, 2, 5, 10, 20, 50)
FEWER = (1, 2, 5, 10, 20)  # where a control variate has to be trained for each
SAMPLED = ("dww_wrong_density", "gumbel_st", "concrete", "rebar", "relax", "concrete_2018")
VARIANTS: dict[str, Any] = {  # beside the methods with their defaults
    "ww_centred": replace(
        METHODS["ww"],
        title="WW, centred",
        function=partial(methods.wake_wake, center_weights=True),
        min_particles=2,
    ),
    "ovis_gamma_1": replace(METHODS["ovis"], title="OVIS, γ = 1", function=partial(methods.ovis, gamma=1.0)),
}
SEED, SAMPLES, BATCHES = 1, 20_000, 20
AT_ONCE = 100_000  # particles in one piece
NEGLIGIBLE = 1e-20  # probability of a count; all of these together have less than 1e-16


class CountedMixture(GMM):
    """The mixture, which counts for how many points per datum it was evaluated, a branch each."""

    evaluations = 0

    def log_likelihood(self, z: Tensor, x: Tensor) -> Tensor:
        self.evaluations += len(z) * (z.shape[-1] if z.is_floating_point() else 1)
        return super().log_likelihood(z, x)


class GivenMixture(CountedMixture):
    """One whose defensive proposal "draws" given particles ``[K, B]``."""

    def __init__(self, num_categories: int, z: Tensor):
        super().__init__("near", num_categories)
        self.z = z

    def sample_defensive(self, x: Tensor, num_particles: int, noise: Any) -> tuple[Tensor, Tensor]:
        return self.z, torch.full(self.z.shape, -math.log(len(self.theta)), dtype=torch.float64)


class GivenTable(Table):
    """A table that "draws" given particles ``[K, B]``."""

    def __init__(self, logits: Tensor, z: Tensor):
        super().__init__(logits)
        self.z = z

    def sample(self, x: Tensor, num_particles: int, noise: Any) -> tuple[Tensor, Tensor]:
        return self.z, self.log_prob(self.z, x)


class Smooth(nn.Module):
    """The smooth problem, z ~ N(0, 1) and x ~ N(z, 1), and q = N(loc, 0.8^2) with a loc for each draw."""

    def __init__(self, loc: Tensor | None = None):
        super().__init__()
        self.loc: Any = nn.Parameter(loc) if loc is not None else None
        self.evaluations = 0

    def log_joint(self, z: Tensor, x: Tensor) -> Tensor:
        self.evaluations += len(z)
        return Normal(0.0, 1.0).log_prob(z) + Normal(z, 1.0).log_prob(x)

    def log_prob(self, z: Tensor, x: Tensor) -> Tensor:
        return Normal(self.loc, 0.8).log_prob(z)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return self.log_joint(z, x) if self.loc is None else self.log_prob(z, x)

    def rsample(self, x: Tensor, num_particles: int, noise: Noise) -> tuple[Tensor, Tensor]:
        z = self.loc + 0.8 * noise.normal(num_particles, len(x))
        return z, self.log_prob(z, x)

    def sample(self, x: Tensor, num_particles: int, noise: Noise) -> tuple[Tensor, Tensor]:
        z = self.rsample(x, num_particles, noise)[0].detach()
        return z, self.log_prob(z, x)


def method_of(row: str) -> Method:
    """The method of a row, with the row's options."""
    return VARIANTS.get(row) or METHODS[row]


def tables(problem: str, step: float) -> tuple[Tensor, Tensor]:
    """``log p(z, x)`` of a choice and the logits of q so far from the posterior, ``[C]`` each."""
    log_joint, wrong = small_mixture(*CHOICES[problem])
    right = torch.log_softmax(log_joint, dim=0)
    return log_joint, right + step * (wrong - right)


def wrongness(problem: str, step: float) -> float:
    """KL(p, q) in nats."""
    if problem == "smooth":  # the posterior is N(1/2, 1/2)
        return math.log(0.8 * math.sqrt(2)) + (0.5 + (step - 0.5) ** 2) / (2 * 0.8**2) - 0.5
    log_joint, logits = tables(problem, step)
    return evaluation.exact_kl(torch.log_softmax(log_joint, dim=0), torch.log_softmax(logits, dim=0)).item()


# -- exact -------------------------------------------------------------------------------------------


def one_draw(method: Method, logits: Tensor) -> Tensor:
    """Probabilities of what one of a method's independent draws can be: a category, or a pair of coins."""
    q = torch.softmax(logits, dim=0)
    if method.latent == "binary":  # unequal, or equal on one side or the other
        return torch.stack([q.min(), q.max() - q.min(), q.min()])
    if "delta" in method.options:
        delta = method.options["delta"].default
        return (1 - delta) * q + delta / len(q)
    return q


def exact_gradients(row: str, K: int, problem: str, step: float) -> tuple[Tensor, Tensor, int]:
    """The ascent direction for each count of draws, ``[N, C]``, their probabilities, and p's evaluations."""
    method = method_of(row)
    function, (log_joint, logits) = method.function, tables(problem, step)
    if method.control_variate == "regression":  # as if fitted perfectly
        bound = evaluation.exact_bound(log_joint, logits, K)
        function = partial(function, control_variate=lambda x: bound.expand(len(x)))
    probs, num_draws = one_draw(method, logits), K // 2 if row == "disarm" else K
    counts, log_ways = evaluation.particle_counts(len(probs), num_draws)
    weights = (log_ways + torch.xlogy(counts, probs).sum(dim=1)).exp()
    counts, weights = counts[weights > NEGLIGIBLE], weights[weights > NEGLIGIBLE]
    upper, middles, observation = counts.cumsum(dim=1), probs.cumsum(dim=0) - probs / 2, CHOICES[problem][1]

    def of_some(rows: Tensor) -> tuple[Tensor, int]:
        z = (rows <= torch.arange(num_draws)[:, None, None]).sum(dim=-1)  # one tuple with these counts
        p = GivenMixture(len(logits), z).double()
        q = GivenTable(logits.expand(len(rows), -1), z)
        x = torch.full([len(rows)], observation).double()
        loss = function(p, q, x, K, Tape(middles[z].flatten(), torch.empty(0)))
        return -grad(loss.sum(), q.logits)[0], p.evaluations

    gradients, evaluations = zip(*map(of_some, upper.split(max(1, AT_ONCE // num_draws))), strict=True)
    return torch.cat(gradients), weights, evaluations[0]


# -- sampled -----------------------------------------------------------------------------------------


def draws(
    function: Callable, K: int, problem: str, step: float, num: int, *path: int, create_graph: bool = False
) -> tuple[Tensor, int]:
    """Independent gradients, ``[num, D]``, and p's evaluations per datum; ``path`` names the noise."""
    p: Any
    q: Any
    if problem == "smooth":
        p, q, observation = Smooth(), Smooth(torch.full([num], step).double()), 1.0
        parameter = q.loc
    else:
        num_categories, observation = CHOICES[problem]
        p = CountedMixture("near", num_categories).double()
        q = Table(tables(problem, step)[1].expand(num, -1))
        parameter = q.logits
    x = torch.full([num], observation).double()
    loss = function(p, q, x, K, Noise(0, *path))
    gradients = -grad(loss.sum(), parameter, create_graph=create_graph)[0]
    return gradients.view(num, -1), p.evaluations


def with_control_variate(row: str, K: int, problem: str, step: float) -> Callable:
    """The method with a control variate that was trained here, to lower the variance."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        control = (
            methods.RebarControlVariate() if row == "rebar" else RelaxControlVariate(CHOICES[problem][0])
        )
    function = partial(method_of(row).function, control_variate=control.double())
    optimiser = torch.optim.Adam(control.parameters(), 0.03)
    for i in range(100):
        optimiser.zero_grad()
        gradients, _ = draws(function, K, problem, step, 500, SEED, i, 1, create_graph=True)
        gradients.var(dim=0).sum().backward()
        optimiser.step()
    return function


def sampled_gradients(
    row: str, K: int, problem: str, step: float, num: int = SAMPLES, purpose: int = 2
) -> tuple[Tensor, int]:
    """Independent gradients, ``[num, D]``, and p's evaluations per datum."""
    function = method_of(row).function
    if method_of(row).control_variate == "variance":
        function = with_control_variate(row, K, problem, step)
    at_once = min(num, max(1000, AT_ONCE // K // 1000 * 1000))
    pieces = [
        draws(function, K, problem, step, min(at_once, num - start), SEED, start, purpose)
        for start in range(0, num, at_once)
    ]
    return torch.cat([gradients for gradients, _ in pieces]), pieces[0][1]


# -- both --------------------------------------------------------------------------------------------


@cache
def target(follows: str, K: int, problem: str, step: float) -> Tensor | None:
    """The gradient that a method is after, ``[D]``; None where that is an objective of its own."""
    if follows == "own":
        return None
    if problem == "smooth":  # DReG is unbiased and quiet
        if follows == "bound" and K > 1:
            return sampled_gradients("dreg", K, problem, step, 5 * SAMPLES, purpose=3)[0].mean(dim=0)
        return torch.tensor([(0.5 - step) / 0.8**2 if follows == "KL(p, q)" else 1 - 2 * step]).double()
    log_joint, logits = tables(problem, step)
    if follows == "KL(p, q)":
        return torch.softmax(log_joint, dim=0) - torch.softmax(logits, dim=0)
    logits.requires_grad_()
    return grad(evaluation.exact_bound(log_joint, logits, 1 if follows == "ELBO" else K), logits)[0]


def summary(mean: Tensor, variance: Tensor, wanted: Tensor | None) -> dict[str, Any]:
    """Bias and noise as shares of the wanted gradient's length; the mean's length over the noise.

    Lengths, because a mean over the coordinates' ratios belongs to the one that hardly varies.

    Args:
        mean, variance: of the estimator, ``[D]``.
        wanted: ``[D]``; None for an objective of the method's own, whose length is the mean's.
    """
    size, spread = (mean if wanted is None else wanted).norm(), variance.sum().sqrt()
    return {
        "bias": None if wanted is None else ((mean - wanted).norm() / size).item(),
        "noise": (spread / size).item(),
        "signal": (mean.norm() / spread).item() if spread > 0 else 0.0,
    }


def measure(row: str, K: int, problem: str, step: float) -> dict[str, Any]:
    """Bias, noise, signal-to-noise ratio and p's evaluations per datum; with errors where it was sampled."""
    wanted = target(method_of(row).follows, K, problem, step)
    if not is_sampled(row, problem):
        gradients, weights, evaluations = exact_gradients(row, K, problem, step)
        mean = weights @ gradients
        found = summary(mean, weights @ (gradients - mean).square(), wanted)
        return found | {"evaluations": evaluations}
    gradients, evaluations = sampled_gradients(row, K, problem, step)
    found = summary(gradients.mean(dim=0), gradients.var(dim=0), wanted)
    batches = [summary(b.mean(dim=0), b.var(dim=0), wanted) for b in gradients.chunk(BATCHES)]
    for key in ("noise", "signal"):
        values = torch.tensor([batch[key] for batch in batches])
        found[f"{key}_error"] = (values.std() / math.sqrt(BATCHES)).item()
    found["bias_error"] = None if wanted is None else found["noise"] / math.sqrt(len(gradients))
    return found | {"evaluations": evaluations}


def is_sampled(row: str, problem: str) -> bool:
    """Whether a row has standard errors: it draws more than its particles, or the latent is smooth."""
    return problem == "smooth" or row in SAMPLED


def rows(problem: str) -> dict[str, tuple[int, ...]]:
    """The numbers of particles of each row of a problem; dreams or two kinds of latents have no place."""
    found = {}
    for row in (*METHODS, *VARIANTS):
        method = method_of(row)
        if problem == "smooth":
            fits = method.latent == "reparameterisable" or row in ("ww", "vimco")
        else:
            fits = method.latent != "reparameterisable" and (method.latent != "binary" or problem == "coin")
            fits = fits and not (problem == "coin" and row in SAMPLED)
        if fits and "dreams" not in method.follows and "two_kinds" not in method.needs:
            few = FEW if is_sampled(row, problem) or method.latent == "categorical" else MANY
            particles = FEWER if method.control_variate == "variance" else few
            pairs = 2 if row == "disarm" else 1
            found[row] = tuple(K for K in particles if method.min_particles <= K and K % pairs == 0)
    return found


def rounded(value: float | None, digits: int) -> float | None:
    """So many digits; what rounding left of a zero is zero."""
    return None if value is None else 0.0 if abs(value) < 1e-10 else float(f"{value:.{digits}g}")


def measure_row(row: str, particles: tuple[int, ...], problem: str) -> dict[str, Any]:
    """All that is stored of one method on one problem: by quantity a list per step of a value per K."""
    cells = [[measure(row, K, problem, step) for K in particles] for step in PROBLEMS[problem]]
    digits = 6 if is_sampled(row, problem) else 12
    found: dict[str, Any] = {"particles": particles, "draws": SAMPLES if digits == 6 else None}
    found["evaluations"] = [cell["evaluations"] for cell in cells[0]]
    for key in sorted(cells[0][0].keys() - {"evaluations"}):
        found[key] = [[rounded(cell[key], digits) for cell in line] for line in cells]
    return found


def main() -> None:
    """Measure what is asked for, and store it beside what is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--write", type=files.expanded, required=True, metavar="FILE", help="JSON file, updated"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these methods alone; default: all")
    arguments = parser.parse_args()
    for name in arguments.only or ():
        known_name(name, {**METHODS, **VARIANTS}, "--only")
    kept_file = arguments.only and arguments.write.exists()
    old = json.loads(arguments.write.read_text(encoding="utf-8"))["problems"] if kept_file else {}
    found: dict[str, Any] = {"seed": SEED, "problems": {}}
    for problem, steps in PROBLEMS.items():
        kept = old[problem]["rows"] if problem in old else {}
        measured: dict[str, Any] = {}
        for row, particles in rows(problem).items():
            if not arguments.only or row in arguments.only:
                print(f"{problem}: {method_of(row).title}", flush=True)
                measured[row] = measure_row(row, particles, problem)
            elif row in kept:
                measured[row] = kept[row]
        wrong = [rounded(wrongness(problem, step), 12) for step in steps]
        found["problems"][problem] = {"wrongness": wrong, "rows": measured}
    text = re.sub(r',? ("\w+": \{?[{\[])', r",\n\1", json.dumps(found, allow_nan=False))  # a line per list
    arguments.write.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
