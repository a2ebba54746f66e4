"""One side of a transfer, without signatures: a link, a store, a courier, and wants and dones as plain JSON."""

import asyncio
from contextlib import asynccontextmanager, suppress

import msgspec

from common import topics
from common.blobs import BlobStore
from common.bus import Arrived, LinkDown, LinkUp
from common.courier import Courier, Lanes
from common.errors import TransportError
from common.ids import COORDINATOR, ClientId, FederationId
from common.messages import Done, Manifest, Unavailable, Want
from common.mqtt import Address, MqttLink
from common.topics import Kind, Topics
from support.names import user_of

LAB = Topics(FederationId("lab"))


class Offer(msgspec.Struct, tag="offer", tag_field="kind"):
    """What a blob is; said again whenever the link is back."""

    manifest: Manifest


HEARD = msgspec.json.Decoder(Want | Done | Unavailable | Offer)


class Post:
    """A coordinator that fetches whatever is offered, or a client."""

    def __init__(self, name, link, courier):
        self.name, self.link, self.courier = name, link, courier
        self.offers = []  # manifests
        self.up = asyncio.Event()
        self.tasks = set()

    async def say(self, peer, message):
        """Tell one client, or the coordinator."""
        topic = LAB.client(peer, Kind.TASK) if self.name == COORDINATOR else LAB.client(self.name, Kind.REPLY)
        await self.link.publish(topic, msgspec.json.encode(message))

    async def fetch(self, peer, manifest, frames=None):
        """Fetch a blob and say so."""
        await self.courier.fetch(manifest, want=lambda want: self.say(peer, want), frames=frames)
        while True:
            try:
                return await self.say(peer, Done(digest=manifest.digest))
            except TransportError:
                self.up.clear()
                await self.up.wait()

    async def offer(self, manifest):
        """Have the coordinator fetch a blob."""
        self.courier.offer(manifest, expected=[COORDINATOR])
        self.offers.append(manifest)
        await self.say(COORDINATOR, Offer(manifest))

    async def listen(self):
        while True:
            match await self.link.next():
                case Arrived(topic, payload):
                    place = topics.parse(topic)
                    if place.kind in topics.CHUNKS:
                        self.courier.arrived(place, payload)
                    else:
                        self.hear(
                            place.client if self.name == COORDINATOR else COORDINATOR, HEARD.decode(payload)
                        )
                case LinkUp():
                    self.up.set()
                    self.courier.link_up()
                    for manifest in self.offers:
                        self.start(self.say(COORDINATOR, Offer(manifest)))
                case LinkDown():
                    self.courier.link_down()

    def hear(self, peer, message):
        match message:
            case Want():
                assert self.courier.wanted(peer, message) is None
            case Done(digest=digest):
                self.courier.finished(peer, digest)
                self.offers = [one for one in self.offers if one.digest != digest]
            case Offer(manifest):
                self.start(self.fetch(peer, manifest))
            case Unavailable(digest=digest, reason=reason):
                self.courier.unavailable(digest, reason)

    def start(self, work):
        async def quietly():
            with suppress(TransportError):  # said again when the link is back
                await work

        task = asyncio.create_task(quietly())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


@asynccontextmanager
async def post(name, port, directory):
    """Open one side."""
    store = BlobStore(directory / name, 1 << 30)
    lanes = Lanes.of_coordinator(LAB) if name == COORDINATOR else Lanes.of_client(LAB, ClientId(name))
    link = MqttLink(
        [Address("127.0.0.1", port)], name, username=user_of(name), jitter=lambda _low, _high: 0.01
    )
    async with link, Courier(link, store, lanes) as courier:
        side = Post(name, link, courier)
        if name == COORDINATOR:
            await link.subscribe(LAB.all_up(), LAB.client("+", Kind.REPLY))
        else:
            await link.subscribe(LAB.all_down(ClientId(name)), LAB.client(name, Kind.TASK))
        listening = asyncio.create_task(side.listen())
        await side.up.wait()
        try:
            yield side, store
        finally:
            for task in (listening, *side.tasks):
                task.cancel()
            await asyncio.gather(listening, *side.tasks, return_exceptions=True)
