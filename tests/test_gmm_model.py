"""The Gaussian mixture, its inference network and its sampling, against torch.distributions and indexing."""

import math

import pytest
import torch
from torch import distributions as D
from torch import nn
from torch.autograd import grad

from rwslib.models import gmm
from rwslib.noise import Noise


class LargestNoise(Noise):
    """Gives nothing but the largest number below 1 that float32 uniform noise can take."""

    def uniform(self, *shape):
        return torch.full(shape, 1 - 2.0**-24)


def random_mixture(num_categories=20):
    torch.manual_seed(0)
    model = gmm.GMM("near", num_categories).double()
    nn.init.normal_(model.theta)
    return model


def reference_of(model):
    """The same mixture as a distribution of PyTorch: ``(prior, p(x))``."""
    prior = D.Categorical(logits=0.5 * model.theta)
    components = D.Normal(10.0 * torch.arange(len(model.theta)).double(), torch.tensor(5.0).double())
    return prior, D.MixtureSameFamily(prior, components)


def random_particles(num_particles=6, batch=9, num_categories=20):
    generator = torch.Generator().manual_seed(0)
    z = torch.randint(num_categories, (num_particles, batch), generator=generator)
    x = 210 * torch.rand(batch, generator=generator, dtype=torch.float64) - 10
    return z, x


# -- the generative model ------------------------------------------------------------------------------


def test_log_densities_are_those_of_torch():
    model = random_mixture()
    prior, mixture = reference_of(model)
    z, x = random_particles()
    torch.testing.assert_close(model.log_prior(), prior.logits)
    likelihood = D.Normal(10.0 * z.double(), 5.0).log_prob(x)
    torch.testing.assert_close(model.log_likelihood(z, x), likelihood)
    torch.testing.assert_close(model.log_joint(z, x), prior.log_prob(z) + likelihood)
    torch.testing.assert_close(model(z, x), model.log_joint(z, x))
    every_z = torch.arange(20)[:, None].expand(-1, len(x))
    evidence = torch.logsumexp(model.log_joint(every_z, x), dim=0)
    torch.testing.assert_close(evidence, mixture.log_prob(x))
    (actual,), (expected,) = (grad(value.sum(), model.theta) for value in (evidence, mixture.log_prob(x)))
    torch.testing.assert_close(actual, expected)


def test_a_point_at_a_corner_of_the_simplex_is_its_category():
    model, (z, x) = random_mixture(), random_particles()
    torch.manual_seed(0)
    network = gmm.InferenceNetwork().double()
    corner = nn.functional.one_hot(z, 20).double()
    torch.testing.assert_close(model.log_joint(corner, x), model.log_joint(z, x))
    torch.testing.assert_close(network.log_prob(corner, x), network.log_prob(z, x))


def test_a_point_inside_the_simplex_has_the_mean_of_the_centres():
    model = random_mixture(num_categories=3)
    z = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)[None, None]
    x = torch.tensor([7.0], dtype=torch.float64)
    expected = (z * model.log_prior()).sum() + D.Normal(0.5 * 10 + 0.3 * 20, 5.0).log_prob(x)
    torch.testing.assert_close(model.log_joint(z, x)[0], expected)


def test_sample_frequencies_are_those_of_the_prior():
    """400 000 samples, five standard errors."""
    model, num = gmm.GMM("true"), 400_000
    z, x = model.sample(num, Noise(1))
    assert z.shape == x.shape == (num,)
    assert not x.requires_grad
    probs = gmm.true_probs()
    frequencies = torch.bincount(z, minlength=20).double() / num
    assert ((frequencies - probs).abs() < 5 * (probs * (1 - probs) / num).sqrt()).all()


def test_samples_of_x_lie_around_their_centre():
    model, num = gmm.GMM("true"), 400_000
    z, x = model.sample(num, Noise(1))
    residual = ((x - 10.0 * z) / 5.0).double()
    assert residual.mean().abs() < 5 / math.sqrt(num)
    assert (residual.var() - 1).abs() < 5 * math.sqrt(2 / num)
    correlation = torch.corrcoef(torch.stack([z.double(), residual]))[0, 1]
    assert correlation.abs() < 5 / math.sqrt(num)


def test_defensive_samples_are_uniform():
    model, x = gmm.GMM("far"), torch.zeros(100_000)
    z, log_r = model.sample_defensive(x, 4, Noise(2))
    assert z.shape == log_r.shape == (4, len(x))
    torch.testing.assert_close(log_r, torch.full_like(log_r, -math.log(20)))
    frequencies = torch.bincount(z.flatten(), minlength=20) / z.numel()
    assert ((frequencies - 1 / 20).abs() < 5 * math.sqrt(19 / 400 / z.numel())).all()


@pytest.mark.parametrize("num_categories", range(2, 70))
def test_the_largest_uniform_number_gives_the_last_category(num_categories):
    model = gmm.GMM("near", num_categories)
    z, _ = model.sample_defensive(torch.zeros(1), 1, LargestNoise())
    assert z.item() == num_categories - 1
    assert gmm.sample_categories(model.log_prior(), LargestNoise().uniform(1)).item() == num_categories - 1


def test_true_probs_are_the_papers():
    probs = gmm.true_probs()
    assert probs.dtype == torch.float64
    assert probs.sum().item() == pytest.approx(1)
    torch.testing.assert_close(probs, torch.arange(5.0, 25.0, dtype=torch.float64) / 290)
    assert probs[0].item() == pytest.approx(0.01724, abs=5e-6)
    assert probs[19].item() == pytest.approx(0.08276, abs=5e-6)


@pytest.mark.parametrize("init, p_error", [("far", 0.69392), ("near", 0.08892), ("true", 0.0)])
def test_starts_have_the_known_distance_from_the_truth(init, p_error):
    """By direct computation, to the digits given."""
    error = (gmm.GMM(init).log_prior().exp() - gmm.true_probs()).norm().item()
    assert error == pytest.approx(p_error, abs=5e-6)


@pytest.mark.parametrize("init, expected", [("true", -5.25245), ("near", -5.33522), ("far", -14.45643)])
def test_expected_evidence_is_the_known_one(init, expected):
    """The integral over x on a fine grid."""
    x = torch.linspace(-60, 260, 64_001, dtype=torch.float64)
    truth, model = gmm.GMM("true").double(), gmm.GMM(init).double()
    every_z = torch.arange(20)[:, None]
    log_truth, log_model = (torch.logsumexp(m.log_joint(every_z, x), dim=0) for m in (truth, model))
    integral = torch.trapezoid(log_truth.exp() * log_model, x).item()
    assert integral == pytest.approx(expected, abs=1e-4)


def test_far_start_has_the_logits_of_the_authors():
    expected = torch.log_softmax(torch.arange(19.0, -1.0, -1.0), dim=0)
    torch.testing.assert_close(gmm.GMM("far").log_prior(), expected)


def test_an_unknown_start_is_refused():
    with pytest.raises(ValueError, match=r"init must be one of \['far', 'near', 'true'\], got 'middle'"):
        gmm.GMM("middle")


# -- picking and sampling --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_pick_is_indexing_and_has_its_gradient(dtype):
    z, _ = random_particles()
    for shape in [(9, 20), (20,)]:
        table = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
        rows = table.expand(9, 20)
        expected = rows.gather(1, z.T).T
        actual = gmm.pick(table, z.to(dtype))
        assert torch.equal(actual, expected)
        weights = torch.arange(actual.numel()).view_as(actual).sin()
        gradients = (grad((weights * value).sum(), table)[0] for value in (actual, expected))
        torch.testing.assert_close(*gradients)


def test_sampling_is_the_inverse_of_the_distribution_function():
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(9, 20, generator=generator, dtype=torch.float64).log_softmax(dim=-1)
    uniform = torch.rand(6, 9, generator=generator, dtype=torch.float64)
    expected = torch.searchsorted(log_probs.exp().cumsum(dim=-1), uniform.T.contiguous()).T
    assert torch.equal(gmm.sample_categories(log_probs, uniform).long(), expected)
    one_row = gmm.sample_categories(log_probs[0], uniform[:, 0])
    assert torch.equal(one_row.long(), expected[:, 0])


def test_impossible_categories_are_not_drawn():
    log_probs = torch.tensor([-200.0, 0.0, -200.0, -200.0]).log_softmax(dim=0)
    uniform = torch.tensor([2.0**-25, 0.5, 1 - 2.0**-24])
    assert (gmm.sample_categories(log_probs, uniform) == 1).all()


# -- the inference network and the control variates --------------------------------------------------------


def as_sequential(layers):
    """The same weights as an ordinary network of PyTorch."""
    modules = []
    for layer in layers:
        modules += [layer, nn.Tanh()]
    return nn.Sequential(*modules[:-1])


@pytest.mark.parametrize("hidden", [(16,), (16, 16)])
def test_the_inference_network_is_an_ordinary_network(hidden):
    torch.manual_seed(0)
    network = gmm.InferenceNetwork(hidden).double()
    assert [layer.out_features for layer in network.layers] == [*hidden, 20]
    z, x = random_particles()
    reference = D.Categorical(logits=as_sequential(network.layers)(x[:, None]))
    torch.testing.assert_close(network.log_probs(x), reference.logits)
    torch.testing.assert_close(network.log_prob(z, x), reference.log_prob(z))
    torch.testing.assert_close(network(z, x), network.log_prob(z, x))
    parameters = list(network.parameters())
    values = network.log_prob(z, x), reference.log_prob(z)
    for a, b in zip(*(grad(value.sum(), parameters) for value in values), strict=True):
        torch.testing.assert_close(a, b)


def test_samples_of_the_inference_network_have_its_probabilities():
    """200 000 samples for each of two observations, five standard errors."""
    torch.manual_seed(0)
    network, x, num = gmm.InferenceNetwork(), torch.tensor([3.0, 120.0]), 200_000
    z, log_q = network.sample(x, num, Noise(3))
    assert z.shape == log_q.shape == (num, 2)
    assert log_q.requires_grad
    assert not z.is_floating_point()
    torch.testing.assert_close(log_q, network.log_prob(z, x))
    probs = network.log_probs(x).detach().exp()
    for b in range(2):
        frequencies = torch.bincount(z[:, b], minlength=20) / num
        assert ((frequencies - probs[b]).abs() < 5 * (probs[b] * (1 - probs[b]) / num).sqrt()).all()


def test_the_control_variate_is_the_mean_of_a_network_over_the_particles():
    torch.manual_seed(0)
    control_variate, x, g = gmm.RelaxControlVariate(), torch.randn(5), torch.randn(3, 5, 20)
    network = as_sequential(control_variate.layers)
    expected = torch.stack([network(torch.cat([x[:, None], g[k]], dim=-1))[:, 0] for k in range(3)]).mean(
        dim=0
    )
    torch.testing.assert_close(control_variate(x, g), expected)
    sizes = [layer.in_features for layer in control_variate.layers] + [1]
    assert sizes == [21, 16, 16, 1]


def test_the_baseline_is_an_ordinary_network():
    torch.manual_seed(0)
    baseline, x = gmm.Baseline(), torch.randn(5)
    torch.testing.assert_close(baseline(x), as_sequential(baseline.layers)(x[:, None])[:, 0])
