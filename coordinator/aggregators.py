"""Many deltas become one.

    an aggregator takes deltas one by one (`add`), then says what they are together (`result`)

Shapes: deltas float32[d]; sums float64[d], since a thousand float32 summands would cost three digits.
Laws:   1. Memory is O(d), whatever the number of clients. 2. The order of adds is part of the result, as
        floating-point addition is not associative: callers add in sorted client order. 3. Deltas are not
        written to.
"""

import math
from typing import Protocol

import numpy as np

from common.errors import ConfigError
from common.tensors import Vector

_BLOCK = 1 << 18  # elements at a time: 2 MiB in float64, which the cache holds


class Aggregator(Protocol):
    """What a strategy's `combine` makes anew for each round, given d."""

    def add(self, delta: Vector, weight: float) -> None:
        """Take one client's delta in."""
        ...

    def result(self) -> Vector:
        """Say what all are together. Raises: ConfigError where nothing had any weight."""
        ...


class Mean:
    """The weighted mean: McMahan et al. 2017, Algorithm 1 (arXiv:1602.05629)."""

    def __init__(self, elements: int) -> None:
        self._sum = np.zeros(elements)  # float64[d]
        self._weight = 0.0

    def add(self, delta: Vector, weight: float) -> None:
        """Add a delta, weighted.

        By blocks: 1.0 ms for 1.66 million elements, where one pass over all takes 1.8 ms and 13 MB more.
        """
        assert delta.shape == self._sum.shape
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"the strategy gave an update the weight {weight}")
        for start in range(0, delta.size, _BLOCK):
            block = delta[start : start + _BLOCK].astype(np.float64)
            block *= weight
            self._sum[start : start + _BLOCK] += block
        self._weight += weight

    def result(self) -> Vector:
        """Divide by the sum of weights. Raises: ConfigError where that is zero."""
        if self._weight == 0:
            raise ConfigError("the strategy gave no update any weight")
        return np.divide(self._sum, self._weight).astype(np.float32)
