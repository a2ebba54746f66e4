import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.compression import CODECS, RangeError, decode, encode
from common.errors import ConfigError, DecodeError

vectors = hnp.arrays(np.float32, st.integers(0, 50), elements=st.floats(width=32))
halves = hnp.arrays(np.float32, st.integers(0, 50), elements=st.floats(-65504, 65504, width=32))


@given(vectors)
def test_none_is_exact_to_the_bit(vector):
    assert decode("none", encode("none", vector), vector.size).tobytes() == vector.tobytes()


@given(halves)
def test_fp16_is_within_half_a_unit_in_the_last_place(vector):
    again = decode("fp16", encode("fp16", vector), vector.size)
    assert again.dtype == np.float32
    assert np.all(np.abs(again - vector) <= np.maximum(np.abs(vector) * 2.0**-11, 2.0**-25))


@pytest.mark.parametrize(
    ("codec", "spelled"), [("none", "0000803f000000c00000000000000080"), ("fp16", "003c00c000000080")]
)
def test_bytes_are_little_endian(codec, spelled):
    vector = np.array([1, -2, 0.0, -0.0], np.float32)
    assert bytes(encode(codec, vector)).hex() == spelled
    assert decode(codec, bytes.fromhex(spelled), 4).tobytes() == vector.tobytes()


def test_none_copies_nothing_on_the_way_out_or_in():
    vector = np.arange(5, dtype=np.float32)
    data = encode("none", vector)
    assert np.shares_memory(np.frombuffer(data, np.uint8), vector)
    assert np.shares_memory(decode("none", data, 5), vector)


@pytest.mark.parametrize("value", [65536, -65536, 65505, np.inf, -np.inf, np.nan])
def test_fp16_does_not_let_a_value_become_infinite(value):
    with pytest.raises(RangeError, match="fp16"):
        encode("fp16", np.array([0, value, 1], np.float32))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("more", [-1, 1])
def test_a_wrong_length_is_refused(codec, more):
    data = bytes(encode(codec, np.ones(3, np.float32)))
    with pytest.raises(DecodeError, match="3 elements"):
        decode(codec, data[:more] if more < 0 else data + b"\0", 3)


def test_unknown_codecs_are_refused_both_ways():
    with pytest.raises(ConfigError, match="none, fp16"):
        encode("zip", np.ones(1, np.float32))
    with pytest.raises(DecodeError, match="none, fp16"):
        decode("zip", b"", 0)
