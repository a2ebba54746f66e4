"""Cut and collected again, nothing of a blob changes; the frame is msgpack, and only its one canonical form."""

import hashlib

import msgpack
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common import chunks, limits
from common.errors import DecodeError
from common.ids import sha256
from common.messages import Reason

DIGEST = sha256(b"blob")
SCHEMA = "0" * 64
NUMBERS = st.integers(0, 2**32 - 1)
EDGES = (0, 1, 127, 128, 255, 256, 65535, 65536, 2**32 - 1)


def described(data, chunk=1024):
    return chunks.describe(data, codec="f32", schema=SCHEMA, chunk=chunk)


@given(NUMBERS, NUMBERS, st.binary(max_size=300))
def test_a_frame_is_what_msgpack_writes(index, count, data):
    framed = chunks.frame(DIGEST, index, count, data)

    assert framed == msgpack.packb([1, bytes.fromhex(DIGEST)[:16], index, count, data])
    assert chunks.parse(framed) == chunks.Chunk(bytes.fromhex(DIGEST)[:16], index, count, memoryview(data))


@pytest.mark.parametrize("number", EDGES)
def test_numbers_have_their_shortest_form_at_every_width(number):
    framed = chunks.frame(DIGEST, number, number, b"")

    assert framed == msgpack.packb([1, bytes.fromhex(DIGEST)[:16], number, number, b""])
    assert chunks.parse(framed).index == number


@pytest.mark.parametrize("size", [0, 255, 256, 65535, 65536, limits.CHUNK_BYTES])
def test_data_of_every_width_comes_back_without_a_copy(size):
    framed = chunks.frame(DIGEST, 3, 7, bytes(size))

    assert framed == msgpack.packb([1, bytes.fromhex(DIGEST)[:16], 3, 7, bytes(size)])
    assert chunks.parse(framed).data.obj is framed
    assert len(framed) - size <= limits.CHUNK_FRAME_BYTES


@given(st.binary(max_size=64), st.booleans())
@example(b"", False)
@example(chunks.frame(DIGEST, 1, 2, b"abc")[20:-1], True)
def test_any_bytes_are_the_canonical_frame_or_refused(tail, plausible):
    payload = chunks.frame(DIGEST, 1, 2, b"")[:20] + tail if plausible else tail
    try:
        chunk = chunks.parse(payload)
    except DecodeError:
        return
    assert msgpack.packb([1, chunk.digest16, chunk.index, chunk.count, bytes(chunk.data)]) == payload


@pytest.mark.parametrize(
    "wide",
    [
        b"\xcc\x05" + b"\x02" + b"\xc4\x01x",  # 5 in two bytes
        b"\xcd\x00\x85" + b"\x02" + b"\xc4\x01x",  # 133 in three
        b"\xce\x00\x00\x01\x00" + b"\x02" + b"\xc4\x01x",  # 256 in five
        b"\x01" + b"\x02" + b"\xc5\x00\x01x",  # one byte of data, its length in two
        b"\x01" + b"\x02" + b"\xc6\x00\x00\x01\x00" + bytes(256),  # 256 bytes, their length in four
        b"\x01" + b"\x02" + b"\xc4\x01xy",  # a byte too many
        b"\xff" + b"\x02" + b"\xc4\x01x",  # a negative index
    ],
)
def test_another_spelling_of_a_frame_is_refused(wide):
    head = chunks.frame(DIGEST, 0, 0, b"")[:20]

    with pytest.raises(DecodeError):
        chunks.parse(head + wide)


@given(st.binary(max_size=5000), st.sampled_from([1024, 1500, 4096]))
@example(b"", 1024)
@example(bytes(2048), 1024)
def test_a_blob_is_the_sum_of_its_chunks(data, size):
    manifest = described(data, size)
    pieces = [bytes(chunks.cut(data, manifest, index)) for index in range(manifest.chunks)]

    assert b"".join(pieces) == data
    assert [len(piece) for piece in pieces] == [chunks.length(manifest, i) for i in range(manifest.chunks)]
    assert manifest.hashes == b"".join(hashlib.sha256(piece).digest()[:16] for piece in pieces)
    assert manifest.digest == hashlib.sha256(data).hexdigest()
    assert chunks.check(manifest) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"size": limits.BLOB_BYTES_MAX + 1}, Reason.TOO_LARGE),
        ({"chunk": limits.CHUNK_BYTES_MIN - 1}, Reason.MALFORMED),
        ({"chunk": limits.CHUNK_BYTES_MAX + 1}, Reason.MALFORMED),
        ({"hashes": bytes(16)}, Reason.MALFORMED),
        ({"size": 4097}, Reason.MALFORMED),
        ({"size": 0}, Reason.MALFORMED),
    ],
)
def test_a_manifest_that_cannot_be_is_refused_before_anything_is_allocated(change, reason):
    manifest = msgspec.structs.replace(described(bytes(4096)), **change)

    assert chunks.check(manifest) is reason
