"""A strategy of one's own: federated averaging with momentum at the coordinator.

Source: Hsu et al. 2019, FedAvgM (arXiv:1909.06335).
"""

import numpy as np

from common.tensors import Vector
from coordinator.aggregators import mean
from coordinator.optimizers import Memory
from coordinator.strategies import Strategy, by_examples


def momentum(lr: float = 1.0, beta: float = 0.5) -> Strategy:
    """Weigh clients by their examples, take the mean of their deltas, and let it roll on."""

    def step(model: Vector, delta: Vector, memory: Memory) -> tuple[Vector, Memory]:
        (velocity,) = memory or (np.zeros_like(model),)  # nothing is remembered before the first round
        velocity = np.float32(beta) * velocity + delta
        return model + np.float32(lr) * velocity, (velocity,)

    return Strategy(weigh=by_examples, combine=mean(), step=step)
