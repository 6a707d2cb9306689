"""Sigmoid belief networks, on which estimators are compared: configuration, problem, metrics."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from rwslib import data
from rwslib.annealing import NUM_CHAINS, annealed_estimates
from rwslib.evaluation import gradient_std, importance_estimates
from rwslib.experiments.common import (
    check_common,
    checked,
    each,
    evenly,
    one_of,
    options_at,
    require,
    whole,
    with_errors,
)
from rwslib.experiments.vae import test_images
from rwslib.methods import METHODS, RebarControlVariate, usable
from rwslib.models.sbn import Baseline, GenerativeModel, InferenceNetwork, RelaxControlVariate
from rwslib.noise import CURVES, FINALS, Noise
from rwslib.training import Networks, Problem, largest_divisor

OFFERS = ("sample_defensive", "control_variate", "one_kind")  # to methods
OF_ONE_LAYER = ("categorical", "binary")  # what one layer offers beside
NUM_LOGS = 20
CURVE_IMAGES = 200
CURVE_PARTICLES = 50  # of the test curve, the same for every K so that runs compare
GRADIENT_IMAGES, NUM_GRADIENTS = 20, 30


@dataclass(frozen=True)
class SBNConfig:
    """One run of a sigmoid belief network; its fields are its identity.

    Attributes:
        method: a name in ``rwslib.methods.usable(*OFFERS)``, or with one layer ``usable(*OFFERS,
            *OF_ONE_LAYER)``.
        num_particles: the number K of particles.
        dataset: "mnist" or "digits", see ``rwslib.data``; binarised afresh at every step.
        latents: coins of each layer, the top one first.
        hidden: tanh layers of the decoder and, reversed, of the encoder of images; none makes them linear.
        num_iterations: optimiser steps; metrics are logged about 20 times.
        num_runs: replicates, trained together, independent of each other.
        batch_size: images in a step.
        learning_rate: of Adam.
        eval_particles: particles of the final log marginal, KL and effective sample size.
        eval_images: test images of those, evenly spaced.
        annealing: steps of annealed importance sampling, for a final log marginal and KL that rest less on
            the inference network, with ten chains; 0 for none.
        seed: of everything random, at least 1.
        center_weights: subtract 1/K from the wake-phi weights (ww); False if None.
        delta: weight of fair coins in the proposal (dww); 0.2 if None.
        wake_weight: weight of the wake-phi update (wws); 0.5 if None.
        gamma: see ``rwslib.estimators.ovis_loss`` (ovis); 0 if None.
        temperature: at the first and last iteration, linear between (concrete, gumbel_st); (3, 0.5) if None.
    """

    method: str
    num_particles: int
    dataset: str = checked(one_of(data.DATASETS), "mnist")
    latents: tuple[int, ...] = checked(each(whole(1), "a list of layer sizes"), (200,))
    hidden: tuple[int, ...] = checked(each(whole(1), "a list of layer sizes"), ())
    num_iterations: int = checked(whole(1), 100_000)
    num_runs: int = 5
    batch_size: int = 50
    learning_rate: float = 1e-3
    eval_particles: int = checked(whole(1), 1000)
    eval_images: int = checked(whole(2), 1000)
    annealing: int = checked(whole(0), 0, before=0)
    seed: int = 1
    center_weights: bool | None = None
    delta: float | None = None
    wake_weight: float | None = None
    gamma: float | None = None
    temperature: tuple[float, float] | None = None
    experiment: str = "sbn"
    offers = (*OFFERS, *OF_ONE_LAYER)  # of the class, no field

    def __post_init__(self):
        check_common(self)
        require(len(self.latents) > 0, "latents", "a list of at least one layer size", self.latents)
        if len(self.latents) > 1:
            known = usable(*OFFERS)
            require(self.method in known, "method", f"one of {known} with several layers", self.method)


def build(config: SBNConfig, pixel_mean: Tensor | None = None) -> dict[str, nn.Module]:
    """The networks of one replicate."""
    p = GenerativeModel(config.latents, config.hidden, pixel_mean)
    modules = {"p": p, "q": InferenceNetwork(config.latents, config.hidden)}
    variates: dict[str, Callable[[], nn.Module]] = {
        "nvil": Baseline,
        "rebar": RebarControlVariate,
        "relax": partial(RelaxControlVariate, config.latents[0]),
    }
    return modules | ({"control_variate": variates[config.method]()} if config.method in variates else {})


def problem(config: SBNConfig, device: str = "cpu") -> Problem:
    """What the training loop needs to know of a configuration."""
    train = data.load(config.dataset).train.flatten(1).to(device)
    x_test = test_images(config.dataset).to(device)
    x_curve = evenly(x_test, CURVE_IMAGES)
    pixel_mean = train.double().mean(dim=0).float().cpu() / 255

    def evaluate(networks: Networks) -> dict[str, Tensor]:
        def bound(replicate: int, parts: Any) -> dict[str, Tensor]:
            noise = Noise(config.seed, 0, 0, CURVES, device=device)  # the same particles at every iteration
            p, q = parts["p"], parts["q"]
            found = importance_estimates(p, q, x_curve, CURVE_PARTICLES, noise, CURVE_IMAGES)
            return {"test_bound": found["log_marginal"].mean()}

        return networks.each(bound)

    def finish(networks: Networks) -> dict[str, Tensor]:
        x = evenly(x_test, config.eval_images)
        gradients = networks.phi_gradients(x_curve[:GRADIENT_IMAGES], NUM_GRADIENTS)
        metrics = {
            "phi_gradient_std": gradient_std(gradients),
            # of the whole vector: coins that are certain have no noise, and would rule a mean of ratios
            "phi_gradient_snr": gradients.mean(dim=1).norm(dim=-1) / gradients.var(dim=1).sum(dim=-1).sqrt(),
        }

        def estimates(replicate: int, parts: Any) -> dict[str, Tensor]:
            noise, count = Noise(config.seed, replicate, 0, FINALS, device=device), config.eval_particles
            found = importance_estimates(parts["p"], parts["q"], x, count, noise, rows_at_once=10_000)
            if config.annealing:
                steps = NUM_CHAINS, config.annealing
                annealed = annealed_estimates(parts["p"], parts["q"], x, *steps, noise)
                annealed["kl_q_p"] = annealed["log_marginal"] - found["elbo"]
                found |= {f"annealed_{name}": values for name, values in annealed.items()}
            return with_errors(found)

        return metrics | networks.each(estimates)

    return Problem(
        method=METHODS[config.method],
        build=lambda: build(config, pixel_mean),
        draw_batch=lambda noise, rows: data.binarize(train[rows], noise),
        evaluate=evaluate,
        num_particles=config.num_particles,
        num_iterations=config.num_iterations,
        log_every=largest_divisor(config.num_iterations, config.num_iterations // NUM_LOGS),
        learning_rate=config.learning_rate,
        seed=config.seed,
        epoch=(len(train), config.batch_size),
        options=partial(options_at, config),
        finish=finish,
        device=device,
    )
