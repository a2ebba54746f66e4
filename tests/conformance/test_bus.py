"""One contract of the bus, kept by all: in memory, and over MQTT with our broker and with Mosquitto."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from broker.engine import BrokerPolicy, running
from common.bus import Arrived, LinkDown, LinkUp
from common.errors import TransportError
from common.ids import ClientId, FederationId
from common.mqtt import Address, MqttLink, Will
from common.topics import Kind, Topics
from support.memory_bus import MemoryBroker, MemoryBus, matches
from support.names import user_of
from support.patience import within
from support.proxy import Proxy
from support.require import need

A = ClientId("a")
LAB = Topics(FederationId("lab"))
TASK, REPLY = LAB.client(A, Kind.TASK), LAB.client(A, Kind.REPLY)
STATUS = LAB.client(A, Kind.STATUS)


class InMemory:
    """Buses without a network."""

    def __init__(self):
        self.broker = MemoryBroker()

    def bus(self, name, will=None):
        return MemoryBus(self.broker, name, will=will)

    async def cut(self, bus):
        bus.break_link()

    async def heal(self, bus):
        bus.restore()


class OverMqtt:
    """Links to a real broker, each through a proxy of its own."""

    def __init__(self, broker):
        self.broker = broker
        self.proxies = {}

    @asynccontextmanager
    async def bus(self, name, will=None):
        async with Proxy(self.broker.host, self.broker.port) as proxy:
            address = Address("127.0.0.1", proxy.port)
            link = MqttLink(
                [address], name, will=will, username=user_of(name), jitter=lambda _low, _high: 0.01
            )
            async with link:
                self.proxies[link] = proxy
                yield link

    async def cut(self, bus):
        self.proxies[bus].weather.refuse = True
        self.proxies[bus].reset()

    async def heal(self, bus):
        self.proxies[bus].weather.refuse = False


@pytest.fixture(params=["memory", "amqtt", "mosquitto"])
def run(request):
    """Run a coroutine function with a place where buses meet."""
    kind = request.param
    if kind == "mosquitto":
        need("mosquitto")

    async def main(test):
        async with asyncio.timeout(within(20)):
            if kind == "memory":
                await test(InMemory())
            else:
                async with running(BrokerPolicy(engine=kind, port=0)) as broker:
                    await test(OverMqtt(broker))

    return lambda test: asyncio.run(main(test))


async def until(bus, kind):
    """Skip what happens until something of this kind does."""
    while not isinstance(event := await bus.next(), kind):
        pass
    return event


@asynccontextmanager
async def two(place):
    """Connect the coordinator and a client."""
    async with place.bus("coordinator") as coordinator, place.bus("a") as client:
        assert await until(coordinator, LinkUp) == LinkUp(1)
        assert await until(client, LinkUp) == LinkUp(1)
        yield coordinator, client


def test_what_is_published_arrives_as_it_was(run):
    async def test(place):
        async with two(place) as (coordinator, client):
            await client.subscribe(TASK, LAB.all_down(A))
            big = bytes(range(256)) * 960
            down = LAB.down(A, "ab" * 32)
            for topic, payload in ((TASK, b"\x00\xff"), (down, big), (TASK, b"last")):
                await coordinator.publish(topic, payload)
                arrived = await until(client, Arrived)
                assert (arrived.topic, arrived.payload) == (topic, payload)

    run(test)


def test_what_is_retained_meets_later_subscribers_until_it_is_cleared(run):
    async def test(place):
        async with two(place) as (coordinator, client):
            await client.publish(STATUS, b"here", retain=True)
            await client.publish(STATUS, b"still here", retain=True)
            await coordinator.subscribe(LAB.client("+", Kind.STATUS))
            assert (await until(coordinator, Arrived)).payload == b"still here"

            await coordinator.publish(STATUS, b"", retain=True)
            await until(coordinator, Arrived)
            await coordinator.unsubscribe(LAB.client("+", Kind.STATUS))
            await coordinator.subscribe(LAB.client("+", Kind.STATUS), REPLY)
            await client.publish(REPLY, b"nothing before")
            assert (await until(coordinator, Arrived)).payload == b"nothing before"

    run(test)


def test_nothing_comes_that_no_filter_matches_or_none_any_more(run):
    async def test(place):
        async with two(place) as (coordinator, client):
            await coordinator.subscribe(LAB.client("+", Kind.REPLY), LAB.client(A, Kind.INFO))
            await client.publish(STATUS, b"unheard")
            await client.publish(REPLY, b"heard")
            assert (await until(coordinator, Arrived)).payload == b"heard"

            await coordinator.unsubscribe(LAB.client("+", Kind.REPLY))
            await client.publish(REPLY, b"unheard")
            await client.publish(LAB.client(A, Kind.INFO), b"heard too")
            assert (await until(coordinator, Arrived)).payload == b"heard too"

    run(test)


def test_a_broken_link_is_said_once_and_made_again_with_its_subscriptions(run):
    async def test(place):
        async with two(place) as (coordinator, client):
            await client.subscribe(TASK)
            await place.cut(client)
            down = await until(client, LinkDown)
            assert down.why
            await place.heal(client)
            assert await until(client, LinkUp) == LinkUp(2)
            await coordinator.publish(TASK, b"after")
            assert (await until(client, Arrived)).payload == b"after"

    run(test)


def test_a_subscription_made_while_the_link_is_down_holds_when_it_is_back(run):
    async def test(place):
        async with two(place) as (coordinator, client):
            await place.cut(client)
            await until(client, LinkDown)
            await client.subscribe(TASK)
            await client.unsubscribe(STATUS)
            await place.heal(client)
            await until(client, LinkUp)
            await coordinator.publish(TASK, b"after")
            assert (await until(client, Arrived)).payload == b"after"

    run(test)


def test_while_the_link_is_down_control_fails_and_the_rest_is_dropped(run):
    async def test(place):
        async with two(place) as (_coordinator, client):
            await place.cut(client)
            await until(client, LinkDown)
            with pytest.raises(TransportError):
                await client.publish(REPLY, b"important")
            await client.publish(LAB.client(A, Kind.HEARTBEAT), b"{}", qos=0)

    run(test)


def test_the_will_is_said_when_the_link_breaks_and_only_then(run):
    async def test(place):
        async with place.bus("coordinator") as coordinator:
            await coordinator.subscribe(LAB.client("+", Kind.STATUS))
            async with place.bus("a", Will(STATUS, b"lost")) as client:
                await until(client, LinkUp)
                await place.cut(client)
                assert (await until(coordinator, Arrived)).payload == b"lost"
                await place.heal(client)
                await until(client, LinkUp)
                await client.publish(STATUS, b"online", retain=True)
                assert (await until(coordinator, Arrived)).payload == b"online"
            async with place.bus("b") as other:
                await until(other, LinkUp)
                await other.publish(LAB.client("b", Kind.STATUS), b"online", retain=True)
                assert (await until(coordinator, Arrived)).payload == b"online"  # and no will before it

    run(test)


@pytest.mark.parametrize(
    ("wanted", "topic", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("a/+", "a/b/c", False),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("a/b", "a/c", False),
    ],
)
def test_the_memory_bus_matches_as_mqtt_does(wanted, topic, expected):
    assert matches(wanted, topic) is expected
