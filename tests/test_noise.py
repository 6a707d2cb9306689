"""Random numbers as a function of a path of integers, and tapes that replay them."""

import math

import pytest
import torch
from torch.func import vmap

from rwslib.noise import Noise, Tape, seed_for


def draw(*path):
    noise = Noise(*path)
    return torch.cat([noise.uniform(3, 4).flatten(), noise.normal(5), noise.gumbel(2)])


def test_the_same_path_gives_the_same_numbers():
    assert torch.equal(draw(3, 1, 4), draw(3, 1, 4))
    assert seed_for(3, 1, 4) == seed_for(3, 1, 4)


PATHS = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (0, 2), (12, 3), (1, 23)]


def test_different_paths_give_different_numbers():
    assert len({tuple(draw(*path).tolist()) for path in PATHS}) == len(PATHS)
    assert len({seed_for(*path) for path in PATHS}) == len(PATHS)


@pytest.mark.parametrize("path", [(2**32,), (1, -1)])
def test_numbers_that_would_collide_are_refused(path):
    with pytest.raises(ValueError, match="path must hold whole numbers"):
        draw(*path)


def test_without_a_path_the_numbers_are_fresh():
    assert not torch.equal(draw(), draw())


@pytest.mark.parametrize("path", PATHS)
def test_seeds_have_63_bits(path):
    assert 0 <= seed_for(*path) < 2**63


def test_moments_and_range():
    """One million numbers, five standard errors."""
    n, noise = 1_000_000, Noise(7)
    uniform, normal, gumbel = (f(n).double() for f in (noise.uniform, noise.normal, noise.gumbel))
    assert (uniform > 0).all()
    assert (uniform < 1).all()
    for values, mean, variance in [
        (uniform, 0.5, 1 / 12),
        (normal, 0.0, 1.0),
        (gumbel, 0.5772156649, math.pi**2 / 6),
    ]:
        assert torch.isfinite(values).all()
        assert (values.mean() - mean).abs() < 5 * math.sqrt(variance / n)
        fourth = (values - mean).pow(4).mean()
        assert (values.var() - variance).abs() < 5 * math.sqrt((fourth - variance**2) / n)
    noise.uniform(n)
    assert noise.used == {"uniform": 3 * n, "normal": n}


def test_a_generator_that_returns_zero_does_no_harm():
    """Both generators may; its logarithm would be infinite."""

    class Zeros:
        def random(self, shape, dtype):
            return torch.zeros(shape).numpy()

    noise = Noise(0)
    noise.generator = Zeros()
    assert (noise.uniform(2, 3) > 0).all()
    assert torch.isfinite(noise.gumbel(2, 3)).all()


def test_numbers_are_float32():
    noise = Noise(0)
    assert noise.uniform(2).dtype == noise.normal(2).dtype == noise.gumbel(2).dtype == torch.float32


def test_a_tape_replays_its_numbers_in_order():
    uniform, normal = torch.rand(10), torch.randn(7)
    tape = Tape(uniform, normal)
    assert torch.equal(tape.uniform(2, 3), uniform[:6].view(2, 3))
    assert torch.equal(tape.normal(7), normal)
    assert torch.equal(tape.gumbel(4), -torch.log(-torch.log(uniform[6:])))
    assert tape.used == {"uniform": 10, "normal": 7}


def test_a_tape_that_has_run_out_is_an_error():
    tape = Tape(torch.rand(3), torch.randn(0))
    with pytest.raises(RuntimeError, match="4 uniform numbers were asked for, but the first step took 3"):
        tape.uniform(4)
    with pytest.raises(RuntimeError, match="1 normal numbers were asked for"):
        tape.normal(1)


def test_tapes_can_be_mapped_over():
    uniform, normal = torch.rand(3, 6), torch.randn(3, 2)
    result = vmap(lambda u, n: Tape(u, n).gumbel(2, 3) + Tape(u, n).normal(2)[:, None])(uniform, normal)
    for i in range(3):
        tape = Tape(uniform[i], normal[i])
        torch.testing.assert_close(result[i], tape.gumbel(2, 3) + tape.normal(2)[:, None])


def test_a_permutation_holds_every_number_once():
    for n in (0, 1, 2, 1000):
        order = Noise(3).permutation(n)
        assert order.dtype == torch.int64
        assert order.sort().values.tolist() == list(range(n))


def test_a_permutation_is_a_function_of_the_path():
    assert torch.equal(Noise(3, 1).permutation(100), Noise(3, 1).permutation(100))
    orders = {tuple(Noise(*path).permutation(100).tolist()) for path in PATHS}
    assert len(orders) == len(PATHS)
    noise = Noise(3)
    assert not torch.equal(noise.permutation(100), noise.permutation(100))


def test_all_permutations_are_as_frequent():
    """Six orders of three numbers, 12 000 draws, five standard errors."""
    noise, n = Noise(8), 12_000
    orders = torch.stack([noise.permutation(3) for _ in range(n)])
    counts = (orders @ torch.tensor([9, 3, 1])).unique(return_counts=True)[1]
    assert len(counts) == 6
    assert ((counts - n / 6).abs() < 5 * math.sqrt(n * 5 / 36)).all()
