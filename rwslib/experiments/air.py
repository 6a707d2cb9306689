"""Attend, infer, repeat (paper section 4.1): configuration, training problem, metrics."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rwslib import data
from rwslib.estimators import normalized_weights
from rwslib.evaluation import importance_estimates
from rwslib.experiments.common import (
    check_common,
    checked,
    choice,
    each,
    evenly,
    number,
    one_of,
    options_at,
    require,
    whole,
    with_errors,
)
from rwslib.methods import METHODS
from rwslib.methods.wake_sleep import sleep_loss
from rwslib.models.air import (
    CANVAS,
    MAX_OBJECTS,
    MIN_SD,
    GenerativeModel,
    InferenceNetwork,
    Latents,
    boxes,
    scales_and_shifts,
)
from rwslib.noise import CURVES, FINALS, SAMPLES, Noise
from rwslib.protocols import Inference
from rwslib.training import Networks, Phase, Problem, largest_divisor
from rwslib.training.optimizers import Optimizer, adam, delayed, rmsprop

OFFERS = ("sample_defensive", "control_variate", "two_kinds")  # to methods
OPTIMIZERS = {"adam": Optimizer(adam), "rmsprop": Optimizer(rmsprop, start=(1.0, 0.0))}
WARM_UP = {"dream_iterations": 0, "sorted_dreams": False, "warmup_iterations": 2000}  # an earlier recipe
EARLIER_RUNS: dict[int, dict[str, Any]] = {  # of that recipe, by their length
    length: WARM_UP | {"num_iterations": length, "num_runs": 3, "eval_particles": 5000, "eval_scenes": scenes}
    for length, scenes in ((8000, 500), (30_000, 1000))
}
DREAMS_PER_SCENE = 5  # of the phase of dreams, a scene of the batch
LEAST_BETWEEN_LOGS = 100  # iterations; metrics cost as much as twenty steps
CURVE_SCENES = 200
CURVE_PARTICLES = 10  # of the test curve, the same for every K so that runs compare
WEIGHTED_PARTICLES = 100  # of the importance-weighted count
DREAMS = 500  # samples of the model, whose pixels are compared with those of the test scenes
SHOWN_DREAMS = 7  # of them kept in a record


@dataclass(frozen=True)
class AIRConfig:
    """One run of AIR; its fields are its identity.

    Attributes:
        method: a name in ``rwslib.methods.usable(*OFFERS)``.
        num_particles: the number K of particles.
        dataset: where the scenes' digits come from, "mnist" or "digits".
        num_iterations: optimiser steps; metrics are logged about 100 times, at most every 100 steps.
        num_runs: replicates, independent of each other; trained together on a GPU, else one after the other.
        batch_size: scenes in a step.
        optimizer: "adam", or "rmsprop" as in the authors' code.
        learning_rate: at the start; it is divided by 3 at each of ``decay_at``.
        decay_at: fractions of the run; the paper has (0.2, 0.5).
        eval_particles: particles of the final log marginal, KL and effective sample size.
        eval_scenes: test scenes of those (evenly spaced); the counts are judged on all test scenes.
        seed: of everything random, at least 1.
        dream_iterations: steps at the start that train q alone, on dreams of the untrained model in which
            every count is equally likely.
        sorted_dreams: hand over the objects of a dream from left to right, then and in ws and wws.
        warmup_iterations: so long q's presence does not depend on the image and p(n) stays as it is.
        presence_logit: where q's logit of one more object starts.
        shift_sd: standard deviation of q's shift logits at the start; 0.06 is the authors'.
        scale_prior: mean and standard deviation of the prior on the scale logits; q starts at the mean.
        background: logit of an empty pixel at the start.
        learn_count: learn p(n), which starts as a geometric distribution with success 0.1.
        pixel_sd: standard deviation of the normal likelihood of grey pixels, as in Eslami et al. (2016);
            None is the paper's Bernoulli likelihood of binarised ones.
        center_weights: subtract 1/K from the wake-phi weights (ww); False if None.
        delta: weight of r in the proposal, uniform in the count, objects from the prior (dww); 0.2 if None.
        wake_weight: weight of the wake-phi update (wws); 0.5 if None.
    """

    method: str
    num_particles: int
    dataset: str = checked(one_of(data.DATASETS), "mnist")
    num_iterations: int = checked(whole(1), 30_000)
    num_runs: int = 1
    batch_size: int = 64
    optimizer: str = checked(one_of(OPTIMIZERS), "adam")
    learning_rate: float = 5e-4
    decay_at: tuple[float, ...] = checked(each(number(0, 1), "a list of fractions"), (0.7, 0.9))
    eval_particles: int = checked(whole(1), 5000)
    eval_scenes: int = checked(whole(2), 1000)
    seed: int = 1
    dream_iterations: int = checked(whole(0), 600, before=0)
    sorted_dreams: bool = checked(choice(True, False), True, before=False)
    warmup_iterations: int = checked(whole(0), 0)
    presence_logit: float = checked(number(-20, 20), 0.5)
    shift_sd: float = checked(number(MIN_SD, 100), 0.5)
    scale_prior: tuple[float, float] = (-0.4, 0.1)
    background: float = checked(number(-100, 100), -5.0)
    learn_count: bool = checked(choice(True, False), True)
    pixel_sd: float | None = checked(number(0, 100), None)
    center_weights: bool | None = None
    delta: float | None = None
    wake_weight: float | None = None
    experiment: str = "air"
    offers = OFFERS  # of the class, no field

    def __post_init__(self):
        check_common(self)
        most, dreams = data.NUM_SCENES["test"], self.dream_iterations
        require(self.eval_scenes <= most, "eval_scenes", f"at most the {most} test scenes", self.eval_scenes)
        longer = self.num_iterations > dreams
        require(longer, "num_iterations", f"above the {dreams} of dream_iterations", self.num_iterations)
        one_start = not (dreams and self.warmup_iterations)
        require(one_start, "warmup_iterations", "0 where dreams come first", self.warmup_iterations)
        pair = isinstance(self.scale_prior, list | tuple) and len(self.scale_prior) == 2
        require(pair, "scale_prior", "a pair (mean, standard deviation)", self.scale_prior)
        number(-math.inf)("scale_prior", self.scale_prior[0])
        number(0)("scale_prior", self.scale_prior[1])


class Baseline(nn.Module):
    """NVIL's input-dependent baseline, an MLP on the image."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(data.CANVAS**2, 128), nn.ELU(), nn.Linear(128, 1))

    def forward(self, x: Tensor) -> Tensor:
        """``x [B, 2500]`` -> ``[B]`` in nats."""
        return 100 * self.layers(x).squeeze(1)


def build(config: AIRConfig, packed: bool = True) -> dict[str, nn.Module]:
    """The networks of one replicate."""
    p = GenerativeModel(
        learn_count=config.learn_count,
        scale_prior=config.scale_prior,
        background=config.background,
        pixel_sd=config.pixel_sd,
        packed=packed,
        in_order=config.sorted_dreams,
    )
    q = InferenceNetwork(config.scale_prior[0], config.shift_sd, config.presence_logit, packed=packed)
    modules = {"p": p, "q": q}
    return modules | ({"control_variate": Baseline()} if config.method == "nvil" else {})


def test_scenes(dataset: str, grey: bool = False) -> tuple[Tensor, data.Scenes]:
    """The test scenes of the metrics, binarised once and for all or grey ``[N, 2500]``, and the truth."""
    scenes = data.scenes(dataset, "test")
    return _pixels(scenes.images.flatten(1), Noise(0, 1), grey), scenes


def _pixels(images: Tensor, noise: Noise, grey: bool) -> Tensor:
    """What network and model see of uint8 images: pixels of 0 and 1, or grey ones between them."""
    return images / 255 if grey else data.binarize(images, noise)


def dream_loss(p: GenerativeModel, q: Inference, x: Tensor, num_particles: int, noise: Noise) -> Tensor:
    """Sleep phase on dreams of every count, as many per scene whatever K, so that all runs start alike."""
    return sleep_loss(q, *p.dream(DREAMS_PER_SCENE * len(x), noise), DREAMS_PER_SCENE)


def problem(config: AIRConfig, device: str = "cpu") -> Problem:
    """What the training loop needs to know of a configuration."""
    train = data.scenes(config.dataset, "train").images.flatten(1).to(device)
    grey, on_gpu = config.pixel_sd is not None, torch.device(device).type == "cuda"
    x_train = _pixels(evenly(train, CURVE_SCENES).cpu(), Noise(0, 2), grey).to(device)
    x_test, truth = test_scenes(config.dataset, grey)
    x_test, counts = x_test.to(device), truth.counts.to(device)
    decays = torch.tensor(config.decay_at, device=device) * config.num_iterations

    optimizer = OPTIMIZERS[config.optimizer]
    if config.warmup_iterations:
        delays = dict.fromkeys(("q.presence", "p.count_logits"), config.warmup_iterations)
        optimizer = delayed(optimizer, delays)
    dreams = Phase(config.dream_iterations, dream_loss, trains=("q",))

    def evaluate(networks: Networks) -> dict[str, Tensor]:
        def metrics(replicate: int, parts: Any) -> dict[str, Tensor]:
            p, q = _packed(parts)
            noise = Noise(config.seed, 0, 0, CURVES, device=device)  # the same particles at every iteration
            bounds = {
                name: importance_estimates(p, q, x, num_particles, noise, images_at_once=100)
                for name, x, num_particles in (
                    ("train_bound", x_train, config.num_particles),
                    ("test_bound", evenly(x_test, CURVE_SCENES), CURVE_PARTICLES),
                )
            }
            values = {name: estimates["log_marginal"].mean() for name, estimates in bounds.items()}
            with torch.no_grad():
                z = q.sample(evenly(x_test, CURVE_SCENES), 1, noise)[0]
            accuracy = (z.count[0] == evenly(counts, CURVE_SCENES)).float().mean()
            values |= {"count_accuracy": accuracy, "boxes_inside": share_inside(z)}
            return {**values, "count_probs": p.log_count().exp()}

        return networks.each(metrics)

    def finish(networks: Networks) -> dict[str, Tensor]:
        def metrics(replicate: int, parts: Any) -> dict[str, Tensor]:
            (p, q), noise = _packed(parts), Noise(config.seed, replicate, 0, FINALS, device=device)
            values = final_metrics(p, q, x_test, counts, truth.boxes.to(device), config, noise)
            return values | dream_metrics(p, x_test, config.seed, replicate)

        return networks.each(metrics)

    return Problem(
        method=METHODS[config.method],
        build=lambda: build(config, packed=not on_gpu),
        draw_batch=lambda noise, rows: _pixels(train[rows], noise, grey),
        evaluate=evaluate,
        num_particles=config.num_particles,
        num_iterations=config.num_iterations,
        log_every=largest_divisor(
            config.num_iterations, max(LEAST_BETWEEN_LOGS, config.num_iterations // 100)
        ),
        learning_rate=lambda iteration: config.learning_rate / 3 ** (iteration >= decays).sum(),
        seed=config.seed,
        epoch=(len(train), config.batch_size),
        optimizer=optimizer,
        phases=(dreams,) if config.dream_iterations else (),
        mapped=on_gpu,  # there one graph of fixed shapes for all replicates beats less work for each
        options=partial(options_at, config),
        finish=finish,
        device=device,
    )


def _packed(parts: Any) -> tuple[GenerativeModel, InferenceNetwork]:
    """The networks of one replicate, packed, since evaluation is not compiled."""
    parts["p"].packed = parts["q"].packed = True
    return parts["p"], parts["q"]


def q_counts(q: InferenceNetwork, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """The count of one sample of q, and the most frequent one of 20, for every scene; ``[N]`` each."""
    with torch.no_grad():
        counts = torch.cat([q.sample(some, 20, noise)[0].count for some in x.split(200)], dim=1)
    frequency = torch.stack([(counts == n).sum(dim=0) for n in range(MAX_OBJECTS + 1)])
    return counts[0], frequency.argmax(dim=0)


def share_inside(z: Latents) -> Tensor:
    """Share of the boxes' area that lies on the canvas, a scalar; 1 without any box."""
    there = torch.arange(MAX_OBJECTS, device=z.count.device) < z.count[..., None]
    corner, size = boxes(z.where).chunk(2, dim=-1)
    inside = ((corner + size).clamp_max(data.CANVAS) - corner.clamp_min(0)).prod(dim=-1) * there
    area = size.prod(dim=-1) * there
    return torch.where(there.any(), inside.sum() / area.sum().clamp_min(1e-9), 1.0)


def weighted_counts(
    p: GenerativeModel, q: InferenceNetwork, x: Tensor, num_particles: int, noise: Noise
) -> Tensor:
    """The most probable count by importance weights, for every scene; ``[N]``."""
    found = []
    with torch.no_grad():
        for some in x.split(40):
            z, log_q = q.sample(some, num_particles, noise)
            v = normalized_weights(p.log_joint(z, some) - log_q)
            mass = torch.stack([(v * (z.count == n)).sum(dim=0) for n in range(MAX_OBJECTS + 1)])
            found.append(mass.argmax(dim=0))
    return torch.cat(found)


def box_overlap(found: Tensor, true: Tensor, counts: Tensor) -> Tensor:
    """Intersection over union of the found boxes with the true ones, the better of both orders; ``[N]``.

    Args:
        found: boxes of the first two objects, ``[N, 2, 4]``.
        true: ``[N, 2, 4]``.
        counts: digits, ``[N]``.

    Returns:
        Mean over the true boxes; NaN for an empty scene.
    """

    def iou(a: Tensor, b: Tensor) -> Tensor:
        low = torch.maximum(a[..., :2], b[..., :2])
        high = torch.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
        shared = (high - low).clamp_min(0).prod(dim=-1)
        union = a[..., 2:].prod(dim=-1) + b[..., 2:].prod(dim=-1) - shared
        return torch.where(union > 0, shared / union.clamp_min(1e-9), 0)

    orders = torch.stack([iou(found, true), iou(found.flip(1), true)])  # [2, N, 2]
    return (orders.sum(dim=-1).amax(dim=0) / counts).where(counts > 0, torch.nan)


def pixel_distance(a: Tensor, b: Tensor) -> Tensor:
    """Wasserstein-1 distance between the values of all pixels of two sets of images, in units of intensity.

    It does not see where a pixel is: alike images have alike values, but not the other way round.
    """
    levels = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    quantiles = []
    for images in (a, b):
        values = images.flatten().sort().values
        quantiles.append(values[(levels * len(values)).long()])
    return (quantiles[0] - quantiles[1]).abs().mean()


def dream_metrics(p: GenerativeModel, x: Tensor, seed: int, replicate: int) -> dict[str, Tensor]:
    """A few samples of the model, and how far its samples' pixels are from those of the scenes ``x``."""
    _, dreams = p.sample(DREAMS, Noise(seed, replicate, 0, SAMPLES, device=x.device))
    return {"dreams": dreams[:SHOWN_DREAMS], "pixel_distance": pixel_distance(dreams, x)}


def nominal_boxes(where: Tensor) -> Tensor:
    """The boxes ``(left, top, width, height)`` that ``box_iou`` compares with the true ones, ``[..., 4]``.

    They take -1 and 1 for the edges of the canvas, where ``crop`` and ``paste`` have the centres of the
    border pixels (``models.air.boxes``): boxes of digits are up to 0.85 pixels off, and ``box_iou`` comes
    out some 0.02 too high.  All records have it so, and stay comparable.
    """
    scale, shift = scales_and_shifts(where)
    return torch.cat([CANVAS * (1 - scale + shift) / 2, CANVAS * scale], dim=-1)


def final_metrics(
    p: GenerativeModel,
    q: InferenceNetwork,
    x: Tensor,
    counts: Tensor,
    true_boxes: Tensor,
    config: AIRConfig,
    noise: Noise,
) -> dict[str, Tensor]:
    """What a trained replicate is judged by; standard errors are over test scenes."""
    some = torch.arange(config.eval_scenes, device=x.device) * len(x) // config.eval_scenes
    estimates = importance_estimates(
        p, q, x[some], config.eval_particles, noise, rows_at_once=1000 if x.device.type == "cpu" else 50_000
    )
    metrics = with_errors(estimates)
    for name, value in estimates.items():
        for n in range(3):
            metrics[f"{name}_{n}_objects"] = value[counts[some] == n].mean()
    sampled, mode = q_counts(q, x, noise)
    weighted = weighted_counts(p, q, x[some], WEIGHTED_PARTICLES, noise)
    with torch.no_grad():
        z = q.sample(x, 1, noise)[0]
    there = torch.arange(2, device=x.device) < z.count[0, :, None]
    found = nominal_boxes(z.where[0, :, :2]) * there[..., None]
    overlap = box_overlap(found, true_boxes, counts)
    return {
        **metrics,
        "count_accuracy_sample": (sampled == counts).float().mean(),
        "count_accuracy_mode": (mode == counts).float().mean(),
        "count_accuracy_weighted": (weighted == counts[some]).float().mean(),
        "box_iou": overlap.nanmean(),
    }
