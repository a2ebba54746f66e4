"""Stories of both machines, and a federation of them in bad weather: always complete, never a wrong byte."""

import random
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from common import chunks, limits
from common.chunks import Chunk
from common.ids import ClientId
from common.machine import Tick
from common.transfer import (
    Ask,
    ChunkCame,
    Complete,
    Expected,
    Finished,
    GiveUp,
    Gone,
    Keep,
    LinkBack,
    LinkLost,
    Offered,
    Receiver,
    SendChunk,
    Sender,
    Sent,
    Wanted,
    ranges,
)

A, B, C, D = (ClientId(name) for name in "abcd")
BLOB = bytes(random.Random(1).randbytes(5 * 1024 + 100))  # six chunks
MANIFEST = chunks.describe(BLOB, codec="f32", schema="0" * 64, chunk=1024)
ALL = MANIFEST.chunks
NOTHING = ()


class Least:
    """Chance that always draws the lower bound."""

    def uniform(self, a, b):
        return a


def chunk(index, manifest=MANIFEST, blob=BLOB):
    framed = chunks.frame(manifest.digest, index, manifest.chunks, chunks.cut(blob, manifest, index))
    return chunks.parse(framed)


def kept(index):
    return Keep(index, chunk(index).data)


@pytest.fixture
def asking():
    """Make a receiver that asked at 0."""
    machine = Receiver(MANIFEST, Least())
    assert machine.handle(Offered(), 0) == (Ask(NOTHING),)
    return machine


# --- the receiver ---


def test_a_receiver_asks_keeps_and_completes(asking):
    assert [asking.handle(ChunkCame(chunk(index)), 1) for index in (3, 0, 5, 1, 2)] == [
        (kept(index),) for index in (3, 0, 5, 1, 2)
    ]
    assert asking.handle(ChunkCame(chunk(4)), 2) == (kept(4), Complete())
    assert asking.wake_at() is None


def test_a_second_copy_is_harmless_also_after_the_end(asking):
    for index in range(ALL):
        asking.handle(ChunkCame(chunk(index)), 1)

    assert asking.handle(ChunkCame(chunk(0)), 2) == ()
    assert asking.handle(Offered(), 3) == ()
    assert asking.handle(LinkBack(), 3) == ()
    assert asking.repeated == 1


@pytest.mark.parametrize(
    "wrong",
    [
        Chunk(bytes(16), 0, ALL, chunk(0).data),  # of another blob
        Chunk(chunk(0).digest16, 1, ALL, chunk(0).data),  # in another's place
        Chunk(chunk(0).digest16, 0, ALL + 1, chunk(0).data),  # of another cut
        Chunk(chunk(0).digest16, ALL, ALL, chunk(0).data),  # behind the end
        Chunk(chunk(0).digest16, 0, ALL, chunk(0).data[:-1]),  # too short
        Chunk(chunk(0).digest16, 0, ALL, memoryview(bytes(chunk(0).data) + b"x")),  # too long
        Chunk(chunk(0).digest16, 0, ALL, memoryview(bytes(1024))),  # forged
    ],
)
def test_what_does_not_match_the_manifest_is_refused_and_counted(asking, wrong):
    assert asking.handle(ChunkCame(wrong), 1) == ()
    assert asking.refused == 1
    assert asking.wake_at() == limits.REPAIR_FIRST_S  # no progress


def test_silence_is_answered_by_asking_again_ever_more_seldom(asking):
    asking.handle(ChunkCame(chunk(1)), 0.5)
    times = []
    for _ in range(7):
        times.append(asking.wake_at())
        assert asking.handle(Tick(), times[-1]) == (Ask(((1, 1),)),)

    gaps = [round(later - sooner, 6) for sooner, later in pairwise(times)]
    assert times[0] == 3.5
    assert gaps == [6, 12, 24, 48, 60, 60]
    assert asking.handle(Tick(), times[-1]) == ()  # too early


def test_progress_calms_it_down_again(asking):
    asking.handle(Tick(), 3)
    asking.handle(Tick(), 9)
    asking.handle(ChunkCame(chunk(0)), 9.5)
    assert asking.wake_at() == 12.5


def test_a_long_way_is_given_time(asking):
    asking.handle(ChunkCame(chunk(0)), 2)
    assert asking.wake_at() == 2 + 3 * 2
    asking.handle(ChunkCame(chunk(1)), 7)  # the round trip is what the first chunk took
    assert asking.wake_at() == 7 + 3 * 2


def test_no_way_is_so_long_that_silence_goes_unnoticed(asking):
    asking.handle(ChunkCame(chunk(0)), 1000)
    assert asking.wake_at() == 1000 + limits.REPAIR_MAX_S


def test_nothing_is_asked_while_the_link_is_down_and_at_once_when_it_is_back(asking):
    assert asking.handle(LinkLost(), 1) == ()
    assert asking.wake_at() is None
    assert asking.handle(Offered(), 1) == ()
    asking.handle(ChunkCame(chunk(2)), 1)  # it was in the inbox
    assert asking.wake_at() is None
    assert asking.handle(LinkBack(), 50) == (Ask(((2, 2),)),)


def test_a_new_offer_is_asked_for_at_once(asking):
    asking.handle(ChunkCame(chunk(0)), 0.1)
    assert asking.handle(Offered(), 0.2) == (Ask(((0, 0),)),)


def test_a_restarted_receiver_wants_only_what_is_missing():
    machine = Receiver(MANIFEST, Least(), have=(0, 1, 2, 4))
    assert machine.handle(Offered(), 0) == (Ask(((0, 2), (4, 4))),)
    assert machine.handle(ChunkCame(chunk(3)), 1) == (kept(3),)


def test_a_restarted_receiver_that_has_everything_completes_at_once():
    assert Receiver(MANIFEST, Least(), have=range(ALL)).handle(Offered(), 0) == (Complete(),)


def test_an_empty_blob_is_complete_when_it_is_offered():
    manifest = chunks.describe(b"", codec="f32", schema="0" * 64)
    assert Receiver(manifest, Least()).handle(Offered(), 0) == (Complete(),)


def test_a_want_says_no_more_ranges_than_it_may():
    manifest = chunks.describe(bytes(200 * 1024), codec="f32", schema="0" * 64, chunk=1024)
    machine = Receiver(manifest, Least(), have=range(0, 200, 2))
    assert len(machine.have()) == limits.WANT_RANGES_MAX


def test_ranges_are_inclusive_and_ascending():
    assert ranges([]) == ()
    assert ranges([0, 1, 2, 5, 7, 8]) == ((0, 2), (5, 5), (7, 8))


# --- the sender ---


def serve(machine, first, now, delay=0.0):
    """Acknowledge everything, in order, and list what was sent."""
    sent, waiting = [], list(first)
    while waiting:
        effect = waiting.pop(0)
        sent.append((effect.index, effect.to))
        now += delay
        waiting += machine.handle(Sent(effect.index, effect.to), now)
    return sent


def test_one_receiver_is_served_at_once_within_the_window():
    machine = Sender(MANIFEST, [A])
    assert machine.handle(Wanted(A, ()), 0) == tuple(SendChunk(index, A) for index in range(4))
    assert machine.handle(Sent(0, A), 1) == (SendChunk(4, A),)
    assert machine.wake_at() is None


def test_it_waits_for_all_that_are_expected_and_sends_to_all_of_them_once():
    machine = Sender(MANIFEST, [A, B, C])
    assert machine.handle(Wanted(A, ()), 0) == ()
    assert machine.handle(Wanted(C, ()), 0.05) == ()
    assert machine.wake_at() == limits.WANT_COALESCE_S
    first = machine.handle(Wanted(B, ()), 0.1)
    assert serve(machine, first, 0.1) == [(index, None) for index in range(ALL)]


def test_it_does_not_wait_long_for_one_that_does_not_ask():
    machine = Sender(MANIFEST, [A, B, C])
    machine.handle(Wanted(A, ()), 0)
    machine.handle(Wanted(B, ()), 0.1)
    assert machine.handle(Tick(), 0.15) == ()
    assert serve(machine, machine.handle(Tick(), 0.2), 0.2) == [(index, None) for index in range(ALL)]
    assert machine.wake_at() is None


def test_it_does_not_wait_for_one_that_is_gone():
    machine = Sender(MANIFEST, [A, B])
    machine.handle(Wanted(A, ()), 0)
    assert machine.handle(Gone(B), 0.1)[0] == SendChunk(0, A)


def test_a_repair_goes_to_the_one_who_lacks_it():
    machine = Sender(MANIFEST, [A, B, C, D])
    for receiver in (A, B, C):
        machine.handle(Wanted(receiver, ()), 0)
    serve(machine, machine.handle(Wanted(D, ()), 0), 0)

    machine.handle(Wanted(B, ((0, 1), (3, 5))), 5)
    assert machine.handle(Tick(), 5.2) == (SendChunk(2, B),)


def test_a_repair_that_half_of_them_lack_goes_to_all():
    machine = Sender(MANIFEST, [A, B, C, D])
    for receiver in (A, B, C):
        machine.handle(Wanted(receiver, ()), 0)
    serve(machine, machine.handle(Wanted(D, ()), 0), 0)

    machine.handle(Wanted(B, ((0, 1), (3, 5))), 5)
    machine.handle(Wanted(C, ((0, 0), (3, 5))), 5.1)
    assert machine.handle(Tick(), 5.2) == (SendChunk(1, C), SendChunk(2, None))


def test_two_of_many_are_served_one_by_one():
    machine = Sender(MANIFEST)
    names = [ClientId(f"n{number}") for number in range(6)]
    for name in names:
        machine.handle(Wanted(name, ()), 0)
    serve(machine, machine.handle(Tick(), 1), 1)

    machine.handle(Wanted(names[0], ((0, 4),)), 5)
    machine.handle(Wanted(names[1], ((0, 4),)), 5)
    assert machine.handle(Tick(), 6) == (SendChunk(5, "n0"), SendChunk(5, "n1"))


def test_it_waits_again_for_those_that_are_expected_again_and_grants_them_a_new_budget():
    machine = Sender(MANIFEST, [A])
    answer = ()
    while GiveUp(A) not in answer:
        serve(machine, answer, 0)
        answer = machine.handle(Wanted(A, ()), 0)

    assert machine.handle(Expected(frozenset([A, B])), 9) == ()
    assert machine.handle(Wanted(A, ()), 9) == ()
    first = machine.handle(Wanted(B, ()), 9.1)
    assert serve(machine, first, 9.1) == [(index, None) for index in range(ALL)]


def test_without_expectations_it_always_waits_a_moment_for_others():
    machine = Sender(MANIFEST)
    assert machine.handle(Wanted(A, ()), 0) == ()
    assert machine.handle(Wanted(B, ()), 0.1) == ()
    assert machine.handle(Tick(), 0.2)[0] == SendChunk(0, None)


def test_it_forgets_the_want_of_one_that_is_gone():
    machine = Sender(MANIFEST, [A, B])
    machine.handle(Wanted(A, ()), 0)
    assert machine.handle(Gone(A), 0.1) == ()
    assert machine.wake_at() is None


def test_a_want_that_is_repeated_sends_nothing_twice_that_is_on_its_way_or_queued():
    machine = Sender(MANIFEST, [A])
    first = machine.handle(Wanted(A, ()), 0)
    assert machine.handle(Wanted(A, ()), 1) == ()
    assert serve(machine, first, 1) == [(index, A) for index in range(ALL)]


def test_a_late_comer_gets_what_it_missed_of_a_broadcast_and_hears_the_rest():
    machine = Sender(MANIFEST, [A, B])
    machine.handle(Wanted(A, ()), 0)
    first = machine.handle(Wanted(B, ()), 0)
    waiting = [*first[1:], *machine.handle(Sent(0, None), 0.1)]
    machine.handle(Wanted(C, ()), 0.2)
    machine.handle(Tick(), 0.4)

    assert serve(machine, waiting, 0.5) == [(1, None), (2, None), (3, None), (4, None), (5, None), (0, C)]


def test_a_new_want_voids_the_old_one():
    machine = Sender(MANIFEST, [A])
    first = machine.handle(Wanted(A, ()), 0)
    machine.handle(Wanted(A, ((0, 4),)), 1)
    assert serve(machine, first, 1) == [(0, A), (1, A), (2, A), (3, A), (5, A)]


def test_a_finished_receiver_is_sent_nothing_more():
    machine = Sender(MANIFEST, [A])
    first = machine.handle(Wanted(A, ()), 0)
    assert machine.handle(Finished(A), 1) == ()
    assert serve(machine, first, 1) == [(index, A) for index in range(4)]


def test_a_broadcast_ends_with_its_last_receiver():
    machine = Sender(MANIFEST, [A, B])
    machine.handle(Wanted(A, ()), 0)
    first = machine.handle(Wanted(B, ()), 0)
    machine.handle(Finished(A), 1)
    machine.handle(Gone(B), 1)
    assert serve(machine, first, 1) == [(index, None) for index in range(4)]


def test_the_window_grows_by_one_a_clean_trip_up_to_its_maximum():
    manifest = chunks.describe(bytes(99 * 1024), codec="f32", schema="0" * 64, chunk=1024)
    machine = Sender(manifest, [A])
    first = machine.handle(Wanted(A, ()), 0)
    for acknowledged in range(4):
        machine.handle(Sent(first[acknowledged].index, A), 0.1)
    assert machine.window == 5
    serve(machine, [SendChunk(4, A)], 0.2)
    assert machine.window == limits.WINDOW_CHUNKS_MAX


def test_a_slow_trip_shrinks_the_window_so_that_a_ping_comes_through():
    machine = Sender(MANIFEST, [A])
    first = machine.handle(Wanted(A, ()), 0)
    serve(machine, first, 0, delay=limits.KEEPALIVE_S / 6)
    assert machine.window == 2


def test_a_lost_link_halves_the_window_and_sends_nothing_again_unasked():
    machine = Sender(MANIFEST, [A])
    machine.handle(Wanted(A, ()), 0)
    assert machine.handle(LinkLost(), 1) == ()
    assert machine.handle(LinkLost(), 1) == ()
    assert machine.window == 2
    assert machine.handle(Sent(0, A), 1) == ()  # late, and of no consequence
    assert machine.handle(LinkBack(), 2) == (SendChunk(4, A), SendChunk(5, A))
    assert machine.handle(Wanted(A, ((0, 1),)), 2.1) == ()
    assert machine.handle(Sent(4, A), 2.2) == (SendChunk(2, A),)


def test_wants_are_no_amplifier():
    machine = Sender(MANIFEST, [A])
    sent, answer = 0, ()
    while GiveUp(A) not in answer:
        answer = machine.handle(Wanted(A, ()), sent)
        sent += len(serve(machine, [one for one in answer if one != GiveUp(A)], sent))

    assert sent <= (1 + limits.REPAIR_BUDGET) * max(ALL, limits.WINDOW_CHUNKS_MAX) + ALL
    assert machine.handle(Wanted(A, ()), 9999) == (GiveUp(A),)


def test_a_broadcast_counts_against_everybody_who_listens():
    machine = Sender(MANIFEST, [A, B])
    answer = ()
    for now in range(20):
        machine.handle(Wanted(A, ()), now)
        answer = machine.handle(Wanted(B, ()), now)
        if GiveUp(B) in answer:
            break
        serve(machine, answer, now)
    assert GiveUp(B) in answer


def test_a_want_with_ranges_beyond_the_end_costs_nothing():
    machine = Sender(MANIFEST, [A])
    assert machine.handle(Wanted(A, ((0, 2**53),)), 0) == ()
    assert machine.wake_at() is None


# --- both, in bad weather ---


class Federation(RuleBasedStateMachine):
    """One sender and three receivers over a bus that loses, repeats, reorders and forges."""

    names = st.sampled_from([A, B, C])

    @initialize(seed=st.integers(0, 2**16))
    def begin(self, seed):
        self.now = 0.0
        self.chance = random.Random(seed)
        self.sender = Sender(MANIFEST, [A, B, C])
        self.disk = {name: {} for name in (A, B, C)}
        self.receivers = {name: Receiver(MANIFEST, self.chance) for name in (A, B, C)}
        self.complete, self.up, self.sender_up = set(), {A, B, C}, True
        self.unacknowledged, self.air, self.wants = [], [], []
        for name in (A, B, C):
            self.receive(name, Offered())

    def receive(self, name, event):
        for effect in self.receivers[name].handle(event, self.now):
            match effect:
                case Keep(index, data):
                    assert bytes(data) == chunks.cut(BLOB, MANIFEST, index)
                    assert index not in self.disk[name]
                    self.disk[name][index] = bytes(data)
                case Ask(have):
                    self.wants.append((name, have))
                case Complete():
                    assert len(self.disk[name]) == ALL
                    self.complete.add(name)

    def send(self, event):
        for effect in self.sender.handle(event, self.now):
            if isinstance(effect, SendChunk):
                assert self.sender_up
                self.unacknowledged.append((effect.index, effect.to))
                self.air += [(name, effect.index) for name in self.up if effect.to in (None, name)]
            else:
                self.wants.append((effect.receiver, "gave up"))

    @precondition(lambda self: self.wants)
    @rule(lost=st.booleans(), data=st.data())
    def pass_a_want_on(self, lost, data):
        name, have = self.wants.pop(data.draw(st.integers(0, len(self.wants) - 1)))
        if not lost and self.sender_up and have != "gave up":
            self.send(Wanted(name, have))

    @precondition(lambda self: self.air)
    @rule(data=st.data(), fate=st.sampled_from(["comes", "comes", "comes", "twice", "lost", "forged"]))
    def let_a_chunk_come(self, data, fate):
        name, index = self.air.pop(data.draw(st.integers(0, len(self.air) - 1)))
        if name not in self.up or fate == "lost":
            return
        true = chunk(index)
        forged = Chunk(true.digest16, index, ALL, memoryview(bytes(len(true.data))))
        for _ in range(2 if fate == "twice" else 1):
            self.receive(name, ChunkCame(forged if fate == "forged" else true))

    @precondition(lambda self: self.unacknowledged and self.sender_up)
    @rule(data=st.data())
    def acknowledge(self, data):
        slot = self.unacknowledged.pop(data.draw(st.integers(0, len(self.unacknowledged) - 1)))
        self.send(Sent(*slot))

    @rule(seconds=st.floats(0.01, 70))
    def time_passes(self, seconds):
        self.now += seconds
        self.tick()

    def tick(self):
        for name, machine in self.receivers.items():
            if machine.wake_at() is not None and machine.wake_at() <= self.now:
                self.receive(name, Tick())
                assert machine.wake_at() is None or machine.wake_at() > self.now
        if self.sender.wake_at() is not None and self.sender.wake_at() <= self.now:
            self.send(Tick())
            assert self.sender.wake_at() is None

    @rule(name=names)
    def a_receiver_loses_its_link(self, name):
        if name in self.up:
            self.up.discard(name)
            self.air = [one for one in self.air if one[0] != name]
            self.receive(name, LinkLost())

    @rule(name=names)
    def a_receiver_is_back(self, name):
        if name not in self.up:
            self.up.add(name)
            self.receive(name, LinkBack())

    @rule()
    def the_sender_loses_its_link(self):
        if self.sender_up:
            self.sender_up = False
            self.unacknowledged.clear()
            self.send(LinkLost())

    @rule()
    def the_sender_is_back(self):
        if not self.sender_up:
            self.sender_up = True
            self.send(LinkBack())

    @rule(name=names, forgotten=st.integers(0, 2))
    def a_receiver_restarts(self, name, forgotten):
        if name in self.complete:
            return
        for index in list(self.disk[name])[:forgotten]:
            del self.disk[name][index]  # its bit was not on disk yet
        self.receivers[name] = Receiver(MANIFEST, self.chance, sorted(self.disk[name]))
        self.up.add(name)
        self.receive(name, Offered())

    @rule(name=names)
    def a_receiver_says_that_it_is_done(self, name):
        if name in self.complete and self.sender_up:
            self.send(Finished(name))

    @invariant()
    def no_more_is_under_way_than_the_window(self):
        if hasattr(self, "sender"):
            assert len(self.sender._under_way) <= limits.WINDOW_CHUNKS_MAX

    def teardown(self):
        """When the weather clears, everybody gets everything: within its budget, if need be from a new sender."""
        if not hasattr(self, "sender"):
            return
        self.the_sender_is_back()
        for name in (A, B, C):
            self.a_receiver_is_back(name)
        for _ in range(4 * int(limits.REPAIR_MAX_S)):
            for name, have in self.wants:
                if have == "gave up":
                    self.sender = Sender(MANIFEST)
                    self.unacknowledged.clear()
                else:
                    self.send(Wanted(name, have))
            self.wants = []
            air, self.air = self.air, []
            for name, index in air:
                self.receive(name, ChunkCame(chunk(index)))
            slots, self.unacknowledged = self.unacknowledged, []
            for slot in slots:
                self.send(Sent(*slot))
            self.now += 1
            self.tick()
            if self.complete == {A, B, C}:
                break
        assert self.complete == {A, B, C}
        for name in (A, B, C):
            assert b"".join(self.disk[name][index] for index in range(ALL)) == BLOB


TestFederation = Federation.TestCase
TestFederation.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
