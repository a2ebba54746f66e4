"""The buffered-asynchronous mode, sans I/O: no client waits for another one.

    IDLE --start--> GATHERING --enough clients--> ROUND --merged--> EVALUATING --+--> OVER
                                                   ^ \\---failed-------^          |
                                                   +-----------------------------+
Source: Nguyen et al. 2022, FedBuff, Algorithm 1 (arXiv:2106.06639).
A client takes the current model when it comes and after each answer; updates from any version that is not too old
wait on the shelf, and as soon as `size` are there they are merged. A round is one filling of the shelf, and ends
with its merge. Events and effects are those of `run`; one driver moves either machine.
Laws: 1. A client answers once from a version, and is not asked from it again; while it is at work it gets nothing
newer, so that a slow one comes to an end, unless its base has become too stale. 2. An update that was taken is
merged once, or revoked when the run ends or its client is expelled; what was being merged then counts if a model comes
of that merge. 3. The shelf goes on filling while a merge, or its
evaluation, is under way; clients then wait for what comes of it. 4. A round's number is never used twice;
`ABANDONED_MAX` failed merges in a row end the run. 5. `Resumed` repeats the merge that was under way, and asks nobody
whose answer is known.
Not here: what became of updates that were merged earlier (`ledger`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from common.bus import LinkDown, LinkUp
from common.ids import ClientId, Digest
from common.limits import STALENESS_MAX
from common.machine import Seconds, Tick
from common.messages import Reason
from coordinator.cohort import Draws
from coordinator.round import (
    Assign,
    ClientCame,
    ClientDeclined,
    ClientLeft,
    Counted,
    Expelled,
    Forgo,
    Judge,
    Merge,
    Merged,
    MergeFailed,
    Offered,
    Received,
    Revoke,
    Unfetched,
)
from coordinator.round import Phase as RoundPhase
from coordinator.run import (
    ABANDONED_MAX,
    RELINK_S,
    CloseRound,
    Effects,
    EndRun,
    Evaluated,
    Gather,
    Key,
    OpenRound,
    Phase,
    Release,
    Remember,
    Resumed,
    RunEffect,
    RunEvent,
    RunPolicy,
    Snapshot,
    Started,
    StopAsked,
    key_of,
)
from coordinator.shelf import Shelf


@dataclass(frozen=True, slots=True)
class BufferPolicy:
    """When the shelf is merged."""

    size: int  # K: as soon as so many updates were taken
    least: int = 1  # or so many, at the deadline or when nobody is at work
    per_client: int = 2  # updates of one client that wait


@dataclass(frozen=True, slots=True)
class Work:
    """What a client is at."""

    base: Digest
    since: Seconds


Answer = Judge | Reason  # what an update was told; or why there is none, or no longer its delta


@dataclass(slots=True)
class BufferMachine:
    """Keeps clients at work, and merges what they made."""

    policy: (
        RunPolicy  # `cohort_size`: how many are at work at once; `quorum_share` and `late` say nothing here
    )
    buffer: BufferPolicy
    phase: Phase = Phase.IDLE
    base: Digest | None = None
    rounds: int = 0  # asked for
    committed: int = 0  # the current version
    number: int = 0  # of the round that was opened last
    here: set[ClientId] = field(default_factory=set)
    at_work: dict[ClientId, Work] = field(default_factory=dict)  # of those who are here
    releases: dict[Digest, Release] = field(default_factory=dict)  # the newest STALENESS_MAX + 1
    answers: dict[Digest, dict[ClientId, Answer]] = field(default_factory=dict)  # to each of these releases
    shelf: Shelf = field(init=False)
    draws: Draws = field(init=False)
    merging: tuple[Offered, ...] = ()  # in order
    expelled: dict[Key, Reason] = field(
        default_factory=dict
    )  # what is not to count if no model comes of this merge
    refusals: dict[ClientId, Reason] = field(default_factory=dict)  # since the last round ended
    declined: set[ClientId] = field(default_factory=set)  # in this round, from the version of now
    stopping: bool = False  # with the open round
    abandoned_in_a_row: int = 0
    slowest_s: Seconds | None = None  # answer so far
    last_why: str = ""
    opened_at: Seconds = 0.0
    due: Seconds = 0.0  # the next deadline
    overdue: bool = False  # the round has had its first
    cut_off_at: Seconds | None = None  # when our own link went down

    def __post_init__(self) -> None:
        """Let the shelf know what is late: what does not start from the current version."""
        self.draws = Draws(self.policy.selection, self.policy.seed)
        self.shelf = Shelf(self.buffer.per_client, lambda offer: self._staleness(offer) > 0)

    def handle(self, event: RunEvent, now: Seconds) -> tuple[RunEffect, ...]:
        """Take in what happened; say what is to be done, in order."""
        return tuple(self._handle(event, now))

    def wake_at(self) -> Seconds | None:
        """Say when the open round's next deadline is; never, while nothing can come, unless the run is to stop."""
        return self.due_at() if self.cut_off_at is None or self.stopping else None

    def due_at(self) -> Seconds | None:
        """Say when the open round's next deadline is, even while it merges: a task needs a deadline then too."""
        return self.due if self.phase in {Phase.ROUND, Phase.EVALUATING} else None

    def awaits(self, client: ClientId, delta: str) -> bool:
        """Tell whether this delta is on its way here from this client."""
        return self.shelf.awaits(client, delta)

    def held(self, client: ClientId) -> tuple[Offered, ...]:
        """List what is here of a client, or on its way here, and not merged."""
        merging = tuple(offer for offer in self.merging if offer.client == client)
        return (*self.shelf.held(client), *merging)

    def bases_in_use(self) -> set[Digest]:
        """List the models that somebody may still fetch."""
        return {work.base for work in self.at_work.values()}

    def progress(self) -> tuple[str, int, int]:
        """Tell the phase, how many updates the open round waits for, and how many of them were taken."""
        if self.phase is not Phase.ROUND:
            return str(self.phase), 0, 0
        if self.merging:
            return str(RoundPhase.MERGING), len(self.merging), len(self.merging)
        return str(RoundPhase.REPORTING), self.buffer.size, len(self.shelf.taken())

    def awaited(self) -> int:
        """Tell how many clients must be here before work is given out; 0: nobody is waited for."""
        return self.policy.wait_for if self.phase is Phase.GATHERING else 0

    def snapshot(self) -> Snapshot:
        """Say all that a restart needs, but for the updates. Not while a round is being recorded."""
        assert self.base is not None
        return Snapshot(
            phase=self.phase,
            base=self.base,
            rounds=self.rounds,
            committed=self.committed,
            number=self.number,
            first=self.phase is Phase.GATHERING,
            abandoned_in_a_row=self.abandoned_in_a_row,
            slowest_s=self.slowest_s,
            last_why=self.last_why,
            releases=tuple(self.releases.values()),
            merging=tuple((offer.client, offer.update.base) for offer in self.merging),
            records=dict(self.draws.records),
        )

    def _handle(self, event: RunEvent, now: Seconds) -> Effects:  # noqa: C901, PLR0912 - one branch an event
        match event:
            case Started():
                yield from self._start(event, now)
            case Resumed():
                yield from self._resume(event, now)
            case StopAsked():
                yield from self._stop(event, now)
            case Evaluated(enough):
                yield from self._evaluated(now, enough)
            case ClientCame(client):
                self.here.add(client)
                self.at_work.pop(client, None)  # what it had begun may be gone
                yield from self._open_if_enough(now)
                yield from self._go_on(now)
            case ClientLeft(client):
                self.here.discard(client)
                self.at_work.pop(client, None)
                yield from self._go_on(now)
            case Expelled():
                yield from self._expelled(event, now)
            case Offered():
                yield from self._offered(event, now)
            case Received():
                yield from self._judge(self.shelf.received(event), now)
            case Unfetched():
                self.shelf.unfetched(event)
            case ClientDeclined():
                yield from self._declined(event, now)
            case Merged(model):
                yield from self._merged(model, now)
            case MergeFailed(why):
                yield from self._merge_failed(why, now)
            case LinkDown():
                self.cut_off_at = now if self.cut_off_at is None else self.cut_off_at
            case LinkUp():
                self._linked(now)
            case Tick():
                yield from self._tick(now)

    def _linked(self, now: Seconds) -> None:
        """Let the open round's time go on where it stood when the link broke, with time for what could not come."""
        if self.cut_off_at is not None:
            self.due = max(self.due + now - max(self.cut_off_at, self.opened_at), now + RELINK_S)
        self.cut_off_at = None

    # --- its beginning, its end, and what interrupts it -----------------------------------------------

    def _start(self, event: Started, now: Seconds) -> Effects:
        if self.phase not in {Phase.IDLE, Phase.OVER}:
            return
        self.phase = Phase.GATHERING
        self.base, self.rounds, self.committed = event.base, event.rounds, 0
        self.stopping, self.abandoned_in_a_row = False, 0
        self.declined.clear()
        self.releases = {event.base: Release(event.base, 0, self.number + 1)}
        self.answers = {event.base: {}}
        self.refusals = {}
        yield Remember(self.snapshot())
        yield from self._gather(now)

    def _gather(self, now: Seconds) -> Effects:
        if len(self.here) < self.policy.wait_for:
            yield Gather(here=len(self.here), needed=self.policy.wait_for)
        yield from self._open_if_enough(now)

    def _open_if_enough(self, now: Seconds) -> Effects:
        if self.phase is Phase.GATHERING and len(self.here) >= self.policy.wait_for:
            yield from self._next(now)

    def _resume(self, event: Resumed, now: Seconds) -> Effects:
        if self.phase is not Phase.IDLE:
            return
        was = event.snapshot
        self.phase, self.base, self.rounds, self.committed = was.phase, was.base, was.rounds, was.committed
        self.number, self.stopping = was.number, event.stopping
        self.abandoned_in_a_row, self.slowest_s = was.abandoned_in_a_row, was.slowest_s
        self.last_why = was.last_why
        if was.phase is not Phase.GATHERING:  # else they are waited for anew
            self.here |= set(event.here)
        self.releases = {release.base: release for release in was.releases}
        self.draws.records = dict(was.records)
        self.answers = {base: {} for base in self.releases}
        self._restock(event)
        if was.phase is Phase.ROUND:
            yield from self._open(now)
        elif was.phase is Phase.EVALUATING:
            yield from self._evaluated(now, event.enough)
        elif was.phase is Phase.GATHERING and self.stopping:
            yield from self._end("stopped")
        elif was.phase is Phase.GATHERING:
            yield from self._gather(now)

    def _restock(self, event: Resumed) -> None:
        """Put what was taken where it was, and know whose answers are known."""
        taken = {(offer.client, offer.update.base): offer for offer in event.taken}
        left = tuple(taken[key] for key in event.snapshot.merging if key in taken)
        self.merging = left if len(left) >= self.buffer.least else ()
        for offer in taken.values():
            told = Judge(offer, late=self._staleness(offer) > 0)
            self.answers[Digest(offer.update.base)][offer.client] = told
            if offer not in self.merging:
                self.shelf.keep(offer, taken=True)
        self.declined = {client for client, _ in event.declined} - {client for client, _ in event.refused}
        self.refusals = {**dict(event.declined), **dict(event.refused)}
        for client, reason in self.refusals.items():
            self.answers[event.snapshot.base].setdefault(client, reason)

    def _stop(self, event: StopAsked, now: Seconds) -> Effects:
        if self.phase in {Phase.IDLE, Phase.OVER}:
            return
        self.stopping = True
        if self.phase is Phase.GATHERING:
            yield from self._end("stopped")
        elif self.phase is Phase.ROUND:
            if event.now and self._is_collecting():
                yield from self._abandon("stopped", now)
            else:
                yield from self._go_on(now)

    def _evaluated(self, now: Seconds, enough: str) -> Effects:
        if self.phase is not Phase.EVALUATING:
            return
        if self.committed >= self.rounds:
            yield from self._end("")
        elif enough:
            yield from self._end(enough, completed=True)
        elif self.stopping:
            yield from self._end("stopped")
        elif self.abandoned_in_a_row >= ABANDONED_MAX:
            yield from self._end(
                f"{ABANDONED_MAX} rounds in a row came to nothing; the last: {self.last_why}"
            )
        else:
            yield from self._next(now)

    def _end(self, why: str, *, completed: bool = False) -> Effects:
        assert self.base is not None
        self.phase = Phase.OVER
        pending = set(self.at_work)
        for entry in self.shelf.clear():
            offer = entry.offer
            if entry.taken:
                self.answers[Digest(offer.update.base)][offer.client] = Judge(offer, Reason.RUN_OVER)
                yield Revoke(offer, Reason.RUN_OVER)
            else:
                pending.add(offer.client)
        self.at_work = {}
        for client in sorted(pending):
            yield Forgo(client)
        yield EndRun(self.base, self.committed, completed or self.committed >= self.rounds, why)

    # --- its rounds -----------------------------------------------------------------------------------

    def _next(self, now: Seconds) -> Effects:
        self.phase = Phase.ROUND
        self.number += 1
        yield from self._open(now)

    def _open(self, now: Seconds) -> Effects:
        """Ask everybody who can take work, and let the shelf fill; or repeat a merge that was under way."""
        assert self.base is not None
        deadline_s = self.policy.deadline_s(self.slowest_s)
        self.opened_at, self.due, self.overdue = now, now + deadline_s, False
        chosen = self._choose()
        self._ask(chosen, now)
        yield Remember(self.snapshot())
        yield OpenRound(self.number, self.base, chosen, deadline_s)
        for client in chosen:
            yield Assign(client)
        if self.merging:
            yield Merge(self._counted())
        yield from self._go_on(now)

    def _choose(self) -> tuple[ClientId, ...]:
        """Draw who is asked now: of those who are here, not at work, and have not answered from this version."""
        assert self.base is not None
        if not self._is_collecting():
            return ()
        ready = self.here - self.at_work.keys() - self.answers[self.base].keys()
        if self.stopping:  # only who was asked before, and may have lost its task
            ready &= self.releases[self.base].asked
        size = self.policy.cohort_size
        free = None if size is None else max(0, size - len(self.at_work))
        return self.draws.draw(ready, free, self.number)

    def _ask(self, chosen: tuple[ClientId, ...], now: Seconds) -> None:
        assert self.base is not None
        release = self.releases[self.base]
        self.releases[self.base] = replace(release, asked=release.asked.union(chosen))
        self.draws.asked(chosen)
        for client in chosen:
            self.at_work[client] = Work(self.base, now)

    def _go_on(self, now: Seconds) -> Effects:
        """Merge if it is time to; else see that nobody who could work is idle."""
        if not self._is_collecting():
            return
        if len(self.shelf.taken()) >= self.buffer.size:
            yield from self._merge()
            return
        chosen = self._choose()
        if chosen:
            self._ask(chosen, now)
            yield Remember(self.snapshot())  # who is not known to have been asked is refused
        for client in chosen:
            yield Assign(client)
        if self.at_work and not self.overdue:
            return
        if len(self.shelf.taken()) >= self.buffer.least:
            yield from self._merge()
        elif self.stopping:
            yield from self._abandon("stopped", now)
        elif self.overdue and not self.at_work:
            yield from self._abandon("nobody is left to be asked", now)

    def _tick(self, now: Seconds) -> Effects:
        due = self.wake_at()
        if due is None or now < due:
            return
        self.overdue, self.due = True, now + self.policy.deadline_s(self.slowest_s)
        yield from self._go_on(now)

    def _merge(self) -> Effects:
        # Unlike the paper: what was taken beyond K goes along, or a slow merge would let the shelf fill up.
        self.merging = self.shelf.take()
        yield Remember(self.snapshot())
        yield Merge(self._counted())

    def _merged(self, model: Digest, now: Seconds) -> Effects:
        if self.phase is Phase.ROUND and self.merging:
            counted, base = self._counted(), self.base
            self._advance(model)
            yield from self._close(now, base, committed=True, counted=counted)

    def _merge_failed(self, why: str, now: Seconds) -> Effects:
        if self.phase is Phase.ROUND and self.merging:
            for offer in self.merging:
                if reason := self.expelled.get(key_of(offer)):
                    self.answers[Digest(offer.update.base)][offer.client] = Judge(offer, reason)
                    yield Revoke(offer, reason)
                else:
                    self.shelf.keep(offer, taken=True)
            yield from self._abandon(why, now)

    def _abandon(self, why: str, now: Seconds) -> Effects:
        assert self.base is not None
        self.abandoned_in_a_row += 1
        self.last_why = why
        for client in self.declined:  # the next round is another try
            self.answers[self.base].pop(client, None)
        self.declined.clear()
        yield from self._close(now, self.base, committed=False)

    def _close(
        self, now: Seconds, base: Digest | None, *, committed: bool, counted: tuple[Counted, ...] = ()
    ) -> Effects:
        assert self.base is not None
        assert base is not None
        self.phase, self.merging = Phase.EVALUATING, ()
        self.expelled.clear()
        self.draws.learn(one.update for one in counted)
        refusals, self.refusals = tuple(sorted(self.refusals.items())), {}
        why = "" if committed else self.last_why
        yield CloseRound(
            self.number, committed, base, self.base, why, counted, refusals, now - self.opened_at
        )

    def _advance(self, model: Digest) -> None:
        """Let a new model be the base of what follows; forget those that nothing can start from any more."""
        self.base, self.abandoned_in_a_row = model, 0
        self.committed += 1
        self.releases[model] = Release(model, self.committed, self.number + 1)
        self.answers[model] = {}
        self.declined.clear()
        old = set(list(self.releases)[: -STALENESS_MAX - 1])
        self.at_work = {client: work for client, work in self.at_work.items() if work.base not in old}
        for base in old - self.shelf.bases():  # what waits has to be told its staleness
            del self.releases[base], self.answers[base]

    # --- updates --------------------------------------------------------------------------------------

    def _offered(self, offer: Offered, now: Seconds) -> Effects:
        release = self.releases.get(Digest(offer.update.base))
        if release is None:
            oldest = min((known.number for known in self.releases.values()), default=0)
            yield Judge(offer, Reason.TOO_STALE if offer.update.round < oldest else Reason.WRONG_BASE)
        elif offer.client not in release.asked:
            yield Judge(offer, Reason.NOT_INVITED)
        elif answer := self._told(offer):
            if answer.refused is not Reason.EQUIVOCATION:  # that of one who declined first is settled too
                self.answers[release.base][offer.client] = answer
                self.declined.discard(offer.client)
            yield answer
        elif self.shelf.knows(offer.client, offer.update.base):
            yield from self._judge(self.shelf.offer(offer), now)
        else:
            yield from self._offered_anew(offer, now)

    def _offered_anew(self, offer: Offered, now: Seconds) -> Effects:
        if offer.update.round > self.number:
            yield Judge(offer, Reason.WRONG_ROUND)
        elif not self._will_merge():
            yield from self._judge(iter([Judge(offer, Reason.TOO_LATE)]), now)
        elif self._staleness(offer) > STALENESS_MAX:
            yield from self._judge(iter([Judge(offer, Reason.TOO_STALE)]), now)
        else:
            yield from self._judge(self.shelf.offer(offer), now)

    def _told(self, offer: Offered) -> Judge | None:
        """Repeat what was told; an update other than the first from this base is an equivocation."""
        match self.answers[Digest(offer.update.base)].get(offer.client):
            case Judge(first) as told:
                if first.delta == offer.delta:
                    return told
                return Judge(offer, Reason.EQUIVOCATION, "another update from this base came first")
            case Reason() as reason:
                return Judge(offer, reason)
            case None:
                return None

    def _judge(self, effects: Iterator[RunEffect], now: Seconds) -> Effects:
        """Pass on what the shelf decided; whoever is answered can take work again."""
        for effect in effects:
            yield effect
            if isinstance(effect, Judge) and effect.refused is not Reason.EQUIVOCATION:
                yield from self._answered(effect.offer.client, effect.offer.update.base, effect, now)

    def _expelled(self, event: Expelled, now: Seconds) -> Effects:
        """Let nothing of a client count any more, but for what is being merged, if a model comes of that."""
        client, reason = event.client, event.reason
        self.expelled |= {key_of(offer): reason for offer in self.merging if event.concerns(offer)}
        work = None
        if event.bases is None:
            self.here.discard(client)
            work = self.at_work.pop(client, None)
        ended = tuple(self.shelf.expel(event))
        for effect in ended:
            base = Digest(effect.offer.update.base)
            self.answers[base][client] = Judge(effect.offer, reason)
            if (at_it := self.at_work.get(client)) is not None and at_it.base == base:
                del self.at_work[client]
            yield effect
        if ended or work is not None:
            self.refusals[client] = reason
        if work is not None:
            yield Forgo(client)
        yield from self._go_on(now)

    def _declined(self, event: ClientDeclined, now: Seconds) -> Effects:
        """Wait no longer for an update, unless it is on its way, or the client is at work from another base by now."""
        if event.base not in {None, self.base}:
            return
        work = self.at_work.get(event.client)
        asked = [release.base for release in self.releases.values() if release.number <= event.round]
        if work is None or self.shelf.knows(event.client, work.base):
            return
        if asked and work.base == asked[-1]:
            if work.base == self.base and event.base is None:
                self.declined.add(event.client)
            yield from self._answered(event.client, work.base, event.reason, now)

    def _answered(self, client: ClientId, base: str, answer: Answer, now: Seconds) -> Effects:
        self.answers[Digest(base)][client] = answer
        reason = answer.refused if isinstance(answer, Judge) else answer
        if reason is not None:
            self.refusals[client] = reason
        work = self.at_work.get(client)
        if work is not None and work.base == base:
            del self.at_work[client]
            if isinstance(answer, Judge):
                self.slowest_s = max(now - work.since, self.slowest_s or 0.0)
        yield from self._go_on(now)

    def _staleness(self, offer: Offered) -> int:
        return self.committed - self.releases[Digest(offer.update.base)].version

    def _counted(self) -> tuple[Counted, ...]:
        return tuple(Counted(offer.update, self._staleness(offer)) for offer in self.merging)

    def _is_collecting(self) -> bool:
        return self.phase is Phase.ROUND and not self.merging

    def _will_merge(self) -> bool:
        """Tell whether another merge is to come in this run."""
        if self.phase is Phase.OVER:
            return False
        more = not self.stopping and self.committed + bool(self.merging) < self.rounds
        return self._is_collecting() or more
