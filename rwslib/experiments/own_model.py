"""What chapter 5 asks of its parameters: the checks that all experiments have, for a model in a notebook.

There is no problem and no record here: the model, its data and its metrics live in the notebook.
"""

from dataclasses import dataclass

from rwslib import data
from rwslib.experiments.common import check_common, checked, each, one_of, whole

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
    num_runs: int
    batch_size: int
    learning_rate: float
    seed: int
    dataset: str = checked(one_of(data.DATASETS))
    num_latents: list[int] = checked(each(whole(1), "a list of two whole numbers", 2))
    num_iterations: int = checked(whole(1))
    eval_particles: int = checked(whole(1))
    offers = OFFERS  # of the class, no field

    def __post_init__(self):
        check_common(self)
