"""The three updates of wake-sleep: theta awake, phi awake, phi asleep."""

from torch import Tensor

from rwslib.checks import check_log_densities
from rwslib.estimators.weights import log_evidence, normalized_weights


def wake_theta_loss(log_p: Tensor, log_q: Tensor) -> Tensor:
    r"""Wake phase for theta (section 3.1): ascend :math:`\sum_k v_k \nabla_\theta \log p_\theta(z_k, x)`.

    Unbiased for the theta gradient of the K-particle bound; shared by the paper's methods but
    Concrete, whose theta follows the relaxed bound.
    No gradient reaches q.  The value is minus the bound.

    Args:
        log_p, log_q: ``[K, B]``, at particles drawn from q, without path derivative.

    Returns:
        ``[B]``, at the cost of K samples, K evaluations of p and q.
    """
    check_log_densities(log_p=log_p, log_q=log_q)
    return -log_evidence(log_p - log_q.detach())


def wake_phi_loss(
    log_p: Tensor, log_q: Tensor, log_proposal: Tensor | None = None, center_weights: bool = False
) -> Tensor:
    r"""Wake phase for phi, paper Eq. 5: ascend :math:`\sum_k v_k \nabla_\phi \log q_\phi(z_k | x)`.

    Biased of order 1/K for the inclusive KL of Eq. 4, consistent.  No gradient reaches p.

    Args:
        log_p: ``[K, B]``, at particles without path derivative.
        log_q: ``[K, B]``, the density of q itself at the particles.
        log_proposal: ``[K, B]``, the density of the distribution the particles were really drawn
            from, if that is not q (delta-WW, paper section 4.3).
        center_weights: subtract 1/K from each weight, K >= 2.  With particles from q this leaves the
            expectation unchanged, since the score has mean zero, and lowers the variance.

    Returns:
        ``[B]``, at the cost of K samples, K evaluations of p and q.

    Raises:
        ValueError: ``center_weights`` together with ``log_proposal``, where the score of q does not
            have mean zero, or with one particle, of which nothing would be left.
    """
    if log_proposal is None:
        log_proposal = log_q
    elif center_weights:
        raise ValueError("center_weights=True needs particles from q, but log_proposal was given")
    least = 2 if center_weights else 1
    check_log_densities(min_particles=least, log_p=log_p, log_q=log_q, log_proposal=log_proposal)
    v = normalized_weights(log_p - log_proposal)
    if center_weights:
        v = v - 1 / v.shape[0]
    return -(v * log_q).sum(dim=0)


def sleep_phi_loss(log_q: Tensor) -> Tensor:
    r"""Sleep phase for phi, paper Eq. 3: ascend :math:`\frac1K \sum_k \nabla_\phi \log q_\phi(z_k | x_k)`.

    Args:
        log_q: ``[K, B]``, q at dreams, i.e. pairs (z, x) drawn from the generative model.

    Returns:
        ``[B]``, at the cost of K samples from p and evaluations of q per datum.
    """
    check_log_densities(log_q=log_q)
    return -log_q.mean(dim=0)
