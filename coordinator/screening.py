"""Is this update well-formed, finite, and within its norm? Pure; nothing that a peer sends makes it raise.

Shapes: blob bytes -> delta float32[d].
Not here: whether the update is due and by whom (`round`), whose signature it bears (`common.envelope`).
"""

import math

from common import limits
from common.compression import CODECS, decode
from common.errors import DecodeError
from common.messages import Reason
from common.tensors import Vector, norm


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
