"""The Gaussian mixture experiment of paper section 4.3: configuration, training problem, metrics."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from rwslib.evaluation import exact_kl, exact_log_evidence, gradient_std
from rwslib.experiments.common import check_common, checked, choice, each, options_at, whole
from rwslib.methods import METHODS, RebarControlVariate
from rwslib.models.gmm import GMM, Baseline, InferenceNetwork, RelaxControlVariate
from rwslib.noise import Noise
from rwslib.training import Networks, Problem, largest_divisor

NUM_TEST_POINTS = 100
NUM_GRADIENT_SAMPLES = 10
OFFERS = ("categorical", "one_latent", "sample_defensive", "control_variate", "one_kind")  # to methods
SUPPORT_THRESHOLD = 1e-3  # a category below this probability counts as given up
PROBES = (0.0, 95.0, 190.0)  # the observations at which the paper's Figure 5 shows q


@dataclass(frozen=True)
class GMMConfig:
    """One run of the mixture experiment; its fields are its identity.

    Attributes:
        method: a name in ``rwslib.methods.usable(*OFFERS)``.
        num_particles: the number K of particles.
        num_iterations: optimiser steps; metrics are logged about 100 times.
        num_runs: replicates, trained together, independent of each other.
        batch_size: observations drawn from the true model for each step.
        learning_rate: of Adam.
        init: start of the mixture weights, "far" (nearly all mass on small z) or "near" (uniform).
        hidden: hidden layers of the inference network.
        seed: of everything random, at least 1.
        delta: weight of the uniform part of the proposal (dww, dww_wrong_density); 0.2 if None.
        wake_weight: weight of the wake-phi update (wws); 0.5 if None.
        temperature: at the first and last iteration, linear between (concrete, concrete_2018);
            (3, 0.5) if None.
    """

    method: str
    num_particles: int
    num_iterations: int = checked(whole(1), 100_000)
    num_runs: int = 10
    batch_size: int = 100
    learning_rate: float = 1e-3
    init: str = checked(choice("far", "near"), "far")
    hidden: tuple[int, ...] = checked(each(whole(1), "a list of layer sizes"), (16,))
    seed: int = 1
    delta: float | None = None
    wake_weight: float | None = None
    temperature: tuple[float, float] | None = None
    experiment: str = "gmm"
    offers = OFFERS  # of the class, no field

    def __post_init__(self):
        check_common(self)


def build(config: GMMConfig) -> dict[str, nn.Module]:
    """The modules of one replicate."""
    modules = {"p": GMM(config.init), "q": InferenceNetwork(config.hidden)}
    variates = {"relax": RelaxControlVariate, "rebar": RebarControlVariate, "nvil": Baseline}
    return modules | ({"control_variate": variates[config.method]()} if config.method in variates else {})


def test_points() -> Tensor:
    """The fixed observations of the metrics, drawn once from the true model; ``[100]``."""
    return GMM("true").sample(NUM_TEST_POINTS, Noise(0))[1].detach()


def problem(config: GMMConfig, device: str = "cpu") -> Problem:
    """What the training loop needs to know of a configuration."""
    truth = GMM("true").requires_grad_(False)
    x_test = test_points()
    log_prior_true = truth.log_prior()
    log_posterior_true = torch.log_softmax(_joint(truth, x_test), dim=-1)
    truth.to(device)

    def draw_batch(noise: Noise, rows: Tensor) -> Tensor:
        return truth.sample(config.batch_size, noise)[1]

    def evaluate(networks: Networks) -> dict[str, Tensor]:
        x, probes = x_test.to(device), torch.tensor(PROBES, device=device)

        def exact(p: GMM, q: InferenceNetwork) -> dict[str, Tensor]:
            log_prior, log_joint, log_q = p.log_prior(), _joint(p, x), q.log_probs(x)
            log_evidence = exact_log_evidence(log_joint)
            log_posterior = log_joint - log_evidence[:, None]
            q_error = (log_q.exp() - log_posterior_true.to(device).exp()).norm(dim=-1)
            return {
                "prior_l2": (log_prior.exp() - log_prior_true.to(device).exp()).norm(),
                "posterior_l2": q_error.mean(),
                "support_size": (log_prior.exp() > SUPPORT_THRESHOLD).sum(),
                "log_evidence": log_evidence.mean(),
                "kl_q_p": exact_kl(log_q, log_posterior).mean(),
                "kl_p_q": exact_kl(log_posterior, log_q).mean(),
                "prior_probs": log_prior.exp(),
                "probe_probs": q.log_probs(probes).exp(),
            }

        metrics = networks.map_modules(exact)
        gradients = networks.phi_gradients(x, NUM_GRADIENT_SAMPLES)
        return {**metrics, "phi_gradient_std": gradient_std(gradients)}

    return Problem(
        method=METHODS[config.method],
        build=lambda: build(config),
        draw_batch=draw_batch,
        evaluate=evaluate,
        num_particles=config.num_particles,
        num_iterations=config.num_iterations,
        log_every=largest_divisor(config.num_iterations, config.num_iterations // 100),
        learning_rate=config.learning_rate,
        seed=config.seed,
        options=partial(options_at, config),
        device=device,
    )


def _joint(p: GMM, x: Tensor) -> Tensor:
    """``log p(z, x)`` of every category, ``[B, C]``."""
    z = torch.arange(len(p.theta), device=x.device)[:, None].expand(-1, len(x))
    return p.log_joint(z, x).T
