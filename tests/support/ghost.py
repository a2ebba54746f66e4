"""A client played by hand, over a bus in memory."""

from msgspec.structs import replace

from common import chunks
from common.bus import Arrived
from common.identity import Role
from common.ids import ClientId
from common.ingress import Said
from common.messages import Info, Presence, Update
from common.topics import Kind
from support.lab import SCHEMA, TOPICS


class Ghost:
    """Says what a test tells it to, and never sends a chunk."""

    def __init__(self, lab, name):
        parts = lab.parts(Role.CLIENT, name)
        self.name, self.bus, self.voice, self.ingress = name, parts.link, parts.voice, parts.ingress
        self.audience = ""

    async def show(self, kind, message):
        await self.voice.show(self.bus, TOPICS.client(self.name, kind), message, retain=True)

    async def come(self):
        """Be born, and be here."""
        await self.bus.subscribe(TOPICS.coordinator(Kind.COORDINATOR_STATUS))
        await self.bus.subscribe(TOPICS.client(self.name, Kind.TASK))
        await self.be_born()
        await self.show(Kind.STATUS, self.voice.status(Presence.ONLINE))

    async def be_born(self):
        """Say what it trains."""
        await self.show(
            Kind.INFO,
            Info(
                boot=self.voice.boot,
                sequence=self.voice.next_number(),
                version="1",
                certificate=self.voice.certificate,
                examples=1,
                schema=SCHEMA.digest,
            ),
        )

    async def hear(self, kind):
        """Wait for a message of that kind."""
        while True:
            match await self.bus.next():
                case Arrived(topic, payload):
                    match self.ingress.admit(topic, payload):
                        case Said(_, _, message, _, boot):
                            self.audience = boot or self.audience
                            if isinstance(message, kind):
                                return message

    async def offer(self, task, **changed):
        """Say that an update is ready."""
        delta = chunks.describe(bytes(4 * SCHEMA.elements), codec="none", schema=SCHEMA.digest)
        update = Update(
            run=task.run,
            round=task.round,
            client=ClientId(self.name),
            base=task.base.digest,
            delta=delta,
            examples=1,
        )
        reply = TOPICS.client(self.name, Kind.REPLY)
        await self.voice.tell(self.bus, reply, replace(update, **changed), self.audience)
