"""What the tests of interrupted runs share."""

import numpy as np
import pytest

from rwslib.experiments import run, stored
from rwslib.training import Trainer, trainer


def assert_same_run(left, right):
    """Two records with equal metrics and weights, and equal files of metrics, bit for bit."""
    for found, expected in ((left.metrics, right.metrics), (left.weights(), right.weights())):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)
    files = [(record.path / "metrics.npz").read_bytes() for record in (left, right)]
    assert files[0] == files[1]


def record_steps(monkeypatch):
    """A list that fills with the iterations at which blocks of training begin."""
    steps, train_block = [], Trainer.train_block

    def counted(trainer):
        steps.append(trainer.iteration)
        train_block(trainer)

    monkeypatch.setattr(Trainer, "train_block", counted)
    return steps


def assert_resumes(config, iteration, folder, monkeypatch):
    """Interrupt a run where it logs this iteration, resume it, compare it with an undisturbed one.

    Returns:
        The iterations at which blocks of the resumed run began.
    """
    log = Trainer.log

    def interrupted(trainer):
        if trainer.iteration == iteration:
            raise KeyboardInterrupt
        log(trainer)

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "CHECKPOINT_SECONDS", -1.0)
        patched.setattr(Trainer, "log", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(config, folder / "interrupted")
    assert stored(config, folder / "interrupted") is None
    assert len(list((folder / "interrupted" / config.experiment).glob("*.checkpoint"))) == 1
    with monkeypatch.context() as patched:
        steps = record_steps(patched)
        resumed = run(config, folder / "interrupted")
    assert_same_run(resumed, run(config, folder / "whole"))
    return steps
