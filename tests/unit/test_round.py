"""Stories and properties of one round."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from common.ids import ClientId, Digest, sha256
from common.machine import Tick
from common.messages import Reason
from coordinator.round import (
    Assign,
    Begun,
    ClientCame,
    ClientDeclined,
    ClientLeft,
    Close,
    Counted,
    Expelled,
    Fetch,
    Forgo,
    Halted,
    Judge,
    Merge,
    Merged,
    MergeFailed,
    Offered,
    Phase,
    Received,
    Revoke,
    RoundMachine,
    RoundPolicy,
    Standing,
    Unfetched,
)
from support.updates import BASE, update

A, B, C = (ClientId(name) for name in "abc")
MODEL = sha256(b"model")


def digest(client: str, word: str = "") -> Digest:
    return Digest(update(client, word).delta.digest)


def counted(*clients: str) -> tuple[Counted, ...]:
    return tuple(Counted(update(client)) for client in clients)


def take(machine: RoundMachine, client: str, at: float = 1) -> tuple[object, ...]:
    machine.handle(Offered(update(client)), at)
    return machine.handle(Received(ClientId(client), digest(client)), at)


@pytest.fixture
def reporting() -> RoundMachine:
    """A round that wants two of three, open since 5."""
    machine = RoundMachine(1, BASE, (A, B, C), RoundPolicy(quorum=2, deadline_s=100))
    assert machine.handle(Begun(), 5) == (Assign(A), Assign(B), Assign(C))
    return machine


def test_an_offered_update_is_fetched_then_judged(reporting):
    assert reporting.handle(Offered(update("a")), 6) == (Fetch(Offered(update("a"))),)
    assert reporting.handle(Received(A, digest("a")), 7) == (Judge(Offered(update("a"))),)
    assert reporting.taken() == (Offered(update("a")),)


def test_when_all_have_answered_the_merge_sees_them_in_sorted_order(reporting):
    take(reporting, "c")
    take(reporting, "a")
    assert take(reporting, "b") == (
        Judge(Offered(update("b"))),
        Merge(counted("a", "b", "c")),
    )
    assert reporting.handle(Merged(MODEL), 9) == (Close(committed=True, model=MODEL),)
    assert reporting.phase is Phase.COMMITTED


def test_the_same_update_again_gets_the_same_answer_and_counts_once(reporting):
    take(reporting, "a")
    assert reporting.handle(Offered(update("a")), 8) == (Judge(Offered(update("a"))),)
    assert reporting.taken() == (Offered(update("a")),)


def test_another_update_of_a_client_is_an_equivocation_and_the_first_one_stays(reporting):
    take(reporting, "a")
    effects = reporting.handle(Offered(update("a", "other")), 8)
    assert [(e.offer.client, e.refused) for e in effects] == [(A, Reason.EQUIVOCATION)]
    assert reporting.taken() == (Offered(update("a")),)


def test_another_update_while_the_first_is_fetched_is_an_equivocation_too(reporting):
    reporting.handle(Offered(update("a")), 6)
    effects = reporting.handle(Offered(update("a", "other")), 8)
    assert [(e.offer.client, e.refused) for e in effects] == [(A, Reason.EQUIVOCATION)]
    assert reporting.handle(Received(A, digest("a", "other")), 8) == ()


def test_an_update_offered_again_while_it_is_fetched_is_taken_up_again(reporting):
    reporting.handle(Offered(update("a")), 6)
    assert reporting.handle(Offered(update("a")), 7) == (Fetch(Offered(update("a"))),)


@pytest.mark.parametrize(
    ("late", "reason"),
    [
        (update("d"), Reason.NOT_INVITED),
        (update("a", number=2), Reason.WRONG_ROUND),
        (update("a", base=sha256(b"another")), Reason.WRONG_BASE),
    ],
)
def test_what_does_not_belong_here_is_refused_with_its_reason(reporting, late, reason):
    effects = reporting.handle(Offered(late), 6)
    assert effects == (Judge(Offered(late), reason),)
    assert reporting.taken() == ()


def test_an_update_that_does_not_pass_the_screen_is_refused_and_stays_refused(reporting):
    reporting.handle(Offered(update("a")), 6)
    effects = reporting.handle(Received(A, digest("a"), Reason.NOT_FINITE, "nan"), 7)
    assert effects == (Judge(Offered(update("a")), Reason.NOT_FINITE, "nan"),)
    assert reporting.handle(Offered(update("a")), 8) == (Judge(Offered(update("a")), Reason.NOT_FINITE),)


def test_at_the_deadline_a_quorum_merges_and_the_others_are_released(reporting):
    take(reporting, "a")
    take(reporting, "b")
    assert reporting.wake_at() == 105
    assert reporting.handle(Tick(), 104.9) == ()
    assert reporting.handle(Tick(), 105) == (Forgo(C), Merge(counted("a", "b")))
    assert reporting.wake_at() is None


def test_at_the_deadline_without_a_quorum_the_model_stays(reporting):
    take(reporting, "a")
    effects = reporting.handle(Tick(), 105)
    assert effects[:2] == (Forgo(B), Forgo(C))
    assert (effects[2].committed, effects[2].model) == (False, BASE)
    assert reporting.wake_at() is None


def test_a_client_that_is_lost_is_not_waited_for_when_the_others_are_a_quorum(reporting):
    take(reporting, "a")
    take(reporting, "b")
    assert reporting.handle(ClientLeft(C), 9) == (Forgo(C), Merge(counted("a", "b")))


def test_lost_clients_are_waited_for_when_the_others_are_no_quorum(reporting):
    take(reporting, "a")
    assert reporting.handle(ClientLeft(B), 9) == ()
    assert reporting.handle(ClientLeft(C), 9) == ()
    assert reporting.handle(ClientCame(B), 20) == (Assign(B),)
    assert take(reporting, "b", 30)[-1] == Merge(counted("a", "b"))


def test_a_client_that_comes_back_while_its_update_is_fetched_is_asked_again_and_may_answer_anew(reporting):
    reporting.handle(Offered(update("a")), 6)
    reporting.handle(ClientLeft(A), 7)
    assert reporting.handle(ClientCame(A), 8) == (Assign(A),)
    assert reporting.handle(Offered(update("a", "trained again")), 9) == (
        Fetch(Offered(update("a", "trained again"))),
    )


def test_a_client_whose_update_was_taken_is_not_asked_again(reporting):
    take(reporting, "a")
    assert reporting.handle(ClientCame(A), 8) == ()


def test_when_too_many_decline_and_nobody_can_come_back_the_round_is_given_up(reporting):
    take(reporting, "a")
    assert reporting.handle(ClientDeclined(B, 1, Reason.DIVERGED), 8) == ()
    (close,) = reporting.handle(ClientDeclined(C, 1, Reason.DIVERGED), 8)
    assert (close.committed, close.model) == (False, BASE)
    assert reporting.refusals == {B: Reason.DIVERGED, C: Reason.DIVERGED}


def test_who_declined_gets_its_reason_again_if_it_offers_an_update_after_all(reporting):
    reporting.handle(ClientDeclined(A, 1, Reason.DIVERGED), 6)
    assert reporting.handle(Offered(update("a")), 7) == (Judge(Offered(update("a")), Reason.DIVERGED),)
    assert reporting.refusals == {A: Reason.DIVERGED}


def test_a_decline_after_an_offer_changes_nothing(reporting):
    reporting.handle(Offered(update("a")), 6)
    assert reporting.handle(ClientDeclined(A, 1, Reason.DIVERGED), 7) == ()
    assert reporting.handle(Received(A, digest("a")), 8) == (Judge(Offered(update("a"))),)


def test_a_client_that_is_lost_while_its_update_is_fetched_is_not_waited_for_either(reporting):
    take(reporting, "a")
    take(reporting, "b")
    reporting.handle(Offered(update("c")), 8)
    assert reporting.handle(ClientLeft(C), 9) == (Forgo(C), Merge(counted("a", "b")))


def test_a_refused_update_keeps_its_reason_when_it_is_late(reporting):
    reporting.handle(Offered(update("c")), 6)
    reporting.handle(Received(C, digest("c"), Reason.NOT_FINITE), 7)
    take(reporting, "a")
    take(reporting, "b")
    assert reporting.phase is Phase.MERGING
    assert reporting.decided(Offered(update("c"))) == Judge(Offered(update("c")), Reason.NOT_FINITE)


def test_a_round_that_was_not_opened_yet_can_be_halted():
    machine = RoundMachine(1, BASE, (A,), RoundPolicy(quorum=1, deadline_s=100))
    assert machine.handle(Halted(), 1) == (Close(committed=False, model=BASE, why="stopped"),)


def test_after_the_round_taken_updates_are_confirmed_and_others_left_to_the_run(reporting):
    for client in "ab":
        take(reporting, client)
    reporting.handle(Tick(), 105)
    assert reporting.decided(Offered(update("c"))) is None
    reporting.handle(Merged(MODEL), 107)
    assert reporting.decided(Offered(update("a"))) == Judge(Offered(update("a")))


def test_an_update_that_arrives_during_the_merge_does_not_join_it(reporting):
    take(reporting, "a")
    take(reporting, "b")
    reporting.handle(Offered(update("c")), 50)
    reporting.handle(Tick(), 105)
    assert reporting.handle(Received(C, digest("c")), 106) == ()
    assert reporting.decided(Offered(update("c"))) is None


def test_a_failed_merge_leaves_the_model_alone(reporting):
    for client in "abc":
        take(reporting, client)
    assert reporting.handle(MergeFailed("not finite"), 9) == (
        Close(committed=False, model=BASE, why="not finite"),
    )


def test_a_halt_gives_the_round_up_but_never_a_merge_that_is_under_way(reporting):
    for client in "abc":
        take(reporting, client)
    assert reporting.handle(Halted(), 9) == ()
    assert reporting.handle(Merged(MODEL), 10) == (Close(committed=True, model=MODEL),)


def test_a_halt_while_reporting_releases_everybody(reporting):
    effects = reporting.handle(Halted(), 9)
    assert effects == (Forgo(A), Forgo(B), Forgo(C), Close(committed=False, model=BASE, why="stopped"))


# --- expelled -------------------------------------------------------------------------------------


def test_a_client_that_is_expelled_before_it_answered_is_not_waited_for(reporting):
    take(reporting, "a")
    take(reporting, "b")
    effects = reporting.handle(Expelled(C, Reason.EXCLUDED), 9)
    assert effects[0] == Forgo(C)
    assert merged(effects) == ["a", "b"]
    assert reporting.refusals == {C: Reason.EXCLUDED}


def test_an_update_that_was_taken_is_revoked_with_its_client(reporting):
    take(reporting, "a")
    take(reporting, "b")
    assert reporting.handle(Expelled(A, Reason.REVOKED), 9) == (
        Revoke(Offered(update("a")), Reason.REVOKED),
        Forgo(A),
    )
    assert [offer.client for offer in reporting.taken()] == ["b"]
    assert reporting.handle(Expelled(A, Reason.REVOKED), 10) == ()  # once
    assert merged(take(reporting, "c")) == ["b", "c"]


def test_an_update_on_its_way_is_refused_and_not_taken_when_it_comes_all_the_same(reporting):
    reporting.handle(Offered(update("a")), 8)
    assert reporting.handle(Expelled(A, Reason.EXCLUDED), 9) == (
        Judge(Offered(update("a")), Reason.EXCLUDED),
        Forgo(A),
    )
    assert reporting.handle(Received(A, digest("a")), 10) == ()
    assert reporting.handle(Unfetched(A, digest("a")), 10) == ()
    assert reporting.handle(Offered(update("a")), 11) == (Judge(Offered(update("a")), Reason.EXCLUDED),)
    assert reporting.handle(ClientCame(A), 12) == ()  # nor is it asked again in this round
    assert not reporting.taken()


def test_a_client_that_was_away_or_refused_before_is_expelled_without_a_word_more(reporting):
    reporting.handle(ClientLeft(A), 8)
    assert reporting.handle(Expelled(A, Reason.REVOKED), 9) == (Forgo(A),)
    reporting.handle(ClientDeclined(B, 1, Reason.DIVERGED), 10)
    assert reporting.handle(Expelled(B, Reason.REVOKED), 11) == ()
    assert reporting.refusals == {A: Reason.REVOKED, B: Reason.DIVERGED}
    assert reporting.handle(Expelled(ClientId("z"), Reason.REVOKED), 12) == ()


def test_a_round_whose_quorum_was_expelled_is_given_up(reporting):
    take(reporting, "a")
    take(reporting, "b")
    reporting.handle(Expelled(A, Reason.REVOKED), 9)
    effects = reporting.handle(Expelled(C, Reason.REVOKED), 10)
    assert effects[-1] == Close(committed=False, model=BASE, why="1 of the 2 updates needed were taken")


def test_who_is_expelled_during_the_merge_is_in_it(reporting):
    for client in "abc":
        take(reporting, client)
    assert reporting.handle(Expelled(A, Reason.REVOKED), 9) == ()
    assert reporting.handle(Merged(MODEL), 10) == (Close(committed=True, model=MODEL),)


def merged(effects):
    """Name whose updates are merged."""
    (merge,) = [effect for effect in effects if isinstance(effect, Merge)]
    return [one.update.client for one in merge.updates]


class Weather(RuleBasedStateMachine):
    """Three clients, in any order, twice, late, lost and back."""

    clients = st.sampled_from("abc")
    words = st.sampled_from(["", "other"])

    def __init__(self) -> None:
        super().__init__()
        self.machine = RoundMachine(1, BASE, (A, B, C), RoundPolicy(quorum=2, deadline_s=100))
        self.now = 0.0
        self.merges = 0
        self.closes = 0
        self.expelled = set()
        self.fates = {}  # by update: taken, refused, revoked
        self.tell(Begun())

    def tell(self, event):
        self.now += 1
        effects = self.machine.handle(event, self.now)
        self.merges += sum(isinstance(effect, Merge) for effect in effects)
        self.closes += sum(isinstance(effect, Close) for effect in effects)
        for effect in effects:
            if isinstance(effect, Merge):
                assert list(effect.updates) == sorted(effect.updates, key=lambda one: one.update.client)
                assert len(effect.updates) >= 2
                assert not self.expelled & {one.update.client for one in effect.updates}
            if isinstance(effect, Judge) and effect.refused is not Reason.EQUIVOCATION:
                self.fates.setdefault(effect.offer, effect.refused)
            if isinstance(effect, Revoke):
                assert self.fates[effect.offer] is None
                self.fates[effect.offer] = effect.reason
        return effects

    @rule(client=clients, word=words)
    def offer(self, client, word):
        taken, is_open = self.machine.taken(), self.machine.phase is Phase.REPORTING
        effects = self.tell(Offered(update(client, word)))
        answers = [e for e in effects if isinstance(e, Judge | Fetch)]
        assert (
            len(answers) == is_open
        )  # every offer is answered, once; the run answers where the round is over
        assert set(taken) <= set(self.machine.taken())  # what was taken stays

    @precondition(lambda self: self.machine.taken() and self.machine.phase is Phase.REPORTING)
    @rule(data=st.data())
    def equivocate(self, data):
        first = data.draw(st.sampled_from(self.machine.taken()))
        other = "other" if first.update == update(first.client) else ""
        (judge,) = self.tell(Offered(update(first.client, other)))
        assert judge.refused is Reason.EQUIVOCATION

    @rule(client=clients, word=words, problem=st.sampled_from([None, None, None, Reason.NOT_FINITE]))
    def receive(self, client, word, problem):
        taken = self.machine.taken()
        self.tell(Received(ClientId(client), digest(client, word), problem))
        assert set(taken) <= set(self.machine.taken())

    @rule(client=clients)
    def leave(self, client):
        self.tell(ClientLeft(ClientId(client)))

    @rule(client=clients)
    def come(self, client):
        taken = self.machine.taken()
        self.tell(ClientCame(ClientId(client)))
        assert taken == self.machine.taken()

    @rule(client=clients)
    def decline(self, client):
        self.tell(ClientDeclined(ClientId(client), 1, Reason.DIVERGED))

    @rule(client=clients, sure=st.sampled_from([False, False, True]))
    def expel(self, client, sure):
        if not sure:
            return
        is_open, taken = self.machine.phase is Phase.REPORTING, self.machine.taken()
        effects = self.tell(Expelled(ClientId(client), Reason.REVOKED))
        if is_open:
            self.expelled.add(client)
        revoked = [effect.offer for effect in effects if isinstance(effect, Revoke)]
        assert revoked == [offer for offer in taken if is_open and offer.client == client]

    @invariant()
    def what_was_taken_was_told_so(self):
        for offer in self.machine.taken():
            assert self.fates[offer] is None
            assert self.merges or offer.client not in self.expelled

    @precondition(lambda self: self.machine.phase is Phase.MERGING)
    @rule(failed=st.booleans())
    def merge(self, failed):
        self.tell(MergeFailed("x") if failed else Merged(MODEL))

    @rule()
    def deadline(self):
        self.now += 100
        self.tell(Tick())
        assert self.machine.wake_at() is None or self.machine.wake_at() > self.now

    @invariant()
    def one_merge_one_close(self):
        assert self.merges <= 1
        assert self.closes == (self.machine.phase in {Phase.COMMITTED, Phase.ABANDONED})

    @invariant()
    def open_rounds_wait_for_somebody(self):
        if self.machine.phase is Phase.REPORTING:
            assert set(self.machine.standing.values()) & {Standing.ASKED, Standing.FETCHING, Standing.AWAY}


TestWeather = Weather.TestCase
