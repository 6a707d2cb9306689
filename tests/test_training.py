"""Replicates, optimiser, checkpoints: what the training loop promises."""

import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import GaussianModel, GaussianNetwork

from rwslib import records
from rwslib.experiments import GMMConfig, gmm, run
from rwslib.methods import METHODS, usable
from rwslib.methods.wake_sleep import wake_theta
from rwslib.noise import Tape
from rwslib.training import Phase, Problem, Trainer, largest_divisor
from rwslib.training import trainer as trainer_module
from rwslib.training.acceleration import can_compile, compile_or_keep
from rwslib.training.optimizers import Optimizer, adam, delayed

CATEGORICAL = list(usable(*gmm.OFFERS))


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
        (uniform,), (normal,), _ = trainer.draw(trainer.block)
        for step in range(trainer.block):
            progress = torch.tensor((trainer.iteration + step) / config.num_iterations)
            detached = {name: value.detach() for name, value in params.items()}
            tape = Tape(uniform[step], normal[step])
            x = trainer.problem.draw_batch(tape, torch.empty(0))
            grads = trainer.objective.gradients(detached, x, tape, progress)
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


def assert_resumes(problem, iteration, checkpoint):
    """Stop at an iteration, go on from the checkpoint, and compare with an undisturbed run, bit for bit."""
    whole = Trainer(problem, range(2), compiled=False)
    curves = whole.train()
    first = Trainer(problem, range(2), compiled=False)
    first.log()
    while first.iteration < iteration:
        first.train_block()
        first.log()
    first.save(checkpoint, seconds=5.0)
    second = Trainer(problem, range(2), compiled=False)
    resumed = second.train(checkpoint)
    assert second.seconds > 5
    assert resumed.keys() == curves.keys()
    for name, value in curves.items():
        np.testing.assert_array_equal(resumed[name], value)
    for name, value in whole.params.items():
        assert torch.equal(second.params[name], value)


@pytest.mark.parametrize("method", ["ww", "relax", "concrete"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(method, tmp_path):
    assert_resumes(gmm.problem(small(method, num_iterations=40)), 16, tmp_path / "state")


def test_what_a_checkpoint_gives_back_is_aligned_as_new_tensors_are(tmp_path):
    """Else the last digits of a resumed run differ."""
    trainer = Trainer(gmm.problem(small("ww")), [0], compiled=False)
    trainer.save(tmp_path / "state", seconds=0)
    assert trainer.load(tmp_path / "state")
    for tensors in (trainer.params, *trainer.moments):
        assert all(value.data_ptr() % 64 == 0 for value in tensors.values())


def test_a_damaged_checkpoint_is_refused_with_its_path(tmp_path):
    trainer = Trainer(gmm.problem(small("ww")), [0], compiled=False)
    path = tmp_path / "state"
    trainer.save(path, seconds=0)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged") as error:
        trainer.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("place", [-1, -1000, 9, 100, 400])
def test_a_flipped_byte_in_a_checkpoint_is_noticed(place, tmp_path):
    trainer = Trainer(gmm.problem(small("ww")), [0], compiled=False)
    path = tmp_path / "state"
    trainer.save(path, seconds=0)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint .* is damaged"):
        trainer.load(path)


def test_a_checkpoint_without_a_checksum_is_taken(tmp_path):
    trainer = trained(small("ww"), blocks=1)
    trainer.save(tmp_path / "state", seconds=2)
    metadata = {"iteration": str(trainer.iteration), "asked": "100", "seconds": "2"}
    save_file(load_file(tmp_path / "state"), tmp_path / "old", metadata=metadata)
    again = Trainer(trainer.problem, trainer.replicates, compiled=False)
    assert again.load(tmp_path / "old")
    assert again.iteration == trainer.iteration
    for name, value in trainer.params.items():
        assert torch.equal(again.params[name], value)


@pytest.mark.parametrize("number", [{"iteration": "many"}, {"iteration": ""}, {"seconds": "long"}])
def test_a_checkpoint_with_damaged_numbers_is_refused_with_its_path(number, tmp_path):
    trainer = Trainer(gmm.problem(small("ww")), [0], compiled=False)
    path = tmp_path / "state"
    trainer.save(path, seconds=0)
    metadata = {"iteration": "0", "seconds": "0"} | number
    save_file(load_file(path), path, metadata=metadata)
    with pytest.raises(ValueError, match=r"checkpoint .* is damaged .*delete it") as error:
        trainer.load(path)
    assert str(path) in str(error.value)


def interrupting(function, at, ending=KeyboardInterrupt):
    """The function, but that a call of it ends all."""
    calls = []

    def interrupted(*arguments, **named):
        calls.append(function)
        if len(calls) == at:
            raise ending
        return function(*arguments, **named)

    return interrupted


@pytest.mark.parametrize(
    ("name", "at", "ending", "iteration"),
    [
        ("_steps", 8, KeyboardInterrupt, 7),  # between two logs
        ("draw", 7, SystemExit, 6),
        ("log", 3, KeyboardInterrupt, 10),
        ("evaluate", 3, KeyboardInterrupt, 10),
    ],
)
def test_an_interrupted_run_writes_a_checkpoint_on_its_way_out(
    name, at, ending, iteration, tmp_path, monkeypatch
):
    """Wherever it is at that moment; it ends with the numbers of an undisturbed one."""
    monkeypatch.setattr(trainer_module, "NOISE_BLOCK", 1)  # so a block is one step
    problem = replace(gmm.problem(small("ww")), num_iterations=15, log_every=5)
    stopped = Trainer(problem, range(2))
    owner = stopped if hasattr(stopped, name) else stopped.problem
    object.__setattr__(owner, name, interrupting(getattr(owner, name), at, ending))
    path = tmp_path / "state"
    with pytest.raises(ending):
        stopped.train(path)
    problem = replace(problem, evaluate=gmm.problem(small("ww")).evaluate)
    resumed = Trainer(problem, range(2))
    assert resumed.load(path)
    assert resumed.iteration == iteration
    found, expected = Trainer(problem, range(2)).train(path), Trainer(problem, range(2)).train()
    assert found.keys() == expected.keys()
    for metric, value in expected.items():
        np.testing.assert_array_equal(found[metric], value)


def test_a_run_that_is_stopped_before_its_first_step_leaves_nothing(tmp_path):
    trainer = Trainer(gmm.problem(small("ww")), [0], compiled=False)
    trainer.log = interrupting(trainer.log, 1)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(tmp_path / "state")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_record(tmp_path, monkeypatch):
    config = small("ww", num_iterations=200, num_runs=2)
    script = (
        "import sys; from rwslib.training import trainer\n"
        "trainer.CHECKPOINT_SECONDS, trainer.COMPILE_FROM = 0, 10**9\n"
        "from rwslib.experiments import GMMConfig, run\n"
        f"run({config!r}, sys.argv[1])"
    )
    killed = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "killed")])
    checkpoint = records.folder(records.plain(config), tmp_path / "killed").with_suffix(".checkpoint")
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert checkpoint.exists()
    assert not list((tmp_path / "killed").glob("*/*/metrics.npz"))  # a half-done run is no record

    monkeypatch.setattr(trainer_module, "COMPILE_FROM", 10**9)
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


# -- data that are gone through in epochs --------------------------------------------------------------


def data_problem(num_rows, batch_size, **changes):
    """The linear Gaussian model fitted to fixed data."""
    observations = torch.linspace(-2, 2, num_rows)
    settings = {
        "method": METHODS["iwae"],
        "build": lambda: {"p": GaussianModel(), "q": GaussianNetwork()},
        "draw_batch": lambda noise, rows: observations[rows] + 0.1 * noise.normal(batch_size),
        "evaluate": lambda networks: networks.map_modules(lambda p, q: {"mean": p.mean}),
        "num_particles": 2,
        "num_iterations": 10 * (num_rows // batch_size),
        "log_every": num_rows // batch_size,
        "learning_rate": 0.01,
        "seed": 5,
        "epoch": (num_rows, batch_size),
    }
    return Problem(**settings | changes)


def rows_of_epochs(problem, replicates=(0,), num_epochs=3):
    """The rows that training takes, ``[R, num_epochs, rows in whole batches]``."""
    trainer, rows = Trainer(problem, replicates, compiled=False), []
    while trainer.iteration < num_epochs * (problem.epoch[0] // problem.epoch[1]):
        rows.append(trainer.draw(trainer.block)[2])
        trainer.iteration += trainer.block
    return torch.cat(rows, dim=1).unflatten(1, (num_epochs, -1)).flatten(2)


@pytest.mark.parametrize(("num_rows", "batch_size"), [(12, 3), (12, 12), (12, 1), (11, 3), (7, 4)])
def test_an_epoch_presents_each_datum_once_in_whole_batches(num_rows, batch_size):
    rows = rows_of_epochs(data_problem(num_rows, batch_size), range(2))
    presented = num_rows // batch_size * batch_size
    assert rows.shape == (2, 3, presented)
    for epoch in rows.flatten(0, 1).tolist():
        assert len(set(epoch)) == presented
        assert set(epoch) <= set(range(num_rows))


def test_the_rows_left_out_of_whole_batches_are_others_in_each_epoch():
    rows = rows_of_epochs(data_problem(11, 3), num_epochs=40)[0]
    assert rows.flatten().bincount(minlength=11).min() > 25  # of 40, 32.7 in expectation


def test_the_order_is_fresh_in_every_epoch_and_replicate_and_the_same_every_time():
    problem = data_problem(40, 4)
    rows = rows_of_epochs(problem, range(3))
    orders = {tuple(order) for order in rows.flatten(0, 1).tolist()}
    assert len(orders) == 9
    assert torch.equal(rows, rows_of_epochs(problem, range(3)))
    assert not torch.equal(rows, rows_of_epochs(replace(problem, seed=6), range(3)))


def test_the_order_of_a_replicate_does_not_depend_on_its_neighbours():
    problem = data_problem(40, 4)
    together = rows_of_epochs(problem, range(3))
    for replicate in range(3):
        assert torch.equal(rows_of_epochs(problem, [replicate])[0], together[replicate])


def test_a_replicate_on_data_does_not_depend_on_its_neighbours():
    problem = data_problem(12, 3)
    together, alone = (Trainer(problem, replicates, compiled=False) for replicates in ([0, 1, 2], [1]))
    together.train()
    alone.train()
    for name, value in alone.params.items():
        torch.testing.assert_close(value[0], together.params[name][1])
        assert not torch.equal(together.params[name][0], together.params[name][1])


def test_training_takes_the_rows_of_its_epoch():
    """Where every row is the same but one, only the step that presents that one differs."""
    observations = torch.zeros(12)
    observations[7] = 3.0
    problem = data_problem(12, 3, draw_batch=lambda noise, rows: observations[rows], log_every=1)
    plain = replace(problem, draw_batch=lambda noise, rows: torch.zeros(3))
    turn = (rows_of_epochs(problem)[0, 0] == 7).nonzero().item() // 3
    left, right = (Trainer(which, [0], compiled=False) for which in (problem, plain))
    assert left.block == 1
    same = []
    for _ in range(4):
        left.train_block()
        right.train_block()
        same.append(all(torch.equal(left.params[name], right.params[name]) for name in left.params))
    assert same == [True] * turn + [False] * (4 - turn)


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="batch_size must be at most the 12 data, got 13"):
        Trainer(data_problem(12, 13, log_every=1), [0])


@pytest.mark.parametrize("method", ["relax", "rebar"])
def test_variance_objectives_need_mapped_replicates(method):
    problem = replace(gmm.problem(small(method)), mapped=False)
    with pytest.raises(
        ValueError, match=rf"mapped must be True for method {problem.method.title}.*, got False"
    ):
        Trainer(problem, [0])


def test_without_epochs_there_are_no_rows():
    assert Trainer(gmm.problem(small("ww")), range(2), compiled=False).draw(5)[2].shape == (2, 5, 0)


def test_a_run_resumed_within_an_epoch_equals_an_uninterrupted_one(tmp_path):
    assert_resumes(data_problem(12, 2, log_every=2), 16, tmp_path / "state")  # six steps an epoch


# -- learning rates that change ------------------------------------------------------------------------


def test_the_learning_rate_may_be_a_function_of_the_iteration():
    """Steps of Adam are proportional to the rate: none before iteration 3, a tenth from 6 on."""

    def rate(iteration):
        assert iteration.dtype == torch.float64
        return torch.where(iteration < 3, 0.0, torch.where(iteration < 6, 1e-2, 1e-3))

    trainer = Trainer(data_problem(12, 3, learning_rate=rate, log_every=1), [0], compiled=False)
    values = []
    for _ in range(10):
        values.append(trainer.params["parts.q.offset"].item())
        trainer.train_block()
    steps = np.abs(np.diff(values))
    assert (steps[:3] == 0).all()
    assert (steps[3:6] > 2e-3).all()
    assert (steps[6:] < 1.1e-3).all()
    assert (steps[6:] > 0).all()


def test_a_constant_function_is_as_good_as_a_number():
    number, function = (
        Trainer(data_problem(12, 3, learning_rate=rate), range(2), compiled=False)
        for rate in (0.01, lambda iteration: torch.tensor(0.01, dtype=torch.float64))
    )
    number.train()
    function.train()
    for name, value in number.params.items():
        torch.testing.assert_close(function.params[name], value, rtol=0, atol=1e-7)


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason="no C++ compiler or Python headers")
def test_compiled_steps_take_rows_and_rates_as_eager_ones_do(compiler):
    problem = data_problem(12, 3, learning_rate=lambda iteration: torch.where(iteration < 5, 1e-2, 1e-3))
    eager, compiled = (Trainer(problem, range(2), compiled=compiled) for compiled in (False, True))
    eager.train()
    compiled.train()
    for name, value in eager.params.items():
        torch.testing.assert_close(compiled.params[name], value, rtol=0, atol=5e-4)


# -- replicates as modules, and checkpoints of longer runs ---------------------------------------------


def test_modules_are_a_copy_of_one_replicate():
    trainer = trained(small("ww"))
    before = {name: value.clone() for name, value in trainer.params.items()}
    for index in range(3):
        for name, value in trainer.networks.modules(index).named_parameters():
            assert torch.equal(value, trainer.params[f"parts.{name}"][index])
            with torch.no_grad():
                value.zero_()
    for name, value in before.items():
        assert torch.equal(trainer.params[name], value)


def test_modules_give_the_densities_of_the_mapped_ones():
    trainer = trained(small("ww"))
    x = torch.linspace(0, 190, 7)
    together = trainer.networks.map_modules(lambda p, q: {"log_probs": q.log_probs(x)})["log_probs"]
    alone = trainer.networks.each(lambda _, parts: {"log_probs": parts["q"].log_probs(x)})["log_probs"]
    torch.testing.assert_close(together, alone)


def test_functions_of_each_replicate_know_which_it_is():
    trainer = Trainer(gmm.problem(small("ww")), [4, 2])
    found = trainer.networks.each(lambda replicate, _: {"replicate": torch.tensor(replicate)})
    assert found["replicate"].tolist() == [4, 2]


def test_a_checkpoint_beyond_the_end_is_not_read(tmp_path):
    path, long = tmp_path / "state", data_problem(12, 3)
    Trainer(long, [0], compiled=False).train(path)
    content = path.read_bytes()

    short = Trainer(replace(long, num_iterations=20), [0], compiled=False)
    start = {name: value.clone() for name, value in short.params.items()}
    assert not short.load(path)
    assert (short.iteration, short.seconds, short.curves) == (0, 0.0, {})
    for name, value in start.items():
        assert torch.equal(short.params[name], value)

    curves = short.train(path)
    fresh = Trainer(short.problem, [0], compiled=False)
    for name, value in fresh.train().items():
        np.testing.assert_array_equal(curves[name], value)
    for name, value in fresh.params.items():
        assert torch.equal(short.params[name], value)
    assert path.read_bytes() == content  # the longer run keeps it
    assert [found.name for found in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": METHODS["vimco"]}, "its method is IWAE, here it is VIMCO"),
        ({"num_particles": 7}, "its num_particles is .*, here it is 7"),
        ({"seed": 9}, "its seed is"),
        ({"learning_rate": 0.5}, "its learning_rate is .*, here it is 0.5"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(changes, sentence, tmp_path):
    problem, path = data_problem(12, 3), tmp_path / "checkpoint"
    Trainer(problem, [0, 1], compiled=False).train(str(path))
    kept = path.read_bytes()
    with pytest.raises(ValueError, match=f"is of another run: {sentence}.*a file of its own"):
        Trainer(replace(problem, **changes), [0, 1], compiled=False).train(path)
    with pytest.raises(ValueError, match=r"its replicates is \[0, 1\], here it is \[0\]"):
        Trainer(problem, [0], compiled=False).train(path)
    assert path.read_bytes() == kept


def test_a_checkpoint_of_another_evaluation_is_refused(tmp_path):
    problem, path = data_problem(12, 3), tmp_path / "checkpoint"
    (name,) = Trainer(problem, [0, 1], compiled=False).train(path).keys() - {"iteration"}
    kept, other = path.read_bytes(), replace(problem, evaluate=lambda networks: {"other": torch.ones(2)})
    longer = replace(other, num_iterations=2 * problem.num_iterations)
    for which in (other, longer):
        with pytest.raises(ValueError, match=rf"evaluate must return the metrics \['{name}'\].*\['other'\]"):
            Trainer(which, [0, 1], compiled=False).train(path)
    assert path.read_bytes() == kept


def test_parameters_that_are_not_finite_are_told_before_they_are_evaluated():
    trainer = Trainer(data_problem(12, 3), [4, 7], compiled=False)
    trainer.params = {k: v.clone() for k, v in trainer.params.items()}
    trainer.params[trainer.objective.trained[0]][1] = math.nan
    trainer.problem = replace(trainer.problem, evaluate=lambda networks: 1 / 0)
    with pytest.raises(FloatingPointError, match=r"of replicate 7 .* finite at iteration 0: a rate"):
        trainer.log()


def test_one_after_the_other_a_step_that_fails_says_where():
    problem = data_problem(12, 3)

    def draw_batch(noise, rows):
        return problem.draw_batch(noise, rows) + torch.where(noise.uniform(1) < 0.05, math.nan, 0)

    broken = replace(problem, draw_batch=draw_batch, mapped=False, num_iterations=400, log_every=400)
    with pytest.raises(ValueError, match=r"holds NaN") as error:
        Trainer(broken, [3], compiled=False).train()
    assert re.fullmatch(r"This was replicate 3 at iteration \d+\.", error.value.__notes__[0])


def test_steps_that_cannot_be_compiled_run_as_they_are():
    def rate(iteration):
        return 0.01 if iteration < 1 else 0.001

    which = replace(data_problem(12, 3), learning_rate=rate)
    with pytest.warns(UserWarning, match="cannot be compiled .*training uncompiled"):
        trainer = Trainer(which, [0, 1], compiled=True)
        trainer.train()
    assert not trainer.compiled
    plain = Trainer(which, [0, 1], compiled=False)
    plain.train()
    for name, value in plain.params.items():
        torch.testing.assert_close(trainer.params[name], value)


def test_a_library_that_a_killed_run_left_unfinished_is_made_again(tmp_path, monkeypatch):
    torn, calls = tmp_path / "x.main.so", []
    torn.touch()

    def compile_(function, fullgraph):
        def call(x):
            calls.append(torn.exists())
            if torn.exists():
                raise torch._dynamo.exc.BackendCompilerFailed(
                    None, ImportError(f"{torn}: file too short"), None
                )
            return function(x)

        return call

    monkeypatch.setattr(torch, "compile", compile_)
    assert compile_or_keep(lambda x: x + 1, failed=pytest.fail)(1) == 2
    assert calls == [True, False]


def test_a_checkpoint_at_the_end_is_read_and_nothing_more_is_trained(tmp_path):
    path, problem = tmp_path / "state", data_problem(12, 3)
    first = Trainer(problem, [0], compiled=False)
    curves = first.train(path)
    second = Trainer(problem, [0], compiled=False)
    for name, value in second.train(path).items():
        np.testing.assert_array_equal(curves[name], value)
    for name, value in first.params.items():
        assert torch.equal(second.params[name], value)
    assert second.iteration == problem.num_iterations


# -- parameters on hold --------------------------------------------------------------------------------

WITHOUT_P_AT_FIRST = delayed(Optimizer(adam), {"p.": 8})


def test_a_parameter_on_hold_stays_and_then_starts_as_if_training_began():
    held = Trainer(
        data_problem(12, 3, optimizer=WITHOUT_P_AT_FIRST, log_every=1),
        range(2),
        compiled=False,
    )
    on_hold = {name for name in held.params if name.startswith("parts.p.")}
    assert on_hold
    assert held.block == 1
    while held.iteration < 12:
        before = {name: value.clone() for name, value in held.params.items()}
        held.train_block()
        changed = {name for name, value in held.params.items() if not torch.equal(value, before[name])}
        assert changed == set(held.params) - (on_hold if held.iteration <= 8 else set())
        if held.iteration == 9:  # Adam's first step has the size of the learning rate, whatever the gradient
            for name in on_hold:
                step = (held.params[name] - before[name]).abs()
                torch.testing.assert_close(step, torch.full_like(step, 0.01), rtol=1e-3, atol=0)


# -- phases before the method's own steps --------------------------------------------------------------


def dream_of_half(p, q, x, num_particles, noise):
    """A loss for q alone, with other random numbers than the method's."""
    return -(q.sample(x, 1, noise)[1] * (2 + noise.uniform(1, len(x)))).mean(dim=0)


PHASES = (Phase(3, dream_of_half, trains=("q",)), Phase(2, wake_theta, trains=("p",)))


def test_phases_train_what_they_name_and_each_starts_the_optimiser_afresh():
    trainer = Trainer(data_problem(12, 3, phases=PHASES), range(2), compiled=False)
    moved = []
    while trainer.iteration < 12:
        before, iteration = dict(trainer.params), trainer.iteration
        trainer.train_block()
        changed = {name for name in before if not torch.equal(before[name], trainer.params[name])}
        moved.append((iteration, trainer.iteration, {name.split(".")[1] for name in changed}))
    assert moved == [
        (0, 3, {"q"}), (3, 4, {"p"}), (4, 5, {"p"}), (5, 8, {"p", "q"}), (8, 12, {"p", "q"}),
    ]  # fmt: skip


def test_the_first_step_after_a_phase_is_a_first_step():
    problem = data_problem(12, 3, phases=PHASES, log_every=1)
    trainer = Trainer(problem, range(2), compiled=False)
    for iteration in range(7):
        before = dict(trainer.params)
        trainer.train_block()
        assert trainer.iteration == iteration + 1
        free = {0: "q", 3: "p", 5: ""}.get(iteration)
        if free is not None:
            for name, value in trainer.params.items():
                if name.startswith(f"parts.{free}"):
                    step = (value - before[name]).abs()
                    torch.testing.assert_close(step, torch.full_like(step, 0.01), rtol=1e-3, atol=0)


def test_without_iterations_phases_change_nothing():
    """Not even a bit, nor what is drawn."""
    empty = tuple(replace(phase, iterations=0) for phase in PHASES)
    ends = []
    for phases in ((), empty):
        trainer = Trainer(data_problem(12, 3, phases=phases), range(2), compiled=False)
        trainer.train()
        ends.append(trainer.params)
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize("stop", [1, 3, 4, 5, 7])
@pytest.mark.parametrize("mapped", [True, False])
def test_a_run_resumed_in_any_phase_equals_an_uninterrupted_one(stop, mapped, tmp_path):
    problem = data_problem(12, 3, phases=PHASES, log_every=1, num_iterations=10, mapped=mapped)
    whole, first, second = (Trainer(problem, range(2), compiled=False) for _ in range(3))
    whole.train()
    while first.iteration < stop:
        first.train_block()
    first.save(tmp_path / "state", 0.0)
    assert second.load(tmp_path / "state")
    while second.iteration < 10:
        second.train_block()
    for name, value in whole.params.items():
        assert torch.equal(second.params[name], value), name


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason="no C++ compiler or Python headers")
def test_compiled_phases_equal_eager_ones(compiler):
    problem = data_problem(12, 3, phases=PHASES, mapped=False)
    compiled, eager = (Trainer(problem, range(2), compiled=choice) for choice in (True, False))
    for trainer in (compiled, eager):
        while trainer.iteration < 8:
            trainer.train_block()
    for name, value in eager.params.items():
        torch.testing.assert_close(compiled.params[name], value, rtol=1e-5, atol=1e-6)


def test_phases_and_parameters_on_hold_exclude_each_other():
    with pytest.raises(ValueError, match=r"delays must be empty where there are phases, got \{'p.': 8\}"):
        Trainer(data_problem(12, 3, optimizer=WITHOUT_P_AT_FIRST, phases=PHASES), [0])
