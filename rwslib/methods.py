r"""One function per learning method, and the table of all of them.

A method draws particles with the generative model ``p``, the inference network ``q`` and a noise
source, hands log-densities to an estimator, and returns the surrogate loss ``[B]`` whose gradient
is the method's estimator for theta and phi together.  One backward pass serves every method.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rwslib import estimators
from rwslib.noise import Noise
from rwslib.protocols import (
    Baseline,
    CategoricalGenerative,
    CategoricalInference,
    DefensiveGenerative,
    Generative,
    GumbelControlVariate,
    Inference,
    ReparameterisedInference,
)
from rwslib.trees import Tree, batch_size, tree_map


def wake_wake(
    p: Generative, q: Inference, x: Tree, num_particles: int, noise: Noise, center_weights: bool = False
) -> Tensor:
    """Reweighted wake-sleep with the wake-phase phi update alone; the paper's WW (sections 3.1, 4)."""
    z, log_q = q.sample(x, num_particles, noise)
    log_p = p.log_joint(z, x)
    theta_loss = estimators.wake_theta_loss(log_p, log_q)
    return theta_loss + estimators.wake_phi_loss(log_p, log_q, center_weights=center_weights)


def wake_sleep(p: Generative, q: Inference, x: Tree, num_particles: int, noise: Noise) -> Tensor:
    """Wake-phase theta, sleep-phase phi on K dreams a datum; the paper's WS (sections 3.1, 4)."""
    z, log_q = q.sample(x, num_particles, noise)
    theta_loss = estimators.wake_theta_loss(p.log_joint(z, x), log_q)
    return theta_loss + _sleep_loss(p, q, x, num_particles, noise)


def _sleep_loss(p: Generative, q: Inference, x: Tree, num_particles: int, noise: Noise) -> Tensor:
    batch = batch_size(x)
    z, dreams = p.sample(num_particles * batch, noise)
    log_q = q.log_prob(tree_map(lambda t: t.detach()[None], z), tree_map(Tensor.detach, dreams))
    return estimators.sleep_phi_loss(log_q.view(num_particles, batch))


def wake_wake_sleep(
    p: Generative, q: Inference, x: Tree, num_particles: int, noise: Noise, wake_weight: float = 0.5
) -> Tensor:
    """Mixture of the wake- and sleep-phase phi updates (Bornschein & Bengio 2015: equal weights)."""
    z, log_q = q.sample(x, num_particles, noise)
    log_p = p.log_joint(z, x)
    wake = estimators.wake_phi_loss(log_p, log_q)
    sleep = _sleep_loss(p, q, x, num_particles, noise)
    return estimators.wake_theta_loss(log_p, log_q) + wake_weight * wake + (1 - wake_weight) * sleep


def defensive_wake_wake(
    p: DefensiveGenerative, q: Inference, x: Tree, num_particles: int, noise: Noise, delta: float = 0.2
) -> Tensor:
    r"""WW whose phi particles come from :math:`(1-\delta) q + \delta r`; the paper's delta-WW (section 4.3).

    Theta keeps its own particles from q.  r is ``p.sample_defensive``, uniform in the paper.
    """
    theta_loss = _wake_theta(p, q, x, num_particles, noise)
    z, log_q, log_r, _ = _defensive_particles(p, q, x, num_particles, noise, delta)
    log_proposal = torch.logaddexp(math.log1p(-delta) + log_q, math.log(delta) + log_r)
    return theta_loss + estimators.wake_phi_loss(p.log_joint(z, x), log_q, log_proposal)


def _wake_theta(p: Generative, q: Inference, x: Tree, num_particles: int, noise: Noise) -> Tensor:
    """The wake-phase theta update alone (section 3.1); phi gets no gradient."""
    z, log_q = q.sample(x, num_particles, noise)
    return estimators.wake_theta_loss(p.log_joint(z, x), log_q)


def _defensive_particles(p, q, x, num_particles, noise, delta):
    """Particles of the mixture, log q and log r at them, and log q at the draw from q alone."""
    z_q, log_q_of_draw = q.sample(x, num_particles, noise)
    z_r, log_r = p.sample_defensive(x, num_particles, noise)
    from_r = noise.uniform(num_particles, batch_size(x)) < delta
    z = tree_map(lambda a, b: torch.where(_expand(from_r, a), a, b), z_r, z_q)
    return z, q.log_prob(z, x), log_r, log_q_of_draw


def _expand(mask: Tensor, like: Tensor) -> Tensor:
    return mask.view(mask.shape + (1,) * (like.ndim - mask.ndim))


def vae(p: Generative, q: ReparameterisedInference, x: Tree, num_particles: int, noise: Noise) -> Tensor:
    """The one-particle ELBO by reparameterisation, averaged over K samples (Kingma & Welling 2014)."""
    z, log_q = q.rsample(x, num_particles, noise)
    return -(p.log_joint(z, x) - log_q).mean(dim=0)


def iwae(p: Generative, q: ReparameterisedInference, x: Tree, num_particles: int, noise: Noise) -> Tensor:
    """The K-particle bound by reparameterisation (Burda et al. 2016; paper Eq. 1)."""
    z, log_q = q.rsample(x, num_particles, noise)
    return estimators.iwae_loss(p.log_joint(z, x), log_q)


def stl(p: Generative, q: ReparameterisedInference, x: Tree, num_particles: int, noise: Noise) -> Tensor:
    """Sticking the landing (Roeder, Wu & Duvenaud 2017)."""
    return estimators.stl_loss(*_path_log_weights(p, q, x, num_particles, noise))


def dreg(p: Generative, q: ReparameterisedInference, x: Tree, num_particles: int, noise: Noise) -> Tensor:
    """Doubly reparameterised IWAE gradient (Tucker et al. 2019)."""
    return estimators.dreg_loss(*_path_log_weights(p, q, x, num_particles, noise))


def rws_dreg(p: Generative, q: ReparameterisedInference, x: Tree, num_particles: int, noise: Noise) -> Tensor:
    """Doubly reparameterised wake-phi gradient (Tucker et al. 2019)."""
    if num_particles < 2:
        raise ValueError(f"num_particles must be at least 2 (else phi does not move), got {num_particles}")
    return estimators.rws_dreg_loss(*_path_log_weights(p, q, x, num_particles, noise))


def _path_log_weights(p, q, x, num_particles, noise):
    """``log_p`` and ``log_q`` at detached particles, and the log-weights along the path only."""
    z, log_q = q.rsample(x, num_particles, noise)
    log_w_path = _frozen(p, z, x) - _frozen(q, z, x)
    return p.log_joint(tree_map(Tensor.detach, z), x), log_q, log_w_path


def _frozen(module: nn.Module, z: Tree, x: Tree) -> Tensor:
    """The module's log-density with its parameters detached; z keeps its gradient."""
    parameters = {name: value.detach() for name, value in module.named_parameters()}
    return functional_call(module, parameters, (z, x))


def reinforce(p: Generative, q: Inference, x: Tree, num_particles: int, noise: Noise) -> Tensor:
    """The K-particle bound by the score function (Williams 1992; paper Eq. 2)."""
    z, log_q, log_q_score = _score_particles(q, x, num_particles, noise)
    return estimators.reinforce_loss(p.log_joint(z, x), log_q, log_q_score)


def _score_particles(q, x, num_particles, noise):
    """Particles, ``log_q``, and its part for the score function: the discrete one where q tells it apart."""
    if hasattr(q, "sample_mixed"):
        return q.sample_mixed(x, num_particles, noise)
    z, log_q = q.sample(x, num_particles, noise)
    return z, log_q, log_q


def nvil(
    p: Generative, q: Inference, x: Tree, num_particles: int, noise: Noise, control_variate: Baseline
) -> Tensor:
    r"""REINFORCE with a baseline c(x) regressed onto the bound (Mnih & Gregor 2014).

    The original also divides the signal by a running standard deviation; that would rescale one of
    the two terms of Eq. 2 against the other and bias the gradient, so it is left out.
    """
    z, log_q, log_q_score = _score_particles(q, x, num_particles, noise)
    log_p, baseline = p.log_joint(z, x), control_variate(x)
    bound = estimators.log_evidence(log_p - log_q).detach()
    return estimators.nvil_loss(log_p, log_q, baseline, log_q_score) + (bound - baseline).square()


def vimco(
    p: Generative, q: Inference, x: Tree, num_particles: int, noise: Noise, mean: str = "geometric"
) -> Tensor:
    """VIMCO with its leave-one-out baseline (Mnih & Rezende 2016; paper section 2.2)."""
    z, log_q, log_q_score = _score_particles(q, x, num_particles, noise)
    return estimators.vimco_loss(p.log_joint(z, x), log_q, mean, log_q_score)


def tvo(
    p: Generative,
    q: Inference,
    x: Tree,
    num_particles: int,
    noise: Noise,
    partition: tuple[float, ...] = (0.0, 0.03, 0.1, 0.3, 1.0),
) -> Tensor:
    """Thermodynamic variational objective, left Riemann sum (Masrani, Le & Wood 2019)."""
    z, log_q = q.sample(x, num_particles, noise)
    return estimators.tvo_loss(p.log_joint(z, x), log_q, torch.tensor(partition, device=log_q.device))


def concrete_log_prob(log_z: Tensor, log_probs: Tensor, temperature: Tensor | float) -> Tensor:
    r"""Log-density of the Concrete distribution on the simplex (Maddison et al. 2017, Eq. 10).

    Args:
        log_z: logarithm of the point, ``[..., C]``.
        log_probs: ``[..., C]``.
        temperature: above 0.

    Returns:
        ``[...]``.
    """
    num_categories = log_z.shape[-1]
    score = log_probs - temperature * log_z
    log_temperature = torch.log(torch.as_tensor(temperature, dtype=log_z.dtype))
    constant = math.lgamma(num_categories) + (num_categories - 1) * log_temperature
    return constant + (score - log_z).sum(dim=-1) - num_categories * torch.logsumexp(score, dim=-1)


def concrete(
    p: CategoricalGenerative,
    q: CategoricalInference,
    x: Tree,
    num_particles: int,
    noise: Noise,
    temperature: Tensor | float = 0.5,
) -> Tensor:
    """IWAE on the relaxed model, whose prior and posterior are Concrete (Maddison et al. 2017).

    Biased for the discrete model.  A lower temperature cures only the likelihood's part of that: at
    one temperature in both, the densities' ratio at softmax(g / temperature) does not depend on it.
    """
    log_probs = q.log_probs(x)
    log_z = torch.log_softmax(
        (log_probs + _gumbel_like(log_probs, num_particles, noise)) / temperature, dim=-1
    )
    log_q = concrete_log_prob(log_z, log_probs, temperature)
    log_prior = concrete_log_prob(log_z, p.log_prior(), temperature)
    return estimators.iwae_loss(log_prior + p.log_likelihood(log_z.exp(), x), log_q)


def _gumbel_like(log_probs: Tensor, num_particles: int, noise: Noise) -> Tensor:
    """Gumbel noise ``[K, B, C]``, batch innermost in memory as ``log_probs [B, C]`` is."""
    batch, num_categories = log_probs.shape
    return noise.gumbel(num_categories, num_particles, batch).permute(1, 2, 0)


def conditional_gumbel(log_probs: Tensor, z: Tensor, uniform: Tensor) -> Tensor:
    r"""Gumbel variates with the given locations, conditional on their arg max being z.

    With :math:`E_c = -\log u_c`: :math:`\tilde g_z = -\log E_z` and
    :math:`\tilde g_c = -\log(E_c / \pi_c + E_z)` elsewhere (Tucker et al. 2017, appendix C).
    Differentiable in ``log_probs``.

    Args:
        log_probs: normalised, ``[B, C]``.
        z: ``[K, B]``.
        uniform: ``[K, B, C]`` in (0, 1).

    Returns:
        ``[K, B, C]``.
    """
    log_e = torch.log(-torch.log(uniform))
    is_top = z[..., None] == torch.arange(log_probs.shape[-1], device=z.device)
    log_e_top = torch.where(is_top, log_e, 0).sum(dim=-1, keepdim=True)
    return -torch.where(is_top, log_e_top, torch.logaddexp(log_e - log_probs, log_e_top))


def _gumbel_pair(q, x, num_particles, noise):
    """``log_probs [B, C]``, Gumbel variates ``[K, B, C]``, their arg max, and conditional variates."""
    log_probs = q.log_probs(x)
    g = log_probs + _gumbel_like(log_probs, num_particles, noise)
    z = g.detach().argmax(dim=-1)
    batch, num_categories = log_probs.shape
    uniform = noise.uniform(num_categories, num_particles, batch).permute(1, 2, 0)
    return log_probs, g, z, conditional_gumbel(log_probs, z, uniform)


def relax(
    p: Generative,
    q: CategoricalInference,
    x: Tree,
    num_particles: int,
    noise: Noise,
    control_variate: GumbelControlVariate,
) -> Tensor:
    """RELAX with a free-form control variate c(x, g) (Grathwohl et al. 2018; paper section 2.2)."""
    _, g, z, g_conditional = _gumbel_pair(q, x, num_particles, noise)
    return estimators.relax_loss(
        p.log_joint(z, x),
        q.log_prob(z, x),
        c=control_variate(x, g),
        c_conditional=control_variate(x, g_conditional),
        c_bracket=control_variate(x, g_conditional.detach()),
    )


class RebarControlVariate(nn.Module):
    r"""REBAR's scale :math:`\eta` and temperature, both learned (Tucker et al. 2017)."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.log_temperature = nn.Parameter(torch.zeros(()))


def rebar(
    p: CategoricalGenerative,
    q: CategoricalInference,
    x: Tree,
    num_particles: int,
    noise: Noise,
    control_variate: RebarControlVariate,
) -> Tensor:
    r"""REBAR: the control variate is :math:`\eta` times the relaxed bound (Tucker et al. 2017)."""
    log_probs, g, z, g_conditional = _gumbel_pair(q, x, num_particles, noise)
    scale, temperature = control_variate.log_scale.exp(), control_variate.log_temperature.exp()

    def c(log_probs, g):
        soft = torch.softmax(g / temperature, dim=-1)
        log_w = _frozen(p, soft, x) - (soft * log_probs).sum(dim=-1)
        return scale * estimators.log_evidence(log_w)

    return estimators.relax_loss(
        p.log_joint(z, x),
        q.log_prob(z, x),
        c=c(log_probs, g),
        c_conditional=c(log_probs, g_conditional),
        c_bracket=c(log_probs.detach(), g_conditional.detach()),
    )


def vimco_no_log_k(p: Generative, q: Inference, x: Tree, num_particles: int, noise: Noise) -> Tensor:
    """Ablation: VIMCO without the log K of its baseline, as in the authors' code of 2018; unbiased, noisy."""
    z, log_q = q.sample(x, num_particles, noise)
    log_p = p.log_joint(z, x)
    excess = math.log(num_particles) * log_q.sum(dim=0)  # the baseline is too large by log K
    return estimators.vimco_loss(log_p, log_q) + excess - excess.detach()


def vimco_air2018(p: Generative, q: Inference, x: Tree, num_particles: int, noise: Noise) -> Tensor:
    r"""Ablation: the signal of the authors' AIR code, :math:`\log w_\ell - B_\ell`, averaged over particles.

    Its score term has the expectation of the one-particle bound's, not of the K-particle bound's.
    """
    z, log_q, log_q_score = _score_particles(q, x, num_particles, noise)
    log_p = p.log_joint(z, x)
    log_w = (log_p - log_q).detach()
    signal = log_w - estimators.vimco_baseline(log_w)
    return estimators.iwae_loss(log_p, log_q) - (signal * log_q_score).mean(dim=0)


def dww_wrong_density(
    p: DefensiveGenerative, q: Inference, x: Tree, num_particles: int, noise: Noise, delta: float = 0.2
) -> Tensor:
    """Ablation: delta-WW with the mixture density taken at the draw from q, not at the particle used."""
    theta_loss = _wake_theta(p, q, x, num_particles, noise)
    z, log_q, log_r, log_q_of_draw = _defensive_particles(p, q, x, num_particles, noise, delta)
    log_proposal = torch.logaddexp(math.log1p(-delta) + log_q_of_draw, math.log(delta) + log_r)
    return theta_loss + estimators.wake_phi_loss(p.log_joint(z, x), log_q, log_proposal)


def concrete_2018(
    p: nn.Module,
    q: nn.Module,
    x: Tensor,
    num_particles: int,
    noise: Noise,
    temperature: Tensor | float = 0.5,
) -> Tensor:
    r"""Ablation: Concrete with the prior's mass at the arg max, as in the authors' code of 2018.

    The weight :math:`\pi_{\arg\max z}\, p(x | z) / q(z)` divides a mass by a density.  Its mean is 1 / C! of
    the evidence of a third model, whose prior is flat where the arg max stays the same: the value bounds
    neither the discrete model's evidence nor the Concrete one's.  The prior's jumps have no path
    derivative, so phi meets it in the weights alone.  For one particle theta's expected gradient is that
    of the discrete ELBO.
    """
    log_probs = q.log_probs(x)
    gumbel = log_probs + _gumbel_like(log_probs, num_particles, noise)
    log_z = torch.log_softmax(gumbel / temperature, dim=-1)
    log_prior = p.log_prior()[log_z.argmax(dim=-1)]
    log_q = concrete_log_prob(log_z, log_probs, temperature)
    return estimators.iwae_loss(log_prior + p.log_likelihood(log_z.exp(), x), log_q)


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        title: the name that figures and tables show.
        function: the method itself.
        reference: citation key in ``book/references.bib``.
        cost: what one step draws and evaluates, a datum.
        latent: ``"any"``, ``"categorical"`` or ``"reparameterisable"``.
        min_particles: smallest K at which the method is defined.
        options: keyword arguments a run may set.
        control_variate: None, ``"regression"`` (trained inside the loss) or ``"variance"`` (trained
            to minimise the variance of phi's gradient).
        ablation: a mistake reproduced on purpose, or None.
    """

    title: str
    function: Callable[..., Tensor]
    reference: str
    cost: str
    latent: str = "any"
    min_particles: int = 1
    options: tuple[str, ...] = ()
    control_variate: str | None = None
    ablation: str | None = None


_K = "K samples of q; K evaluations of p and q"
_2K = "2K samples of q, K of r; 2K evaluations of p, 3K of q"
_DREAMS = "K samples of q, K of p; K evaluations of p, 2K of q"
_PATH = "K samples of q; 2K evaluations of p and q"
METHODS = {
    "ws": Method("WS", wake_sleep, "hinton1995wake", _DREAMS),
    "ww": Method("WW", wake_wake, "bornschein2015reweighted", _K, options=("center_weights",)),
    "wws": Method("WWS", wake_wake_sleep, "bornschein2015reweighted", _DREAMS, options=("wake_weight",)),
    "dww": Method("δ-WW", defensive_wake_wake, "hesterberg1995weighted", _2K, options=("delta",)),
    "vae": Method("VAE", vae, "kingma2014auto", _K, latent="reparameterisable"),
    "iwae": Method("IWAE", iwae, "burda2016importance", _K, latent="reparameterisable"),
    "stl": Method("STL", stl, "roeder2017sticking", _PATH, latent="reparameterisable"),
    "dreg": Method("DReG", dreg, "tucker2019doubly", _PATH, latent="reparameterisable"),
    "rws_dreg": Method(
        "RWS-DReG", rws_dreg, "tucker2019doubly", _PATH, latent="reparameterisable", min_particles=2
    ),
    "tvo": Method("TVO", tvo, "masrani2019thermodynamic", _K, min_particles=2, options=("partition",)),
    "reinforce": Method("REINFORCE", reinforce, "williams1992simple", _K),
    "nvil": Method(
        "NVIL", nvil, "mnih2014neural", f"{_K}, one of the baseline", control_variate="regression"
    ),
    "vimco": Method("VIMCO", vimco, "mnih2016variational", _K, min_particles=2, options=("mean",)),
    "concrete": Method(
        "Concrete",
        concrete,
        "maddison2017concrete",
        "K relaxed samples; every branch of p",
        latent="categorical",
        options=("temperature",),
    ),
    "rebar": Method(
        "REBAR",
        rebar,
        "tucker2017rebar",
        f"{_K}, 3K relaxed ones; gradient of a gradient",
        latent="categorical",
        control_variate="variance",
    ),
    "relax": Method(
        "RELAX",
        relax,
        "grathwohl2018backpropagation",
        f"{_K}, 3K of c; gradient of a gradient",
        latent="categorical",
        control_variate="variance",
    ),
    "vimco_no_log_k": Method(
        "VIMCO without log K",
        vimco_no_log_k,
        "mnih2016variational",
        _K,
        min_particles=2,
        ablation="the baseline lacks its log K",
    ),
    "vimco_air2018": Method(
        "VIMCO, AIR 2018",
        vimco_air2018,
        "mnih2016variational",
        _K,
        min_particles=2,
        ablation="the signal is the particle's own log-weight, and the mean over particles",
    ),
    "dww_wrong_density": Method(
        "δ-WW, wrong density",
        dww_wrong_density,
        "hesterberg1995weighted",
        _2K,
        options=("delta",),
        ablation="the mixture density is taken at another point than the particle",
    ),
    "concrete_2018": Method(
        "Concrete, 2018",
        concrete_2018,
        "maddison2017concrete",
        "K relaxed samples; every branch of p",
        latent="categorical",
        options=("temperature",),
        ablation="the prior is a mass at the arg max, and q a density on the simplex",
    ),
}
"""Every method by the name that configurations, grids and notebooks use."""
