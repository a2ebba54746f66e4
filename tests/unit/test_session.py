"""Stories of a client's task."""

import pytest
from msgspec.structs import replace

from common.machine import Tick
from common.messages import Reason, Verdict
from edge_client.session import (
    Asked,
    Decline,
    Drop,
    Fetch,
    Fetched,
    Judged,
    LinkBack,
    Offer,
    Phase,
    Released,
    Session,
    Train,
    Trained,
    Unfetchable,
    Untrained,
)
from support.updates import RUN, SCHEMA, task, update

UPDATE = update("a")
BASE = task().base.digest


def verdict(word_of=UPDATE, refused=None) -> Verdict:
    return Verdict(run=RUN, round=word_of.round, delta=word_of.delta.digest, refused=refused)


@pytest.fixture
def training() -> Session:
    session = Session(SCHEMA)
    assert session.handle(Asked(task()), 0) == (Fetch(task().base),)
    assert session.handle(Fetched(BASE), 1) == (Train(task()),)
    return session


@pytest.fixture
def reporting(training) -> Session:
    assert training.handle(Trained(UPDATE), 10) == (Offer(UPDATE),)
    return training


def test_a_judged_update_is_dropped_and_the_client_is_free(reporting):
    assert reporting.handle(Judged(verdict()), 11) == (Drop(UPDATE, verdict()),)
    assert (reporting.phase, reporting.wake_at()) == (Phase.IDLE, None)


def test_a_verdict_about_another_update_changes_nothing(reporting):
    assert reporting.handle(Judged(verdict(update("a", "other"))), 11) == ()
    assert reporting.phase is Phase.REPORTING


def test_an_update_is_offered_again_with_doubling_waits_until_it_is_judged(reporting):
    assert reporting.wake_at() == 20
    assert reporting.handle(Tick(), 19) == ()
    assert reporting.handle(Tick(), 20) == (Offer(UPDATE),)
    assert reporting.wake_at() == 40
    reporting.handle(Tick(), 40)
    assert reporting.wake_at() == 80
    for _ in range(9):
        now = reporting.wake_at()
        reporting.handle(Tick(), now)
    assert reporting.wake_at() - now == 120


def test_after_a_break_of_the_link_it_is_offered_at_once_and_the_waits_begin_anew(reporting):
    reporting.handle(Tick(), 20)
    assert reporting.handle(LinkBack(), 22) == (Offer(UPDATE),)
    assert reporting.wake_at() == 32


def test_each_update_begins_with_the_shortest_wait(reporting):
    reporting.handle(Tick(), 20)
    reporting.handle(Judged(verdict()), 21)
    reporting.handle(Asked(task(2, "next")), 22)
    reporting.handle(Fetched(task(2, "next").base.digest), 23)
    reporting.handle(Trained(update("a", "next delta", number=2)), 30)
    assert reporting.wake_at() == 40


def test_the_same_task_again_changes_nothing_but_that_a_finished_update_is_offered(training):
    assert training.handle(Asked(task()), 2) == ()
    training.handle(Trained(UPDATE), 10)
    assert training.handle(Asked(task()), 11) == (Offer(UPDATE),)


def test_a_newer_task_waits_for_the_training_at_hand_and_its_result_is_dropped(training):
    assert training.handle(Asked(task(2, "next")), 5) == ()
    assert training.handle(Trained(UPDATE), 10) == (Drop(UPDATE, None), Fetch(task(2, "next").base))


def test_a_newer_task_replaces_an_update_that_nobody_judged(reporting):
    assert reporting.handle(Asked(task(2, "next")), 11) == (Drop(UPDATE, None), Fetch(task(2, "next").base))
    assert reporting.wake_at() is None


def test_a_release_while_training_drops_the_result(training):
    assert training.handle(Released(RUN, 1), 5) == ()
    assert training.handle(Trained(UPDATE), 10) == (Drop(UPDATE, None),)
    assert training.phase is Phase.IDLE


def test_a_task_that_was_released_and_comes_again_is_trained_again(training):
    training.handle(Released(RUN, 1), 5)
    training.handle(Asked(task()), 6)
    assert training.handle(Trained(UPDATE), 10) == (Drop(UPDATE, None), Fetch(task().base))


def test_a_release_of_the_task_that_waits_forgets_it(training):
    training.handle(Asked(task(2, "next")), 5)
    training.handle(Released(RUN, 2), 6)
    assert training.handle(Trained(UPDATE), 10) == (Drop(UPDATE, None),)


def test_a_release_of_another_round_changes_nothing(training):
    training.handle(Released(RUN, 7), 5)
    training.handle(Released("another run", 1), 5)
    assert training.handle(Trained(UPDATE), 10) == (Offer(UPDATE),)


def test_the_same_round_of_another_run_is_another_task(training):
    other = replace(task(), run="another run")
    training.handle(Asked(other), 5)
    assert training.handle(Trained(UPDATE), 10) == (Drop(UPDATE, None), Fetch(other.base))


def test_a_release_while_fetching_frees_the_client():
    session = Session(SCHEMA)
    session.handle(Asked(task()), 0)
    session.handle(Released(RUN, 1), 1)
    assert session.handle(Fetched(BASE), 2) == ()
    assert session.phase is Phase.IDLE


def test_a_failed_training_is_declined(training):
    failed = Untrained(RUN, 1, Reason.DIVERGED, "loss is nan")
    assert training.handle(failed, 5) == (Decline(task(), Reason.DIVERGED, "loss is nan"),)
    assert training.phase is Phase.IDLE


def test_a_training_that_fails_after_a_newer_task_is_not_declined_but_followed(training):
    training.handle(Asked(task(2, "next")), 5)
    failed = Untrained(RUN, 1, Reason.DIVERGED, "loss is nan")
    assert training.handle(failed, 6) == (Fetch(task(2, "next").base),)


def test_a_base_that_cannot_be_had_is_declined():
    session = Session(SCHEMA)
    session.handle(Asked(task()), 0)
    (declined,) = session.handle(Unfetchable(BASE, Reason.TRANSFER_FAILED), 1)
    assert (declined.task, declined.reason) == (task(), Reason.TRANSFER_FAILED)


def test_a_model_of_another_schema_is_declined_naming_both():
    (declined,) = Session("f" * 64).handle(Asked(task()), 0)
    assert declined.reason is Reason.WRONG_SCHEMA
    assert "f" * 64 in declined.detail
    assert SCHEMA in declined.detail


def test_a_training_that_nobody_waits_for_changes_nothing(reporting):
    failed = Untrained(RUN, 1, Reason.DIVERGED, "loss is nan")
    assert reporting.handle(failed, 11) == ()
    assert reporting.handle(Trained(update("a", "other")), 11) == ()
    assert reporting.handle(Judged(verdict()), 12) == (Drop(UPDATE, verdict()),)


def test_the_end_of_another_training_changes_nothing(training):
    assert training.handle(Untrained(RUN, 7, Reason.DIVERGED, "loss is nan"), 5) == ()
    assert training.handle(Trained(update("a", number=7)), 5) == ()
    assert training.phase is Phase.TRAINING


def test_an_answer_to_another_fetch_changes_nothing():
    session = Session(SCHEMA)
    session.handle(Asked(task()), 0)
    another = task(2, "next").base.digest
    assert session.handle(Fetched(another), 1) == ()
    assert session.handle(Unfetchable(another, Reason.TRANSFER_FAILED), 1) == ()
    assert session.phase is Phase.FETCHING
