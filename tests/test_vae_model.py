"""The continuous model of section 4.2: densities, sampling, initial values, gradients of its methods."""

import math
from functools import cache, partial

import pytest
import torch
from torch import distributions as D
from torch import nn
from torch.func import functional_call, grad, vmap
from toys import Script

from rwslib import data
from rwslib.evaluation import active_units
from rwslib.methods import METHODS
from rwslib.models.vae import (
    MLP,
    GenerativeModel,
    InferenceNetwork,
    bernoulli_log_prob,
    normal_log_prob,
)
from rwslib.noise import Noise, Tape

SIZES = {"latent_size": 3, "hidden": (7, 5), "num_pixels": 11}
K, B = 4, 6


@pytest.fixture
def networks():
    """Small p and q in float64 with lively weights, and binary images ``[B, 11]``."""
    return small_networks()


def small_networks(seed=0, **sizes):
    sizes = SIZES | sizes
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        p, q = GenerativeModel(**sizes).double(), InferenceNetwork(**sizes).double()
        for module in (p, q):
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.5)
    stripes = torch.arange(B)[:, None] + torch.arange(sizes["num_pixels"])
    x = (stripes % 3 == 0).double()  # every pixel is sometimes on
    return p, q, x


def layers_by_hand(module, h, names):
    """The named linear layers with tanh between them, from the stored weights alone."""
    weights = module.state_dict()
    for i, name in enumerate(names):
        h = torch.tanh(h) if i else h
        h = torch.einsum("...a,ba->...b", h, weights[f"{name}.weight"]) + weights[f"{name}.bias"]
    return h


def decode(p, z):
    return layers_by_hand(p, z, [f"decoder.layers.{i}" for i in range(3)])


def encode(q, x):
    names = ["body.layers.0", "body.layers.1"]
    mean, log_sd = (layers_by_hand(q, x, [*names, f"{head}.layers.0"]) for head in ("mean", "log_sd"))
    return mean, log_sd.exp()


# -- densities -----------------------------------------------------------------------------------------


def test_log_joint_is_that_of_torch_distributions(networks):
    p, _, x = networks
    z = Noise(1).normal(K, B, 3).double()
    prior = D.Independent(D.Normal(torch.zeros_like(z), 1.0), 1)
    likelihood = D.Independent(D.Bernoulli(logits=decode(p, z)), 1)
    expected = prior.log_prob(z) + likelihood.log_prob(x.expand(K, -1, -1))
    assert expected.shape == (K, B)
    for actual in (p.log_joint(z, x), p(z, x)):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(p.log_likelihood(z, x), expected - prior.log_prob(z), rtol=0, atol=1e-12)


def test_log_q_is_that_of_torch_distributions(networks):
    _, q, x = networks
    z = Noise(1).normal(K, B, 3).double()
    expected = D.Independent(D.Normal(*encode(q, x)), 1).log_prob(z)
    assert expected.shape == (K, B)
    for actual in (q.log_prob(z, x), q(z, x)):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    mean, log_sd = q.moments(x)
    torch.testing.assert_close(mean, encode(q, x)[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(log_sd.exp(), encode(q, x)[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_log_prob_takes_numbers_and_tensors(dtype):
    z = torch.linspace(-3, 3, 8, dtype=dtype).view(2, 4)
    expected = D.Normal(0.0, 1.0).log_prob(z).sum(dim=-1)
    torch.testing.assert_close(normal_log_prob(z), expected)
    expected = D.Normal(0.5, math.exp(-1.5)).log_prob(z).sum(dim=-1)
    torch.testing.assert_close(normal_log_prob(z, 0.5, -1.5), expected)
    assert normal_log_prob(z).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bernoulli_log_prob_at_any_logits(dtype):
    """Right to rounding where it is near zero too, and exactly minus the logit far out."""
    logits = torch.tensor([-1e4, -100, -30, -5, -0.1, 0.1, 5, 30, 100, 1e4], dtype=dtype)[:, None]
    for x in (0.0, 1.0):
        x = torch.full_like(logits, x)
        expected = D.Bernoulli(logits=logits.double()).log_prob(x.double()).sum(dim=-1)
        actual = bernoulli_log_prob(x, logits)
        assert torch.isfinite(actual).all()
        rounding = 10 * torch.finfo(dtype).eps
        torch.testing.assert_close(actual.double(), expected, rtol=rounding, atol=rounding)
    assert bernoulli_log_prob(torch.ones(1), torch.tensor([1e4])) == 0
    assert bernoulli_log_prob(torch.zeros(1), torch.tensor([1e4])) == -1e4


def test_bernoulli_log_prob_has_the_gradient_of_the_coin():
    logits = torch.tensor([-1e4, -20.0, -2.0, 0.5, 2.0, 20.0, 1e4], requires_grad=True)
    x = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0])
    (gradient,) = torch.autograd.grad(bernoulli_log_prob(x, logits), logits)
    torch.testing.assert_close(gradient, x - torch.sigmoid(logits.detach()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bernoulli_log_prob_has_the_gradient_of_the_coin_at_a_logit_of_zero_too(dtype):
    """x - 1/2 there, where a formula's pieces have a corner each; also in float64 and beside zero."""
    logits = torch.tensor([0.0, -0.0, 1e-6, -1e-6], dtype=dtype)[:, None].requires_grad_()
    for x in (0.0, 1.0, 0.25):
        x = torch.full_like(logits, x)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        (expected,) = torch.autograd.grad(-loss, logits)
        (gradient,) = torch.autograd.grad(bernoulli_log_prob(x, logits).sum(), logits)
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-7)
        assert (gradient[:2] == x[:2] - 0.5).all()


def test_pixels_are_summed_and_the_rest_kept():
    logits, x = torch.randn(2, 3, 5), torch.ones(3, 5)
    assert bernoulli_log_prob(x, logits).shape == (2, 3)
    assert normal_log_prob(logits, torch.zeros(3, 5), torch.zeros(3, 5)).shape == (2, 3)


# -- the networks as the paper has them ----------------------------------------------------------------


def shapes(module):
    return {name: tuple(value.shape) for name, value in module.named_parameters() if "weight" in name}


def test_the_default_networks_are_those_of_burda_et_al():
    assert shapes(GenerativeModel()) == {
        "decoder.layers.0.weight": (200, 50),
        "decoder.layers.1.weight": (200, 200),
        "decoder.layers.2.weight": (784, 200),
    }
    assert shapes(InferenceNetwork()) == {
        "body.layers.0.weight": (200, 784),
        "body.layers.1.weight": (200, 200),
        "mean.layers.0.weight": (50, 200),
        "log_sd.layers.0.weight": (50, 200),
    }


@pytest.mark.parametrize("build", [GenerativeModel, InferenceNetwork])
def test_weights_start_glorot_uniform_and_biases_at_zero(build):
    """Bound, variance and no preferred sign; five standard errors, or 0.1% from the bound."""
    torch.manual_seed(0)
    for name, value in build().named_parameters():
        if "bias" in name:
            assert (value == 0).all()
            continue
        bound = math.sqrt(6 / sum(value.shape))
        assert value.abs().max() <= bound
        assert value.abs().max() > 0.999 * bound
        n = value.numel()
        assert value.mean().abs() < 5 * bound / math.sqrt(3 * n)
        assert (value.square().mean() / bound**2 - 1 / 3).abs() < 5 * math.sqrt(4 / 45 / n)


def test_the_output_bias_starts_at_the_clipped_logit_of_the_mean_image():
    mean = torch.tensor([0.0, 1e-4, 0.2, 0.5, 0.9999, 1.0])
    p = GenerativeModel(mean, num_pixels=6)
    clipped = torch.tensor([0.001, 0.001, 0.2, 0.5, 0.999, 0.999])
    expected = torch.log(clipped / (1 - clipped))
    torch.testing.assert_close(p.decoder.layers[-1].bias.detach(), expected)
    assert (p.decoder.layers[0].bias == 0).all()
    assert p.decoder.layers[-1].bias.requires_grad


# -- bfloat16 matrix products --------------------------------------------------------------------------


def test_bfloat16_products_stay_close_to_float32():
    """A bfloat16 has 8 significant bits; a sum of 784 pixels' errors stays far below a nat here."""
    losses, gradients = [], []
    images = data.load("digits")
    pixel_mean = images.train.flatten(1).float().mean(dim=0) / 255
    x = data.binarize(images.test[:50].flatten(1), Noise(1))
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        p, q = GenerativeModel(pixel_mean, matmul_dtype=dtype), InferenceNetwork(matmul_dtype=dtype)
        assert all(parameter.dtype == torch.float32 for parameter in [*p.parameters(), *q.parameters()])
        loss = METHODS["iwae"].function(p, q, x, 8, Noise(2))
        assert loss.dtype == torch.float32
        losses.append(loss.detach())
        parts = torch.autograd.grad(loss.mean(), [*p.parameters(), *q.parameters()])
        gradients.append(torch.cat([part.flatten() for part in parts]))
    difference = losses[1] - losses[0]
    assert 0 < difference.abs().max() < 0.003 * losses[0].mean()
    assert difference.mean().abs() < 0.1
    assert torch.cosine_similarity(*gradients, dim=0) > 0.999


def test_bfloat16_leaves_sums_and_biases_in_float32():
    mlp = MLP([2, 1], torch.bfloat16)
    with torch.no_grad():
        mlp.layers[0].weight.fill_(1.0)
        mlp.layers[0].bias.fill_(2.0**-12)
    # 1 + 2^-12 needs 13 bits; the product's 1 does not
    assert mlp(torch.tensor([0.5, 0.5])).item() == 1 + 2.0**-12
    assert mlp(torch.tensor([1 + 2.0**-12, 0.0])).item() == 1 + 2.0**-12  # the factor is rounded to 1


def test_a_network_in_double_precision_multiplies_in_double_precision():
    mlp = MLP([5, 4, 3]).double()
    h = torch.randn(5, dtype=torch.float64)
    expected = layers_by_hand(mlp, h, ["layers.0", "layers.1"])
    torch.testing.assert_close(mlp(h), expected, rtol=0, atol=1e-14)


# -- sampling ------------------------------------------------------------------------------------------


def test_particles_are_mean_plus_sd_times_noise(networks):
    _, q, x = networks
    mean, sd = encode(q, x)
    noise = Noise(1).normal(K, B, 3).double()
    for draw in (q.rsample, q.sample):
        z, log_q = draw(x, K, Script(normal=[noise]))
        torch.testing.assert_close(z, mean + sd * noise, rtol=0, atol=1e-12)
        torch.testing.assert_close(log_q, q.log_prob(z, x), rtol=0, atol=1e-12)
        assert log_q.shape == (K, B)


def test_only_rsample_has_a_path_derivative(networks):
    _, q, x = networks
    z, log_q = q.rsample(x, K, Noise(1))
    assert all((g != 0).any() for g in torch.autograd.grad(z.sum(), list(q.parameters()), retain_graph=True))
    # along the path the noise is what it is: log q changes with the standard deviation alone
    of_mean = torch.autograd.grad(log_q.sum(), q.mean.layers[0].bias)[0]
    torch.testing.assert_close(of_mean, torch.zeros_like(of_mean), rtol=0, atol=1e-12)

    z, log_q = q.sample(x, K, Noise(1))
    assert not z.requires_grad
    actual = torch.autograd.grad(log_q.sum(), list(q.parameters()))
    expected = torch.autograd.grad(q.log_prob(z, x).sum(), list(q.parameters()))
    for a, b in zip(actual, expected, strict=True):
        assert (b != 0).any()
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_ancestral_samples_have_the_moments_of_the_model(networks):
    """100 000 samples, five standard errors; pixels are coins of the decoder's probability."""
    p, num = networks[0].float(), 100_000
    z, x = p.sample(num, Noise(5))
    assert z.shape == (num, 3)
    assert x.shape == (num, 11)
    assert not z.requires_grad
    assert not x.requires_grad
    assert ((x == 0) | (x == 1)).all()
    assert (z.mean(dim=0).abs() < 5 / math.sqrt(num)).all()
    assert ((z.square().mean(dim=0) - 1).abs() < 5 * math.sqrt(2 / num)).all()
    probs = torch.sigmoid(decode(p, z))
    for weight in (torch.ones(num, 1), z[:, :1], z[:, 1:2]):  # on average, and given z
        deviation = weight * (x - probs)
        error = (weight.square() * probs * (1 - probs)).mean(dim=0).div(num).sqrt()
        assert (deviation.mean(dim=0).abs() < 5 * error).all()
    assert (torch.corrcoef((x - probs).T) - torch.eye(11)).abs().max() < 5 / math.sqrt(num)


# -- expected gradients --------------------------------------------------------------------------------


NUM_SAMPLES = 20_000


class Loss(nn.Module):
    """A method's mean loss as one module, so that its gradient can be mapped over noise."""

    def __init__(self, p, q, name, num_particles):
        super().__init__()
        self.p, self.q = p, q
        self.method = partial(METHODS[name].function, num_particles=num_particles)

    def forward(self, x, noise):
        return self.method(self.p, self.q, x, noise=noise).mean()


@cache
def gradient_samples(name, num_samples=NUM_SAMPLES, num_particles=3):
    """Gradients of theta and phi with independent noise, ``[num_samples, D]`` each, float64."""
    p, q, x = small_networks(3, latent_size=2, hidden=(4,), num_pixels=5)
    loss = Loss(p, q, name, num_particles)
    params = {name: value.detach() for name, value in loss.named_parameters()}

    def one(normal):
        tape = Tape(torch.empty(0), normal)
        return grad(lambda params: functional_call(loss, params, (x, tape)))(params)

    normal = Noise(7).normal(num_samples, num_particles * len(x) * 2)
    grads = vmap(one)(normal)
    return [
        torch.cat([g.flatten(1) for name, g in grads.items() if name.startswith(part)], dim=1)
        for part in ("p.", "q.")
    ]


def standard_errors_off(first, second):
    """Largest distance of two means in standard errors; both were drawn with the same noise."""
    difference = first - second
    return (difference.mean(dim=0).abs() / (difference.std(dim=0) / math.sqrt(len(difference)))).max().item()


@pytest.mark.parametrize(("name", "other"), [("iwae", "dreg"), ("ww", "rws_dreg")])
def test_doubly_reparameterised_gradients_have_the_same_expectation(name, other):
    """Within five standard errors, the error below 5% of the gradient; theta's is the same in every draw."""
    (theta, phi), (other_theta, other_phi) = gradient_samples(name), gradient_samples(other)
    torch.testing.assert_close(other_theta, theta, rtol=0, atol=1e-12)
    assert standard_errors_off(phi, other_phi) < 5
    error = (phi - other_phi).std(dim=0).norm() / math.sqrt(NUM_SAMPLES)
    assert error < 0.05 * phi.mean(dim=0).norm()


@pytest.mark.parametrize("name", ["stl", "ww", "vae"])
def test_other_gradients_are_told_apart_from_that_of_iwae(name):
    """The check above would notice: these have another expectation."""
    (_, iwae), (_, other) = gradient_samples("iwae"), gradient_samples(name)
    assert standard_errors_off(iwae, other) > 10


# -- active units --------------------------------------------------------------------------------------


class HalfDeaf(GenerativeModel):
    """A decoder that ignores the second half of its latents."""

    def log_likelihood(self, z, x):
        hears = torch.arange(self.latent_size) < self.latent_size // 2
        return super().log_likelihood(z * hears, x)


def test_latents_that_the_decoder_ignores_become_inactive():
    """IWAE on the digits at 7x7 pixels; the first half stays active, the second falls to the prior."""
    found = data.load("digits")
    train, test = (
        nn.functional.avg_pool2d(images.float(), 4).flatten(1).round().to(torch.uint8)
        for images in (found.train, found.test)
    )
    torch.manual_seed(0)
    sizes = {"latent_size": 6, "hidden": (40,), "num_pixels": 49}
    p, q = HalfDeaf(train.float().mean(dim=0) / 255, **sizes), InferenceNetwork(**sizes)
    x_test, noise = data.binarize(test, Noise(0, 1)), Noise(1)
    assert active_units(q.moments(x_test)[0]) == 6
    optimiser = torch.optim.Adam([*p.parameters(), *q.parameters()], lr=1e-2)
    annealing = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.1 ** (1 / 600))
    for _ in range(600):
        rows = noise.permutation(len(train))[:100]
        loss = METHODS["iwae"].function(p, q, data.binarize(train[rows], noise), 5, noise).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        annealing.step()
    variance = q.moments(x_test)[0].var(dim=0, correction=0)
    assert (variance[:3] > 0.1).all()
    assert (variance[3:] < 0.01).all()
    assert active_units(q.moments(x_test)[0]) == 3
