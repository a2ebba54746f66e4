"""A run, sans I/O: rounds in order, deadlines from what was observed, stop rules.

    IDLE --start--> GATHERING --enough clients--> ROUND --committed--> EVALUATING --+--> OVER
                        ^                           |  \\--abandoned--+             |
                        +---------------------------+----------------+-------------+

The machine of the open round lives in here and gets its events through here, so that one driver and one clock
move both. What the round decides comes out as it is, but for `Close`, which becomes an evaluation or another
try, and `Merge`, which takes along what waits on the shelf.
Laws: 1. A round's number is never used twice. 2. A deadline is patience x the slowest answer of the last
round, never below a floor; before anything was observed, a fixed one; a round that somebody missed never
shortens it. 3. `ABANDONED_MAX` abandoned rounds in a row end the run. 4. An update that was taken is merged
once: with its round, with a later one, or it is revoked when the run ends or its client is expelled; what was being
merged then counts if a model comes of that merge. 5. `Resumed` with what was on disk
goes on as if nothing had happened, but that the open round's deadline starts anew. 6. While our own
link is down, no deadline passes, unless the run is to stop: what could not come is waited for.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from common.bus import LinkDown, LinkUp
from common.ids import ClientId, Digest
from common.limits import STALENESS_MAX
from common.machine import Seconds, Tick
from common.messages import Reason
from coordinator import cohort
from coordinator.cohort import Draws, Record, Selection
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
    Received,
    Revoke,
    RoundMachine,
    RoundPolicy,
    Standing,
    Unfetched,
)
from coordinator.round import Phase as RoundPhase
from coordinator.shelf import Shelf, in_order

ABANDONED_MAX = 3
DEADLINE_S_MIN = 10.0
RELINK_S = 10.0  # left to an open round at least when our own link is back: clients have to find theirs again
LATE_PER_CLIENT_MAX = 4  # updates of one client that wait for a merge

# --- events ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """An operator, or the coordinator itself, wants a run from this model on."""

    base: Digest
    rounds: int


@dataclass(frozen=True, slots=True)
class StopAsked:
    """The run is to end: after the open round, or at once."""

    now: bool = False


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The new model was evaluated, and the round recorded."""

    enough: str = ""  # why the run may end with it


@dataclass(frozen=True, slots=True)
class Release:
    """A model that clients were asked to train, and who was."""

    base: Digest
    version: int  # models committed before it
    number: int  # of the first round from it
    asked: frozenset[ClientId] = frozenset()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run as it is written to disk; the updates that were taken lie beside it."""

    phase: "Phase"
    base: Digest
    rounds: int
    committed: int
    number: int
    first: bool
    abandoned_in_a_row: int
    slowest_s: Seconds | None
    last_why: str
    releases: tuple[Release, ...]
    cohort: tuple[ClientId, ...] = ()  # of the open round, as are those below
    policy: RoundPolicy | None = None
    merging: tuple[tuple[ClientId, str], ...] = ()  # by client and base, once the merge has begun
    records: dict[ClientId, Record] = field(default_factory=dict)  # what was seen of clients


@dataclass(frozen=True, slots=True)
class Resumed:
    """The run that a coordinator had begun goes on, from what it had written."""

    snapshot: Snapshot
    taken: tuple[Offered, ...]  # and not merged yet, in the order they were taken
    refused: tuple[tuple[ClientId, Reason], ...]  # whose one update from the base of now was refused
    declined: tuple[tuple[ClientId, Reason], ...]  # in the open round
    here: tuple[ClientId, ...]  # when it stopped; who does not come back is declared gone in time
    stopping: bool = False  # it was told to end with its open round
    enough: str = ""  # why it was to end with the last round that was recorded


RunEvent = (
    Started
    | Resumed
    | StopAsked
    | Evaluated
    | Offered
    | Received
    | Unfetched
    | ClientDeclined
    | ClientLeft
    | Expelled
    | ClientCame
    | Merged
    | MergeFailed
    | LinkDown
    | LinkUp
    | Tick
)

# --- effects --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Remember:
    """Write the run to disk, before what follows."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Gather:
    """Too few clients are here: say so."""

    here: int
    needed: int


@dataclass(frozen=True, slots=True)
class OpenRound:
    """A round begins: let its base be fetched, then follow the assignments."""

    number: int
    base: Digest
    cohort: tuple[ClientId, ...]
    deadline_s: Seconds


@dataclass(frozen=True, slots=True)
class CloseRound:
    """A round ended. Evaluate its model if it committed, record all of it at once, and tell by `Evaluated`."""

    number: int
    committed: bool
    base: Digest
    model: Digest
    why: str
    updates: tuple[Counted, ...]
    refusals: tuple[tuple[ClientId, str], ...]
    seconds: Seconds


@dataclass(frozen=True, slots=True)
class EndRun:
    """The run is over."""

    model: Digest
    rounds: int  # committed
    completed: bool  # all rounds that were asked for
    why: str


RunEffect = (
    Assign | Fetch | Judge | Revoke | Forgo | Merge | Gather | Remember | OpenRound | CloseRound | EndRun
)
Effects = Iterator[RunEffect]

# --- the machine ----------------------------------------------------------------------------------


class Phase(StrEnum):
    """What is going on."""

    IDLE = "idle"
    GATHERING = "gathering"
    ROUND = "round"
    EVALUATING = "evaluating"
    OVER = "over"


class Late(StrEnum):
    """What becomes of an update that comes after its round."""

    BUFFER = "buffer"  # it counts in the next merge, its delta scaled down by its staleness
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class RunPolicy:
    """How a run goes."""

    seed: int
    wait_for: int  # clients that must be here before the first round
    cohort_size: int | None = None  # None: all who are here
    quorum_share: float = 0.5  # of the cohort
    patience: float = 3.0  # a deadline is so many times the slowest answer of the last round
    first_deadline_s: Seconds = 600.0
    late: Late = Late.BUFFER
    selection: Selection = field(default_factory=cohort.uniform)  # of a cohort

    def quorum(self, asked: int) -> int:
        """Say how many of so many are enough."""
        return max(1, -int(-asked * self.quorum_share // 1))

    def deadline_s(self, slowest_s: Seconds | None) -> Seconds:
        """Say how long to wait where the slowest answer took so long; None: nothing was observed."""
        if slowest_s is None:
            return self.first_deadline_s
        return max(DEADLINE_S_MIN, self.patience * slowest_s)


Key = tuple[ClientId, Digest]


def key_of(offer: Offered) -> Key:
    """Name an update: a client makes one from a base."""
    return offer.client, Digest(offer.update.base)


@dataclass(slots=True)
class RunMachine:
    """Opens rounds until enough have committed."""

    policy: RunPolicy
    phase: Phase = Phase.IDLE
    base: Digest | None = None
    rounds: int = 0  # asked for
    committed: int = 0
    number: int = 0  # of the round that was opened last
    here: set[ClientId] = field(default_factory=set)
    round: RoundMachine | None = None
    releases: dict[Digest, Release] = field(default_factory=dict)  # the newest STALENESS_MAX + 1
    shelf: Shelf = field(default_factory=lambda: Shelf(LATE_PER_CLIENT_MAX))
    merging: tuple[Offered, ...] = ()  # in order
    expelled: dict[Key, Reason] = field(
        default_factory=dict
    )  # what is not to count if no model comes of this merge
    spent: dict[ClientId, Reason] = field(default_factory=dict)  # whose one update from this base was refused
    first: bool = True  # the run's first round is still to come
    stopping: bool = False  # with the open round
    abandoned_in_a_row: int = 0
    slowest_s: Seconds | None = None  # answer in the last round, or in an earlier one if somebody missed it
    last_why: str = ""
    cut_off_at: Seconds | None = None  # when our own link went down
    draws: Draws = field(init=False)

    def __post_init__(self) -> None:
        """Begin with no record of anybody."""
        self.draws = Draws(self.policy.selection, self.policy.seed)

    def handle(self, event: RunEvent, now: Seconds) -> tuple[RunEffect, ...]:
        """Take in what happened; say what is to be done, in order."""
        return tuple(self._handle(event, now))

    def wake_at(self) -> Seconds | None:
        """Say when the open round's deadline is; never, while nothing can come, unless the run is to stop with it."""
        return self.due_at() if self.cut_off_at is None or self.stopping else None

    def due_at(self) -> Seconds | None:
        """Say when the open round's deadline is."""
        return self.round.wake_at() if self.round else None

    def awaits(self, client: ClientId, delta: str) -> bool:
        """Tell whether this delta is on its way here from this client."""
        offered = self.round.offers.get(client) if self.round else None
        return (offered is not None and offered.delta == delta) or self.shelf.awaits(client, delta)

    def held(self, client: ClientId) -> tuple[Offered, ...]:
        """List what is here of a client, or on its way here, and not merged."""
        merging = tuple(offer for offer in self.merging if offer.client == client)
        return (*(self.round.held(client) if self.round else ()), *self.shelf.held(client), *merging)

    def bases_in_use(self) -> set[Digest]:
        """List the models that somebody may still fetch."""
        return {self.base} if self.base is not None else set()

    def progress(self) -> tuple[str, int, int]:
        """Tell the phase, how many updates the open round waits for, and how many of them were taken."""
        if self.phase is not Phase.ROUND or self.round is None:
            return str(self.phase), 0, 0
        return str(self.round.phase), len(self.round.cohort), len(self.round.taken())

    def awaited(self) -> int:
        """Tell how many clients must be here before the next round; 0: nobody is waited for."""
        return self._needed() if self.phase is Phase.GATHERING else 0

    def snapshot(self) -> Snapshot:
        """Say all that a restart needs, but for the updates. Not while a round is being recorded."""
        assert self.base is not None
        open_ = self.round if self.phase is Phase.ROUND else None
        return Snapshot(
            phase=self.phase,
            base=self.base,
            rounds=self.rounds,
            committed=self.committed,
            number=self.number,
            first=self.first,
            abandoned_in_a_row=self.abandoned_in_a_row,
            slowest_s=self.slowest_s,
            last_why=self.last_why,
            releases=tuple(self.releases.values()),
            cohort=open_.cohort if open_ else (),
            policy=open_.policy if open_ else None,
            merging=tuple((offer.client, offer.update.base) for offer in self.merging),
            records=dict(self.draws.records),
        )

    def _handle(self, event: RunEvent, now: Seconds) -> Effects:
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
                yield from self._in_round(event, now)
                yield from self._open_if_enough(now)
            case ClientLeft(client):
                self.here.discard(client)
                yield from self._in_round(event, now)
            case Expelled():
                yield from self._expelled(event)
                yield from self._in_round(event, now)
            case _:
                yield from self._heard(event, now)

    def _heard(self, event: RunEvent, now: Seconds) -> Effects:
        match event:
            case Offered():
                yield from self._offered(event, now)
            case Received() if self.shelf.awaits(event.client, event.delta):
                for effect in self.shelf.received(event):
                    if isinstance(effect, Judge) and effect.refused and effect.offer.update.base == self.base:
                        self.spent[event.client] = effect.refused
                    yield effect
            case Unfetched() if self.shelf.awaits(event.client, event.delta):
                self.shelf.unfetched(event)
            case ClientDeclined(client, number, reason, base):
                if number == self.number and base in {None, self.base}:
                    self.spent |= {client: reason} if base else {}
                    yield from self._in_round(event, now)
            case LinkDown() | LinkUp():
                self._link(event, now)
            case Tick() if self.wake_at() is None:
                pass
            case _:
                yield from self._in_round(event, now)

    def _link(self, event: LinkDown | LinkUp, now: Seconds) -> None:
        """Let the open round's time stand still with the link, and then leave some for what could not come."""
        if isinstance(event, LinkDown):
            self.cut_off_at = now if self.cut_off_at is None else self.cut_off_at
            return
        due = self.due_at()
        if self.cut_off_at is not None and due is not None and self.round and self.round.begun_at is not None:
            since = max(self.cut_off_at, self.round.begun_at)
            self.round.begun_at += max(now - since, now + RELINK_S - due)
        self.cut_off_at = None

    # --- its beginning, its end, and what interrupts it -----------------------------------------------

    def _start(self, event: Started, now: Seconds) -> Effects:
        if self.phase not in {Phase.IDLE, Phase.OVER}:
            return
        self.phase, self.round = Phase.GATHERING, None
        self.base, self.rounds, self.committed = event.base, event.rounds, 0
        self.stopping, self.abandoned_in_a_row, self.first = False, 0, True
        self.spent.clear()
        self.releases = {event.base: Release(event.base, 0, self.number + 1)}
        yield Remember(self.snapshot())
        yield from self._open_or_gather(now)

    def _resume(self, event: Resumed, now: Seconds) -> Effects:
        if self.phase is not Phase.IDLE:
            return
        was = event.snapshot
        self.phase, self.base, self.rounds, self.committed = was.phase, was.base, was.rounds, was.committed
        self.number, self.first, self.stopping = was.number, was.first, event.stopping
        self.abandoned_in_a_row, self.slowest_s, self.last_why = (
            was.abandoned_in_a_row,
            was.slowest_s,
            was.last_why,
        )
        self.releases = {release.base: release for release in was.releases}
        self.draws.records = dict(was.records)
        if was.phase is not Phase.GATHERING:  # else they are waited for anew
            self.here |= set(event.here)
        self.spent = dict(event.refused)
        if was.phase is Phase.ROUND:
            yield from self._reopen(event, now)
        else:
            for offer in event.taken:
                self.shelf.keep(offer, taken=True)
            if was.phase is Phase.EVALUATING:
                yield from self._evaluated(now, event.enough)
            elif was.phase is Phase.GATHERING and self.stopping:
                yield from self._end("stopped")
            elif was.phase is Phase.GATHERING:
                yield from self._open_or_gather(now)

    def _reopen(self, event: Resumed, now: Seconds) -> Effects:
        """Go on with the open round: nobody is asked whose answer is known."""
        was = event.snapshot
        assert was.policy is not None
        taken = {(offer.client, offer.update.base): offer for offer in event.taken}
        self.merging = self._merge_to_repeat(was, taken)
        round_ = RoundMachine(self.number, was.base, was.cohort, was.policy)
        for client in was.cohort:
            if client not in self.here:
                round_.standing[client] = Standing.AWAY
        for client, reason in (*event.declined, *event.refused):
            if client in was.cohort:
                round_.standing[client], round_.refusals[client] = Standing.REFUSED, reason
        for key, offer in taken.items():
            of_round = offer.update.base == was.base and offer.client in was.cohort
            is_merging = bool(self.merging) and key in was.merging
            if of_round and (is_merging or not self.merging):
                round_.standing[offer.client], round_.offers[offer.client] = Standing.TAKEN, offer
            elif not is_merging:  # it came when the merge had begun, or is from an older base
                self.shelf.keep(offer, taken=True)
        self.round = round_
        yield OpenRound(self.number, was.base, was.cohort, was.policy.deadline_s)
        if self.merging:
            round_.phase, round_.begun_at = RoundPhase.MERGING, now
            yield Merge(self._counted())
        else:
            yield from self._in_round(Begun(), now)

    def _merge_to_repeat(
        self, was: Snapshot, taken: dict[tuple[ClientId, str], Offered]
    ) -> tuple[Offered, ...]:
        """Give what a merge that was under way can be repeated with: nothing, where a quorum is not left of it."""
        assert was.policy is not None
        left = tuple(taken[key] for key in was.merging if key in taken)
        of_round = [offer for offer in left if offer.update.base == was.base and offer.client in was.cohort]
        return left if len(of_round) >= was.policy.quorum else ()

    def _stop(self, event: StopAsked, now: Seconds) -> Effects:
        if self.phase in {Phase.IDLE, Phase.OVER}:
            return
        self.stopping = True
        if self.phase is Phase.GATHERING:
            yield from self._end("stopped")
        elif self.phase is Phase.ROUND and event.now:
            yield from self._in_round(Halted(), now)

    def _end(self, why: str, *, completed: bool = False) -> Effects:
        assert self.base is not None
        self.phase = Phase.OVER
        for entry in self.shelf.clear():
            if entry.taken:
                yield Revoke(entry.offer, Reason.RUN_OVER)
            else:
                yield Forgo(entry.offer.client)
        yield EndRun(self.base, self.committed, completed or self.committed >= self.rounds, why)

    def _expelled(self, event: Expelled) -> Effects:
        """Let nothing of a client count any more, but for what is being merged, if a model comes of that."""
        if event.bases is None:
            self.here.discard(event.client)
        self.expelled |= {key_of(offer): event.reason for offer in self.merging if event.concerns(offer)}
        for effect in self.shelf.expel(event):
            if effect.offer.update.base == self.base:
                self.spent[event.client] = event.reason
            yield effect

    def _revoke(self, offer: Offered, reason: Reason) -> Effects:
        if offer.update.base == self.base:
            self.spent[offer.client] = reason
        yield Revoke(offer, reason)

    # --- its rounds -----------------------------------------------------------------------------------

    def _open_or_gather(self, now: Seconds) -> Effects:
        self.phase = Phase.GATHERING
        if len(self.here) < self._needed():
            yield Gather(here=len(self.here), needed=self._needed())
        yield from self._open_if_enough(now)

    def _needed(self) -> int:
        """Say how many clients a round takes: the first of a run all that were asked for, later ones a quorum."""
        return self.policy.wait_for if self.first else self.policy.quorum(self.policy.wait_for)

    def _open_if_enough(self, now: Seconds) -> Effects:
        if self.phase is not Phase.GATHERING or len(self.here) < self._needed():
            return
        self.first = False
        assert self.base is not None
        self.phase = Phase.ROUND
        self.number += 1
        self.round = self._next_round(self.base)
        release = self.releases[self.base]
        asked = release.asked.union(self.round.cohort)
        self.releases[self.base] = Release(release.base, release.version, release.number, asked)
        yield Remember(self.snapshot())
        yield OpenRound(self.number, self.base, self.round.cohort, self.round.policy.deadline_s)
        yield from self._in_round(Begun(), now)

    def _next_round(self, base: Digest) -> RoundMachine:
        """Draw a cohort; who has answered from this base already is in it with that answer, and not asked again."""
        answered = {entry.offer.client: entry for entry in self.shelf.adopt(base)}
        size = self.policy.cohort_size
        others = self.draws.draw(
            self.here - answered.keys(),
            None if size is None else max(0, size - len(answered)),
            self.number,
        )
        self.draws.asked(others)
        asked = tuple(sorted({*others, *answered}))
        policy = RoundPolicy(
            quorum=self.policy.quorum(len(asked)), deadline_s=self.policy.deadline_s(self.slowest_s)
        )
        standing = {client: Standing.REFUSED for client in self.spent if client in asked}
        standing |= {
            client: Standing.TAKEN if entry.taken else Standing.FETCHING for client, entry in answered.items()
        }
        refusals = {client: self.spent[client] for client in standing if client not in answered}
        offers = {client: entry.offer for client, entry in answered.items()}
        return RoundMachine(
            self.number, base, asked, policy, standing=standing, offers=offers, refusals=refusals
        )

    def _in_round(self, event: object, now: Seconds) -> Effects:
        """Let the round hear it, and pass on what it decides."""
        if self.round is None:
            return
        for effect in self.round.handle(event, now):  # type: ignore[arg-type]  # a RunEvent that is a RoundEvent
            match effect:
                case Close():
                    yield from self._closed(effect, now)
                case Merge():
                    self.merging = tuple(sorted((*self.round.taken(), *self.shelf.take()), key=in_order))
                    yield Remember(self.snapshot())
                    yield Merge(self._counted())
                case Forgo(client):
                    yield from self._let_go(client)
                case _:
                    yield effect

    def _let_go(self, client: ClientId) -> Effects:
        """Go on without a client; if its update can count later, leave it at work."""
        assert self.round is not None
        standing = self.round.standing[client]
        is_expelled = standing is Standing.REFUSED
        if is_expelled or self.policy.late is Late.REFUSE or not self._will_merge():
            yield Forgo(client)
        elif standing is Standing.FETCHING:
            self.shelf.keep(self.round.offers[client], taken=False)

    def _counted(self) -> tuple[Counted, ...]:
        return tuple(
            Counted(offer.update, self.committed - self.releases[Digest(offer.update.base)].version)
            for offer in self.merging
        )

    def _closed(self, close: Close, now: Seconds) -> Effects:
        assert self.round is not None
        begun_at = self.round.begun_at
        assert begun_at is not None
        self.last_why = close.why
        answers = self.round.answered_in.values()
        if not self.round.was_missed():
            self.slowest_s = max(answers, default=self.slowest_s)
        elif self.slowest_s is not None:  # who was too slow must not be given less time than before
            self.slowest_s = max(*answers, self.slowest_s, 0.0)
        counted = self._counted() if close.committed else ()
        if close.committed:
            self._advance(close.model)
        else:
            self.abandoned_in_a_row += 1
            refused = self.round.refusals.items()
            self.spent |= {client: reason for client, reason in refused if client in self.round.offers}
            for offer in self.merging or self.round.taken():
                if reason := self.expelled.get(key_of(offer)):
                    yield from self._revoke(offer, reason)
                else:
                    self.shelf.keep(offer, taken=True)
        self.phase, self.merging = Phase.EVALUATING, ()
        self.expelled.clear()
        self.draws.learn(one.update for one in counted)
        yield CloseRound(
            self.number,
            close.committed,
            self.round.base,
            close.model,
            close.why,
            counted,
            tuple(sorted(self.round.refusals.items())),
            now - begun_at,
        )

    def _advance(self, model: Digest) -> None:
        """Let a new model be the base of what follows."""
        self.base, self.abandoned_in_a_row = model, 0
        self.spent.clear()
        self.committed += 1
        self.releases[model] = Release(model, self.committed, self.number + 1)
        old = list(self.releases)[: -STALENESS_MAX - 1]
        for base in set(old) - self.shelf.bases():  # what waits has to be told its staleness
            del self.releases[base]

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
            yield from self._open_or_gather(now)

    # --- updates ----------------------------------------------------------------------------------------

    def _offered(self, offer: Offered, now: Seconds) -> Effects:
        """Give an update to the open round if it is from its base, else to the shelf."""
        round_ = self.round
        if self.shelf.knows(offer.client, offer.update.base):
            yield from self.shelf.offer(offer)
        elif not self.releases:
            yield Judge(offer, Reason.NOT_INVITED)
        elif round_ is None:  # resumed between two rounds
            yield from self._offered_late(offer)
        elif (
            round_.phase is RoundPhase.REPORTING
            and offer.update.base == round_.base
            and offer.client in round_.standing
        ):
            yield from self._in_round(offer, now)
        elif answer := round_.decided(offer):
            is_final = answer.refused and answer.refused is not Reason.EQUIVOCATION
            if is_final and answer.refused and offer.update.base == self.base:
                self.spent[offer.client] = answer.refused
            yield answer
        else:
            yield from self._offered_late(offer)

    def _offered_late(self, offer: Offered) -> Effects:
        release = self.releases.get(Digest(offer.update.base))
        if release is None:
            oldest = min(known.number for known in self.releases.values())
            yield Judge(offer, Reason.TOO_STALE if offer.update.round < oldest else Reason.WRONG_BASE)
        elif offer.client not in release.asked:
            yield Judge(offer, Reason.NOT_INVITED)
        elif offer.update.round > self.number:
            yield Judge(offer, Reason.WRONG_ROUND)
        elif not self._will_merge() or (self.policy.late is Late.REFUSE and not self._is_fresh(offer)):
            yield Judge(offer, Reason.TOO_LATE)
        else:
            yield from self.shelf.offer(offer)

    def _is_fresh(self, offer: Offered) -> bool:
        """Tell whether an update starts from the model that the next try starts from."""
        return offer.update.base == self.base and not self._is_merging()

    def _will_merge(self) -> bool:
        """Tell whether another merge is to come in this run."""
        if self.phase is Phase.OVER:
            return False
        if self.round is not None and self.round.phase is RoundPhase.REPORTING:
            return True
        return not self.stopping and self.committed + self._is_merging() < self.rounds

    def _is_merging(self) -> bool:
        return self.round is not None and self.round.phase is RoundPhase.MERGING
