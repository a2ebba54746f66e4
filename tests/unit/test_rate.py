"""Token buckets, against the other way to say the same: when was the next one due at the earliest?"""

from hypothesis import given
from hypothesis import strategies as st

from common.rate import Rates

PER_S, BURST = 4.0, 3.0


def due(times: list[float]) -> list[bool]:
    """Say who passes by the virtual scheduling algorithm (ITU-T I.371, the generic cell rate algorithm)."""
    every, tolerance = 1 / PER_S, (BURST - 1) / PER_S
    expected, passed = 0.0, []
    for now in times:
        passed.append(now >= expected - tolerance)
        if passed[-1]:
            expected = max(now, expected) + every
    return passed


# Eighths of a second: the sums are exact
times = st.lists(st.integers(0, 40).map(lambda eighths: eighths / 8), max_size=40).map(sorted)


@given(times)
def test_a_bucket_lets_through_what_the_other_algorithm_lets_through(at):
    rates = Rates(PER_S, BURST)
    assert [rates.allow("a", now) for now in at] == due(at)


@given(times, st.integers(0, 40), st.integers(0, 40))
def test_no_stretch_of_time_sees_more_than_the_burst_and_the_rate(at, first, length):
    rates = Rates(PER_S, BURST)
    passed = [now for now in at if rates.allow("a", now)]
    start, end = first / 8, (first + length) / 8
    assert sum(start <= now <= end for now in passed) <= BURST + (end - start) * PER_S


def test_each_name_has_a_bucket_of_its_own():
    rates = Rates(1.0, 1.0)
    assert rates.allow("a", 0)
    assert not rates.allow("a", 0)
    assert rates.allow("b", 0)


def test_what_is_refused_costs_nothing():
    rates = Rates(1.0, 1.0)
    assert rates.allow("a", 0)
    for now in (0.25, 0.5, 0.75):
        assert not rates.allow("a", now)
    assert rates.allow("a", 1)


def test_full_buckets_are_forgotten_and_empty_ones_are_not():
    rates = Rates(1.0, 1.0, names_max=2)
    assert rates.allow("calm", 0)
    assert rates.allow("busy", 10)
    assert rates.allow("next", 10)
    assert sorted(rates._buckets) == ["busy", "next"]
    assert not rates.allow("busy", 10)
    assert rates.allow("calm", 10)  # as one that never came
