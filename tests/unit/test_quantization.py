"""Whole numbers with a scale for each block: unbiased, and within one step of the block."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.errors import DecodeError
from common.quantization import BLOCK, Quantized

vectors = hnp.arrays(
    np.float32, st.integers(1, 3 * BLOCK), elements=st.floats(-(2.0**100), 2.0**100, width=32)
)
both = pytest.mark.parametrize("bits", [8, 4])


@both
@given(vectors, st.integers(0, 2**64 - 1))
def test_each_element_is_within_one_step_of_its_block(bits, vector, seed):
    spelling = Quantized(bits)
    data = spelling.encode(vector, seed)
    assert len(data) == spelling.size(vector.size)
    again = spelling.decode(data, vector.size)
    for start in range(0, vector.size, BLOCK):
        block = vector[start : start + BLOCK].astype(float)
        step = np.abs(block).max() / spelling.top
        assert np.all(np.abs(again[start : start + BLOCK] - block) <= step * 1.001 + 1e-37)


@both
def test_the_mean_of_many_draws_is_the_vector(bits):
    vector = np.array([1, -1, 0.3, -0.01, 0.0, 0.777], np.float32)
    spelling = Quantized(bits)
    drawn = np.array([spelling.decode(spelling.encode(vector, seed), 6) for seed in range(10_000)], float)
    error = drawn.std(axis=0) / 100
    assert np.all(np.abs(drawn.mean(axis=0) - vector) <= 4 * error + 1e-6)
    assert error[2] > 0


def test_the_numbers_by_hand():
    data = Quantized(8).encode(np.array([-127, 64, 0, 127], np.float32), 1)
    assert data == np.array([1], "<f4").tobytes() + np.array([-127, 64, 0, 127], np.int8).tobytes()
    assert (
        Quantized(4).encode(np.array([-7, 3, 5], np.float32), 1)
        == np.array([1], "<f4").tobytes() + b"\x39\x05"
    )
    assert Quantized(4).decode(np.array([2], "<f4").tobytes() + b"\x39\x05", 3).tolist() == [-14, 6, 10]


@both
@pytest.mark.parametrize("scale", [0, -1, np.nan, np.inf])
def test_a_scale_that_is_none_is_refused(bits, scale):
    spelling = Quantized(bits)
    data = np.array([scale], "<f4").tobytes() + bytes(spelling.size(5) - 4)
    with pytest.raises(DecodeError, match="scale"):
        spelling.decode(data, 5)


@pytest.mark.parametrize(("bits", "numbers"), [(8, b"\x80"), (4, b"\x08")])
def test_a_number_out_of_range_is_refused(bits, numbers):
    with pytest.raises(DecodeError, match="below"):
        Quantized(bits).decode(np.array([1], "<f4").tobytes() + numbers, 1)


def test_what_stands_behind_the_last_number_is_refused():
    with pytest.raises(DecodeError, match="behind"):
        Quantized(4).decode(np.array([1], "<f4").tobytes() + b"\x10", 1)


@both
def test_a_vector_of_nothing_stays_one(bits):
    assert not Quantized(bits).decode(Quantized(bits).encode(np.zeros(300, np.float32), 0), 300).any()
