"""A run, sans I/O: rounds in order, deadlines from what was observed, stop rules.

    IDLE --start--> GATHERING --enough clients--> ROUND --committed--> EVALUATING --+--> OVER
                        ^                           |  \\--abandoned--+             |
                        +---------------------------+----------------+-------------+

The machine of the open round lives in here and gets its events through here, so that one driver and one clock
move both. Everything the round decides comes out as it is; `Close` becomes an evaluation or another try.
Laws: 1. A round's number is never used twice. 2. A deadline is patience x the slowest answer of the last
round, never below a floor; before anything was observed, a fixed one; a round that somebody missed never
shortens it. 3. `ABANDONED_MAX`
abandoned rounds in a row end the run.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from common.ids import ClientId, Digest
from common.machine import Seconds, Tick
from common.messages import Update
from coordinator import cohort
from coordinator.round import (
    Assign,
    Begun,
    ClientCame,
    ClientDeclined,
    ClientLeft,
    Close,
    Fetch,
    Halted,
    Judge,
    Merge,
    Merged,
    MergeFailed,
    Offered,
    Received,
    Release,
    RoundMachine,
    RoundPolicy,
)

ABANDONED_MAX = 3
DEADLINE_S_MIN = 10.0

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


RunEvent = (
    Started
    | StopAsked
    | Evaluated
    | Offered
    | Received
    | ClientDeclined
    | ClientLeft
    | ClientCame
    | Merged
    | MergeFailed
    | Tick
)

# --- effects --------------------------------------------------------------------------------------


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
    """A round ended. If it committed, evaluate its model, record it, and tell by `Evaluated`."""

    number: int
    committed: bool
    model: Digest
    why: str
    updates: tuple[Update, ...]
    refusals: tuple[tuple[ClientId, str], ...]
    seconds: Seconds


@dataclass(frozen=True, slots=True)
class EndRun:
    """The run is over."""

    model: Digest
    rounds: int  # committed
    completed: bool  # all rounds that were asked for
    why: str


RunEffect = Assign | Fetch | Judge | Release | Merge | Gather | OpenRound | CloseRound | EndRun
Effects = Iterator[RunEffect]

# --- the machine ----------------------------------------------------------------------------------


class Phase(StrEnum):
    """What is going on."""

    IDLE = "idle"
    GATHERING = "gathering"
    ROUND = "round"
    EVALUATING = "evaluating"
    OVER = "over"


@dataclass(frozen=True, slots=True)
class RunPolicy:
    """How a run goes."""

    seed: int
    wait_for: int  # clients that must be here before the first round
    cohort_size: int | None = None  # None: all who are here
    quorum_share: float = 0.5  # of the cohort
    patience: float = 3.0  # a deadline is so many times the slowest answer of the last round
    first_deadline_s: Seconds = 600.0

    def quorum(self, asked: int) -> int:
        """Say how many of so many are enough."""
        return max(1, -int(-asked * self.quorum_share // 1))


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
    first: bool = True  # the run's first round is still to come
    stopping: bool = False
    abandoned_in_a_row: int = 0
    slowest_s: Seconds | None = None  # answer in the last round, or in an earlier one if somebody missed it
    last_why: str = ""

    def handle(self, event: RunEvent, now: Seconds) -> tuple[RunEffect, ...]:
        """Take in what happened; say what is to be done, in order."""
        return tuple(self._handle(event, now))

    def wake_at(self) -> Seconds | None:
        """Say when the open round's deadline is."""
        return self.round.wake_at() if self.round else None

    def awaits(self, client: ClientId, delta: str) -> bool:
        """Tell whether this delta is what the client offered in the open round."""
        offered = self.round.updates.get(client) if self.round else None
        return offered is not None and offered.delta.digest == delta

    def _handle(self, event: RunEvent, now: Seconds) -> Effects:
        match event:
            case Started():
                yield from self._start(event, now)
            case StopAsked():
                yield from self._stop(event, now)
            case Evaluated():
                yield from self._evaluated(now)
            case ClientCame(client):
                self.here.add(client)
                yield from self._in_round(event, now)
                yield from self._open_if_enough(now)
            case ClientLeft(client):
                self.here.discard(client)
                yield from self._in_round(event, now)
            case Offered() | Received() | ClientDeclined() | Merged() | MergeFailed() | Tick():
                yield from self._in_round(event, now)

    def _start(self, event: Started, now: Seconds) -> Effects:
        if self.phase not in {Phase.IDLE, Phase.OVER}:
            return
        self.phase = Phase.GATHERING
        self.base, self.rounds, self.committed = event.base, event.rounds, 0
        self.stopping, self.abandoned_in_a_row, self.first = False, 0, True
        yield from self._open_or_gather(now)

    def _stop(self, event: StopAsked, now: Seconds) -> Effects:
        self.stopping = True
        if self.phase is Phase.GATHERING:
            yield from self._end("stopped")
        elif self.phase is Phase.ROUND and event.now:
            yield from self._in_round(Halted(), now)

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
        asked = cohort.draw(self.here, self.policy.cohort_size, seed=self.policy.seed, number=self.number)
        policy = RoundPolicy(quorum=self.policy.quorum(len(asked)), deadline_s=self._deadline_s())
        self.round = RoundMachine(self.number, self.base, asked, policy)
        yield OpenRound(self.number, self.base, asked, policy.deadline_s)
        yield from self._in_round(Begun(), now)

    def _deadline_s(self) -> Seconds:
        if self.slowest_s is None:
            return self.policy.first_deadline_s
        return max(DEADLINE_S_MIN, self.policy.patience * self.slowest_s)

    def _in_round(self, event: object, now: Seconds) -> Effects:
        """Let the last round hear it; a closed one still judges what comes late."""
        if self.round is None:
            return
        for effect in self.round.handle(event, now):  # type: ignore[arg-type]  # a RunEvent that is a RoundEvent
            if isinstance(effect, Close):
                yield from self._closed(effect, now)
            else:
                yield effect

    def _closed(self, close: Close, now: Seconds) -> Effects:
        assert self.round is not None
        begun_at = self.round.begun_at
        assert begun_at is not None
        self.last_why = close.why
        answers = [at - begun_at for at in self.round.answered_at.values()]
        if not self.round.was_missed():
            self.slowest_s = max(answers, default=self.slowest_s)
        elif self.slowest_s is not None:  # who was too slow must not be given less time than before
            self.slowest_s = max(*answers, self.slowest_s, 0.0)
        self.phase = Phase.EVALUATING
        if close.committed:
            self.base, self.abandoned_in_a_row = close.model, 0
            self.committed += 1
        else:
            self.abandoned_in_a_row += 1
        yield CloseRound(
            self.number,
            close.committed,
            close.model,
            close.why,
            self.round.taken() if close.committed else (),
            tuple(sorted(self.round.refusals.items())),
            now - begun_at,
        )

    def _evaluated(self, now: Seconds) -> Effects:
        if self.phase is not Phase.EVALUATING:
            return
        if self.committed >= self.rounds:
            yield from self._end("")
        elif self.stopping:
            yield from self._end("stopped")
        elif self.abandoned_in_a_row >= ABANDONED_MAX:
            yield from self._end(
                f"{ABANDONED_MAX} rounds in a row came to nothing; the last: {self.last_why}"
            )
        else:
            yield from self._open_or_gather(now)

    def _end(self, why: str) -> Effects:
        assert self.base is not None
        self.phase = Phase.OVER
        yield EndRun(self.base, self.committed, self.committed >= self.rounds, why)


def progress(machine: RunMachine) -> tuple[str, int, int]:
    """Tell a run's phase, how many are asked, and how many of their updates were taken."""
    if machine.phase is not Phase.ROUND or machine.round is None:
        return str(machine.phase), 0, 0
    return str(machine.round.phase), len(machine.round.cohort), len(machine.round.taken())
