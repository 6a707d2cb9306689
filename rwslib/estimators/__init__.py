r"""Gradient estimators as surrogate losses on log-weights.

Every function takes log-densities whose first axis is the particle axis, ``[K, B]``, and
returns one surrogate loss per datum, ``[B]``, in nats.  Its gradient is *minus* the ascent
direction of the paper, so take the mean over the batch and minimise.  What must not carry a
gradient is detached in here; hand over log-densities as they come.  The particles are yours: detach z
before you evaluate its densities, unless the estimator is made for latents with a path derivative
(VAE and IWAE, and those of ``pathwise.py``).

Notation: ``log_p`` is :math:`\log p_\theta(z_k, x)`, ``log_q`` is :math:`\log q_\phi(z_k | x)`,
``log_w = log_p - log_q``, and :math:`v_k = w_k / \sum_\ell w_\ell`.

No model, optimiser or random number enters.  All functions work in float32 and float64, on any
device, under ``vmap``, ``torch.func.grad`` and ``torch.compile``.

One rule for infinite numbers, in every function: ``log_p = -inf`` is a weight of zero, and values and
gradients are finite as long as one particle of the datum has a finite one; all else that is not finite is
refused.  Tensors that are not ``[K, B]``, shapes that disagree, too few particles, no datum, and bfloat16
or float16, in which rounding alone changes the weights by many per cent, are refused as well: with a
``ValueError`` that names the argument, for values only outside compiled or vmapped code.
"""

from rwslib.estimators.elbo import disarm_bound_loss, disarm_loss, muprop_loss, rloo_loss
from rwslib.estimators.pathwise import dreg_loss, iwae_loss, rws_dreg_loss, stl_loss
from rwslib.estimators.score_function import (
    nvil_loss,
    ovis_loss,
    reinforce_loss,
    relax_loss,
    vimco_baseline,
    vimco_loss,
)
from rwslib.estimators.thermodynamic import tvo_loss
from rwslib.estimators.wake_sleep import sleep_phi_loss, wake_phi_loss, wake_theta_loss
from rwslib.estimators.weights import effective_sample_size, log_evidence, normalized_weights

__all__ = [
    "disarm_bound_loss",
    "disarm_loss",
    "dreg_loss",
    "effective_sample_size",
    "iwae_loss",
    "log_evidence",
    "muprop_loss",
    "normalized_weights",
    "nvil_loss",
    "ovis_loss",
    "reinforce_loss",
    "relax_loss",
    "rloo_loss",
    "rws_dreg_loss",
    "sleep_phi_loss",
    "stl_loss",
    "tvo_loss",
    "vimco_baseline",
    "vimco_loss",
    "wake_phi_loss",
    "wake_theta_loss",
]
