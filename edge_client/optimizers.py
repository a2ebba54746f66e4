"""The optimizers of local training: plain rules over a module's parameters.

torch has them too, but the first one that it makes imports its compiler: 1.5 seconds and 150 MB in each client, for ten
lines of arithmetic. Theirs are the oracle of our tests.
Shapes: everything has the shape of its parameter.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import numpy as np

from common.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from common.messages import Plan
    from common.tensors import Vector

FLOAT32_MAX = 3.4e38
STEP_NORM_MAX = 2.0**53  # as a message can say it


class Optimizer(Protocol):
    """Moves parameters by their gradients."""

    def step(self) -> None:
        """Move once; parameters that have no gradient stay."""
        ...


def make_optimizer(parameters: Iterable[torch.nn.Parameter], plan: Plan) -> Optimizer:
    """Make the one that a plan names, with no memory of earlier rounds. Raises: ConfigError."""
    if max(plan.lr, plan.momentum, plan.weight_decay) > FLOAT32_MAX:
        raise ConfigError("lr, momentum and weight_decay must be float32 numbers")
    match plan.optimizer:
        case "sgd":
            return Sgd(parameters, plan.lr, plan.momentum, plan.weight_decay)
        case "adam":
            return Adam(parameters, plan.lr, plan.weight_decay)
        case other:
            raise ConfigError(f"no optimizer {other!r}; there are: sgd, adam")


def step_norm(plan: Plan, steps: int) -> float | None:
    """Say how far a constant gradient of 1 carries a weight, in learning rates: ‖a‖₁ of Wang et al. 2020, §3.1.

    A plan's steps make the delta -η Σ a_i g_i (arXiv:2007.07481). Plain SGD: a = 1, …, 1. None where that is not so:
    with another optimizer, with momentum of an earlier round, or where the proximal term overshoots.
    """
    if plan.optimizer != "sgd" or plan.keep_momentum or plan.lr * plan.proximal_mu > 1:
        return None
    way = velocity = 0.0
    for _ in range(steps):
        velocity = plan.momentum * velocity + 1 - plan.lr * plan.proximal_mu * way
        way += velocity
    return way if 1 <= way <= STEP_NORM_MAX else None


class Sgd:
    """Stochastic gradient descent: v <- mv + g + cw; w <- w - ηv, with momentum m and weight decay c."""

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], lr: float, momentum: float, weight_decay: float
    ) -> None:
        import torch

        self._moved = [(weight, torch.zeros_like(weight)) for weight in parameters if weight.requires_grad]
        self._lr, self._momentum, self._decay = lr, momentum, weight_decay

    def step(self) -> None:
        """Move once."""
        import torch

        with torch.no_grad():
            for weight, velocity in self._moved:
                if weight.grad is not None:
                    velocity.mul_(self._momentum).add_(weight.grad)
                    if self._decay:
                        velocity.add_(weight, alpha=self._decay)
                    weight.add_(velocity, alpha=-self._lr)

    def resume(self, velocities: Vector) -> None:
        """Go on with the velocities that an earlier one had; those of another model are left alone."""
        import torch

        if velocities.size == sum(velocity.numel() for _, velocity in self._moved):
            rest = torch.from_numpy(velocities.copy())  # received bytes may not be written
            for _, velocity in self._moved:
                part, rest = rest[: velocity.numel()], rest[velocity.numel() :]
                velocity.copy_(part.view(velocity.shape))

    def velocities(self) -> Vector:
        """Copy them all, one after the other, float32[p]."""
        parts = [velocity.detach().cpu().float().flatten().numpy() for _, velocity in self._moved]
        return np.concatenate(parts) if parts else np.empty(0, np.float32)


class Adam:
    """Kingma and Ba 2015, Algorithm 1 (arXiv:1412.6980): β₁ = 0.9, β₂ = 0.999, ε = 1e-8.

    Weight decay is added to the gradient, as there, and not to the weights as in AdamW.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], lr: float, weight_decay: float) -> None:
        import torch

        self._moved = [
            (weight, torch.zeros_like(weight), torch.zeros_like(weight))
            for weight in parameters
            if weight.requires_grad
        ]
        self._lr, self._decay, self._steps = lr, weight_decay, 0

    def step(self) -> None:
        """Move once."""
        import torch

        self._steps += 1
        unbias1, unbias2 = 1 - 0.9**self._steps, 1 - 0.999**self._steps
        with torch.no_grad():
            for weight, m, v in self._moved:
                if weight.grad is not None:
                    g = weight.grad.add(weight, alpha=self._decay)
                    m.lerp_(g, 1 - 0.9)
                    v.mul_(0.999).addcmul_(g, g, value=1 - 0.999)
                    root = v.sqrt().div_(math.sqrt(unbias2)).add_(1e-8)
                    weight.addcdiv_(m, root, value=-self._lr / unbias1)
