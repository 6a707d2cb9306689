"""The continuous latent variable model of paper section 4.2: configuration, training problem, metrics."""

import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rwslib import data, records
from rwslib.annealing import NUM_CHAINS, annealed_estimates
from rwslib.checks import require
from rwslib.evaluation import active_units, importance_estimates
from rwslib.experiments.common import (
    check_common,
    checked,
    choice,
    evenly,
    one_of,
    options_at,
    whole,
    with_errors,
)
from rwslib.methods import METHODS
from rwslib.models.vae import GenerativeModel, InferenceNetwork
from rwslib.noise import CURVES, FINALS, Noise
from rwslib.training import Networks, Problem
from rwslib.training.acceleration import why_not_compile
from rwslib.training.optimizers import Optimizer, adam
from rwslib.training.trainer import COMPILE_FROM

OFFERS = ("reparameterisable", "one_kind")  # to methods
PAPER_STAGES = 8
CURVE_IMAGES = 500
CURVE_PARTICLES = 64  # of the test curve, the same for every K so that runs compare
ANNEALED_IMAGES = 500
GPU_ROWS = 200_000  # data times particles in one piece of an evaluation there
RECORDED_IMAGES = 100  # test images whose own log marginals are recorded, for checking weights later


def is_key_or_empty(name: str, value: Any) -> None:
    """The check of a record's key; whether there is such a record is asked when its weights are read."""
    fits = value == "" or (isinstance(value, str) and re.fullmatch("[0-9a-f]{16}", value))
    require(bool(fits), name, 'a record\'s key of 16 hexadecimal digits, or ""', value)


@dataclass(frozen=True)
class VAEConfig:
    """One run of the continuous model; its fields are its identity.

    Attributes:
        method: a name in ``rwslib.methods.usable(*OFFERS)``.
        num_particles: the number K of particles.
        dataset: "mnist" or "digits", see ``rwslib.data``.
        num_stages: stage i = 0, 1, ... has 3**i epochs; the paper's 8 stages are 3,280 epochs.
        num_runs: replicates, trained together, independent of each other.
        batch_size: images in a step.
        learning_rate: of Adam in the first stage; falls to a tenth over 8 stages, by equal factors rounded
            as in Burda et al.
        eval_particles: particles of the final log marginal, KL and effective sample size.
        annealing: steps of annealed importance sampling on 500 test images, to learn by how much the final
            log marginal is too low; 0 for none.
        precision: of the matrix products in training, "float32" or "bfloat16"; evaluation is in float32.
        decoder: key of a record of this experiment, published or in ``$RWSLIB_RESULTS``, whose model (first
            replicate) is kept, so that only the inference network learns; "" learns both.
        seed: of everything random, at least 1.
        wake_weight: weight of the wake-phi update (wws); 0.5 if None.
    """

    method: str
    num_particles: int
    dataset: str = checked(one_of(data.DATASETS), "mnist")
    num_stages: int = checked(whole(1, PAPER_STAGES), 5)
    num_runs: int = 2
    batch_size: int = 32
    learning_rate: float = 1e-3
    eval_particles: int = checked(whole(1), 5000)
    annealing: int = checked(whole(0), 0, before=0)
    precision: str = checked(choice("float32", "bfloat16"), "float32")
    decoder: str = checked(is_key_or_empty, "", before="")
    seed: int = 1
    wake_weight: float | None = None
    experiment: str = "vae"
    offers = OFFERS  # of the class, no field

    def __post_init__(self):
        check_common(self)

    @property
    def num_epochs(self) -> int:
        """Passes through the training data in all stages together."""
        return epochs_after(self.num_stages)


def epochs_after(num_stages: int) -> int:
    """Epochs of the first stages together: stage i = 0, 1, ... has ``3**i`` (Burda et al. 2016)."""
    return (3**num_stages - 1) // 2


def stage_rates(learning_rate: float) -> list[float]:
    """Learning rates of the 8 stages: ``round(10**(1 - i/7), 1)`` tenths of the first (Burda et al. 2016)."""
    factors = [10 ** (1 - i / (PAPER_STAGES - 1)) for i in range(PAPER_STAGES)]
    return [learning_rate / 10 * round(factor, 1) for factor in factors]


def build(pixel_mean: Tensor | None = None, matmul_dtype: torch.dtype | None = None) -> dict[str, nn.Module]:
    """The two networks of one replicate."""
    p = GenerativeModel(pixel_mean, matmul_dtype=matmul_dtype)
    return {"p": p, "q": InferenceNetwork(matmul_dtype=matmul_dtype)}


def keep_decoder(p: GenerativeModel, key: str) -> None:
    """Give p the parameters of a record's first replicate, for good.

    Raises:
        ValueError: there is no such record, or it was published without its weights.
    """
    places = [store / "vae" / key for store in (records.published_dir(), records.results_store())]
    found = [place for place in places if (place / records.WEIGHTS).exists()]
    require(bool(found), "decoder", "the key of a stored record of vae that keeps its weights", key)
    arrays = records.load(found[0], only=()).weights()
    state = {name: torch.from_numpy(arrays[f"p.{name}"][0]) for name, _ in p.named_parameters()}
    p.load_state_dict(state)
    p.requires_grad_(False)


def test_images(dataset: str) -> Tensor:
    """The test images of the metrics, binarised once and for all; ``[N, 784]``."""
    return data.binarize(data.load(dataset).test.flatten(1), Noise(0, 1))


def problem(config: VAEConfig, device: str = "cpu") -> Problem:
    """What the training loop needs to know of a configuration."""
    train = data.load(config.dataset).train.flatten(1).to(device)
    x_test = test_images(config.dataset).to(device)
    x_train = data.binarize(evenly(train, CURVE_IMAGES).cpu(), Noise(0, 2)).to(device)
    pixel_mean = train.double().mean(dim=0).float().cpu() / 255
    dtype = getattr(torch, config.precision)
    steps_per_epoch = max(1, len(train) // config.batch_size)
    stages = torch.arange(PAPER_STAGES, device=device)
    on_gpu = torch.device(device).type == "cuda"
    pieces: dict[str, Any] = {"images_at_once": CURVE_IMAGES, "rows_at_once": GPU_ROWS} if on_gpu else {}
    ends = [epochs_after(stage) * steps_per_epoch for stage in range(1, PAPER_STAGES)]
    stage_ends = torch.tensor(ends, device=device)
    rates = torch.tensor(stage_rates(config.learning_rate), device=device)

    def build_networks() -> dict[str, nn.Module]:
        parts: dict[str, Any] = build(pixel_mean, dtype)
        if config.decoder:
            keep_decoder(parts["p"], config.decoder)
        return parts

    def learning_rate(iteration: Tensor) -> Tensor:
        stage = (iteration >= stage_ends).sum()
        return torch.where(stage == stages, rates, 0).sum()  # rates[stage], as torch.compile takes it

    def evaluate(networks: Networks) -> dict[str, Tensor]:
        def bound(parts: Any, x: Tensor, num_particles: int) -> Tensor:
            noise = Noise(config.seed, 0, 0, CURVES, device=device)  # the same particles at every iteration
            estimates = importance_estimates(parts["p"], parts["q"], x, num_particles, noise, **pieces)
            return estimates["log_marginal"].mean()

        def bounds(replicate: int, parts: Any) -> dict[str, Tensor]:
            test = bound(parts, evenly(x_test, CURVE_IMAGES), CURVE_PARTICLES)
            return {"train_bound": bound(parts, x_train, config.num_particles), "test_bound": test}

        return networks.each(bounds)

    def finish(networks: Networks) -> dict[str, Tensor]:
        def metrics(replicate: int, trained: Any) -> dict[str, Tensor]:
            noise = Noise(config.seed, replicate, 0, FINALS, device=device)
            parts: dict[str, Any] = build()
            for name, module in trained.items():
                parts[name].to(device).load_state_dict(module.state_dict())
            sizes = config.eval_particles, noise, config.annealing
            return final_metrics(parts["p"], parts["q"], x_test, *sizes)

        return networks.each(metrics)

    return Problem(
        method=METHODS[config.method],
        build=build_networks,
        draw_batch=lambda noise, rows: data.binarize(train[rows], noise),
        evaluate=evaluate,
        num_particles=config.num_particles,
        num_iterations=config.num_epochs * steps_per_epoch,
        log_every=steps_per_epoch,
        learning_rate=learning_rate,
        seed=config.seed,
        epoch=(len(train), config.batch_size),
        optimizer=Optimizer(partial(adam, eps=1e-4)),
        options=partial(options_at, config),
        finish=finish,
        device=device,
        extensible=("num_stages", "eval_particles", "annealing"),
    )


def final_metrics(
    p: GenerativeModel, q: InferenceNetwork, x: Tensor, num_particles: int, noise: Noise, annealing: int = 0
) -> dict[str, Tensor]:
    """Test log marginal, KL, effective sample size (with standard errors) and active units of a replicate.

    With steps of annealing also the log marginal by it, of some images, and what it adds there.
    """
    on_cpu = x.device.type == "cpu"
    compiled = on_cpu and len(x) * num_particles >= 1000 * COMPILE_FROM and not why_not_compile()
    rows = 4000 if on_cpu else GPU_ROWS
    estimates = importance_estimates(p, q, x, num_particles, noise, rows_at_once=rows, compiled=compiled)
    if annealing:
        found = annealed_estimates(p, q, evenly(x, ANNEALED_IMAGES), NUM_CHAINS, annealing, noise)
        found["gain"] = found["log_marginal"] - evenly(estimates["log_marginal"], ANNEALED_IMAGES)
        estimates |= {f"annealed_{name}": values for name, values in found.items()}
    with torch.no_grad():
        means = q.moments(x)[0]
    return {
        **with_errors(estimates),
        "log_marginal_first": estimates["log_marginal"][:RECORDED_IMAGES],
        "active_units": active_units(means),
        "unit_variance": means.var(dim=0, correction=0),
    }
