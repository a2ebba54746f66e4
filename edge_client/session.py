"""One client's task, sans I/O: fetch the base, train, offer the update until it is judged.

    IDLE --asked--> FETCHING --fetched--> TRAINING --trained--> REPORTING --judged--> IDLE
                        \\--cannot be had--/   \\--failed (declined)--------------------^

Laws: 1. The same task twice changes nothing, but that a finished update is offered again. 2. A newer task
replaces the one at hand; a training that runs is let end, and its result dropped. 3. An update is offered
until a verdict comes: at once after each break of the link, otherwise with doubling waits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from common.machine import Seconds, Tick
from common.messages import Manifest, Reason, Task, Update, Verdict

REOFFER_S = 10.0
REOFFER_S_MAX = 120.0

# --- events ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """A task came."""

    task: Task


@dataclass(frozen=True, slots=True)
class Released:
    """The round goes on without us."""

    run: str
    round: int


@dataclass(frozen=True, slots=True)
class Fetched:
    """The base is here, whole and checked."""

    digest: str


@dataclass(frozen=True, slots=True)
class Unfetchable:
    """The base cannot be had."""

    digest: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class Trained:
    """Training ended, and its delta lies in the blob store."""

    update: Update


@dataclass(frozen=True, slots=True)
class Untrained:
    """Training ended without an update."""

    run: str
    round: int
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Judged:
    """The coordinator took the update, or refused it."""

    verdict: Verdict


@dataclass(frozen=True, slots=True)
class LinkBack:
    """The link stands again."""


SessionEvent = Asked | Released | Fetched | Unfetchable | Trained | Untrained | Judged | LinkBack | Tick

# --- effects --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fetch:
    """Get the base and tell by `Fetched`."""

    base: Manifest


@dataclass(frozen=True, slots=True)
class Train:
    """Train from the task's base and tell by `Trained` or `Untrained`."""

    task: Task


@dataclass(frozen=True, slots=True)
class Offer:
    """Tell the coordinator that the update is ready."""

    update: Update


@dataclass(frozen=True, slots=True)
class Decline:
    """Tell the coordinator that no update will come."""

    task: Task
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Drop:
    """The update is no longer needed: its blob can go."""

    update: Update
    verdict: Verdict | None  # None: it was overtaken by a newer task


SessionEffect = Fetch | Train | Offer | Decline | Drop
Effects = Iterator[SessionEffect]

# --- the machine ----------------------------------------------------------------------------------


class Phase(StrEnum):
    """What is going on."""

    IDLE = "idle"
    FETCHING = "fetching"
    TRAINING = "training"
    REPORTING = "reporting"


class Session:
    """Does one task at a time."""

    def __init__(self, schema: str) -> None:
        self.schema = schema  # digest, of the model that this client trains
        self.phase = Phase.IDLE
        self.task: Task | None = None
        self.update: Update | None = None
        self.dropped = False  # the training at hand was overtaken or released
        self.next: Task | None = None  # waits for the training at hand to end
        self._offer_at: Seconds | None = None
        self._wait_s = REOFFER_S

    def handle(self, event: SessionEvent, now: Seconds) -> tuple[SessionEffect, ...]:
        """Take in what happened; say what is to be done, in order."""
        return tuple(self._handle(event, now))

    def wake_at(self) -> Seconds | None:
        """Say when the update is to be offered again."""
        return self._offer_at

    def _handle(  # noqa: C901, PLR0912 - one branch an event
        self, event: SessionEvent, now: Seconds
    ) -> Effects:
        match event:
            case Asked(task):
                yield from self._asked(task, now)
            case Released(run, number):
                yield from self._released(run, number)
            case Fetched(digest):
                if self.phase is Phase.FETCHING and self.task and self.task.base.digest == digest:
                    self.phase = Phase.TRAINING
                    yield Train(self.task)
            case Unfetchable(digest, reason):
                if self.phase is Phase.FETCHING and self.task and self.task.base.digest == digest:
                    yield from self._decline(reason, "the base model could not be fetched")
            case Trained(update):
                if self._is_training(update.run, update.round):
                    yield from self._trained(update, now)
            case Untrained(run, number, reason, detail):
                if self._is_training(run, number):
                    yield from self._untrained(reason, detail)
            case Judged(verdict):
                if self.update and self.update.delta.digest == verdict.delta:
                    yield from self._drop(verdict)
            case LinkBack():
                if self.phase is Phase.REPORTING:
                    self._wait_s = REOFFER_S
                    yield from self._offer(now)
            case Tick():
                if self._offer_at is not None and now >= self._offer_at:
                    self._wait_s = min(2 * self._wait_s, REOFFER_S_MAX)
                    yield from self._offer(now)

    def _asked(self, task: Task, now: Seconds) -> Effects:
        if self.task and (self.task.run, self.task.round) == (task.run, task.round) and not self.dropped:
            if self.phase is Phase.REPORTING:
                yield from self._offer(now)
            return
        if self.phase is Phase.TRAINING:
            self.dropped, self.next = True, task
            return
        yield from self._drop(None)
        yield from self._begin(task)

    def _begin(self, task: Task) -> Effects:
        self.task, self.dropped, self.next = task, False, None
        if task.base.schema != self.schema:
            detail = f"this client trains the schema {self.schema}, the task's model has {task.base.schema}"
            yield from self._decline(Reason.WRONG_SCHEMA, detail)
        else:
            self.phase = Phase.FETCHING
            yield Fetch(task.base)

    def _released(self, run: str, number: int) -> Effects:
        if self.next and (self.next.run, self.next.round) == (run, number):
            self.next = None
            return
        if self.task is None or (self.task.run, self.task.round) != (run, number):
            return
        if self.phase is Phase.TRAINING:
            self.dropped = True
        else:
            yield from self._drop(None)

    def _is_training(self, run: str, number: int) -> bool:
        task = self.task if self.phase is Phase.TRAINING else None
        return task is not None and (task.run, task.round) == (run, number)

    def _trained(self, update: Update, now: Seconds) -> Effects:
        self.update = update
        if self.dropped:
            following = self.next
            yield from self._drop(None)
            if following:
                yield from self._begin(following)
        else:
            self.phase, self._wait_s = Phase.REPORTING, REOFFER_S
            yield from self._offer(now)

    def _untrained(self, reason: Reason, detail: str) -> Effects:
        following = self.next
        if self.dropped:
            self._rest()
        else:
            yield from self._decline(reason, detail)
        if following:
            yield from self._begin(following)

    def _offer(self, now: Seconds) -> Effects:
        assert self.update is not None
        self._offer_at = now + self._wait_s
        yield Offer(self.update)

    def _decline(self, reason: Reason, detail: str) -> Effects:
        assert self.task is not None
        yield Decline(self.task, reason, detail)
        self._rest()

    def _drop(self, verdict: Verdict | None) -> Effects:
        if self.update is not None:
            yield Drop(self.update, verdict)
        self._rest()

    def _rest(self) -> None:
        self.phase, self.task, self.update = Phase.IDLE, None, None
        self.dropped, self.next, self._offer_at = False, None, None
