"""Attend, infer, repeat: boxes, densities, sampling, and the gradients of its methods by enumeration."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import distributions as D
from torch import nn
from torch.autograd import grad, gradcheck
from torch.func import functional_call, vmap
from torch.func import grad as func_grad
from torch.nn import functional as F
from toys import Script, flat_gradient, parameter_gradients

from rwslib import data
from rwslib.experiments.air import OFFERS, Baseline
from rwslib.methods import METHODS, usable
from rwslib.models import air
from rwslib.models.air import GenerativeModel, InferenceNetwork, Latents, boxes, crop, paste
from rwslib.noise import Noise, Tape

K, B = 3, 4
COUNTS = range(4)
every_count = pytest.mark.parametrize("count", COUNTS)


def random_where(num, seed=0):
    """Boxes of all kinds, many of them partly outside; float64 ``[num, 4]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, 4, generator=generator, dtype=torch.float64)


def random_images(num, size=50, seed=1):
    return torch.rand(num, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def where_of(scale_x, scale_y, shift_x, shift_y):
    scale = torch.tensor([scale_x, scale_y], dtype=torch.float64)
    shift = torch.tensor([shift_x, shift_y], dtype=torch.float64)
    return torch.cat([scale.logit(), shift.atanh()])


# -- boxes ---------------------------------------------------------------------------------------------


def by_grid_sample(source, size, scale, shift):
    """PyTorch's own sampler: target u reads the source at ``scale * u + shift``."""
    affine = torch.zeros(len(source), 2, 3, dtype=source.dtype)
    affine[:, [0, 1], [0, 1]], affine[:, :, 2] = scale, shift
    grid = F.affine_grid(affine, [len(source), 1, size, size], align_corners=True)
    return F.grid_sample(source[:, None], grid, align_corners=True)[:, 0]


def test_crop_is_grid_sample():
    where, images = random_where(30), random_images(30)
    scale, shift = torch.sigmoid(where[:, :2]), torch.tanh(where[:, 2:])
    for size in (20, 7):
        expected = by_grid_sample(images, size, scale, shift)
        torch.testing.assert_close(crop(images, where, size), expected, rtol=0, atol=1e-12)
    assert crop(images, where).shape == (30, 20, 20)


def test_paste_is_grid_sample_with_the_inverse_map():
    where, glimpses = random_where(30), random_images(30, 20)
    scale, shift = torch.sigmoid(where[:, :2]), torch.tanh(where[:, 2:])
    for size in (50, 13):
        expected = by_grid_sample(glimpses, size, 1 / scale, -shift / scale)
        torch.testing.assert_close(paste(glimpses, where, size), expected, rtol=0, atol=1e-12)
    assert paste(glimpses, where).shape == (30, 50, 50)


def test_the_whole_canvas_is_the_identity():
    where, images = torch.tensor([[60.0, 60, 0, 0]], dtype=torch.float64), random_images(1)
    torch.testing.assert_close(crop(images, where, 50), images, rtol=0, atol=1e-12)
    torch.testing.assert_close(paste(images, where, 50), images, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("left", "top"), [(0, 0), (30, 30), (13, 4)])
def test_pasting_back_a_glimpse_on_the_pixels_restores_them_and_nothing_else(left, top):
    """A box whose 20 by 20 sampling points are pixels."""
    scale, shift = 19 / 49, [(2 * corner + 19) / 49 - 1 for corner in (left, top)]
    where, images = where_of(scale, scale, *shift)[None], random_images(1)
    inside = torch.zeros_like(images)
    inside[:, top : top + 20, left : left + 20] = 1
    torch.testing.assert_close(paste(crop(images, where), where), images * inside, rtol=0, atol=1e-10)


def test_pasting_back_a_glimpse_restores_a_smooth_image_inside_any_box():
    """Bilinear interpolation is exact for planes."""
    place = torch.linspace(-1, 1, 50, dtype=torch.float64)
    plane = 0.7 - 0.4 * place[None, :] + 0.3 * place[:, None]
    for where in (where_of(0.4, 0.4, 0.1, -0.2), where_of(0.6, 0.3, -0.3, 0.6), where_of(0.2, 0.5, 0.7, 0.4)):
        (sx, sy), (tx, ty) = torch.sigmoid(where[:2]), torch.tanh(where[2:])
        inside = ((place - ty).abs() <= sy)[:, None] & ((place - tx).abs() <= sx)
        back = paste(crop(plane[None], where[None]), where[None])[0]
        assert inside.sum() > 100
        torch.testing.assert_close(back[inside], plane[inside], rtol=0, atol=1e-12)


def test_x_is_along_the_columns_and_y_along_the_rows():
    canvas = paste(torch.ones(1, 20, 20), where_of(0.3, 0.1, 0.6, -0.5).float()[None])[0]
    rows, columns = ((canvas > 0.5).any(dim=axis).nonzero() for axis in (1, 0))
    left, top, wide, high = boxes(where_of(0.3, 0.1, 0.6, -0.5)).tolist()
    assert (left, top, wide, high) == pytest.approx((31.963, 10.171, 15.474, 5.158), abs=1e-3)
    assert columns.min().item() == pytest.approx(left, abs=0.5)
    assert columns.max().item() + 1 == pytest.approx(left + wide, abs=0.5)
    assert rows.min().item() == pytest.approx(top, abs=0.5)
    assert rows.max().item() + 1 == pytest.approx(top + high, abs=0.5)


@pytest.mark.parametrize("place", [(0.4, 0.4, 0.1, -0.2), (0.6, 0.45, -0.3, 0.2)])
def test_ink_pasted_from_a_full_glimpse_fills_its_box(place):
    """Size and centre of what is drawn are those of the box, to a part of a pixel."""
    where = where_of(*place)
    canvas = paste(torch.ones(1, 20, 20, dtype=torch.float64), where[None])[0]
    left, top, wide, high = boxes(where).tolist()
    pixel = torch.arange(50, dtype=torch.float64) + 0.5
    for axis, (start, length) in {0: (left, wide), 1: (top, high)}.items():
        ink = canvas.sum(dim=axis)
        assert (ink @ pixel / ink.sum()).item() == pytest.approx(start + length / 2, abs=0.05)
        assert (ink.sum() / ink.max()).item() == pytest.approx(length, abs=0.1)


@pytest.mark.parametrize("function", [crop, paste])
def test_gradients_of_boxes_match_finite_differences(function):
    source = random_images(3, 9).requires_grad_()
    where = random_where(3, seed=2).requires_grad_()
    assert gradcheck(lambda source, where: function(source, where, 6), (source, where))


def test_boxes_without_size_stay_finite():
    where = torch.tensor([[-300.0, -300, 300, -300], [300.0, 300, 0, 0]]).requires_grad_()
    for function, side in ((crop, 50), (paste, 20)):
        result = function(torch.ones(2, side, side), where)
        (gradient,) = grad(result.sum(), where)
        assert torch.isfinite(result).all()
        assert torch.isfinite(gradient).all()


# -- networks and latents for what follows -------------------------------------------------------------


def networks(seed=0, hidden=16):
    """p and q in float64 with lively weights, and some scenes ``[B, 2500]``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        p, q = GenerativeModel(count_success=0.6).double(), InferenceNetwork(hidden=hidden).double()
        for module in (p.decoder, q.from_object, q.from_state, q.presence, q.where[-1], q.what):
            for parameter in module.parameters():
                parameter.data += 0.2 * torch.randn_like(parameter) / math.sqrt(parameter.shape[-1])
    images = data.scenes("digits", "test", 40).images.flatten(1)
    x = data.binarize(images, Noise(2))[torch.tensor([0, 1, 2, 3])].double()
    return p, q, x


def forced(count, total, seed=0):
    """Noise that gives every row the count, with the same objects whatever the count is."""
    noise = Noise(seed)
    uniform = (torch.arange(3) >= count).double()[:, None].expand(3, total)
    return Script([uniform], [noise.normal(3, total, size).double() for size in (4, 50)])


def some_latents(count, seed=0, batch=B):
    """Latents of a count, or of counts ``[K, B]``, with lively objects; absent ones are zero."""
    noise = Noise(seed)
    count = torch.as_tensor(count).expand(K, batch)
    there = (torch.arange(3) < count[..., None])[..., None]
    where = noise.normal(K, batch, 3, 4).double() * 0.7 * there
    return Latents(count, where, noise.normal(K, batch, 3, 50).double() * there)


ALL_COUNTS = (torch.arange(K * B) % 4).view(K, B)


# -- the generative model ------------------------------------------------------------------------------


def test_the_prior_of_the_count_is_a_distribution_that_starts_geometric():
    for success in (0.1, 0.6):
        p = GenerativeModel(count_success=success)
        probs = p.log_count().exp()
        assert probs.shape == (4,)
        torch.testing.assert_close(probs.sum(), torch.tensor(1.0))
        torch.testing.assert_close(probs[1:] / probs[:-1], torch.full((3,), success))
    assert "count_logits" in dict(p.named_parameters())
    fixed = GenerativeModel(learn_count=False)
    assert "count_logits" not in dict(fixed.named_parameters())
    assert torch.equal(fixed.log_count(), GenerativeModel().log_count())


def test_a_normal_likelihood_is_that_of_its_samples():
    p = GenerativeModel(count_success=0.6, pixel_sd=0.3)
    z, x = p.sample(200, Noise(5))
    z = Latents(*(part[None] for part in z))
    mean = torch.sigmoid(p.draw(z))
    assert ((x - mean[0]) / 0.3).std().item() == pytest.approx(1, abs=0.01)
    expected = p.log_prior(z) + D.Normal(mean, 0.3).log_prob(x).sum(-1)
    torch.testing.assert_close(p.log_joint(z, x), expected, rtol=1e-5, atol=0)


def log_prior_by_hand(p, z):
    scale = D.Normal(-0.4, 0.1)
    count = D.Categorical(logits=p.count_logits).log_prob(z.count)
    scales, shifts = scale.log_prob(z.where[..., :2]), D.Normal(0, 1).log_prob(z.where[..., 2:])
    each = scales.sum(-1) + shifts.sum(-1) + D.Normal(0, 1).log_prob(z.what).sum(-1)
    return count + (each * (torch.arange(3) < z.count[..., None])).sum(-1)


def logits_by_hand(p, z):
    """One particle, one datum and one object at a time."""
    rows = torch.empty(*z.count.shape, 2500, dtype=torch.float64)
    for k, b in itertools.product(*map(range, z.count.shape)):
        canvas = p.background.detach().expand(50, 50)
        for t in range(z.count[k, b]):
            glimpse = p.decoder(z.what[k, b, t]).view(1, 20, 20)
            canvas = canvas + paste(glimpse, z.where[k, b, t][None])[0]
        rows[k, b] = canvas.flatten()
    return rows


@pytest.mark.parametrize("count", [0, 1, 2, 3, ALL_COUNTS])
def test_log_joint_is_that_of_torch_distributions(count):
    p, _, x = networks()
    z = some_latents(count)
    prior, logits = log_prior_by_hand(p, z), logits_by_hand(p, z)
    torch.testing.assert_close(p.log_prior(z), prior, rtol=0, atol=1e-4)  # its constants are float32
    torch.testing.assert_close(p.draw(z), logits, rtol=0, atol=1e-10)
    expected = p.log_prior(z) + D.Bernoulli(logits=logits).log_prob(x.expand(K, -1, -1)).sum(-1)
    for actual in (p.log_joint(z, x), p(z, x)):
        assert actual.shape == (K, B)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


def test_the_order_of_the_objects_does_not_change_p():
    p, _, x = networks()
    z = some_latents(3)
    other = Latents(z.count, z.where.flip(2), z.what.flip(2))
    torch.testing.assert_close(p.log_joint(other, x), p.log_joint(z, x), rtol=0, atol=1e-9)


def normal_moments_off(values):
    """Largest distance of mean and variance from 0 and 1, in standard errors."""
    mean, variance = values.mean(dim=0), values.square().mean(dim=0)
    return torch.cat([mean, (variance - 1) / math.sqrt(2)]).abs().max() * math.sqrt(len(values))


def test_ancestral_samples_have_the_frequencies_of_the_model():
    """Counts, objects and, given those, pixels; five standard errors."""
    p, _, _ = networks()
    p, num = p.float(), 3000
    z, x = p.sample(num, Noise(3))
    assert (z.where.shape, z.what.shape, x.shape) == ((num, 3, 4), (num, 3, 50), (num, 2500))
    assert not x.requires_grad
    assert not any(part.requires_grad for part in z)
    probs = p.log_count().exp().detach()
    frequency = z.count.bincount(minlength=4) / num
    assert ((frequency - probs).abs() < 5 * (probs * (1 - probs) / num).sqrt()).all()
    there = torch.arange(3) < z.count[:, None]
    assert (z.where[~there] == 0).all()
    assert (z.what[~there] == 0).all()
    standard = (z.where[there] - torch.tensor([-0.4, -0.4, 0, 0])) / torch.tensor([0.1, 0.1, 1, 1])
    assert normal_moments_off(torch.cat([standard, z.what[there]], dim=1)) < 5

    assert ((x == 0) | (x == 1)).all()
    with torch.no_grad():
        coin = torch.sigmoid(p.draw(Latents(*(part[None] for part in z)))[0])
    deviation, variance = (x - coin).double(), (coin * (1 - coin)).double()
    assert (deviation.sum(dim=0).abs() < 5 * variance.sum(dim=0).sqrt()).all()
    for count in COUNTS:
        rows = z.count == count
        assert deviation[rows].sum().abs() < 5 * variance[rows].sum().sqrt()


def test_samples_for_defence_have_a_uniform_count_and_the_density_they_say():
    """p / r is 4 p(n), whatever the objects; the mean of p / r under r is one."""
    p, _, _ = networks()
    p, num = p.float(), 3000
    z, log_r = p.sample_defensive(torch.zeros(3, 2500), num, Noise(4))
    assert z.where.shape == (num, 3, 3, 4)
    assert log_r.shape == (num, 3)
    assert not log_r.requires_grad
    frequency = z.count.flatten().bincount(minlength=4) / (3 * num)
    assert ((frequency - 0.25).abs() < 5 * math.sqrt(0.25 * 0.75 / (3 * num))).all()
    with torch.no_grad():
        expected = p.log_prior(z) - p.log_count()[z.count] - math.log(4)
        weights = (p.log_prior(z) - log_r).exp().flatten()
        torch.testing.assert_close(weights, 4 * p.log_count().exp()[z.count].flatten(), rtol=1e-3, atol=0)
    torch.testing.assert_close(log_r, expected, rtol=0, atol=1e-4)
    assert (weights.mean() - 1).abs() < 5 * weights.std() / math.sqrt(3 * num)
    there = torch.arange(3) < z.count[..., None]
    assert (z.what[~there] == 0).all()
    assert normal_moments_off(z.what[there]) < 5
    torch.nn.init.constant_(p.count_logits, 0.0)
    p.count_logits.data[0] = 7.0
    again, log_r_again = p.sample_defensive(torch.zeros(3, 2500), num, Noise(4))
    assert torch.equal(again.count, z.count)  # p(n) plays no part
    torch.testing.assert_close(log_r_again, log_r, rtol=0, atol=1e-4)


# -- the inference network -----------------------------------------------------------------------------


def walk_by_hand(q, x, count, values):
    """One particle of one image: the presence logits it met, and the moments of its objects.

    Args:
        x: ``[2500]``; values: ``(where [3, 4], what [3, 50])``.
    """
    image = q.from_image(q.encoder(x))
    state = torch.tanh(image + q.from_state(q.start))
    logits, moments = [], []
    for step in range(min(count + 1, 3)):
        if step:
            found = q.from_object(torch.cat([values[1][step - 1], values[0][step - 1]]))
            state = torch.tanh(image + q.from_state(state) + found)
        logits.append(q.presence(state)[0])
        if step < count:
            glimpse = crop(x.view(1, 50, 50), values[0][step][None]).flatten()
            heads = [q.where(state).chunk(2), q.what(glimpse).chunk(2)]
            moments.append([(mean, F.softplus(raw) + 0.01) for mean, raw in heads])
    return logits, moments


@pytest.mark.parametrize("count", [0, 1, 2, 3, ALL_COUNTS])
def test_log_q_is_that_of_torch_distributions(count):
    _, q, x = networks()
    z = some_latents(count)
    expected = torch.empty(K, B, dtype=torch.float64)
    for k, b in itertools.product(range(K), range(B)):
        n, values = z.count[k, b].item(), (z.where[k, b], z.what[k, b])
        logits, moments = walk_by_hand(q, x[b], n, values)
        total = sum(D.Bernoulli(logits=l).log_prob(l.new_tensor(t < n)) for t, l in enumerate(logits))
        for step, parts in enumerate(moments):
            for value, (mean, sd) in zip(values, parts, strict=True):
                total = total + D.Normal(mean, sd).log_prob(value[step]).sum()
        expected[k, b] = total
    for actual in (q.log_prob(z, x), q(z, x)):
        assert actual.shape == (K, B)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


@every_count
def test_particles_are_made_of_their_noise(count):
    """Presence where the number is below its probability; objects are mean plus sd times noise."""
    _, q, x = networks()
    noise = Noise(5)
    where_noise, what_noise = (noise.normal(3, K * B, size).double() for size in (4, 50))
    mixed = Noise(count).uniform(3, K * B).double()  # some rows go on while others have ended
    for uniform in (mixed, (torch.arange(3) >= count).double()[:, None].expand(3, K * B)):
        for draw in (q.sample, q.sample_mixed):
            z, *_ = draw(x, K, Script([uniform], [where_noise, what_noise]))
            for k, b in itertools.product(range(K), range(B)):
                row, n = k * B + b, z.count[k, b].item()
                logits, moments = walk_by_hand(q, x[b], n, (z.where[k, b], z.what[k, b]))
                for step, logit in enumerate(logits):
                    assert (uniform[step, row] < torch.sigmoid(logit)) == (step < n)
                for step, ((m1, s1), (m2, s2)) in enumerate(moments):
                    where, what = m1 + s1 * where_noise[step, row], m2 + s2 * what_noise[step, row]
                    torch.testing.assert_close(z.where[k, b, step], where, rtol=0, atol=1e-12)
                    torch.testing.assert_close(z.what[k, b, step], what, rtol=0, atol=1e-12)
                assert (z.where[k, b, n:] == 0).all()
                assert (z.what[k, b, n:] == 0).all()


@pytest.mark.parametrize("count", [None, *COUNTS])
def test_samples_report_the_density_that_log_prob_gives_them(count):
    _, q, x = networks()
    q.presence[-1].bias.data.fill_(0.4)
    for draw in (q.sample, q.sample_mixed):
        noise = Noise(1) if count is None else forced(count, 40 * B)
        z, log_q, *_ = draw(x, 40, noise)
        if count is None:
            assert set(z.count.unique().tolist()) == set(COUNTS)
        else:
            assert (z.count == count).all()
            assert noise.is_used_up
        torch.testing.assert_close(log_q, q.log_prob(z, x), rtol=0, atol=1e-9)


def test_the_count_given_the_path_sums_to_one():
    """The same three objects are offered, and taken up to each count in turn."""
    _, q, x = networks()
    log_q_counts, paths = [], []
    for count in COUNTS:
        z, _, log_q_count = q.sample_mixed(x, K, forced(count, K * B))
        assert (z.count == count).all()
        log_q_counts.append(log_q_count)
        paths.append(z.what)
    assert torch.equal(paths[3][:, :, :2], paths[2][:, :, :2])
    probs = torch.stack(log_q_counts).exp()
    assert (probs > 1e-3).all()
    torch.testing.assert_close(probs.sum(dim=0), torch.ones(K, B).double(), rtol=0, atol=1e-12)


def test_counts_have_their_frequencies():
    """Of all particles of an image, the mean of q(n | path); five standard errors."""
    _, q, x = networks()
    num, num_paths = 2000, 100
    with torch.no_grad():
        found = q.sample(x, num, Noise(6))[0].count
        each = [q.sample_mixed(x, num_paths, forced(n, num_paths * B))[2].exp() for n in COUNTS]
    probs = torch.stack([values.mean(dim=0) for values in each])
    frequency = torch.stack([(found == n).double().mean(dim=0) for n in COUNTS])
    error = (probs * (1 - probs) * (1 / num + 1 / num_paths)).sqrt()
    assert ((frequency - probs).abs() < 5 * error).all()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("garbage", [1e30, -1e300, math.nan, math.inf])
def test_absent_objects_count_for_nothing(garbage, packed):
    p, q, x = networks()
    p.packed = q.packed = packed
    z = some_latents(ALL_COUNTS)
    there = (torch.arange(3) < z.count[..., None])[..., None]
    other = Latents(z.count, torch.where(there, z.where, garbage), torch.where(there, z.what, garbage))
    assert not torch.equal(other.where, z.where)
    for function, module in ((p.log_joint, p), (q.log_prob, q)):
        clean, dirty = function(z, x), function(other, x)
        assert torch.equal(dirty, clean)
        assert torch.equal(flat_gradient(dirty.sum(), module), flat_gradient(clean.sum(), module))
    assert torch.equal(p.draw(other), p.draw(z))
    assert torch.equal(p.log_prior(other), p.log_prior(z))


def test_absent_objects_get_no_gradient_and_present_ones_do():
    p, q, x = networks()
    z = some_latents(ALL_COUNTS)
    z = Latents(z.count, z.where.requires_grad_(), z.what.requires_grad_())
    there = torch.arange(3) < z.count[..., None]
    for function in (p.log_joint, q.log_prob):
        for gradient in grad(function(z, x).sum(), (z.where, z.what)):
            assert (gradient[~there] == 0).all()
            assert (gradient[there] != 0).any(dim=-1).all()


class MeanLoss(nn.Module):
    """A method's mean loss on its networks, so that its gradient can be mapped over parameters."""

    def __init__(self, method, x, packed):
        super().__init__()
        p, q, _ = networks()
        p.packed = q.packed = packed
        self.method, self.x, self.parts = METHODS[method].function, x, nn.ModuleDict({"p": p, "q": q})
        if method == "nvil":
            torch.manual_seed(2)
            self.parts["control_variate"] = Baseline().double()

    def forward(self, noise):
        parts = dict(self.parts.items())
        return self.method(parts.pop("p"), parts.pop("q"), self.x, K, noise, **parts).mean()


@pytest.mark.parametrize("method", usable(*OFFERS))
def test_masks_give_the_gradients_of_packed_objects_and_map_over_replicates(method):
    *_, x = networks()
    packed, masked, counter = MeanLoss(method, x, True), MeanLoss(method, x, False), Noise(5)
    MeanLoss(method, x.float(), True).float()(counter)
    tapes = [getattr(Noise(5), kind)(2, counter.used[kind]).double() for kind in ("uniform", "normal")]
    params = {name: torch.stack([value.detach()] * 2) for name, value in masked.named_parameters()}

    def gradients(params, uniform, normal):
        return func_grad(lambda params: functional_call(masked, params, (Tape(uniform, normal),)))(params)

    together = vmap(gradients)(params, *tapes)
    for i in range(2):
        loss = packed(Tape(*(tape[i] for tape in tapes)))
        torch.testing.assert_close(masked(Tape(*(tape[i] for tape in tapes))), loss)
        for name, value in parameter_gradients(loss, packed).items():
            torch.testing.assert_close(
                together[name][i], value, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_only_sample_mixed_has_a_path_derivative():
    p, q, x = networks()
    z, log_q = q.sample(x, K, forced(2, K * B))
    assert not z.where.requires_grad
    assert not z.what.requires_grad
    torch.testing.assert_close(
        flat_gradient(log_q.sum(), q), flat_gradient(q.log_prob(z, x).sum(), q), rtol=0, atol=1e-9
    )
    z, _, log_q_count = q.sample_mixed(x, K, forced(2, K * B))
    for value in (z.where[:, :, 0], z.what[:, :, 0], log_q_count, p.log_joint(z, x)):
        assert any((g != 0).any() for g in parameter_gradients(value.sum(), q.where).values())


def test_gradients_match_finite_differences_along_the_path():
    """Of everything that sample_mixed gives, and of p there, in a random direction of both parameters."""
    p, q, x = networks()
    parameters = [*p.parameters(), *q.parameters()]
    generator = torch.Generator().manual_seed(7)

    def value():
        total = 0.0
        for count in COUNTS:
            z, log_q, log_q_count = q.sample_mixed(x, K, forced(count, K * B))
            for i, part in enumerate((log_q, log_q_count, 0.01 * p.log_joint(z, x))):
                total = total + (part * torch.linspace(-1, 1 + i, K * B).view(K, B)).sum()
        return total

    gradients = grad(value(), parameters)
    assert all(torch.isfinite(g).all() for g in gradients)
    for _ in range(3):
        direction = [torch.randn(v.shape, generator=generator, dtype=v.dtype) for v in parameters]
        ends, step = [], 1e-7
        for move in (step, -2 * step):
            for parameter, d in zip(parameters, direction, strict=True):
                parameter.data.add_(d, alpha=move)
            ends.append(value().item())
        for parameter, d in zip(parameters, direction, strict=True):
            parameter.data.add_(d, alpha=step)
        slope = sum((g * d).sum().item() for g, d in zip(gradients, direction, strict=True))
        assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4, abs=1e-3)


def test_the_random_numbers_taken_do_not_depend_on_what_is_drawn():
    _, q, x = networks()
    used = []
    for bias in (-40.0, 0.0, 40.0):
        q.presence[-1].bias.data.fill_(bias)
        noise = Noise(1)
        q.sample(x, K, noise)
        used.append(noise.used)
    assert used == [{"uniform": 3 * K * B, "normal": 3 * K * B * 54}] * 3


def test_q_starts_where_it_is_told_to():
    torch.manual_seed(0)
    q = InferenceNetwork(scale_bias=-0.7, shift_sd=0.3, presence_logit=2.0)
    x = torch.zeros(2, 2500)
    with torch.no_grad():
        z, _ = q.sample(x, 2000, Noise(1))
        _, _, log_q_none = q.sample_mixed(x, 2, forced_float(0, 4))
    torch.testing.assert_close(log_q_none.exp(), torch.sigmoid(torch.tensor(-2.0)).expand(2, 2))
    places = z.where[z.count > 0][:, 0]
    assert places[:, :2].mean().item() == pytest.approx(-0.7, abs=0.15)  # the network's weights add a little
    assert places[:, 2:].mean().item() == pytest.approx(0, abs=0.15)
    assert places[:, 2:].std(dim=0).tolist() == pytest.approx([0.3, 0.3], rel=0.25)


def forced_float(count, total):
    script = forced(count, total)
    script.numbers = {kind: [value.float() for value in values] for kind, values in script.numbers.items()}
    return script


# -- all methods at all counts -------------------------------------------------------------------------


@pytest.mark.parametrize("method", usable(*OFFERS))
@pytest.mark.parametrize("logit", [-60.0, 60.0, 0.3])
def test_losses_and_gradients_are_finite_at_every_count(method, logit):
    """Nobody anywhere, three everywhere, and all counts side by side; in float32."""
    torch.manual_seed(0)
    p, q = GenerativeModel(count_success=0.5), InferenceNetwork(hidden=16, presence_logit=logit)
    if logit != 0.3:
        p.count_logits.data = torch.linspace(-logit, logit, 4)
    x = data.binarize(data.scenes("digits", "test", 40).images[:4].flatten(1), Noise(2))
    extra = {"control_variate": Baseline()} if method == "nvil" else {}
    num_particles = 8
    counts = q.sample(x, num_particles, Noise(3))[0].count.unique().tolist()
    assert counts == {-60.0: [0], 60.0: [3], 0.3: [0, 1, 2, 3]}[logit]
    loss = METHODS[method].function(p, q, x, num_particles, Noise(3), **extra)
    assert loss.shape == (4,)
    assert torch.isfinite(loss).all()
    for module in (p, q, *extra.values()):
        gradients = parameter_gradients(loss.mean(), module)
        assert all(torch.isfinite(g).all() for g in gradients.values())
        assert any((g != 0).any() for g in gradients.values()) or logit == -60.0


# -- the evidence of small scenes ----------------------------------------------------------------------


@pytest.fixture
def small_scenes(monkeypatch):
    """The same code on 6 by 6 pixels, glimpses of 3 by 3 and looks of 2 numbers."""
    shrink(monkeypatch, WHAT_SIZE=2)


def shrink(monkeypatch, **sizes):
    sizes = {"CANVAS": 6, "GLIMPSE": 3} | sizes
    sizes |= {"crop": partial(crop, size=sizes["GLIMPSE"]), "paste": partial(paste, size=sizes["CANVAS"])}
    for name, value in sizes.items():
        monkeypatch.setattr(air, name, value)


def small_networks(seed=0):
    """p and q with lively weights in float64 for small scenes, and one of those, ``[1, 36]``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        p = GenerativeModel(count_success=0.7, background=-1.0, ink=1.0).double()
        q = InferenceNetwork(hidden=16, presence_logit=0.5).double()
        p.decoder[-1].weight.data.mul_(8)
        q.presence[-1].weight.data += torch.randn(1, 64) / 4
    x = torch.zeros(6, 6, dtype=torch.float64)
    x[1:4, 2:4] = 1
    return p, q, x.view(1, 36)


def weights_of(p, q, x, num, seed):
    """Importance weights ``p(z, x) / q(z | x)`` of so many particles."""
    noise, found = Noise(seed), []
    with torch.no_grad():
        for _ in range(num // 20_000):
            z, log_q = q.sample(x, 20_000, noise)
            found.append((p.log_joint(z, x) - log_q).exp().flatten())
    return torch.cat(found)


def wide(q):
    """q with standard deviations above the prior's, so that no weight is far above the others."""
    q.where[-1].bias.data[4:] = torch.tensor([-1.7, -1.7, 1.0, 1.0])
    q.where[-1].weight.data[:2] *= 0.1  # the prior knows the scales well
    q.what[-1].bias.data[air.WHAT_SIZE :] = 1.0
    return q


def test_particles_of_q_and_of_the_prior_give_the_same_evidence(small_scenes):
    """With up to three objects: both are unbiased; five standard errors of their difference."""
    p, q, x = small_networks()
    w = weights_of(p, wide(q), x, 100_000, seed=1)
    with torch.no_grad():
        z = p.float().sample_prior(p.log_count(), (100_000, 1), Noise(2))
        prior = (p.log_joint(z, x.float()) - p.log_prior(z)).double().exp().flatten()
    error = (w.var() / len(w) + prior.var() / len(prior)).sqrt()
    assert (w.mean() - prior.mean()).abs() < 5 * error
    assert error < 0.02 * prior.mean()


def evidence_by_quadrature(p, x, num_shifts):
    """``p(x)`` with at most one object: Gauss-Hermite for scales and look, a fine grid for the shifts."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    node, weight = torch.from_numpy(nodes), torch.from_numpy(weights / math.sqrt(2 * math.pi))
    shift = torch.linspace(-6, 6, num_shifts, dtype=torch.float64)
    shift_weight = D.Normal(0, 1).log_prob(shift).exp() * (shift[1] - shift[0])
    axes = [(-0.4 + 0.1 * node, weight)] * 2 + [(shift, shift_weight)] * 2
    where = torch.cartesian_prod(*(values for values, _ in axes))
    where_weight = torch.cartesian_prod(*(values for _, values in axes)).prod(dim=1)
    none, one = p.log_count().exp()
    total = none * D.Bernoulli(logits=p.background.expand(36)).log_prob(x).sum().exp()
    for look, look_weight in zip(node, weight, strict=True):
        glimpse = p.decoder(look.view(1)).view(1, 3, 3).expand(len(where), -1, -1)
        logits = p.background + paste(glimpse, where, 6).flatten(1)
        likelihood = D.Bernoulli(logits=logits).log_prob(x).sum(dim=1).exp()
        total = total + one * look_weight * (where_weight * likelihood).sum()
    return total


def test_importance_weights_average_to_the_evidence_by_quadrature(monkeypatch):
    """One object with a look of one number; five standard errors, one below 1%."""
    shrink(monkeypatch, WHAT_SIZE=1, MAX_OBJECTS=1)
    p, q, x = small_networks()
    with torch.no_grad():
        coarse, exact = (evidence_by_quadrature(p, x, num) for num in (49, 65))
    assert (coarse / exact - 1).abs() < 2e-3
    w = weights_of(p, wide(q), x, 200_000, seed=3)
    error = w.std() / math.sqrt(len(w))
    assert error < 0.01 * exact
    assert (w.mean() - exact).abs() < 5 * error


# -- expected gradients by enumeration -----------------------------------------------------------------

# A reparameterised gradient has the right expectation whatever the noise's distribution is.  Here each
# object's noise is one of two vectors with the same chance, and so a particle has 1 + 2 + 4 + 8 states:
# nobody, or 1 to 3 objects with their noise.


class EnumeratedScene:
    """One small scene, and all tuples of K particles as rows of a batch."""

    def __init__(self, num_particles, seed=0):
        self.p, self.q, x = small_networks(seed)
        self.num_particles = num_particles
        states = [(n, bits) for n in COUNTS for bits in itertools.product((0, 1), repeat=n)]
        tuples = list(itertools.product(states, repeat=num_particles))
        counts = torch.tensor([[n for n, _ in row] for row in tuples]).T  # [K, rows]
        bits = torch.tensor([[(*bits, 0, 0, 0)[:3] for _, bits in row] for row in tuples])  # [rows, K, 3]
        self.x = x.expand(len(tuples), -1)
        self.noise_probs = 0.5 ** counts.sum(dim=0).double()
        self.uniform = (torch.arange(3)[:, None] >= counts.flatten()).double()
        step, which, noise = torch.arange(3)[:, None], bits.permute(2, 1, 0).flatten(1), Noise(8)
        self.normal = [noise.normal(3, 2, size).double()[step, which] for size in (4, air.WHAT_SIZE)]

    def script(self):
        return Script([self.uniform], list(self.normal))

    def particles(self):
        """``log_p``, ``log_q`` and the log-probability of every tuple, as functions of the parameters."""
        z, log_q, log_q_count = self.q.sample_mixed(self.x, self.num_particles, self.script())
        return self.p.log_joint(z, self.x), log_q, log_q_count.sum(dim=0) + self.noise_probs.log()

    def bound(self):
        log_p, log_q, log_prob = self.particles()
        value = torch.logsumexp(log_p - log_q, dim=0) - math.log(self.num_particles)
        return (log_prob.exp() * value).sum()

    def expected_gradients(self, function, **extra):
        """Expected ascent directions of theta and phi."""
        probs = self.particles()[2].exp().detach()
        script = self.script()
        loss = function(self.p, self.q, self.x, self.num_particles, script, **extra)
        assert script.is_used_up
        total = -(probs * loss).sum()
        return flat_gradient(total, self.p), flat_gradient(total, self.q)

    def exact_gradients(self):
        value = self.bound()
        return flat_gradient(value, self.p), flat_gradient(value, self.q)


class AnyBaseline(nn.Module):
    def forward(self, x):
        return -17.0 + 0 * x[:, 0]


MIXED = {
    "reinforce": {},
    "vimco": {},
    "vimco arithmetic": {"mean": "arithmetic"},
    "nvil": {"control_variate": AnyBaseline()},
}


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("num_particles", [1, 2])
def test_the_enumerated_scene_holds_every_tuple_once_and_is_lively(num_particles, small_scenes):
    scene = EnumeratedScene(num_particles)
    log_p, log_q, log_prob = scene.particles()
    assert len(log_prob) == 15**num_particles
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert 1 < (log_p - log_q).std() < 10
    assert min(gradient.norm() for gradient in scene.exact_gradients()) > 0.1


@pytest.mark.parametrize(
    ("name", "num_particles"),
    [
        *((name, k) for name in ("reinforce", "nvil") for k in (1, 2)),
        *((name, k) for name in ("vimco", "vimco arithmetic") for k in (2, 3)),
    ],
)
def test_mixed_score_and_path_derivatives_are_unbiased_for_the_bound(name, num_particles, small_scenes):
    scene = EnumeratedScene(num_particles)
    actual = scene.expected_gradients(METHODS[name.split()[0]].function, **MIXED[name])
    for a, b in zip(actual, scene.exact_gradients(), strict=True):
        assert relative_error(a, b) < 1e-9


class ThenOther(Script):
    """Prescribed numbers and after them, when they are used up, others."""

    def __init__(self, first, other):
        self.numbers, self.other = first.numbers, other

    def _next(self, kind, shape):
        return super()._next(kind, shape) if self.numbers[kind] else getattr(self.other, kind)(*shape)


@pytest.mark.parametrize("name", ["ww", "ws", "wws", "dww"])
def test_theta_gradients_of_wake_sleep_methods_are_those_of_the_bound(name, small_scenes, monkeypatch):
    """Theta sees the first particles alone, not the dreams and defensive particles drawn after them."""
    scene = EnumeratedScene(2)
    monkeypatch.setattr(scene.p, "sample_prior", partial(prior_in_double, scene.p))
    probs = scene.particles()[2].exp().detach()
    noise = ThenOther(scene.script(), Noise(9))
    loss = METHODS[name].function(scene.p, scene.q, scene.x, 2, noise)
    assert noise.is_used_up
    theta = flat_gradient(-(probs * loss).sum(), scene.p)
    assert relative_error(theta, scene.exact_gradients()[0]) < 1e-9


def prior_in_double(p, *arguments):
    z = GenerativeModel.sample_prior(p, *arguments)
    return Latents(z.count, z.where.double(), z.what.double())


def score_of_everything(p, q, x, num_particles, noise):
    """The mistake of using the score of reparameterised latents beside their path derivative."""
    z, log_q, _ = q.sample_mixed(x, num_particles, noise)
    bound = torch.logsumexp(p.log_joint(z, x) - log_q, dim=0) - math.log(num_particles)
    return -(bound.detach() * log_q.sum(dim=0) + bound)


def no_score(p, q, x, num_particles, noise):
    z, log_q, _ = q.sample_mixed(x, num_particles, noise)
    return -torch.logsumexp(p.log_joint(z, x) - log_q, dim=0)


@pytest.mark.parametrize("wrong", [score_of_everything, no_score, METHODS["vimco_air2018"].function])
def test_the_enumeration_rejects_wrong_estimators(wrong, small_scenes):
    scene = EnumeratedScene(2)
    _, phi = scene.expected_gradients(wrong)
    assert relative_error(phi, scene.exact_gradients()[1]) > 0.01


def test_the_signal_of_2018_has_the_score_of_the_one_particle_bound(small_scenes):
    """Claimed of the ablation: its score term climbs the ELBO, the rest the bound."""
    scene, alone = EnumeratedScene(2), EnumeratedScene(1)
    _, phi = scene.expected_gradients(METHODS["vimco_air2018"].function)
    _, without_score = scene.expected_gradients(no_score)
    _, elbo = alone.expected_gradients(METHODS["reinforce"].function)
    _, elbo_without_score = alone.expected_gradients(no_score)
    score, expected = phi - without_score, elbo - elbo_without_score
    assert expected.norm() > 0.01
    assert relative_error(score, expected) < 1e-9


def test_wake_phi_is_the_weighted_score_of_all_latents(small_scenes):
    scene = EnumeratedScene(2)
    p, q, x = scene.p, scene.q, scene.x[:20]
    actual = flat_gradient(METHODS["ww"].function(p, q, x, 2, Noise(1)).sum(), q)
    z, _ = q.sample(x, 2, Noise(1))
    log_q = q.log_prob(z, x)
    v = torch.softmax((p.log_joint(z, x) - log_q).detach(), dim=0)
    assert 0.05 < v[0].mean() < 0.95
    assert relative_error(actual, flat_gradient(-(v * log_q).sum(), q)) < 1e-9
