"""The published weights do what their records say; needs MNIST, which the reader's machine may not have."""

import math
from pathlib import Path

import pytest
import torch

from rwslib import data, records
from rwslib.evaluation import importance_estimates
from rwslib.experiments import air, modules, vae
from rwslib.methods import wake_wake
from rwslib.noise import Noise

RECORDS = list(records.iterate(Path(__file__).resolve().parent.parent / "book/results"))
WITH_WEIGHTS = {
    experiment: [
        record
        for record in RECORDS
        if record.config["experiment"] == experiment and (record.path / "weights.safetensors").exists()
    ]
    for experiment in ("vae", "air")
}

needs_mnist = pytest.mark.skipif(
    not (data.folder() / "mnist").exists(),
    reason=f"MNIST is not in {data.folder()}; set RWSLIB_DATA to the folder that holds mnist/",
)


def test_there_are_published_weights():
    assert len(WITH_WEIGHTS["vae"]) >= 2
    assert len(WITH_WEIGHTS["air"]) >= 1


@needs_mnist
@pytest.mark.parametrize("record", WITH_WEIGHTS["vae"], ids=lambda record: record.key)
def test_published_weights_reproduce_the_recorded_log_evidence_of_the_first_images(record):
    """New particles; the estimates of one image differ by their own noise, not that between images."""
    recorded = torch.from_numpy(record.metrics["log_marginal_first"][0])[:25]
    x = vae.test_images("mnist")[: len(recorded)]
    parts = modules(record)
    found = importance_estimates(parts["p"], parts["q"], x, record.config["eval_particles"], Noise(99))
    difference = found["log_marginal"] - recorded
    assert abs(difference.mean()) < 5 * difference.std() / math.sqrt(len(x))
    assert difference.std() < 2  # nats; few of the 5000 particles carry the weight


@needs_mnist
@pytest.mark.parametrize("record", WITH_WEIGHTS["air"], ids=lambda record: record.key)
def test_published_weights_count_as_well_as_recorded_and_keep_it_in_training(record):
    x, truth = air.test_scenes("mnist")
    x, counts = x[:1000], truth.counts[:1000]
    parts = modules(record)
    p, q = parts["p"], parts["q"]

    def accuracy(seed: int) -> float:
        with torch.no_grad():
            return (q.sample(x, 1, Noise(seed))[0].count[0] == counts).float().mean().item()

    recorded = float(record.metrics["count_accuracy_sample"][0])
    error = math.sqrt(recorded * (1 - recorded) / len(x))
    assert abs(accuracy(1) - recorded) < 5 * error
    optimizer = torch.optim.Adam([*p.parameters(), *q.parameters()], lr=5e-5)
    images, noise = data.scenes("mnist", "train", 320).images.flatten(1), Noise(2)
    for batch in images.split(32):
        optimizer.zero_grad()
        wake_wake(p, q, data.binarize(batch, noise), 5, noise).mean().backward()
        optimizer.step()
    assert accuracy(3) > recorded - 5 * error - 0.02
