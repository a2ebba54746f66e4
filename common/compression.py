"""How a flat vector becomes bytes and comes back: the codecs of models and updates.

    none        little-endian float32: exact, 4 bytes an element
    fp16        little-endian IEEE half floats: 2 bytes an element, relative error below 2^-11
    zstd        those of `none` in one zstd frame: exact, and shorter where bytes repeat
    fp16+zstd   those of `fp16` in one zstd frame

Models travel as `none`, whatever the codec of updates.
Shapes: vectors float32[d].   Not here: whether the values are finite (`coordinator.screening`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from common.errors import ConfigError, DecodeError, FedmqError
from common.inflate import deflate, frame_bytes_max, inflate
from common.tensors import Vector


@dataclass(frozen=True, slots=True)
class Codec:
    """How one element is spelled, and whether the whole is deflated then."""

    dtype: "np.dtype[np.floating]"
    deflated: bool = False

    def allows(self, size: int, elements: int) -> bool:
        """Tell whether so many bytes can be a vector of so many elements; asked before they are fetched."""
        plain = elements * self.dtype.itemsize
        return 0 < size <= frame_bytes_max(plain) if self.deflated else size == plain


CODECS: Mapping[str, Codec] = {
    "none": Codec(np.dtype("<f4")),
    "fp16": Codec(np.dtype("<f2")),
    "zstd": Codec(np.dtype("<f4"), deflated=True),
    "fp16+zstd": Codec(np.dtype("<f2"), deflated=True),
}


class RangeError(FedmqError):
    """The values are too large for this codec. Use --codec none, or a smaller learning rate."""


def encode(codec: str, vector: Vector) -> memoryview:
    """Spell a vector; `none` is a view of it and not a copy. Raises: ConfigError, RangeError."""
    if codec not in CODECS:
        raise ConfigError(f"no codec {codec!r}; there are: {', '.join(CODECS)}")
    dtype = CODECS[codec].dtype
    if dtype.itemsize < vector.itemsize:
        _check_range(codec, vector)
    plain = np.ascontiguousarray(vector, dtype).view(np.uint8).data
    return memoryview(deflate(plain)) if CODECS[codec].deflated else plain


def decode(codec: str, data: bytes | memoryview, elements: int) -> Vector:
    """Read a vector back; that of `none` is a read-only view of `data`. Raises: DecodeError."""
    if codec not in CODECS:
        raise DecodeError(f"no codec {codec!r}; there are: {', '.join(CODECS)}")
    form = CODECS[codec]
    if not form.allows(len(data), elements):
        raise DecodeError(f"{len(data)} bytes are not {elements} elements in codec {codec}")
    plain = inflate(data, elements * form.dtype.itemsize) if form.deflated else data
    return np.frombuffer(plain, form.dtype).astype(np.float32, copy=False)


def _check_range(codec: str, vector: Vector) -> None:
    """Refuse what would become infinite; NaN fails the comparison too."""
    top = float(np.finfo(CODECS[codec].dtype).max)
    low, high = float(vector.min(initial=0)), float(vector.max(initial=0))
    if not (-top <= low and high <= top):
        raise RangeError(f"codec {codec} holds values up to ±{top:g}; these are from {low:g} to {high:g}")
