"""Stories of a run: rounds in order, deadlines, stop rules."""

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from common.bus import LinkDown, LinkUp
from common.ids import ClientId, Digest, sha256
from common.machine import Tick
from common.messages import Reason
from coordinator.cohort import fair
from coordinator.round import (
    Assign,
    ClientCame,
    ClientDeclined,
    ClientLeft,
    Counted,
    Expelled,
    Fetch,
    Forgo,
    Judge,
    Merge,
    Merged,
    MergeFailed,
    Offered,
    Received,
    Standing,
    Unfetched,
)
from coordinator.round import Phase as RoundPhase
from coordinator.run import (
    RELINK_S,
    CloseRound,
    EndRun,
    Evaluated,
    Gather,
    Late,
    OpenRound,
    Phase,
    Remember,
    Resumed,
    Revoke,
    RunMachine,
    RunPolicy,
    Snapshot,
    Started,
    StopAsked,
)
from support.updates import BASE, update

A, B = ClientId("a"), ClientId("b")


class Run(RunMachine):
    """A run whose effects are told without what it writes down on the way."""

    def handle(self, event, now):
        return tuple(effect for effect in super().handle(event, now) if not isinstance(effect, Remember))


def model(number: int) -> Digest:
    return sha256(f"model {number}".encode())


def run_of(rounds: int = 2, **policy: object) -> Run:
    """A run that waits for two clients; both are here."""
    machine = Run(RunPolicy(seed=0, wait_for=2, **policy))
    machine.handle(Started(BASE, rounds), 0)
    machine.handle(ClientCame(A), 0)
    machine.handle(ClientCame(B), 0)
    return machine


def answer(machine: Run, client: str, at: float) -> tuple[object, ...]:
    said = update(client, number=machine.number, base=machine.base)
    machine.handle(Offered(said), at)
    return machine.handle(Received(said.client, Digest(said.delta.digest)), at)


def play(machine: Run, at: float) -> tuple[object, ...]:
    """Let both clients answer and the merge succeed."""
    answer(machine, "a", at)
    assert isinstance(answer(machine, "b", at)[-1], Merge)
    return machine.handle(Merged(model(machine.number)), at)


def test_a_run_waits_for_its_clients_then_opens_a_round():
    machine = Run(RunPolicy(seed=0, wait_for=2))
    assert machine.awaited() == 0
    assert machine.handle(Started(BASE, 1), 0) == (Gather(here=0, needed=2),)
    assert machine.handle(ClientCame(A), 1) == ()
    assert machine.awaited() == 2
    effects = machine.handle(ClientCame(B), 2)
    assert machine.awaited() == 0
    assert effects == (OpenRound(1, BASE, (A, B), 600.0), Assign(A), Assign(B))


def test_clients_that_came_before_the_start_count():
    machine = Run(RunPolicy(seed=0, wait_for=1))
    assert machine.handle(ClientCame(A), 0) == ()
    assert machine.handle(Started(BASE, 1), 1)[0] == OpenRound(1, BASE, (A,), 600.0)


def test_rounds_follow_one_another_each_from_the_model_before_it():
    machine = run_of(rounds=2)
    (closed,) = play(machine, 3)
    assert isinstance(closed, CloseRound)
    assert (closed.number, closed.committed, closed.model, closed.seconds) == (1, True, model(1), 3)
    assert [one.update.client for one in closed.updates] == ["a", "b"]
    opened = machine.handle(Evaluated(), 4)[0]
    assert (opened.number, opened.base) == (2, model(1))
    play(machine, 6)
    assert machine.handle(Evaluated(), 7) == (EndRun(model(2), 2, completed=True, why=""),)
    assert machine.phase is Phase.OVER


def test_the_deadline_follows_the_slowest_answer_by_patience_never_below_its_floor():
    machine = run_of(rounds=3, patience=4.0, first_deadline_s=60)
    play(machine, 20)
    assert machine.handle(Evaluated(), 20)[0].deadline_s == 80
    play(machine, 21)
    assert machine.handle(Evaluated(), 21)[0].deadline_s == 10


def test_no_deadline_passes_while_our_own_link_is_down():
    machine = run_of(patience=4.0, first_deadline_s=60)
    machine.handle(LinkDown("broken", 1.0), 20)
    machine.handle(LinkDown("still broken", 2.0), 25)
    assert (machine.wake_at(), machine.due_at()) == (None, 60)
    assert machine.handle(Tick(), 500) == ()
    machine.handle(LinkUp(2), 1020)
    assert machine.wake_at() == 1060
    machine.handle(LinkUp(3), 1030)
    assert machine.wake_at() == 1060


def test_what_was_answered_before_an_outage_took_as_long_as_it_did():
    machine = run_of(patience=2.0, first_deadline_s=600)
    answer(machine, "a", 40)
    machine.handle(LinkDown("broken", 1.0), 41)
    machine.handle(LinkUp(2), 2041)
    machine.handle(ClientDeclined(B, 1, Reason.DIVERGED), 2042)
    machine.handle(Merged(model(1)), 2043)
    assert machine.slowest_s == 40
    assert machine.handle(Evaluated(), 2043)[0].deadline_s == 80


def test_after_an_outage_there_is_time_for_what_could_not_come():
    machine = run_of(first_deadline_s=60)
    machine.handle(LinkDown("broken", 1.0), 59.5)
    machine.handle(LinkUp(2), 1000)
    assert machine.wake_at() == 1000 + RELINK_S


def test_a_run_that_is_to_stop_does_not_wait_for_a_link_that_may_never_be_back():
    machine = run_of(first_deadline_s=60)
    machine.handle(LinkDown("broken", 1.0), 20)
    machine.handle(StopAsked(), 21)
    assert machine.wake_at() == 60
    assert machine.handle(Tick(), 60)[-1].committed is False
    assert isinstance(machine.handle(Evaluated(), 61)[-1], EndRun)


def test_a_round_that_opens_while_our_own_link_is_down_has_all_its_time_from_the_link_on():
    machine = run_of(rounds=2, first_deadline_s=60)
    answer(machine, "a", 5)
    answer(machine, "b", 5)
    machine.handle(LinkDown("broken", 1.0), 6)
    machine.handle(Merged(model(1)), 7)
    machine.handle(Evaluated(), 8)
    machine.handle(LinkUp(2), 100)
    assert machine.wake_at() == 100 + 15


def test_a_round_that_somebody_missed_never_shortens_the_deadline():
    machine = run_of(rounds=4, patience=2.0, first_deadline_s=60, quorum_share=0.5)
    answer(machine, "a", 2)
    machine.handle(Tick(), 60)
    machine.handle(Merged(model(1)), 61)
    assert machine.handle(Evaluated(), 61)[0].deadline_s == 60  # nothing was observed of b
    play(machine, 61 + 20)
    assert machine.handle(Evaluated(), 81)[0].deadline_s == 40
    answer(machine, "a", 82)
    machine.handle(Tick(), 121)
    machine.handle(Merged(model(3)), 121)
    assert machine.handle(Evaluated(), 121)[0].deadline_s == 40


def test_only_what_a_client_offered_itself_is_awaited_from_it():
    machine = run_of()
    machine.handle(Offered(update("a")), 1)
    assert machine.awaits(A, update("a").delta.digest)
    assert not machine.awaits(A, update("b").delta.digest)
    assert not machine.awaits(B, update("a").delta.digest)


def test_a_stop_lets_the_round_end_and_then_the_run():
    machine = run_of(rounds=5)
    assert machine.handle(StopAsked(), 1) == ()
    play(machine, 3)
    assert machine.handle(Evaluated(), 4) == (EndRun(model(1), 1, completed=False, why="stopped"),)


def test_a_stop_at_once_gives_the_round_up():
    machine = run_of(rounds=5)
    closed = machine.handle(StopAsked(now=True), 1)[-1]
    assert isinstance(closed, CloseRound)
    assert (closed.committed, closed.model) == (False, BASE)
    assert machine.handle(Evaluated(), 2) == (EndRun(BASE, 0, completed=False, why="stopped"),)


def test_a_stop_while_waiting_for_clients_ends_the_run():
    machine = Run(RunPolicy(seed=0, wait_for=2))
    machine.handle(Started(BASE, 1), 0)
    assert machine.handle(StopAsked(), 1) == (EndRun(BASE, 0, completed=False, why="stopped"),)


def test_an_abandoned_round_is_tried_again_under_a_new_number_and_three_in_a_row_end_the_run():
    machine = run_of(rounds=1, quorum_share=1.0)
    for number in (1, 2, 3):
        assert machine.number == number
        machine.handle(ClientDeclined(A, machine.number, Reason.DIVERGED), number)
        assert isinstance(
            machine.handle(ClientDeclined(B, machine.number, Reason.DIVERGED), number)[-1], CloseRound
        )
        effects = machine.handle(Evaluated(), number)
    (ended,) = effects
    assert isinstance(ended, EndRun)
    assert not ended.completed
    assert "3 rounds in a row" in ended.why


def fail(machine: Run, at: float) -> tuple[object, ...]:
    """Let both clients decline; returns what follows the evaluation."""
    machine.handle(ClientDeclined(A, machine.number, Reason.DIVERGED), at)
    machine.handle(ClientDeclined(B, machine.number, Reason.DIVERGED), at)
    return machine.handle(Evaluated(), at)


def test_only_abandoned_rounds_in_a_row_end_the_run():
    machine = run_of(rounds=9, quorum_share=1.0)
    for at in (1, 2):
        assert isinstance(fail(machine, at)[0], OpenRound)
    play(machine, 3)
    machine.handle(Evaluated(), 3)
    for at in (4, 5):
        assert isinstance(fail(machine, at)[0], OpenRound)


def test_a_new_run_inherits_neither_the_stop_nor_the_failures_of_the_last_one():
    machine = run_of(rounds=9, quorum_share=1.0)
    fail(machine, 1)
    machine.handle(StopAsked(), 2)
    assert isinstance(fail(machine, 2)[0], EndRun)
    machine.handle(Started(BASE, 9), 3)
    for at in (4, 5):
        assert isinstance(fail(machine, at)[0], OpenRound)


def test_the_first_round_of_every_run_waits_for_all_its_clients():
    machine = run_of(rounds=1)
    play(machine, 3)
    machine.handle(Evaluated(), 4)
    machine.handle(ClientLeft(A), 5)
    assert machine.handle(Started(model(1), 1), 6) == (Gather(here=1, needed=2),)


def test_an_abandoned_round_tells_who_was_refused_and_passes_no_update_on():
    machine = run_of(quorum_share=1.0)
    answer(machine, "a", 1)
    closed = machine.handle(ClientDeclined(B, machine.number, Reason.DIVERGED), 2)[-1]
    assert (closed.committed, closed.updates, closed.refusals) == (False, (), ((B, Reason.DIVERGED),))


def test_a_round_without_answers_leaves_the_deadline_as_it_was():
    machine = run_of(rounds=3, quorum_share=1.0)
    play(machine, 20)
    machine.handle(Evaluated(), 20)
    assert fail(machine, 21)[0].deadline_s == 60


def test_a_stop_in_the_last_round_takes_nothing_from_a_run_that_is_complete():
    machine = run_of(rounds=1)
    machine.handle(StopAsked(), 1)
    play(machine, 3)
    assert machine.handle(Evaluated(), 4) == (EndRun(model(1), 1, completed=True, why=""),)


def test_an_evaluation_that_nobody_waits_for_changes_nothing():
    machine = run_of()
    assert machine.handle(Evaluated(), 1) == ()
    assert machine.phase is Phase.ROUND


def test_after_the_first_round_a_quorum_is_enough():
    machine = run_of(rounds=2)
    play(machine, 3)
    machine.handle(ClientLeft(A), 3)
    assert machine.handle(Evaluated(), 4) == (OpenRound(2, model(1), (B,), 10.0), Assign(B))


def test_a_round_opens_only_when_a_quorum_is_back():
    machine = run_of(rounds=2, quorum_share=1.0)
    play(machine, 3)
    machine.handle(ClientLeft(A), 3)
    assert machine.handle(Evaluated(), 4) == (Gather(here=1, needed=2),)
    assert isinstance(machine.handle(ClientCame(A), 5)[0], OpenRound)


def test_the_deadline_of_the_open_round_wakes_the_run():
    machine = run_of(rounds=2, first_deadline_s=30, quorum_share=0.5)
    answer(machine, "a", 2)
    assert machine.wake_at() == 30
    assert isinstance(machine.handle(Tick(), 30)[-1], Merge)


def test_an_update_after_the_round_is_told_that_it_is_late():
    machine = run_of(rounds=2, quorum_share=0.5, first_deadline_s=30, late=Late.REFUSE)
    answer(machine, "a", 2)
    machine.handle(Tick(), 30)
    machine.handle(Merged(model(1)), 31)
    (judge,) = machine.handle(Offered(update("b")), 32)
    assert isinstance(judge, Judge)
    assert judge.refused is Reason.TOO_LATE


def test_a_second_run_goes_on_with_new_round_numbers():
    machine = run_of(rounds=1)
    play(machine, 3)
    machine.handle(Evaluated(), 4)
    opened = machine.handle(Started(model(1), 1), 5)[0]
    assert opened.number == 2
    assert machine.handle(Started(model(1), 1), 6) == ()  # one run at a time


@pytest.mark.parametrize(("share", "asked", "quorum"), [(0.5, 3, 2), (0.5, 2, 1), (1.0, 3, 3), (0.1, 3, 1)])
def test_the_quorum_is_a_share_of_the_cohort_rounded_up(share, asked, quorum):
    machine = Run(RunPolicy(seed=0, wait_for=asked, quorum_share=share))
    machine.handle(Started(BASE, 1), 0)
    for index in range(asked):
        machine.handle(ClientCame(ClientId(f"c{index}")), 0)
    assert machine.round.policy.quorum == quorum


def test_progress_counts_what_was_asked_and_taken():
    machine = run_of()
    answer(machine, "a", 1)
    assert machine.progress() == ("reporting", 2, 1)


@pytest.mark.parametrize("resumes", [False, True])
def test_rounds_show_who_was_asked_and_what_they_have_and_the_next_cohort_follows_from_it(resumes):
    machine = Run(RunPolicy(seed=0, wait_for=2, cohort_size=1, selection=fair()))
    machine.handle(Started(BASE, 9), 0)
    machine.handle(ClientCame(A), 0)
    drawn = []
    opened = machine.handle(ClientCame(B), 0)[0]
    for number in range(1, 5):
        (client,) = opened.cohort
        drawn.append(client)
        answer(machine, client, number)
        machine.handle(Merged(model(number)), number)
        if resumes:
            again = Run(machine.policy)
            opened = again.handle(Resumed(machine.snapshot(), (), (), (), (A, B)), number)[0]
            machine = again
        else:
            opened = machine.handle(Evaluated(), number)[0]
    assert sorted(drawn[:2]) == sorted(drawn[2:]) == [A, B]
    assert machine.draws.records[A].examples == update("a").examples
    assert machine.draws.records[A].asked + machine.draws.records[B].asked == 5


def test_a_late_update_counts_in_the_next_merge_with_its_staleness():
    machine = run_of(rounds=2, quorum_share=0.5, first_deadline_s=30)
    answer(machine, "a", 2)
    machine.handle(Tick(), 30)
    machine.handle(Merged(model(1)), 31)
    late = Offered(update("b"))
    assert machine.handle(late, 32) == (Fetch(late),)
    assert machine.handle(Received(B, late.delta), 33) == (Judge(late, late=True),)
    assert machine.handle(late, 34) == (Judge(late, late=True),)
    machine.handle(Evaluated(), 35)
    answer(machine, "a", 36)
    (merge,) = [e for e in answer(machine, "b", 37) if isinstance(e, Merge)]
    assert [(one.update.client, one.update.round, one.staleness) for one in merge.updates] == [
        ("a", 2, 0),
        ("b", 1, 1),
        ("b", 2, 0),
    ]


def test_what_an_abandoned_round_took_counts_in_the_next_try():
    machine = run_of(rounds=1, quorum_share=1, first_deadline_s=30)
    taken = Offered(update("a"))
    answer(machine, "a", 2)
    machine.handle(Tick(), 30)
    effects = machine.handle(Evaluated(), 31)
    assert [e.client for e in effects if isinstance(e, Assign)] == ["b"]
    assert machine.handle(taken, 32) == (Judge(taken),)
    (merge,) = [e for e in answer(machine, "b", 33) if isinstance(e, Merge)]
    assert [(one.update.client, one.update.round) for one in merge.updates] == [("a", 1), ("b", 2)]


def test_what_was_taken_and_never_merged_is_revoked_at_the_end():
    machine = run_of(rounds=2, quorum_share=1)
    answer(machine, "a", 2)
    machine.handle(StopAsked(now=True), 3)
    assert machine.handle(Evaluated(), 4) == (
        Revoke(Offered(update("a")), Reason.RUN_OVER),
        EndRun(BASE, 0, completed=False, why="stopped"),
    )


def resumed(
    machine: Run, *taken: Offered, refused=(), declined=(), stopping=False
) -> tuple[Run, tuple[object, ...]]:
    """The same run in another process: what was written down, and the updates that were taken."""
    again = Run(machine.policy)
    event = Resumed(machine.snapshot(), taken, refused, declined, tuple(sorted(machine.here)), stopping)
    return again, again.handle(event, 100)


def test_a_resumed_round_asks_only_those_whose_answer_is_not_known():
    machine = run_of()
    answer(machine, "a", 2)
    again, effects = resumed(machine, Offered(update("a")))
    assert effects == (OpenRound(1, BASE, (A, B), 600.0), Assign(B))
    (merge,) = [e for e in answer(again, "b", 101) if isinstance(e, Merge)]
    assert [one.update.client for one in merge.updates] == ["a", "b"]


def test_a_resumed_merge_takes_the_same_updates_though_another_one_came():
    machine = run_of(quorum_share=0.5, first_deadline_s=30)
    answer(machine, "a", 2)
    machine.handle(Tick(), 30)
    again, effects = resumed(machine, Offered(update("a")))
    assert effects == (OpenRound(1, BASE, (A, B), 30), Merge((Counted(update("a")),)))
    again.handle(Merged(model(1)), 101)
    assert again.base == model(1)


def test_what_came_late_while_a_merge_was_under_way_counts_in_the_next_round_of_a_resumed_run():
    machine = run_of(quorum_share=0.5, first_deadline_s=30)
    answer(machine, "a", 2)
    machine.handle(Tick(), 30)
    late = update("b")
    machine.handle(Offered(late), 31)
    (judged,) = machine.handle(Received(B, late.delta.digest), 31)
    assert judged.late
    again, _ = resumed(machine, Offered(update("a")), Offered(late))
    again.handle(Merged(model(1)), 101)
    again.handle(Evaluated(), 102)
    answer(again, "a", 103)
    (merge,) = [effect for effect in answer(again, "b", 104) if isinstance(effect, Merge)]
    assert [(one.update.base, one.staleness) for one in merge.updates if one.update.client == "b"] == [
        (BASE, 1),
        (model(1), 0),
    ]


def test_a_resumed_run_keeps_two_updates_of_one_client_apart_though_their_bytes_are_the_same():
    machine = run_of(quorum_share=0.5, first_deadline_s=30)
    answer(machine, "a", 2)
    machine.handle(Tick(), 30)
    machine.handle(Merged(model(1)), 31)
    machine.handle(Evaluated(), 32)
    late, fresh = (
        Offered(update("b", number=number, base=base)) for number, base in ((1, BASE), (2, model(1)))
    )
    assert late.delta == fresh.delta
    for offer in (late, fresh):
        machine.handle(offer, 33)
        machine.handle(Received(B, offer.delta), 33)
    again, _ = resumed(machine, late, fresh)
    (merge,) = [effect for effect in answer(again, "a", 101) if isinstance(effect, Merge)]
    assert [one.update.base for one in merge.updates] == [model(1), BASE, model(1)]
    assert resumed(again, late, fresh, Offered(update("a", number=2, base=model(1))))[1][-1] == merge


def test_who_was_refused_before_a_restart_is_asked_for_nothing_more_from_that_model():
    machine = run_of(quorum_share=1, first_deadline_s=30)
    offer = Offered(update("a"))
    machine.handle(offer, 1)
    machine.handle(Received(A, offer.delta, Reason.NOT_FINITE), 2)
    again, effects = resumed(machine, refused=((A, Reason.NOT_FINITE),))
    assert effects == (OpenRound(1, BASE, (A, B), 30), Assign(B))
    again.handle(Tick(), 130)
    opened = again.handle(Evaluated(), 131)
    assert [effect for effect in opened if isinstance(effect, Assign)] == [Assign(B)]


def test_who_declined_before_a_restart_is_asked_in_the_next_try():
    machine = run_of(quorum_share=1, first_deadline_s=30)
    machine.handle(ClientDeclined(A, 1, Reason.TRAINING_FAILED), 1)
    again, effects = resumed(machine, declined=((A, Reason.TRAINING_FAILED),))
    assert effects == (OpenRound(1, BASE, (A, B), 30), Assign(B))
    again.handle(Tick(), 130)
    opened = again.handle(Evaluated(), 131)
    assert [effect for effect in opened if isinstance(effect, Assign)] == [Assign(A), Assign(B)]


def test_a_second_run_asks_who_was_refused_in_the_first():
    machine = run_of(rounds=1, quorum_share=0.5, first_deadline_s=30)
    offer = Offered(update("a"))
    machine.handle(offer, 1)
    machine.handle(Received(A, offer.delta, Reason.NOT_FINITE), 2)
    answer(machine, "b", 3)
    machine.handle(MergeFailed("broken"), 3)
    machine.handle(StopAsked(now=True), 4)
    machine.handle(Evaluated(), 5)
    assert machine.phase is Phase.OVER
    effects = machine.handle(Started(BASE, 1), 6)
    assert [effect for effect in effects if isinstance(effect, Assign)] == [Assign(A), Assign(B)]


def test_a_run_ends_complete_where_its_model_is_good_enough():
    machine = run_of(rounds=9)
    play(machine, 2)
    snapshot = machine.snapshot()
    end = EndRun(model(1), 1, completed=True, why="the accuracy 0.9 is reached")
    assert machine.handle(Evaluated("the accuracy 0.9 is reached"), 3) == (end,)
    again = Run(machine.policy)
    event = Resumed(snapshot, (), (), (), (A, B), enough="the accuracy 0.9 is reached")
    assert again.handle(event, 100) == (end,)


def test_a_run_that_was_told_to_stop_stops_with_the_round_that_it_is_resumed_in():
    again, _ = resumed(run_of(), stopping=True)
    play(again, 101)
    assert again.handle(Evaluated(), 102) == (EndRun(model(1), 1, completed=False, why="stopped"),)
    machine = run_of()
    play(machine, 2)
    assert resumed(machine, stopping=True)[1] == (EndRun(model(1), 1, completed=False, why="stopped"),)


def test_a_merge_is_not_repeated_with_less_than_a_quorum():
    machine = run_of(quorum_share=1)
    answer(machine, "a", 2)
    answer(machine, "b", 2)
    again, effects = resumed(machine, Offered(update("b")), refused=((A, Reason.REVOKED),))
    assert not [effect for effect in effects if isinstance(effect, Assign | Merge)]
    assert effects[-1].why == "1 of the 2 updates needed were taken"
    assert [entry.offer for entry in again.shelf.adopt(BASE)] == [Offered(update("b"))]


def test_what_came_late_is_not_lost_with_a_merge_that_is_not_repeated():
    machine = run_of(rounds=3, quorum_share=0.5, first_deadline_s=30)
    answer(machine, "a", 2)
    machine.handle(Tick(), 30)
    machine.handle(Merged(model(1)), 31)
    late = Offered(update("b"))
    machine.handle(late, 32)
    machine.handle(Received(B, late.delta), 32)
    machine.handle(Evaluated(), 33)
    answer(machine, "a", 34)
    answer(machine, "b", 34)
    assert len(machine.merging) == 3
    again, _ = resumed(machine, late, refused=((A, Reason.REVOKED), (B, Reason.REVOKED)))
    assert not again.merging
    assert again.shelf.taken() == (late,)


def test_an_update_from_the_base_before_says_nothing_of_the_one_of_now():
    machine = run_of(rounds=3, quorum_share=0.5)
    machine.handle(Expelled(A, Reason.EXCLUDED), 1)
    machine.handle(ClientCame(A), 2)  # admitted again
    answer(machine, "b", 3)
    machine.handle(Merged(model(1)), 4)
    offer = Offered(update("a"))
    assert machine.handle(offer, 5) == (Judge(offer, Reason.EXCLUDED),)
    assert Assign(A) in machine.handle(Evaluated(), 6)


def test_whose_one_update_is_known_to_be_refused_is_asked_from_that_base_no_more():
    machine = run_of(rounds=1, quorum_share=1.0, first_deadline_s=30)
    machine.handle(ClientDeclined(A, 1, Reason.EXCLUDED, BASE), 2)
    machine.handle(Tick(), 30)
    effects = machine.handle(Evaluated(), 31)
    assert [effect for effect in effects if isinstance(effect, Assign)] == [Assign(B)]
    machine.handle(ClientDeclined(B, 2, Reason.EXCLUDED, model(7)), 32)  # of another base: it says nothing
    assert machine.round.standing[B] is Standing.ASKED


def test_a_merge_is_repeated_without_what_the_disk_lost():
    machine = run_of(quorum_share=0.5)
    answer(machine, "a", 2)
    answer(machine, "b", 2)
    again, effects = resumed(machine, Offered(update("b")))
    assert effects[-1] == Merge((Counted(update("b")),))
    assert [one.client for one in again.merging] == [B]
    again, effects = resumed(machine)
    assert not again.merging
    assert [effect for effect in effects if isinstance(effect, Assign)] == [Assign(A), Assign(B)]


def test_a_late_update_for_a_round_that_is_yet_to_come_is_refused():
    machine = run_of(quorum_share=0.5, first_deadline_s=30)
    answer(machine, "a", 2)
    machine.handle(Tick(), 30)
    machine.handle(Merged(model(1)), 31)
    machine.handle(Evaluated(), 32)
    late = Offered(update("b", number=999))
    assert machine.handle(late, 33) == (Judge(late, Reason.WRONG_ROUND),)


def test_a_run_that_was_gathering_waits_for_its_clients_anew():
    machine = Run(RunPolicy(seed=0, wait_for=2))
    machine.handle(Started(BASE, 1), 0)
    again = Run(machine.policy)
    assert again.handle(Resumed(machine.snapshot(), (), (), (), (A, B)), 100) == (Gather(here=0, needed=2),)
    again.handle(ClientCame(A), 101)
    assert again.handle(ClientCame(B), 102)[0] == OpenRound(1, BASE, (A, B), 600.0)


def test_a_run_that_stopped_between_rounds_goes_on_with_the_next():
    machine = run_of()
    answer(machine, "a", 2)
    answer(machine, "b", 2)
    machine.handle(Merged(model(1)), 3)
    again, effects = resumed(machine)
    assert effects[0] == OpenRound(2, model(1), (A, B), 10.0)
    assert again.committed == 1


def test_who_was_refused_is_not_waited_for_in_the_next_try_from_the_same_model():
    machine = run_of(rounds=1, quorum_share=1)
    offer = Offered(update("a"))
    machine.handle(offer, 1)
    machine.handle(Received(A, offer.delta, Reason.NOT_FINITE), 2)
    answer(machine, "b", 3)
    effects = machine.handle(Evaluated(), 4)
    assert not [e for e in effects if isinstance(e, Assign)]
    assert effects[-1].refusals == ((A, Reason.NOT_FINITE),)


def test_whose_update_is_refused_between_two_tries_is_not_asked_in_the_second_one():
    machine = run_of(rounds=1, first_deadline_s=30)
    offer = Offered(update("a"))
    machine.handle(offer, 1)
    machine.handle(Tick(), 30)
    machine.handle(Received(A, offer.delta, Reason.NOT_FINITE), 31)
    effects = machine.handle(Evaluated(), 32)
    assert [effect for effect in effects if isinstance(effect, Assign)] == [Assign(B)]


# --- expelled -------------------------------------------------------------------------------------


def test_an_expelled_client_is_not_asked_again_until_it_is_back():
    machine = run_of(rounds=9, quorum_share=0.5)
    answer(machine, "a", 1)
    effects = machine.handle(Expelled(A, Reason.EXCLUDED), 2)
    assert effects == (Revoke(Offered(update("a")), Reason.EXCLUDED), Forgo(A))
    (merge,) = [effect for effect in answer(machine, "b", 3) if isinstance(effect, Merge)]
    assert [one.update.client for one in merge.updates] == ["b"]
    closed = machine.handle(Merged(model(1)), 4)[-1]
    assert closed.refusals == ((A, Reason.EXCLUDED),)
    assert machine.handle(Evaluated(), 5)[0].cohort == (B,)
    answer(machine, "b", 6)
    machine.handle(Merged(model(2)), 6)
    machine.handle(ClientCame(A), 7)
    assert machine.handle(Evaluated(), 8)[0].cohort == (A, B)


def test_what_waits_for_the_next_merge_is_revoked_with_its_client():
    machine = run_of(rounds=2, quorum_share=0.5, first_deadline_s=30)
    answer(machine, "a", 2)
    machine.handle(Tick(), 30)
    machine.handle(Merged(model(1)), 31)
    late = Offered(update("b"))
    machine.handle(late, 32)
    machine.handle(Received(B, late.delta), 33)
    assert machine.handle(Expelled(B, Reason.REVOKED), 34) == (Revoke(late, Reason.REVOKED),)
    assert machine.shelf.taken() == ()


def test_what_waits_for_the_merge_of_another_round_is_refused_with_its_client_though_it_is_on_its_way():
    machine = run_of(rounds=2, quorum_share=0.5, first_deadline_s=30)
    answer(machine, "a", 2)
    machine.handle(Tick(), 30)
    machine.handle(Merged(model(1)), 31)
    late = Offered(update("b"))
    machine.handle(late, 32)
    assert machine.handle(Expelled(B, Reason.REVOKED), 33) == (Judge(late, Reason.REVOKED),)
    assert machine.handle(Received(B, late.delta), 34) == ()


def test_where_only_an_update_under_an_old_certificate_does_not_count_the_one_under_the_new_does():
    machine = run_of(rounds=3, quorum_share=0.5, first_deadline_s=30)
    answer(machine, "a", 2)
    machine.handle(Tick(), 30)
    machine.handle(Merged(model(1)), 31)
    old = Offered(update("b"))
    machine.handle(old, 32)
    machine.handle(Received(B, old.delta), 33)
    machine.handle(Evaluated(), 34)
    answer(machine, "b", 35)
    new = machine.round.offers[B]
    assert machine.held(B) == (new, old)
    effects = machine.handle(Expelled(B, Reason.REVOKED, frozenset({old.update.base})), 36)
    assert effects == (Revoke(old, Reason.REVOKED),)
    (merge,) = [effect for effect in answer(machine, "a", 37) if isinstance(effect, Merge)]
    assert [one.update for one in merge.updates if one.update.client == B] == [new.update]
    assert machine.held(B) == (new,)  # while it is merged
    assert B in machine.here
    machine.handle(Expelled(B, Reason.REVOKED, frozenset({new.update.base})), 38)
    assert Revoke(new, Reason.REVOKED) in machine.handle(MergeFailed("nan"), 39)


def test_an_update_that_is_on_its_way_under_an_old_certificate_is_refused():
    machine = run_of(rounds=3)
    old = Offered(update("a"))
    machine.handle(old, 1)
    assert machine.held(A) == (old,)
    effects = machine.handle(Expelled(A, Reason.REVOKED, frozenset({old.update.base})), 2)
    assert effects == (Judge(old, Reason.REVOKED), Forgo(A))
    assert machine.held(A) == ()
    assert machine.handle(Expelled(B, Reason.REVOKED, frozenset({old.update.base})), 3) == ()


def test_what_is_being_merged_when_its_client_is_expelled_counts():
    machine = run_of(rounds=2)
    answer(machine, "a", 1)
    answer(machine, "b", 1)
    assert machine.handle(Expelled(A, Reason.REVOKED), 2) == ()
    closed = machine.handle(Merged(model(1)), 3)[-1]
    assert [one.update.client for one in closed.updates] == ["a", "b"]
    assert machine.handle(Evaluated(), 4)[0].cohort == (B,)


def test_if_no_model_comes_of_that_merge_it_counts_in_no_later_one():
    machine = run_of(rounds=1)
    answer(machine, "a", 1)
    answer(machine, "b", 1)
    machine.handle(Expelled(A, Reason.REVOKED), 2)
    revoke, closed = machine.handle(MergeFailed("nan"), 3)
    assert revoke == Revoke(Offered(update("a")), Reason.REVOKED)
    assert isinstance(closed, CloseRound)
    machine.handle(ClientCame(A), 3)  # admitted again: its one update from this model has been judged
    effects = machine.handle(Evaluated(), 4)
    assert not [effect for effect in effects if isinstance(effect, Assign)]
    (merge,) = [effect for effect in effects if isinstance(effect, Merge)]
    assert [one.update.client for one in merge.updates] == ["b"]
    machine.handle(MergeFailed("nan"), 5)
    assert not [effect for effect in machine.handle(Evaluated(), 6) if isinstance(effect, Revoke)]  # once


def test_whose_update_was_revoked_is_not_waited_for_in_another_try_from_that_model():
    """Its one update from there has been judged: asked again, it could only offer that one again."""
    machine = run_of(rounds=1, quorum_share=1.0, first_deadline_s=30)
    answer(machine, "a", 1)
    machine.handle(Tick(), 30)
    assert machine.handle(Expelled(A, Reason.EXCLUDED), 31) == (
        Revoke(Offered(update("a")), Reason.EXCLUDED),
    )
    machine.handle(ClientCame(A), 32)  # admitted again
    effects = machine.handle(Evaluated(), 33)
    assert [effect for effect in effects if isinstance(effect, Assign)] == [Assign(B)]


@pytest.mark.parametrize("offered_at", [29, 31])
def test_who_was_expelled_and_offers_all_the_same_is_not_asked_from_that_model_again(offered_at):
    machine = run_of(rounds=1, quorum_share=1.0, first_deadline_s=30)
    machine.handle(Expelled(A, Reason.EXCLUDED), 1)
    machine.handle(ClientCame(A), 2)  # admitted again
    offer = Offered(update("a"))
    if offered_at > 30:
        machine.handle(Tick(), 30)
    assert machine.handle(offer, offered_at) == (Judge(offer, Reason.EXCLUDED),)
    machine.handle(Tick(), 31)
    effects = machine.handle(Evaluated(), 32)
    assert [effect for effect in effects if isinstance(effect, Assign)] == [Assign(B)]


def test_what_was_made_for_an_abandoned_round_is_taken_by_a_run_that_is_resumed_before_the_next():
    machine = run_of(rounds=1, quorum_share=1.0, first_deadline_s=30)
    machine.handle(ClientLeft(A), 1)
    machine.handle(Tick(), 30)
    machine.handle(Evaluated(), 31)
    again = Run(machine.policy)
    again.handle(Resumed(machine.snapshot(), (), (), (), (B,)), 100)
    assert again.phase is Phase.GATHERING
    offer = Offered(update("a"))
    assert again.handle(offer, 101) == (Fetch(offer),)


def test_who_is_expelled_while_clients_are_waited_for_is_waited_for_again():
    machine = Run(RunPolicy(seed=0, wait_for=2))
    machine.handle(Started(BASE, 1), 0)
    machine.handle(ClientCame(A), 0)
    assert machine.handle(Expelled(A, Reason.EXCLUDED), 1) == ()
    assert machine.handle(ClientCame(B), 2) == ()
    assert machine.handle(ClientCame(A), 3)[0].cohort == (A, B)


# --- in any weather -------------------------------------------------------------------------------


class Weather(RuleBasedStateMachine):
    """Four clients, a ledger and an operator in front of the machine as the service has them, and restarts."""

    clients = st.sampled_from([ClientId(name) for name in "abcd"])

    @initialize(
        share=st.sampled_from([0.3, 0.5, 1.0]), size=st.sampled_from([None, 2]), late=st.sampled_from(Late)
    )
    def start(self, share, size, late):
        self.now = 0.0
        self.policy = RunPolicy(
            seed=1, wait_for=2, cohort_size=size, quorum_share=share, first_deadline_s=50, late=late
        )
        self.machine = RunMachine(self.policy)
        self.disk: Snapshot | None = None
        self.tasks: dict[ClientId, list[tuple[Digest, int]]] = {ClientId(name): [] for name in "abcd"}
        self.here: set[ClientId] = set()
        self.barred: dict[ClientId, Reason] = {}
        self.answered_while_barred: set[tuple[str, str]] = set()  # of which the machine does not know
        self.fetching: set[Offered] = set()
        self.waiting: dict[tuple[ClientId, str], Offered] = {}  # taken and not merged, as on disk
        self.answers: dict[tuple[str, str, str], Reason | None] = {}
        self.declined: dict[ClientId, int] = {}  # the round
        self.merged: list[Offered] = []
        self.revoked: list[Offered] = []
        self.taken = 0
        self.merge: Merge | None = None
        self.closed: CloseRound | None = None
        self.stopping = False
        self.tell(Started(BASE, 6))

    def tell(self, event):
        self.now += 1
        effects = self.machine.handle(event, self.now)
        for effect in effects:
            self.perform(effect)
        return effects

    def perform(self, effect):
        match effect:
            case Remember(snapshot):
                assert self.closed is None  # never while a round is being recorded
                self.disk = self.through_json(snapshot)
            case Assign(client):
                assert client in self.here
                assert client not in self.barred
                answered = {
                    key[:2] for key in self.answers
                }  # who declines and offers all the same is asked again
                assert (
                    client,
                    self.machine.base,
                ) not in answered - self.answered_while_barred or client in self.declined
                self.tasks[client].append((self.machine.base, self.machine.number))
            case Fetch(offer):
                self.fetching.add(offer)
            case Judge(offer, refused) if refused is not Reason.EQUIVOCATION:
                key = (offer.client, offer.update.base, offer.delta)
                assert self.answers.setdefault(key, refused) == refused  # the same answer again
                if refused is None and (offer.client, offer.update.base) not in self.waiting:
                    self.waiting[offer.client, offer.update.base] = offer
                    self.taken += 1
            case Merge(updates):
                order = [(counted.update.client, counted.update.round) for counted in updates]
                assert order == sorted(order)
                assert all(counted.staleness >= 0 for counted in updates)
                keys = {(counted.update.client, counted.update.base) for counted in updates}
                assert keys <= self.waiting.keys()
                assert not self.barred.keys() & {client for client, _ in keys}
                self.merge = effect
            case CloseRound():
                self.closed = effect
            case Revoke(offer, reason):
                key = (offer.client, offer.update.base, offer.delta)
                assert reason is self.barred.get(offer.client, reason)
                assert self.answers[key] is None  # it was taken, and is revoked once
                self.answers[key] = reason
                self.revoked.append(self.waiting.pop(key[:2]))

    def through_json(self, snapshot):
        return msgspec.json.decode(msgspec.json.encode(snapshot), type=Snapshot)

    @rule(client=clients)
    def come(self, client):
        self.here.add(client)
        if client not in self.barred:
            self.tell(ClientCame(client))

    @rule(client=clients)
    def leave(self, client):
        self.here.discard(client)
        self.tell(ClientLeft(client))

    @rule(client=clients, data=st.data(), word=st.sampled_from(["", "", "", "other"]))
    def offer(self, client, data, word):
        if not self.tasks[client]:
            return
        base, number = data.draw(st.sampled_from(self.tasks[client]))
        offer = Offered(update(client, f"{client} {base} {word}", number=number, base=base))
        key = (client, base, offer.delta)
        if key in self.answers or any(
            known[:2] == key[:2] and refused is None for known, refused in self.answers.items()
        ):  # the ledger answers
            if (refused := self.answers.get(key)) and base == self.machine.base:
                self.tell(ClientDeclined(client, self.machine.number, refused, base))
                round_ = self.machine.round
                if round_ is not None and round_.phase is RoundPhase.REPORTING:
                    assert round_.standing.get(client) is not Standing.ASKED
            return
        if client in self.barred:
            self.answers[key] = self.barred[client]  # the service does
            self.answered_while_barred.add(key[:2])
            return
        answers = [e for e in self.tell(offer) if isinstance(e, Judge | Fetch) and e.offer == offer]
        assert len(answers) == 1  # every offer is fetched or judged

    @precondition(lambda self: self.fetching)
    @rule(data=st.data(), problem=st.sampled_from([None, None, None, Reason.NOT_FINITE]))
    def receive(self, data, problem):
        offer = data.draw(st.sampled_from(sorted(self.fetching, key=lambda it: it.delta)))
        self.fetching.discard(offer)
        self.tell(Received(offer.client, offer.delta, problem))

    @precondition(lambda self: self.fetching)
    @rule(data=st.data())
    def lose(self, data):
        offer = data.draw(st.sampled_from(sorted(self.fetching, key=lambda it: it.delta)))
        self.fetching.discard(offer)
        self.tell(Unfetched(offer.client, offer.delta))

    @rule(client=clients)
    def decline(self, client):
        if self.tasks[client] and client not in self.barred:
            _, number = self.tasks[client][-1]
            self.declined[client] = number
            self.tell(ClientDeclined(client, number, Reason.DIVERGED))

    @rule(client=clients, reason=st.sampled_from([Reason.EXCLUDED, Reason.REVOKED]))
    def expel(self, client, reason):
        if len(self.barred) > 1:
            return
        self.barred[client] = reason
        merging = {(o.client, o.update.base) for o in self.machine.merging}
        recorded = {(c.update.client, c.update.base) for c in self.closed.updates} if self.closed else set()
        self.tell(Expelled(client, reason))
        left = {key for key in self.waiting if key[0] == client}
        assert left <= merging | recorded  # nothing else of it counts

    @precondition(lambda self: self.barred)
    @rule(data=st.data())
    def admit(self, data):
        client = data.draw(st.sampled_from(sorted(self.barred)))
        del self.barred[client]
        if client in self.here:
            self.tell(ClientCame(client))

    @precondition(lambda self: self.merge)
    @rule(failed=st.sampled_from([False, False, True]))
    def end_merge(self, failed):
        self.merge = None
        self.tell(MergeFailed("x") if failed else Merged(model(self.machine.committed + 1)))
        assert self.closed.committed is not failed

    @precondition(lambda self: self.closed)
    @rule()
    def record(self):
        """As one transaction: what was merged, and where the run stands."""
        for counted in self.closed.updates:
            self.merged.append(self.waiting.pop((counted.update.client, counted.update.base)))
        self.disk, self.closed = self.through_json(self.machine.snapshot()), None
        self.tell(Evaluated())

    @rule(up=st.booleans(), after=st.sampled_from([0, 1, 500]))
    def link(self, up, after):
        self.now += after
        self.tell(LinkUp(1) if up else LinkDown("broken", 1.0))

    @rule()
    def deadline(self):
        due = self.machine.wake_at()
        if due is not None:
            self.now = max(self.now, due)
            self.tell(Tick())
            assert self.machine.wake_at() is None or self.machine.wake_at() > self.now

    @rule()
    def restart(self):
        if self.machine.phase is Phase.OVER or self.disk is None:
            return
        was = self.disk
        self.machine = RunMachine(self.policy)
        self.fetching.clear()
        self.merge = self.closed = None
        for client, base in [key for key in self.waiting if key[0] in self.barred]:
            offer = self.waiting.pop((client, base))
            self.answers[client, base, offer.delta] = self.barred[client]
            self.revoked.append(offer)
        ours = {key: refused for key, refused in self.answers.items() if key[1] == was.base}
        taken = {client for (client, _, _), refused in ours.items() if refused is None}
        refused = {c: reason for (c, _, _), reason in ours.items() if reason and c not in taken}
        declined = [client for client, number in self.declined.items() if number == was.number]
        self.tell(
            Resumed(
                was,
                tuple(self.waiting.values()),
                tuple(refused.items()),
                tuple((client, Reason.DIVERGED) for client in declined),
                tuple(sorted(self.here - self.barred.keys())),
                self.stopping,
            )
        )

    @rule(at_once=st.booleans(), really=st.sampled_from([False] * 9 + [True]))
    def stop(self, at_once, really):
        if really:
            self.stopping = True
            self.tell(StopAsked(at_once))

    @invariant()
    def nothing_is_lost_and_nothing_counts_twice(self):
        if not hasattr(self, "machine"):
            return
        machine = self.machine
        assert machine.slowest_s is None or machine.slowest_s >= 0
        assert len(self.merged) == len({(o.client, o.update.base) for o in self.merged})
        assert self.taken == len(self.merged) + len(self.revoked) + len(self.waiting)
        is_open = machine.round is not None and machine.round.phase is RoundPhase.REPORTING
        held = [*machine.merging, *(machine.round.taken() if is_open else ()), *machine.shelf.taken()]
        recorded = [counted.update for counted in self.closed.updates] if self.closed else []
        keys = [(o.client, o.update.base) for o in held] + [(u.client, u.base) for u in recorded]
        assert sorted(keys) == sorted(self.waiting)


TestWeather = Weather.TestCase
TestWeather.settings = settings(stateful_step_count=60)
