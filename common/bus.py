"""What the parts ask of a bus: publish, subscribe, and hear what comes."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Arrived:
    """A message came in."""

    topic: str
    payload: bytes
    retain: bool = False  # never judge by it: brokers set it wrongly


@dataclass(frozen=True, slots=True)
class LinkUp:
    """The link stands and all subscriptions have been made again."""

    epoch: int  # counts the connections of this process from 1


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The link broke, or could not be made; it tries again by itself."""

    why: str
    next_try_s: float


BusEvent = Arrived | LinkUp | LinkDown


class Bus(Protocol):
    """At-least-once publish and subscribe over a link that comes and goes."""

    async def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Hand a message to the broker; returns after its PUBACK (QoS 0: at once).

        Raises: TransportError where the link is down or breaks before the PUBACK.
        """
        ...

    async def subscribe(self, *filters: str) -> None:
        """Subscribe now and after every reconnect; returns after SUBACK, while the link is down at once.

        Raises: TransportError where the broker refuses.
        """
        ...

    async def unsubscribe(self, *filters: str) -> None:
        """Forget filters; returns after UNSUBACK, or at once while the link is down."""
        ...

    async def next(self) -> BusEvent:
        """Wait for what happens next on this bus."""
        ...
