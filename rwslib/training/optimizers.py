"""Optimisers as pure functions, so that steps of many replicates can be mapped and compiled."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def adam(
    params: Tensors,
    grads: Tensors,
    moments: tuple[Tensors, Tensors],
    step: Tensor,
    learning_rate: float | Tensor,
    eps: float = 1e-8,
) -> tuple[Tensors, tuple[Tensors, Tensors]]:
    """One step of Adam with default betas (Kingma & Ba 2015), as ``torch.optim.Adam`` but without state.

    Args:
        step: number of this step, from 1, as a float64 scalar tensor.
    """
    (m, v), beta1, beta2 = moments, 0.9, 0.999
    m = {name: beta1 * m[name] + (1 - beta1) * g for name, g in grads.items()}
    v = {name: beta2 * v[name] + (1 - beta2) * g * g for name, g in grads.items()}
    rate = learning_rate / (1 - beta1**step)
    root = (1 - beta2**step).sqrt()

    def update(name: str) -> Tensor:
        value = params[name]
        return value - rate.to(value.dtype) * m[name] / (v[name].sqrt() / root.to(value.dtype) + eps)

    return {name: update(name) for name in params}, (m, v)


def rmsprop(
    params: Tensors,
    grads: Tensors,
    moments: tuple[Tensors, Tensors],
    step: Tensor,
    learning_rate: float | Tensor,
) -> tuple[Tensors, tuple[Tensors, Tensors]]:
    """One step of RMSProp with momentum 0.9 as TensorFlow 1 defines it, which the authors' AIR code uses.

    Unlike ``torch.optim.RMSprop``: decay 0.9, 1e-10 inside the root, the learning rate inside the
    momentum; its mean square starts at one.
    """
    mean_square, momentum = moments
    mean_square = {name: 0.9 * mean_square[name] + 0.1 * g * g for name, g in grads.items()}
    rate = torch.as_tensor(learning_rate).float()
    momentum = {
        name: 0.9 * momentum[name] + rate * g / (mean_square[name] + 1e-10).sqrt()
        for name, g in grads.items()
    }
    return {name: value - momentum[name] for name, value in params.items()}, (mean_square, momentum)


@dataclass(frozen=True)
class Optimizer:
    """An optimiser as a pure function.

    Attributes:
        update: ``(params, grads, moments, step, learning_rate) -> (params, moments)``.
        start: what its two moments start from.
        delays: iterations during which parameters stay as they are, by the start of their names.
    """

    update: Callable[..., tuple[Tensors, tuple[Tensors, Tensors]]]
    start: tuple[float, float] = (0.0, 0.0)
    delays: Mapping[str, int] = field(default_factory=dict)


def delayed(optimizer: Optimizer, delays: Mapping[str, int]) -> Optimizer:
    """An optimiser that leaves some parameters as they are at first, and then starts as if training began.

    Args:
        optimizer: what steps.
        delays: iterations by the start of names, such as ``{"q.presence": 2000}``.
    """

    def update(params, grads, moments, step, learning_rate):
        ends = {
            name: max((d for start, d in delays.items() if name.startswith(f"parts.{start}")), default=0)
            for name in params
        }
        stepped: tuple[Tensors, ...] = ({}, *({} for _ in moments))
        for end in sorted(set(ends.values())):
            names = [name for name in params if ends[name] == end]
            before, *old = ({name: part[name] for name in names} for part in (params, *moments))
            own_grads, own_step = {name: grads[name] for name in names}, (step - end).clamp_min(1)
            value, moved = optimizer.update(before, own_grads, tuple(old), own_step, learning_rate)
            for result, was, new in zip(stepped, (before, *old), (value, *moved), strict=True):
                result |= {
                    name: torch.where(step > end, new[name], was[name]) if end else new[name]
                    for name in names
                }
        return stepped[0], stepped[1:]

    return replace(optimizer, update=update, delays=dict(delays))
