"""What a round brought, as numbers that a message can say."""

import pytest

from common.messages import Summary
from coordinator.results import Traffic, mean, total


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(1.0, 1), (4.0, 2)], 3.0),
        ([(None, 5), (2.0, 1)], 2.0),
        ([(None, 5)], None),
        ([], None),
        ([(1.0, 0)], None),
        ([(1e300, 2**40), (-1e300, 2**40)], 0.0),
        ([(1e300, 2**53), (1e300, 2**53)], 1e300),
    ],
)
def test_a_mean_is_weighted_and_finite_whatever_is_reported(pairs, expected):
    assert mean(pairs) == expected


@pytest.mark.parametrize("examples", range(1, 60))
def test_a_mean_of_numbers_within_their_bounds_is_one_that_can_be_said(examples):
    found = mean([(1e300, examples), (1e300, 46)])
    assert found is None or abs(found) <= 1e300


def test_what_rounds_sent_adds_up():
    rounds = [
        Summary(
            run="r", round=number, clients=1, outcome="committed", bytes_up=number, bytes_down=10, seconds=1.0
        )
        for number in (1, 2)
    ]
    assert total(rounds) == Traffic(3, 20)
    assert total([]) == Traffic(0, 0)
