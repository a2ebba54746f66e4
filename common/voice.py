"""Says things on the bus under one identity: signed envelopes, signed lines, the last will.

What is lost with the link is not repeated here: the machines say it again when the link is back.
"""

import base64

from common import codec, envelope, lines
from common.bus import Bus
from common.errors import TransportError
from common.identity import Identity
from common.ids import Boot
from common.messages import Message, Presence, Status
from common.topics import Topics

VERSION = "0.1.0"


class Voice:
    """One start of one participant. Not thread-safe: everything is said from the event loop."""

    def __init__(self, identity: Identity, topics: Topics, boot: Boot, epoch: int = 0) -> None:
        self.identity = identity
        self.topics = topics
        self.boot = boot
        self.epoch = epoch  # of a coordinator, see `Status`
        self.bytes_out = 0  # payloads
        self._sequence = 0

    async def tell(self, bus: Bus, topic: str, message: Message) -> bool:
        """Say something in an envelope; tells whether the broker has it."""
        self._sequence += 1
        header = envelope.Header(
            federation=self.topics.federation,
            sender=self.identity.name,
            boot=self.boot,
            sequence=self._sequence,
            version=VERSION,
            epoch=self.epoch,
        )
        kind = str(message.__struct_config__.tag)
        sealed = envelope.seal(self.identity, topic, kind, header, codec.encode(message))
        return await self._publish(bus, topic, sealed, qos=1, retain=False)

    async def show(self, bus: Bus, topic: str, message: Message, *, retain: bool, qos: int = 1) -> bool:
        """Say something as a line for everybody; tells whether the broker has it (QoS 0: perhaps)."""
        return await self._publish(bus, topic, self.line(topic, message), qos=qos, retain=retain)

    def line(self, topic: str, message: Message) -> bytes:
        """Write a line without sending it."""
        return lines.seal(self.identity, topic, message)

    def status(self, state: Presence) -> Status:
        """Make a status that introduces this start, its key included."""
        self._sequence += 1
        return Status(
            state=state,
            boot=self.boot,
            sequence=self._sequence,
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
