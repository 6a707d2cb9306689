"""The paper's identities, which hold for every model, checked on all particles of a small mixture."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from rwslib import estimators
from rwslib.claims.common import Claim, Effects
from rwslib.evaluation import particle_tuples
from rwslib.models.gmm import GMM

ROUNDING = 1e-12  # what double precision may leave of an exact zero
NUM_CATEGORIES, OBSERVATION = 4, 14.0  # of the mixture in the chapter on the background


def small_mixture() -> tuple[Tensor, Tensor]:
    """``log p(z, x)`` of every category and the logits of q, ``[4]`` each; that chapter's."""
    z = torch.arange(NUM_CATEGORIES)
    model = GMM("near", NUM_CATEGORIES).double()
    log_joint = model.log_joint(z[:, None], torch.tensor([OBSERVATION]).double())[:, 0].detach()
    return log_joint, torch.linspace(1, -1, NUM_CATEGORIES).double()


def general_claims(num_particles: tuple[int, ...] = (2, 3, 4)) -> dict[str, Claim]:
    """Claims GEN-1 and GEN-2; an effect is what rounding may do minus the largest difference found."""
    log_joint, logits = small_mixture()

    def zero(difference: Callable[[Tensor], Tensor]) -> Effects:
        found = {K: difference(particle_tuples(len(logits), K)).abs().max().item() for K in num_particles}
        return {
            f"K {K}, all {len(logits) ** K} tuples": (ROUNDING - value,) * 3 for K, value in found.items()
        }

    def minus_wake_phi(z: Tensor) -> Tensor:
        def sum_of_losses(logits: Tensor) -> Tensor:
            log_p, log_q = log_joint[z], torch.log_softmax(logits, dim=0)[z]
            return estimators.iwae_loss(log_p, log_q) + estimators.wake_phi_loss(log_p, log_q)

        return jacobian(sum_of_losses, logits)

    def unlike_wake_theta(z: Tensor) -> Tensor:
        log_q = torch.log_softmax(logits, dim=0)[z]
        wake, *others = (
            jacobian(lambda table, loss=loss: loss(table[z], log_q), log_joint)
            for loss in (estimators.wake_theta_loss, estimators.reinforce_loss, estimators.vimco_loss)
        )
        return torch.stack(others) - wake

    return {
        "GEN-1": Claim(
            "the second term of the bound's gradient (Eq. 2) is minus the wake-phase update of phi (Eq. 5)",
            zero(minus_wake_phi),
            "text, Eqs. 2 and 5",
            f"{ROUNDING} minus the largest element of their sum, over all tuples of a small mixture",
            ("background",),
        ),
        "GEN-2": Claim(
            "methods that climb the bound of the discrete model share one gradient for theta",
            zero(unlike_wake_theta),
            "text",
            f"{ROUNDING} minus the largest difference of REINFORCE and VIMCO from the wake phase, likewise",
            ("background",),
        ),
    }
