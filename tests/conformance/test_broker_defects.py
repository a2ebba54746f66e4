"""What stock amqtt 0.12.1 does wrong, by the numbers of `broker.hardened`, one contract each.

Every test runs twice: on the hardened broker, where it has to pass, and on the stock one, where it has to
fail.
"""

import asyncio
import contextlib
import struct
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
import websockets

from broker.bounds import DEFAULT, Bounds
from broker.hardened import HardenedBroker
from support.hardened_broker import hardened
from support.raw_mqtt import CONNACK, SUBACK, Raw, Will, connect, packet, publish, subscribe, text
from support.stock_broker import stock_broker, stock_process

STATUS = "fedmq/lab/coordinator/status"
MINE = "fedmq/lab/client/c1/status"
TASK = "fedmq/lab/client/c1/task"
REPLY = "fedmq/lab/client/c1/reply"
LOST = Will(MINE, b"lost", retain=True)

Start = Callable[..., AbstractAsyncContextManager[tuple[int, int]]]


def stock(bounds: Bounds = DEFAULT) -> AbstractAsyncContextManager[tuple[int, int]]:
    return stock_process()


FAILS = pytest.mark.xfail(raises=AssertionError, strict=True, reason="the defect")


@pytest.fixture(params=[pytest.param(hardened, id="hardened"), pytest.param(stock, id="stock", marks=FAILS)])
def start(request) -> Start:
    return request.param


def test_b1_a_resumed_session_takes_all_of_the_new_connection(start):
    async def main():
        async with start() as (port, _):
            first = await Raw.connected(port, "c1", clean=False, will=Will(MINE, b"old", retain=False))
            await first.leave()
            second = await Raw.connected(port, "c1", clean=False, will=Will(MINE, b"new", retain=True))
            await second.vanish()
            await asyncio.sleep(0.1)
            late = await Raw.connected(port, "observer-1")
            await late.send(subscribe(MINE))
            assert (await late.packet())[0] == SUBACK
            assert (await late.message()).payload == b"new"  # it was retained

    asyncio.run(main())


def test_b1b_who_is_refused_wipes_no_session(start):
    async def main():
        async with start() as (port, _):
            owner = await Raw.connected(port, "c1", clean=False)
            await owner.subscribe(TASK)
            await owner.leave()
            thief = await Raw.open(port)
            assert await thief.introduce(connect("c1", user="mallory")) == 5
            coordinator = await Raw.connected(port, "coordinator")
            await coordinator.publish(TASK, b"work")
            owner = await Raw.open(port)
            present, code = await owner.exchange(connect("c1", clean=False), CONNACK)
            assert (present, code) == (1, 0)
            assert (await owner.message()).payload == b"work"

    asyncio.run(main())


def test_b1b_who_is_refused_kicks_nobody(start):
    async def main():
        async with start() as (port, _):
            owner = await Raw.connected(port, "c1")
            await owner.subscribe(TASK)
            thief = await Raw.open(port)
            assert await thief.introduce(connect("c1", user="mallory")) == 5
            coordinator = await Raw.connected(port, "coordinator")
            await coordinator.publish(TASK, b"work")
            assert (await owner.message()).payload == b"work"

    asyncio.run(main())


def test_b2_a_silent_client_is_cut_off_and_its_will_is_said(start):
    async def main():
        async with start() as (port, _):
            observer = await Raw.connected(port, "observer-1")
            await observer.subscribe(MINE)
            silent = await Raw.connected(port, "c1", keepalive_s=1, will=LOST)
            assert (await observer.message(within_s=3.0)).payload == b"lost"  # after ceil(1.5 * 1)
            assert await silent.ends()

    asyncio.run(main())


def test_b2b_a_stall_inside_a_packet_counts_as_silence(start):
    async def main():
        async with start(Bounds(idle_s_max=0.5)) as (port, _):
            client = await Raw.connected(port, "c1", keepalive_s=1)
            await client.send(publish(REPLY, bytes(100))[:50])
            assert await client.ends(within_s=2.5)

    asyncio.run(main())


def test_b2_who_never_says_hello_is_cut_off(start):
    async def main():
        async with start(Bounds(connect_s=0.3)) as (port, _):
            dripping = await Raw.open(port)
            for byte in connect("c1")[:8]:
                await dripping.send(bytes((byte,)))
                await asyncio.sleep(0.1)
            assert await dripping.ends(within_s=0.1)

    asyncio.run(main())


def test_b3_what_was_not_acknowledged_comes_again_on_the_next_connection(start):
    async def main():
        async with start() as (port, _):
            coordinator = await Raw.connected(port, "coordinator")
            client = await Raw.connected(port, "c1", clean=False)
            await client.subscribe(TASK)
            await coordinator.publish(TASK, b"work")
            assert (await client.message()).payload == b"work"
            await client.vanish()
            client = await Raw.connected(port, "c1", clean=False)
            assert (await client.message()).payload == b"work"

    asyncio.run(main())


def test_b5_what_waited_comes_without_the_retain_flag(start):
    async def main():
        async with start() as (port, _):
            client = await Raw.connected(port, "c1", clean=False)
            await client.subscribe(TASK)
            await client.leave()
            await asyncio.sleep(0.1)  # the stock broker closes first and notes it later
            coordinator = await Raw.connected(port, "coordinator")
            await coordinator.publish(TASK, b"work")
            await asyncio.sleep(0.1)  # the stock broker acknowledges first and passes on later
            client = await Raw.connected(port, "c1", clean=False)
            message = await client.message()
            assert message.payload == b"work"
            assert not message.retain

    asyncio.run(main())


def test_b4_b5_what_waited_survives_a_connection_that_dies_at_once(start):
    async def main():
        async with start() as (port, _):
            client = await Raw.connected(port, "c1", clean=False)
            await client.subscribe(TASK)
            await client.leave()
            coordinator = await Raw.connected(port, "coordinator")
            await coordinator.publish(TASK, b"one")
            await coordinator.publish(TASK, b"two")
            for _ in range(2):
                client = await Raw.connected(port, "c1", clean=False)
                assert (await client.message()).payload == b"one"
                await client.vanish()
            client = await Raw.connected(port, "c1", clean=False)
            assert [(await client.message()).payload for _ in range(2)] == [b"one", b"two"]

    asyncio.run(main())


def test_b7_nobody_is_sent_retained_messages_unasked(start):
    async def main():
        async with start() as (port, _):
            coordinator = await Raw.connected(port, "coordinator")
            await coordinator.publish(TASK, b"secret", retain=True)
            owner = await Raw.connected(port, "c1")
            await owner.subscribe(TASK)
            other = await Raw.connected(port, "c2")
            assert await other.silent()

    asyncio.run(main())


def test_b7_retained_messages_are_checked_one_by_one(start):
    async def main():
        async with start() as (port, _):
            coordinator = await Raw.connected(port, "coordinator")
            await coordinator.publish(TASK, b"secret", retain=True)
            observer = await Raw.connected(port, "observer-1")
            assert await observer.subscribe("fedmq/#") == 1
            assert await observer.silent()

    asyncio.run(main())


def test_b8_after_a_take_over_the_new_connection_hears(start):
    async def main():
        async with start() as (port, _):
            old = await Raw.connected(port, "c1", clean=False)
            await old.subscribe(TASK)
            new = await Raw.connected(port, "c1", clean=False)
            await asyncio.sleep(0.1)
            coordinator = await Raw.connected(port, "coordinator")
            await coordinator.publish(TASK, b"work")
            assert (await new.message()).payload == b"work"

    asyncio.run(main())


def test_b9_a_take_over_ends_the_old_connection_and_its_will_comes_first(start):
    async def main():
        async with start() as (port, _):
            observer = await Raw.connected(port, "observer-1")
            await observer.subscribe(MINE)
            old = await Raw.connected(port, "c1", will=LOST)
            new = await Raw.connected(port, "c1", will=LOST)
            await new.publish(MINE, b"online", retain=True)
            assert await old.ends(within_s=0.5)
            assert [(await observer.message()).payload for _ in range(2)] == [b"lost", b"online"]

    asyncio.run(main())


def test_b10_subscribing_disturbs_no_delivery(start):
    count = 60

    async def churn(port):
        client = await Raw.connected(port, "observer-busy")
        for i in range(count):
            await client.send(b"".join(subscribe(f"x/{i}/{k}", ident=k + 1) for k in range(10)))
            await client.send(b"".join(_unsubscribe(f"x/{i}/{k}", ident=k + 1) for k in range(10)))
            await asyncio.sleep(0)

    async def main():
        async with start() as (port, _):
            hearers = [await Raw.connected(port, f"observer-{i}") for i in range(8)]
            for i, hearer in enumerate(hearers):
                await hearer.subscribe("/".join(("fedmq", "+" if i % 2 else "lab", "coordinator", "status")))
            coordinator = await Raw.connected(port, "coordinator")
            churning = asyncio.create_task(churn(port))
            for i in range(count):
                await coordinator.publish(STATUS, b"%d" % i)
            await churning
            for hearer in hearers:
                heard = []
                for _ in range(count):
                    message = await hearer.message()
                    await hearer.acknowledge(message)
                    heard.append(message.payload)
                assert heard == [b"%d" % i for i in range(count)]

    asyncio.run(main())


def _unsubscribe(name: str, *, ident: int) -> bytes:
    return packet(0xA2, struct.pack("!H", ident) + text(name))


class Loud(bytes):
    """A payload that notices when it is printed."""

    printed = 0

    def __repr__(self) -> str:
        Loud.printed += 1
        return "loud"


@pytest.mark.parametrize("broker", ["hardened", pytest.param("stock", marks=FAILS)])
def test_b11_no_payload_is_ever_printed(broker):
    async def main():
        Loud.printed = 0
        running = HardenedBroker("127.0.0.1", 0) if broker == "hardened" else await stock_broker()
        if broker == "hardened":
            await running.start()
        await running._broadcast_message(None, STATUS, Loud(b"x"))
        await asyncio.sleep(0.05)
        await running.shutdown()
        assert not Loud.printed

    asyncio.run(main())


def test_b12_a_stalled_subscriber_of_qos_1_is_cut_off(start):
    async def main():
        async with start(Bounds(outstanding_bytes_max=2**20, crowded_bytes=2**20)) as (port, _):
            stalled = await Raw.connected(port, "coordinator", receive_bytes=4096)
            await stalled.subscribe(REPLY)
            client = await Raw.connected(port, "c1")
            for i in range(1, 40):
                await client.publish(REPLY, bytes(2**18), ident=i)
            assert await stalled.ends()

    asyncio.run(main())


def test_b12_a_stalled_subscriber_of_qos_0_loses_messages_and_not_its_connection(start):
    async def main():
        async with start(Bounds(outstanding_bytes_max=2**20)) as (port, _):
            stalled = await Raw.connected(port, "observer-1", receive_bytes=4096)
            await stalled.subscribe(MINE, qos=0)
            client = await Raw.connected(port, "c1")
            for i in range(1, 61):
                await client.publish(MINE, bytes(2**18), ident=i)
            await asyncio.sleep(0.1)
            await stalled.send(packet(0xC0))
            kinds = []
            with contextlib.suppress(AssertionError):  # until nothing more comes
                while True:
                    kinds.append((await stalled.packet(0.5))[0])
            assert 1 <= kinds.count(0x30) < 60
            assert kinds[-1] == 0xD0

    asyncio.run(main())


def test_b12_who_talks_and_takes_nothing_is_cut_off(start):
    async def main():
        async with start(Bounds(idle_s_max=0.5)) as (port, _):
            stalled = await Raw.connected(port, "coordinator", receive_bytes=4096)
            await stalled.subscribe(REPLY)
            client = await Raw.connected(port, "c1")
            for i in range(1, 30):
                await client.publish(REPLY, bytes(2**18), ident=i)
            for _ in range(15):
                await stalled.send(packet(0xC0))
                await asyncio.sleep(0.1)
            assert await stalled.ends(within_s=0.3)

    asyncio.run(main())


def test_b13_retained_messages_hold_up_nothing(start):
    async def main():
        async with start() as (port, _):
            coordinator = await Raw.connected(port, "coordinator")
            await coordinator.publish(STATUS, b"online", retain=True)
            observer = await Raw.connected(port, "observer-1")
            assert await observer.subscribe(STATUS) == 1
            assert (await observer.message()).retain  # and no PUBACK for it
            assert await observer.subscribe(MINE) == 1

    asyncio.run(main())


def test_b14_a_second_subscribe_replaces_the_first(start):
    async def main():
        async with start() as (port, _):
            observer = await Raw.connected(port, "observer-1")
            assert await observer.subscribe(MINE, qos=0) == 0
            assert await observer.subscribe(MINE, qos=1) == 1
            client = await Raw.connected(port, "c1")
            await client.publish(MINE, b"x")
            assert (await observer.message()).qos == 1

    asyncio.run(main())


@pytest.mark.parametrize("topic", ["$SYS/broker", "fedmq/#"])
def test_b14b_a_publish_to_no_topic_ends_the_connection_with_its_will(start, topic):
    async def main():
        async with start() as (port, _):
            observer = await Raw.connected(port, "observer-1")
            await observer.subscribe(MINE)
            client = await Raw.connected(port, "c1", will=LOST)
            await client.send(publish(topic, b"x"))
            assert await client.ends(within_s=1.0)
            assert (await observer.message()).payload == b"lost"

    asyncio.run(main())


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x30\xff\xff\xff\xff\x01", id="length of five bytes"),
        pytest.param(b"\x30\xff\xff\xff\x7f", id="256 MiB"),
    ],
)
def test_b15_what_is_malformed_or_too_long_ends_the_connection(start, data):
    async def main():
        async with start() as (port, _):
            client = await Raw.connected(port, "c1")
            await client.send(data)
            assert await client.ends(within_s=1.0)

    asyncio.run(main())


@pytest.mark.parametrize("topic", [STATUS, "fedmq/+/client/c1/status"])
def test_b16_a_will_that_may_not_be_said_is_refused_at_once(start, topic):
    async def main():
        async with start() as (port, _):
            client = await Raw.open(port)
            assert await client.introduce(connect("c1", will=Will(topic))) == 5

    asyncio.run(main())


def test_b17_half_a_packet_over_websocket_is_no_packet(start):
    async def main():
        async with start() as (port, ws_port):
            observer = await Raw.connected(port, "observer-1")
            await observer.subscribe(MINE)
            uri = f"ws://127.0.0.1:{ws_port}"
            async with websockets.connect(uri, subprotocols=[websockets.Subprotocol("mqtt")]) as socket:
                await socket.send(connect("c1"))
                assert await socket.recv() == b"\x20\x02\x00\x00"
                whole = publish(MINE, b"0123456789" * 10)
                await socket.send(whole[:-100])
                await socket.send(whole[-100:-50])
            assert await observer.silent(0.4)

    asyncio.run(main())


def test_b18_a_flood_stops_in_the_senders_socket(start):
    data = publish(REPLY, bytes(2**18))

    async def flood(client: Raw) -> None:
        for _ in range(128):  # 32 MiB, more than sockets hold
            await client.send(data)

    async def main():
        async with start(Bounds(publishes_per_s_max=10)) as (port, _):
            client = await Raw.connected(port, "c1")
            flooding = asyncio.create_task(flood(client))
            done, _ = await asyncio.wait((flooding,), timeout=2.0)
            flooding.cancel()
            assert not done

    asyncio.run(main())


def test_mqtt_5_is_told_at_once(start):
    async def main():
        async with start() as (port, _):
            client = await Raw.open(port)
            assert await client.introduce(connect("c1", level=5, properties=b"\x05\x11\x00\x00\x00\x10")) == 1
            assert await client.ends()

    asyncio.run(main())


def test_the_lower_qos_counts(start):
    async def main():
        async with start() as (port, _):
            observer = await Raw.connected(port, "observer-1")
            await observer.subscribe(MINE, qos=1)
            client = await Raw.connected(port, "c1")
            await client.send(publish(MINE, b"x", qos=0))
            assert (await observer.message()).qos == 0

    asyncio.run(main())
