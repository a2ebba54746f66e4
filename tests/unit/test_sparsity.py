"""The largest elements: the right ones, in their places, and no place out of the vector."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.errors import DecodeError
from common.sparsity import TopK

vectors = hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-6e4, 6e4, width=16))


@given(vectors, st.sampled_from([0.01, 0.1, 0.5, 1.0]))
def test_what_is_kept_is_the_largest_and_the_rest_is_nothing(vector, share):
    spelling = TopK(share)
    data = spelling.encode(vector, 0)
    assert len(data) == spelling.size(vector.size)
    again = spelling.decode(data, vector.size)
    order = sorted(range(vector.size), key=lambda i: (-abs(vector[i]), i))[: spelling.kept(vector.size)]
    expected = np.zeros_like(vector)
    expected[order] = vector[order]
    assert np.array_equal(again, expected)


@pytest.mark.parametrize(
    ("share", "elements", "kept"), [(0.01, 1, 1), (0.01, 100, 1), (0.01, 101, 2), (1.0, 7, 7)]
)
def test_how_many_are_kept(share, elements, kept):
    assert TopK(share).kept(elements) == kept


@pytest.mark.parametrize("gaps", [[0, 0], [3, 1], [2, 2**32 - 1], [2**32 - 1, 2**32 - 1], [1, 0]])
def test_places_that_do_not_rise_or_lead_out_of_the_vector_are_refused(gaps):
    data = np.array(gaps, "<u4").tobytes() + np.ones(2, "<f2").tobytes()
    with pytest.raises(DecodeError, match="places"):
        TopK(0.5).decode(data, 4)


def test_the_last_place_is_one():
    data = np.array([2, 1], "<u4").tobytes() + np.array([5, -6], "<f2").tobytes()
    assert TopK(0.5).decode(data, 4).tolist() == [0, 0, 5, -6]
