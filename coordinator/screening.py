"""Is this update well-formed, finite, and within its norm? Pure; nothing that a peer sends makes it raise.

Shapes: blob bytes -> delta float32[d].
Not here: whether the update is due and by whom (`round`), whose signature it bears (`common.envelope`).
"""

import math

import numpy as np

from common import limits
from common.compression import CODECS, decode
from common.errors import DecodeError
from common.messages import Reason
from common.tensors import Vector

_BLOCK = 1 << 18  # elements at a time: 2 MiB in float64, which the cache holds


def screen(
    data: bytes | memoryview, *, codec: str, elements: int, norm_max: float = limits.DELTA_NORM_MAX
) -> Vector | Reason:
    """Decode a blob, or say why not."""
    if codec not in CODECS:
        return Reason.MALFORMED
    if not CODECS[codec].allows(len(data), elements):
        return Reason.WRONG_SIZE
    try:
        delta = decode(codec, data, elements)
    except DecodeError:
        return Reason.MALFORMED
    size = norm(delta)
    if not math.isfinite(size):
        return Reason.NOT_FINITE
    return Reason.TOO_LARGE if size > norm_max else delta


def norm(vector: Vector) -> float:
    """Compute ‖v‖₂ in float64, where no finite float32 overflows: it is finite only if all elements are.

    So one pass tells both: 0.8 ms for 1.66 million elements.
    """
    total = 0.0
    with np.errstate(invalid="ignore"):  # NaN and infinities are what is looked for
        for start in range(0, vector.size, _BLOCK):
            block = vector[start : start + _BLOCK].astype(np.float64)
            block *= block  # not `block @ block`: BLAS waits for threads of its own, 80 ms where others want the cores
            total += float(block.sum())
    return math.sqrt(total)
