"""Stories and one property of presence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.bus import LinkDown, LinkUp
from common.ids import Boot, ClientId
from common.limits import LOST_GRACE_S
from common.machine import Tick
from common.messages import Presence
from common.presence import LEASE_S, Attendance, Beat, Came, Declared, Left

A = ClientId("a")
OLD, NEW = Boot("01" * 8), Boot("02" * 8)
DOWN = LinkDown("broken", 1.0)
ONLINE, OFFLINE, LOST = Presence.ONLINE, Presence.OFFLINE, Presence.LOST


def here(boot: Boot = NEW, at: float = 0) -> Attendance:
    attendance = Attendance()
    assert attendance.handle(Declared(A, ONLINE, boot), at) == (Came(A, boot),)
    return attendance


def test_a_will_takes_a_client_away():
    attendance = here()
    assert attendance.handle(Declared(A, LOST, NEW), 1) == ()
    assert (attendance.here(), attendance.wake_at()) == ((A,), 1 + LOST_GRACE_S)
    assert attendance.handle(Tick(), 1 + LOST_GRACE_S) == (Left(A, "lost", NEW),)
    assert attendance.here() == ()


@pytest.mark.parametrize("sign", [Declared(A, ONLINE, NEW), Beat(A, NEW)])
def test_a_client_whose_link_is_back_at_once_was_never_away(sign):
    attendance = here()
    attendance.handle(Declared(A, LOST, NEW), 1)
    attendance.handle(sign, 2)
    assert attendance.wake_at() == 2 + LEASE_S
    assert attendance.handle(Tick(), 2 + LEASE_S) == (Left(A, "silent", NEW),)


def test_a_will_never_makes_a_lease_longer():
    attendance = here()
    attendance.handle(Declared(A, LOST, NEW), LEASE_S - 1)
    assert attendance.wake_at() == LEASE_S


def test_no_lease_ends_while_our_own_link_is_down():
    attendance = here()
    attendance.handle(Declared(ClientId("b"), ONLINE, NEW), 0)
    attendance.handle(Declared(A, LOST, NEW), 1)
    attendance.handle(DOWN, 2)
    assert attendance.wake_at() is None
    assert attendance.handle(Tick(), 500) == ()
    attendance.handle(LinkUp(2), 1000)
    assert attendance.wake_at() == 1000 + LOST_GRACE_S
    assert attendance.handle(Tick(), 1000 + LOST_GRACE_S) == (Left(A, "lost", NEW),)
    assert attendance.wake_at() == 1000 + LEASE_S


def test_a_late_will_cannot_kill_a_newer_start():
    attendance = here()
    assert attendance.handle(Declared(A, LOST, OLD), 1) == ()
    assert attendance.here() == (A,)


def test_a_heartbeat_overrides_a_will_of_the_same_boot_but_not_a_farewell():
    attendance = here()
    attendance.handle(Declared(A, LOST, NEW), 1)
    attendance.handle(Tick(), 1 + LOST_GRACE_S)
    assert attendance.handle(Beat(A, NEW), 7) == (Came(A, NEW),)
    attendance.handle(Declared(A, OFFLINE, NEW), 8)
    assert attendance.handle(Beat(A, NEW), 9) == ()


def test_a_heartbeat_of_another_boot_or_of_a_stranger_says_nothing():
    attendance = here()
    attendance.handle(Declared(A, LOST, NEW), 1)
    attendance.handle(Tick(), 1 + LOST_GRACE_S)
    assert attendance.handle(Beat(A, OLD), 7) == ()
    assert attendance.handle(Beat(ClientId("b"), NEW), 7) == ()


def test_silence_ends_the_lease_and_heartbeats_extend_it():
    attendance = here(at=0)
    assert attendance.wake_at() == LEASE_S
    attendance.handle(Beat(A, NEW), 10)
    assert attendance.handle(Tick(), LEASE_S) == ()
    assert attendance.handle(Tick(), 10 + LEASE_S) == (Left(A, "silent", NEW),)
    assert attendance.wake_at() is None


def test_a_second_online_is_passed_on_for_what_was_sent_may_be_lost():
    assert here().handle(Declared(A, ONLINE, NEW), 5) == (Came(A, NEW),)


def test_a_client_that_was_away_is_not_away_twice():
    attendance = here()
    attendance.handle(Declared(A, LOST, NEW), 1)
    attendance.handle(Tick(), 1 + LOST_GRACE_S)
    assert attendance.handle(Declared(A, OFFLINE, NEW), 7) == ()
    assert attendance.handle(Beat(A, NEW), 8) == ()  # the farewell counts all the same


def test_a_will_after_a_farewell_does_not_undo_it():
    attendance = here()
    attendance.handle(Declared(A, OFFLINE, NEW), 1)
    attendance.handle(Declared(A, LOST, NEW), 2)
    assert attendance.handle(Beat(A, NEW), 3) == ()


def test_leases_that_end_together_end_in_sorted_order():
    attendance = Attendance()
    for client in "cab":
        attendance.handle(Declared(ClientId(client), ONLINE, NEW), 0)
    assert [left.client for left in attendance.handle(Tick(), LEASE_S)] == ["a", "b", "c"]


heard = st.one_of(
    st.builds(Declared, st.just(A), st.sampled_from([ONLINE, OFFLINE, LOST]), st.sampled_from([OLD, NEW])),
    st.builds(Beat, st.just(A), st.sampled_from([OLD, NEW])),
    st.sampled_from([Tick(), DOWN, LinkUp(1)]),
)


class Told:
    """What the laws say of A's lease, kept by hand."""

    def __init__(self):
        self.boot, self.until, self.lost, self.cut_off, self.farewell = None, 0.0, False, False, False

    def hear(self, event, now, *, present):
        match event:
            case Declared(_, Presence.ONLINE, boot):
                self.boot, self.until, self.lost, self.farewell = boot, now + LEASE_S, False, False
            case Beat(_, boot) if boot == self.boot and not self.farewell:
                self.until, self.lost = now + LEASE_S, False
            case Declared(_, Presence.LOST, boot) if boot == self.boot and present:
                self.until, self.lost = min(self.until, now + LOST_GRACE_S), True
            case Declared(_, Presence.OFFLINE, boot) if boot == self.boot:
                self.farewell = True
            case LinkDown():
                self.cut_off = True
            case LinkUp():
                self.cut_off = False
                self.until = now + (LOST_GRACE_S if self.lost else LEASE_S)
            case _:
                pass


@given(st.lists(st.tuples(heard, st.floats(0, 20)), max_size=30))
def test_came_and_left_tell_exactly_who_is_here_and_nobody_is_away_too_soon(events):
    attendance, told, now, present = Attendance(), Told(), 0.0, False
    for event, after in events:
        now += after
        told.hear(event, now, present=present)
        for effect in attendance.handle(event, now):
            match effect:
                case Came():
                    present = True
                case Left(_, "offline", _):
                    assert present
                    present = False
                case Left(_, why, _):
                    assert present
                    assert not told.cut_off
                    assert now >= told.until
                    assert why == ("lost" if told.lost else "silent")
                    present = False
        assert attendance.here() == ((A,) if present else ())
        if isinstance(event, Tick):
            assert not present or told.cut_off or told.until > now
            assert attendance.wake_at() is None or attendance.wake_at() > now
