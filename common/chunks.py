"""A blob in chunks: its manifest, and the frame around each chunk.

Frame: plain msgpack `[1, digest16, index, count, data]` in shortest forms, built and read by hand, so that
the data is never copied on arrival. `digest16` is the first half of the blob's SHA-256. No frame is signed:
what is believed is the chunk's hash in a signed manifest.
"""

import hashlib
from dataclasses import dataclass

from common import limits
from common.errors import DecodeError
from common.ids import Digest, sha256
from common.messages import Manifest, Reason

VERSION = 1
DIGEST_BYTES = 16

_HEAD = bytes((0x95, VERSION, 0xC4, DIGEST_BYTES))  # array of 5, version, bin 8 of 16 bytes
_WIDTH_OF_UINT = {0xCC: 1, 0xCD: 2, 0xCE: 4}
_WIDTH_OF_BIN = {0xC4: 1, 0xC5: 2, 0xC6: 4}


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk as it came: nothing about it is believed yet."""

    digest16: bytes
    index: int
    count: int
    data: memoryview


def frame(digest: Digest, index: int, count: int, data: bytes | memoryview) -> bytes:
    """Put the frame around a chunk."""
    head = _HEAD + bytes.fromhex(digest)[:DIGEST_BYTES] + _uint(index) + _uint(count)
    return b"".join((head, _sized(_WIDTH_OF_BIN, len(data)), data))


def parse(payload: bytes) -> Chunk:
    """Take the frame off without copying the data. Raises: DecodeError."""
    start = len(_HEAD) + DIGEST_BYTES
    if not payload.startswith(_HEAD) or len(payload) < start:
        raise DecodeError("not a chunk frame")
    index, at = _read_uint(payload, start)
    count, at = _read_uint(payload, at)
    size, at = _read_sized(payload, at, _WIDTH_OF_BIN, below=0)
    if len(payload) - at != size:
        raise DecodeError(f"a chunk of {size} bytes in a frame for {len(payload) - at}")
    return Chunk(payload[len(_HEAD) : start], index, count, memoryview(payload)[at:])


def describe(
    data: bytes | memoryview, *, codec: str, schema: str, chunk: int = limits.CHUNK_BYTES
) -> Manifest:
    """Hash a blob as a whole and by chunks."""
    view = memoryview(data)
    hashes = b"".join(chunk_hash(view[at : at + chunk]) for at in range(0, len(view), chunk))
    return Manifest(
        digest=sha256(view), size=len(view), chunk=chunk, hashes=hashes, codec=codec, schema=schema
    )


def chunk_hash(data: bytes | memoryview) -> bytes:
    """Hash one chunk, truncated."""
    return hashlib.sha256(data).digest()[: limits.CHUNK_HASH_BYTES]


def length(manifest: Manifest, index: int) -> int:
    """Say how long a chunk has to be."""
    return min(manifest.chunk, manifest.size - index * manifest.chunk)


def cut(data: bytes | memoryview, manifest: Manifest, index: int) -> memoryview:
    """Take one chunk out of a blob."""
    return memoryview(data)[index * manifest.chunk :][: length(manifest, index)]


def check(manifest: Manifest) -> Reason | None:
    """Say what is wrong with a peer's manifest; asked before anything is allocated for it."""
    if manifest.size > limits.BLOB_BYTES_MAX:
        return Reason.TOO_LARGE
    if not limits.CHUNK_BYTES_MIN <= manifest.chunk <= limits.CHUNK_BYTES_MAX:
        return Reason.MALFORMED
    if len(manifest.hashes) != limits.CHUNK_HASH_BYTES * manifest.chunks:
        return Reason.MALFORMED
    return None


def _uint(value: int) -> bytes:
    return bytes((value,)) if value < 0x80 else _sized(_WIDTH_OF_UINT, value)


def _sized(widths: dict[int, int], value: int) -> bytes:
    """Write a number in the shortest form that holds it."""
    for tag, width in widths.items():
        if value < 1 << (8 * width):
            return bytes((tag,)) + value.to_bytes(width, "big")
    raise ValueError(f"{value} does not fit into 32 bits")


def _read_uint(payload: bytes, at: int) -> tuple[int, int]:
    if at < len(payload) and payload[at] < 0x80:
        return payload[at], at + 1
    return _read_sized(payload, at, _WIDTH_OF_UINT, below=0x80)


def _read_sized(payload: bytes, at: int, widths: dict[int, int], *, below: int) -> tuple[int, int]:
    """Read a number in its shortest form: one byte from `below` on, wider ones where those end."""
    width = widths.get(payload[at]) if at < len(payload) else None
    if width is None or len(payload) < at + 1 + width:
        raise DecodeError("not a chunk frame")
    value = int.from_bytes(payload[at + 1 : at + 1 + width], "big")
    if value < (below if width == 1 else 1 << (4 * width)):
        raise DecodeError("a number is not in its shortest form")
    return value, at + 1 + width
