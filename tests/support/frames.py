"""Frames of zstd that mean harm, and what taking one out costs."""

import random
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import zstandard

from common.errors import DecodeError
from common.inflate import deflate, inflate

_SKIPPABLE = bytes.fromhex("502a4d18")
_MAGIC = b"\x28\xb5\x2f\xfd"


def noise(size: int) -> bytes:
    """Make bytes that do not deflate, always the same."""
    return random.Random(7).randbytes(size)


def _head(size: int) -> bytes:
    """Begin a frame of one segment that declares `size` bytes in 8 bytes."""
    return _MAGIC + b"\xe0" + size.to_bytes(8, "little")


def _windowed(size: int, window_log: int) -> bytes:
    """Begin a frame with a window of its own."""
    return _MAGIC + bytes((0xC0, (window_log - 10) << 3)) + size.to_bytes(8, "little")


def _repeated(size: int) -> bytes:
    """Write blocks of one byte, repeated: 4 bytes of frame for 128 KiB."""
    blocks = b""
    while size:
        here = min(size, 2**17)
        size -= here
        blocks += ((here << 3) | 2 | (size == 0)).to_bytes(3, "little") + b"\0"
    return blocks


def _unsized(size: int) -> bytes:
    return zstandard.ZstdCompressor(3, write_content_size=False).compress(bytes(size))


GOOD: dict[str, Callable[[int], bytes]] = {
    "zeros": lambda size: deflate(bytes(size)),
    "noise": lambda size: deflate(noise(size)),
}
BOMBS: dict[str, Callable[[int], bytes]] = {  # by the number of bytes that are agreed on
    "declares a petabyte": lambda size: _head(2**50) + _repeated(size),
    "declares all that 64 bits can": lambda size: _head(2**64 - 3) + _repeated(size),
    "says no size": _unsized,
    "says no size and holds much more": lambda size: _unsized(40 * size),
    "holds more than agreed": lambda size: deflate(bytes(40 * size)),
    "holds less than agreed": lambda size: deflate(bytes(size - 1)),
    "holds more than it says": lambda size: _head(size) + _repeated(40 * size),
    "holds one byte more than it says": lambda size: _head(size) + _repeated(size + 1),
    "holds less than it says": lambda size: _head(size) + _repeated(size - 1),
    "has a huge window": lambda size: _windowed(size, 31) + _repeated(size),
    "has a window of 16 MiB": lambda size: _windowed(size, 24) + _repeated(size),
    "needs a dictionary": lambda size: _MAGIC + b"\xe1\x07" + size.to_bytes(8, "little") + _repeated(size),
    "is to be skipped": lambda size: _SKIPPABLE + size.to_bytes(4, "little") + bytes(100),
    "is behind one that is to be skipped": lambda size: (
        _SKIPPABLE + (4).to_bytes(4, "little") + b"abcd" + deflate(bytes(size))
    ),
    "is before one that is to be skipped": lambda size: (
        deflate(bytes(size)) + _SKIPPABLE + (4).to_bytes(4, "little") + b"abcd"
    ),
    "two frames": lambda size: deflate(bytes(size)) + deflate(bytes(size)),
    "junk after it": lambda size: deflate(bytes(size)) + b"\0",
    "is cut short": lambda size: deflate(bytes(size))[:-1],
    "is cut short, with the widest window": lambda size: (_windowed(size, 23) + _repeated(size))[:-1],
    "is cut short in its head": lambda size: deflate(bytes(size))[:6],
    "is padded with empty blocks": lambda size: _head(size) + b"\0\0\0" * (size // 2) + _repeated(size),
    "is nothing": lambda _size: b"",
}
# Only after its bytes have been taken out is it seen that these are wrong
DECODED_BEFORE_REFUSED = {
    *GOOD,
    "holds more than it says",
    "holds one byte more than it says",
    "holds less than it says",
    "is before one that is to be skipped",
    "two frames",
    "junk after it",
    "is cut short",
    "is cut short, with the widest window",
}


def growth(size: int) -> int:
    """Take a frame from standard input apart, and say by how many bytes it made this process grow, at most."""
    frame = sys.stdin.buffer.read()
    inflate(deflate(b"x"), 1)  # what is loaded once
    before = _peak()
    with suppress(DecodeError):
        inflate(frame, size)
    return _peak() - before


def _peak() -> int:
    """Read the most memory that this program ever had; `getrusage` tells that of its parent if it was more."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024
