"""A broker and its buses in memory: what MQTT promises, and a link that breaks when a test says so."""

import asyncio
import itertools

from common.bus import Arrived, LinkDown, LinkUp
from common.errors import TransportError


def matches(wanted, topic):
    """Tell whether a filter matches a topic, by MQTT 3.1.1, 4.7."""
    levels = topic.split("/")
    if wanted[0] in "+#" and topic[0] == "$":
        return False
    for at, level in enumerate(wanted.split("/")):
        if level == "#":
            return True
        if at == len(levels) or level not in ("+", levels[at]):
            return False
    return wanted.count("/") == topic.count("/")


class MemoryBroker:
    """Hands messages on at once, in order, once."""

    def __init__(self):
        self.retained = {}
        self.connected = {}

    def hand_on(self, topic, payload, retain):
        if retain and payload:
            self.retained[topic] = payload
        elif retain:
            self.retained.pop(topic, None)
        for bus in tuple(self.connected.values()):
            if any(matches(one, topic) for one in bus.filters):
                bus.inbox.put_nowait(Arrived(topic, payload))

    def hand_retained(self, bus, filters):
        for topic, payload in self.retained.items():
            if any(matches(one, topic) for one in filters):
                bus.inbox.put_nowait(Arrived(topic, payload, retain=True))


class MemoryBus:
    """One participant's `Bus`: `async with MemoryBus(broker, "a") as bus`."""

    def __init__(self, broker, name, *, will=None):
        self.broker, self.name, self.will = broker, name, will
        self.filters = {}  # in order
        self.inbox = asyncio.Queue()
        self.epochs = itertools.count(1)

    async def __aenter__(self):
        self.restore()
        return self

    async def __aexit__(self, *_error):
        self.broker.connected.pop(self.name, None)

    @property
    def is_up(self):
        return self.broker.connected.get(self.name) is self

    def break_link(self, why="broken by the test"):
        """Break the link without farewell."""
        del self.broker.connected[self.name]
        if self.will is not None:
            self.broker.hand_on(self.will.topic, self.will.payload, retain=True)
        self.inbox.put_nowait(LinkDown(why, 0.0))

    def restore(self):
        """Make the link again, with all its subscriptions."""
        self.broker.connected[self.name] = self
        self.broker.hand_retained(self, self.filters)
        self.inbox.put_nowait(LinkUp(next(self.epochs)))

    async def publish(self, topic, payload, *, qos=1, retain=False):
        await asyncio.sleep(0)
        if self.is_up:
            self.broker.hand_on(topic, bytes(payload), retain)
        elif qos > 0:
            raise TransportError("the link to the broker is down")

    async def subscribe(self, *filters):
        await asyncio.sleep(0)
        self.filters.update(dict.fromkeys(filters))
        if self.is_up:
            self.broker.hand_retained(self, filters)

    async def unsubscribe(self, *filters):
        await asyncio.sleep(0)
        for one in filters:
            self.filters.pop(one, None)

    async def next(self):
        return await self.inbox.get()
