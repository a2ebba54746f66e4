"""Which updates stand out: what an operator looks at, and what puts a client into quarantine. Pure.

Of each update in a round: its length, its cosine to what the round made of all, and the score by the aggregator's own
measure. An update stands out if its length or its score is far above the others': by `FAR` of their median absolute
deviations, scaled as a standard deviation is (Iglewicz and Hoaglin 1993), and by half of their median.
Shapes: deltas float32[n, d].
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from common.ids import ClientId
from common.tensors import Vector
from coordinator.distances import Real
from coordinator.rows import Rows

FAR = 6.0
_SCALE = 1.4826  # of the median absolute deviation, to be a standard deviation where values are normal
_LEAST = 4  # updates, for any of them to stand out


@dataclass(frozen=True, slots=True)
class Scored:
    """One update of a round."""

    client: ClientId
    norm: float
    cosine: float  # 0 where either is nothing
    score: float
    is_odd: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """How rows lie to a delta: float64[n] each."""

    norms: Real
    cosines: Real
    distances: Real


def measure(rows: Rows, delta: Vector) -> Measured:
    """Measure each row against a delta; row by row, in float64."""
    own = delta.astype(np.float64)
    squares, along, apart = np.zeros((3, rows.shape[0]))
    for index in range(rows.shape[0]):
        row = rows.row(index)
        along[index] = np.einsum("i,i->", row, own)
        squares[index] = np.einsum("i,i->", row, row, dtype=np.float64)
        difference = row - own
        apart[index] = np.einsum("i,i->", difference, difference)
    norms, length = np.sqrt(squares), np.sqrt(np.einsum("i,i->", own, own))
    cosines = np.divide(along, norms * length, out=np.zeros_like(along), where=norms * length > 0)
    return Measured(norms, cosines, np.sqrt(apart))


def judge(clients: Sequence[ClientId], measured: Measured, scores: Real | None) -> tuple[Scored, ...]:
    """Say of each update how it compares; its score is its distance, where the aggregator has no other one."""
    norms, cosines = measured.norms, measured.cosines
    scores = measured.distances if scores is None else scores
    odd = _far_above(norms) | _far_above(scores)
    return tuple(
        Scored(client, float(norm), float(cosine), float(score), bool(is_odd))
        for client, norm, cosine, score, is_odd in zip(clients, norms, cosines, scores, odd, strict=True)
    )


def _far_above(values: Real) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    if values.size < _LEAST:
        return np.zeros(values.size, bool)
    middle = float(np.median(values))
    with np.errstate(invalid="ignore"):  # of infinite scores
        spread = _SCALE * float(np.median(np.abs(values - middle)))
    return np.asarray(values > middle + max(FAR * spread, abs(middle) / 2))


@dataclass(slots=True)
class Quarantine:
    """Counts in how many rounds in a row, of those that it was in, a client stood out."""

    strikes: int  # so many and it is excluded; 0: never
    _counts: Counter[ClientId] = field(default_factory=Counter)

    def take(self, scored: Sequence[Scored]) -> tuple[ClientId, ...]:
        """Take a round in; returns who is to be excluded, sorted."""
        odd = {one.client for one in scored if one.is_odd}
        for client in {one.client for one in scored} - odd:
            del self._counts[client]
        self._counts.update(odd)
        caught = sorted(client for client in odd if 0 < self.strikes <= self._counts[client])
        for client in caught:
            del self._counts[client]  # admitted again, it begins anew
        return tuple(caught)
