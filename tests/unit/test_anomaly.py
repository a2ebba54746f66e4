"""What stands out in a round, and who is excluded for it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.ids import ClientId
from coordinator.anomaly import Measured, Quarantine, Scored, judge, measure
from coordinator.rows import Array

NAMES = tuple(ClientId(f"c{number}") for number in range(10))


def scored(scores, norms=None):
    """A round in which clients had these scores."""
    scores = np.array(scores, float)
    norms = np.ones(len(scores)) if norms is None else np.array(norms, float)
    measured = Measured(norms, np.zeros(len(scores)), np.ones(len(scores)))
    return judge(NAMES[: len(scores)], measured, scores)


def odd(judged):
    return {str(one.client) for one in judged if one.is_odd}


@given(st.integers(0, 2**32))
def test_lengths_and_cosines(seed):
    rng = np.random.default_rng(seed)
    rows, delta = rng.normal(size=(4, 5)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    rows[2] = 0
    found = measure(Array(rows), delta)
    assert found.distances == pytest.approx(np.linalg.norm(rows - delta, axis=1), rel=1e-5)
    assert found.norms == pytest.approx(np.linalg.norm(rows, axis=1), rel=1e-5)
    expected = [row @ delta / np.linalg.norm(row) / np.linalg.norm(delta) if row.any() else 0 for row in rows]
    assert found.cosines == pytest.approx(expected, abs=1e-5)
    assert not measure(Array(rows), np.zeros(5, np.float32)).cosines.any()


def test_one_that_is_far_from_the_others_stands_out():
    assert odd(scored([1, 1.1, 0.9, 1.05, 9])) == {"c4"}
    assert odd(scored([1, 1.1, 0.9, 1.05, np.inf])) == {"c4"}
    assert odd(scored([1] * 5, norms=[2, 2.1, 1.9, 50, 2])) == {"c3"}


def test_what_varies_as_the_others_do_does_not():
    assert not odd(scored([1, 2, 3, 4, 5]))
    assert not odd(scored([1, 1, 1, 1, 1.4]))  # all alike, and one hardly otherwise
    assert not odd(scored([0, 0, 0, 0]))
    assert not odd(scored([1, 1, 100]))  # of three nobody can tell


@given(st.lists(st.floats(0.9, 1.1), min_size=4, max_size=10))
def test_nobody_stands_out_among_those_who_are_nearly_alike(scores):
    assert not odd(scored(scores))


def rounds(quarantine, *told):
    """Let rounds pass: each a string of the clients' first letters, upper case where one stands out."""
    return [
        "".join(quarantine.take([Scored(ClientId(one.lower()), 1, 1, 1, one.isupper()) for one in names]))
        for names in told
    ]


def test_who_stands_out_again_and_again_is_excluded_and_begins_anew_after_it():
    assert rounds(Quarantine(3), "abC", "abC", "abC", "abC", "abC", "abC") == ["", "", "c", "", "", "c"]


def test_one_good_round_forgives_and_a_round_without_it_does_not():
    assert rounds(Quarantine(2), "aB", "ab", "aB", "a", "aB") == ["", "", "", "", "b"]


def test_two_at_once_are_sorted_and_a_client_with_two_updates_counts_once():
    assert rounds(Quarantine(2), "BBA", "BBA") == ["", "ab"]


def test_without_strikes_nobody_is_excluded():
    assert rounds(Quarantine(0), "aB", "aB", "aB") == ["", "", ""]


def test_where_the_aggregator_has_no_score_the_distance_is_one():
    measured = Measured(np.ones(5), np.ones(5), np.array([1, 1, 1, 1, 50.0]))
    judged = judge(NAMES[:5], measured, None)
    assert odd(judged) == {"c4"}
    assert judged[4].score == 50
