"""What a core looks like: events in, effects out, time as an argument.

Laws: 1. A machine waits for nothing and reads no clock. 2. Every pair of phase and event has an answer.
3. `wake_at` follows from state; the driver sends `Tick` when it has come, and a `Tick` moves it on.
"""

from dataclasses import dataclass
from typing import Protocol, TypeVar

Seconds = float  # of a monotonic clock

Event_contra = TypeVar("Event_contra", contravariant=True)
Effect_co = TypeVar("Effect_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Tick:
    """The time that `wake_at` named has come."""


class Machine(Protocol[Event_contra, Effect_co]):
    """Decides; a shell performs what it decides."""

    def handle(self, event: Event_contra, now: Seconds) -> tuple[Effect_co, ...]:
        """Take an event in and say what is to be done."""
        ...

    def wake_at(self) -> Seconds | None:
        """Say when `Tick` is due, if nothing else happens."""
        ...
