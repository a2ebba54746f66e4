"""Stories of what waits for a merge."""

from common.ids import ClientId
from common.messages import Reason
from coordinator.round import Expelled, Fetch, Judge, Offered, Received, Revoke, Unfetched
from coordinator.shelf import Shelf
from support.updates import BASE, update

A, B = ClientId("a"), ClientId("b")
OTHER = BASE[::-1]


def offered(client: str, word: str = "", **about: object) -> Offered:
    return Offered(update(client, word, **about))


def received(offer: Offered, problem: Reason | None = None) -> Received:
    return Received(offer.client, offer.delta, problem, "why" if problem else "")


def take(shelf: Shelf, offer: Offered) -> tuple[object, ...]:
    assert tuple(shelf.offer(offer)) == (Fetch(offer),)
    return tuple(shelf.received(received(offer)))


def test_an_update_is_fetched_then_taken_and_is_late():
    shelf, offer = Shelf(2), offered("a")
    assert not shelf.knows(A, BASE)
    assert tuple(shelf.offer(offer)) == (Fetch(offer),)
    assert shelf.knows(A, BASE)
    assert shelf.awaits(A, offer.delta)
    assert not shelf.awaits(B, offer.delta)
    assert shelf.taken() == ()
    assert tuple(shelf.received(received(offer))) == (Judge(offer, late=True),)
    assert not shelf.awaits(A, offer.delta)
    assert shelf.taken() == (offer,)


def test_the_same_update_twice_is_fetched_again_or_answered_again():
    shelf, offer = Shelf(1), offered("a")
    tuple(shelf.offer(offer))
    assert take(shelf, offer) == (Judge(offer, late=True),)
    assert tuple(shelf.received(received(offer))) == ()
    assert tuple(shelf.offer(offer)) == (Judge(offer, late=True),)


def test_who_keeps_a_shelf_says_what_is_late_and_that_is_what_is_repeated():
    stale: list[Offered] = []
    shelf, offer, kept = Shelf(1, lambda it: it in stale), offered("a"), offered("b")
    tuple(shelf.offer(offer))
    stale.append(offer)  # when it was offered it was not late, when it is taken it is
    assert tuple(shelf.received(received(offer))) == (Judge(offer, late=True),)
    shelf.keep(kept, taken=True)
    stale[:] = [kept]
    assert tuple(shelf.offer(offer)) == (Judge(offer, late=True),)
    assert tuple(shelf.offer(kept)) == (Judge(kept),)


def test_another_update_from_the_same_base_is_an_equivocation():
    shelf, offer, other = Shelf(2), offered("a"), offered("a", "other")
    tuple(shelf.offer(offer))
    (judge,) = shelf.offer(other)
    assert (judge.offer, judge.refused) == (other, Reason.EQUIVOCATION)
    assert tuple(shelf.received(received(other))) == ()
    assert tuple(shelf.received(received(offer))) == (Judge(offer, late=True),)


def test_one_client_may_leave_only_so_many():
    shelf = Shelf(1)
    take(shelf, offered("a"))
    (judge,) = shelf.offer(offered("a", "next", base=OTHER))
    assert judge.refused is Reason.TOO_MANY
    take(shelf, offered("b"))


def test_what_is_refused_or_cannot_be_had_is_gone():
    shelf, offer = Shelf(1), offered("a")
    tuple(shelf.offer(offer))
    assert tuple(shelf.received(received(offer, Reason.NOT_FINITE))) == (
        Judge(offer, Reason.NOT_FINITE, "why"),
    )
    assert not shelf.knows(A, BASE)
    tuple(shelf.offer(offer))
    shelf.unfetched(Unfetched(A, offer.delta))
    assert not shelf.knows(A, BASE)


def test_what_was_taken_cannot_become_unfetched():
    shelf, offer = Shelf(1), offered("a")
    take(shelf, offer)
    shelf.unfetched(Unfetched(A, offer.delta))
    assert shelf.taken() == (offer,)


def test_what_was_taken_is_handed_over_once_sorted_by_client_then_round():
    shelf = Shelf(2)
    late, early = offered("a", "late", number=2, base=OTHER), offered("a")
    for offer in (offered("b"), late, early):
        take(shelf, offer)
    tuple(shelf.offer(offered("c")))
    assert shelf.bases() == {BASE, OTHER}
    assert shelf.taken() == (early, late, offered("b"))
    assert shelf.take() == (early, late, offered("b"))
    assert shelf.take() == ()
    assert shelf.awaits(ClientId("c"), offered("c").delta)


def test_a_round_adopts_what_starts_from_its_base():
    shelf, other = Shelf(2), offered("a", "other", base=OTHER)
    take(shelf, offered("b"))
    take(shelf, other)
    tuple(shelf.offer(offered("a")))
    assert [(entry.offer, entry.taken) for entry in shelf.adopt(BASE)] == [
        (offered("a"), False),
        (offered("b"), True),
    ]
    assert [entry.offer for entry in shelf.clear()] == [other]
    assert shelf.clear() == ()


def test_of_an_expelled_client_what_was_taken_is_revoked_and_what_was_to_come_is_refused():
    shelf = Shelf(3)
    taken, coming = offered("a"), offered("a", "coming", number=2, base=OTHER)
    take(shelf, taken)
    take(shelf, offered("b"))
    tuple(shelf.offer(coming))
    assert tuple(shelf.expel(Expelled(A, Reason.REVOKED))) == (
        Revoke(taken, Reason.REVOKED),
        Judge(coming, Reason.REVOKED),
    )
    assert tuple(shelf.expel(Expelled(A, Reason.REVOKED))) == ()
    assert shelf.taken() == (offered("b"),)
    assert not shelf.awaits(A, coming.delta)
    assert tuple(shelf.received(received(coming))) == ()  # its blob comes all the same
    assert shelf.taken() == (offered("b"),)


def test_where_only_some_updates_of_a_client_do_not_count_the_others_stay():
    shelf = Shelf(3)
    old, new = offered("a"), offered("a", "new", number=2, base=OTHER)
    take(shelf, old)
    take(shelf, new)
    assert shelf.held(A) == (old, new)
    assert tuple(shelf.expel(Expelled(A, Reason.REVOKED, frozenset({old.update.base})))) == (
        Revoke(old, Reason.REVOKED),
    )
    assert shelf.held(A) == (new,)
