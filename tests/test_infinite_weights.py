"""Particles that are impossible, weights of any magnitude, leaving one out, and too few digits."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.autograd import grad
from torch.func import vmap
from toys import ESTIMATORS, random_arguments

from rwslib import estimators, methods
from rwslib.experiments import GMMConfig, gmm
from rwslib.models.gmm import GMM
from rwslib.training import Trainer

WITH_P = [name for name, row in ESTIMATORS.items() if "log_p" in row[1]]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
MEANS = pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
# in [4, 3]: none impossible, one, all but one
IMPOSSIBLE = torch.tensor([[0, 0, 1], [0, 1, 1], [0, 0, 0], [0, 0, 1]], dtype=torch.bool)


def arguments_with(name, log_weight, dtype=torch.float64):
    """Arguments of an estimator in which the impossible particles have this log-density."""
    arguments = random_arguments(name, dtype=dtype)
    return {
        n: value.detach()
        .masked_fill(IMPOSSIBLE if n in ("log_p", "log_w_path") else torch.tensor(False), log_weight)
        .requires_grad_()
        for n, value in arguments.items()
    }


def loss_and_gradients(name, arguments):
    loss = ESTIMATORS[name][0](**arguments)
    return [loss, *grad(loss.sum(), list(arguments.values()), materialize_grads=True)]


# -- impossible particles --------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("name", WITH_P)
def test_an_impossible_particle_leaves_all_gradients_finite(name, dtype):
    for value in loss_and_gradients(name, arguments_with(name, -math.inf, dtype)):
        assert torch.isfinite(value).all()
        assert value.dtype == dtype


ELBOS = ("tvo", "rloo", "muprop", "disarm")  # which have no limit where a weight vanishes


@pytest.mark.parametrize("name", [name for name in WITH_P if name not in ELBOS])
def test_an_impossible_particle_is_one_whose_weight_vanishes(name):
    impossible = loss_and_gradients(name, arguments_with(name, -math.inf))
    unlikely = loss_and_gradients(name, arguments_with(name, -1e6))
    where = (
        slice(None, 2) if name.startswith(("vimco", "ovis")) else slice(None)
    )  # of the third datum see below
    for a, b in zip(impossible, unlikely, strict=True):
        torch.testing.assert_close(a[..., where], b[..., where])


def test_an_impossible_particle_takes_no_part_in_the_tvo():
    arguments = arguments_with("tvo", -math.inf)
    loss, *gradients = loss_and_gradients("tvo", arguments)
    for datum in range(3):
        possible = ~IMPOSSIBLE[:, datum]
        rest = {n: value[possible, datum : datum + 1].repeat(2, 1) for n, value in arguments.items()}
        torch.testing.assert_close(loss[datum], ESTIMATORS["tvo"][0](**rest)[0])  # all twice: the same value
        assert all((gradient[~possible, datum] == 0).all() for gradient in gradients)


@MEANS
def test_vimco_has_no_baseline_where_all_others_are_impossible(mean):
    log_w = torch.tensor([[0.3, -math.inf], [-math.inf, 700.0], [-math.inf, -math.inf]])
    baseline = estimators.vimco_baseline(log_w, mean)
    assert baseline[0, 0] == baseline[1, 1] == 0
    share = {"geometric": 1 / 3, "arithmetic": 1 / 2}[mean]
    torch.testing.assert_close(baseline[1:, 0], torch.full((2,), 0.3 + math.log(share)))


@pytest.mark.parametrize("name", WITH_P)
@pytest.mark.parametrize("value", [-math.inf, math.inf, math.nan])
def test_all_impossible_and_what_is_no_weight_is_refused(name, value):
    arguments = random_arguments(name)
    arguments["log_p"] = arguments["log_p"].detach()
    arguments["log_p"][:, 1] = value
    what = "only -inf" if value == -math.inf else r"NaN or \+inf"
    with pytest.raises(ValueError, match=rf"log_p holds {what}.*\(datum 1\)"):
        ESTIMATORS[name][0](**arguments)


@pytest.mark.parametrize("name", ["stl", "dreg", "rws_dreg"])
def test_a_path_may_end_only_where_the_particle_is_impossible(name):
    arguments = random_arguments(name)
    arguments["log_w_path"] = arguments["log_w_path"].detach()
    arguments["log_w_path"][1, 1] = -math.inf
    with pytest.raises(ValueError, match="log_w_path holds"):
        ESTIMATORS[name][0](**arguments)


@pytest.mark.parametrize("name", WITH_P)
def test_impossible_particles_in_mapped_code(name):
    arguments = arguments_with(name, -math.inf)
    values = tuple(torch.stack([value.detach(), value.detach() - 1]) for value in arguments.values())

    def total(*values):
        return ESTIMATORS[name][0](**dict(zip(arguments, values, strict=True))).sum()

    gradients = vmap(torch.func.grad(total, argnums=tuple(range(len(values)))))(*values)
    for mapped, alone in zip(gradients, loss_and_gradients(name, arguments)[1:], strict=True):
        torch.testing.assert_close(mapped[0], alone)
        assert torch.isfinite(mapped).all()


class Constrained(GMM):
    """A mixture in which some categories cannot be."""

    def log_joint(self, z, x):
        return super().log_joint(z, x).masked_fill((z == 3) | (z > 15), -math.inf)

    forward = log_joint


# not the ablation whose signal is the particle's own log-weight, and not those that relax the constraint
TRAINED = [
    name
    for name, row in methods.METHODS.items()
    if row.latent == "any" and "two_kinds" not in row.needs and name != "vimco_air2018"
]


@pytest.mark.parametrize("name, mapped", [(n, m) for n in TRAINED for m in (True, False)] + [("relax", True)])
def test_training_with_a_hard_constraint(name, mapped):
    config = GMMConfig(name, 20, num_iterations=3, num_runs=2, batch_size=10)
    problem = gmm.problem(config)
    problem = replace(
        problem,
        mapped=mapped,
        build=lambda build=problem.build: build() | {"p": Constrained()},
        evaluate=lambda networks: {},
    )
    trainer = Trainer(problem, range(2), compiled=False)
    start = trainer.params
    trainer.train()
    for part, value in trainer.params.items():
        assert torch.isfinite(value).all()
        assert not torch.equal(value, start[part])


# -- leaving one out -------------------------------------------------------------------------------------


def in_front(log_w, mean):
    return estimators.vimco_baseline(log_w, mean)


def mapped(log_w, mean):
    return vmap(lambda log_w: estimators.vimco_baseline(log_w, mean))(torch.stack([log_w, log_w + 1]))[0]


@DTYPES
@MEANS
@pytest.mark.parametrize("baseline", [in_front, mapped])
@pytest.mark.parametrize("num_particles", [2, 3, 8, 33])
def test_row_l_is_the_same_to_the_last_bit_whatever_particle_l_is(num_particles, baseline, mean, dtype):
    values = torch.tensor([-math.inf, -3e38, -1e8, -1.0, 0.0, 1.0, 1e8, 3e38], dtype=dtype)
    generator = torch.Generator().manual_seed(num_particles)
    log_w = torch.randn(num_particles, 7, 1, generator=generator, dtype=dtype).expand(-1, -1, len(values))
    log_w = (log_w * torch.logspace(-2, 4, 7, dtype=dtype)[:, None]).flatten(1)
    expected = baseline(log_w, mean)
    assert torch.isfinite(expected).all()
    for l in range(num_particles):
        changed = log_w.clone()
        changed[l] = values.repeat(7)
        assert torch.equal(baseline(changed, mean)[l], expected[l])


@DTYPES
@MEANS
def test_a_huge_particle_does_not_change_its_own_row(mean, dtype):
    """Others by subtraction from the total: row 2 would move with X."""
    rows = [
        estimators.vimco_baseline(torch.tensor([[0], [1], [X]], dtype=dtype), mean)[2]
        for X in (-1e8, -1.0, 1e8)
    ]
    assert rows[0] == rows[1] == rows[2]


@MEANS
def test_many_float32_particles_far_from_zero(mean):
    """512 of them, where a float32 has four digits after the point: the rows are right to that."""
    log_w = -1500 + torch.randn(512, 20, generator=torch.Generator().manual_seed(0))
    exact = estimators.vimco_baseline(log_w.double(), mean)
    torch.testing.assert_close(estimators.vimco_baseline(log_w, mean).double(), exact, rtol=0, atol=2e-4)


# -- counts and precision --------------------------------------------------------------------------------

PARTICLE_ARGUMENTS = [(name, n) for name, row in ESTIMATORS.items() for n in row[1]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
@pytest.mark.parametrize("name, argument", PARTICLE_ARGUMENTS)
def test_too_few_digits_are_refused(name, argument, dtype):
    arguments = random_arguments(name, dtype=torch.float32)
    arguments[argument] = arguments[argument].detach().to(dtype)
    with pytest.raises(ValueError, match=rf"{argument} must be float32 or float64, got {str(dtype)[6:]}"):
        ESTIMATORS[name][0](**arguments)
    with pytest.raises(ValueError, match=rf"{argument} must be float32 or float64"):
        vmap(lambda *values: ESTIMATORS[name][0](**dict(zip(arguments, values, strict=True))))(
            *(value.detach()[None] for value in arguments.values())
        )


@pytest.mark.parametrize("name, argument", PARTICLE_ARGUMENTS)
def test_what_is_no_tensor_is_refused(name, argument):
    for value in ([[0.0] * 3] * 4, np.zeros((4, 3), np.float32)):
        arguments = {n: v.detach() for n, v in random_arguments(name, dtype=torch.float32).items()}
        with pytest.raises(ValueError, match=rf"{argument} must be a tensor \[K, B\], got (list|ndarray)"):
            ESTIMATORS[name][0](**arguments | {argument: value})


def test_only_halves_are_refused_for_their_rounding():
    for dtype, rounded in {torch.float16: True, torch.int64: False}.items():
        with pytest.raises(ValueError, match="log_w must be float32 or float64, got") as error:
            estimators.log_evidence(torch.zeros(2, 3, dtype=dtype))
        assert ("rounded" in str(error.value)) is rounded


@pytest.mark.parametrize("name", ESTIMATORS)
def test_no_datum_and_no_particle_are_refused(name):
    with pytest.raises(ValueError, match="holds no datum"):
        ESTIMATORS[name][0](**random_arguments(name, batch=0))
    with pytest.raises(ValueError, match=r"holds 0 particle\(s\)"):
        ESTIMATORS[name][0](**random_arguments(name, num_particles=0))


@pytest.mark.parametrize("name", ["log_evidence", "normalized_weights", "effective_sample_size"])
def test_diagnostics_of_impossible_particles_and_of_none(name):
    function = getattr(estimators, name)
    log_w = random_arguments("iwae")["log_p"].detach().masked_fill(IMPOSSIBLE, -math.inf)
    assert torch.isfinite(function(log_w)).all()
    torch.testing.assert_close(function(log_w), function(log_w.masked_fill(IMPOSSIBLE, -1e6)))
    for bad, message in [
        (log_w[:, :0], "no datum"),
        (log_w[:0], "0 particle"),
        (log_w.bfloat16(), "float32 or float64"),
        (torch.full((2, 2), -math.inf), "holds only -inf"),
    ]:
        with pytest.raises(ValueError, match=f"log_w .*{message}"):
            function(bad)


@pytest.mark.parametrize("name", ELBOS)
def test_an_impossible_particle_has_no_gradient(name):
    arguments = arguments_with(name, -math.inf)
    for part, gradient in zip(arguments, loss_and_gradients(name, arguments)[1:], strict=True):
        assert part not in ("log_p", "log_q", "score") or (gradient[IMPOSSIBLE] == 0).all(), part


def test_a_mixture_without_weight_says_nothing():
    log_p, pair = torch.tensor([[0.3], [-math.inf]]), torch.tensor([[-math.inf], [0.1]])
    zero, score = torch.zeros(2, 1), torch.ones(2, 1, requires_grad=True)
    loss = estimators.disarm_bound_loss(log_p, zero, pair, zero, score)
    assert torch.isfinite(grad(loss.sum(), score)[0]).all()
