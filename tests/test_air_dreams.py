"""AIR's start from dreams: phases of a run, the order of a dream's objects, gradients by enumeration."""

import itertools
from functools import partial

import pytest
import torch
from resuming import assert_resumes
from test_air_experiment import alone_and_quick, parameters_after, tiny  # noqa: F401
from test_air_model import (  # noqa: F401
    ALL_COUNTS,
    prior_in_double,
    relative_error,
    small_networks,
    small_scenes,
    some_latents,
)
from toys import Script, flat_gradient

from rwslib.experiments import air
from rwslib.models.air import GenerativeModel, Latents, left_to_right
from rwslib.noise import Noise

DREAMS = {"dream_iterations": 2, "sorted_dreams": True, "num_iterations": 4}

# -- phases ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ww", "vimco"])
def test_dreams_train_q_alone_and_then_both_are_free(method):
    config = tiny(method, **DREAMS)
    states = [parameters_after(config, iterations) for iterations in range(4)]
    for after, moving in ((1, {"q"}), (2, {"q"}), (3, {"p", "q"})):
        changed = {n for n, v in states[after].items() if not torch.equal(v, states[after - 1][n])}
        assert {name.split(".")[1] for name in changed} == moving
        assert all(name in changed for name in ("parts.q.start", "parts.p.background") if name[6] in moving)


def test_all_runs_of_a_seed_begin_with_the_same_dreams():
    """Whatever the method and the number of particles, so that only what follows can differ."""
    starts = [parameters_after(tiny(m, K, **DREAMS), 2) for m, K in (("ww", 2), ("vimco", 7))]
    for name, value in starts[0].items():
        assert torch.equal(value, starts[1][name]), name
    other = parameters_after(tiny("ww", 2, **DREAMS, seed=2), 2)
    assert not torch.equal(other["parts.q.start"], starts[0]["parts.q.start"])


@pytest.mark.parametrize("iteration", [2, 3])
def test_a_run_interrupted_in_any_phase_ends_with_the_same_record(iteration, tmp_path, monkeypatch):
    steps = assert_resumes(tiny(**DREAMS), iteration, tmp_path, monkeypatch)
    assert steps == list(range(iteration, 4))  # a checkpoint is written on the way out


def test_wake_sleep_goes_on_dreaming_in_order():
    built = [air.build(tiny("ws", **DREAMS | {"sorted_dreams": choice}))["p"] for choice in (True, False)]
    assert [p.in_order for p in built] == [True, False]


# -- the order of the objects ----------------------------------------------------------------------------


def test_sorting_changes_no_picture_and_no_density():
    p, ordered = (GenerativeModel(count_success=0.7, in_order=choice) for choice in (False, True))
    ordered.load_state_dict(p.state_dict())
    (z, x), (z_ordered, x_ordered) = (model.sample(300, Noise(3)) for model in (p, ordered))
    assert torch.equal(x, x_ordered)
    assert (z.where != z_ordered.where).any()
    both = [
        Latents(z.count[None], *(part[None].double() for part in latents[1:])) for latents in (z, z_ordered)
    ]
    first, second = (p.double().log_joint(latents, x.double()) for latents in both)
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("count", [0, 1, 2, 3, ALL_COUNTS])
def test_objects_are_ordered_by_their_centres_and_absent_ones_come_last(count):
    z = some_latents(count)
    ordered = left_to_right(z)
    assert torch.equal(z.count, ordered.count)
    for n, where, what, new_where, new_what in zip(
        z.count.flatten(), *(part.flatten(0, 1) for part in (*z[1:], *ordered[1:])), strict=True
    ):
        order = sorted(range(n), key=lambda i: where[i, 2]) + list(range(n, 3))
        assert torch.equal(new_where, where[order])
        assert torch.equal(new_what, what[order])


def test_every_count_is_dreamt_of_equally_often():
    p = GenerativeModel(in_order=True)
    with torch.no_grad():
        p.count_logits.copy_(torch.tensor([5.0, 0, 0, 0]))  # a model that has all but forgotten objects
    z, x = p.dream(4000, Noise(1))
    share = torch.bincount(z.count, minlength=4) / 4000
    assert (share - 0.25).abs().max() < 5 * (0.25 * 0.75 / 4000) ** 0.5
    assert x.shape == (4000, 2500)


def test_the_share_of_the_boxes_that_lies_on_the_canvas():
    whole = torch.tensor([0.0, 0.0, 0.0, 0.0])  # a box of half the canvas in its middle
    corner = torch.tensor([0.0, 0.0, 20.0, -20.0])  # its centre on a corner: a quarter of it is inside
    where = torch.stack([whole, corner, corner]).expand(2, 1, 3, 4)
    for counts, expected in (([0, 0], 1.0), ([1, 1], 1.0), ([2, 0], 5 / 8), ([3, 3], 1 / 2)):
        z = Latents(torch.tensor(counts)[:, None], where, torch.zeros(2, 1, 3, 50))
        assert air.share_inside(z).item() == pytest.approx(expected, abs=0.02)


# -- gradients, by enumeration of a small scene ----------------------------------------------------------


class EnumeratedDreams:
    """All dreams of a small model: a count, one of two noise vectors per object, fixed pixels' noise."""

    def __init__(self, monkeypatch):
        self.p, self.q, _ = small_networks()
        monkeypatch.setattr(self.p, "sample_prior", partial(prior_in_double, self.p))
        states = [(n, bits) for n in range(4) for bits in itertools.product((0, 1), repeat=n)]
        counts = torch.tensor([n for n, _ in states])
        bits = torch.tensor([(*bits, 0, 0, 0)[:3] for _, bits in states])
        self.probs = 0.25 * 0.5 ** counts.double()
        noise = Noise(8)
        which = [noise.normal(3, 2, size).double() for size in (4, 2)]
        self.normal = [values[torch.arange(3), bits] for values in which]  # [states, 3, size]
        self.count_uniform = (counts + 0.5) / 4
        self.pixel_uniform = noise.uniform(len(states), 36).double()

    def script(self):
        return Script([self.count_uniform.double(), self.pixel_uniform], list(self.normal))

    def gradient(self, monkeypatch):
        """Of the loss of the phase of dreams, expected over all of them."""
        monkeypatch.setattr(air, "DREAMS_PER_SCENE", 1)
        script, x = self.script(), torch.zeros(len(self.probs), 36)
        loss = air.dream_loss(self.p, self.q, x, 5, script)
        assert script.is_used_up
        return flat_gradient((self.probs * loss).sum(), self.q)

    def by_hand(self, in_order):
        """The same, dream after dream, its objects sorted by Python."""
        self.p.in_order = False
        (z, x), total = self.p.dream(len(self.probs), self.script()), 0
        for i, prob in enumerate(self.probs):
            n = int(z.count[i])
            order = sorted(range(n), key=lambda t: z.where[i, t, 2]) if in_order else list(range(n))
            order += range(n, 3)
            one = Latents(z.count[i].view(1, 1), *(part[i, order][None, None] for part in z[1:]))
            total = total - prob * self.q.log_prob(one, x[i : i + 1]).sum()
        return flat_gradient(total, self.q)


@pytest.mark.parametrize("in_order", [True, False])
def test_the_phase_of_dreams_has_the_gradient_of_enumeration(in_order, small_scenes, monkeypatch):  # noqa: F811
    dreams = EnumeratedDreams(monkeypatch)
    dreams.p.in_order = in_order
    actual = dreams.gradient(monkeypatch)
    assert relative_error(actual, dreams.by_hand(in_order)) < 1e-9
    assert relative_error(actual, dreams.by_hand(not in_order)) > 0.01  # the order does matter to q
