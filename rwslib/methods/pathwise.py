"""Methods for latents that can be reparameterised."""

from torch import Tensor, nn
from torch.func import functional_call

from rwslib import estimators
from rwslib.noise import Noise
from rwslib.protocols import Generative, ReparameterisedInference
from rwslib.trees import Tree, tree_map


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
    log_w_path = frozen(p, z, x) - frozen(q, z, x)
    return p.log_joint(tree_map(Tensor.detach, z), x), log_q, log_w_path


def frozen(module: nn.Module, z: Tree, x: Tree) -> Tensor:
    """The module's log-density with its parameters detached; z keeps its gradient."""
    parameters = {name: value.detach() for name, value in module.named_parameters()}
    return functional_call(module, parameters, (z, x))
