"""The largest elements of a vector, and where they stand: what is left out is for the sender to remember.

Spelled: for k = ⌈ρ d⌉ elements their gaps, uint32 little-endian, the first one counted from the beginning and each
other one from its predecessor; then their values, half floats little-endian. Elements of equal size: the first ones.
Source: Aji and Heafield 2017, §3 (arXiv:1704.05021); Stich et al. 2018 (arXiv:1809.07599) for why it needs memory.
Shapes: vectors float32[d].
"""

from dataclasses import dataclass

import numpy as np

from common.errors import DecodeError
from common.tensors import Vector

_GAP, _VALUE = np.dtype("<u4"), np.dtype("<f2")


@dataclass(frozen=True, slots=True)
class TopK:
    """A share ρ of the elements."""

    share: float

    def kept(self, elements: int) -> int:
        """Say how many elements of so many are spelled."""
        return min(elements, max(1, int(np.ceil(self.share * elements))))

    def size(self, elements: int) -> int:
        """Say how many bytes a vector takes."""
        return self.kept(elements) * (_GAP.itemsize + _VALUE.itemsize)

    def encode(self, vector: Vector, seed: int) -> bytes:
        """Spell a vector whose elements fit into half floats; no seed is needed."""
        del seed
        count, size = self.kept(vector.size), np.abs(vector)
        least = np.partition(size, vector.size - count)[vector.size - count]
        places = np.flatnonzero(size > least)
        ties = np.flatnonzero(size == least)[: count - places.size]
        places = np.sort(np.concatenate([places, ties]))
        gaps = np.diff(places, prepend=0).astype(_GAP)
        return gaps.tobytes() + vector[places].astype(_VALUE).tobytes()

    def decode(self, data: bytes | memoryview, elements: int) -> Vector:
        """Read a vector of so many elements from as many bytes as it takes. Raises: DecodeError."""
        count = self.kept(elements)
        gaps = np.frombuffer(data, _GAP, count).astype(np.int64)
        values = np.frombuffer(data, _VALUE, count, count * _GAP.itemsize)
        places = np.cumsum(gaps)
        if np.any(gaps[1:] == 0) or places[-1] >= elements:
            raise DecodeError("the places of elements do not rise, or lead out of the vector")
        vector = np.zeros(elements, np.float32)
        vector[places] = values
        return vector
