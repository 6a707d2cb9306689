"""What is asked of arguments, log-densities and counts before anything is computed from them."""

import math
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

MAY_BE_IMPOSSIBLE = ("log_p", "log_p_pair", "log_w", "log_w_path")  # -inf there is a weight of zero


def require(condition: bool, name: str, allowed: str, value: Any) -> None:
    """Raise one clear ``ValueError`` naming parameter, allowed values and the value given."""
    if not condition:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


def is_whole(value: Any, at_least: float) -> bool:
    """Whether a value is a whole number, of Python or NumPy, that is large enough."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= at_least


def require_int(name: str, value: Any, at_least: int, at_most: float = math.inf) -> None:
    """Refuse anything but a whole number in a range."""
    require(is_whole(value, at_least), name, f"a whole number of at least {at_least}", value)
    require(value <= at_most, name, f"at most {at_most}", value)


def check_log_densities(min_particles: int = 1, **tensors: Tensor) -> None:
    """Raise ``ValueError`` unless all tensors are log-densities ``[K, B]`` of one shape, K large enough.

    ``-inf`` passes in ``log_p`` and log-weights, as long as one particle of each datum has more.  Values are
    looked at where that is possible: not in compiled or vmapped code.
    """
    (first, reference), *_ = tensors.items()
    for name, value in tensors.items():
        _check_tensor(name, "[K, B]", value)
        if value.ndim != 2:
            raise ValueError(f"{name} must have shape [K, B] (particles, batch), got {list(value.shape)}")
        if value.shape != reference.shape:
            raise ValueError(f"{name} has shape {list(value.shape)}, but {first} has {list(reference.shape)}")
        check_precision(name, value)
    num_particles, batch = reference.shape
    if num_particles < min_particles:
        raise ValueError(
            f"{first} holds {num_particles} particle(s), this estimator needs at least {min_particles}"
        )
    if not batch:
        raise ValueError(f"{first} holds no datum, its shape is {list(reference.shape)}")
    for name, value in tensors.items():
        check_finite(name, value.detach().amax(dim=0) if name in MAY_BE_IMPOSSIBLE else value)


def _check_tensor(name: str, shape: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a tensor {shape}, got {type(value).__name__}")


def check_precision(name: str, value: Tensor) -> None:
    """Raise ``ValueError`` for log-densities in fewer digits than float32's, or in none."""
    if value.dtype not in (torch.float32, torch.float64):
        why = ": rounded to fewer digits, a log-density of hundreds of nats gives a wrong weight"
        raise ValueError(
            f"{name} must be float32 or float64, got {str(value.dtype).removeprefix('torch.')}"
            + why * value.is_floating_point()
        )


def check_per_datum(like: Tensor, **tensors: Tensor) -> None:
    """Raise ``ValueError`` unless all tensors are finite and of shape ``[B]``, B taken from ``like``."""
    for name, value in tensors.items():
        _check_tensor(name, "[B]", value)
        if value.shape != like.shape[1:]:
            raise ValueError(f"{name} must have shape [B] = {list(like.shape[1:])}, got {list(value.shape)}")
        check_finite(name, value)


def check_finite(name: str, value: Tensor) -> None:
    """Raise ``ValueError`` unless all numbers ``[..., B]`` are finite; passes where no value can be read."""
    if torch.compiler.is_compiling():
        return
    finite = torch.isfinite(value.detach())
    try:
        if finite.all():
            return
    except RuntimeError:  # inside vmap no value can be read
        return
    at = (~finite).nonzero()[0]  # data have the last axis
    if name not in MAY_BE_IMPOSSIBLE or value.ndim > 1:
        what = "NaN or infinite values, here every number must be finite"
    elif value[tuple(at)] == -torch.inf:
        what = "only -inf: that is a weight of zero, but not for all"
    else:
        what = "NaN or +inf"
    raise ValueError(f"{name} holds {what} (datum {int(at[-1])})")


def check_counts(**counts: int) -> None:
    """Raise ``ValueError`` unless all counts are at least one."""
    for name, count in counts.items():
        require(count >= 1, name, "at least 1", count)
