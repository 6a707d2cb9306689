"""What chapter 5 asks of its parameters: the checks that all experiments have, for a model in a notebook.

There is no problem and no record here: the model, its data and its metrics live in the notebook.
"""

from dataclasses import dataclass

from rwslib import data
from rwslib.experiments.common import check_common, require, require_int

OFFERS = ("one_kind",)  # to methods: no path derivative, no relaxation, no further network


@dataclass(frozen=True)
class OwnModelConfig:
    """One cell of chapter 5: a method and a number of particles, and what all its cells share.

    Attributes:
        method: a name in ``rwslib.methods.usable(*OFFERS)``.
        num_particles: K.
        dataset: "digits" or "mnist", see ``rwslib.data``.
        num_latents: bits of the top layer and of the one below.
        num_iterations: optimiser steps.
        num_runs: replicates, trained together, independent of each other.
        batch_size: images in a step.
        learning_rate: of Adam.
        eval_particles: particles of the log evidence and of the divergence.
        seed: of everything random, at least 1.
    """

    method: str
    num_particles: int
    dataset: str
    num_latents: list[int]
    num_iterations: int
    num_runs: int
    batch_size: int
    learning_rate: float
    eval_particles: int
    seed: int

    def __post_init__(self):
        check_common(self, *OFFERS)
        require(self.dataset in list(data.DATASETS), "dataset", f"one of {list(data.DATASETS)}", self.dataset)
        two = isinstance(self.num_latents, list) and len(self.num_latents) == 2
        require(two, "num_latents", "a list of two whole numbers", self.num_latents)
        for size in self.num_latents:
            require_int("num_latents", size, 1)
        require_int("num_iterations", self.num_iterations, 1)
        require_int("eval_particles", self.eval_particles, 1)
