"""Says things on the bus under one identity: signed envelopes, signed lines, the last will.

What is lost with the link is not repeated here: the machines say it again when the link is back.
What is said is numbered, and the numbers rise over restarts: a start begins at the time of day in microseconds, or
where the start before it may have come to (`reserve`), whichever is higher. A clock that was set back does no
harm then, and neither does state that was lost: only both together do, until the clock has caught up.
"""

import base64
import time

from common import codec, envelope, lines
from common.bus import Bus
from common.errors import TransportError
from common.identity import Identity
from common.ids import Boot
from common.messages import Message, Presence, Status
from common.topics import Topics

VERSION = "0.1.0"
NUMBERS_RESERVED = 2**26  # of one start: about a minute of microseconds


def reserve(stored: str | None) -> tuple[int, str]:
    """Choose the first number of a start; what is returned second is to be stored before anything is said."""
    first = max(int(stored or 0), time.time_ns() // 1000)
    return first, str(first + NUMBERS_RESERVED)


class Voice:
    """One start of one participant. Not thread-safe: everything is said from the event loop."""

    def __init__(
        self, identity: Identity, topics: Topics, boot: Boot, epoch: int = 0, first: int | None = None
    ) -> None:
        """`first`: the number that this start begins with; None takes the time of day."""
        self.identity = identity
        self.topics = topics
        self.boot = boot
        self.epoch = epoch  # of a coordinator, see `Status`
        self.bytes_out = 0  # payloads
        self._sequence = reserve(None)[0] if first is None else first

    async def tell(self, bus: Bus, topic: str, message: Message, audience: str = "") -> bool:
        """Say something in an envelope, to one start of its receiver; tells whether the broker has it."""
        header = envelope.Header(
            federation=self.topics.federation,
            sender=self.identity.name,
            boot=self.boot,
            sequence=self.next_number(),
            version=VERSION,
            epoch=self.epoch,
            audience=audience,
        )
        kind = str(message.__struct_config__.tag)
        sealed = envelope.seal(self.identity, topic, kind, header, codec.encode(message))
        return await self._publish(bus, topic, sealed, qos=1, retain=False)

    def next_number(self) -> int:
        """Take the next number."""
        self._sequence += 1
        return self._sequence

    async def show(self, bus: Bus, topic: str, message: Message, *, retain: bool, qos: int = 1) -> bool:
        """Say something as a line for everybody; tells whether the broker has it (QoS 0: perhaps)."""
        return await self._publish(bus, topic, self.line(topic, message), qos=qos, retain=retain)

    def line(self, topic: str, message: Message) -> bytes:
        """Write a line without sending it."""
        return lines.seal(self.identity, topic, message)

    def status(self, state: Presence) -> Status:
        """Make a status that introduces this start, its key included."""
        return Status(
            state=state,
            boot=self.boot,
            sequence=self.next_number(),
            version=VERSION,
            certificate=self.certificate,
            epoch=self.epoch,
        )

    @property
    def certificate(self) -> str:
        """The certificate as text, for lines that introduce."""
        return base64.b64encode(self.identity.certificate_der).decode("ascii")

    async def _publish(self, bus: Bus, topic: str, data: bytes, *, qos: int, retain: bool) -> bool:
        self.bytes_out += len(data)
        try:
            await bus.publish(topic, data, qos=qos, retain=retain)
        except TransportError:
            return False
        return True
