import subprocess
import sys
from contextlib import suppress

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DecodeError
from common.inflate import WINDOW_BYTES_MAX, deflate, frame_bytes_max, inflate
from support import frames

SIZE = 100_000
MEMORY_CONSTANT = WINDOW_BYTES_MAX + 2**20  # of a frame that is cut short, zstd keeps a window's worth


@given(st.binary(min_size=1, max_size=3000), st.integers(1, 60))
def test_what_was_deflated_comes_back_within_the_bound(data, repeat):
    frame = deflate(data * repeat)
    assert len(frame) <= frame_bytes_max(len(data) * repeat)
    assert inflate(frame, len(data) * repeat) == data * repeat
    assert inflate(memoryview(frame), len(data) * repeat) == data * repeat


def test_a_frame_says_its_size_and_has_a_checksum():
    frame = deflate(bytes(5 * 2**20))
    head = zstandard.get_frame_parameters(frame)
    assert (head.content_size, head.has_checksum, head.dict_id) == (5 * 2**20, True, 0)
    assert head.window_size <= 2**23
    with pytest.raises(DecodeError):
        inflate(frame[:-1] + bytes([frame[-1] ^ 1]), 5 * 2**20)


@pytest.mark.parametrize("size", [0, 1, 2**17 - 1, 2**17, 2**20 + 1])
def test_the_bound_is_that_of_zstd(size):
    noise = frames.noise(size)
    assert len(zstandard.ZstdCompressor(3).compress(noise)) <= frame_bytes_max(size) <= size * 1.01 + 64


@pytest.mark.parametrize("name", frames.BOMBS)
def test_every_bomb_is_refused(name):
    with pytest.raises(DecodeError):
        inflate(frames.BOMBS[name](SIZE), SIZE)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("declares a petabyte", "agreed on"),
        ("says no size", "agreed on"),
        ("holds more than agreed", "agreed on"),
        ("holds less than agreed", "agreed on"),
        ("has a huge window", "window"),
        ("needs a dictionary", "dictionary"),
        ("is to be skipped", "not a frame"),
        ("two frames", "unused data"),
        ("junk after it", "unused data"),
        ("is cut short", "not one frame"),
        ("is padded with empty blocks", "no frame of"),
    ],
)
def test_each_is_refused_for_what_it_is(name, why):
    with pytest.raises(DecodeError, match=why):
        inflate(frames.BOMBS[name](SIZE), SIZE)


def test_nothing_is_no_frame():
    for data in (b"", deflate(b""), deflate(b"") + b"junk"):
        with pytest.raises(DecodeError):
            inflate(data, 0)


@given(st.binary(max_size=200), st.booleans(), st.integers(0, 300))
def test_any_bytes_are_so_many_bytes_or_a_decode_error(data, plausible, size):
    head = deflate(bytes(size))[:9] if plausible else b""
    with suppress(DecodeError):
        assert len(inflate(head + data, size)) == size


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_flipped_byte_is_a_decode_error_or_changes_nothing(at, flip):
    data = frames.noise(300) * 5
    frame = bytearray(deflate(data))
    frame[at % len(frame)] ^= flip
    with suppress(DecodeError):
        assert inflate(bytes(frame), len(data)) == data


@pytest.mark.parametrize("name", [*frames.GOOD, *frames.BOMBS])
def test_a_frame_costs_its_size_and_a_constant(name):
    """Measured in a process of its own: zstd's own memory counts too."""
    size = 16 * 2**20
    frame = (frames.GOOD | frames.BOMBS)[name](size)
    program = f"from support import frames; print(frames.growth({size}))"
    process = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": ":".join(sys.path)},
        input=frame,
        capture_output=True,
        check=True,
    )
    grown = int(process.stdout)
    assert grown < MEMORY_CONSTANT + (size if name in frames.DECODED_BEFORE_REFUSED else 0)
    assert grown > size - MEMORY_CONSTANT or name not in frames.GOOD  # it is measured at all
