"""Chapter 5's model, taken from the notebook itself: densities, samplers, gradients, training."""

import copy
import math
import re
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import torch
from torch import nn

from rwslib.estimators import log_evidence
from rwslib.experiments.own_model import OFFERS, OwnModelConfig
from rwslib.methods import METHODS, usable
from rwslib.noise import Noise
from rwslib.training import Problem, Trainer
from rwslib.training.acceleration import can_compile

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks/05_your_own_model.ipynb"
SIZES = (2, 3, 4)  # bits of the top and of the bottom layer, and pixels
NUM = 100_000

SOURCES = [
    cell.source
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells
    if cell.cell_type == "code"
    and re.search(r"^(class (BeliefNet|Recognition)|def log_bernoulli)", cell.source)
]


@pytest.fixture
def networks():
    """p and q of the chapter, small, in double precision, with weights that matter."""
    namespace = {"torch": torch, "nn": nn}
    for source in SOURCES:
        exec(source, namespace)
    torch.manual_seed(0)
    parts = {"p": namespace["BeliefNet"](*SIZES), "q": namespace["Recognition"](*SIZES)}
    for part in parts.values():
        for weights in part.double().parameters():
            nn.init.normal_(weights)
    return parts


def strings(length):
    """All strings of bits, ``[2**length, length]``."""
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * length)


def index(bits):
    """Row of ``strings`` that each string of bits is."""
    return (bits @ 2.0 ** torch.arange(bits.shape[-1] - 1, -1, -1, dtype=bits.dtype)).long()


def assert_frequencies(rows, probs):
    """Counts of NUM draws are those of the probabilities, within 5 standard deviations and a draw."""
    counts = torch.bincount(rows.flatten(), minlength=len(probs))
    assert counts.sum() == NUM
    assert ((counts - NUM * probs).abs() < 1 + 5 * (NUM * probs * (1 - probs)).sqrt()).all()


def test_the_model_has_forty_lines():
    assert len(SOURCES) == 3
    assert sum(bool(line.strip()) for source in SOURCES for line in source.splitlines()) <= 40


@torch.no_grad()
def test_the_generative_model_draws_what_its_density_says(networks):
    z, x = strings(5)[:, None], strings(4)
    probs = networks["p"].log_joint(z, x).exp()
    assert probs.sum().item() == pytest.approx(1)
    drawn_z, drawn_x = networks["p"].sample(NUM, Noise(1))
    assert (drawn_z.shape, drawn_x.shape) == ((NUM, 5), (NUM, 4))
    assert_frequencies(index(torch.cat([drawn_z, drawn_x], dim=-1)), probs.flatten())


@torch.no_grad()
def test_the_inference_network_draws_what_its_density_says(networks):
    x = strings(4)[[3, 12]]
    log_probs = networks["q"].log_prob(strings(5)[:, None], x)  # [32, 2]
    assert log_probs.exp().sum(dim=0).tolist() == pytest.approx([1, 1])
    z, log_q = networks["q"].sample(x, NUM, Noise(2))
    assert (z.shape, log_q.shape) == ((NUM, 2, 5), (NUM, 2))
    for column in range(2):
        rows = index(z[:, column])
        assert torch.equal(log_q[:, column], networks["q"].log_prob(z, x)[:, column])
        assert torch.allclose(log_q[:, column], log_probs[rows, column])
        assert_frequencies(rows, log_probs[:, column].exp())


@torch.no_grad()
def test_importance_weights_average_to_the_evidence(networks):
    x = strings(4)[[3, 12]]
    z, log_q = networks["q"].sample(x, NUM, Noise(3))
    log_w = networks["p"].log_joint(z, x) - log_q
    exact = networks["p"].log_joint(strings(5)[:, None], x).logsumexp(dim=0)
    error = (log_w - exact).exp().std(dim=0) / math.sqrt(NUM)
    assert ((log_evidence(log_w) - exact).exp() - 1).abs().lt(5 * error).all()


def train(networks, method, num_iterations, compiled):
    """Parameters after training on strings of bits, from the same start each time."""
    data = strings(4).float()
    problem = Problem(
        method=METHODS[method],
        build=lambda: {name: copy.deepcopy(part).float() for name, part in networks.items()},
        draw_batch=lambda noise, rows: data[rows],
        evaluate=lambda networks: {},
        num_particles=3,
        num_iterations=num_iterations,
        log_every=num_iterations,
        learning_rate=0.01,
        seed=1,
        epoch=(len(data), 8),
    )
    trainer = Trainer(problem, range(2), compiled=compiled)
    start = {name: value.clone() for name, value in trainer.params.items()}
    trainer.train()
    return start, trainer.params


@pytest.mark.parametrize("method", usable(*OFFERS))
def test_every_method_that_the_chapter_takes_moves_every_parameter(networks, method):
    start, end = train(networks, method, 2, compiled=False)
    assert all(torch.isfinite(value).all() and (value != start[name]).any() for name, value in end.items())


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason="no C++ compiler")
def test_long_runs_compile(networks, compiler):
    _, plain = train(networks, "ww", 3, compiled=False)
    _, compiled = train(networks, "ww", 3, compiled=True)  # odd: one step at a time, which compiles faster
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-5)


def test_the_chapter_takes_all_methods_that_need_no_more_than_a_model():
    def needs_no_more(row):
        more = row.control_variate or "delta" in row.options or "two_kinds" in row.needs
        return row.latent == "any" and not more

    assert set(usable(*OFFERS)) == {name for name, row in METHODS.items() if needs_no_more(row)}


GOOD = OwnModelConfig(
    "ww",
    2,
    dataset="digits",
    num_latents=[8, 16],
    num_iterations=10,
    num_runs=1,
    batch_size=30,
    learning_rate=0.01,
    eval_particles=50,
    seed=1,
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "iwae"}, "method must be one of"),
        (
            {"method": "vimco", "num_particles": 1},
            "num_particles must be at least 2 for method 'vimco', got 1",
        ),
        ({"dataset": "mist"}, r"dataset must be one of \['mnist', 'digits'\], got 'mist'"),
        ({"num_latents": [8]}, r"num_latents must be a list of two whole numbers, got \[8\]"),
        ({"num_latents": [8, 0]}, "num_latents must be a whole number of at least 1, got 0"),
        ({"num_iterations": 0}, "num_iterations must be a whole number of at least 1, got 0"),
        ({"eval_particles": 0}, "eval_particles must be a whole number of at least 1, got 0"),
        ({"learning_rate": -1.0}, "learning_rate must be a number above 0, got -1.0"),
    ],
)
def test_bad_parameters_are_refused_with_one_sentence(change, message):
    with pytest.raises(ValueError, match=message):
        replace(GOOD, **change)
