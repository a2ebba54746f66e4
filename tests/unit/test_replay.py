"""Each number passes once, against a model that keeps plain sets instead of a window of bits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import limits
from common.ids import Boot
from common.limits import REPLAY_WINDOW as WINDOW
from common.limits import STARTS_REMEMBERED
from common.replay import Replays

KID, OTHER = b"k" * 16, b"o" * 16


def boot(number: int) -> Boot:
    return Boot(f"{number:016x}")


class Plain:
    """What a window promises, spelled out: of one key, everything that came from each start that is remembered."""

    def __init__(self, window: int, starts: int) -> None:
        self.window, self.starts = window, starts
        self.came: dict[int, set[int]] = {}  # the start that spoke last is the last one
        self.above: dict[int, int] = {}
        self.floor = -1

    def is_new(self, start: int, number: int) -> bool:
        if start not in self.came:
            if number <= self.floor:
                return False
            self.came[start], self.above[start] = {number}, self.floor
            if len(self.came) > self.starts:
                oldest = next(iter(self.came))
                self.floor = max(self.floor, *self.came.pop(oldest))
            return True
        came = self.came[start] = self.came.pop(start)
        if number in came or number <= max(max(came) - self.window, self.above[start]):
            return False
        came.add(number)
        return True


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30)), max_size=60))
def test_a_window_lets_in_what_the_sets_let_in(steps):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(limits, "REPLAY_WINDOW", 8)
        patched.setattr(limits, "STARTS_REMEMBERED", 2)
        replays, plain, passed = Replays(), Plain(window=8, starts=2), []
        for start, number in steps:
            is_new = replays.is_new(KID, boot(start), number)
            assert is_new == plain.is_new(start, number)
            passed += [(start, number)] * is_new
    assert len(passed) == len(set(passed))


def test_the_window_reaches_back_as_far_as_it_says():
    replays = Replays()
    assert replays.is_new(KID, boot(1), WINDOW)
    assert replays.is_new(KID, boot(1), 1)
    assert not replays.is_new(KID, boot(1), 0)
    assert replays.is_new(KID, boot(1), 3 * WINDOW)  # nothing of the old window is left
    assert replays.is_new(KID, boot(1), 3 * WINDOW - 1)
    assert not replays.is_new(KID, boot(1), 2 * WINDOW)


def test_two_starts_of_one_key_do_not_disturb_each_other():
    replays = Replays()
    for number in range(3):
        assert replays.is_new(KID, boot(1), number)
        assert replays.is_new(KID, boot(2), number)
        assert not replays.is_new(KID, boot(1), number)


def test_the_numbers_of_one_key_say_nothing_of_another():
    replays = Replays()
    assert replays.is_new(KID, boot(1), 7)
    assert replays.is_new(OTHER, boot(1), 7)
    for start in range(2, 2 * STARTS_REMEMBERED):
        replays.is_new(KID, boot(start), 100 + start)
    assert not replays.is_new(OTHER, boot(1), 7)
    assert replays.is_new(OTHER, boot(99), 0)


def test_a_start_that_speaks_is_not_the_next_to_be_forgotten():
    replays = Replays()
    for start in range(STARTS_REMEMBERED):
        assert replays.is_new(KID, boot(start), start)
    assert replays.is_new(KID, boot(0), 50)
    assert replays.is_new(KID, boot(99), 60)  # now one too many
    assert replays.is_new(KID, boot(0), 49)
    assert not replays.is_new(KID, boot(1), 1)


def test_what_a_start_said_before_it_was_forgotten_is_no_news_when_it_speaks_again():
    """A message that was kept back lets it begin anew, and those before it must not follow."""
    replays = Replays()
    for number in (50, 100):
        assert replays.is_new(KID, boot(0), number)
    for start in range(1, STARTS_REMEMBERED + 1):
        assert replays.is_new(KID, boot(start), 100 + start)
    assert replays.is_new(KID, boot(0), 150)
    for number in (50, 100, 99):
        assert not replays.is_new(KID, boot(0), number)
    assert replays.is_new(KID, boot(0), 140)
