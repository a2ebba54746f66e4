"""Bytes in one zstd frame, and back: never more of them than were agreed on.

Source: RFC 8878.
Laws:   1. The frame says how many bytes it holds, and that is what the receiver knows already, before anything is
allocated. 2. Whatever bytes come in, the answer is so many bytes or a DecodeError. 3. Nothing that a peer sends costs
more memory than what was agreed on and a constant.
Not here: what the bytes mean (`common.compression`).
"""

import zstandard

from common.errors import DecodeError

LEVEL = 3
WINDOW_BYTES_MAX = 2**23  # what RFC 8878, 3.1.1.1.2 recommends that every decoder supports

_MAGIC = b"\x28\xb5\x2f\xfd"  # of a frame that holds something; there are others that are to be skipped


def deflate(data: bytes | memoryview) -> bytes:
    """Put bytes into one frame, with their number and a checksum."""
    frame: bytes = zstandard.ZstdCompressor(LEVEL, write_content_size=True, write_checksum=True).compress(
        data
    )
    return frame


def frame_bytes_max(size: int) -> int:
    """Say how long a frame with so many bytes can be: zstd's own bound, ZSTD_COMPRESSBOUND."""
    return size + (size >> 8) + (max(0, 2**17 - size) >> 11)


def inflate(data: bytes | memoryview, size: int) -> bytes:
    """Take the `size` bytes out of a frame. Raises: DecodeError."""
    if not 0 < len(data) <= frame_bytes_max(size):
        raise DecodeError(f"{len(data)} bytes are no frame of {size}")
    try:
        _check_head(data, size)
        decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES_MAX)
        found: bytes = decompressor.decompress(data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DecodeError(f"not one frame of zstd: {error}") from None
    if len(found) != size:
        raise DecodeError(f"a frame of {len(found)} bytes; {size} were agreed on")
    return found


def _check_head(data: bytes | memoryview, size: int) -> None:
    """Read what a frame says of itself, for zstd takes it at its word.

    It allocates what is declared, whatever the `max_output_size`; it looks at the window only where it streams; and
    it does not look past a declared size of 0.
    """
    if bytes(data[:4]) != _MAGIC:
        raise DecodeError("not a frame of zstd")
    head = zstandard.get_frame_parameters(data)
    if head.content_size != size or size == 0:
        raise DecodeError(f"a frame that says {head.content_size} bytes; {size} were agreed on")
    if head.window_size > WINDOW_BYTES_MAX:
        raise DecodeError(f"a window of {head.window_size} bytes exceeds the limit of {WINDOW_BYTES_MAX}")
    if head.dict_id:
        raise DecodeError("a frame that needs a dictionary")
