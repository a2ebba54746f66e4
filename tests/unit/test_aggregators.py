import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.errors import ConfigError
from coordinator.aggregators import Mean

rows = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 6), st.integers(1, 8)), elements=st.floats(-1e6, 1e6, width=32)
)


def mean_of(deltas, weights):
    mean = Mean(len(deltas[0]))
    for delta, weight in zip(deltas, weights, strict=True):
        mean.add(delta, weight)
    return mean.result()


@given(rows, st.data())
def test_it_is_the_weighted_mean(deltas, data):
    weights = data.draw(st.lists(st.floats(0.5, 1e4), min_size=len(deltas), max_size=len(deltas)))
    expected = np.average(deltas.astype(np.float64), axis=0, weights=weights)
    got = mean_of(deltas, weights)
    assert got.dtype == np.float32
    assert got == pytest.approx(expected, rel=1e-6, abs=1e-3)
    assert np.all(got >= deltas.min(0)) or got == pytest.approx(deltas.min(0), rel=1e-6)


@given(rows, st.floats(0.5, 1e4))
def test_one_row_or_equal_rows_give_that_row(deltas, weight):
    assert mean_of(deltas[:1], [weight]) == pytest.approx(deltas[0], rel=1e-6)
    assert mean_of([deltas[0]] * 4, [1, 2, 3, 4.5]) == pytest.approx(deltas[0], rel=1e-6)


def test_blocks_end_where_they_should():
    delta = np.arange(2**19 + 3, dtype=np.float32)
    assert np.array_equal(mean_of([delta, -3 * delta], [3, 1]), np.zeros_like(delta))
    assert np.array_equal(mean_of([delta, delta + 2], [1, 1]), delta + 1)


def test_small_summands_are_not_lost():
    small = np.array([1e-4], np.float32)
    deltas = [np.array([1e4], np.float32), *[small] * 1000, np.array([-1e4], np.float32)]
    assert mean_of(deltas, [1.0] * 1002)[0] == pytest.approx(0.1 / 1002, rel=1e-6)  # in float32 it would be 0


def test_the_result_is_the_same_to_the_bit_in_the_same_order_and_inputs_stay():
    deltas = np.random.default_rng(0).standard_normal((5, 1000)).astype(np.float32)
    kept = deltas.copy()
    assert mean_of(deltas, range(1, 6)).tobytes() == mean_of(deltas, range(1, 6)).tobytes()
    assert np.array_equal(deltas, kept)


def test_a_read_only_delta_is_fine_and_a_weight_of_nothing_counts_for_nothing():
    view = np.frombuffer(np.ones(3, np.float32).tobytes(), np.float32)
    assert np.array_equal(mean_of([view, view * 5], [2, 0]), view)


@pytest.mark.parametrize("weight", [-1, np.nan, np.inf])
def test_a_weight_that_is_none_is_refused(weight):
    with pytest.raises(ConfigError, match="weight"):
        Mean(2).add(np.ones(2, np.float32), weight)


def test_no_weight_at_all_has_no_mean():
    mean = Mean(2)
    with pytest.raises(ConfigError, match="weight"):
        mean.result()
    mean.add(np.ones(2, np.float32), 0)
    with pytest.raises(ConfigError, match="weight"):
        mean.result()


def test_memory_does_not_grow_with_clients():
    elements = 2**20
    delta = np.ones(elements, np.float32)
    tracemalloc.start()
    mean = Mean(elements)
    for _ in range(20):
        mean.add(delta, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.6 * 8 * elements  # the float64 sum, and two blocks
