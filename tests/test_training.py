"""Replicates, optimiser, checkpoints: what the training loop promises."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from rwslib import records
from rwslib.experiments import GMMConfig, gmm, run
from rwslib.methods import METHODS
from rwslib.noise import Tape
from rwslib.training import Trainer, adam, largest_divisor

CATEGORICAL = [name for name, method in METHODS.items() if method.latent != "reparameterisable"]


def small(method, **changes):
    settings = {"num_particles": 3, "num_iterations": 100, "num_runs": 3, "batch_size": 20} | changes
    return GMMConfig(method, **settings)


def trained(config, replicates=None, blocks=20):
    trainer = Trainer(gmm.problem(config), replicates or range(config.num_runs), compiled=False)
    for _ in range(blocks):
        trainer.train_block()
    return trainer


@pytest.mark.parametrize("method", CATEGORICAL)
def test_a_replicate_does_not_depend_on_its_neighbours(method):
    config = small(method)
    together, alone = trained(config), trained(config, [1])
    for name, value in alone.params.items():
        torch.testing.assert_close(value[0], together.params[name][1])
        assert not torch.equal(together.params[name][0], together.params[name][1])


@pytest.mark.parametrize("method", ["ww", "relax", "nvil"])
def test_steps_are_those_of_torch_adam(method):
    config = small(method)
    trainer = Trainer(gmm.problem(config), [0], compiled=False)
    params = {name: value[0].clone().requires_grad_() for name, value in trainer.params.items()}
    optimiser = torch.optim.Adam(params.values(), lr=config.learning_rate)
    for _ in range(10):
        (uniform,), (normal,) = trainer._tapes(trainer.block, trainer.numbers)
        for step in range(trainer.block):
            progress = torch.tensor((trainer.iteration + step) / config.num_iterations)
            detached = {name: value.detach() for name, value in params.items()}
            tape = Tape(uniform[step], normal[step])
            x = trainer.problem.draw_batch(tape, torch.empty(0))
            grads = trainer.gradients(detached, x, tape, progress)
            for name, value in params.items():
                value.grad = grads[name].detach()
            optimiser.step()
        trainer.train_block()
    for name, value in params.items():
        torch.testing.assert_close(trainer.params[name][0], value.detach(), rtol=1e-5, atol=1e-6)


def test_adam_matches_torch_over_many_steps():
    value = torch.tensor([1.0, -2.0])
    reference = value.clone().requires_grad_()
    optimiser = torch.optim.Adam([reference], lr=0.1)
    params, moments = {"a": value}, ({"a": torch.zeros(2)}, {"a": torch.zeros(2)})
    for step in range(1, 200):
        reference.grad = 2 * reference.detach() + 0.1
        optimiser.step()
        grads = {"a": 2 * params["a"] + 0.1}
        params, moments = adam(params, grads, moments, torch.tensor(float(step)).double(), 0.1)
    torch.testing.assert_close(params["a"], reference.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ww", "relax"])
def test_compiled_steps_equal_eager_ones(method):
    config = small(method, num_iterations=200)
    eager = Trainer(gmm.problem(config), range(2), compiled=False)
    compiled = Trainer(gmm.problem(config), range(2), compiled=True)
    for _ in range(5):
        eager.train_block()
        compiled.train_block()
    for name, value in eager.params.items():
        # ten steps of Adam move a parameter by up to 1e-2; rounding near a zero gradient shows at 1e-4
        torch.testing.assert_close(compiled.params[name], value, rtol=0, atol=5e-4)


@pytest.mark.parametrize("method", ["ww", "relax", "concrete"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(method, tmp_path):
    problem = gmm.problem(small(method))
    whole = Trainer(problem, range(2), compiled=False)
    curves = whole.train()

    first = Trainer(problem, range(2), compiled=False)
    first.log()
    while first.iteration < 40:
        first.train_block()
        first.log()
    first.save(tmp_path / "state", seconds=5.0)
    second = Trainer(problem, range(2), compiled=False)
    resumed = second.train(tmp_path / "state")

    assert second.seconds > 5
    assert resumed.keys() == curves.keys()
    for name, value in curves.items():
        np.testing.assert_array_equal(resumed[name], value)
    for name, value in whole.params.items():
        assert torch.equal(second.params[name], value)


def test_a_damaged_checkpoint_is_refused_with_its_path(tmp_path):
    trainer = Trainer(gmm.problem(small("ww")), [0], compiled=False)
    path = tmp_path / "state"
    trainer.save(path, seconds=0)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged") as error:
        trainer.load(path)
    assert str(path) in str(error.value)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_record(tmp_path):
    config = small("ww", num_iterations=3000, num_runs=2)
    script = (
        "import sys; from rwslib import training; training.CHECKPOINT_SECONDS = 0\n"
        "from rwslib.experiments import GMMConfig, run\n"
        f"run({config!r}, sys.argv[1])"
    )
    command = [sys.executable, "-c", script]
    killed = subprocess.Popen([*command, str(tmp_path / "killed")])
    checkpoint = records.folder(records.plain(config), tmp_path / "killed").with_suffix(".checkpoint")
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert checkpoint.exists()
    assert not list((tmp_path / "killed").glob("*/*/metrics.npz"))  # a half-done run is no record

    for folder in ("killed", "undisturbed"):
        subprocess.run([*command, str(tmp_path / folder)], check=True)
    left, right = (run(config, tmp_path / folder) for folder in ("killed", "undisturbed"))
    assert left.metrics.keys() == right.metrics.keys()
    for name, value in right.metrics.items():
        np.testing.assert_array_equal(left.metrics[name], value)
    for name, value in right.weights().items():
        np.testing.assert_array_equal(left.weights()[name], value)


def test_metrics_are_what_they_say():
    """At the far start, against the constants of the closed form."""
    trainer = Trainer(gmm.problem(small("ww")), range(2), compiled=False)
    trainer.log()
    curves = {name: values[0] for name, values in trainer.curves.items()}
    np.testing.assert_allclose(curves["prior_l2"], 0.69392, atol=1e-5)
    np.testing.assert_array_equal(curves["support_size"], 7)  # logits 19, 18, ...: e^-6 > 1e-3 > e^-7
    assert curves["phi_gradient_std"].shape == (2,)
    assert (curves["phi_gradient_std"] > 0).all()
    assert (curves["kl_q_p"] > 0).all()
    assert (curves["kl_p_q"] > 0).all()
    np.testing.assert_allclose(curves["prior_probs"].sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(curves["probe_probs"].sum(-1), 1, rtol=1e-5)


def test_ww_from_the_near_start_with_many_particles_learns():
    config = small(
        "ww", num_particles=20, num_iterations=600, init="near", learning_rate=0.02, batch_size=100
    )
    curves = Trainer(gmm.problem(config), range(2), compiled=False).train()
    for metric, factor in {"prior_l2": 0.3, "posterior_l2": 0.8, "kl_p_q": 0.5}.items():
        assert (curves[metric][:, -1] < factor * curves[metric][:, 0]).all()


def test_more_than_ten_thousand_iterations_still_end_on_a_logged_one():
    for num_iterations in (1, 7, 99, 100, 101, 2000, 99_991):
        problem = gmm.problem(replace(small("ww"), num_iterations=num_iterations))
        assert num_iterations % problem.log_every == 0


def test_largest_divisor():
    assert [largest_divisor(12, limit) for limit in (1, 2, 5, 7, 12, 100)] == [1, 2, 4, 6, 12, 12]
