"""Updates that wait for a merge outside of the round that they were made for, sans I/O.

    offered --> FETCHING --received--> TAKEN --merged--> gone
                    \\--refused, not to be had, or its client expelled--> gone

Laws: 1. One update per client and base; another one for the same base is an equivocation, and the first one
wins. 2. At most `per_client_max` of one client: who comes back with a backlog must not fill an aggregate.
3. Sorted by client, then by round: the order of a merge is part of its result.
Not here: which bases are known, how stale is too stale, and what is late (`run`, `buffer`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from common.ids import ClientId, Digest
from common.messages import Reason
from coordinator.round import Expelled, Fetch, Judge, Offered, Received, Revoke, Unfetched

Effects = Iterator[Fetch | Judge]


@dataclass(slots=True)
class Entry:
    """One update on the shelf."""

    offer: Offered
    taken: bool
    late: bool  # as it was told when it was taken


class Shelf:
    """Keeps what is to be merged later."""

    def __init__(self, per_client_max: int, is_late: Callable[[Offered], bool] = lambda _: True) -> None:
        self._per_client_max, self._is_late = per_client_max, is_late
        self._entries: dict[tuple[ClientId, str], Entry] = {}  # by client and base

    def knows(self, client: ClientId, base: str) -> bool:
        """Tell whether an update of this client from this base is here."""
        return (client, base) in self._entries

    def awaits(self, client: ClientId, delta: str) -> bool:
        """Tell whether this delta is on its way here."""
        return any(not entry.taken for entry in self._of(client, delta))

    def offer(self, offer: Offered) -> Effects:
        """Take an update in; one that is known gets its answer again."""
        entry = self._entries.get((offer.client, offer.update.base))
        if entry is None and self._count(offer.client) >= self._per_client_max:
            detail = f"{self._per_client_max} updates of this client wait already"
            yield Judge(offer, Reason.TOO_MANY, detail)
        elif entry is not None and entry.offer.delta != offer.delta:
            yield Judge(offer, Reason.EQUIVOCATION, "another update from this base came first")
        elif entry is not None and entry.taken:
            yield Judge(offer, late=entry.late)
        else:
            self.keep(offer, taken=False)
            yield Fetch(offer)

    def received(self, event: Received) -> Effects:
        """Judge an update that is here, if it was offered here."""
        for entry in self._of(event.client, event.delta):
            if entry.taken:
                continue
            if event.problem is None:
                entry.taken, entry.late = True, self._is_late(entry.offer)
                yield Judge(entry.offer, late=entry.late)
            else:
                self._forget(entry.offer)
                yield Judge(entry.offer, event.problem, event.detail)

    def expel(self, expelled: Expelled) -> Iterator[Judge | Revoke]:
        """Let nothing that is concerned count any more."""
        for entry in [entry for entry in self._sorted() if expelled.concerns(entry.offer)]:
            self._forget(entry.offer)
            reason = expelled.reason
            yield Revoke(entry.offer, reason) if entry.taken else Judge(entry.offer, reason)

    def held(self, client: ClientId) -> tuple[Offered, ...]:
        """List what is here, or on its way here, of a client."""
        return tuple(entry.offer for entry in self._sorted() if entry.offer.client == client)

    def unfetched(self, event: Unfetched) -> None:
        """Forget an update that could not be had: its client will offer it again."""
        for entry in self._of(event.client, event.delta):
            if not entry.taken:
                self._forget(entry.offer)

    def keep(self, offer: Offered, *, taken: bool) -> None:
        """Put an update here as it stands."""
        self._entries[offer.client, offer.update.base] = Entry(offer, taken, self._is_late(offer))

    def adopt(self, base: Digest) -> tuple[Entry, ...]:
        """Hand over all that start from a base, sorted by client."""
        found = [entry for entry in self._sorted() if entry.offer.update.base == base]
        for entry in found:
            self._forget(entry.offer)
        return tuple(found)

    def bases(self) -> set[Digest]:
        """List the models that what is here starts from."""
        return {Digest(base) for _, base in self._entries}

    def taken(self) -> tuple[Offered, ...]:
        """List what can be merged, in order."""
        return tuple(entry.offer for entry in self._sorted() if entry.taken)

    def take(self) -> tuple[Offered, ...]:
        """Hand over what can be merged, in order."""
        ready = self.taken()
        for offer in ready:
            self._forget(offer)
        return ready

    def clear(self) -> tuple[Entry, ...]:
        """Hand over everything."""
        entries = tuple(self._sorted())
        self._entries.clear()
        return entries

    def _count(self, client: ClientId) -> int:
        return sum(owner == client for owner, _ in self._entries)

    def _of(self, client: ClientId, delta: str) -> list[Entry]:
        return [
            entry
            for entry in self._entries.values()
            if (entry.offer.client, entry.offer.delta) == (client, delta)
        ]

    def _forget(self, offer: Offered) -> None:
        del self._entries[offer.client, offer.update.base]

    def _sorted(self) -> list[Entry]:
        return sorted(self._entries.values(), key=lambda entry: in_order(entry.offer))


def in_order(offer: Offered) -> tuple[str, int]:
    """Sort updates as they are merged."""
    return offer.client, offer.update.round
