"""Annealed importance sampling of real latents against closed forms; coins are in test_sbn."""

import math

import pytest
import torch
from torch import distributions as D
from toys import all_tuples

from rwslib.annealing import Drift, Flips, annealed_estimates
from rwslib.evaluation import importance_estimates
from rwslib.noise import Noise


class Sensor:
    """Two normal latents, seen through their sum with noise: ``x [B]``, ``z [K, B, 2]``."""

    noise = 0.3

    def log_joint(self, z, x):
        prior = D.Normal(0.0, 1.0).log_prob(z).sum(dim=-1)
        return prior + D.Normal(z.sum(dim=-1), self.noise).log_prob(x)

    def log_evidence(self, x):
        return D.Normal(0.0, math.sqrt(2 + self.noise**2)).log_prob(x)


class Guess:
    """A network that knows nothing of the data."""

    def log_prob(self, z, x):
        return D.Normal(torch.tensor([1.0, -1.0]).double(), 0.7).log_prob(z).sum(dim=-1).expand(-1, len(x))

    def sample(self, x, num_particles, noise):
        z = torch.tensor([1.0, -1.0]).double() + 0.7 * noise.normal(num_particles, len(x), 2).double()
        return z, self.log_prob(z, x)


@pytest.mark.parametrize("step_size", [None, 0.15, 1.0])
def test_the_annealed_evidence_is_that_in_closed_form(step_size):
    p, q, x, num_chains = Sensor(), Guess(), torch.linspace(-3, 3, 5).double(), 2000
    found = annealed_estimates(p, q, x, num_chains, 200, Noise(2), step_size, images_at_once=4)
    error = (1 / found["ess"] - 1 / num_chains).sqrt()
    assert (error < 0.3).all()
    assert (((found["log_marginal"] - p.log_evidence(x)).exp() - 1).abs() < 4 * error).all()
    plain = importance_estimates(p, q, x, num_chains, Noise(2))
    assert (found["ess"] > 2 * plain["ess"]).all()


class Rounded(Sensor):
    def log_joint(self, z, x):
        return super().log_joint(z.round().detach(), x)


class Whole(Guess):
    def sample(self, x, num_particles, noise):
        z, log_q = super().sample(x, num_particles, noise)
        return z.long(), log_q


@pytest.mark.parametrize(
    ("p", "q", "arguments", "message"),
    [
        (Rounded(), Guess(), (3, 5), "log_joint must have a gradient in z"),
        (Sensor(), Whole(), (3, 5), "z must hold coins 0 and 1 or real numbers"),
        (Sensor(), Guess(), (0, 5), "num_chains must be at least 1, got 0"),
        (Sensor(), Guess(), (3, 0), "num_steps must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_annealed_is_refused_in_one_sentence(p, q, arguments, message):
    with pytest.raises(ValueError, match=message):
        annealed_estimates(p, q, torch.zeros(2).double(), *arguments, Noise(1))


@pytest.mark.parametrize("step_size", [0.0, -1.0, math.nan])
def test_steps_have_a_size(step_size):
    with pytest.raises(ValueError, match="step_size must be above 0"):
        annealed_estimates(Sensor(), Guess(), torch.zeros(2).double(), 3, 5, Noise(1), step_size)


def test_flips_know_the_probability_of_their_way():
    """All ways between three coins, by enumeration: from each place they are one in total."""
    places = all_tuples(2, 3).T.double()  # [8, 3]
    slopes = torch.randn(8, 3, generator=torch.Generator().manual_seed(1)).double()
    moves, far = Flips(0.4), 200_000
    logits = (0.5 - places) * slopes - 1 / (2 * 0.4)
    for i in range(8):
        ways = (places - places[i]).abs()
        log_there = (ways * logits[i] - torch.nn.functional.softplus(logits[i])).sum(dim=-1)
        assert log_there.exp().sum().item() == pytest.approx(1, abs=1e-12)
        log_back = (ways * logits - torch.nn.functional.softplus(logits)).sum(dim=-1)
        here = places[i].expand(8, 3), slopes[i].expand(8, 3)
        torch.testing.assert_close(moves.log_ratio(*here, places, slopes), log_back - log_there)
        z = places[i].expand(far, 1, 3)
        there = moves.propose(z, slopes[i].expand(far, 1, 3), Noise(5))[:, 0]
        share = (there[:, None] == places).all(dim=-1).double().mean(dim=0)
        assert ((share - log_there.exp()).abs() < 5 * (log_there.exp() / far).sqrt()).all()


def test_drift_knows_the_density_of_its_way():
    scale = torch.tensor([[0.5, 2.0]]).double()
    moves, far = Drift(0.4, scale), 100_000
    z, slope = torch.tensor([[[1.0, -1.0]]]).double(), torch.tensor([[[3.0, 0.2]]]).double()
    new, new_slope = torch.tensor([[[0.3, 2.0]]]).double(), torch.tensor([[[-1.0, 0.5]]]).double()

    def way(z, slope):
        return D.Normal(z + 0.2 * scale**2 * slope, math.sqrt(0.4) * scale)

    log_there, log_back = way(z, slope).log_prob(new).sum(dim=-1), way(new, new_slope).log_prob(z).sum(dim=-1)
    torch.testing.assert_close(moves.log_ratio(z, slope, new, new_slope), log_back - log_there)
    drawn = moves.propose(z.expand(far, 1, 2), slope.expand(far, 1, 2), Noise(1))
    known = way(z, slope)
    assert ((drawn.mean(dim=0) - known.mean[0]).abs() < 5 * known.stddev[0] / math.sqrt(far)).all()
    torch.testing.assert_close(drawn.std(dim=0), known.stddev[0], rtol=0.02, atol=0)


class Coins:
    """Two fair coins."""

    def log_prob(self, z, x):
        return -z.sum(dim=-1) * math.log(2)

    def sample(self, x, num_particles, noise):
        z = (noise.uniform(num_particles, len(x), 2) < 0.5).double()
        return z, self.log_prob(z, x)


@pytest.mark.parametrize(("q", "default"), [(Guess(), 0.3), (Coins(), 0.15)])
def test_the_step_size_is_the_given_one_or_the_documented_one(q, default):
    x = torch.zeros(2).double()
    none, same, other = (
        annealed_estimates(Sensor(), q, x, 20, 10, Noise(1), size)["log_marginal"]
        for size in (None, default, 1.0)
    )
    assert torch.equal(none, same) and not torch.equal(none, other)
