"""A GPU's graph of steps, with a stand-in for the GPU that calls the recorded function again at a replay."""

import contextlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from rwslib.experiments import air, gmm, vae
from rwslib.experiments.air import AIRConfig
from rwslib.experiments.gmm import GMMConfig
from rwslib.experiments.vae import VAEConfig
from rwslib.training import Trainer, acceleration
from rwslib.training.acceleration import Captured, graph_length


class StandIn:
    """CUDA's streams and graphs on the CPU: what runs under ``graph`` is what ``replay`` runs again."""

    def __init__(self):
        self.captured = None
        self.Stream = lambda: SimpleNamespace(wait_stream=lambda other: None)
        self.current_stream = self.Stream
        self.device = self.stream = lambda which: contextlib.nullcontext()
        self.CUDAGraph = lambda: SimpleNamespace(replay=lambda: self.captured._keep(self.step()))

    def step(self):
        return self.captured.function(*self.captured.state, *self.captured.tensors)

    @contextlib.contextmanager
    def graph(self, graph, stream):
        before = [{k: v.clone() for k, v in part.items()} for part in self._parts()]
        yield
        for part, old in zip(self._parts(), before, strict=True):  # a recording computes nothing
            for name, value in part.items():
                value.copy_(old[name])

    def _parts(self):
        return self.captured.state[0], *self.captured.state[1]


@pytest.fixture
def stand_in(monkeypatch):
    found = StandIn()
    monkeypatch.setattr(acceleration, "torch", SimpleNamespace(**vars(torch) | {"cuda": found}))
    return found


def captured(trainer, stand_in):
    """The trainer, its blocks captured."""
    trainer._steps = stand_in.captured = Captured(trainer._steps, trainer.block)
    return trainer


PROBLEMS = {
    "gmm": lambda: gmm.problem(GMMConfig("relax", 3, num_iterations=20, num_runs=2)),
    "vae": lambda: vae.problem(VAEConfig("ww", 2, "digits", 1, batch_size=300)),
    # parameters on hold are stepped apart, in another order
    "air": lambda: air.problem(
        AIRConfig("ww", 2, "digits", 4, batch_size=4, warmup_iterations=2, dream_iterations=0)
    ),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_captured_blocks_train_as_others_do(name, stand_in):
    problem = replace(PROBLEMS[name](), evaluate=lambda networks: {}, log_every=2)
    plain = Trainer(problem, range(1))
    replayed = captured(Trainer(problem, range(1)), stand_in)
    for trainer in (plain, replayed):
        trainer.train_block()
        trainer.train_block()
    for name, value in plain.params.items():
        torch.testing.assert_close(replayed.params[name], value, rtol=0, atol=0)
    for one, other in zip(plain.moments, replayed.moments, strict=True):
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=0, atol=0)


def test_an_entry_that_a_caller_replaces_is_trained_from_there(stand_in):
    problem = replace(PROBLEMS["gmm"](), evaluate=lambda networks: {}, log_every=2)
    plain = Trainer(problem, range(2))
    replayed = captured(Trainer(problem, range(2)), stand_in)
    for trainer in (plain, replayed):
        trainer.train_block()
        name = next(iter(trainer.params))
        trainer.params[name] = torch.full_like(trainer.params[name], 0.1)
        trainer.train_block()
        trainer.train_block()
    for name, value in plain.params.items():
        torch.testing.assert_close(replayed.params[name], value, rtol=0, atol=0)


def test_a_state_from_a_checkpoint_takes_the_place_of_the_captured_one(stand_in, tmp_path):
    problem = replace(PROBLEMS["gmm"](), evaluate=lambda networks: {}, log_every=2)
    trainer = captured(Trainer(problem, range(2)), stand_in)
    trainer.train_block()
    trainer.save(tmp_path / "checkpoint", 0.0)
    trainer.train_block()
    expected = {name: value.clone() for name, value in trainer.params.items()}
    trainer.train_block()
    trainer.load(tmp_path / "checkpoint")
    trainer.train_block()
    for name, value in expected.items():
        torch.testing.assert_close(trainer.params[name], value, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("number", "at_most", "length"),
    [(1875, 125, 125), (300, 125, 100), (937, 125, 117), (1718, 125, 101), (7, 125, 7), (2, 1, 1)],
)
def test_a_graph_holds_many_steps_whatever_their_number(number, at_most, length):
    assert graph_length(number, at_most) == length


def test_steps_left_over_before_a_log_go_without_the_graph(stand_in):
    problem = replace(PROBLEMS["gmm"](), evaluate=lambda networks: {}, log_every=5)
    plain = Trainer(problem, range(2))
    replayed = captured(Trainer(problem, range(2)), stand_in)
    for trainer in (plain, replayed):
        trainer.block, seen = 2, []
        stand_in.captured.length = 2
        while trainer.iteration < 10:
            trainer.train_block()
            seen.append(trainer.iteration)
        assert seen == [2, 4, 5, 7, 9, 10]
    for name, value in plain.params.items():
        torch.testing.assert_close(replayed.params[name], value, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("module", "config"),
    [
        (gmm, GMMConfig("ww", 4, num_runs=2)),
        (vae, VAEConfig("ww", 4, "digits")),
        (air, AIRConfig("ww", 4, "digits", num_runs=2)),
    ],
    ids=["gmm", "vae", "air"],
)
def test_a_gpu_trains_as_without_graph_and_compiler(module, config):
    problem = replace(module.problem(config, "cuda"), log_every=10)
    fast, plain = (Trainer(problem, range(config.num_runs), compiled=choice) for choice in (True, False))
    start = {name: value.clone() for name, value in plain.params.items()}
    for trainer in (fast, plain):
        trainer.train_block()
        trainer.train_block()
    for name, value in plain.params.items():
        moved = (value - start[name]).norm()
        assert (fast.params[name] - value).norm() <= 0.02 * moved + 1e-6, name
