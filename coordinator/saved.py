"""A saved model read back, so strictly that no byte of the file can be another.

8 bytes: size of the header · the header, JSON without spaces, filled up with spaces to 8 · the tensors, <f4
"""

import json
import math
import re
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta

from common.errors import DecodeError
from common.tensors import Schema, Vector

_METADATA = "__metadata__"


class _Tensor(msgspec.Struct, forbid_unknown_fields=True):
    dtype: Literal["F32"]
    shape: list[int]
    data_offsets: tuple[Annotated[int, Meta(ge=0)], Annotated[int, Meta(ge=0)]]


def read(data: bytes, schema: Schema, run: str) -> tuple[Vector, int]:
    """Take the flat model float32[d], in the schema's order, and its round's number. Raises: DecodeError."""
    end = 8 + int.from_bytes(data[:8], "little")
    about, tensors = _header(data[8:end])
    number = about.get("round", "")
    if about != {"run": run, "round": number} or re.fullmatch("0|[1-9][0-9]{0,15}", number) is None:
        raise DecodeError("it does not say which round of this run it is of")
    if set(tensors) != {spec.name for spec in schema.tensors}:
        raise DecodeError("the tensors are not those of the run's model")
    places = sorted(tensor.data_offsets for tensor in tensors.values())
    edges = [0, *(stop for _, stop in places)]
    if [start for start, _ in places] != edges[:-1] or edges[-1] != len(data) - end:
        raise DecodeError("the tensors do not fill the file")
    parts = []
    for spec in schema.tensors:
        tensor = tensors[spec.name]
        start, stop = tensor.data_offsets
        if tuple(tensor.shape) != spec.shape or stop - start != 4 * math.prod(spec.shape):
            raise DecodeError(f"the tensor {spec.name!r} is not of the shape {spec.shape}")
        parts.append(np.frombuffer(data, "<f4", (stop - start) // 4, end + start))
    return np.concatenate(parts).astype(np.float32, copy=False), int(number)


def _header(header: bytes) -> tuple[dict[str, str], dict[str, _Tensor]]:
    try:
        tree = json.loads(header)
        spelled = json.dumps(tree, separators=(",", ":"), ensure_ascii=False).encode()
        if header != spelled + b" " * (-len(spelled) % 8):
            raise DecodeError("the header is not spelled as it was written")
        about = msgspec.convert(tree.pop(_METADATA, {}), dict[str, str])
        return about, msgspec.convert(tree, dict[str, _Tensor])
    except (ValueError, AttributeError, TypeError, RecursionError) as error:  # no JSON, or no object
        raise DecodeError(f"the header is malformed: {error}") from None
