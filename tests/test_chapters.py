"""What chapters share: looking runs up, training what is short, and saying what is missing."""

from pathlib import Path

import numpy as np
import pytest

from rwslib.experiments import GMMConfig
from rwslib.records import RunRecord
from rwslib.report import chapters


@pytest.fixture
def store(monkeypatch):
    """A store with one record, that of WW with 2 particles; what is trained, and what is displayed."""
    trained, shown = [], []
    known = RunRecord({"method": "ww"}, {}, {}, Path("known"))

    def stored(config, results_dir, fewer_runs=False):
        assert fewer_runs
        return known if (config.method, config.num_particles) == ("ww", 2) else None

    def run(config, results_dir, device, progress):
        trained.append((config.method, config.num_particles))
        return RunRecord({"method": config.method}, {}, {}, Path("new"))

    monkeypatch.setattr(chapters, "stored", stored)
    monkeypatch.setattr(chapters, "run", run)
    monkeypatch.setattr(chapters, "display", lambda markdown: shown.append(markdown.data))
    return trained, shown


def configs():
    return {(m, K): GMMConfig(m, K, num_iterations=10 * K) for m, K in [("vimco", 2), ("ww", 5), ("ww", 2)]}


def test_what_is_stored_is_found_and_what_is_short_is_trained(store):
    trained, shown = store
    runs = chapters.find_or_train(configs(), None, 50, "num_iterations")
    assert list(runs) == list(configs())  # in the order asked for
    assert runs["ww", 2].path == Path("known") and sorted(trained) == [("vimco", 2), ("ww", 5)]
    assert not shown
    assert list(chapters.look_up(configs(), None)) == [("ww", 2)]


def test_what_is_too_long_is_named(store):
    trained, shown = store
    runs = chapters.find_or_train(configs(), None, 20, "num_iterations")
    assert list(runs) == [("vimco", 2), ("ww", 2)] and trained == [("vimco", 2)]
    (said,) = shown
    assert said.startswith("Not run at these settings: WW, K = 5. Runs with `num_iterations` above 20 ")


def test_values_come_with_the_larger_error():
    metrics = {"kl": np.array([9.2, 9.26]), "kl_se": np.array([0.02, 0.04])}
    assert chapters.values(RunRecord({}, {}, metrics, Path("none")), "kl") == "9.20, 9.26 (0.04)"
