"""Stories and one property of presence."""

from hypothesis import given
from hypothesis import strategies as st

from common.ids import Boot, ClientId
from common.machine import Tick
from common.messages import Presence
from common.presence import LEASE_S, Attendance, Beat, Came, Declared, Left

A = ClientId("a")
OLD, NEW = Boot("01" * 8), Boot("02" * 8)
ONLINE, OFFLINE, LOST = Presence.ONLINE, Presence.OFFLINE, Presence.LOST


def here(boot: Boot = NEW, at: float = 0) -> Attendance:
    attendance = Attendance()
    assert attendance.handle(Declared(A, ONLINE, boot), at) == (Came(A, boot),)
    return attendance


def test_a_will_takes_a_client_away():
    attendance = here()
    assert attendance.handle(Declared(A, LOST, NEW), 1) == (Left(A, "lost", NEW),)
    assert attendance.here() == ()


def test_a_late_will_cannot_kill_a_newer_start():
    attendance = here()
    assert attendance.handle(Declared(A, LOST, OLD), 1) == ()
    assert attendance.here() == (A,)


def test_a_heartbeat_overrides_a_will_of_the_same_boot_but_not_a_farewell():
    attendance = here()
    attendance.handle(Declared(A, LOST, NEW), 1)
    assert attendance.handle(Beat(A, NEW), 2) == (Came(A, NEW),)
    attendance.handle(Declared(A, OFFLINE, NEW), 3)
    assert attendance.handle(Beat(A, NEW), 4) == ()


def test_a_heartbeat_of_another_boot_or_of_a_stranger_says_nothing():
    attendance = here()
    attendance.handle(Declared(A, LOST, NEW), 1)
    assert attendance.handle(Beat(A, OLD), 2) == ()
    assert attendance.handle(Beat(ClientId("b"), NEW), 2) == ()


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
    assert attendance.handle(Declared(A, OFFLINE, NEW), 2) == ()
    assert attendance.handle(Beat(A, NEW), 3) == ()  # the farewell counts all the same


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
    st.just(Tick()),
)


@given(st.lists(st.tuples(heard, st.floats(0, 20)), max_size=30))
def test_came_and_left_tell_exactly_who_is_here_and_a_tick_moves_on(events):
    attendance, now, present, until = Attendance(), 0.0, False, 0.0
    for event, after in events:
        now += after
        for effect in attendance.handle(event, now):
            match effect:
                case Came():
                    present = True
                case Left(_, why, _):
                    assert present
                    assert why != "silent" or now >= until
                    present = False
        if isinstance(event, Declared | Beat) and present:
            until = attendance.wake_at()
        assert attendance.here() == ((A,) if present else ())
        if isinstance(event, Tick):
            assert attendance.wake_at() is None or attendance.wake_at() > now
