"""Message <-> canonical msgpack; the only file that imports msgpack.

Canonical: keys sorted, shortest forms, no extensions, so that one message has one spelling. That kills
duplicate keys, wide integers and trailing bytes. What is compared is the tree and not the Struct: a field
that a newer peer added survives the check.
"""

import math
from types import UnionType
from typing import Any, TypeVar

import msgpack
import msgspec

from common import limits
from common.errors import DecodeError

T = TypeVar("T")
Tree = Any  # dict, list, str, bytes, int, float, bool, None: checked by `_check`

_PLAIN = (str, bytes, int, float, bool, type(None))


def encode(message: msgspec.Struct) -> bytes:
    """Spell a message."""
    return pack(msgspec.to_builtins(message, builtin_types=(bytes,), order="sorted"))


def decode(
    data: bytes | memoryview, kind: "type[T] | UnionType", *, bytes_max: int = limits.ENVELOPE_BYTES_MAX
) -> T:
    """Read a message of one kind, or of a union of kinds. Raises: DecodeError."""
    tree = unpack(data, bytes_max=bytes_max)
    try:
        read: T = msgspec.convert(tree, kind, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise DecodeError(str(error)) from None
    return read


def pack(tree: Tree) -> bytes:
    """Spell a plain tree whose dictionaries are in order."""
    packed: bytes = msgpack.packb(tree)
    return packed


def unpack(data: bytes | memoryview, *, bytes_max: int) -> Tree:
    """Read a plain tree in canonical form. Raises: DecodeError."""
    if len(data) > bytes_max:
        raise DecodeError(f"{len(data)} bytes exceed the limit of {bytes_max}")
    try:
        tree = msgpack.unpackb(
            data,
            max_array_len=limits.ARRAY_ITEMS_MAX,
            max_map_len=limits.MAP_ITEMS_MAX,
            max_str_len=limits.TEXT_CHARACTERS_MAX,
            max_bin_len=bytes_max,
            max_ext_len=0,
            strict_map_key=True,
        )
    except (ValueError, TypeError, RecursionError, MemoryError, msgpack.exceptions.UnpackException) as error:
        raise DecodeError(f"not msgpack within the limits: {type(error).__name__}") from None
    _check(tree)
    if pack(tree) != data:
        raise DecodeError("not in canonical form")
    return tree


def _check(tree: Tree) -> None:
    """Admit nothing but plain values, keys in order, so many and so deep; level by level. Raises: DecodeError."""
    level, values = [tree], 0
    for _ in range(limits.NESTING_MAX):
        values += len(level)
        if values > limits.VALUES_MAX:  # the limits of msgpack are those of each container alone
            raise DecodeError(f"more than {limits.VALUES_MAX} values")
        below: list[Tree] = []
        for value in level:
            below += _inside(value)
        level = below
    if level:
        raise DecodeError(f"nested deeper than {limits.NESTING_MAX}")


def _inside(value: Tree) -> tuple[Tree, ...]:
    """Say what is in a value, if it is one that may be. Raises: DecodeError."""
    kind = type(value)
    if kind is dict:
        if any(type(key) is not str for key in value):
            raise DecodeError("a key is not text")
        if list(value) != sorted(value):
            raise DecodeError("not in canonical form")
        return tuple(value.values())
    if kind is list:
        return tuple(value)
    if kind is float and not math.isfinite(value):
        raise DecodeError("a number is not finite")
    if kind not in _PLAIN:
        raise DecodeError(f"a value is of the type {kind.__name__}")
    return ()
