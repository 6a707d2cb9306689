"""What the trainer asks of a model and of a problem's arguments: tried once, refused in one sentence."""

import inspect
import math
import random
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import GaussianBaseline, GaussianModel, GaussianNetwork, flat_gradient

from rwslib import methods, protocols
from rwslib.evaluation import importance_estimates
from rwslib.experiments import GMMConfig, gmm
from rwslib.methods import METHODS
from rwslib.methods.wake_sleep import wake_theta
from rwslib.models import air as air_model
from rwslib.models import gmm as gmm_model
from rwslib.models import vae as vae_model
from rwslib.noise import Noise
from rwslib.training import Phase, Problem, Trainer
from rwslib.training.optimizers import Optimizer, adam, delayed

DATA = torch.linspace(-2, 2, 12)


def problem(method="ww", p=GaussianModel, q=GaussianNetwork, variate=None, **changes):
    """The linear Gaussian model on twelve data, or other networks."""
    parts = {"p": p, "q": q} | ({"control_variate": variate} if variate else {})
    settings = {
        "method": METHODS[method],
        "build": lambda: {name: part() for name, part in parts.items()},
        "draw_batch": lambda noise, rows: DATA[rows],
        "evaluate": lambda networks: {},
        "num_particles": 3,
        "num_iterations": 6,
        "log_every": 3,
        "learning_rate": 0.01,
        "seed": 5,
        "epoch": (12, 4),
    }
    return Problem(**settings | changes)


def mixture(method, **changes):
    settings = {"num_iterations": 6, "num_runs": 2, "batch_size": 8}
    return replace(gmm.problem(GMMConfig(method, 3, **settings)), log_every=3, **changes)


def trained(which, replicates=(0, 1)):
    trainer = Trainer(which, replicates, compiled=False)
    trainer.train()
    return trainer


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name, value in right.items():
        assert torch.equal(left[name], value), name


# -- frozen parameters ---------------------------------------------------------------------------------


def freeze(parts, *starts):
    for name, value in nn.ModuleDict(parts).named_parameters():
        if name.startswith(starts):
            value.requires_grad_(False)
    return parts


@pytest.mark.parametrize("starts", [("p.",), ("p.log_scale", "q.slope"), ("q.",)])
@pytest.mark.parametrize(
    "changes",
    [{}, {"mapped": False}, {"method": "dreg"}, {"optimizer": delayed(Optimizer(adam), {"p.mean": 2})}],
)
def test_frozen_parameters_stay_and_all_others_move(starts, changes):
    plain = problem(**changes)
    start = Trainer(plain, [0, 1], compiled=False).params
    end = trained(replace(plain, build=lambda: freeze(plain.build(), *starts)))
    for name, value in end.params.items():
        frozen = name.removeprefix("parts.").startswith(starts)
        assert torch.equal(value, start[name]) == frozen, name
    assert not any(name.removeprefix("parts.").startswith(starts) for name in end.moments[0])


@pytest.mark.parametrize("method", ["relax", "rebar", "nvil", "ww"])
def test_a_frozen_model_leaves_the_rest_to_train(method):
    plain = mixture(method)
    end = trained(replace(plain, build=lambda: freeze(plain.build(), "p.", "q.layers.0")))
    start = Trainer(plain, [0, 1], compiled=False).params
    moved = {name for name, value in end.params.items() if not torch.equal(value, start[name])}
    assert moved == {name for name in start if not name.startswith(("parts.p.", "parts.q.layers.0"))}
    assert torch.isfinite(end.networks.phi_gradients(torch.zeros(3), 2)).all()


@pytest.mark.parametrize("changes", [{}, {"mapped": False}])
def test_a_checkpoint_holds_frozen_parameters_and_goes_on(changes, tmp_path):
    plain = problem(**changes)
    which = replace(plain, build=lambda: freeze(plain.build(), "p.mean"))
    whole, first, second = (Trainer(which, [0, 1], compiled=False) for _ in range(3))
    whole.train()
    first.log()
    first.train_block()
    first.log()
    first.save(tmp_path / "state", 0.0)
    second.train(tmp_path / "state")
    assert_same(second.params, whole.params)
    assert "parts.p.mean" in second.params


def test_a_model_with_nothing_to_train_is_refused():
    plain = problem()
    with pytest.raises(ValueError, match="build must be a function that returns something to train"):
        Trainer(replace(plain, build=lambda: freeze(plain.build(), "")), [0])
    relax = mixture("relax")
    with pytest.raises(ValueError, match="q must be trainable for method RELAX"):
        Trainer(replace(relax, build=lambda: freeze(relax.build(), "q.")), [0])


# -- buffers -------------------------------------------------------------------------------------------


class RandomBuffer(GaussianNetwork):
    """Sees the data through a random number of its own, and one that all replicates share."""

    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.rand(()))
        self.register_buffer("shared", torch.tensor(2.0), persistent=False)

    def log_prob(self, z, x):
        return super().log_prob(z, self.shared * self.factor * x)


class Normalised(GaussianNetwork):
    """Sees the data through BatchNorm, whose buffers change."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def log_prob(self, z, x):
        return super().log_prob(z, self.norm(x[:, None])[:, 0])


class Counting(GaussianNetwork):
    """Puts a new tensor in the place of a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def log_prob(self, z, x):
        self.calls = self.calls + 1
        return super().log_prob(z, x / self.calls)


BUFFERS = [(RandomBuffer, True), (RandomBuffer, False), (Normalised, False), (Counting, False)]


@pytest.mark.parametrize(("network", "mapped"), BUFFERS)
def test_a_replicate_has_buffers_of_its_own(network, mapped):
    which = problem(q=network, mapped=mapped)
    together = trained(which, [0, 1, 2])
    for index in range(3):
        alone = tensors(trained(which, [index]).networks.modules(0))
        for name, value in tensors(together.networks.modules(index)).items():
            torch.testing.assert_close(value, alone[name], rtol=1e-5, atol=1e-6)
    assert "parts.q.shared" not in together.params


def tensors(parts):
    return dict([*parts.named_parameters(), *parts.named_buffers()])


def test_buffers_that_a_step_changes_are_those_after_the_last_step():
    """``sample`` calls ``log_prob`` twice, in each of six steps."""
    for network, name in [(Normalised, "norm.num_batches_tracked"), (Counting, "calls")]:
        trainer = trained(problem(q=network, mapped=False))
        for index in range(2):
            assert tensors(trainer.networks.modules(index))[f"q.{name}"] == 12


def test_random_buffers_differ_between_replicates_and_reach_metrics():
    which = problem(
        q=RandomBuffer, evaluate=lambda networks: networks.map_modules(lambda p, q: {"f": q.factor})
    )
    trainer = trained(which)
    factors = torch.stack([trainer.networks.modules(index)["q"].factor for index in range(2)])
    assert factors[0] != factors[1]
    np.testing.assert_array_equal(trainer.curves["f"][-1], factors.numpy())


@pytest.mark.parametrize(("network", "mapped"), BUFFERS)
def test_a_checkpoint_holds_the_buffers_of_replicates(network, mapped, tmp_path):
    which = problem(q=network, mapped=mapped)
    whole, first, second = (Trainer(which, [0, 1], compiled=False) for _ in range(3))
    whole.train()
    first.log()
    first.train_block()
    first.log()
    first.save(tmp_path / "state", 0.0)
    second.train(tmp_path / "state")
    assert_same(second.params, whole.params)
    assert_same(tensors(second.networks.modules(0)), tensors(whole.networks.modules(0)))


def test_buffers_that_are_the_same_for_all_add_nothing_to_a_state():
    class Constant(GaussianNetwork):
        def __init__(self):
            super().__init__()
            self.register_buffer("constant", torch.tensor([1.0]))

    assert Trainer(problem(q=Constant), [0, 1]).params.keys() == Trainer(problem(), [0, 1]).params.keys()


def test_modules_that_differ_between_replicates_are_refused():
    sizes = iter([(5,), (6,)])

    def build():
        return {"p": gmm_model.GMM(), "q": gmm_model.InferenceNetwork(next(sizes))}

    with pytest.raises(ValueError, match=r"the same modules for every replicate, but parts\.q\.layers"):
        Trainer(mixture("ww", build=build), [0, 1])


# -- models that draw random numbers of their own ------------------------------------------------------


class Sampling(GaussianNetwork):
    def sample(self, x, num_particles, noise):
        normal = torch.distributions.Normal(self.slope * x + self.offset, self.log_scale.exp())
        z = normal.sample((num_particles,))
        return z, normal.log_prob(z)


class Dropping(GaussianNetwork):
    def log_prob(self, z, x):
        return super().log_prob(z, F.dropout(x))


class FromNumPy(GaussianNetwork):
    def sample(self, x, num_particles, noise):
        z = torch.from_numpy(np.random.standard_normal((num_particles, len(x)))).float()  # noqa: NPY002
        return z, self.log_prob(z, x)


class FromPython(GaussianNetwork):
    def log_prob(self, z, x):
        return super().log_prob(z, x + random.random())


class Rand(GaussianNetwork):
    def sample(self, x, num_particles, noise):
        z = torch.rand(num_particles, len(x))
        return z, self.log_prob(z, x)


class Branching(GaussianModel):
    def log_joint(self, z, x):
        return super().log_joint(z, x) if z.mean() < 100 else 0 * z


class Reading(GaussianModel):
    def log_joint(self, z, x):
        return super().log_joint(z, x) + 0 * z[0, 0].item()


class Selecting(GaussianModel):
    def log_joint(self, z, x):
        return super().log_joint(z, x) + 0 * z[z > 0].sum()


class OneHot(GaussianModel):
    def log_joint(self, z, x):
        return super().log_joint(z, x) + 0 * F.one_hot((z > 0).long()).sum()


UNMAPPABLE = {
    "sample": (
        {"q": Sampling},
        r"draws random numbers of its own .*in Sampling\.sample at `z = normal\.sample",
    ),
    "rand": ({"q": Rand}, r"draws random numbers of its own .*in Rand\.sample"),
    "dropout": ({"q": Dropping}, r"draws random numbers of its own .*Dropping\.log_prob"),
    "dreams": ({"q": Dropping, "method": "ws"}, r"draws random numbers of its own .*Dropping\.log_prob"),
    "data": (
        {"draw_batch": lambda noise, rows: DATA[rows] + torch.randn(4)},
        "draws random numbers of its own .*<lambda>",
    ),
    "batchnorm": ({"q": Normalised}, r"changes its buffer q\.norm\.num_batches_tracked"),
    "counter": ({"q": Counting}, r"changes its buffer q\.calls"),
    "if": ({"p": Branching}, r"reads a value .*Branching\.log_joint"),
    "item": ({"p": Reading}, r"reads a value .*Reading\.log_joint"),
    "shape": ({"p": Selecting}, r"has a shape that depends on a value.*Selecting\.log_joint"),
    "one_hot": ({"p": OneHot}, r"reads a value .*OneHot\.log_joint"),
    "numpy": ({"q": FromNumPy}, r"draws random numbers from numpy\.random"),
    "python": ({"q": FromPython}, "draws random numbers from random, "),
}


@pytest.mark.parametrize("name", UNMAPPABLE)
def test_what_cannot_be_mapped_over_replicates_is_said_with_the_way_out(name):
    changes, sentence = UNMAPPABLE[name]
    with pytest.raises(ValueError, match=sentence) as error:
        Trainer(problem(**changes), [0, 1])
    assert "set mapped=False" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", UNMAPPABLE)
def test_one_after_the_other_it_trains_by_its_seed_alone(name):
    changes = UNMAPPABLE[name][0] | {"mapped": False}
    torch.manual_seed(1)
    together = trained(problem(**changes), [0, 1])
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    random.seed(2)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    alone = trained(problem(**changes), [1])
    for key, value in alone.params.items():
        assert torch.equal(value[0], together.params[key][1]), key
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]


def test_networks_start_by_their_seed_whatever_generator_they_draw_from():
    class Scaled(GaussianNetwork):
        def __init__(self):
            super().__init__()
            scale = np.random.random() + random.random() + torch.rand(()).item()  # noqa: NPY002
            self.scale = nn.Parameter(torch.tensor(scale))

    def starts():
        return Trainer(problem(q=Scaled), [0, 1], compiled=False).params["parts.q.scale"]

    first, state = starts(), random.getstate()
    np.random.seed(3)  # noqa: NPY002
    assert torch.equal(first, starts())
    assert first[0] != first[1]
    assert random.getstate() == state


def test_replicates_and_steps_draw_other_numbers_from_global_generators():
    seen = []

    class Seen(GaussianNetwork):
        def sample(self, x, num_particles, noise):
            z = torch.rand(num_particles, len(x))
            seen.append((z[0, 0].item(), np.random.random(), random.random()))  # noqa: NPY002
            return z, self.log_prob(z, x)

    trainer = Trainer(problem(q=Seen, mapped=False), [0, 1], compiled=False)
    seen.clear()
    trainer.train_block()
    assert len(seen) == 6
    assert all(len(set(numbers)) == 6 for numbers in zip(*seen, strict=True))


def test_an_evaluation_that_draws_from_the_global_generator_is_seeded():
    def evaluate(networks):
        return {"drawn": torch.rand(2)}

    curves = [trained(problem(evaluate=evaluate)).curves["drawn"] for _ in range(2)]
    np.testing.assert_array_equal(*curves)
    assert len({value[0] for value in curves[0]}) == 3


def test_metrics_that_cannot_be_mapped_say_how_else():
    def evaluate(networks):
        return networks.map_modules(lambda p, q: {"a": p.mean if p.mean > 0 else -p.mean})

    trainer = Trainer(problem(evaluate=evaluate), [0, 1])
    with pytest.raises(ValueError, match=r"map_modules .* reads a value.*networks\.each"):
        trainer.log()


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_recurrent_networks_cannot_be_mapped(kind):
    class Recurrent(GaussianNetwork):
        def __init__(self):
            super().__init__()
            self.net = kind(1, 1)

    def evaluate(networks):
        return networks.map_modules(lambda p, q: {"a": q.net(DATA[:, None])[0].mean()})

    trainer = Trainer(problem(q=Recurrent, evaluate=evaluate), [0, 1])
    with pytest.raises(ValueError, match=r"calls what vmap cannot take \(GRU and LSTM do\).*networks\.each"):
        trainer.log()


# -- functions of a model ------------------------------------------------------------------------------


def network(**functions):
    return type("Network", (GaussianNetwork,), functions)


def model(**functions):
    return type("Model", (GaussianModel,), functions)


def transposed(function):
    def call(self, *args):
        result = function(self, *args)
        return tuple(part.T for part in result) if isinstance(result, tuple) else result.T

    return call


class Bare(nn.Module):
    """A network without path derivative, and without ``forward``."""

    def __init__(self):
        super().__init__()
        self.inner = GaussianNetwork()

    def sample(self, x, num_particles, noise):
        return self.inner.sample(x, num_particles, noise)

    def log_prob(self, z, x):
        return self.inner.log_prob(z, x)


class Formless(Bare):
    def rsample(self, x, num_particles, noise):
        return self.inner.rsample(x, num_particles, noise)


class SignedNetwork(GaussianNetwork):
    """Draws a sign beside the Gaussian."""

    def rsample(self, x, num_particles, noise):
        sign = (noise.uniform(num_particles, len(x)) > 0.5).int()
        z = sign, super().rsample(x, num_particles, noise)[0]
        return z, self.log_prob(z, x)

    def log_prob(self, z, x):
        return super().log_prob(z[1], x) + z[0] * self.offset


class Signed(GaussianModel):
    def log_joint(self, z, x):
        return super().log_joint(z[1], x) + z[0]


class Copies(GaussianNetwork):
    def sample(self, x, num_particles, noise):
        z, log_q = super().sample(x, 1, noise)
        return z.repeat(num_particles, 1), log_q.repeat(num_particles, 1)


class Likeliest(GaussianNetwork):
    """Two categories of even odds, and always the first of them."""

    def log_prob(self, z, x):
        return torch.full(z.shape, -math.log(2)) + 0 * self.slope

    forward = log_prob

    def sample(self, x, num_particles, noise):
        z = torch.zeros(num_particles, len(x))
        return z, self.log_prob(z, x)


MISFITS = {
    "transposed": (
        {"q": network(sample=transposed(GaussianNetwork.sample))},
        r"q\.sample must return z .*\[K, B, \.\.\.\] = \[3, 4, \.\.\.\], got float32 \[4, 3\] \(method WW\)",
    ),
    "transposed where K = B": (
        {"q": network(sample=transposed(GaussianNetwork.sample)), "num_particles": 4},
        r"q\.sample must return z .* = \[5, 4, \.\.\.\], got float32 \[4, 5\].*tried with 5 particles",
    ),
    "copies of one particle": (
        {"q": Copies, "num_particles": 10},
        "q.sample must return z with particles of their own, but all are the same: one draw for all",
    ),
    "an arg max": (
        {"q": Likeliest, "num_particles": 10},
        "all are the same: one draw for all, or an arg max",
    ),
    "density transposed where K = B": (
        {"p": model(log_joint=transposed(GaussianModel.log_joint)), "num_particles": 4},
        r"p\.log_joint must return log_p .*\[K, B\] = \[5, 4\], got float32 \[4, 5\]",
    ),
    "log q transposed where K = B = 1": (
        {
            "q": network(
                sample=lambda self, x, K, noise: (torch.zeros(K, len(x)), self.slope.expand(len(x), K))
            ),
            "num_particles": 1,
            "epoch": (12, 1),
        },
        r"q\.sample must return log_q .*\[K, B\] = \[2, 1\], got float32 \[1, 2\]",
    ),
    "summed over all axes": (
        {"p": model(log_joint=lambda self, z, x: GaussianModel.log_joint(self, z, x) + x.sum())},
        r"p\.log_joint must return a number for each particle and datum by itself, but that of the first "
        r"depends on the others: is there a sum over too many axes\? \(method WW\)",
    ),
    "log q with the wrong sign": (
        {"q": network(sample=lambda self, x, K, noise: _with(self, x, K, noise, lambda log_q: -log_q))},
        r"q\.sample must return log_q as log_prob gives it at its z, got 2\.5\d+ where that is -2\.5\d+",
    ),
    "log q of moving latents": (
        {"q": network(sample=lambda self, x, K, noise: _detached_afterwards(self, x, K, noise))},
        r"q\.sample must return log_q with the gradient of log_prob at its z: compute it at the detached z",
    ),
    "log q of moving latents where K = B": (
        {
            "q": network(sample=lambda self, x, K, noise: _detached_afterwards(self, x, K, noise)),
            "num_particles": 4,
        },
        r"log_q with the gradient of log_prob .*tried with 5 particles",
    ),
    "all of log q for a part": (
        {
            "method": "vimco",
            "q": network(sample_mixed=lambda self, *args: (*(drawn := self.rsample(*args)), drawn[1])),
        },
        r"q\.sample_mixed must return log_q_score as the part of log_q that belongs to the choices",
    ),
    "a choice with a path": (
        {"method": "iwae", "p": Signed, "q": SignedNetwork},
        r"q\.rsample must return z without choices, which have no path derivative: .* sample_mixed",
    ),
    "not summed": (
        {"p": model(log_joint=lambda self, z, x: GaussianModel.log_joint(self, z, x)[..., None])},
        r"p\.log_joint must return log_p .*\[K, B\] = \[3, 4\], got float32 \[3, 4, 1\] \(method WW\)",
    ),
    "summed over the batch": (
        {"p": model(log_joint=lambda self, z, x: GaussianModel.log_joint(self, z, x).sum())},
        r"p\.log_joint must return .*got float32 \[\] \(method WW\)",
    ),
    "whole numbers": (
        {"p": model(log_joint=lambda self, z, x: GaussianModel.log_joint(self, z, x).long())},
        r"p\.log_joint must return log_p as floating point numbers .*got int64 \[3, 4\]",
    ),
    "no density": (
        {"q": network(sample=lambda self, x, K, noise: GaussianNetwork.sample(self, x, K, noise)[0])},
        r"q\.sample must return \(z, log_q\), got float32 \[3, 4\]",
    ),
    "path derivative": (
        {"q": network(sample=GaussianNetwork.rsample)},
        r"q\.sample must return z without gradient",
    ),
    "no path derivative": (
        {"q": lambda: Pathless(), "method": "iwae"},
        r"q\.rsample must return z with a path derivative",
    ),
    "no gradient": (
        {"q": network(sample=torch.no_grad()(GaussianNetwork.sample))},
        "no gradient of method WW reaches any parameter of q",
    ),
    "dtype": (
        {"q": lambda: GaussianLinear(), "draw_batch": lambda noise, rows: DATA[rows].double()},
        r"q\.sample fails for x float64 \[4\], num_particles 3 \(method WW\): RuntimeError: .*dtype.*"
        r"in GaussianLinear\.log_prob",
    ),
    "arguments": (
        {"q": network(sample=lambda self, x, K: None)},
        r"q\.sample fails for x float32 \[4\], num_particles 3 \(method WW\): TypeError: .*takes 3",
    ),
    "few dreams": (
        {"p": model(sample=lambda self, n, noise: GaussianModel.sample(self, n - 1, noise)), "method": "ws"},
        r"p\.sample must return z .*\[num, \.\.\.\] = \[12, \.\.\.\], got float32 \[11\] \(method WS\)",
    ),
    "dreams' density": (
        {"q": lambda: ShortOfDreams(), "method": "ws"},
        r"q\.log_prob must return log_q .*\[K, B\] = \[1, 12\], got float32 \[12\] \(method WS\)",
    ),
    "defence": (
        {"p": model(sample_defensive=lambda self, x, K, noise: (0 * x, 0 * x)), "method": "dww"},
        r"p\.sample_defensive must return z .* = \[3, 4, \.\.\.\], got float32 \[4\] \(method δ-WW\)",
    ),
    "forward of another kind": (
        {"p": model(forward=lambda self, z, x: 2 * self.log_joint(z, x)), "method": "stl"},
        r"p\.forward must be log_joint for method STL",
    ),
    "forward without z": (
        {"p": model(forward=lambda self, z: z), "method": "dreg"},
        r"p\.forward fails for z float32 \[3, 4\], x float32 \[4\] \(method DReG\): TypeError",
    ),
    "no forward": (
        {"q": Formless, "method": "dreg"},
        "q has no forward, which method DReG needs.*forward = log_prob",
    ),
    "no rsample": (
        {"q": Bare, "method": "iwae"},
        r"q has no rsample\(x, num_particles, noise\), which method IWAE",
    ),
    "no log_probs": (
        {"q": Bare, "method": "concrete"},
        r"q has no log_probs\(x\), which method Concrete needs",
    ),
    "no defence": (
        {"p": lambda: ModelWithout("sample_defensive"), "method": "dww"},
        r"p has no sample_defensive\(x, num_particles, noise\), which method δ-WW needs",
    ),
    "no dreams": (
        {"p": lambda: ModelWithout("sample"), "method": "wws"},
        r"p has no sample\(num, noise\), which method WWS needs",
    ),
    "no control variate": (
        {"method": "nvil"},
        "build must return a 'control_variate', which method NVIL needs",
    ),
    "control variate of another shape": (
        {"method": "nvil", "variate": lambda: nn.Linear(4, 3)},
        r"control_variate\.forward must return a value .*\[B\] = \[4\], got float32 \[3\]",
    ),
    "useless control variate": (
        {"variate": GaussianBaseline},
        "'control_variate', which method WW does not read",
    ),
}


class GaussianLinear(GaussianNetwork):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def log_prob(self, z, x):
        return super().log_prob(z, self.linear(x[:, None])[:, 0])


def _with(network, x, num_particles, noise, change):
    z, log_q = GaussianNetwork.sample(network, x, num_particles, noise)
    return z, change(log_q)


def _detached_afterwards(network, x, num_particles, noise):
    z, log_q = network.rsample(x, num_particles, noise)
    return z.detach(), log_q


class Pathless(GaussianNetwork):
    def rsample(self, x, num_particles, noise):
        z, log_q = super().rsample(x, num_particles, noise)
        return z.detach(), log_q


class ShortOfDreams(GaussianNetwork):
    def log_prob(self, z, x):
        log_q = super().log_prob(z, x)
        return log_q[0] if len(z) == 1 else log_q


class ModelWithout(nn.Module):
    """The Gaussian model without one of its functions."""

    def __init__(self, name):
        super().__init__()
        self.inner = GaussianModel()
        for function in {"log_joint", "sample", "sample_defensive"} - {name}:
            setattr(self, function, getattr(self.inner, function))


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_is_named_with_function_shape_and_method(name):
    changes, sentence = MISFITS[name]
    with pytest.raises(ValueError, match=sentence):
        Trainer(problem(**changes), [0, 1])


@pytest.mark.parametrize("stochastic", [partial(nn.Dropout, 0.5), partial(nn.BatchNorm1d, 1)])
def test_densities_that_are_random_or_share_a_batch_are_not_taken_for_wrong(stochastic):
    class Network(GaussianNetwork):
        def __init__(self):
            super().__init__()
            self.layer = stochastic()

        def log_prob(self, z, x):
            return super().log_prob(z, self.layer(x[:, None])[:, 0])

    Trainer(problem(q=Network, mapped=False), [0, 1])


def test_latents_and_options_of_other_kinds_pass():
    class Listed(GaussianNetwork):
        def sample(self, x, num_particles, noise):
            z, log_q = super().sample(x, num_particles, noise)
            return list(z), log_q

        def log_prob(self, z, x):
            return super().log_prob(torch.stack(z) if isinstance(z, list) else z, x)

    class Model(GaussianModel):
        def log_joint(self, z, x):
            return super().log_joint(torch.stack(z) if isinstance(z, list) else z, x)

    for given in (torch.tensor([0.0, 0.5, 1.0]), (0.0, 0.5, 1.0)):
        which = problem("tvo", options=lambda progress, given=given: {"partition": given})
        Trainer(which, [0], compiled=False)._identity()
    Trainer(problem(p=Model, q=Listed, mapped=False, num_particles=20), [0])  # all 20 drawn, however unlikely


def test_log_probabilities_must_sum_to_one():
    for part, base, name in (
        ("q", gmm_model.InferenceNetwork, "log_probs"),
        ("p", gmm_model.GMM, "log_prior"),
    ):
        right = getattr(base, name)
        raw = type("Raw", (base,), {name: lambda self, *x, right=right: right(self, *x) + 0.5})
        which = mixture("concrete")
        with pytest.raises(
            ValueError, match=rf"{part}\.{name} must return .* sum to one, got a sum of 1\.65"
        ):
            Trainer(replace(which, build=lambda w=which, p=part, r=raw: {**w.build(), p: r()}), [0])


def test_mixture_functions_are_looked_at_too():
    for name, result, sentence in [
        (
            "log_probs",
            lambda self, x: gmm_model.InferenceNetwork.log_probs(self, x).T,
            r"\[B, C\] = \[8, C\], got",
        ),
        (
            "log_prob",
            lambda self, z, x: self.log_probs(x),
            r"q\.log_prob must .*\[3, 8\], got float32 \[8, 20\]",
        ),
    ]:
        q = type("Network", (gmm_model.InferenceNetwork,), {name: result, "forward": result})
        which = mixture("relax")
        parts = which.build()
        with pytest.raises(ValueError, match=sentence):
            Trainer(replace(which, build=lambda q=q, parts=parts: {**parts, "q": q()}), [0])
    p = type("Model", (gmm_model.GMM,), {"log_prior": lambda self: torch.zeros(20, 1)})
    which = mixture("concrete")
    with pytest.raises(ValueError, match=r"p\.log_prior must .*\[C\] = \[C\], got float32 \[20, 1\]"):
        Trainer(replace(which, build=lambda: {**which.build(), "p": p()}), [0])
    rebar = mixture("rebar")
    with pytest.raises(ValueError, match="control_variate has no log_scale, which method REBAR needs"):
        Trainer(replace(rebar, build=lambda: {**rebar.build(), "control_variate": nn.Linear(1, 1)}), [0])


def test_a_model_made_for_its_number_of_particles_is_no_misfit_where_k_is_b():
    def sample(self, x, num_particles, noise):
        if num_particles != 4:
            raise RuntimeError("made for four")
        return GaussianNetwork.sample(self, x, num_particles, noise)

    Trainer(problem(q=network(sample=sample), num_particles=4), [0])


def test_a_method_of_ones_own_is_looked_at_too():
    def scalar(p, q, x, num_particles, noise):
        return methods.wake_wake(p, q, x, num_particles, noise).mean()

    row = replace(METHODS["ww"], title="mine", function=scalar)
    with pytest.raises(ValueError, match=r"method mine must return losses .*\[B\] = \[4\], got float32 \[\]"):
        Trainer(replace(problem(), method=row), [0])


def test_the_trial_leaves_everything_as_it_was():
    built = []

    def build():
        built.append({"p": GaussianModel(), "q": Normalised()})
        return built[-1]

    before = torch.get_rng_state()
    trainer = Trainer(problem(mapped=False, build=build), [0, 1])
    assert torch.equal(torch.get_rng_state(), before)
    assert trainer.iteration == 0
    assert trainer.params["parts.q.norm.num_batches_tracked"].tolist() == [0, 0]
    assert all(
        value.grad is None for parts in built for part in parts.values() for value in part.parameters()
    )


@pytest.mark.parametrize("method", ["ww", "ws", "dww"])
def test_latents_and_batches_that_are_no_tensors_may_be_taken_one_by_one(method):
    """Trees of Python, say: what the method itself does not touch it need not know."""

    class Words(GaussianNetwork):
        def sample(self, x, num_particles, noise):
            z, log_q = super().sample(torch.tensor(list(map(float, x))), num_particles, noise)
            return [z], log_q

    class Grammar(GaussianModel):
        def log_joint(self, z, x):
            return super().log_joint(z[0], torch.tensor(list(map(float, x))))

        def sample(self, num, noise):
            z, x = super().sample(num, noise)
            return [z], x

        def sample_defensive(self, x, num_particles, noise):
            return super().sample_defensive(torch.zeros(len(x)), num_particles, noise)

    which = problem(
        method,
        p=Grammar,
        q=Words,
        mapped=False,
        draw_batch=lambda noise, rows: [str(value) for value in DATA[rows].tolist()],
    )
    if method == "ww":
        assert torch.isfinite(trained(which).params["parts.p.mean"]).all()
    else:
        with pytest.raises(ValueError, match=r"latents and data must (be tensors|have one structure).*list"):
            Trainer(which, [0])


# -- arguments of a problem ----------------------------------------------------------------------------

ITERATOR = iter(DATA.repeat(40).split(4))
SHARED = {"p": GaussianModel(), "q": GaussianNetwork()}
ARGUMENTS = {
    "no epoch": (
        {"epoch": None},
        r"draw_batch returns an empty batch: without epoch=\(number of data, batch size\)",
    ),
    "no epoch, a dict": (
        {"epoch": None, "draw_batch": lambda noise, rows: {"x": DATA[rows]}},
        "an empty batch",
    ),
    "epoch too long": ({"epoch": (13, 4)}, r"epoch must be .*got \(13, 4\), but draw_batch fails for row 12"),
    "epoch far too long": (
        {"epoch": (1200, 4)},
        r"epoch must be .*got \(1200, 4\), but draw_batch fails for row 1199",
    ),
    "not a number": (
        {"draw_batch": lambda noise, rows: DATA[rows] * math.nan},
        r"draw_batch must return finite numbers, got NaN or infinite ones in float32 \[4\]",
    ),
    "infinite": (
        {"draw_batch": lambda noise, rows: (DATA[rows], DATA[rows] / 0)},
        r"draw_batch must return finite numbers, got NaN",
    ),
    "epoch of one number": (
        {"epoch": (12,)},
        r"epoch must be None or \(number of data, batch size\), got \(12,\)",
    ),
    "empty epoch": ({"epoch": (12, 0)}, r"epoch must be None or .*got \(12, 0\)"),
    "other batch size": (
        {"draw_batch": lambda noise, rows: DATA[:3]},
        r"draw_batch must return a datum for each of its 4 rows .*got float32 \[3\]",
    ),
    "list of tensors": (
        {"draw_batch": lambda noise, rows: [DATA[rows], DATA[rows]]},
        "a datum for each of its 4 rows .*got a list of 2: tensors that belong together go into a tuple",
    ),
    "batch of two lengths": (
        {"draw_batch": lambda noise, rows: (DATA[rows], DATA[:3])},
        r"draw_batch must return tensors \[B, \.\.\.\] of one B, got \(float32 \[4\], float32 \[3\]\)",
    ),
    "log_every": ({"log_every": 4}, "log_every must be a divisor of num_iterations = 6, got 4"),
    "log_every too large": ({"log_every": 12}, "log_every must be a divisor of num_iterations = 6, got 12"),
    "log_every 0": ({"log_every": 0}, "log_every must be a whole number of at least 1, got 0"),
    "num_iterations": (
        {"num_iterations": 6.0},
        "num_iterations must be a whole number of at least 1, got 6.0",
    ),
    "few particles": (
        {"method": METHODS["vimco"], "num_particles": 1},
        "num_particles must be a whole number of at least 2 for method VIMCO, got 1",
    ),
    "one centred particle": (
        {"options": lambda progress: {"center_weights": True}, "num_particles": 1},
        r"log_p holds 1 particle\(s\), this estimator needs at least 2",
    ),
    "no particles": ({"num_particles": 0}, "num_particles must be a whole number of at least 1 .*got 0"),
    "option": (
        {"options": lambda progress: {"detla": 0.1}},
        r"options must be those of method WW, \['center_weights'\], got \['detla'\]",
    ),
    "option of another method": (
        {"options": lambda progress: {"delta": 0.1}, "method": METHODS["reinforce"]},
        r"options must be none for method REINFORCE, which takes none, got \['delta'\]",
    ),
    "value of an option": (
        {"options": lambda progress: {"wake_weight": 7.0}, "method": METHODS["wws"]},
        "wake_weight must be a number between 0 and 1, got 7.0",
    ),
    "options without a function": ({"options": {"delta": 0.1}}, r"options must be a function, got \{'delta'"),
    "modules without a function": ({"build": {"p": 1}}, r"build must be a function, got \{'p': 1\}"),
    "optimizer without state": ({"optimizer": adam}, "optimizer must be an Optimizer, got <function adam"),
    "an iterator": (
        {"draw_batch": lambda noise, rows: next(ITERATOR)},
        "draw_batch returns different batches for the same noise and rows: take the data at `rows`",
    ),
    "arrays": (
        {"draw_batch": lambda noise, rows: DATA[rows].numpy()},
        "draw_batch must return tensors, got NumPy's arrays: torch.as_tensor",
    ),
    "learning rate in words": (
        {"learning_rate": "1e-3"},
        "learning_rate must be a positive number.*got '1e-3'",
    ),
    "falling learning rate": (
        {"learning_rate": lambda iteration: -0.01 + 0 * iteration},
        "learning_rate must be .*a function that gives one",
    ),
    "delays": (
        {"optimizer": delayed(Optimizer(adam), {"q.presenze": 2})},
        r"delays must be the start of names of parameters.*got 'q\.presenze'",
    ),
    "learning rate": ({"learning_rate": -1e-3}, "learning_rate must be a positive number.*got -0.001"),
    "learning rates": (
        {"learning_rate": lambda iteration: torch.ones(2)},
        "learning_rate must be .*a function that gives one for an iteration",
    ),
    "method": ({"method": "ww"}, "method must be a row of rwslib.methods.METHODS, got 'ww'"),
    "extensible": ({"extensible": "num_stages"}, "extensible must be a tuple of names, got 'num_stages'"),
    "parts": (
        {"build": lambda: {"p": GaussianModel(), "q": GaussianNetwork(), "r": GaussianModel()}},
        "build returns a 'r', which method WW does not read",
    ),
    "no q": ({"build": lambda: {"p": GaussianModel()}}, "build must return a 'q', which method WW needs"),
    "modules without names": (
        {"build": lambda: (GaussianModel(), GaussianNetwork())},
        r"build must return a dict of nn\.Module, .*got \(GaussianModel, GaussianNetwork\)",
    ),
    "the same modules": (
        {"build": lambda: SHARED},
        "build must make new modules at each call, but returned the same p.mean twice",
    ),
    "phases longer than training": (
        {"phases": (Phase(3, wake_theta, trains=("p",)), Phase(4, wake_theta, trains=("p",)))},
        "phases must be together at most num_iterations = 6 steps long, got 7",
    ),
    "no module": (
        {"build": lambda: {"p": GaussianModel().log_joint, "q": GaussianNetwork()}},
        r"build must return a dict of nn\.Module, .*got \{p: method, q: GaussianNetwork\}",
    ),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_that_do_not_fit_are_refused_with_one_sentence(name):
    changes, sentence = ARGUMENTS[name]
    with pytest.raises(ValueError, match=sentence):
        Trainer(replace(problem(), **changes), [0, 1])


def test_replicates_are_different_indices():
    for given in (3, [0, 0]):
        with pytest.raises(ValueError, match="replicates must be a sequence of different indices"):
            Trainer(problem(), given)


def test_at_least_one_replicate():
    with pytest.raises(ValueError, match="replicates must hold at least one index"):
        Trainer(problem(), [])


METRICS = {
    "float": (
        lambda networks: {"a": 1.0},
        r"metric 'a' of evaluate must lead with the 2 replicates .*got 1\.0",
    ),
    "scalar": (
        lambda networks: {"a": torch.ones(())},
        r"metric 'a' of evaluate must lead .*got float32 \[\]",
    ),
    "other lead": (
        lambda networks: {"a": torch.ones(3)},
        r"metric 'a' of evaluate must lead .*got float32 \[3\]",
    ),
    "text": (
        lambda networks: {"a": "x"},
        r"metric 'a' of evaluate must be a tensor, an array or a list of numbers, got 'x'",
    ),
    "no number": (lambda networks: {"a": [1.0, None]}, r"'a' of evaluate must be a tensor, .*\[1\.0, None\]"),
    "rows of two lengths": (
        lambda networks: {"a": [[1.0], [1.0, 2.0]]},
        "'a' of evaluate must be a tensor, ",
    ),
    "nothing": (lambda networks: None, "evaluate must be a function that returns a dict, got None"),
    "iteration": (
        lambda networks: {"iteration": torch.ones(2)},
        "evaluate must be .* without metric 'iteration'",
    ),
}


@pytest.mark.parametrize("name", METRICS)
def test_metrics_that_do_not_fit_are_refused_before_training(name):
    evaluate, sentence = METRICS[name]
    trainer = Trainer(problem(evaluate=evaluate), [0, 1], compiled=False)
    with pytest.raises(ValueError, match=sentence):
        trainer.train()
    assert trainer.iteration == 0


def test_metrics_keep_their_names():
    trainer = Trainer(
        problem(evaluate=lambda networks: {"ab"[networks.iteration > 0]: torch.ones(2)}),
        [0, 1],
        compiled=False,
    )
    with pytest.raises(ValueError, match=r"evaluate must return the metrics \['a'\] .*got \['b'\]"):
        trainer.train()


def test_metrics_keep_their_shape():
    trainer = Trainer(
        problem(evaluate=lambda networks: {"a": torch.ones(2, 1 + networks.iteration)}),
        [0, 1],
        compiled=False,
    )
    with pytest.raises(
        ValueError, match=r"metric 'a' of evaluate must keep its shape \[2, 1\], got \[2, 4\]"
    ):
        trainer.train()


@pytest.mark.parametrize(
    "value", [[1.0, 2.0], np.array([1.0, 2.0]), torch.tensor([1.0, 2.0], requires_grad=True)]
)
def test_metrics_may_be_lists_and_arrays(value):
    curves = Trainer(problem(evaluate=lambda networks: {"a": value}), [0, 1], compiled=False).train()
    np.testing.assert_array_equal(curves["a"], [[1, 1, 1], [2, 2, 2]])


# -- structure -----------------------------------------------------------------------------------------


class Pair(NamedTuple):
    value: torch.Tensor
    rest: dict


def wrap(z):
    """A latent as one of many tensors: floating, whole, and with further axes."""
    return {
        "pair": Pair(z, {"square": z.detach() ** 2}),
        "more": ((z.detach() > 0).long(), z.detach()[..., None]),
    }


def batch(x):
    return {"x": x, "more": (x.long(), Pair(x[:, None], {}))}


class TreeModel(GaussianModel):
    """The Gaussian model, its latents and data within trees."""

    def log_joint(self, z, x):
        assert isinstance(z["pair"], Pair)
        assert [part.ndim for part in z["more"]] == [2, 3]
        return super().log_joint(z["pair"].value, x["x"])

    forward = log_joint

    def sample(self, num, noise):
        z, x = super().sample(num, noise)
        return wrap(z), batch(x)

    def sample_defensive(self, x, num_particles, noise):
        z, log_r = super().sample_defensive(x["x"], num_particles, noise)
        return wrap(z), log_r


class TreeInference(nn.Module):
    """The Gaussian network, its latents and data within trees."""

    def __init__(self):
        super().__init__()
        self.inner = GaussianNetwork()

    def rsample(self, x, num_particles, noise):
        z, log_q = self.inner.rsample(x["x"], num_particles, noise)
        return wrap(z), log_q

    def sample(self, x, num_particles, noise):
        z, log_q = self.inner.sample(x["x"], num_particles, noise)
        return wrap(z), log_q

    def log_prob(self, z, x):
        assert isinstance(z["pair"], Pair)
        return self.inner.log_prob(z["pair"].value, x["x"])

    forward = log_prob


class TreeBaseline(GaussianBaseline):
    def forward(self, x):
        return super().forward(x["x"])


ANY = [name for name, row in METHODS.items() if row.latent in ("any", "reparameterisable")]


@pytest.mark.parametrize("method", ANY)
def test_trees_of_latents_and_data_give_what_tensors_give(method):
    row, found = METHODS[method], []
    for p, q, baseline, x in [
        (GaussianModel(), GaussianNetwork(), GaussianBaseline, DATA),
        (TreeModel(), TreeInference(), TreeBaseline, batch(DATA)),
    ]:
        torch.manual_seed(0)
        extra = {"control_variate": baseline()} if row.control_variate else {}
        loss = row.function(p, q, x, 3, Noise(4), **extra)
        found.append((loss, flat_gradient(loss.sum(), p), flat_gradient(loss.sum(), q)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("method", "mapped"), [("ws", True), ("dreg", True), ("dww", False), ("nvil", False)]
)
def test_trees_train_as_tensors_do(method, mapped):
    variates = (GaussianBaseline, TreeBaseline) if method == "nvil" else (None, None)
    plain = trained(problem(method, variate=variates[0], mapped=mapped))
    tree = trained(
        problem(
            method,
            TreeModel,
            TreeInference,
            variates[1],
            mapped=mapped,
            draw_batch=lambda noise, rows: batch(DATA[rows]),
        )
    )
    for name, value in plain.params.items():
        torch.testing.assert_close(tree.params[name.replace("parts.q.", "parts.q.inner.")], value)


def test_trees_are_evaluated_as_tensors_are():
    found = [
        importance_estimates(p, q, x, 7, Noise(3), images_at_once=5)
        for p, q, x in [
            (GaussianModel(), GaussianNetwork(), DATA),
            (TreeModel(), TreeInference(), batch(DATA)),
        ]
    ]
    assert_same(found[1], found[0])


# -- the protocols themselves --------------------------------------------------------------------------

PROTOCOLS = {
    "p": [protocols.Generative, protocols.DefensiveGenerative, protocols.CategoricalGenerative],
    "q": [
        protocols.Inference,
        protocols.ReparameterisedInference,
        protocols.MixedInference,
        protocols.CategoricalInference,
    ],
}


def functions(protocol):
    return {
        name: value for name, value in vars(protocol).items() if inspect.isfunction(value) and name[0] != "_"
    }


@pytest.mark.parametrize("file", [gmm_model, vae_model, air_model])
def test_the_models_of_the_library_have_the_functions_of_the_protocols(file):
    found = set()
    parts = {"p": getattr(file, "GMM", None) or file.GenerativeModel, "q": file.InferenceNetwork}
    for part, candidates in PROTOCOLS.items():
        for protocol in candidates:
            for name, function in functions(protocol).items():
                if hasattr(parts[part], name):
                    found.add(f"{part}.{name}")
                    ours = inspect.signature(getattr(parts[part], name)).parameters
                    theirs = inspect.signature(function).parameters
                    assert list(ours)[: len(theirs)] == list(theirs), f"{part}.{name}"
    assert {"p.log_joint", "p.sample", "q.sample", "q.log_prob"} <= found


def test_every_function_that_a_method_calls_is_in_a_protocol():
    files = Path(methods.__file__).parent.glob("*.py")
    called = set(re.findall(r"\b([pq]\.\w+)\(", "\n".join(file.read_text() for file in files)))
    known = {
        f"{part}.{name}"
        for part, found in PROTOCOLS.items()
        for protocol in found
        for name in functions(protocol)
    }
    assert called == known
