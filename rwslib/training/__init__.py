"""One training loop for all experiments: replicates trained together, checkpointed, resumable.

The model code is written for one run.  Here the parameters of R replicates are stacked, the
gradient of the method's loss is mapped over them, and several optimiser steps are compiled into one
program.  Each replicate reads its own random numbers, drawn for a block of steps at once: they depend on
the seed, the replicate, and where the block begins and ends.
"""

from rwslib.training.acceleration import largest_divisor
from rwslib.training.networks import Networks
from rwslib.training.problem import Phase, Problem
from rwslib.training.trainer import Trainer

__all__ = ["Networks", "Phase", "Problem", "Trainer", "largest_divisor"]
