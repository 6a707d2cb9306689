"""The paper's identities, which hold for every model, and the claims of its abstract, which sum up others."""

import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from rwslib import estimators
from rwslib.evaluation import particle_tuples
from rwslib.models.gmm import GMM
from rwslib.report.claims.effects import Effect, Evidence
from rwslib.report.claims.rules import Claim, Rule, judge

ROUNDING = 1e-12  # what double precision may leave of an exact zero
NUM_CATEGORIES, OBSERVATION = 4, 14.0  # of the mixture in the chapter on the background
SUMS = {  # what the abstract says; the claims that name one of these as `part_of` are its evidence
    "GEN-3a": "more particles help wake-sleep",
    "GEN-3b": "more particles hurt methods that climb one bound with both networks",
    "GEN-3c": "wake-wake beats methods that climb one bound with both networks, or does as well on images",
}


def small_mixture(
    num_categories: int = NUM_CATEGORIES, observation: float = OBSERVATION
) -> tuple[Tensor, Tensor]:
    """``log p(z, x)`` of every category and the logits of q, ``[C]`` each; by default that chapter's."""
    z = torch.arange(num_categories)
    model = GMM("near", num_categories).double()
    log_joint = model.log_joint(z[:, None], torch.tensor([observation]).double())[:, 0].detach()
    return log_joint, torch.linspace(1, -1, num_categories).double()


def minus_wake_phi(log_joint: Tensor, logits: Tensor, z: Tensor) -> Tensor:
    """Sum of the bound's second term and the wake-phase update, at the tuples z ``[K, N]``."""

    def sum_of_losses(logits: Tensor) -> Tensor:
        log_p, log_q = log_joint[z], torch.log_softmax(logits, dim=0)[z]
        return estimators.iwae_loss(log_p, log_q) + estimators.wake_phi_loss(log_p, log_q)

    return jacobian(sum_of_losses, logits)


def unlike_wake_theta(log_joint: Tensor, logits: Tensor, z: Tensor) -> Tensor:
    """Difference of REINFORCE's and VIMCO's gradients for theta from the wake phase's."""
    log_q = torch.log_softmax(logits, dim=0)[z]
    wake, *rest = (
        jacobian(lambda table, loss=loss: loss(table[z], log_q), log_joint)
        for loss in (estimators.wake_theta_loss, estimators.reinforce_loss, estimators.vimco_loss)
    )
    return torch.stack(rest) - wake


def zero(evidence: Evidence) -> list[Effect]:
    """What rounding may leave, minus the largest difference, by K."""
    return [
        evidence.effect(
            f"K {K}, all {NUM_CATEGORIES**K} tuples", "rounding", K, combine=lambda d: -d, margin=ROUNDING
        )
        for K in evidence.given["rounding"]
    ]


RULES = (
    Rule(
        "GEN-1",
        "text, Eqs. 2 and 5",
        "the second term of the bound's gradient (Eq. 2) is minus the wake-phase update of phi (Eq. 5)",
        f"{ROUNDING} minus the largest element of their sum, over all tuples of a small mixture",
        ("background",),
        zero,
        rests_on="second term",
        certain="identity",
    ),
    Rule(
        "GEN-2",
        "text",
        "methods that climb the bound of the discrete model share one gradient for theta",
        f"{ROUNDING} minus the largest difference of REINFORCE and VIMCO from the wake phase, likewise",
        ("background",),
        zero,
        rests_on="theta",
        certain="identity",
    ),
)


def general_claims(num_particles: tuple[int, ...] = (2, 3, 4)) -> dict[str, Claim]:
    """Claims GEN-1 and GEN-2, by all tuples of particles of a small mixture."""
    tables, tuples = small_mixture(), {K: particle_tuples(NUM_CATEGORIES, K) for K in num_particles}
    evidence = {}
    for name, difference in {"second term": minus_wake_phi, "theta": unlike_wake_theta}.items():
        found = {K: difference(*tables, z).abs().max().item() for K, z in tuples.items()}
        evidence[name] = Evidence({}, given={"rounding": found})
    return judge(RULES, evidence)
