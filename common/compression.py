"""How a flat vector becomes bytes and comes back: the codecs of models and updates.

    none   little-endian float32: exact, 4 bytes an element
    fp16   little-endian IEEE half floats: 2 bytes an element, relative error below 2^-11

Shapes: vectors float32[d].   Not here: whether the values are finite (`coordinator.screening`).
"""

from collections.abc import Mapping

import numpy as np

from common.errors import ConfigError, DecodeError, FedmqError
from common.tensors import Vector

CODECS: Mapping[str, "np.dtype[np.floating]"] = {"none": np.dtype("<f4"), "fp16": np.dtype("<f2")}


class RangeError(FedmqError):
    """The values are too large for this codec. Use --codec none, or a smaller learning rate."""


def encode(codec: str, vector: Vector) -> memoryview:
    """Spell a vector; `none` is a view of it and not a copy. Raises: ConfigError, RangeError."""
    if codec not in CODECS:
        raise ConfigError(f"no codec {codec!r}; there are: {', '.join(CODECS)}")
    dtype = CODECS[codec]
    if dtype.itemsize < vector.itemsize:
        _check_range(codec, vector)
    return np.ascontiguousarray(vector, dtype).view(np.uint8).data


def decode(codec: str, data: bytes | memoryview, elements: int) -> Vector:
    """Read a vector back; that of `none` is a read-only view of `data`. Raises: DecodeError."""
    if codec not in CODECS:
        raise DecodeError(f"no codec {codec!r}; there are: {', '.join(CODECS)}")
    dtype = CODECS[codec]
    if len(data) != elements * dtype.itemsize:
        raise DecodeError(f"{len(data)} bytes are not {elements} elements in codec {codec}")
    return np.frombuffer(data, dtype).astype(np.float32, copy=False)


def _check_range(codec: str, vector: Vector) -> None:
    """Refuse what would become infinite; NaN fails the comparison too."""
    top = float(np.finfo(CODECS[codec]).max)
    low, high = float(vector.min(initial=0)), float(vector.max(initial=0))
    if not (-top <= low and high <= top):
        raise RangeError(f"codec {codec} holds values up to ±{top:g}; these are from {low:g} to {high:g}")
