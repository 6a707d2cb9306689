"""Settings shared by all tests."""

import torch
from hypothesis import settings

torch.set_num_threads(1)  # the tests' tensors are small; more threads only wait for each other

# The same examples every time, and no time limit: a failure can be repeated, a busy machine causes none.
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None, max_examples=100)
settings.load_profile("repeatable")
