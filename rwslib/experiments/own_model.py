"""What chapter 5 asks of its parameters: the checks that all experiments have, for a model in a notebook.

There is no problem and no record here: the model, its data and its metrics live in the notebook.
"""

from dataclasses import dataclass

from rwslib import data
from rwslib.experiments.common import check_common, checked, each, one_of, whole

OFFERS = ("one_kind",)  # to methods: no path derivative, no relaxation, no further network


@dataclass(frozen=True)
class OwnModelConfig:
    """One cell of chapter 5: a method and a number of particles, and what all its cells share."""

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
